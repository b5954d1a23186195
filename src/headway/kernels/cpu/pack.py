"""Weights as the file stores them -> strips of 16 output rows (docs/kernels.md, "Packed weights").
Same bytes for every ISA; padded rows are zero.

Packed Q4_1 block of a strip, 320 bytes: 16 d (f16) | 16 m (f16) | 4 x 64: byte 4*row + t of group j holds weight 4j+t low, 4(j+4)+t high.
Packed Q8_0 block, 544 bytes: 16 d (f16) | 8 x 64: byte 4*row + t of group j is weight 4j+t plus 128. Floats: [input][16].
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.kernels.cpu.products import STRIP_ROWS, UNIT_ROWS, Kind, strip_bytes

Bytes = NDArray[np.uint8]


def padded_rows(rows: int) -> int:
    return -(-rows // UNIT_ROWS) * UNIT_ROWS


def pack(kind: Kind, rows: Bytes, inputs: int) -> Bytes:
    """`rows`: uint8 [outputs, row_bytes] in GGUF layout -> uint8 [padded outputs / 16, strip_bytes]."""
    n = padded_rows(len(rows))
    if n != len(rows):
        rows = np.concatenate([rows, np.zeros((n - len(rows), rows.shape[1]), np.uint8)])
    strips = n // STRIP_ROWS
    if kind == "q4_1":
        b = rows.reshape(strips, 16, inputs // 32, 20)
        out = np.empty((strips, inputs // 32, 320), np.uint8)
        out[..., :32] = b[..., :2].transpose(0, 2, 1, 3).reshape(strips, -1, 32)
        out[..., 32:64] = b[..., 2:4].transpose(0, 2, 1, 3).reshape(strips, -1, 32)
        # file nibbles: byte i = weights i (low) and i+16 (high): the same pairs, only regrouped
        out[..., 64:] = b[..., 4:].reshape(strips, 16, -1, 4, 4).transpose(0, 2, 3, 1, 4).reshape(strips, -1, 256)
    elif kind == "q8_0":
        b = rows.reshape(strips, 16, inputs // 32, 34)
        out = np.empty((strips, inputs // 32, 544), np.uint8)
        out[..., :32] = b[..., :2].transpose(0, 2, 1, 3).reshape(strips, -1, 32)
        out[..., 32:] = (b[..., 2:] ^ 0x80).reshape(strips, 16, -1, 8, 4).transpose(0, 2, 3, 1, 4).reshape(strips, -1, 512)
    else:
        element = rows.shape[1] // inputs
        out = np.ascontiguousarray(rows.reshape(strips, 16, inputs, element).transpose(0, 2, 1, 3))
    return out.reshape(strips, strip_bytes(kind, inputs))


def unpack(kind: Kind, strips: Bytes, inputs: int, outputs: int) -> Bytes:
    """The inverse of `pack`: rows in GGUF layout."""
    n = len(strips)
    packed: Any
    if kind == "q4_1":
        p = strips.reshape(n, inputs // 32, 320)
        rows = np.empty((n, 16, inputs // 32, 20), np.uint8)
        rows[..., :2] = p[..., :32].reshape(n, -1, 16, 2).transpose(0, 2, 1, 3)
        rows[..., 2:4] = p[..., 32:64].reshape(n, -1, 16, 2).transpose(0, 2, 1, 3)
        rows[..., 4:] = p[..., 64:].reshape(n, -1, 4, 16, 4).transpose(0, 3, 1, 2, 4).reshape(n, 16, -1, 16)
        packed = rows
    elif kind == "q8_0":
        p = strips.reshape(n, inputs // 32, 544)
        rows = np.empty((n, 16, inputs // 32, 34), np.uint8)
        rows[..., :2] = p[..., :32].reshape(n, -1, 16, 2).transpose(0, 2, 1, 3)
        rows[..., 2:] = p[..., 32:].reshape(n, -1, 8, 16, 4).transpose(0, 3, 1, 2, 4).reshape(n, 16, -1, 32) ^ 0x80
        packed = rows
    else:
        element = strips.shape[1] // (16 * inputs)
        packed = strips.reshape(n, inputs, 16, element).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(packed).reshape(n * 16, -1)[:outputs]
