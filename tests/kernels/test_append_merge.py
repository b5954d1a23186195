"""Rows appended to pools and merged states against NumPy."""

import numpy as np
import pytest
from tests.kernels.conftest import Bench

from headway.attention.kv import PagedKV, to_bf16
from headway.attention.state import State, merge_many
from headway.kernels.cpu import append
from headway.kernels.cpu.append import AppendRows
from headway.kernels.cpu.memory import address
from headway.kernels.cpu.merge import MergeStates


@pytest.mark.parametrize("dtype", ("f32", "f16", "bf16", "int8"))
@pytest.mark.parametrize("layout", ("NHD", "HND", "packed"))
def test_appended_rows_lie_where_numpy_writes_them(bench: Bench, layout: str, dtype: str) -> None:
    rng, heads, dims, n = np.random.default_rng(0), 3, 48, 40
    got, want = (PagedKV.allocate(5, 16, heads, dims, dtype=dtype, layout=layout) for _ in range(2))
    places = rng.permutation(5 * 16)[:n]
    pages, slots = (places // 16).astype(np.int32), (places % 16).astype(np.int32)
    k, v = (rng.normal(size=(n, heads, dims)).astype(np.float32) for _ in range(2))
    k[3, 1] = 0
    want.write(pages[1:], slots[1:], k[1:], v[1:])
    pages[0] = -1  # skipped
    for source, pool, strides, scale, keys in (
        (k, got.k, got.k_strides, got.k_scale, True),
        (v, got.v, got.v_strides, got.v_scale, False),
    ):
        block = np.zeros(append.WORDS, np.int64)
        block[: append.PAGES] = [address(source), *source.strides[:2], address(pool), *strides, 0, 0, 0, 0]
        if scale is not None:
            block[append.SCALES : append.PAGES] = [address(scale), *scale.strides]
        block[append.PAGES :][:3] = address(pages), address(slots), heads
        kernel = AppendRows("f32", dtype, dims, "packed_keys" if layout == "packed" and keys else "rows")
        bench(kernel)(address(block), n)
    assert (got.k == want.k).all() and (got.v == want.v).all()
    if got.k_scale is not None and want.k_scale is not None:
        assert (got.k_scale == want.k_scale).all()


def test_rows_of_bf16_are_appended_as_float32(bench: Bench) -> None:
    x = np.random.default_rng(1).normal(size=(2, 1, 32)).astype(np.float32)
    bits, pool = to_bf16(x), np.zeros((1, 16, 1, 32), np.float32)
    pages, slots = np.zeros(2, np.int32), np.array([5, 9], np.int32)
    block = np.zeros(append.WORDS, np.int64)
    block[: append.SCALES] = [address(bits), *bits.strides[:2], address(pool), pool.strides[0], pool.strides[2], pool.strides[1]]
    block[append.PAGES :][:3] = address(pages), address(slots), 1
    bench(AppendRows("bf16", "f32", 32))(address(block), 2)
    assert (pool[0, slots, 0].view(np.uint32) == bits[:, 0].astype(np.uint32) << 16).all()


@pytest.mark.parametrize("states", (1, 2, 5))
def test_merged_states_equal_the_reference(bench: Bench, states: int) -> None:
    rng, rows, dims = np.random.default_rng(2), 9, 96
    o = rng.normal(size=(rows, states, dims)).astype(np.float32)
    lse = (rng.normal(size=(rows, states)) * 20).astype(np.float32)
    lse[0] = -np.inf
    o[0] = 0
    lse[1, 0] = -np.inf
    out, out_lse = np.zeros((rows, dims), np.float32), np.zeros(rows, np.float32)
    bench(MergeStates(dims))(address(o), address(lse), address(out), address(out_lse), rows, states)
    want = merge_many(State(o[:, :, None].astype(float), lse[:, :, None].astype(float)))
    assert np.abs(out - want.o[:, 0]).max() <= 5e-6
    assert np.isneginf(out_lse[0]) and np.abs(out_lse[1:] - want.lse[1:, 0])[np.isfinite(want.lse[1:, 0])].max() <= 1e-5
