"""Matrix products and the quantisation of activations, as the fast kernels define them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 32
"""Activations share one scale among this many neighbours."""

Array = npt.NDArray[Any]


def matmul(x: Array, w: Array, dtype: npt.DTypeLike = np.float64) -> Array:
    """y [rows, outputs] = x [rows, inputs] times the transpose of w [outputs, inputs]."""
    product: Array = x.astype(dtype) @ w.astype(dtype).T
    return product


def quantise_activations(x: Array, planes: int) -> tuple[Array, npt.NDArray[np.int8], npt.NDArray[np.int8] | None]:
    """Splits x [rows, inputs] into (d float32 [rows, inputs/32], a int8 [rows, inputs], b int8 or None): x is about d*(a + b/256).

    d = max|x|/127 of each block of 32, a = rint(x/d), b = min(rint((x/d - a)*256), 127); a block of zeros has d = 0 and a = b = 0.
    Halves go to the even neighbour, as the hardware rounds. All in float32, the precision the kernels quantise in.
    """
    if planes not in (1, 2):
        raise ValueError(f"planes is {planes}; activations are quantised into 1 or 2 planes")
    if x.ndim != 2 or x.shape[1] % BLOCK:
        raise ValueError(f"x has the shape {x.shape}; expected rows of a multiple of {BLOCK}")
    blocks = x.astype(np.float32).reshape(x.shape[0], -1, BLOCK)
    peak = np.abs(blocks).max(axis=2)
    d = (peak / np.float32(127)).astype(np.float32)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)  # x/d with one rounding less, as the kernels do
    scaled = (blocks * inverse[:, :, None]).astype(np.float32)
    a = np.rint(scaled)
    first = np.clip(a, -127, 127).astype(np.int8).reshape(x.shape)
    if planes == 1:
        return d, first, None
    b = np.clip(np.rint((scaled - a) * np.float32(256)), -128, 127).astype(np.int8).reshape(x.shape)
    return d, first, b


def dequantise_activations(d: Array, a: Array, b: Array | None, dtype: npt.DTypeLike = np.float64) -> Array:
    """The values that `quantise_activations`' result stands for, [rows, inputs]."""
    values = a.astype(dtype) if b is None else a.astype(dtype) + b.astype(dtype) / 256
    scaled: Array = values * np.repeat(d.astype(dtype), BLOCK, axis=1)
    return scaled
