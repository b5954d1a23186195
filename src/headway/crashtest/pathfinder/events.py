"""What Pathfinder sees of an operation: its micro-operations on paths, which only derive edges (a system call is applied whole).

Files are identified by path and descriptors by number, as in the original. Where the original loses absolute seeks or takes O_CREAT on an
existing file for a creation, this does not (docs/crashtest.md lists the differences).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from headway.crashtest.operations import Operation

BLOCK_BYTES = 4096
WRITES = frozenset({"write", "pwrite"})
SYNCS = frozenset({"fsync", "fdatasync", "sync", "syncfs", "sync_file_range"})
MARKERS = frozenset({"begin", "ack"})
_OTHERS = frozenset({"open", "creat", "lseek", "close", "rename", "unlink", "mkdir", "rmdir", "truncate", "fallocate", "mmap", "munmap"})
EVENTS = WRITES | SYNCS | _OTHERS | {"store", "msync"}  # what the original's tracer records; everything else is no event


@dataclass(frozen=True, slots=True)
class Event:
    """One operation with the things it touches; `blocks` are 4 KiB block numbers of `path`, the other sets hold paths.

    `number` is its line in a trace of the original's format (markers count, what the original does not record does not).
    """

    number: int
    operation: Operation
    kind: str
    path: str
    path2: str
    fd: int | None
    created: bool = False
    extends: bool = False
    blocks: range = range(0)
    attributes: frozenset[str] = frozenset()
    directories: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()

    @property
    def is_sync(self) -> bool:
        """Also true of sync_file_range, unless its flags are 0 (then it does nothing)."""
        return self.kind in SYNCS and (self.kind != "sync_file_range" or self.operation.flags != 0)

    @property
    def has_micro_operations(self) -> bool:
        return bool(self.blocks or self.attributes or self.directories or self.added)

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path, self.path2) if self.path2 else (self.path,) if self.path else ()


def events_of(operations: Iterable[Operation], existing: Iterable[tuple[str, int]] = ()) -> list[Event]:
    """The events of a trace, markers left out; `existing` = (path, size in bytes) of the files before the trace."""
    simulation = _Paths(dict(existing))
    lines = [operation for operation in operations if operation.kind in EVENTS | MARKERS]
    return [simulation.event(number, operation) for number, operation in enumerate(lines) if operation.kind in EVENTS]


class _Paths:
    """File sizes by path and offsets by descriptor: all that the original tracks."""

    def __init__(self, size_bytes: dict[str, int]) -> None:
        self._size_bytes = size_bytes
        self._offset: dict[tuple[int, int], int] = {}
        self._appends: set[tuple[int, int]] = set()

    def event(self, number: int, operation: Operation) -> Event:
        kind = operation.kind
        path = operation.paths[0] if operation.paths else ""
        path2 = operation.paths[1] if len(operation.paths) > 1 else ""
        fd = operation.fd2 if kind in ("open", "creat") else operation.fd
        bare = Event(number, operation, kind, path, path2, fd)
        if kind in ("open", "creat"):
            return self._open(bare)
        if kind in WRITES:
            return self._write(bare)
        if kind == "lseek":
            self._seek(bare)
        if kind in ("truncate", "fallocate"):
            return self._resize(bare)
        if kind == "unlink":
            self._size_bytes.pop(path, None)
            return replace(bare, directories=frozenset({_parent(path)}), attributes=frozenset({path}))
        if kind == "rename":
            if path in self._size_bytes:
                self._size_bytes[path2] = self._size_bytes.pop(path)
            return replace(bare, directories=frozenset({_parent(path), _parent(path2)}))
        if kind == "mkdir":
            return replace(bare, added=frozenset({path}), directories=frozenset({_parent(path)}), attributes=frozenset({_parent(path)}))
        if kind == "rmdir":
            return replace(bare, attributes=frozenset({path, _parent(path)}), directories=frozenset({_parent(path)}))
        return bare

    def _open(self, bare: Event) -> Event:
        flags = bare.operation.flags
        key = (bare.operation.pid, bare.fd if bare.fd is not None else -1)
        creates = bare.kind == "creat" or bool(flags & os.O_CREAT)
        created = creates and bare.path not in self._size_bytes
        if created or bare.kind == "creat" or flags & os.O_TRUNC:
            self._size_bytes[bare.path] = 0
        self._offset[key] = 0
        self._appends.discard(key)
        if flags & os.O_APPEND:
            self._appends.add(key)
        if not created:
            return bare
        return replace(bare, created=True, added=frozenset({bare.path}), directories=frozenset({_parent(bare.path)}))

    def _write(self, bare: Event) -> Event:
        operation = bare.operation
        key = (operation.pid, bare.fd if bare.fd is not None else -1)
        known_bytes = self._size_bytes.get(bare.path, 0)
        offset = operation.offset
        if offset is None:
            offset = known_bytes if key in self._appends else self._offset.get(key, 0)
        end = offset + operation.length
        if operation.kind == "write":
            self._offset[key] = end
        extends = end > known_bytes
        if extends:
            self._size_bytes[bare.path] = end
        return replace(bare, blocks=_blocks(offset, end), extends=extends, attributes=frozenset({bare.path}) if extends else frozenset())

    def _seek(self, bare: Event) -> None:
        operation = bare.operation
        key = (operation.pid, bare.fd if bare.fd is not None else -1)
        self._offset[key] = operation.result

    def _resize(self, bare: Event) -> Event:
        operation = bare.operation
        known_bytes = self._size_bytes.get(bare.path, 0)
        if operation.kind == "fallocate":
            start, end = operation.offset or 0, (operation.offset or 0) + operation.length
            self._size_bytes[bare.path] = max(known_bytes, end)
            return replace(bare, attributes=frozenset({bare.path}), blocks=_blocks(start, end))
        self._size_bytes[bare.path] = operation.length
        return replace(bare, attributes=frozenset({bare.path}), blocks=_blocks(operation.length, known_bytes))


def _blocks(start: int, end: int) -> range:
    return range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)) if end > start else range(0)


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)
