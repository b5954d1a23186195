"""Micro-operations: the smallest changes that a file system makes durable or not, on inodes, plus syncs and markers between them."""

from dataclasses import dataclass
from typing import Literal

MicroKind = Literal[
    "link", "symlink", "unlink", "rename", "exchange", "mkdir", "rmdir", "data", "size", "trunc", "xattr", "store", "sync", "marker"
]
SyncScope = Literal["", "file", "data", "dir", "range", "all"]

NAME_KINDS = frozenset({"link", "symlink", "unlink", "rename", "exchange", "mkdir", "rmdir"})  # they change directories
CONTENT_KINDS = frozenset({"data", "size", "trunc", "xattr", "store"})  # they change one inode
CHANGE_KINDS = NAME_KINDS | CONTENT_KINDS
BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Micro:
    """One change, sync or marker. `index` is its place in the list, `op` the index of the operation it came from.

    - link: `name` in directory `parent` now leads to `inode` (a new file, or another name of an old one); symlink: the same, with the
      target in `data`; mkdir: a new empty directory. unlink, rmdir: `name` in `parent` no longer leads to `inode`.
    - rename: `inode` moves from (`parent`, `name`) to (`parent2`, `name2`); `replaced` is the inode that had the new name, else 0.
      exchange: the two names swap; `replaced` is the inode that was at (`parent2`, `name2`). `scope` "dir" says that `inode` is a
      directory, `allocated` that `replaced` of an exchange is one.
    - data: `data` at `offset`; one operation gives several where some blocks were `allocated` (held data on disk before) and others
      not. `size` -1: bytes beyond the file's size stay invisible until a size micro-operation; else the size that it sets too
      (lowered with `split_size=False`). size: the size grows to `size` because of a write or an allocation.
    - trunc: the size is set to `size` (ftruncate, O_TRUNC), what was beyond it is gone.
    - xattr: attribute `name` = `data`; removed if `size` is -1.
    - store: a store through a shared mapping: `data` at `offset`.
    - sync: `scope` file (fsync, msync, O_SYNC), data (fdatasync, O_DSYNC), dir (either, of the directory `inode`), range
      (sync_file_range: awaits write-back, promises nothing about metadata), all (sync, syncfs). `offset` and `size` are the bytes
      that range and msync name, `size` -1 where none are named.
    - marker: `name` is "begin X" or "ack X".

    Inode numbers are those of `trace.initial` for what was there, larger ones for what the trace created; none is used twice.
    `parent` and `parent2` are 0 (tree.OUTSIDE) where a file is outside of the root; its name is then an absolute path.
    """

    index: int
    op: int
    kind: MicroKind
    inode: int = 0
    parent: int = 0
    name: str = ""
    parent2: int = 0
    name2: str = ""
    replaced: int = 0
    offset: int = 0
    data: bytes = b""
    size: int = -1
    scope: SyncScope = ""
    allocated: bool = False
