"""What a traced program did: completed system calls and markers in the order of their completion, and the directory before and after.

The one type that every tracer and importer produces and everything else reads. How it is stored: trace_file.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from headway.core.errors import HeadwayError
from headway.crashtest.tree import Tree


class TraceError(HeadwayError):
    """A trace cannot be recorded, read or understood."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One entry of a call stack. Without debug information `file` is "" and `line` -1; `address` is 0 for interpreted code."""

    function: str
    file: str
    line: int
    address: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One completed system call that succeeded, or one marker.

    `kind` is the canonical name, whatever the variant: open creat read write pwrite lseek close dup fsync fdatasync sync syncfs
    sync_file_range rename link unlink symlink mkdir rmdir truncate fallocate mmap munmap store msync copy_range setxattr removexattr
    fork exec exit setfd setfl close_range mremap
    begin ack flush fence. The vector calls are `write` and `pwrite` with their parts joined; openat is `open`;
    ftruncate is `truncate` with a descriptor; copy_file_range, sendfile and splice are `copy_range`; clone is `fork`.

    - `paths`: absolute; for calls on a descriptor the path of the open file at that time. Two for rename and link (old, new);
      for symlink (target as given, new); for `copy_range` (from, to).
    - `fd`: what the call is about (of dup and open: the old one, None); `fd2`: the other descriptor: the result of open and dup, the
      source of copy_range. `flags`, `mode`: as passed to the kernel on Linux x86-64 (rename: RENAME_*, fallocate: `mode` is
      FALLOC_*, mmap: `mode` is PROT_*, fork: CLONE_*; write: RWF_*).
    - `offset`, `length`: bytes; `offset` None where the open file's own position counts. lseek: `result` is the new position.
      copy_range: `offset` is the place in the target, `address` the place in the source (-1: the source's own position).
    - `payload`: the bytes that were written (`result` of them), the value of an attribute; None where nothing is written or not known.
    - `address`: of mmap, munmap, msync and store: the address in the program; else 0.
    - `marker`: the text behind begin or ack; the name of an attribute. `stack`: innermost frame first; empty when not recorded.
    - a happened before b for certain only if a.seq_exit < b.seq_enter.
    """

    index: int
    seq_enter: int
    seq_exit: int
    pid: int
    tid: int
    kind: str
    paths: tuple[str, ...] = ()
    fd: int | None = None
    fd2: int | None = None
    flags: int = 0
    mode: int = 0
    offset: int | None = None
    length: int = 0
    payload: bytes | None = None
    result: int = 0
    marker: str | None = None
    stack: tuple[Frame, ...] = ()
    address: int = 0


@dataclass(slots=True)
class Trace:
    """One run of a program.

    `root` is the absolute path of the traced directory; `final` is None when the run was not observed to its end (imports).
    `source` names the tracer. `unseen` are sentences about writers that the tracer could not see: such a trace is never clean.
    `command` is what was run and `exit_code` how it ended (-N: by signal N), as far as known.
    """

    root: str
    operations: list[Operation]
    initial: Tree
    final: Tree | None
    source: str
    unseen: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    exit_code: int | None = None

    def save(self, path: str | Path) -> None:
        """Writes the trace to one file."""
        from headway.crashtest import trace_file

        trace_file.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote. Raises TraceError for anything else."""
        from headway.crashtest import trace_file

        return trace_file.load(path, cls)


def acknowledged(operations: Sequence[Operation]) -> list[str]:
    """The texts of the ack markers, in order."""
    return [operation.marker for operation in operations if operation.kind == "ack" and operation.marker is not None]
