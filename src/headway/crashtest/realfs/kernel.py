"""The few Linux calls that Python has no function for: mount, a private mount namespace, loop devices, sync_file_range."""

import ctypes
import fcntl
import os
import signal
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x00020000
_MS_PRIVATE, _MS_REC = 1 << 18, 1 << 14
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A  # linux/loop.h
_LO_FLAGS_AUTOCLEAR = 4
_SYNC_FILE_RANGE_WRITE = 2


def _call(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def private_mounts() -> None:
    """From here on this process's mounts are its own: the kernel removes them when its last process ends, however it ends."""
    _call("unshare", _libc.unshare(_CLONE_NEWNS))
    _call("mount", _libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))


def die_with_parent() -> None:
    """SIGKILL when the parent ends; for children of a session."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def mount(device: str, directory: Path, kind: str, options: str = "") -> None:
    """Raises OSError: a crash state that the kernel refuses to mount is a finding."""
    _call(f"mount {kind}", _libc.mount(device.encode(), bytes(directory), kind.encode(), 0, options.encode() or None))


def unmount(directory: Path, *, detach: bool = False) -> None:
    _call(f"umount {directory}", _libc.umount2(bytes(directory), _MNT_DETACH if detach else 0))


class Loop:
    """A loop device on `file` that detaches itself when nothing uses it any more; `close` after mounting."""

    def __init__(self, file: Path) -> None:
        backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._fd, self.path = _attach(backing)
        finally:
            os.close(backing)

    def close(self) -> None:
        os.close(self._fd)


def _attach(backing: int) -> tuple[int, str]:
    # struct loop_config: fd, block_size, loop_info64 (five u64, four u32 of which the last is lo_flags, names and keys), reserved.
    config = bytearray(struct.pack("<II5Q4I64s64s32s2Q8Q", backing, 0, *[0] * 5, 0, 0, 0, _LO_FLAGS_AUTOCLEAR, b"", b"", b"", *[0] * 10))
    for _ in range(20):  # another process may take the free one first
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
        finally:
            os.close(control)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
        except OSError as problem:
            os.close(fd)
            last = problem
            continue
        return fd, path
    raise last


def start_writeback(fd: int) -> None:
    """Starts writing a file's dirty pages (sync_file_range); promises nothing."""
    _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
