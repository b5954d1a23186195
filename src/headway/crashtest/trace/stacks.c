/* Preloaded into a traced program: writes the call stack of every successful file system call to a memory-mapped log.

   One log a process, HEADWAY_CRASH_STACKS/PID, lines "tid kind fd result name" (the last part of the path) and the frames, innermost first, each behind 0x1e with fields
   separated by 0x1f: function, file, line, address. Native frames end where the Python interpreter begins; Python frames follow.
   The tracer, not this, says what happened: a call that bypasses libc has no stack and is still traced. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define LOG_BYTES ((size_t)256 << 20) /* sparse; when it is full, later calls have no stack */
#define LINE_BYTES 8192
#define NATIVE_FRAMES 24
#define PYTHON_FRAMES 24

static _Thread_local int busy; /* a call made while a stack is taken (by a finalizer, by malloc) has none */
static char *_Atomic log_at;
static pid_t log_owner;

static void *interpreter_base; /* where the Python interpreter's code lies, if there is one */
static void *own_base, *libc_base;
static int (*py_initialized)(void);
static void *(*py_this_thread)(void);
static int (*py_ensure)(void);
static void (*py_release)(int);
static void *(*py_frame)(void);
static void *(*py_back)(void *);
static void *(*py_code)(void *);
static int (*py_line)(void *);
static void *(*py_attribute)(void *, const char *);
static const char *(*py_text)(void *);
static void (*py_decref)(void *);
static void (*py_fetch)(void **, void **, void **);
static void (*py_restore)(void *, void *, void *);
static int (*py_holds)(void);
static void *(*py_main)(void);
static void *(*py_first_thread)(void *);
static void *(*py_next_thread)(void *);
static int may_wait; /* for the interpreter's lock, although other Python threads exist */

static void *base_of(void *address) {
    Dl_info about;
    return address && dladdr(address, &about) ? about.dli_fbase : NULL;
}

__attribute__((constructor)) static void prepare(void) {
    void *warm[4];
    backtrace(warm, 4); /* loads the unwinder now, not inside of a program's lock */
    const char *wait = getenv("HEADWAY_CRASH_STACKS_WAIT");
    may_wait = wait && *wait == '1';
    own_base = base_of((void *)prepare);
    libc_base = base_of((void *)strlen);
}

static void find_interpreter(void) {
    static atomic_int looked;
    if (py_frame || (atomic_fetch_add(&looked, 1) & 63)) return; /* it may be loaded later: look again now and then */
    py_initialized = (int (*)(void))dlsym(RTLD_DEFAULT, "Py_IsInitialized");
    if (!py_initialized) return;
    interpreter_base = base_of((void *)py_initialized);
    py_this_thread = (void *(*)(void))dlsym(RTLD_DEFAULT, "PyGILState_GetThisThreadState");
    py_ensure = (int (*)(void))dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
    py_release = (void (*)(int))dlsym(RTLD_DEFAULT, "PyGILState_Release");
    py_back = (void *(*)(void *))dlsym(RTLD_DEFAULT, "PyFrame_GetBack");
    py_code = (void *(*)(void *))dlsym(RTLD_DEFAULT, "PyFrame_GetCode");
    py_line = (int (*)(void *))dlsym(RTLD_DEFAULT, "PyFrame_GetLineNumber");
    py_attribute = (void *(*)(void *, const char *))dlsym(RTLD_DEFAULT, "PyObject_GetAttrString");
    py_text = (const char *(*)(void *))dlsym(RTLD_DEFAULT, "PyUnicode_AsUTF8");
    py_decref = (void (*)(void *))dlsym(RTLD_DEFAULT, "Py_DecRef");
    py_fetch = (void (*)(void **, void **, void **))dlsym(RTLD_DEFAULT, "PyErr_Fetch");
    py_restore = (void (*)(void *, void *, void *))dlsym(RTLD_DEFAULT, "PyErr_Restore");
    py_holds = (int (*)(void))dlsym(RTLD_DEFAULT, "PyGILState_Check");
    py_main = (void *(*)(void))dlsym(RTLD_DEFAULT, "PyInterpreterState_Main");
    py_first_thread = (void *(*)(void *))dlsym(RTLD_DEFAULT, "PyInterpreterState_ThreadHead");
    py_next_thread = (void *(*)(void *))dlsym(RTLD_DEFAULT, "PyThreadState_Next");
    if (py_holds && py_main && py_first_thread && py_next_thread && py_this_thread && py_ensure && py_release && py_back && py_code && py_line && py_attribute && py_text && py_decref && py_fetch && py_restore)
        py_frame = (void *(*)(void))dlsym(RTLD_DEFAULT, "PyEval_GetFrame");
}

