"""Test doubles of `headway.core.disk.Disk`: one that fails on demand, one whose power can be cut at any system call.

`CrashDisk` keeps what was synced apart from what was only written. After a cut, `image` builds one state that ext4, xfs or btrfs may leave:
per file any part of the unsynced tail (cut, zeros, garbage, or a later part without an earlier one), names of unsynced directories there or
not. It is coarser than `headway.crashtest`: no reordering between directory operations of one directory.
"""

import errno
import random
import threading
from pathlib import Path

from headway.core.disk import Buffer, Disk


class PowerCut(BaseException):
    """Not an OSError: nothing may handle it as an ordinary failure."""


class CrashDisk(Disk):
    def __init__(self) -> None:
        self.calls_left: int | None = None
        self.log: list[tuple[str, str]] = []
        self.synced: dict[str, bytes] = {}  # file -> content at its last sync
        self.durable_names: set[str] = set()
        self.unlinked: dict[str, bytes] = {}  # gone, but the directory was not synced since
        self._paths: dict[int, str] = {}
        self._lock = threading.Lock()

    def _spend(self, what: str, path: str) -> None:
        with self._lock:
            if self.calls_left is not None:
                if self.calls_left <= 0:
                    raise PowerCut
                self.calls_left -= 1
            self.log.append((what, Path(path).name))

    def create(self, path: str, mode: int = 0o666) -> int:
        self._spend("create", path)
        fd = super().create(path, mode)
        self._paths[fd] = path
        self.synced[path] = b""
        return fd

    def write(self, fd: int, data: Buffer) -> int:
        self._spend("write", self._paths[fd])
        return super().write(fd, data)

    def datasync(self, fd: int) -> None:
        self._spend("datasync", self._paths[fd])
        self.synced[self._paths[fd]] = Path(self._paths[fd]).read_bytes()

    def sync(self, fd: int) -> None:
        self._spend("sync", self._paths[fd])
        self.synced[self._paths[fd]] = Path(self._paths[fd]).read_bytes()

    def sync_path(self, path: str) -> None:
        self._spend("sync", path)
        here = Path(path)
        if here.is_dir():
            self.durable_names = {name for name in self.durable_names if Path(name).parent != here} | {str(file) for file in here.iterdir()}
            self.unlinked = {name: content for name, content in self.unlinked.items() if Path(name).parent != here}
        else:
            self.synced[path] = Path(path).read_bytes()

    def unlink(self, path: str) -> None:
        self._spend("unlink", path)
        if path in self.durable_names:
            self.unlinked[path] = self.synced.get(path, b"")
        super().unlink(path)

    def rename(self, source: str, target: str) -> None:
        raise NotImplementedError("the journal renames nothing")

    def image(self, source: Path, target: Path, choose: random.Random) -> None:
        """Writes into `target` what a power cut may leave of `source`."""
        target.mkdir(parents=True)
        for path, content in self.unlinked.items():
            if Path(path).parent == source and not Path(path).exists() and choose.random() < 0.5:
                (target / Path(path).name).write_bytes(content)
        for file in sorted(source.glob("*.wal")):
            path = str(file)
            if path not in self.durable_names and choose.random() < 0.5:
                continue
            safe = self.synced.get(path, b"")
            tail = file.read_bytes()[len(safe) :]
            (target / file.name).write_bytes(safe + damaged_tail(tail, choose))


def damaged_tail(tail: bytes, choose: random.Random) -> bytes:
    """What may be left of bytes written but not synced."""
    kept = choose.randint(0, len(tail))
    match choose.randrange(5):
        case 0:
            return tail
        case 1:
            return tail[:kept]
        case 2:
            return tail[:kept] + bytes(len(tail) - kept)
        case 3:
            return tail[:kept] + choose.randbytes(len(tail) - kept)
        case _:
            return bytes(kept) + tail[kept:]


class FailingDisk(Disk):
    """Fails when told to: `room_bytes` left before ENOSPC (short write first), or an error from every sync."""

    def __init__(self) -> None:
        self.room_bytes: int | None = None
        self.sync_error: int | None = None
        self.datasyncs = 0

    def write(self, fd: int, data: Buffer) -> int:
        if self.room_bytes is None:
            return super().write(fd, data)
        if self.room_bytes == 0:
            raise OSError(errno.ENOSPC, "No space left on device (test double)")
        part = memoryview(data)[: self.room_bytes]
        written = super().write(fd, part)
        self.room_bytes -= written
        return written

    def datasync(self, fd: int) -> None:
        self.datasyncs += 1
        if self.sync_error is not None:
            raise OSError(self.sync_error, "sync failed (test double)")
        super().datasync(fd)

    def sync(self, fd: int) -> None:
        if self.sync_error is not None:
            raise OSError(self.sync_error, "sync failed (test double)")
        super().sync(fd)
