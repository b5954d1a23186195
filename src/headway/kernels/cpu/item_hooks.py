"""Hooks: what a variant adds to an attention item, as callables that emit code. Who writes them is not known here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from llvmlite import ir

from headway.kernels.cpu.emit import Kit, Value

Hook = Callable[[Kit, Mapping[str, Value], Value], Value]
"""(kit, inputs by name: scalars, or vectors where lanes differ; address of the captured values) -> scalar or vector."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Code of one variant. `name` identifies it in the cache: equal names must emit equal code.

    score: score, b, h, kv_head, q, row, kv -> score (natural units). mask: the same without score -> bool.
    query, key, value: x, partner, d, dim, pos, head -> x; the partner of d is d +- dim/2 ("half") or d ^ 1 ("adjacent").
    output: o, m, d, b, row, h -> output; m in natural units. `softmax` False: weights are the scores. `sink`: RUN_SINK is read.
    """

    name: str = "plain"
    score: Hook | None = None
    mask: Hook | None = None
    query: Hook | None = None
    key: Hook | None = None
    value: Hook | None = None
    output: Hook | None = None
    softmax: bool = True
    sink: bool = False
    pairs: Literal["half", "adjacent"] = "half"

    @property
    def wants_positions(self) -> bool:
        return any(hook is not None for hook in (self.score, self.mask, self.key, self.value))


PLAIN = Hooks()


def apply(k: Kit, hook: Hook, inputs: Mapping[str, Value], captured: Value) -> Value:
    """A hook's result as a vector."""
    x = hook(k, inputs, captured)
    return x if isinstance(x.type, ir.VectorType) else k.splat(x)
