"""What a process holds between system calls: descriptors, open file descriptions, shared mappings."""

from collections.abc import Iterator
from dataclasses import dataclass

from headway.crashtest import linux_abi as abi


@dataclass(slots=True)
class OpenFile:
    """An open file description: descriptors made by dup and fork share it."""

    inode: int
    position: int = 0
    flags: int = 0


class Descriptors(dict[int, OpenFile]):
    """A process's descriptors, and which of them exec closes."""

    def __init__(self, other: "Descriptors | None" = None) -> None:
        super().__init__(other or {})
        self.closed_by_exec: set[int] = set(other.closed_by_exec) if other is not None else set()

    def put(self, fd: int, opened: OpenFile, flags: int) -> None:
        """A new descriptor; `flags` with O_CLOEXEC says that exec closes it."""
        self[fd] = opened
        self.mark(fd, bool(flags & abi.O_CLOEXEC))

    def mark(self, fd: int, closed: bool) -> None:
        """Sets or clears close-on-exec."""
        (self.closed_by_exec.add if closed else self.closed_by_exec.discard)(fd)

    def after_exec(self) -> "Descriptors":
        """What is left after exec."""
        kept = Descriptors(self)
        for fd in kept.closed_by_exec:
            kept.pop(fd, None)
        kept.closed_by_exec.clear()
        return kept


@dataclass(frozen=True, slots=True)
class Mapping:
    """A shared mapping of a file: addresses [start, end), the file's offset at start."""

    start: int
    end: int
    inode: int
    offset: int


class Mappings:
    """The shared mappings of one address space."""

    def __init__(self, other: "Mappings | None" = None) -> None:
        self._all: list[Mapping] = list(other._all) if other is not None else []

    def add(self, address: int, length: int, inode: int, offset: int) -> None:
        """A new mapping, in place of whatever was there."""
        self.remove(address, length)
        self._all.append(Mapping(address, address + length, inode, offset))

    def remove(self, address: int, length: int) -> None:
        """munmap: what only partly lies in the range is cut."""
        end = address + length
        kept = []
        for one in self._all:
            kept.append(Mapping(one.start, min(one.end, address), one.inode, one.offset))
            start = max(one.start, end)
            kept.append(Mapping(start, one.end, one.inode, one.offset + start - one.start))
        self._all = [one for one in kept if one.start < one.end]

    def move(self, address: int, length: int, new_address: int, new_length: int) -> None:
        """mremap."""
        moved = [one for one in self._all if one.start <= address < one.end]
        self.remove(address, length)
        if moved:
            self.add(new_address, new_length, moved[0].inode, moved[0].offset + address - moved[0].start)

    def within(self, address: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(inode, offset, length) of every file range mapped in an address range."""
        for one in self._all:
            start, stop = max(one.start, address), min(one.end, address + length)
            if start < stop:
                yield one.inode, one.offset + start - one.start, stop - start