static char *the_log(void) {
    pid_t me = (pid_t)syscall(SYS_getpid);
    char *at = atomic_load(&log_at);
    if (at && log_owner == me) return at;
    const char *folder = getenv("HEADWAY_CRASH_STACKS");
    if (!folder) return NULL;
    char path[4096];
    snprintf(path, sizeof path, "%s/%d", folder, (int)me);
    int fd = (int)syscall(SYS_open, path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return NULL;
    struct stat about;
    int fresh = fstat(fd, &about) == 0 && about.st_size == 0;
    if (syscall(SYS_ftruncate, fd, LOG_BYTES) == 0) at = mmap(NULL, LOG_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    else at = MAP_FAILED;
    syscall(SYS_close, fd);
    if (at == MAP_FAILED) return NULL;
    if (fresh) atomic_store((_Atomic uint64_t *)at, 8); /* the same process after exec goes on in its log */
    log_owner = me;
    atomic_store(&log_at, at);
    return at;
}

static size_t native_frames(char *line, size_t used) {
    void *frames[NATIVE_FRAMES];
    int count = backtrace(frames, NATIVE_FRAMES);
    for (int i = 0; i < count && used < LINE_BYTES - 1024; i++) {
        Dl_info about;
        if (!dladdr(frames[i], &about)) continue;
        if (interpreter_base && about.dli_fbase == interpreter_base) break;
        if (about.dli_fbase == own_base || about.dli_fbase == libc_base) continue;
        size_t offset = (size_t)((char *)frames[i] - (char *)about.dli_fbase);
        const char *module = about.dli_fname ? about.dli_fname : "";
        const char *short_name = strrchr(module, '/');
        short_name = short_name ? short_name + 1 : module;
        if (about.dli_sname) used += (size_t)snprintf(line + used, 600, "\x1e%.300s\x1f%.200s\x1f-1\x1f%zx", about.dli_sname, module, offset);
        else used += (size_t)snprintf(line + used, 600, "\x1e%.100s+0x%zx\x1f%.200s\x1f-1\x1f%zx", short_name, offset, module, offset);
    }
    return used;
}

/* Waiting for the interpreter's lock could deadlock: its holder may wait for a lock of a library that the thread in this call holds
   (sqlite3_changes against sqlite3_step on a shared connection). One Python thread alone finds it free. */
static int lock_is_free(void) {
    if (may_wait || py_holds()) return 1;
    void *first = py_first_thread(py_main());
    return first && !py_next_thread(first);
}

static size_t python_frames(char *line, size_t used) {
    if (!py_frame || !py_initialized() || !py_this_thread() || !lock_is_free()) return used;
    int state = py_ensure();
    void *type, *value, *trace;
    py_fetch(&type, &value, &trace);
    void *frame = py_frame(), *owned = NULL;
    for (int i = 0; frame && i < PYTHON_FRAMES && used < LINE_BYTES - 1024; i++) {
        void *code = py_code(frame);
        void *name = py_attribute(code, "co_qualname"), *file = py_attribute(code, "co_filename");
        const char *name_text = name ? py_text(name) : NULL, *file_text = file ? py_text(file) : NULL;
        used += (size_t)snprintf(line + used, 700, "\x1e%.200s\x1f%.400s\x1f%d\x1f" "0", name_text ? name_text : "?", file_text ? file_text : "?", py_line(frame));
        if (name) py_decref(name);
        if (file) py_decref(file);
        py_decref(code);
        void *back = py_back(frame);
        if (owned) py_decref(owned);
        frame = owned = back;
    }
    if (owned) py_decref(owned);
    py_restore(type, value, trace);
    py_release(state);
    return used;
}

/* The last part of the path of an open file, or of a path as the program gave it. */
static size_t last_part(char *into, size_t room, const char *path, int fd) {
    char link[32], target[1024];
    if (!path) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, target, sizeof target - 1);
        if (length <= 0 || target[0] != '/') return 0; /* a pipe, a socket */
        target[length] = 0;
        path = target;
        if (length > 10 && !strcmp(target + length - 10, " (deleted)")) target[length - 10] = 0;
    }
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/') start--;
    return (size_t)snprintf(into, room, "%.*s", (int)(end - start), path + start);
}

