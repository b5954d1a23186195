"""The masks and variants that ship: each is a few lines of the same Python that users write."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headway.attention.graph import VariantError
from headway.attention.trace import maximum, sigmoid, tanh, where
from headway.attention.variant import Mask, Variant


@Mask
def causal(q: Any, kv: Any) -> Any:
    """A query sees itself and what came before."""
    return kv <= q


def window(tokens: int) -> Mask:
    """The last `tokens` positions before the query, and the query's own: tokens + 1 keys. Says nothing about later keys."""
    return Mask(lambda q, kv, window=int(tokens): kv + window >= q)


def sink_tokens(tokens: int) -> Mask:
    """The first `tokens` keys (attention sinks of StreamingLLM, arXiv 2309.17453); combine: `causal & (window(w) | sink_tokens(4))`."""
    return Mask(lambda kv, sink_tokens=int(tokens): kv < sink_tokens)


def prefix(tokens: int) -> Mask:
    """The first `tokens` keys for every query: `causal | prefix(n)` is a prefix language model."""
    return Mask(lambda kv, prefix=int(tokens): kv < prefix)


def document(ids: ArrayLike) -> Mask:
    """Keys of the query's own document. `ids`: int [positions] of one packed sequence, or [requests, positions]."""
    array = np.ascontiguousarray(ids, np.int32)
    if array.ndim == 1:
        return Mask(lambda q, kv, document_ids=array: document_ids[q] == document_ids[kv])
    return Mask(lambda b, q, kv, document_ids=array: document_ids[b, q] == document_ids[b, kv])


def dilated(step: int) -> Mask:
    """Every step-th key, counted back from the query."""
    return Mask(lambda q, kv, dilation=int(step): (q - kv) % maximum(dilation, 1) == 0)


def tree(parents: ArrayLike) -> Mask:
    """Draft tokens of a speculation tree, the same for every request: token i sees the whole prefix, itself and its ancestors.

    `parents`: int [n], parents[i] < i, -1 for children of the prefix. The n draft tokens are the request's query rows and last n keys.
    """
    up = np.asarray(parents, np.int64)
    n = len(up)
    if up.ndim != 1 or n == 0 or (up >= np.arange(n)).any() or (up < -1).any():
        raise VariantError(f"parents={parents!r}: parents[i] must be in -1..i-1")
    sees = np.eye(n, dtype=np.uint8)
    for i, parent in enumerate(up):
        if parent >= 0:
            sees[i] |= sees[parent]
    return Mask(lambda q, row, kv, tree_sees=sees: (kv < q - row) | (tree_sees[row, kv - (q - row)] != 0))


def custom(bits: NDArray[np.uint8], indptr: ArrayLike, kv_tokens: ArrayLike) -> Mask:
    """Per request a bool [query rows, keys] matrix, packed by `pack_masks`. Replaces causal; `& window(w)` may still be added."""

    def bit(b: Any, row: Any, kv: Any, mask_bits: Any = bits, mask_indptr: Any = None, mask_kv: Any = None) -> Any:
        at = row * mask_kv[b] + kv
        return ((mask_bits[mask_indptr[b] + (at >> 3)] >> (at & 7)) & 1) != 0

    defaults = {"mask_bits": bits, "mask_indptr": np.asarray(indptr, np.int32), "mask_kv": np.asarray(kv_tokens, np.int32)}
    m = Mask(bit, dtypes={"mask_indptr": "i32", "mask_kv": "i32"})
    return Mask(m.graph, defaults)


def pack_masks(masks: list[NDArray[np.bool_]]) -> Mask:
    """`custom` of one bool [query rows, keys] matrix a request: little-endian bits, row-major, each request from a whole byte."""
    packed = [np.packbits(np.asarray(m, np.bool_).ravel(), bitorder="little") for m in masks]
    indptr = np.concatenate([[0], np.cumsum([len(p) for p in packed])])
    bits = np.concatenate([*packed, np.zeros(1, np.uint8)])
    return custom(bits, indptr[:-1], [max(m.shape[1], 1) for m in masks])


def soft_cap(cap: float) -> Variant:
    """cap * tanh(score / cap)."""
    return Variant(score=lambda score, cap=float(cap): cap * tanh(score / cap))


def alibi_slopes(heads: int) -> NDArray[np.float32]:
    """Slopes of ALiBi (arXiv 2108.12409): 2^(-8(i+1)/n) for the first n = 2^floor(log2 heads), then 2^(-4(2j+1)/n)."""
    n = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]
    return np.array(first + [2.0 ** (-4.0 * (2 * j + 1) / n) for j in range(heads - n)], np.float32)


def alibi(heads: int) -> Variant:
    """score + slope[h] * (kv - q)."""
    slopes = alibi_slopes(heads)
    return Variant(score=lambda score, *, h, q, kv, slopes=slopes: score + slopes[h] * (kv - q))


def sigmoid_attention(bias: float = 0.0) -> Variant:
    """O = sum sigmoid(score + bias) * v (arXiv 2409.04431): no softmax, no LSE."""
    return Variant(score=lambda score, bias=float(bias): sigmoid(score + bias), softmax=False)


def rope_frequencies(
    dim: int, *, theta: float = 1e4, scale: float = 1.0, llama31: bool = False, low: float = 1.0, high: float = 4.0, old_tokens: int = 8192
) -> NDArray[np.float64]:
    """Radians a position of the dim/2 pairs: theta^(-2i/dim)/scale; llama31 keeps the fast ones unscaled and blends between."""
    plain = theta ** (-2.0 * np.arange(dim // 2) / dim)
    if not llama31:
        return np.asarray(plain / scale)
    smooth = np.clip((plain * old_tokens / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
    return np.asarray((1 - smooth) * plain / scale + smooth * plain)


def rope(dim: int, max_tokens: int, *, pairs: str = "half", frequencies: NDArray[np.float64] | None = None) -> Variant:
    """Queries and stored, un-rotated keys are rotated on the fly (arXiv 2104.09864). `dim`: the whole head dimension."""
    angles = np.outer(np.arange(max_tokens), rope_frequencies(dim) if frequencies is None else frequencies)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    if pairs == "half":

        def rotate(x: Any, partner: Any, d: Any, dim: Any, pos: Any, rope_cos: Any = cos, rope_sin: Any = sin) -> Any:
            half = dim // 2
            i = where(d < half, d, d - half)
            return x * rope_cos[pos, i] + where(d < half, -partner, partner) * rope_sin[pos, i]
    else:

        def rotate(x: Any, partner: Any, d: Any, dim: Any, pos: Any, rope_cos: Any = cos, rope_sin: Any = sin) -> Any:
            i = d >> 1
            return x * rope_cos[pos, i] + where((d & 1) == 0, -partner, partner) * rope_sin[pos, i]

    return Variant(query=rotate, key=rotate, pairs=pairs)
