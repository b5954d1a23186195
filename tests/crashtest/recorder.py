"""Traces written by hand: a program's system calls without running it, for tests of models and explorers."""

import os

from headway.crashtest.operations import Frame, Operation, Trace
from headway.crashtest.tree import Tree

ROOT_PATH = "/r"


class Recorder:
    """Appends operations of one process; paths are relative to the root. Descriptors are never reused."""

    def __init__(self, initial: dict[str, bytes | None] | None = None) -> None:
        self.initial = Tree.of(initial or {})
        self.operations: list[Operation] = []
        self.tid = 1
        self.stack: tuple[Frame, ...] = ()
        self._path_of: dict[int, str] = {}

    def add(self, kind: str, paths: tuple[str, ...] = (), **facts: object) -> None:
        index = len(self.operations)
        absolute = tuple(f"{ROOT_PATH}/{path}" if path else ROOT_PATH for path in paths)
        self.operations.append(
            Operation(index, 2 * index, 2 * index + 1, 1, self.tid, kind, absolute, stack=self.stack, **facts)  # type: ignore[arg-type]
        )

    def open(self, path: str, flags: int = os.O_CREAT | os.O_WRONLY) -> int:
        fd = 3 + len(self._path_of)
        self._path_of[fd] = path
        self.add("open", (path,), fd2=fd, flags=flags, mode=0o644, result=fd)
        return fd

    def write(self, fd: int, data: bytes, offset: int | None = None) -> None:
        kind = "write" if offset is None else "pwrite"
        self.add(kind, (self._path_of[fd],), fd=fd, offset=offset, length=len(data), payload=data, result=len(data))

    def fsync(self, fd: int) -> None:
        self.add("fsync", (self._path_of[fd],), fd=fd)

    def fdatasync(self, fd: int) -> None:
        self.add("fdatasync", (self._path_of[fd],), fd=fd)

    def close(self, fd: int) -> None:
        self.add("close", (self._path_of[fd],), fd=fd)

    def fsync_directory(self, path: str = "") -> None:
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.fsync(fd)
        self.close(fd)

    def rename(self, old: str, new: str) -> None:
        self.add("rename", (old, new))

    def unlink(self, path: str) -> None:
        self.add("unlink", (path,))

    def mkdir(self, path: str) -> None:
        self.add("mkdir", (path,), mode=0o755)

    def truncate(self, fd: int, length: int) -> None:
        self.add("truncate", (self._path_of[fd],), fd=fd, length=length)

    def fallocate(self, fd: int, length: int) -> None:
        self.add("fallocate", (self._path_of[fd],), fd=fd, mode=0, offset=0, length=length)

    def begin(self, text: str) -> None:
        self.add("begin", marker=text)

    def ack(self, text: str) -> None:
        self.add("ack", marker=text)

    def publish(self, name: str, data: bytes, *, sync: bool = True, sync_directory: bool = True) -> None:
        """Temporary file, write, fsync, rename, fsync of the directory."""
        fd = self.open(f".{name}.tmp", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        self.write(fd, data)
        if sync:
            self.fsync(fd)
        self.close(fd)
        self.rename(f".{name}.tmp", name)
        if sync_directory:
            self.fsync_directory()

    def trace(self) -> Trace:
        return Trace(ROOT_PATH, self.operations, self.initial, None, "test")
