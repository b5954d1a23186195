"""Products and activation rows against float64: every kind, tile shape, epilogue and ISA level."""

import numpy as np
import pytest
from tests.kernels.conftest import Bench

from headway.kernels.cpu.memory import Arena, address
from headway.kernels.cpu.pack import pack, unpack
from headway.kernels.cpu.products import QUANTISED, Product, activation_bytes, is_wide, record_bytes, tile_rows
from headway.kernels.cpu.rows import PrepareRow
from headway.kernels.reference import dequantise_activations, quantise_activations, rms_norm, silu_gate
from headway.models.blocks import dequantise, type_number

KINDS = ("q4_1", "q8_0", "f32", "f16", "bf16")


def random_rows(kind: str, rows: int, inputs: int, rng: np.random.Generator) -> np.ndarray:
    """Weights as a GGUF file stores them."""
    if kind == "f32":
        return rng.normal(size=(rows, inputs)).astype(np.float32).view(np.uint8)
    if kind == "f16":
        return rng.normal(size=(rows, inputs)).astype(np.float16).view(np.uint8)
    if kind == "bf16":
        return np.ascontiguousarray(rng.normal(size=(rows, inputs)).astype(np.float32).view(np.uint16)[:, 1::2]).view(np.uint8)
    size, scales = (20, 2) if kind == "q4_1" else (34, 1)
    blocks = rng.integers(0, 256, (rows, inputs // 32, size), dtype=np.uint8)
    blocks[..., : 2 * scales] = rng.uniform(0.01, 0.5, (rows, inputs // 32, scales)).astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def activation_rows(bench: Bench, kind: str, x: np.ndarray, planes: int) -> np.ndarray:
    rows, inputs = x.shape
    size = activation_bytes(kind, inputs, planes)
    out = np.zeros((rows, size), np.uint8)
    kernel = bench(PrepareRow(inputs, False, 1e-5, planes if kind in QUANTISED else 0))
    for r in range(rows):
        kernel(address(x[r]), 0, address(out[r]))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_unpack_is_the_inverse_of_pack(kind: str) -> None:
    rng = np.random.default_rng(1)
    for rows in (32, 48, 96, 17):
        stored = random_rows(kind, rows, 64, rng)
        assert (unpack(kind, pack(kind, stored, 64), 64, rows) == stored).all()


@pytest.mark.parametrize("planes", (1, 2))
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_equals_the_exact_formula(bench: Bench, kind: str, planes: int) -> None:
    rng = np.random.default_rng(2)
    inputs = 96 if kind in QUANTISED else 80
    stored = random_rows(kind, 32, inputs, rng)
    weights = dequantise(type_number(kind.upper()), stored, inputs).astype(np.float64)
    packed = Arena(1 << 20).take(1 << 16)
    strips = pack(kind, stored, inputs).reshape(-1)
    packed[: strips.size] = strips
    for rows in tile_rows(bench.isa, planes):
        x = (rng.normal(size=(rows, inputs)) * rng.uniform(0.1, 10, (rows, 1))).astype(np.float32)
        x[0, :32] = 0  # a block of zeros has scale 0
        act = activation_rows(bench, kind, x, planes)
        seen = dequantise_activations(*quantise_activations(x, planes)) if kind in QUANTISED else x.astype(np.float64)
        want = seen @ weights.T
        size = np.abs(seen) @ np.abs(weights).T + 1e-6
        for epilogue in ("store", "add", "silu"):
            kernel = bench(Product(kind, inputs, rows, planes, epilogue, True))
            start = rng.normal(size=(rows, 32)).astype(np.float32)
            out = start.copy()
            kernel(address(packed), address(act), address(out), 128, address(packed))
            if epilogue == "silu":
                gate, up = want[:, :16], want[:, 16:]
                error = np.abs(out[:, :16] - silu_gate(gate, up)) / (size[:, :16] * size[:, 16:] + 1)
            else:
                error = np.abs(out - (want + (start if epilogue == "add" else 0))) / size
            assert error.max() <= 2e-6, (kind, rows, epilogue)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_in_every_tile(bench: Bench, kind: str) -> None:
    rng = np.random.default_rng(3)
    stored = random_rows(kind, 32, 64, rng)
    strips = pack(kind, stored, 64).reshape(-1)
    for planes in (1, 2):
        sizes = tile_rows(bench.isa, planes)
        x = rng.normal(size=(sizes[0], 64)).astype(np.float32)
        act = activation_rows(bench, kind, x, planes)
        results = {}
        for rows in sizes:
            out = np.zeros((rows, 32), np.float32)
            bench(Product(kind, 64, rows, planes, "store", False))(address(strips), address(act), address(out), 128, 0)
            results[rows] = out
        for rows, out in results.items():
            assert (out == results[sizes[0]][:rows]).all(), (planes, rows)


@pytest.mark.parametrize("planes", (1, 2))
def test_activations_are_quantised_as_the_reference_says(bench: Bench, planes: int) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(5, 96)).astype(np.float32)
    x[1, 32:64] = 0
    x[2] *= 1e4
    d, a, b = quantise_activations(x, planes)
    rows = activation_rows(bench, "q8_0", x, planes).reshape(5, 3, record_bytes(planes))
    if is_wide(bench.isa, planes):
        in_fours = rows[..., :64].reshape(5, 3, 64).view(np.int16).reshape(5, 24, 4)  # stored as inputs 0, 2, 1, 3
        values = in_fours[..., [0, 2, 1, 3]].reshape(5, 96).astype(np.int64)
    else:
        values = rows[..., :32].view(np.int8).reshape(5, 96).astype(np.int64)
        if planes == 2:
            values = 256 * values + rows[..., 32:64].copy().view(np.int8).reshape(5, 96)
    want = a.astype(np.int64) if b is None else 256 * a.astype(np.int64) + b
    # a value within half an ulp of a rounding boundary may fall on either side
    assert (np.abs(values - want) <= 1).all()
    assert (values != want).mean() < 0.01
    scale = rows[..., 32 * planes : 32 * planes + 4].copy().view(np.float32)[..., 0]
    assert np.allclose(scale * (256 if planes == 2 else 1), d, rtol=1e-6)
    sums = rows[..., 32 * planes + 8 : 32 * planes + 12].copy().view(np.int32)[..., 0]
    assert (sums == -128 * values.reshape(5, 3, 32).sum(-1)).all()


def test_a_normalised_row(bench: Bench) -> None:
    rng = np.random.default_rng(5)
    x, w = rng.normal(size=160).astype(np.float32), rng.normal(size=160).astype(np.float32)
    out = np.zeros(160, np.float32)
    bench(PrepareRow(160, True, 1e-5, 0))(address(x), address(w), address(out))
    assert np.allclose(out, rms_norm(x, w, 1e-5), rtol=2e-6, atol=1e-7)
