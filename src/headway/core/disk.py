"""The few system calls that durable files are made of, in one object, so that a test can count, fail or crash each of them.

Knows nothing of formats. Paths are text because the calls are made often.
"""

import fcntl
import os
from pathlib import Path
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


class Disk:
    """System calls as they are; every method raises OSError."""

    def create(self, path: str, mode: int = 0o666) -> int:
        """A new file for writing; FileExistsError when there is one."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def write(self, fd: int, data: Buffer) -> int:
        """May write less than all."""
        return os.write(fd, data)

    def write_all(self, fd: int, data: Buffer) -> None:
        """Loops over short writes (a full disk, a signal or a limit shortens a write before it fails)."""
        view = memoryview(data).cast("B")
        while view:
            view = view[self.write(fd, view) :]

    def sync(self, fd: int) -> None:
        """Data and size of a file, to the medium."""
        if _FULL_SYNC is not None:  # macOS: fsync only reaches the drive's cache
            fcntl.fcntl(fd, _FULL_SYNC)
        else:
            os.fsync(fd)

    def datasync(self, fd: int) -> None:
        """As `sync`, without times."""
        if _FULL_SYNC is not None:
            fcntl.fcntl(fd, _FULL_SYNC)
        else:
            os.fdatasync(fd)

    def sync_path(self, path: str) -> None:
        """`sync` of a directory (its names) or of a file not open."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.sync(fd)
        finally:
            os.close(fd)

    def rename(self, source: str, target: str) -> None:
        Path(source).rename(target)

    def unlink(self, path: str) -> None:
        Path(path).unlink()

    def mkdir(self, path: str) -> None:
        Path(path).mkdir()

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, path: str, *, fresh: bool = False) -> bytes:
        """The whole file. `fresh` first drops clean cached pages: after a failed fsync the cache holds what the medium does not."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if fresh and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            with os.fdopen(os.dup(fd), "rb") as file:
                return file.read()
        finally:
            os.close(fd)


DISK = Disk()
