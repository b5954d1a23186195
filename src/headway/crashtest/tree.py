"""The content of a directory as plain data: nodes by inode number, so that hard links stay one file.

Nodes are immutable and shared between trees: a crash image that differs in one file from its neighbour shares all the others,
with their digests. Times and owners are no content; modes are written but not compared. FIFOs, sockets and devices are skipped.
"""

# System calls on plain strings: a tree is written for every crash state.
# ruff: noqa: PTH101, PTH102, PTH115, PTH116, PTH211
import contextlib
import fnmatch
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from headway.core.errors import CapacityError, HeadwayError

ROOT = 1  # inode of the directory itself
OUTSIDE = 0  # a pretended directory of absolute paths for files that are outside of the root, until they are renamed or linked into it
FILE_MODE = 0o644
DIRECTORY_MODE = 0o755
MAX_TREE_BYTES = 2 << 30  # of file content that is read into memory


class BadTree(HeadwayError):
    """A directory cannot be read or written as a Tree."""


@dataclass(slots=True)
class File:
    """A regular file. Never change one: trees share them. `xattrs` are those in the user namespace."""

    data: bytes = b""
    mode: int = field(default=FILE_MODE, compare=False)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    _digest: bytes | None = field(default=None, compare=False, repr=False)

    def digest(self) -> bytes:
        """16 bytes of BLAKE2b over content and attributes, computed once."""
        if self._digest is None:
            summary = hashlib.blake2b(self.data, digest_size=16)
            for name, value in self.xattrs:
                summary.update(f"\0{name}\0".encode("utf-8", "surrogateescape") + value)
            self._digest = summary.digest()
        return self._digest


