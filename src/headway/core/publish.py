"""Files that are old or new after a crash, never partial; and the lock that makes a directory one writer's.

The four steps of `publish` (temporary file, fsync, rename, fsync of the directory) are each needed on ext4, xfs and btrfs:
without the first fsync xfs leaves an empty file, without the second about half of the crashes bring the old file back
(measured; compare Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).
"""

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from headway.core.disk import DISK, Disk
from headway.core.errors import DurabilityLost, Locked

_TEMPORARY = re.compile(r"^\..+\.(?P<pid>\d+)\.[0-9a-f]{16}\.tmp$", re.DOTALL)


def publish(
    path: str | Path,
    data_or_writer: bytes | Callable[[BinaryIO], object],
    *,
    durable: bool = True,
    mode: int | None = None,
    disk: Disk = DISK,
) -> None:
    """Replaces the file `path` by `data` (or by what `writer(file)` writes) in one step that a crash cannot split.

    `durable=False` skips both syncs: for caches whose content is verified on reading. A symlink is followed. Raises DurabilityLost when
    writing, syncing or renaming fails (the old file is then still in place) and OSError when the directory cannot be written.
    """
    target = os.path.realpath(path)
    directory, name = os.path.split(target)
    temporary = os.path.join(directory, f".{name[:180]}.{os.getpid()}.{secrets.token_hex(8)}.tmp")  # noqa: PTH118
    fd = disk.create(temporary)
    try:
        if mode is not None:
            os.fchmod(fd, mode)
        if callable(data_or_writer):
            with os.fdopen(os.dup(fd), "wb") as file:
                data_or_writer(file)
        else:
            disk.write_all(fd, data_or_writer)
        if durable:
            disk.sync(fd)
        disk.rename(temporary, target)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
        if isinstance(problem, OSError):
            raise DurabilityLost(
                f"{target} was not replaced ({problem}); the old content stands: make room or mend the disk, then retry"
            ) from problem
        raise
    finally:
        disk.close(fd)
    if durable:
        try:
            disk.sync_path(directory)
        except OSError as problem:
            raise DurabilityLost(
                f"{target} may fall back to its old content in a crash: the directory could not be synced ({problem})"
            ) from problem


def publish_dir(tmp_dir: str | Path, final_dir: str | Path, *, disk: Disk = DISK) -> None:
    """Gives a complete directory its final name: syncs every file, every directory bottom-up, renames, syncs the parent.

    Raises FileExistsError when `final_dir` exists, DurabilityLost when a sync fails.
    """
    source, target = os.path.abspath(tmp_dir), os.path.abspath(final_dir)  # noqa: PTH100
    # rename() would silently replace an empty directory.
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists already; choose another name or remove it first")
    try:
        for here, _, files in os.walk(source, topdown=False):
            for name in files:
                path = os.path.join(here, name)  # noqa: PTH118
                if not os.path.islink(path):  # noqa: PTH114
                    disk.sync_path(path)
            disk.sync_path(here)
        disk.rename(source, target)
        disk.sync_path(os.path.dirname(target))  # noqa: PTH120
    except OSError as problem:
        raise DurabilityLost(
            f"{target} could not be published ({problem}); {source} holds the data: mend the disk, then retry"
        ) from problem


def make_dirs(path: str | Path, *, disk: Disk = DISK) -> None:
    """Creates a directory and its missing parents, and syncs every parent in which it created something."""
    missing: list[Path] = []
    here = Path(path).absolute()
    while not here.is_dir():
        missing.append(here)
        here = here.parent
    for directory in reversed(missing):
        try:
            disk.mkdir(str(directory))
        except FileExistsError:
            if not directory.is_dir():
                raise
        disk.sync_path(str(directory.parent))


def remove_temporaries(directory: str | Path, *, disk: Disk = DISK) -> int:
    """Removes what killed `publish` calls left in `directory` (not what a living process is writing); says how many."""
    removed = 0
    for entry in os.scandir(directory):
        match = _TEMPORARY.match(entry.name)
        if match and not _alive(int(match["pid"])):
            with contextlib.suppress(FileNotFoundError):
                disk.unlink(entry.path)
                removed += 1
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


class WriterLock:
    """The right to write a directory: an flock on `lock` in it, gone with the process. Raises Locked naming the owner's pid.

    Taking it also removes the temporary files of killed writers. Close it, or use it as a context manager.
    """

    def __init__(self, directory: str | Path, *, name: str = "lock") -> None:
        make_dirs(directory)
        self.path = Path(directory) / name
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise Locked(f"{directory} is in use by process {owner}; stop it, or choose another directory") from None
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        # Only for the message above: the lock is the flock, not the text, so a full disk may leave it empty.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        remove_temporaries(directory)

    def close(self) -> None:
        """Lets go; the file stays, because unlinking it would let two processes lock two files of one name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
