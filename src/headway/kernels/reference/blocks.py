"""The operations between a Llama's matrix products."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def rms_norm(x: Array, weight: Array, eps: float, dtype: npt.DTypeLike = np.float64) -> Array:
    """x [..., width] / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019)."""
    wide = x.astype(dtype)
    scale = 1 / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + np.asarray(eps, dtype))
    normed: Array = (wide * scale * weight.astype(dtype)).astype(dtype)
    return normed


def rope(
    x: Array,
    positions: Array,
    base: float,
    rope_dim: int,
    pairs: Literal["adjacent", "half"] = "adjacent",
    freq_factors: Array | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> Array:
    """Rotates the first `rope_dim` elements of x [rows, heads, head_dim] by angles position * base^(-2j/rope_dim) / freq_factors[j].

    Pair j is (2j, 2j+1) for "adjacent" (GGUF Llama), (j, j + rope_dim/2) for "half" (Hugging Face); Su et al. 2021. The angles are always
    computed in float64.
    """
    half = rope_dim // 2
    frequencies = float(base) ** (-2.0 * np.arange(half) / rope_dim)
    if freq_factors is not None:
        frequencies = frequencies / freq_factors.astype(np.float64)
    angles = positions.astype(np.float64)[:, None, None] * frequencies
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    out = x.astype(dtype)
    first, second = (slice(0, rope_dim, 2), slice(1, rope_dim, 2)) if pairs == "adjacent" else (slice(0, half), slice(half, rope_dim))
    u, v = out[..., first].copy(), out[..., second].copy()
    out[..., first] = u * cos - v * sin
    out[..., second] = u * sin + v * cos
    return out


def attention(
    q: Array, k: Array, v: Array, query_positions: Array, scale: float | None = None, dtype: npt.DTypeLike = np.float64
) -> tuple[Array, Array]:
    """Causal attention of one sequence with grouped heads; key t has position t.

    q [rows, heads, head_dim], k and v [tokens, kv_heads, head_dim]; row i sees the keys up to and with query_positions[i].
    Returns o [rows, heads, head_dim] and the natural log-sum-exp of the scaled scores [rows, heads]. `scale` is 1/sqrt(head_dim) if None.
    """
    heads, head_dim = q.shape[1:]
    group = heads // k.shape[1]
    wide_k = np.repeat(k.astype(dtype), group, axis=1)
    wide_v = np.repeat(v.astype(dtype), group, axis=1)
    factor = np.asarray(head_dim**-0.5 if scale is None else scale, dtype)
    scores = np.einsum("rhd,thd->hrt", q.astype(dtype), wide_k, optimize=True) * factor
    hidden = np.arange(k.shape[0])[None, :] > query_positions[:, None]
    scores[:, hidden] = -np.inf
    peak = scores.max(axis=2, keepdims=True)
    weights = np.exp(scores - peak)
    total = weights.sum(axis=2, keepdims=True)
    o = np.einsum("hrt,thd->rhd", weights / total, wide_v, optimize=True)
    lse = (np.log(total) + peak)[:, :, 0].T
    return o, lse


def silu_gate(gate: Array, up: Array, dtype: npt.DTypeLike = np.float64) -> Array:
    """silu(gate) * up with silu(z) = z / (1 + exp(-z)), elementwise (SwiGLU; Shazeer 2020)."""
    z = gate.astype(dtype)
    with np.errstate(over="ignore"):  # exp(-z) = inf gives the right 0
        gated: Array = z / (1 + np.exp(-z)) * up.astype(dtype)
    return gated
