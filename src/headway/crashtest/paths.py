"""Path lookup in a simulated directory: absolute paths to (parent inode, name, inode), symbolic links followed as the kernel does."""

import os
from dataclasses import dataclass

from headway.crashtest.images import Image
from headway.crashtest.tree import OUTSIDE, ROOT

MAX_LINKS = 40  # as Linux


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: `inode` is 0 when nothing is there, `parent` OUTSIDE with an absolute `name` for what is not below the root."""

    parent: int
    name: str
    inode: int


class Lookup:
    """Resolves absolute paths against an image whose root is the directory `root`."""

    def __init__(self, image: Image, root: str) -> None:
        self._image = image
        self._root = root.rstrip("/") or "/"
        self._outside_directories: set[str] = set()  # names in OUTSIDE that are directories

    def path(self, path: str, *, follow: bool) -> Place:
        """The place of an absolute path; `follow` says whether a symbolic link in the last part is followed."""
        return self._absolute(path, follow, MAX_LINKS)

    def note_outside(self, name: str) -> None:
        """Says that a directory now exists outside of the root under this absolute path."""
        self._outside_directories.add(name)

    def _absolute(self, path: str, follow: bool, links: int) -> Place:
        if path == self._root or path == self._root + "/":
            return Place(OUTSIDE, self._root, ROOT)
        prefix = self._root if self._root.endswith("/") else self._root + "/"
        if path.startswith(prefix):
            return self._walk(ROOT, self._root, path[len(prefix) :], follow, links)
        plain = os.path.normpath(path)
        if plain != path and (plain == self._root or plain.startswith(prefix)):
            return self._absolute(plain, follow, links)
        above = [name for name in self._outside_directories if plain.startswith(name + "/")]
        for name in sorted(above, key=len, reverse=True):
            inode = self._image.entry(OUTSIDE, name)
            if inode and self._image.is_directory(inode):
                return self._walk(inode, name, plain[len(name) + 1 :], follow, links)
        inode = self._image.entry(OUTSIDE, plain)
        target = self._image.symlink_target(inode) if follow else None
        if target is not None and links:
            return self._absolute(os.path.join(os.path.dirname(plain), target), follow, links - 1)  # noqa: PTH118, PTH120
        return Place(OUTSIDE, plain, inode)

    def _walk(self, directory: int, above: str, rest: str, follow: bool, links: int) -> Place:
        """`rest` from `directory`, whose absolute path is `above`."""
        parts = [part for part in rest.split("/") if part and part != "."]
        here = directory
        for number, part in enumerate(parts):
            if part == "..":
                return self._absolute(
                    os.path.normpath("/".join([above, *parts[: number + 1]])) + "/" + "/".join(parts[number + 1 :]), follow, links
                )
            last = number == len(parts) - 1
            inode = self._image.entry(here, part)
            target = self._image.symlink_target(inode) if inode and (follow or not last) else None
            if target is not None and links:
                base = "/".join([above, *parts[:number]])
                start = target if target.startswith("/") else f"{base}/{target}"
                return self._absolute("/".join([start, *parts[number + 1 :]]), follow, links - 1)
            if last:
                return Place(here, part, inode)
            here = inode
        return Place(*self._image.place(directory), directory)

    def text(self, directory: int, name: str) -> str:
        """The absolute path of a name in a directory."""
        parts = [name]
        while directory not in (ROOT, OUTSIDE):
            directory, name = self._image.place(directory)
            if not name:
                break
            parts.append(name)
        if directory == OUTSIDE:
            return "/".join(reversed(parts))
        return "/".join([self._root, *reversed(parts)])
