"""Block formats of GGUF tensors and their float32 values.

Pure functions over bytes: no file, no model. Source of the layouts: ggml's `ggml-common.h` (block_q4_1, block_q6_K, ...); the values are
bit-equal to the `gguf` package's, which the tests use as oracle.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headway.core.errors import ModelError

F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16 = 0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 30

TYPE_NAMES = {
    F32: "F32",
    F16: "F16",
    BF16: "BF16",
    Q4_0: "Q4_0",
    Q4_1: "Q4_1",
    Q5_0: "Q5_0",
    Q5_1: "Q5_1",
    Q8_0: "Q8_0",
    Q4_K: "Q4_K",
    Q5_K: "Q5_K",
    Q6_K: "Q6_K",
}
"""The readable types by their ggml number."""

_SHAPES = {
    F32: (1, 4),
    F16: (1, 2),
    BF16: (1, 2),
    Q4_0: (32, 18),
    Q4_1: (32, 20),
    Q5_0: (32, 22),
    Q5_1: (32, 24),
    Q8_0: (32, 34),
    Q4_K: (256, 144),
    Q5_K: (256, 176),
    Q6_K: (256, 210),
}

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_FOUR = np.uint8(4)


def block_shape(ggml_type: int) -> tuple[int, int] | None:
    """(elements, bytes) of one block, or None for a type that cannot be read."""
    return _SHAPES.get(ggml_type)


def type_number(name: str) -> int:
    """The ggml number of a type's name ("Q4_1" -> 3)."""
    for number, known in TYPE_NAMES.items():
        if known == name:
            return number
    raise ModelError(f"the block type {name!r} is unknown; known: {', '.join(TYPE_NAMES.values())}")


def dequantise(ggml_type: int, data: Bytes, columns: int) -> Floats:
    """Values of `data` (uint8 [rows, row_bytes]) as float32 [rows, columns]; raises `ModelError` if type or sizes do not fit."""
    shape = _SHAPES.get(ggml_type)
    if shape is None:
        raise ModelError(f"tensors of type {ggml_type} cannot be read; readable: {', '.join(TYPE_NAMES.values())}")
    elements, block_bytes = shape
    if data.ndim != 2 or columns % elements or data.shape[1] != columns // elements * block_bytes:
        raise ModelError(
            f"{TYPE_NAMES[ggml_type]} rows of {columns} elements ({elements} in {block_bytes} bytes) do not fit an array of {data.shape}"
        )
    blocks = np.ascontiguousarray(data).reshape(-1, block_bytes)
    return _DECODERS[ggml_type](blocks).reshape(data.shape[0], columns)


def _half(blocks: Bytes, start: int) -> Floats:
    """The float16 at byte `start` of every block, as float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """All low nibbles, then all high ones: uint8 [blocks, 2 * bytes]."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(blocks: Bytes, start: int) -> Bytes:
    """Bit i of the 32-bit word at `start`, moved to bit 4: uint8 [blocks, 32]."""
    return np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little") << _FOUR


def _f32(blocks: Bytes) -> Floats:
    return blocks.view("<f4").astype(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return blocks.view("<f2").astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)).astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def scales_and_mins(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight 6-bit scales and eight 6-bit minimums out of the 12 bytes of a Q4_K or Q5_K block: uint8 [blocks, 8] each."""
    low, high, mixed = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (mixed & 15) | (low >> 6) << 4], axis=1)
    minimums = np.concatenate([high & 63, (mixed >> 4) | (high >> 6) << 4], axis=1)
    return scales, minimums


def _k_nibbles(packed: Bytes) -> Bytes:
    """Sub-blocks 0..7 of 32: the low nibbles of 32 bytes, then their high nibbles; uint8 [blocks, 8, 32]."""
    groups = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([groups & 15, groups >> 4], axis=2).reshape(-1, 8, 32)


def _k_values(blocks: Bytes, quants: Bytes) -> Floats:
    scales, minimums = scales_and_mins(blocks[:, 4:16])
    scale = (_half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    minimum = (_half(blocks, 2) * minimums.astype(np.float32))[:, :, None]
    return scale * quants.astype(np.float32) - minimum


def _q4_k(blocks: Bytes) -> Floats:
    return _k_values(blocks, _k_nibbles(blocks[:, 16:]))


def _q5_k(blocks: Bytes) -> Floats:
    bits = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None]) & np.uint8(1)
    return _k_values(blocks, _k_nibbles(blocks[:, 48:]) | bits << _FOUR)


def _q6_k(blocks: Bytes) -> Floats:
    low = blocks[:, 0:128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)  # halves, groups of 32
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    quants = (low | high << 4).astype(np.float32) - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return scales[:, :, None] * quants.reshape(-1, 16, 16)


_DECODERS: dict[int, Callable[[Bytes], Floats]] = {
    F32: _f32,
    F16: _f16,
    BF16: _bf16,
    Q4_0: _q4_0,
    Q4_1: _q4_1,
    Q5_0: _q5_0,
    Q5_1: _q5_1,
    Q8_0: _q8_0,
    Q4_K: _q4_k,
    Q5_K: _q5_k,
    Q6_K: _q6_k,
}
