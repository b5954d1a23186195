"""One decoded system call becomes one Operation (or none): variants of a call unified, paths made absolute."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from headway.crashtest import linux_abi as abi
from headway.crashtest.operations import Operation
from headway.crashtest.trace.calls import Argument, Call, Cut, Descriptor


class Unreadable(Exception):
    """A call whose arguments the tracer did not keep in full."""


@dataclass(slots=True)
class Process:
    """What a path argument is relative to, and which threads belong together. `pid` is the thread group."""

    pid: int
    cwd: str


@dataclass(slots=True)
class Draft:
    """The parts of an Operation that depend on the call."""

    kind: str
    paths: tuple[str, ...] = ()
    fd: int | None = None
    fd2: int | None = None
    flags: int = 0
    mode: int = 0
    offset: int | None = None
    length: int = 0
    payload: bytes | None = None
    result: int | None = None
    marker: str | None = None
    address: int = 0
    known: bool = field(default=True)  # False: payload should be there and is not


def translate(call: Call, process: Process) -> Draft | None:
    """What a call does to files, None for nothing. Raises Unreadable when its arguments are cut."""
    action = _ACTIONS.get(call.name)
    return action(call, process) if action is not None else None


def operation_of(draft: Draft, call: Call, process: Process) -> Operation:
    """The operation, still without its index."""
    return Operation(
        -1,
        call.seq_enter,
        call.seq_exit,
        process.pid,
        call.tid,
        draft.kind,
        draft.paths,
        draft.fd,
        draft.fd2,
        draft.flags,
        draft.mode,
        draft.offset,
        draft.length,
        draft.payload,
        call.result if draft.result is None else draft.result,
        draft.marker,
        (),
        draft.address,
    )


# ---- arguments ----------------------------------------------------------------------------------------------------------
def _number(argument: Argument) -> int:
    if isinstance(argument, Descriptor):
        return argument.number
    if isinstance(argument, int):
        return argument
    if argument is None:
        return 0
    raise Unreadable(f"a number was expected, not {argument!r}"[:120])


def _at(call: Call, index: int) -> int:
    return _number(call.arguments[index]) if index < len(call.arguments) else 0


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _text(argument: Argument) -> str:
    if not isinstance(argument, bytes):
        raise Unreadable(f"a path was expected, not {argument!r}"[:120])
    return os.fsdecode(argument)


def _absolute(directory: Argument, path: Argument, process: Process) -> str:
    text = _text(path)
    if text.startswith("/"):
        return text
    base = directory.path if isinstance(directory, Descriptor) and directory.path else process.cwd
    return f"{base.rstrip('/')}/{text}" if text else base


def _path(call: Call, index: int, process: Process) -> str:
    """A path argument that is relative to the working directory."""
    return _absolute(None, call.arguments[index], process)


def _path_at(call: Call, index: int, process: Process) -> str:
    """A path argument behind its directory argument."""
    return _absolute(call.arguments[index], call.arguments[index + 1], process)


def _fd(call: Call, index: int) -> tuple[int, tuple[str, ...]]:
    argument = call.arguments[index]
    if isinstance(argument, Descriptor):
        return argument.number, (argument.path,) if argument.path else ()
    return _number(argument), ()


def _bytes(argument: Argument) -> bytes:
    if isinstance(argument, Cut):
        raise Unreadable("the tracer kept only the beginning of what was written")
    if isinstance(argument, list):
        return b"".join(_bytes(part["iov_base"] if isinstance(part, dict) else part) for part in argument)
    if not isinstance(argument, bytes):
        raise Unreadable("what was written is not in the trace")
    return argument


def _field(argument: Argument, name: str) -> int:
    return _number(argument.get(name)) if isinstance(argument, dict) else 0


def _offset(argument: Argument) -> int | None:
    """A pointer to an offset."""
    value = argument[0] if isinstance(argument, list) and argument else argument
    return value if isinstance(value, int) else None


# ---- calls --------------------------------------------------------------------------------------------------------------
def _opened(call: Call, path: str, flags: int, mode: int) -> Draft:
    paths: tuple[str, ...] = (path,)
    # The kernel's own name for what was opened, when the program's led there through links.
    if call.result_path and call.result_path.startswith("/") and flags & abi.O_TMPFILE != abi.O_TMPFILE:
        paths = (path, call.result_path)
    return Draft("open", paths, fd2=call.result, flags=flags, mode=mode)


def _open(call: Call, process: Process) -> Draft:
    return _opened(call, _path(call, 0, process), _at(call, 1), _at(call, 2))


def _creat(call: Call, process: Process) -> Draft:
    return _opened(call, _path(call, 0, process), abi.O_CREAT | abi.O_TRUNC | 1, _at(call, 1))


def _openat(call: Call, process: Process) -> Draft:
    return _opened(call, _path_at(call, 0, process), _at(call, 2), _at(call, 3))


def _openat2(call: Call, process: Process) -> Draft:
    how = call.arguments[2]
    return _opened(call, _path_at(call, 0, process), _field(how, "flags"), _field(how, "mode"))


def _read(call: Call, process: Process) -> Draft:
    fd, paths = _fd(call, 0)
    offset = _signed(_at(call, 3)) if call.name == "preadv2" else -1
    return Draft("read", paths, fd, offset=None if offset == -1 else offset)


def _write(call: Call, process: Process) -> Draft:
    fd, paths = _fd(call, 0)
    offset: int | None = None
    kind = "write"
    if call.name.startswith("pwrite"):
        kind = "pwrite"
        offset = _signed(_at(call, 3))
        if offset == -1 and call.name == "pwritev2":
            kind, offset = "write", None
    flags = _at(call, 4) if call.name == "pwritev2" else 0
    draft = Draft(kind, paths, fd, flags=flags, offset=offset, length=call.result)
    try:
        draft.payload = _bytes(call.arguments[1])[: call.result]
        draft.known = len(draft.payload) == call.result
    except Unreadable:
        draft.known = call.result == 0
    return draft


def _lseek(call: Call, process: Process) -> Draft:
    fd, paths = _fd(call, 0)
    return Draft("lseek", paths, fd, offset=_signed(_at(call, 1)), flags=_at(call, 2))


def _on_fd(kind: str) -> Callable[[Call, Process], Draft]:
    def action(call: Call, process: Process) -> Draft:
        fd, paths = _fd(call, 0)
        return Draft(kind, paths, fd)

    return action


def _dup(call: Call, process: Process) -> Draft:
    fd, paths = _fd(call, 0)
    flags = _at(call, 2) if call.name == "dup3" else 0
    if call.name != "dup" and isinstance(call.arguments[1], Descriptor) and call.arguments[1].path:
        paths = (*paths, call.arguments[1].path)
    return Draft("dup", paths, fd, call.result, flags=flags)


def _fcntl(call: Call, process: Process) -> Draft | None:
    fd, paths = _fd(call, 0)
    command, value = _at(call, 1), _at(call, 2) if len(call.arguments) > 2 and isinstance(call.arguments[2], int) else 0
    if command in (abi.F_DUPFD, abi.F_DUPFD_CLOEXEC):
        return Draft("dup", paths, fd, call.result, flags=abi.O_CLOEXEC if command == abi.F_DUPFD_CLOEXEC else 0)
    if command == abi.F_SETFD:
        return Draft("setfd", paths, fd, flags=value)
    return Draft("setfl", paths, fd, flags=value) if command == abi.F_SETFL else None


def _ioctl(call: Call, process: Process) -> Draft | None:
    fd, paths = _fd(call, 0)
    request = _at(call, 1)
    if request in (abi.FIOCLEX, abi.FIONCLEX):
        return Draft("setfd", paths, fd, flags=abi.FD_CLOEXEC if request == abi.FIOCLEX else 0)
    if request in (abi.FICLONE, abi.FICLONERANGE):
        return Draft("clone_range", paths, fd, known=False)
    return None


def _copy(call: Call, process: Process) -> Draft:
    """copy_file_range, splice (in, off, out, off, n) and sendfile (out, in, off, n)."""
    if call.name == "sendfile":
        target, source, target_offset, source_offset = 0, 1, None, _offset(call.arguments[2])
    else:
        target, source = 2, 0
        source_offset, target_offset = _offset(call.arguments[1]), _offset(call.arguments[3])
    fd, paths = _fd(call, target)
    fd2, source_paths = _fd(call, source)
    address = -1 if source_offset is None else source_offset
    both = (*(source_paths or ("",)), *(paths or ("",)))
    return Draft("copy_range", both, fd, fd2, offset=target_offset, length=call.result, address=address)


def _rename(call: Call, process: Process) -> Draft:
    if call.name == "rename":
        return Draft("rename", (_path(call, 0, process), _path(call, 1, process)))
    return Draft("rename", (_path_at(call, 0, process), _path_at(call, 2, process)), flags=_at(call, 4))


def _link(call: Call, process: Process) -> Draft:
    if call.name == "link":
        return Draft("link", (_path(call, 0, process), _path(call, 1, process)))
    flags = _at(call, 4)
    old, new = _path_at(call, 0, process), _path_at(call, 2, process)
    fd: int | None = None
    if flags & abi.AT_EMPTY_PATH and call.arguments[1] == b"":
        fd = _number(call.arguments[0])
    else:
        # /proc/self/fd/N with AT_SYMLINK_FOLLOW: how a file without a name (O_TMPFILE) gets one.
        tail = old.rpartition("/fd/")
        if flags & abi.AT_SYMLINK_FOLLOW and tail[0].startswith("/proc/") and tail[2].isdigit():
            fd = int(tail[2])
    return Draft("link", (old, new), fd, flags=flags)


def _symlink(call: Call, process: Process) -> Draft:
    new = _path(call, 1, process) if call.name == "symlink" else _path_at(call, 1, process)
    return Draft("symlink", (_text(call.arguments[0]), new))


def _unlink(call: Call, process: Process) -> Draft:
    if call.name == "unlinkat":
        return Draft("rmdir" if _at(call, 2) & abi.AT_REMOVEDIR else "unlink", (_path_at(call, 0, process),))
    return Draft(call.name, (_path(call, 0, process),))


def _mkdir(call: Call, process: Process) -> Draft:
    if call.name == "mkdir":
        return Draft("mkdir", (_path(call, 0, process),), mode=_at(call, 1))
    return Draft("mkdir", (_path_at(call, 0, process),), mode=_at(call, 2))


def _truncate(call: Call, process: Process) -> Draft:
    return Draft("truncate", (_path(call, 0, process),), length=_at(call, 1))


def _ftruncate(call: Call, process: Process) -> Draft:
    fd, paths = _fd(call, 0)
    return Draft("truncate", paths, fd, length=_at(call, 1))


def _fallocate(call: Call, process: Process) -> Draft:
    fd, paths = _fd(call, 0)
    return Draft("fallocate", paths, fd, mode=_at(call, 1), offset=_at(call, 2), length=_at(call, 3))


def _sync_file_range(call: Call, process: Process) -> Draft:
    fd, paths = _fd(call, 0)
    return Draft("sync_file_range", paths, fd, offset=_at(call, 1), length=_at(call, 2), flags=_at(call, 3))


def _mmap(call: Call, process: Process) -> Draft | None:
    if _at(call, 3) & abi.MAP_TYPE not in (abi.MAP_SHARED, abi.MAP_SHARED_VALIDATE) or _signed(_at(call, 4)) < 0:
        return None
    fd, paths = _fd(call, 4)
    return Draft(
        "mmap", paths, fd, flags=_at(call, 3), mode=_at(call, 2), offset=_at(call, 5), length=_at(call, 1), address=call.result, result=0
    )


def _unmap(call: Call, process: Process) -> Draft:
    flags = _at(call, 2) if call.name == "msync" else 0
    return Draft(call.name, (), flags=flags, length=_at(call, 1), address=_at(call, 0))


def _mremap(call: Call, process: Process) -> Draft:
    return Draft("mremap", (), offset=_at(call, 1), length=_at(call, 2), address=_at(call, 0), result=call.result)


def _setxattr(call: Call, process: Process) -> Draft:
    name = _text(call.arguments[1])
    kind = "removexattr" if "remove" in call.name else "setxattr"
    payload = _bytes(call.arguments[2])[: _at(call, 3)] if kind == "setxattr" else None
    if call.name.startswith("f"):
        fd, paths = _fd(call, 0)
        return Draft(kind, paths, fd, marker=name, payload=payload)
    return Draft(kind, (_path(call, 0, process),), marker=name, payload=payload)


def _fork(call: Call, process: Process) -> Draft:
    flags = 0
    if call.name == "vfork":
        flags = abi.CLONE_VM | abi.CLONE_VFORK
    elif call.name == "clone3":
        flags = _field(call.arguments[0], "flags")
    elif call.name == "clone":  # strace names its arguments, the ptrace tracer has the first
        named = [argument["flags"] for argument in call.arguments if isinstance(argument, dict) and "flags" in argument]
        flags = _number(named[0]) if named else _at(call, 0)
    return Draft("fork", flags=flags)


def _store(call: Call, process: Process) -> Draft:
    _, paths = _fd(call, 0)
    return Draft("store", paths, offset=_at(call, 2), length=call.result, payload=_bytes(call.arguments[1]))


def _close_range(call: Call, process: Process) -> Draft:
    return Draft("close_range", (), _at(call, 0), _at(call, 1) & 0xFFFFFFFF, flags=_at(call, 2))


_ACTIONS: dict[str, Callable[[Call, Process], Draft | None]] = {
    "open": _open,
    "creat": _creat,
    "openat": _openat,
    "openat2": _openat2,
    **dict.fromkeys(("read", "readv", "preadv2"), _read),
    **dict.fromkeys(("write", "writev", "pwrite64", "pwritev", "pwritev2"), _write),
    "lseek": _lseek,
    **{name: _on_fd(name) for name in ("close", "fsync", "fdatasync", "syncfs")},
    "sync": lambda call, process: Draft("sync"),
    **dict.fromkeys(("dup", "dup2", "dup3"), _dup),
    "fcntl": _fcntl,
    "ioctl": _ioctl,
    **dict.fromkeys(("copy_file_range", "sendfile", "splice"), _copy),
    **dict.fromkeys(("rename", "renameat", "renameat2"), _rename),
    **dict.fromkeys(("link", "linkat"), _link),
    **dict.fromkeys(("symlink", "symlinkat"), _symlink),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), _unlink),
    **dict.fromkeys(("mkdir", "mkdirat"), _mkdir),
    "truncate": _truncate,
    "ftruncate": _ftruncate,
    "fallocate": _fallocate,
    "sync_file_range": _sync_file_range,
    "mmap": _mmap,
    "munmap": _unmap,
    "msync": _unmap,
    "mremap": _mremap,
    **dict.fromkeys(("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"), _setxattr),
    **dict.fromkeys(("clone", "clone3", "fork", "vfork"), _fork),
    **dict.fromkeys(("execve", "execveat"), lambda call, process: Draft("exec")),
    "exit_group": lambda call, process: Draft("exit"),
    "close_range": _close_range,
    "store": _store,
}
