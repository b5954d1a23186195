"""The tracer that needs nothing but Python: ptrace through ctypes, with a seccomp filter. It writes what strace would.

Run as `python -I -S ptrace.py SOURCES LOG ROOT -- COMMAND ...`; SOURCES is where the package `headway` lies. Beyond strace it sees stores
to shared mappings of files under ROOT (mapped.py), logged as `store(0<path>, "bytes", offset) = length`.
Linux x86-64 only. Source of the protocol: ptrace(2), seccomp(2).
"""

import contextlib
import ctypes
import os
import signal
import stat
import struct
import sys
from typing import TextIO

if __name__ == "__main__":  # run by path and isolated: the package is found where the caller has it
    sys.path.insert(0, sys.argv[1])

from headway.crashtest.linux_abi import AT_FDCWD, MAP_SHARED, MAP_SHARED_VALIDATE, MAP_TYPE, SYSTEM_CALLS
from headway.crashtest.trace import seccomp
from headway.crashtest.trace.mapped import MappedFiles

_TRACEME, _CONT, _GETREGS, _SYSCALL, _SETOPTIONS, _GETEVENTMSG = 0, 7, 12, 24, 0x4200, 0x4201
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000  # SYSGOOD, FORK, VFORK, CLONE, EXEC, SECCOMP, EXITKILL
_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE, _EVENT_EXEC, _EVENT_SECCOMP = 1, 2, 3, 4, 7
_WALL = 0x40000000
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_MAX_ERRNO = 4095
MAX_PAYLOAD_BYTES = 32 << 20
_PAGE_BYTES = 4096

