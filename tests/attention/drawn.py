"""Random attention steps over pools whose unused slots hold NaN, and the bars every back end is held to."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from headway.attention.attention import Attention
from headway.attention.block_sparse import BlockSparse
from headway.attention.kv import KINDS, PACKED_TOKENS, PagedKV, encode, to_bf16, to_float32
from headway.attention.reference import reference


@dataclass
class Drawn:
    """A pool, a permuted page table over it, and queries."""

    kv: PagedKV
    table: BlockSparse
    qo_indptr: np.ndarray
    q: np.ndarray
    q_dtype: str


def empty_pool(pages: int, page_tokens: int, kv_heads: int, dims: int, value_dims: int, dtype: str, layout: str) -> PagedKV:
    """A pool of NaN. `layout`: NHD, HND, packed, head-major, or sliced (rows inside a wider array)."""
    kind = KINDS[dtype]
    fill: Any = {"f32": np.nan, "f16": np.nan, "bf16": 0x7FC0, "int8": 77}[dtype]
    arrays = []
    for d, is_key in ((dims, True), (value_dims, False)):
        if layout == "packed":
            shape = (pages, kv_heads, d, PACKED_TOKENS) if is_key else (pages, kv_heads, PACKED_TOKENS, d)
            arrays.append(np.full(shape, fill, kind))
        elif layout == "NHD":
            arrays.append(np.full((pages, page_tokens, kv_heads, d), fill, kind))
        elif layout == "sliced":
            arrays.append(np.full((pages, page_tokens + 1, kv_heads, 2 * d + 8), fill, kind)[:, 1:, :, 8 : 8 + d])
        elif layout == "head-major":
            arrays.append(np.full((kv_heads, pages, page_tokens, d), fill, kind).transpose(1, 0, 2, 3))
        else:
            arrays.append(np.full((pages, kv_heads, page_tokens, d), fill, kind))
    scales = [np.full((pages, kv_heads, page_tokens), np.nan, np.float32) if dtype == "int8" else None for _ in range(2)]
    name = {"sliced": "NHD", "head-major": "HND"}.get(layout, layout)
    return PagedKV(arrays[0], arrays[1], layout=name, dtype=dtype, k_scale=scales[0], v_scale=scales[1])


def draw(
    seed: int,
    lengths: list[tuple[int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dims: int = 32,
    value_dims: int | None = None,
    page_tokens: int = 16,
    dtype: str = "f32",
    q_dtype: str = "f32",
    layout: str = "NHD",
) -> Drawn:
    """`lengths`: (query tokens, kv tokens) of each request."""
    rng = np.random.default_rng(seed)
    kv_tokens = np.array([n for _, n in lengths], np.int32)
    n_pages = -(-kv_tokens // page_tokens)
    indptr = np.concatenate([[0], np.cumsum(n_pages)]).astype(np.int32)
    pages = int(indptr[-1]) + 3
    kv = empty_pool(pages, page_tokens, kv_heads, dims, value_dims or dims, dtype, layout)
    indices = rng.permutation(pages)[: indptr[-1]].astype(np.int32)
    table = BlockSparse.from_lengths(indptr, indices, kv_tokens, page_tokens)
    for b, n in enumerate(kv_tokens):
        slots = np.arange(n)
        at = indices[indptr[b] + slots // page_tokens]
        k, v = rng.standard_normal((n, kv_heads, dims)), rng.standard_normal((n, kv_heads, value_dims or dims))
        kv.write(at, slots % page_tokens, k.astype(np.float32), v.astype(np.float32))
    qo = np.concatenate([[0], np.cumsum([m for m, _ in lengths])]).astype(np.int32)
    q = encode(rng.standard_normal((int(qo[-1]), heads, dims)).astype(np.float32), q_dtype)
    return Drawn(kv, table, qo, q, q_dtype)


def expected(
    a: Attention, d: Drawn, table: BlockSparse | None = None, captured: dict[str, Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    x = to_float32(d.q, d.q_dtype).astype(np.float64)
    return reference(x, d.kv, d.qo_indptr, table or d.table, a.variant, captured, sm_scale=a.sm_scale)


def assert_close(got: tuple[np.ndarray, np.ndarray | None], want: tuple[np.ndarray, np.ndarray], dtype: str = "f32") -> None:
    """|dO| <= 5e-6 and |dLSE| <= 1e-5; 16-bit outputs within one unit in the last place of the rounded reference (near 0: 5e-6).

    Without softmax O is a sum as long as the keys: the bar is then relative to the largest output.
    """
    o, lse = got
    bar = 5e-6 * (max(1.0, np.abs(want[0]).max(initial=0.0)) if lse is None else 1.0)
    if dtype == "f32":
        assert np.abs(o - want[0]).max(initial=0.0) <= bar
    else:
        close = np.abs(to_float32(o, dtype) - want[0]) <= bar
        if dtype == "f16":
            near = want[0].astype(np.float16)
            assert (close | (np.abs(o.astype(np.float64) - near) <= np.spacing(np.abs(near)).astype(np.float64))).all()
        else:
            near = to_bf16(want[0].astype(np.float32))
            assert (close | (np.abs(o.astype(np.int64) - near) <= 1)).all()
    if lse is not None:
        empty = np.isneginf(want[1])
        assert (np.isneginf(lse) == empty).all()
        assert np.abs(lse[~empty] - want[1][~empty]).max(initial=0.0) <= 1e-5
