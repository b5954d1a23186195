"""Crash images: what a directory holds after any subset of the micro-operations of a trace, applied in trace order.

A subset may be anything. A file whose link is missing is an orphan and does not show; a rename whose link is missing still gives its
inode the new name (as ALICE has it); data beyond a file's size stays hidden until a later size micro-operation shows it.
Images share everything they did not change themselves, so a neighbour costs what it differs in.
"""

from collections.abc import Iterable, Mapping, Sequence

from headway.crashtest.micro import CHANGE_KINDS, Micro
from headway.crashtest.tree import DIRECTORY_MODE, OUTSIDE, ROOT, Directory, File, Node, Symlink, Tree


class _Content:
    """A file being changed: blocks that may reach beyond its size, and the size. Owned by one image, copied by the others."""

    __slots__ = ("buffer", "file", "mode", "owner", "size", "xattrs")

    def __init__(self, buffer: bytearray, size: int, mode: int, xattrs: dict[str, bytes], owner: object) -> None:
        self.buffer = buffer
        self.size = size
        self.mode = mode
        self.xattrs = xattrs
        self.owner = owner
        self.file: File | None = None  # what it looks like, until the next change

    def as_file(self) -> File:
        if self.file is None:
            data = (
                bytes(memoryview(self.buffer)[: self.size]) if self.size <= len(self.buffer) else bytes(self.buffer).ljust(self.size, b"\0")
            )
            self.file = File(data, self.mode, tuple(sorted(self.xattrs.items())))
        return self.file


class _Names:
    """A directory being changed."""

    __slots__ = ("entries", "mode", "owner")

    def __init__(self, entries: dict[str, int], mode: int, owner: object) -> None:
        self.entries = entries
        self.mode = mode
        self.owner = owner


class Image:
    """A directory's content that micro-operations change. `fork` gives a copy for the price of one dictionary."""

    __slots__ = ("_nodes", "_owner", "_parent")

    def __init__(self, initial: Tree) -> None:
        self._nodes: dict[int, Node | _Content | _Names] = {OUTSIDE: Directory(), **initial.nodes}
        self._owner = object()
        self._parent: dict[int, tuple[int, str]] = {}  # of directories: where each hangs
        for inode, node in initial.nodes.items():
            if isinstance(node, Directory):
                for name, child in node.entries.items():
                    if isinstance(initial.nodes[child], Directory):
                        self._parent[child] = (inode, name)

    def fork(self) -> "Image":
        """An image that starts with this one's content; neither sees the other's later changes."""
        other = object.__new__(Image)
        other._nodes = dict(self._nodes)
        other._parent = dict(self._parent)
        other._owner = object()
        self._owner = object()
        return other

    def tree(self) -> Tree:
        """The content as a Tree, orphans included."""
        nodes: dict[int, Node] = {}
        for inode, node in self._nodes.items():
            if isinstance(node, _Content):
                nodes[inode] = node.as_file()
            elif isinstance(node, _Names):
                nodes[inode] = Directory(dict(node.entries), node.mode)
            elif inode != OUTSIDE:
                nodes[inode] = node
        nodes.pop(OUTSIDE, None)
        return Tree(nodes)

    def apply(self, micro: Micro) -> None:
        """Makes one change; syncs and markers change nothing."""
        kind = micro.kind
        if kind in ("data", "store"):
            self._write(micro)
        elif kind == "size":
            content = self._content(micro.inode)
            content.size = micro.size
        elif kind == "trunc":
            content = self._content(micro.inode)
            content.size = micro.size
            del content.buffer[micro.size :]
        elif kind == "link":
            if micro.inode not in self._nodes:
                self._nodes[micro.inode] = File()
            self._lead(micro.parent, micro.name, micro.inode)
        elif kind == "symlink":
            self._nodes[micro.inode] = Symlink(micro.data.decode("utf-8", "surrogateescape"))
            self._lead(micro.parent, micro.name, micro.inode)
        elif kind == "mkdir":
            if micro.inode not in self._nodes:
                self._nodes[micro.inode] = Directory()
            self._hang(micro.inode, micro.parent, micro.name)
        elif kind in ("unlink", "rmdir"):
            self._drop(micro.parent, micro.name, micro.inode)
        elif kind == "rename":
            if not self.is_directory(micro.inode):
                self._drop(micro.parent, micro.name, micro.inode)
            self._place(micro.inode, micro.scope == "dir", micro.parent2, micro.name2)
        elif kind == "exchange":
            self._exchange(micro)
        elif kind == "xattr":
            content = self._content(micro.inode)
            content.xattrs.pop(micro.name, None)
            if micro.size >= 0:
                content.xattrs[micro.name] = micro.data

    # ---- what a simulation asks -----------------------------------------------------------------------------------------
    def entry(self, directory: int, name: str) -> int:
        """Inode of a name, 0 if there is none."""
        node = self._nodes.get(directory)
        return node.entries.get(name, 0) if isinstance(node, Directory | _Names) else 0

    def names(self, directory: int) -> Iterable[str]:
        """The names in a directory."""
        node = self._nodes.get(directory)
        return node.entries.keys() if isinstance(node, Directory | _Names) else ()

    def is_directory(self, inode: int) -> bool:
        """Whether an inode is a directory."""
        return isinstance(self._nodes.get(inode), Directory | _Names)

    def symlink_target(self, inode: int) -> str | None:
        """Where a symbolic link points; None if the inode is none."""
        node = self._nodes.get(inode)
        return node.target if isinstance(node, Symlink) else None

    def place(self, directory: int) -> tuple[int, str]:
        """(parent, name) of a directory; (OUTSIDE, "") of the root and of what hangs nowhere."""
        return self._parent.get(directory, (OUTSIDE, ""))

    def size_bytes(self, inode: int) -> int:
        """Size of a file; 0 of anything else."""
        node = self._nodes.get(inode)
        return node.size if isinstance(node, _Content) else len(node.data) if isinstance(node, File) else 0

    def read(self, inode: int, offset: int, length: int) -> bytes:
        """At most `length` bytes of a file from `offset`."""
        node = self._nodes.get(inode)
        data = node.as_file().data if isinstance(node, _Content) else node.data if isinstance(node, File) else b""
        return data[offset : offset + length]

    # ---- changes ----------------------------------------------------------------------------------------------------------
    def _write(self, micro: Micro) -> None:
        content = self._content(micro.inode)
        buffer, end = content.buffer, micro.offset + len(micro.data)
        if len(buffer) < micro.offset:
            buffer.extend(bytes(micro.offset - len(buffer)))
        buffer[micro.offset : end] = micro.data
        if micro.kind == "data" and micro.size >= 0:
            content.size = micro.size

    def _content(self, inode: int) -> _Content:
        node = self._nodes.get(inode)
        if isinstance(node, _Content):
            if node.owner is not self._owner:
                node = _Content(bytearray(node.buffer), node.size, node.mode, dict(node.xattrs), self._owner)
                self._nodes[inode] = node
            node.file = None
            return node
        old = node if isinstance(node, File) else File()
        content = _Content(bytearray(old.data), len(old.data), old.mode, dict(old.xattrs), self._owner)
        # Content for a directory's or link's inode cannot come from a simulated trace; it is kept from destroying the node.
        if not isinstance(node, Directory | Symlink | _Names):
            self._nodes[inode] = content
        return content

    def _names(self, inode: int) -> dict[str, int]:
        node = self._nodes.get(inode)
        if isinstance(node, _Names) and node.owner is self._owner:
            return node.entries
        if node is not None and not isinstance(node, Directory | _Names):
            return {}  # names in what is no directory cannot come from a simulated trace; kept from destroying the node
        names = _Names(dict(node.entries) if node is not None else {}, node.mode if node is not None else DIRECTORY_MODE, self._owner)
        self._nodes[inode] = names
        return names.entries

    def _drop(self, parent: int, name: str, inode: int) -> None:
        if self.entry(parent, name) == inode:
            del self._names(parent)[name]
            if self._parent.get(inode) == (parent, name):
                del self._parent[inode]

    def _hang(self, directory: int, parent: int, name: str) -> None:
        """Gives a directory its one place; refused where it would come to lie below itself (lost renames can ask for that)."""
        above = parent
        while above not in (ROOT, OUTSIDE) and above in self._parent:
            if above == directory:
                return
            above = self._parent[above][0]
        if above == directory:
            return
        if directory in self._parent:
            self._drop(*self._parent[directory], directory)
        self._lead(parent, name, directory)
        self._parent[directory] = (parent, name)

    def _exchange(self, micro: Micro) -> None:
        self._drop(micro.parent, micro.name, micro.inode)
        self._drop(micro.parent2, micro.name2, micro.replaced)
        self._place(micro.inode, micro.scope == "dir", micro.parent2, micro.name2)
        self._place(micro.replaced, micro.allocated, micro.parent, micro.name)

    def _place(self, inode: int, is_directory: bool, parent: int, name: str) -> None:
        """Gives an inode a name; one whose creation is lost is empty."""
        if inode not in self._nodes:
            self._nodes[inode] = Directory() if is_directory else File()
        if self.is_directory(inode):
            self._hang(inode, parent, name)
        else:
            self._lead(parent, name, inode)

    def _lead(self, parent: int, name: str, inode: int) -> None:
        """A name leads to an inode; a directory that had the name hangs nowhere then."""
        former = self.entry(parent, name)
        if self._parent.get(former) == (parent, name):
            del self._parent[former]
        self._names(parent)[name] = inode


