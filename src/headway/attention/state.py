"""Attention states: the output of queries over some keys with its natural-log LSE, and their merge over disjoint sets of keys.

Merge is associative and commutative; the empty set is O = 0, LSE = -inf (FlashInfer, arXiv 2501.01005, section 2.2). LSE is natural log
everywhere; `State.from_log2` is the only door for base 2.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.core.errors import ConfigError

LN2 = 0.6931471805599453
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class State:
    """`o`: [tokens, heads, D_vo]. `lse`: [tokens, heads], natural log."""

    o: Array
    lse: Array

    def __post_init__(self) -> None:
        if self.o.shape[:-1] != self.lse.shape:
            raise ConfigError(f"a state's output {self.o.shape} and LSE {self.lse.shape} differ: LSE has the same axes but the last")

    @staticmethod
    def from_log2(o: Array, lse_log2: Array) -> "State":
        """From an LSE in base 2, as FlashInfer returns it."""
        return State(o, lse_log2 * np.asarray(LN2, lse_log2.dtype))


def _weights(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Weights of two states by their LSE, and the merged LSE; two empty states weigh 0."""
    m = np.maximum(a, b)
    safe = np.where(np.isneginf(m), 0, m)
    wa, wb = np.exp(a - safe), np.exp(b - safe)
    total = wa + wb
    with np.errstate(divide="ignore"):
        lse = np.where(total == 0, -np.inf, safe + np.log(total))
    some = np.where(total == 0, 1, total)
    return wa / some, wb / some, lse.astype(m.dtype)


def merge(a: State, b: State, out: State | None = None) -> State:
    """The state over the union of two disjoint sets of keys."""
    if a.o.shape != b.o.shape:
        raise ConfigError(f"states of outputs {a.o.shape} and {b.o.shape} cannot be merged: they must answer the same queries")
    wa, wb, lse = _weights(a.lse, b.lse)
    o = (wa[..., None] * a.o + wb[..., None] * b.o).astype(a.o.dtype, copy=False)
    if out is None:
        return State(o, lse)
    out.o[...], out.lse[...] = o, lse
    return out


def merge_in_place(state: State, other: State, rows: Array | None = None) -> None:
    """Merge `other` into `state`. `rows`: bool [tokens], which rows to touch."""
    merged = merge(state, other)
    chosen: Any = slice(None) if rows is None else rows
    state.o[chosen], state.lse[chosen] = merged.o[chosen], merged.lse[chosen]


def merge_many(states: State) -> State:
    """States of o [tokens, states, heads, D] and lse [tokens, states, heads], reduced over axis 1 in ascending order."""
    if states.o.ndim != 4:
        raise ConfigError(f"merge_many takes outputs [tokens, states, heads, D], got {states.o.shape}")
    top = states.lse.max(1, keepdims=True) if states.lse.shape[1] else np.full_like(states.lse, -np.inf, shape=(*states.lse[:, :1].shape,))
    safe = np.where(np.isneginf(top), 0, top)
    weights = np.exp(states.lse - safe)
    total = weights.sum(1)
    o = (weights[..., None] * states.o).sum(1) / np.where(total == 0, 1, total)[..., None]
    with np.errstate(divide="ignore"):
        lse = np.where(total == 0, -np.inf, safe[:, 0] + np.log(total))
    return State(o.astype(states.o.dtype, copy=False), lse.astype(states.lse.dtype, copy=False))
