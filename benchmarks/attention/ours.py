"""Attention steps to measure: pools larger than any cache with random pages, so that every repetition reads memory."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.attention.limit import Reader
from headway.attention.attention import Attention
from headway.attention.block_sparse import BlockSparse
from headway.attention.kv import PagedKV
from headway.attention.plan import Plan
from headway.attention.variant import Mask, Variant
from headway.kernels.cpu import isa
from headway.kernels.cpu.team import Team

POOL_BYTES = 320 << 20
NUMBERS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "int8": np.int8}


def cpu_s(work: Callable[..., object], *arguments: int) -> float:
    """CPU seconds of this thread for work(*arguments)."""
    before = time.thread_time_ns()
    work(*arguments)
    return (time.thread_time_ns() - before) / 1e9


class Decode:
    """`batch` requests of `tokens` keys each, one query token a request; step after step reads other pages of the pool."""

    def __init__(
        self,
        dtype: str,
        *,
        heads: int = 32,
        kv_heads: int = 8,
        dims: int = 128,
        batch: int = 16,
        tokens: int = 1024,
        layout: str = "HND",
        page_tokens: int = 16,
        variant: Variant | None = None,
        mask: Mask | None = None,
        workers: int = 1,
        pool_bytes: int = POOL_BYTES,
    ) -> None:
        rng = np.random.default_rng(0)
        self.page_bytes = page_tokens * dims * NUMBERS[dtype]().itemsize  # of one head's keys
        per_step = batch * -(-tokens // page_tokens)
        self.steps = max(2, pool_bytes // (2 * kv_heads * self.page_bytes * per_step))
        pages = self.steps * per_step
        self.kv = PagedKV.allocate(pages, page_tokens, kv_heads, dims, dtype=dtype, layout=layout, head_major=False)
        for x in (self.kv.k, self.kv.v):
            flat = x.reshape(-1) if x.flags.c_contiguous else x
            flat[...] = 1 if dtype == "int8" else 0x3C00 if dtype == "bf16" else 0.01
        for scale in (self.kv.k_scale, self.kv.v_scale):
            if scale is not None:
                scale[...] = 0.01
        packed = "packed" if layout == "packed" else "rows"
        self.attention = Attention(
            heads, kv_heads, dims, kv_dtype=dtype, layout=packed, variant=variant, mask=mask,
            max_requests=batch, max_q_tokens=batch, max_pages=per_step, page_tokens=page_tokens, workers=workers,
        )  # fmt: skip
        self.q = rng.normal(size=(batch, heads, dims)).astype(np.float32)
        self.out, self.lse = np.zeros_like(self.q), np.zeros((batch, heads), np.float32)
        order = rng.permutation(pages).astype(np.int32).reshape(self.steps, per_step)
        indptr = np.arange(batch + 1, dtype=np.int32) * (per_step // batch)
        lengths = np.full(batch, tokens, np.int32)
        self.plans: list[Plan] = []
        self.runs: list[NDArray[np.int64]] = []
        for pages_of_step in order:
            table = BlockSparse.from_lengths(indptr, pages_of_step, lengths, page_tokens)
            self.plans.append(self.attention.plan(np.arange(batch + 1, dtype=np.int32), table, into=self.attention.buffer()))
            at = pages_of_step.astype(np.int64)[None, :] * self.kv.k_strides[0] + np.arange(kv_heads)[:, None] * self.kv.k_strides[1]
            self.runs.append(np.stack([self.kv.k_address + at, self.kv.v_address + at], -1).reshape(-1))
        self.bytes = 2 * kv_heads * per_step * self.page_bytes
        self.token_heads = batch * kv_heads * tokens

    def run(self, step: int, team: Team | None = None) -> None:
        self.attention.run(self.plans[step % self.steps], self.q, self.kv, self.out, self.lse, team=team)

    def reader(self) -> "PagedRead":
        return PagedRead(self)


class PagedRead:
    """The same bytes read and summed."""

    def __init__(self, decode: Decode) -> None:
        self._reader = Reader(isa.select(), decode.page_bytes)
        self._tables = [self._reader.table(runs) for runs in decode.runs]

    def read(self, step: int, which: int) -> None:
        self._reader.read(which, self._tables[step % len(self._tables)])

    @property
    def ways(self) -> int:
        return len(self._reader.calls)


class Prefill:
    """One causal prompt over contiguous pages, as torch sees it."""

    def __init__(self, dtype: str, tokens: int, *, heads: int = 32, kv_heads: int = 8, dims: int = 128, mask: Mask | None = None) -> None:
        from headway.attention.library import causal

        pages = -(-tokens // 16)
        self.kv = PagedKV.allocate(pages, 16, kv_heads, dims, dtype=dtype, layout="HND")
        self.kv.k[...] = 0x3C00 if dtype == "bf16" else 0.01
        self.kv.v[...] = 0x3C00 if dtype == "bf16" else 0.01
        q_dtype = dtype if dtype != "int8" else "f32"
        self.attention = Attention(
            heads,
            kv_heads,
            dims,
            q_dtype=q_dtype,
            kv_dtype=dtype,
            mask=mask or causal,
            max_requests=1,
            max_q_tokens=tokens,
            max_pages=pages,
        )
        self.q = np.full((tokens, heads, dims), 0x3C00 if dtype == "bf16" else 0.1, NUMBERS[q_dtype])
        self.out, self.lse = np.zeros_like(self.q), np.zeros((tokens, heads), np.float32)
        table = BlockSparse.from_lengths([0, pages], np.arange(pages, dtype=np.int32), [tokens], 16)
        self.plan = self.attention.plan(np.array([0, tokens], np.int32), table)
        self.flops = 4 * heads * dims * (tokens * (tokens + 1) // 2)

    def run(self, _: int = 0) -> None:
        self.attention.run(self.plan, self.q, self.kv, self.out, self.lse)
