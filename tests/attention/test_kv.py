"""Where keys lie, which pages are free, and what the merge of states means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.attention.block_sparse import BlockSparse
from headway.attention.kv import PagedKV, quantise, to_bf16, to_float32
from headway.attention.pool import RunPool
from headway.attention.state import State, merge, merge_in_place, merge_many
from headway.core.errors import CapacityError, ConfigError
from tests.attention.drawn import empty_pool


def test_strides_of_every_layout_lead_to_the_same_elements() -> None:
    for layout in ("NHD", "HND", "head-major", "sliced"):
        kv = empty_pool(5, 8, 3, 32, 16, "f32", layout)
        kv.write(np.array([4]), np.array([6]), np.arange(96.0).reshape(1, 3, 32), np.arange(48.0).reshape(1, 3, 16))
        for address, (page, head, token), d in ((kv.k_address, kv.k_strides, 32), (kv.v_address, kv.v_strides, 16)):
            import ctypes

            at = address + 4 * page + 2 * head + 6 * token
            assert ctypes.c_float.from_address(at + 4 * 5).value == 2 * d + 5
        assert (kv.page_tokens, kv.kv_heads, kv.head_dim_qk, kv.head_dim_vo, kv.pages) == (8, 3, 32, 16, 5)


@pytest.mark.parametrize("layout", ["NHD", "HND", "packed"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "int8"])
def test_what_is_written_is_read(layout: str, dtype: str) -> None:
    kv = PagedKV.allocate(4, 16, 2, 32, head_dim_vo=48, dtype=dtype, layout=layout)
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((7, 2, 32)).astype(np.float32), rng.standard_normal((7, 2, 48)).astype(np.float32)
    pages, offsets = np.array([3, 3, 0, 1, 2, 2, 2]), np.array([0, 15, 7, 8, 1, 2, 3])
    kv.write(pages, offsets, k, v)
    tolerance = {"f32": 0.0, "f16": 2e-3, "bf16": 2e-2, "int8": 2e-2}[dtype]
    for head in range(2):
        got_k, got_v = kv.read(pages, offsets, head)
        assert np.abs(got_k - k[:, head]).max() <= tolerance
        assert np.abs(got_v - v[:, head]).max() <= tolerance


def test_run_lengths_are_what_memory_says() -> None:
    pages = np.array([3, 4, 5, 9, 1, 2])
    assert PagedKV.allocate(16, 16, 2, 32, layout="HND").run_bytes(pages) == 6 * 16 * 32 * 4 / 3
    assert PagedKV.allocate(16, 16, 2, 32, layout="HND", head_major=False).run_bytes(pages) == 16 * 32 * 4
    assert PagedKV.allocate(16, 16, 2, 32, layout="NHD").run_bytes(pages) == 32 * 4


def test_arrays_that_do_not_fit_are_refused() -> None:
    k = np.zeros((4, 16, 2, 32), np.float32)
    for bad in (k.astype(np.float64), k[:2], k[..., ::2], k[0]):
        with pytest.raises(ConfigError):
            PagedKV(bad, k)
    with pytest.raises(ConfigError, match="NHD, HND, packed"):
        PagedKV(k, k, layout="NDH")
    with pytest.raises(ConfigError, match="k_scale"):
        PagedKV(k.astype(np.int8), k.astype(np.int8))
    with pytest.raises(ConfigError, match="only int8"):
        PagedKV(k, k, k_scale=np.zeros((4, 2, 16), np.float32))


def test_a_single_array_and_pages_of_one_token() -> None:
    both = np.zeros((4, 2, 16, 3, 32), np.float16)
    kv = PagedKV.view(both)
    assert (kv.page_tokens, kv.kv_heads, kv.dtype) == (16, 3, "f16")
    assert kv.v_address - kv.k_address == both.strides[1]
    assert PagedKV(np.zeros((9, 3, 32), np.float32), np.zeros((9, 3, 32), np.float32)).page_tokens == 1


def test_bf16_rounds_to_nearest_even_and_keeps_nan() -> None:
    x = np.array([1.0, 1.00390625, 1.01171875, -2.5, np.nan, np.inf, 3e38], np.float32)
    got = to_float32(to_bf16(x), "bf16")
    assert got[:4].tolist() == [1.0, 1.0, 1.015625, -2.5]
    assert np.isnan(got[4])
    assert np.isinf(got[5])


def test_quantised_rows_keep_their_largest_value() -> None:
    q, scale = quantise(np.array([[1.0, -254.0], [0.0, 0.0]], np.float32))
    assert q.tolist() == [[0, -127], [0, 0]]
    assert scale.tolist() == [2.0, 0.0]


# ---- tables
def test_three_spellings_of_one_page_table() -> None:
    a = BlockSparse.from_pages([0, 2, 2, 3], [7, 3, 5], [4, 0, 16], 16)
    b = BlockSparse.from_lengths([0, 2, 2, 3], [7, 3, 5], [20, 0, 16], 16)
    c = BlockSparse.from_block_tables([[7, 3], [0, 0], [5, 9]], [20, 0, 16], 16)
    for other in (b, c):
        assert a.row_page.tolist() == other.row_page.tolist()
        assert a.page.tolist() == other.page.tolist()
        assert a.row_kv_tokens.tolist() == other.row_kv_tokens.tolist()


def test_tables_that_lie_are_refused() -> None:
    with pytest.raises(TypeError, match="int64"):
        BlockSparse.from_pages(np.array([0, 1]), np.array([0], np.int32), np.array([3], np.int32), 16)
    for indptr, last in (([0, 1], [0]), ([0, 1], [17]), ([0, 0], [3]), ([0, 1, 2], [1])):
        with pytest.raises(ConfigError):
            BlockSparse.from_pages(indptr, list(range(indptr[-1])), last, 16)
    with pytest.raises(ConfigError, match="ascend"):
        BlockSparse.from_bsr([0, 2], [3, 1], 8, 64, 8, 16)
    with pytest.raises(ConfigError, match="out of bound"):
        BlockSparse.from_bsr([0, 1], [4], 8, 64, 8, 16)
    with pytest.raises(ConfigError, match="different lengths"):
        prefix = BlockSparse.from_block_tables([[1], [2]], [16, 5], 16)
        suffix = BlockSparse.from_block_tables([[3], [4]], [1, 1], 16)
        BlockSparse.levels([BlockSparse.from_block_tables([[9]], [16], 16), prefix, suffix], [[0, 2], [0, 1, 2]])
        BlockSparse.levels([prefix, BlockSparse.from_block_tables([[9]], [16], 16), suffix], [[0, 1, 2], [0, 2]])


# ---- the pool
@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=40))
def test_pool_histories_lose_and_double_nothing(history: list[tuple[int, bool]]) -> None:
    pool = RunPool(64)
    held: list[list[int]] = []
    for n, keep in history:
        if not keep and held:
            pool.give_back(np.array(held.pop(n % len(held)), np.int32))
            continue
        used = {p for pages in held for p in pages}
        assert pool.free_pages == 64 - len(used)
        if n > pool.free_pages:
            with pytest.raises(CapacityError):
                pool.take(n)
            continue
        got = pool.take(n, after=held[-1][-1] if held else None).tolist()
        assert len(set(got)) == n
        assert not used & set(got)
        held.append(got)
    for pages in held:
        pool.give_back(np.array(pages, np.int32))
    assert (pool.free_pages, pool.statistics.longest_free_run, pool.statistics.free_runs) == (64, 64, 1)


def test_growing_sequences_stay_contiguous() -> None:
    pool = RunPool(256)
    sequences = [pool.take(4).tolist() for _ in range(4)]
    for _ in range(20):
        for s in sequences:
            s += pool.take(1, after=s[-1]).tolist()
    runs = sum(1 + int((np.diff(s) != 1).sum()) for s in sequences)
    assert runs <= 6  # 4 sequences of 24 pages; page by page in order it would be 84


def test_pages_are_not_freed_twice() -> None:
    pool = RunPool(8)
    pages = pool.take(3)
    pool.give_back(pages[:1])
    with pytest.raises(ConfigError, match="given back twice"):
        pool.give_back(pages)
    assert pool.free_pages == 6


# ---- states
def states(seed: int, n: int) -> State:
    rng = np.random.default_rng(seed)
    lse = rng.standard_normal((5, n, 3)) * 20
    lse[rng.random(lse.shape) < 0.3] = -np.inf
    return State(np.where(np.isneginf(lse)[..., None], 0, rng.standard_normal((5, n, 3, 8))), lse)


@given(st.integers(0, 30), st.integers(1, 5))
def test_merging_many_is_merging_two_by_two_in_any_order(seed: int, n: int) -> None:
    s = states(seed, n)
    whole = merge_many(s)
    parts = [State(s.o[:, i], s.lse[:, i]) for i in range(n)]
    for order in (range(n), reversed(range(n))):
        total = State(np.zeros((5, 3, 8)), np.full((5, 3), -np.inf))
        for i in order:
            total = merge(total, parts[i])
        assert np.allclose(total.o, whole.o)
        assert np.allclose(total.lse, whole.lse)
    assert not np.isnan(whole.o).any()


def test_merge_in_place_touches_chosen_rows_only() -> None:
    a, b = (State(x.o[:, 0].copy(), x.lse[:, 0].copy()) for x in (states(1, 1), states(2, 1)))
    before = a.o.copy()
    rows = np.array([True, False, True, False, False])
    want = merge(a, b)
    merge_in_place(a, b, rows)
    assert (a.o[~rows] == before[~rows]).all()
    assert np.allclose(a.o[rows], want.o[rows])


def test_base_two_enters_by_name_only() -> None:
    s = State.from_log2(np.zeros((1, 1, 8), np.float32), np.array([[3.0]], np.float32))
    assert np.isclose(s.lse[0, 0], np.log(8))
    with pytest.raises(ConfigError, match="same axes"):
        State(np.zeros((2, 3, 8)), np.zeros((2, 4)))
