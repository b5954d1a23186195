"""Exact simulation of what the kernel keeps between system calls: open files, positions, names, inodes, mappings.

`lower` turns a trace into micro-operations; `simulate` also says what did not fit, which makes a trace infidel.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from headway.crashtest import linux_abi as abi
from headway.crashtest.blocks import Blocks
from headway.crashtest.images import Image
from headway.crashtest.micro import Micro, MicroKind, SyncScope
from headway.crashtest.open_files import Descriptors, Mappings, OpenFile
from headway.crashtest.operations import Operation, Trace
from headway.crashtest.paths import Lookup, Place
from headway.crashtest.tree import OUTSIDE, ROOT


@dataclass(slots=True)
class Simulated:
    """A lowered trace: its micro-operations, the image at its end, and what contradicted the simulation."""

    micros: list[Micro]
    image: Image
    contradictions: list[str]
    mapped: set[int] = field(default_factory=set)  # inodes of files that had a shared mapping

    def mapped_paths(self) -> set[str]:
        """Relative paths, at the end, of files that had a shared mapping: what a system call tracer may have missed."""
        return {path for path, inode, _ in self.image.tree().walk() if inode in self.mapped}


def lower(trace: Trace, *, split_size: bool = True) -> list[Micro]:
    """The micro-operations of a trace. With `split_size=False` a write and the size it sets are one micro-operation."""
    return simulate(trace, split_size=split_size).micros


def simulate(trace: Trace, *, split_size: bool = True) -> Simulated:
    """Lowers a trace and keeps what a fidelity check needs."""
    world = _World(trace, split_size)
    for operation in trace.operations:
        world.step(operation)
    return Simulated(world.micros, world.image, world.contradictions, world.mapped)


class _World:
    def __init__(self, trace: Trace, split_size: bool) -> None:
        self.image = Image(trace.initial)
        self.micros: list[Micro] = []
        self.contradictions: list[str] = []
        self.mapped: set[int] = set()
        self._split_size = split_size
        self._lookup = Lookup(self.image, trace.root)
        self._next_inode = max(trace.initial.nodes, default=ROOT) + 1
        self._tables: dict[int, Descriptors] = {}
        self._mappings: dict[int, Mappings] = {}
        self._blocks = Blocks(trace.initial)
        self._op = 0
        self._steps: dict[str, Callable[[Operation], None]] = {
            name.removeprefix("_do_"): getattr(self, name) for name in dir(self) if name.startswith("_do_")
        }

    def step(self, operation: Operation) -> None:
        self._op = operation.index
        action = self._steps.get(operation.kind)
        if action is not None:
            action(operation)

    # ---- emitting -------------------------------------------------------------------------------------------------------
    def _emit(self, kind: MicroKind, inode: int = 0, parent: int = 0, name: str = "", **more: Any) -> None:
        """Lists a micro-operation and makes its change; `more` are its further fields."""
        micro = Micro(len(self.micros), self._op, kind, inode, parent, name, **more)
        self.micros.append(micro)
        self.image.apply(micro)

    def _contradiction(self, operation: Operation, why: str) -> None:
        self.contradictions.append(f"operation {operation.index}, {operation.kind} {' '.join(operation.paths)}: {why}")

    def _new_inode(self) -> int:
        self._next_inode += 1
        return self._next_inode - 1

    # ---- descriptors ----------------------------------------------------------------------------------------------------
    def _table(self, pid: int) -> Descriptors:
        return self._tables.setdefault(pid, Descriptors())

    def _open_file(self, operation: Operation, fd: int | None, path: str | None) -> OpenFile | None:
        """The open file of a descriptor; one that was open before the trace began is found by its path, at position 0."""
        table = self._table(operation.pid)
        if fd is None:
            return None
        if fd not in table and path:
            place = self._lookup.path(path, follow=True)
            if place.inode:
                table[fd] = OpenFile(place.inode)
        return table.get(fd)

    def _target(self, operation: Operation) -> tuple[int, OpenFile | None]:
        """(inode, open file) that a call on a descriptor or a path is about; inode 0 is unknown, and noted."""
        path = operation.paths[-1] if operation.paths else None
        if operation.fd is not None:
            opened = self._open_file(operation, operation.fd, path)
            if opened is not None:
                return opened.inode, opened
            self._contradiction(operation, f"descriptor {operation.fd} was never seen to be opened")
            return 0, None
        inode = self._lookup.path(path, follow=True).inode if path else 0
        if not inode:
            self._contradiction(operation, "no such file in the simulation")
        return inode, None

    def _do_open(self, operation: Operation) -> None:
        flags = operation.flags
        tmpfile = flags & abi.O_TMPFILE == abi.O_TMPFILE
        exclusive = flags & abi.O_CREAT and flags & abi.O_EXCL
        place = self._lookup.path(operation.paths[-1], follow=not (flags & abi.O_NOFOLLOW or (exclusive and not tmpfile)))
        inode = place.inode
        if tmpfile:
            inode = self._new_inode()
        elif not inode:
            if not flags & abi.O_CREAT:
                # Something that is no content (a FIFO, a socket) or was made by somebody the tracer did not see.
                self._contradiction(operation, "opened, but there is no such file in the simulation")
                return
            inode = self._new_inode()
            self._emit("link", inode, place.parent, place.name)
        elif flags & abi.O_TRUNC and (self.image.size_bytes(inode) or self._blocks.any(inode)):
            self._truncate(inode, 0)
        if operation.fd2 is not None:
            self._table(operation.pid).put(operation.fd2, OpenFile(inode, 0, flags), flags)

    _do_creat = _do_open

    def _do_close(self, operation: Operation) -> None:
        if operation.fd is not None:
            self._table(operation.pid).pop(operation.fd, None)

    def _do_dup(self, operation: Operation) -> None:
        opened = self._open_file(operation, operation.fd, operation.paths[0] if operation.paths else None)
        if operation.fd2 is None or operation.fd == operation.fd2:
            return
        table = self._table(operation.pid)
        if opened is None:  # a foreign file put on top of one of ours
            table.pop(operation.fd2, None)
        else:
            table.put(operation.fd2, opened, operation.flags)

    def _do_setfd(self, operation: Operation) -> None:
        if operation.fd is not None:
            self._table(operation.pid).mark(operation.fd, bool(operation.flags & abi.FD_CLOEXEC))

    def _do_close_range(self, operation: Operation) -> None:
        table = self._table(operation.pid)
        for fd in [fd for fd in table if (operation.fd or 0) <= fd <= (operation.fd2 or 0)]:
            if operation.flags & abi.CLOSE_RANGE_CLOEXEC:
                table.mark(fd, True)
            else:
                del table[fd]

    def _do_setfl(self, operation: Operation) -> None:
        opened = self._open_file(operation, operation.fd, operation.paths[0] if operation.paths else None)
        if opened is not None:
            opened.flags = opened.flags & ~abi.O_APPEND | operation.flags & abi.O_APPEND

    def _do_fork(self, operation: Operation) -> None:
        table, space = self._table(operation.pid), self._space(operation.pid)
        self._tables[operation.result] = table if operation.flags & abi.CLONE_FILES else Descriptors(table)
        self._mappings[operation.result] = space if operation.flags & abi.CLONE_VM else Mappings(space)

    def _do_exec(self, operation: Operation) -> None:
        self._tables[operation.pid] = self._table(operation.pid).after_exec()
        self._mappings[operation.pid] = Mappings()

    def _do_exit(self, operation: Operation) -> None:
        self._tables.pop(operation.pid, None)
        self._mappings.pop(operation.pid, None)

    def _do_lseek(self, operation: Operation) -> None:
        opened = self._open_file(operation, operation.fd, operation.paths[0] if operation.paths else None)
        if opened is not None:
            opened.position = operation.result

    def _do_read(self, operation: Operation) -> None:
        opened = self._table(operation.pid).get(operation.fd if operation.fd is not None else -1)
        if opened is not None and operation.offset is None:
            opened.position += operation.result

    # ---- content --------------------------------------------------------------------------------------------------------
    def _do_write(self, operation: Operation) -> None:
        self._write_call(operation, operation.payload if operation.payload is not None else bytes(operation.result))
        if operation.payload is None and operation.result:
            self._contradiction(operation, "what was written is not known")

    _do_pwrite = _do_write

    def _write_call(self, operation: Operation, data: bytes) -> None:
        inode, opened = self._target(operation)
        if not inode or self.image.is_directory(inode):
            return
        how = opened.flags if opened is not None else 0
        if how & abi.O_APPEND or operation.flags & abi.RWF_APPEND:
            offset = self.image.size_bytes(inode)
        elif operation.offset is not None:
            offset = operation.offset
        else:
            offset = opened.position if opened is not None else 0
        if operation.offset is None and opened is not None:
            opened.position = offset + len(data)
        self._write(inode, offset, data)
        if how & abi.O_SYNC == abi.O_SYNC or operation.flags & abi.RWF_SYNC:
            self._emit("sync", inode, scope="file")
        elif how & abi.O_DSYNC or operation.flags & abi.RWF_DSYNC:
            self._emit("sync", inode, scope="data")

    def _write(self, inode: int, offset: int, data: bytes) -> None:
        """Data micro-operations for each run of blocks that are alike allocated, then the new size."""
        if not data:
            return
        end = offset + len(data)
        grows = end > self.image.size_bytes(inode)
        pieces = self._blocks.pieces(inode, offset, end)
        if not self._split_size:
            pieces = [(offset, end, pieces[0][2])]
        self._blocks.allocate(inode, offset, end)
        for start, stop, old in pieces:
            piece = data if len(pieces) == 1 else data[start - offset : stop - offset]
            self._emit("data", inode, offset=start, data=piece, size=end if grows and not self._split_size else -1, allocated=old)
        if grows and self._split_size:
            self._emit("size", inode, size=end)

    def _do_copy_range(self, operation: Operation) -> None:
        """copy_file_range, sendfile: the source's bytes, from the trace or from the simulation, go where a write would go."""
        table = self._table(operation.pid)
        source = table.get(operation.fd2) if operation.fd2 is not None else None
        data = operation.payload
        if source is not None:
            start = source.position if operation.address < 0 else operation.address
            if data is None:
                data = self.image.read(source.inode, start, operation.result)
            if operation.address < 0:
                source.position += operation.result
        if operation.fd in table:
            if data is None or len(data) != operation.result:
                self._contradiction(operation, "what was copied is not known")
                data = (data or b"").ljust(operation.result, b"\0")
            self._write_call(operation, data)

    def _truncate(self, inode: int, size: int) -> None:
        self._blocks.cut(inode, size)
        self._emit("trunc", inode, size=size)

    def _do_truncate(self, operation: Operation) -> None:
        inode, _ = self._target(operation)
        if inode and operation.length != self.image.size_bytes(inode):
            self._truncate(inode, operation.length)

    def _do_fallocate(self, operation: Operation) -> None:
        inode, _ = self._target(operation)
        if not inode:
            return
        start, length, mode = operation.offset or 0, operation.length, operation.mode
        size = self.image.size_bytes(inode)
        end = start + length
        if mode & (abi.FALLOC_COLLAPSE_RANGE | abi.FALLOC_INSERT_RANGE):
            tail = self.image.read(inode, end if mode & abi.FALLOC_COLLAPSE_RANGE else start, size)
            new_size = size - length if mode & abi.FALLOC_COLLAPSE_RANGE else size + length
            if mode & abi.FALLOC_INSERT_RANGE:
                tail = bytes(length) + tail
            else:
                self._truncate(inode, new_size)
            self._write(inode, start, tail)
            return
        if mode & (abi.FALLOC_PUNCH_HOLE | abi.FALLOC_ZERO_RANGE):
            blank = min(end, size) - start
            if blank > 0:
                self._emit("data", inode, offset=start, data=bytes(blank), allocated=True)
        if mode & abi.FALLOC_PUNCH_HOLE:
            self._blocks.release(inode, start, end)
        else:
            self._blocks.allocate(inode, start, end)
            if not mode & abi.FALLOC_KEEP_SIZE and end > size:
                self._emit("size", inode, size=end)

    def _do_setxattr(self, operation: Operation) -> None:
        inode, _ = self._target(operation)
        if inode and operation.marker is not None and operation.marker.startswith("user."):
            self._emit("xattr", inode, name=operation.marker, data=operation.payload or b"", size=len(operation.payload or b""))

    def _do_removexattr(self, operation: Operation) -> None:
        inode, _ = self._target(operation)
        if inode and operation.marker is not None and operation.marker.startswith("user."):
            self._emit("xattr", inode, name=operation.marker)

    # ---- mappings -------------------------------------------------------------------------------------------------------
    def _space(self, pid: int) -> Mappings:
        return self._mappings.setdefault(pid, Mappings())

    def _do_mmap(self, operation: Operation) -> None:
        inode, _ = self._target(operation)
        if inode and operation.flags & abi.MAP_TYPE in (abi.MAP_SHARED, abi.MAP_SHARED_VALIDATE):
            self._space(operation.pid).add(operation.address, operation.length, inode, operation.offset or 0)
            self.mapped.add(inode)

    def _do_munmap(self, operation: Operation) -> None:
        self._space(operation.pid).remove(operation.address, operation.length)

    def _do_mremap(self, operation: Operation) -> None:
        """`address` and `offset` are the old place and length, `result` and `length` the new ones."""
        self._space(operation.pid).move(operation.address, operation.offset or 0, operation.result, operation.length)

    def _do_msync(self, operation: Operation) -> None:
        if operation.flags & abi.MS_SYNC:
            for inode, offset, length in self._space(operation.pid).within(operation.address, operation.length):
                self._emit("sync", inode, offset=offset, size=length, scope="file")

    def _do_store(self, operation: Operation) -> None:
        place = self._lookup.path(operation.paths[-1], follow=True)
        if place.inode and operation.payload is not None:
            self._emit("store", place.inode, offset=operation.offset or 0, data=operation.payload)

    # ---- syncs and markers ----------------------------------------------------------------------------------------------
    def _do_fsync(self, operation: Operation) -> None:
        inode, _ = self._target(operation)
        if inode:
            whole: SyncScope = "file" if operation.kind == "fsync" else "data"
            self._emit("sync", inode, scope="dir" if self.image.is_directory(inode) else whole)

    _do_fdatasync = _do_fsync

    def _do_sync(self, operation: Operation) -> None:
        self._emit("sync", scope="all")

    _do_syncfs = _do_sync

    def _do_sync_file_range(self, operation: Operation) -> None:
        inode, _ = self._target(operation)
        if inode and operation.flags:
            self._emit("sync", inode, offset=operation.offset or 0, size=operation.length or -1, scope="range")

    def _do_begin(self, operation: Operation) -> None:
        self._emit("marker", name=f"{operation.kind} {operation.marker}")

    _do_ack = _do_begin

    # ---- names ----------------------------------------------------------------------------------------------------------
    def _named(self, operation: Operation, path: str, *, follow: bool = False) -> Place | None:
        place = self._lookup.path(path, follow=follow)
        if not place.inode:
            self._contradiction(operation, f"{path} does not exist in the simulation")
            return None
        return place

    def _do_rename(self, operation: Operation) -> None:
        source = self._named(operation, operation.paths[0])
        target = self._lookup.path(operation.paths[1], follow=False)
        if source is None or source.inode == target.inode:
            return
        self._emit(
            "exchange" if operation.flags & abi.RENAME_EXCHANGE else "rename",
            *(source.inode, source.parent, source.name),
            parent2=target.parent,
            name2=target.name,
            replaced=target.inode,
            scope="dir" if self.image.is_directory(source.inode) else "",
            allocated=bool(operation.flags & abi.RENAME_EXCHANGE) and self.image.is_directory(target.inode),
        )
        if target.parent == OUTSIDE and self.image.is_directory(source.inode):
            self._lookup.note_outside(target.name)

    def _do_link(self, operation: Operation) -> None:
        inode = 0
        if operation.fd is not None:
            opened = self._open_file(operation, operation.fd, None)
            inode = opened.inode if opened is not None else 0
        if not inode:
            source = self._named(operation, operation.paths[0], follow=bool(operation.flags & abi.AT_SYMLINK_FOLLOW))
            if source is None:
                return
            inode = source.inode
        target = self._lookup.path(operation.paths[1], follow=False)
        self._emit("link", inode, target.parent, target.name)

    def _do_symlink(self, operation: Operation) -> None:
        place = self._lookup.path(operation.paths[1], follow=False)
        self._emit("symlink", self._new_inode(), place.parent, place.name, data=os.fsencode(operation.paths[0]))

    def _do_mkdir(self, operation: Operation) -> None:
        place = self._lookup.path(operation.paths[0], follow=False)
        if place.inode == ROOT:  # the program itself created the directory that is traced
            return
        self._emit("mkdir", self._new_inode(), place.parent, place.name)
        if place.parent == OUTSIDE:
            self._lookup.note_outside(place.name)

    def _do_unlink(self, operation: Operation) -> None:
        place = self._named(operation, operation.paths[0])
        if place is not None:
            kind: MicroKind = "rmdir" if self.image.is_directory(place.inode) else "unlink"
            self._emit(kind, place.inode, place.parent, place.name)

    _do_rmdir = _do_unlink