def apply(initial: Tree, micros: Iterable[Micro]) -> Tree:
    """The tree after `micros`, any subset of a trace's in trace order."""
    image = Image(initial)
    for micro in micros:
        image.apply(micro)
    return image.tree()


class ImageBuilder:
    """Builds the trees of many subsets of one list; consecutive subsets share the work up to where they begin to differ."""

    def __init__(self, initial: Tree, micros: Sequence[Micro], *, snapshots: int = 64) -> None:
        self._micros = [(1 << index, micro) for index, micro in enumerate(micros) if micro.kind in CHANGE_KINDS]
        self._every = max(1, len(self._micros) // snapshots)
        self._kept = 0
        self._replaced = 0
        self._images: list[tuple[int, int, Image]] = [(0, 0, Image(initial))]  # (changes seen, mask of those, image), ascending

    def build(self, kept: int, replaced: Mapping[int, Micro] | None = None) -> Tree:
        """The tree of the micro-operations whose bits (by place in the list) are set in `kept`.

        `replaced` gives some of them another form, by place: torn and filled writes.
        """
        other = replaced or {}
        replaced_bits = sum(1 << place for place in other)
        differing = (kept ^ self._kept) | self._replaced | replaced_bits
        self._replaced = replaced_bits
        while len(self._images) > 1 and differing & self._images[-1][1]:
            self._images.pop()
        self._kept = kept
        seen, mask, base = self._images[-1]
        image = base.fork()
        for number in range(seen, len(self._micros)):
            bit, micro = self._micros[number]
            if number > seen and number % self._every == 0:
                self._images.append((number, mask, image))
                image = image.fork()
            mask |= bit
            if kept & bit:
                image.apply(other[bit.bit_length() - 1] if replaced_bits & bit else micro)
        return image.tree()