_BY_NUMBER = {number: (name, signature) for name, (number, signature) in SYSTEM_CALLS.items() if number >= 0}
_CHANGING = frozenset(
    {"write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "truncate", "fallocate", "copy_file_range", "sendfile", "splice"}
)
_LOOK_BEFORE = _CHANGING | {
    *("fsync", "fdatasync", "sync", "syncfs", "msync", "munmap", "mremap", "exit_group", "rename", "renameat", "renameat2", "unlink"),
    *("unlinkat", "close", "execve", "sync_file_range"),
}


# Calls on files under the root that are let in one at a time, so that their order is known. Not the syncs: they take long, promise
# nothing before they return, and a program may rely on several at once.
_UNORDERED = frozenset({"fsync", "fdatasync", "sync", "syncfs", "msync", "sync_file_range"})
_UNORDERED |= {"clone", "clone3", "fork", "vfork", "execve", "execveat", "exit_group", "io_submit", "io_uring_enter"}
_ON_PATHS = {name for name, (_, signature) in SYSTEM_CALLS.items() if "p" in signature}


class Tracer:
    """Follows a program and all its threads and children; one line a call, in the order of the stops."""

    def __init__(self, log: TextIO, root: str) -> None:
        self._log = log
        self._root = root.rstrip("/") + "/"
        self._root_shown = _hex(root.rstrip("/"))
        libc = ctypes.CDLL(None, use_errno=True)
        self._ptrace = libc.ptrace
        self._ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._ptrace.restype = ctypes.c_long
        self._registers = (ctypes.c_ulonglong * 27)()
        self._message = ctypes.c_ulong()
        self._started: set[int] = set()
        self._memory: dict[int, int] = {}
        self._inside: dict[int, tuple[str, str, tuple[int, ...]]] = {}  # tid: call that has not returned, its text, its arguments
        self._unwritten: int | None = None  # the thread whose call began last, if nothing was written since
        self._mapped = MappedFiles()
        self._holder: int | None = None  # the thread that is inside of an ordered call
        self._waiting: list[int] = []  # threads that stand before one

    def run(self, command: list[str]) -> int:
        """Exit code of the command, 128 + N when signal N ended it."""
        main = os.fork()
        if main == 0:
            self._become(command)
        os.waitpid(main, _WALL)
        self._ptrace(_SETOPTIONS, main, None, _OPTIONS)
        self._started.add(main)
        self._ptrace(_CONT, main, None, None)
        code = 0
        while True:
            try:
                tid, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                break
            if os.WIFSTOPPED(status):
                self._stopped(tid, status)
                continue
            self._inside.pop(tid, None)
            self._forget_memory(tid)
            if tid in self._waiting:
                self._waiting.remove(tid)
            self._let_in(tid)
            if tid == main:
                ended = os.waitstatus_to_exitcode(status)
                code = ended if ended >= 0 else 128 - ended
        self._look(main)
        for path in self._mapped.too_large:
            self._write(f'{main} store(0<{_hex(path)}>, ""..., 0) = 0')
        return code

    def _become(self, command: list[str]) -> None:
        """In the child: asks to be traced, waits for the tracer, filters, and becomes the command."""
        try:
            self._ptrace(_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            seccomp.install(number for number, _ in SYSTEM_CALLS.values() if number >= 0)
            preload = os.environ.pop("HEADWAY_CRASH_PRELOAD", None)
            if preload is not None:
                os.environ["LD_PRELOAD"] = preload
            os.execvp(command[0], command)
        except OSError as problem:
            os.write(2, f"{command[0]}: {problem.strerror}\n".encode())
        finally:
            os._exit(127)

    # ---- stops ------------------------------------------------------------------------------------------------------------
    def _stopped(self, tid: int, status: int) -> None:
        number, event = os.WSTOPSIG(status), status >> 16
        if event == _EVENT_SECCOMP:
            self._entered(tid)
        elif event == _EVENT_EXEC:
            self._executed(tid)
        elif event in (_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE):
            self._ptrace(_SYSCALL, tid, None, None)  # on to the return of the call
        elif number == _SYSCALL_STOP:
            self._returned(tid)
            self._ptrace(_CONT, tid, None, None)
            self._let_in(tid)
        elif number == signal.SIGSTOP and tid not in self._started:
            self._started.add(tid)
            self._ptrace(_CONT, tid, None, None)
        else:
            self._ptrace(_CONT, tid, None, number)

    def _entered(self, tid: int) -> None:
        if self._ptrace(_GETREGS, tid, None, ctypes.addressof(self._registers)):
            self._let_in(tid)
            return  # it was killed
        self._ptrace(_GETEVENTMSG, tid, None, ctypes.addressof(self._message))
        registers = self._registers
        number = registers[15]
        arguments = (registers[14], registers[13], registers[12], registers[7], registers[9], registers[8])
        if self._message.value == seccomp.FOREIGN_ARCH or number not in _BY_NUMBER:
            self._write(f"{tid} io_uring_enter() = 0")  # a 32-bit program: as unseen as a ring
            self._ptrace(_CONT, tid, None, None)
            return
        name, signature = _BY_NUMBER[number]
        text = f"{name}({', '.join(self._arguments(tid, signature, arguments))}"
        if self._is_ordered(tid, name, text, arguments):
            if self._holder is not None:
                self._waiting.append(tid)
                return
            self._holder = tid
        # Not while another thread is inside a write: the difference would be that write.
        if self._mapped and name in _LOOK_BEFORE and self._holder in (None, tid):
            self._look(tid)
        self._flush()
        self._inside[tid] = (name, text, arguments)
        self._unwritten = tid
        if name == "exit_group":
            self._returned(tid, 0)
            self._ptrace(_CONT, tid, None, None)
        else:
            self._ptrace(_SYSCALL, tid, None, None)

    def _is_ordered(self, tid: int, name: str, text: str, arguments: tuple[int, ...]) -> bool:
        if name in _UNORDERED or (name not in _ON_PATHS and self._root_shown not in text):
            return False
        # What may wait for another thread (FIFOs, terminals) must not keep the others out.
        try:
            if name in ("open", "creat", "openat", "openat2"):
                path = self._string(tid, arguments[0 if name in ("open", "creat") else 1])
                return path.startswith(b"/") is False or _cannot_block(path)
            return name in _ON_PATHS or _cannot_block(f"/proc/{tid}/fd/{_signed32(arguments[0])}")
        except OSError:
            return True

    def _let_in(self, tid: int) -> None:
        """`tid` is through: the next one in the queue enters."""
        if self._holder == tid:
            self._holder = None
        while self._holder is None and self._waiting:
            self._entered(self._waiting.pop(0))

    def _returned(self, tid: int, known: int | None = None) -> None:
        if tid not in self._inside:
            return
        name, text, arguments = self._inside.pop(tid)
        result = known
        if result is None:
            self._ptrace(_GETREGS, tid, None, ctypes.addressof(self._registers))
            result = self._registers[10]
        value = _signed(result)
        shown = str(value)
        if -_MAX_ERRNO <= value < 0:
            shown = "-1 E"
        elif name in ("open", "openat", "openat2", "creat"):
            shown += _bracketed(self._fd_path(tid, value))
        if self._unwritten == tid:
            self._unwritten = None
            self._write(f"{tid} {text}) = {shown}")
        else:
            self._write(f"{tid} <... {name} resumed>) = {shown}")
        if value >= 0:
            self._after(tid, name, arguments)

    def _after(self, tid: int, name: str, arguments: tuple[int, ...]) -> None:
        if name == "mmap" and arguments[3] & MAP_TYPE in (MAP_SHARED, MAP_SHARED_VALIDATE):
            path = self._fd_path(tid, _signed32(arguments[4]))
            if path is not None and path.startswith(self._root):
                with contextlib.suppress(OSError):
                    self._mapped.watch(f"/proc/{tid}/fd/{arguments[4]}", path)
        elif self._mapped:
            if name in _CHANGING:
                self._mapped.refresh()
            elif name.startswith("rename"):
                self._mapped.follow_rename()

    def _executed(self, tid: int) -> None:
        """A thread that calls exec becomes the leader of its process, under the leader's number."""
        self._ptrace(_GETEVENTMSG, tid, None, ctypes.addressof(self._message))
        former = int(self._message.value)
        if former in self._inside:
            call = self._inside.pop(former)
            if former != tid:
                self._flush()
                self._inside.pop(tid, None)
            self._inside[tid] = call
        self._forget_memory(tid)
        self._ptrace(_SYSCALL, tid, None, None)

    def _look(self, tid: int) -> None:
        for path, offset, data in self._mapped.stores():
            self._write(f'{tid} store(0<{_hex(path)}>, "{_hex_bytes(data)}", {offset}) = {len(data)}')

    # ---- writing ----------------------------------------------------------------------------------------------------------
    def _flush(self) -> None:
        """The call that began last gets its line now, because another line is to come before its end."""
        if self._unwritten is not None:
            tid, self._unwritten = self._unwritten, None
            if tid in self._inside:
                self._log.write(f"{tid} {self._inside[tid][1]} <unfinished ...>\n")

    def _write(self, line: str) -> None:
        self._flush()
        self._log.write(line + "\n")

    # ---- arguments --------------------------------------------------------------------------------------------------------
    def _arguments(self, tid: int, signature: str, values: tuple[int, ...]) -> list[str]:
        return [self._argument(tid, signature, place, values) for place in range(len(signature))]

    def _argument(self, tid: int, signature: str, place: int, values: tuple[int, ...]) -> str:
        kind, value = signature[place], values[place]
        if kind == "i":
            return str(_signed(value))
        if kind in "fd":
            fd = _signed32(value)
            if fd == AT_FDCWD:
                return "AT_FDCWD" + _bracketed(self._link(f"/proc/{tid}/cwd"))
            return str(fd) + _bracketed(self._fd_path(tid, fd))
        if kind in "ps":
            text = self._string(tid, value)
            if kind == "p" and text and not text.startswith(b"/") and (place == 0 or signature[place - 1] != "d"):
                text = os.fsencode(self._link(f"/proc/{tid}/cwd") or "") + b"/" + text
            return f'"{_hex_bytes(text)}"'
        if kind == "b":
            return self._buffer(tid, value, values[place + 1])
        if kind == "v":
            vector = self._read(tid, value, 16 * min(values[place + 1], 1024))
            return f"[{', '.join(self._buffer(tid, *struct.unpack_from('<QQ', vector, at)) for at in range(0, len(vector) - 15, 16))}]"
        if kind == "o":
            raw = self._read(tid, value, 8) if value else b""
            return f"[{struct.unpack('<q', raw)[0]}]" if len(raw) == 8 else "NULL"
        if kind in "ch":
            flags, mode = struct.unpack("<QQ", self._read(tid, value, 16).ljust(16, b"\0"))
            return f"{{flags={flags}}}" if kind == "c" else f"{{flags={flags}, mode={mode}}}"
        return "0"

    def _buffer(self, tid: int, address: int, length: int) -> str:
        data = self._read(tid, address, min(length, MAX_PAYLOAD_BYTES))
        return f'"{_hex_bytes(data)}"' + ("..." if len(data) < length else "")

    def _string(self, tid: int, address: int) -> bytes:
        found = b""
        while len(found) < _PAGE_BYTES:
            piece = self._read(tid, address + len(found), _PAGE_BYTES - (address + len(found)) % _PAGE_BYTES)
            end = piece.find(b"\0")
            if end >= 0:
                return found + piece[:end]
            if not piece:
                break
            found += piece
        return found

    def _read(self, tid: int, address: int, length: int) -> bytes:
        if tid not in self._memory:
            try:
                self._memory[tid] = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return b""
        found = b""
        try:
            while len(found) < length:
                piece = os.pread(self._memory[tid], length - len(found), address + len(found))
                if not piece:
                    break
                found += piece
        except (OSError, OverflowError):
            return found  # an address of the program that is not mapped
        return found

    def _forget_memory(self, tid: int) -> None:
        fd = self._memory.pop(tid, None)
        if fd is not None:
            os.close(fd)

    def _fd_path(self, tid: int, fd: int) -> str | None:
        path = self._link(f"/proc/{tid}/fd/{fd}") if fd >= 0 else None
        return path.removesuffix(" (deleted)") if path is not None else None

    @staticmethod
    def _link(link: str) -> str | None:
        try:
            return os.readlink(link)  # noqa: PTH115 (no pathlib in a tracer that every traced call waits for)
        except OSError:
            return None


def _cannot_block(path: str | bytes) -> bool:
    mode = os.stat(path).st_mode  # noqa: PTH116
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _signed32(value: int) -> int:
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def _hex_bytes(data: bytes) -> str:
    return "\\x" + data.hex(",").replace(",", "\\x") if data else ""


def _hex(path: str) -> str:
    return _hex_bytes(os.fsencode(path))


def _bracketed(path: str | None) -> str:
    return f"<{_hex(path)}>" if path else ""


def main(arguments: list[str]) -> int:
    """LOG ROOT -- COMMAND ..."""
    with open(arguments[0], "w", encoding="latin-1") as log:  # noqa: PTH123
        return Tracer(log, arguments[1]).run(arguments[3:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
