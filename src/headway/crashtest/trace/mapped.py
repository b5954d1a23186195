"""Stores to shared mappings, seen from outside: files that are mapped are compared with their last known content at every sync.

Reads go through the page cache, which is coherent with shared mappings. The order of stores between two comparisons is not known.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

PAGE_BYTES = 4096
MAX_FILE_BYTES = 64 << 20  # each comparison reads the whole file


@dataclass(slots=True)
class _File:
    fd: int
    path: str
    known: bytes


class MappedFiles:
    """Files with a shared mapping, by (device, inode)."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], _File] = {}
        self.too_large: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._files)

    def watch(self, link: str, path: str) -> None:
        """Starts to watch the file that `link` (/proc/PID/fd/N) leads to; what it holds now is known already."""
        fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
        about = os.fstat(fd)
        key = (about.st_dev, about.st_ino)
        if key in self._files or about.st_size > MAX_FILE_BYTES:
            if about.st_size > MAX_FILE_BYTES:
                self.too_large.append(path)
            os.close(fd)
            return
        self._files[key] = _File(fd, path, _content(fd))

    def watches(self, link: str) -> bool:
        """Whether the file behind `link` is watched."""
        if not self._files:
            return False
        try:
            about = os.stat(link)  # noqa: PTH116 (no pathlib in a tracer that every traced call waits for)
        except OSError:
            return False
        return (about.st_dev, about.st_ino) in self._files

    def stores(self) -> Iterator[tuple[str, int, bytes]]:
        """(path, offset, bytes) of what changed since the last look, page by page."""
        for file in self._files.values():
            now = _content(file.fd)
            if now == file.known:
                continue
            before = file.known
            file.known = now
            for start in range(0, len(now), PAGE_BYTES):
                new, old = (
                    now[start : start + PAGE_BYTES],
                    before[start : start + PAGE_BYTES].ljust(min(PAGE_BYTES, len(now) - start), b"\0"),
                )
                if new != old:
                    first = next(at for at, (a, b) in enumerate(zip(new, old)) if a != b)
                    last = next(at for at in range(len(new) - 1, -1, -1) if at >= len(old) or new[at] != old[at])
                    yield file.path, start + first, new[first : last + 1]

    def refresh(self) -> None:
        """Takes the files as they are for known: a system call has changed them."""
        for file in self._files.values():
            file.known = _content(file.fd)

    def follow_rename(self) -> None:
        """Looks up the names again; those of deleted files stay."""
        for file in self._files.values():
            path = os.readlink(f"/proc/self/fd/{file.fd}")  # noqa: PTH115
            if not path.endswith(" (deleted)"):
                file.path = path


def _content(fd: int) -> bytes:
    size_bytes = os.fstat(fd).st_size
    return os.pread(fd, size_bytes, 0) if size_bytes <= 2 * MAX_FILE_BYTES else b""
