"""Block formats: bit-equal to the `gguf` package, the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support import TYPE_NUMBERS, encode

from headway.core.errors import ModelError
from headway.models import blocks

quants = pytest.importorskip("gguf.quants")
QUANTISED = [name for name in TYPE_NUMBERS if name not in ("F32", "F16")]


@pytest.mark.parametrize("name", QUANTISED)
def test_random_bytes_dequantise_bit_equal_to_the_oracle(name: str) -> None:
    import gguf

    number = TYPE_NUMBERS[name]
    shape = blocks.block_shape(number)
    assert shape is not None
    elements, block_bytes = shape
    data = np.random.default_rng(number).integers(0, 256, (40, 256 // elements * 3 * block_bytes), np.uint8)
    with np.errstate(all="ignore"):
        ours = blocks.dequantise(number, data, 256 * 3)
        theirs = quants.dequantize(data, gguf.GGMLQuantizationType(number))
    number_bits, oracle_bits = ours.view(np.uint32), theirs.astype(np.float32).view(np.uint32)
    real = ~np.isnan(theirs)
    assert real.mean() > 0.8
    np.testing.assert_array_equal(number_bits[real], oracle_bits[real])
    assert np.isnan(ours[~real]).all()


@pytest.mark.parametrize("name", [name for name in TYPE_NUMBERS if not name.endswith("_K")])
def test_the_test_writers_blocks_decode_to_nearly_what_went_in(name: str) -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((8, 128), np.float32)
    number = TYPE_NUMBERS[name]
    shape = blocks.block_shape(number)
    assert shape is not None
    data = np.frombuffer(encode(name, values, rng), np.uint8).reshape(8, 128 // shape[0] * shape[1])
    step = {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 0.02, "Q5_0": 0.2, "Q5_1": 0.12, "Q4_0": 0.4, "Q4_1": 0.25}[name]
    assert np.abs(blocks.dequantise(number, data, 128) - values).max() <= step


def test_unreadable_types_and_wrong_sizes_are_refused() -> None:
    with pytest.raises(ModelError, match="type 10 cannot be read"):
        blocks.dequantise(10, np.zeros((1, 84), np.uint8), 256)
    with pytest.raises(ModelError, match="do not fit"):
        blocks.dequantise(blocks.Q4_1, np.zeros((1, 19), np.uint8), 32)
    with pytest.raises(ModelError, match="unknown"):
        blocks.type_number("Q9")
