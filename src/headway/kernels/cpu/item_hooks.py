"""Hooks: what a variant adds to an attention item, as callables that emit code. Who writes them (attention.print_llvm) is not known here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from headway.kernels.cpu.emit import Kit, Value

Partner = Literal["none", "half", "adjacent"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a vector of scores is: int32 scalars, but for `kv`, an int32 vector of key positions. `captured`: int64 address."""

    b: Value
    h: Value
    kv_head: Value
    q: Value
    row: Value
    kv: Value
    captured: Value


@dataclass(frozen=True, slots=True)
class Element:
    """Where a vector of elements of a query, key or value is: `d` and `pos` are int32 vectors, `head` an int32 scalar."""

    d: Value
    pos: Value
    head: Value
    captured: Value


@dataclass(frozen=True, slots=True)
class OutputPlace:
    """An output row: int32 scalars, and as float32 vectors the natural-log maximum `m` and the denominator `d` of its softmax."""

    b: Value
    row: Value
    h: Value
    m: Value
    d: Value
    captured: Value


@dataclass(frozen=True, slots=True)
class Hooks:
    """Code of one variant. `name` identifies it in the cache: equal names must emit equal code.

    score: scores -> scores (natural units). mask: -> bool vector. query, key, value: (x, partner) -> x, where partner(d) is d +- rotary/2
    ("half") or d ^ 1 ("adjacent") and x itself from `rotary` on. output: o/d -> output. `softmax` False: weights are the scores.
    """

    name: str = "plain"
    score: Callable[[Kit, Value, Place], Value] | None = None
    mask: Callable[[Kit, Place], Value] | None = None
    query: Callable[[Kit, Value, Value, Element], Value] | None = None
    key: Callable[[Kit, Value, Value, Element], Value] | None = None
    value: Callable[[Kit, Value, Value, Element], Value] | None = None
    output: Callable[[Kit, Value, OutputPlace], Value] | None = None
    softmax: bool = True
    partner: Partner = "none"
    rotary: int = 0


PLAIN = Hooks()