@dataclass(frozen=True, slots=True)
class Directory:
    """Names to inode numbers. Never change `entries`: trees share them."""

    entries: Mapping[str, int] = field(default_factory=dict)
    mode: int = DIRECTORY_MODE


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link."""

    target: str


Node = File | Directory | Symlink


@dataclass(slots=True)
class Tree:
    """What a directory holds. Inode numbers mean something within one tree (and the trace it belongs to) only.

    Nodes that no name leads to (orphans) may be in `nodes`; they are part of neither digest nor comparison nor what is written.
    """

    nodes: dict[int, Node] = field(default_factory=lambda: {ROOT: Directory()})

    @classmethod
    def read(cls, directory: str | Path, *, max_bytes: int = MAX_TREE_BYTES) -> Self:
        """Reads a directory. Inodes are numbered from ROOT in sorted depth-first order.

        Raises BadTree when it cannot be read, CapacityError when its files hold more than `max_bytes`.
        """
        reader = _Reader(max_bytes)
        try:
            reader.directory(os.fspath(directory))
        except OSError as problem:
            raise BadTree(f"{directory} cannot be read as a tree: {problem}; name a directory that this user may read") from problem
        return cls(reader.nodes)

    @classmethod
    def of(cls, files: Mapping[str, bytes | None]) -> Self:
        """A tree of relative paths to contents (None: an empty directory); parents appear by themselves. For tests and recipes."""
        nodes: dict[int, Node] = {ROOT: Directory({})}
        for path, data in sorted(files.items()):
            here = ROOT
            *parents, name = path.split("/")
            for part in parents if data is not None else [*parents, name]:
                here = _child(nodes, here, part, Directory({}))
            if data is not None:
                _child(nodes, here, name, File(data))
        return cls(nodes)

    def write(self, directory: str | Path) -> None:
        """Creates the content in `directory`, which is created or must be empty. Raises BadTree.

        Nothing is synced: crash images live on a memory file system for the time of one check.
        """
        target = os.fspath(directory)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(target)
            if next(os.scandir(target), None) is not None:
                raise BadTree(f"{target} is not empty; write a tree into a new directory")
            self._write_into(ROOT, target, {})
        except OSError as problem:
            raise BadTree(f"the tree could not be written to {target}: {problem}; make room there or choose another place") from problem

    def walk(self) -> Iterator[tuple[str, int, Node]]:
        """(relative path, inode, node) of everything below the root, parents first, names sorted."""
        pending = [("", ROOT)]
        while pending:
            path, inode = pending.pop()
            node = self.nodes[inode]
            if path:
                yield path, inode, node
            if isinstance(node, Directory):
                prefix = f"{path}/" if path else ""
                pending.extend((prefix + name, child) for name, child in sorted(node.entries.items(), reverse=True))

    def lookup(self, path: str) -> tuple[int, Node] | None:
        """(inode, node) at a relative path; symbolic links are not followed."""
        inode = ROOT
        for part in path.split("/") if path else []:
            node = self.nodes.get(inode)
            if not isinstance(node, Directory) or part not in node.entries:
                return None
            inode = node.entries[part]
        return inode, self.nodes[inode]

    def files(self) -> dict[str, bytes]:
        """Relative path to content of every regular file."""
        return {path: node.data for path, _, node in self.walk() if isinstance(node, File)}

    def digest(self, *, empty_directories: bool = True) -> bytes:
        """16 bytes that are equal iff names, contents, link targets, attributes and hard links are.

        With `empty_directories=False` a directory without files below it does not count.
        """
        summary = hashlib.blake2b(digest_size=16)
        first_name: dict[int, str] = {}
        for path, inode, node in self.walk():
            if isinstance(node, Directory):
                if not empty_directories:
                    continue
                content = b"d"
            elif isinstance(node, Symlink):
                content = b"l" + os.fsencode(node.target)
            elif inode in first_name:
                content = b"h" + os.fsencode(first_name[inode])
            else:
                content = b"f" + node.digest()
            first_name.setdefault(inode, path)
            name = os.fsencode(path)
            summary.update(b"%d:%d:" % (len(name), len(content)) + name + content)
        return summary.digest()

    def without(self, patterns: Iterable[str]) -> "Tree":
        """The tree less everything whose relative path or last name matches one of the shell patterns."""
        wanted = tuple(patterns)
        if not wanted:
            return self

        def kept(prefix: str, entries: Mapping[str, int]) -> dict[str, int]:
            return {
                name: inode
                for name, inode in entries.items()
                if not any(fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(prefix + name, pattern) for pattern in wanted)
            }

        nodes = dict(self.nodes)
        pending = [("", ROOT)]
        while pending:
            prefix, inode = pending.pop()
            node = nodes[inode]
            if isinstance(node, Directory):
                entries = kept(prefix, node.entries)
                nodes[inode] = Directory(entries, node.mode)
                pending.extend((f"{prefix}{name}/", child) for name, child in entries.items())
        return Tree(nodes)

    def differences(self, other: "Tree", *, limit: int = 20) -> list[str]:
        """One line for each path at which `other` differs from this tree, at most `limit` and a count of the rest."""
        ours, theirs = self._described(), other._described()
        lines = []
        for path in sorted(ours.keys() | theirs.keys()):
            a, b = ours.get(path), theirs.get(path)
            if a is None or b is None:
                lines.append(f"{path}: {'is missing from the first' if a is None else 'is missing from the second'}")
            elif a != b:
                lines.append(f"{path}: {_difference(a, b)}")
        return lines if len(lines) <= limit else [*lines[:limit], f"... and {len(lines) - limit} more"]

    def _described(self) -> dict[str, tuple[Node | str, str]]:
        first_name: dict[int, str] = {}
        described: dict[str, tuple[Node | str, str]] = {}
        for path, inode, node in self.walk():
            first = first_name.setdefault(inode, path)
            described[path] = ("directory" if isinstance(node, Directory) else node, first)
        return described

    def _write_into(self, inode: int, target: str, written: dict[int, str]) -> None:
        node = self.nodes[inode]
        assert isinstance(node, Directory)
        for name, child in node.entries.items():
            path = f"{target}/{name}"
            content = self.nodes[child]
            if isinstance(content, Directory):
                os.mkdir(path)
                self._write_into(child, path, written)
            elif isinstance(content, Symlink):
                os.symlink(content.target, path)
            elif child in written:
                os.link(written[child], path)
            else:
                written[child] = path
                _write_file(path, content)
        if node.mode != DIRECTORY_MODE and inode != ROOT:
            os.chmod(target, node.mode)


def _write_file(path: str, content: File) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        view = memoryview(content.data)
        while view:
            view = view[os.write(fd, view) :]
        for name, value in content.xattrs:
            os.setxattr(fd, name, value)
        if content.mode != FILE_MODE:
            os.fchmod(fd, content.mode)
    finally:
        os.close(fd)


def _child(nodes: dict[int, Node], parent: int, name: str, node: Node) -> int:
    directory = nodes[parent]
    assert isinstance(directory, Directory)
    if name in directory.entries:
        return directory.entries[name]
    inode = max(nodes) + 1
    nodes[inode] = node
    nodes[parent] = Directory({**directory.entries, name: inode}, directory.mode)
    return inode


def _difference(a: tuple[Node | str, str], b: tuple[Node | str, str]) -> str:
    (one, one_first), (two, two_first) = a, b
    if isinstance(one, File) and isinstance(two, File):
        if one.data != two.data:
            same = next((i for i, (x, y) in enumerate(zip(one.data, two.data)) if x != y), min(len(one.data), len(two.data)))
            return f"{len(one.data)} bytes against {len(two.data)}, the first difference at byte {same}"
        if one.xattrs != two.xattrs:
            return f"attributes {one.xattrs} against {two.xattrs}"
        return f"is one file with {one_first} against {two_first}"
    if isinstance(one, Symlink) and isinstance(two, Symlink):
        return f"points to {one.target} against {two.target}"
    return f"is a {_kind(one)} against a {_kind(two)}"


def _kind(node: Node | str) -> str:
    return node if isinstance(node, str) else type(node).__name__.lower()


class _Reader:
    """Reads one directory tree; hard links are found by (device, inode)."""

    def __init__(self, max_bytes: int) -> None:
        self.nodes: dict[int, Node] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._room_bytes = max_bytes
        self._max_bytes = max_bytes

    def directory(self, path: str) -> int:
        inode = ROOT + len(self.nodes)
        self.nodes[inode] = Directory()
        entries: dict[str, int] = {}
        with os.scandir(path) as listing:
            found = sorted(listing, key=lambda entry: entry.name)
        for entry in found:
            kind = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(kind):
                entries[entry.name] = self.directory(entry.path)
            elif stat.S_ISLNK(kind):
                entries[entry.name] = self._add(Symlink(os.readlink(entry.path)))
            elif stat.S_ISREG(kind):
                entries[entry.name] = self._file(entry)
        self.nodes[inode] = Directory(entries, stat.S_IMODE(os.stat(path).st_mode))
        return inode

    def _file(self, entry: os.DirEntry[str]) -> int:
        about = entry.stat(follow_symlinks=False)
        key = (about.st_dev, about.st_ino)
        if key not in self._numbers:
            if about.st_size > self._room_bytes:
                raise CapacityError(
                    f"{entry.path} makes the traced directory larger than {self._max_bytes} bytes; trace a smaller workload",
                    needed=self._max_bytes - self._room_bytes + about.st_size,
                    capacity=self._max_bytes,
                )
            data = Path(entry.path).read_bytes()
            self._room_bytes -= len(data)
            self._numbers[key] = self._add(File(data, stat.S_IMODE(about.st_mode), _xattrs(entry.path)))
        return self._numbers[key]

    def _add(self, node: Node) -> int:
        inode = ROOT + len(self.nodes)
        self.nodes[inode] = node
        return inode


def _xattrs(path: str) -> tuple[tuple[str, bytes], ...]:
    try:
        names = os.listxattr(path)
    except OSError:  # a file system without attributes
        return ()
    return tuple((name, os.getxattr(path, name)) for name in sorted(names) if name.startswith("user."))