static void note(const char *kind, int fd, long result, const char *path) {
    if (busy || result < 0) return;
    int saved = errno;
    busy = 1;
    char *at = the_log();
    if (at) {
        char line[LINE_BYTES];
        size_t used = (size_t)snprintf(line, 128, "%ld %s %d %ld ", syscall(SYS_gettid), kind, fd, result);
        size_t name = last_part(line + used, 600, path, fd);
        used += name;
        if (name) {
            find_interpreter();
            used = native_frames(line, used);
            used = python_frames(line, used);
            for (size_t i = 0; i < used; i++)
                if (line[i] == '\n') line[i] = ' ';
            line[used++] = '\n';
            uint64_t place = atomic_fetch_add((_Atomic uint64_t *)at, used);
            if (place + used <= LOG_BYTES) memcpy(at + place, line, used);
        }
    }
    busy = 0;
    errno = saved;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define WRAP(type, name, parameters, arguments, kind, fd, path) \
    type name parameters { \
        REAL(name); \
        type result = real arguments; \
        note(kind, fd, (long)result, path); \
        return result; \
    }
#define WRAP_OPEN(name, parameters, ...) \
    int name parameters { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list more; \
            va_start(more, flags); \
            mode = va_arg(more, mode_t); \
            va_end(more); \
        } \
        int result = real(__VA_ARGS__, flags, mode); \
        note("open", result, result, path); \
        return result; \
    }

WRAP_OPEN(open, (const char *path, int flags, ...), path)
WRAP_OPEN(open64, (const char *path, int flags, ...), path)
WRAP_OPEN(openat, (int at, const char *path, int flags, ...), at, path)
WRAP_OPEN(openat64, (int at, const char *path, int flags, ...), at, path)
WRAP(int, creat, (const char *path, mode_t mode), (path, mode), "open", result, path)
WRAP(int, creat64, (const char *path, mode_t mode), (path, mode), "open", result, path)
WRAP(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n), "write", fd, NULL)
WRAP(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n), "write", fd, NULL)
WRAP(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at), "pwrite", fd, NULL)
WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at), "pwrite", fd, NULL)
WRAP(ssize_t, pwritev, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at), "pwrite", fd, NULL)
WRAP(ssize_t, pwritev64, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at), "pwrite", fd, NULL)
WRAP(int, fsync, (int fd), (fd), "fsync", fd, NULL)
WRAP(int, fdatasync, (int fd), (fd), "fdatasync", fd, NULL)
WRAP(int, syncfs, (int fd), (fd), "syncfs", fd, NULL)
WRAP(int, sync_file_range, (int fd, off64_t at, off64_t n, unsigned flags), (fd, at, n, flags), "sync_file_range", fd, NULL)
WRAP(int, rename, (const char *a, const char *b), (a, b), "rename", -1, b)
WRAP(int, renameat, (int d, const char *a, int e, const char *b), (d, a, e, b), "rename", -1, b)
WRAP(int, renameat2, (int d, const char *a, int e, const char *b, unsigned f), (d, a, e, b, f), "rename", -1, b)
WRAP(int, link, (const char *a, const char *b), (a, b), "link", -1, b)
WRAP(int, linkat, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f), "link", -1, b)
WRAP(int, symlink, (const char *a, const char *b), (a, b), "symlink", -1, b)
WRAP(int, unlink, (const char *a), (a), "unlink", -1, a)
WRAP(int, unlinkat, (int d, const char *a, int f), (d, a, f), f ? "rmdir" : "unlink", -1, a)
WRAP(int, mkdir, (const char *a, mode_t m), (a, m), "mkdir", -1, a)
WRAP(int, mkdirat, (int d, const char *a, mode_t m), (d, a, m), "mkdir", -1, a)
WRAP(int, rmdir, (const char *a), (a), "rmdir", -1, a)
WRAP(int, truncate, (const char *a, off_t n), (a, n), "truncate", -1, a)
WRAP(int, truncate64, (const char *a, off64_t n), (a, n), "truncate", -1, a)
WRAP(int, ftruncate, (int fd, off_t n), (fd, n), "truncate", fd, NULL)
WRAP(int, ftruncate64, (int fd, off64_t n), (fd, n), "truncate", fd, NULL)
WRAP(int, fallocate, (int fd, int m, off_t at, off_t n), (fd, m, at, n), "fallocate", fd, NULL)
WRAP(int, fallocate64, (int fd, int m, off64_t at, off64_t n), (fd, m, at, n), "fallocate", fd, NULL)
