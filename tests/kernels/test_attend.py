"""Attention microkernels and RoPE against float64: group sizes, head sizes, KV types, masks, garbage in unused slots."""

import numpy as np
import pytest
from tests.kernels.conftest import Bench

from headway.kernels.cpu.attend import Attend, ClearStates, FinishState, FoldState, rows_at_once, scratch_bytes, state_bytes
from headway.kernels.cpu.memory import address
from headway.kernels.cpu.rows import Append, RotateQueries, page_bytes
from headway.kernels.reference import attention, rope


def angle_table(positions: int, dim: int, base: float, pairs: str) -> np.ndarray:
    angle = np.arange(positions)[:, None] * base ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angle), np.sin(angle)
    if pairs == "half":
        return np.concatenate([cos, cos, -sin, sin], 1).astype(np.float32)
    out = np.empty((positions, 2 * dim), np.float32)
    out[:, :dim] = np.repeat(cos, 2, 1)
    out[:, dim::2], out[:, dim + 1 :: 2] = -sin, sin
    return out


def rounded(x: np.ndarray, kv_dtype: str) -> np.ndarray:
    if kv_dtype == "f16":
        return x.astype(np.float16).astype(np.float64)
    bits = x.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.view(np.float32).astype(np.float64)


def fill_pages(bench: Bench, keys: np.ndarray, values: np.ndarray, kv_dtype: str) -> np.ndarray:
    """Pages of one kv head, written by the Append kernel with angles of zero; what is not written is NaN."""
    tokens, dim = keys.shape
    pages = np.full((-(-tokens // 16), page_bytes(dim)), 0xFF, np.uint8)  # NaN in both 16-bit types
    still = np.concatenate([np.ones(dim), np.zeros(dim)]).astype(np.float32)
    append = bench(Append(dim, dim, "adjacent", kv_dtype))
    for t in range(tokens):
        append(address(keys[t]), address(values[t]), address(still), address(pages[t // 16]), t % 16)
    return pages


def attend_all(bench: Bench, q: np.ndarray, pages: np.ndarray, first: int, kv_dtype: str, split: int) -> np.ndarray:
    """All blocks up to each row's position for q [tokens, heads, dim], in splits of `split` tokens, folded."""
    tokens, heads, dim = q.shape
    kernel = bench(Attend(dim, tokens, heads, 4 * heads * dim, kv_dtype))
    clear, fold, finish = bench(ClearStates(dim)), bench(FoldState(dim)), bench(FinishState(dim))
    n, size = tokens * heads, state_bytes(bench.isa, dim)
    total, part = np.zeros((n, size), np.uint8), np.zeros((n, size), np.uint8)
    scratch = np.zeros(scratch_bytes(bench.isa, n), np.uint8)
    out = np.zeros((n, dim), np.float32)
    clear(address(total), n)
    last = first + tokens - 1
    for start in range(0, last + 1, split):
        clear(address(part), n)
        for block in range(start, min(start + split, last + 1), 64):
            count = min(4, (last - block) // 16 + 1)
            table = np.array([address(pages[block // 16 + i]) for i in range(count)], np.int64)
            kernel(address(q), address(table), count, address(part), first - block, address(scratch))
        for r in range(n):
            fold(address(total[r]), address(part[r]))
    for r in range(n):
        finish(address(total[r]), address(out[r]))
    return out.reshape(tokens, heads, dim)


@pytest.mark.parametrize("kv_dtype", ("f16", "bf16"))
@pytest.mark.parametrize(
    ("tokens", "heads", "dim"), [(1, 1, 32), (1, 3, 64), (2, 3, 64), (1, 5, 96), (3, 2, 128), (1, 4, 256), (6, 1, 64), (1, 6, 80)]
)
def test_attention_equals_float64(bench: Bench, tokens: int, heads: int, dim: int, kv_dtype: str) -> None:
    assert tokens * heads <= rows_at_once(bench.isa)
    rng = np.random.default_rng(6)
    for length in (tokens, 17, 64, 65, 200):
        if length < tokens:
            continue
        keys, values = (rng.normal(size=(length, dim)).astype(np.float32) for _ in range(2))
        q = (rng.normal(size=(tokens, heads, dim)) * 2).astype(np.float32)
        first = length - tokens
        pages = fill_pages(bench, keys, values, kv_dtype)
        scaled = (q * (np.log2(np.e) / np.sqrt(dim))).astype(np.float32)
        out = attend_all(bench, scaled, pages, first, kv_dtype, 128)
        k, v = rounded(keys, kv_dtype)[:, None], rounded(values, kv_dtype)[:, None]
        want, _ = attention(q.astype(np.float64), k, v, np.arange(first, length))
        assert np.abs(out - want).max() <= 5e-6, length


def test_a_row_has_the_same_bits_alone_and_in_a_tile(bench: Bench) -> None:
    rng = np.random.default_rng(7)
    keys, values = (rng.normal(size=(150, 64)).astype(np.float32) for _ in range(2))
    pages = fill_pages(bench, keys, values, "f16")
    q = rng.normal(size=(2, 3, 64)).astype(np.float32)
    together = attend_all(bench, q, pages, 127, "f16", 64)  # positions 127 and 128: the second opens a block the first does not see
    for t in range(2):
        alone = attend_all(bench, np.ascontiguousarray(q[t : t + 1]), pages, 127 + t, "f16", 64)
        assert (alone[0] == together[t]).all()


@pytest.mark.parametrize("pairs", ("adjacent", "half"))
@pytest.mark.parametrize(("dim", "rotated"), [(64, 64), (128, 128), (64, 32), (96, 96)])
def test_queries_rotate_as_the_reference_says(bench: Bench, dim: int, rotated: int, pairs: str) -> None:
    if pairs == "half" and (rotated // 2) % bench.isa.lanes:
        pytest.skip("half pairs need rope_dim/2 to be a multiple of the lanes")
    rng = np.random.default_rng(8)
    q = rng.normal(size=(3, dim)).astype(np.float32)
    table = angle_table(40, rotated, 1e4, pairs)
    got = q.copy()
    bench(RotateQueries(3, dim, rotated, pairs, 0.5))(address(got), address(table[33]))
    want = rope(q[None].astype(np.float64), np.array([33]), 1e4, rotated, pairs)[0] * 0.5
    assert np.abs(got - want).max() <= 1e-5


def test_key_and_value_lie_where_attention_reads_them(bench: Bench) -> None:
    rng = np.random.default_rng(9)
    keys, values = (rng.normal(size=(16, 64)).astype(np.float32) for _ in range(2))
    page = fill_pages(bench, keys, values, "f16")[0]
    assert (keys.astype(np.float16) == page[: 64 * 32].view(np.float16).reshape(64, 16).T).all()
    assert (page[64 * 32 :].view(np.float16).reshape(16, 64) == values.astype(np.float16)).all()
