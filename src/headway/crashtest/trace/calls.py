"""A decoded system call, the common ground of the tracers: arguments as integers, bytes, descriptors with paths, and structures."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A file descriptor as an argument or result. `path` is that of its open file when the call was made; None if not known.

    A path that is no file is as the kernel names it ("pipe:[123]").
    """

    number: int
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """A buffer of which the tracer kept only the beginning."""

    kept: bytes


Argument = int | bytes | Cut | Descriptor | list["Argument"] | dict[str, "Argument"] | None


@dataclass(slots=True)
class Call:
    """One system call that returned `result` >= 0. `seq_*` number its entry and exit among all events of the tracer.

    Paths and buffers are bytes; vectors are lists of bytes; a pointer to an offset is the offset before the call, None for NULL.
    """

    seq_enter: int
    seq_exit: int
    tid: int
    name: str
    arguments: list[Argument]
    result: int
    result_path: str | None = None
