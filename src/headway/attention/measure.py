"""Timing attention on this machine: steps over a pool larger than the caches, and the law fitted from them.

Every repetition reads other random pages, as a server's steps do. Seconds are of the calling thread's CPU: what a neighbour takes is not
in the law.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headway.attention.attention import Attention
from headway.attention.block_sparse import BlockSparse
from headway.attention.kv import KINDS, PagedKV, encode
from headway.attention.plan import Plan
from headway.attention.price import AttentionLaw, AttentionPoint, fit, stored_path
from headway.core.durable import publish
from headway.kernels.cpu import plan_layout as at

POOL_BYTES = 192 << 20  # keys and values; several times the L3 of the machines this runs on
PAGE_TOKENS = 16
DECODE = [(b, kv) for b in (1, 4, 16, 48) for kv in (64, 256, 1024, 4096)]
PREFILL = [(q, kv) for q in (8, 32, 128, 512) for kv in (512, 2048)]
RUN_PAGES = (1, 4, 16, 64)


@dataclass(frozen=True, slots=True)
class Shape:
    """Query heads, kv heads, head dim and number types of what is measured."""

    heads: int
    kv_heads: int
    head_dim: int
    kv_dtype: str = "f32"
    q_dtype: str = "f32"
    layout: str = "HND"

    def attention(self, workers: int = 1, law: AttentionLaw | None = None) -> Attention:
        from headway.attention.library import causal

        return Attention(
            self.heads,
            self.kv_heads,
            self.head_dim,
            q_dtype=self.q_dtype,
            kv_dtype=self.kv_dtype,
            layout="packed" if self.layout == "packed" else "rows",
            mask=causal,
            max_requests=64,
            max_q_tokens=1024,
            max_pages=16384,
            workers=workers,
            law=law,
        )

    @property
    def pages(self) -> int:
        per_page = self.kv_heads * PAGE_TOKENS * 2 * self.head_dim * KINDS[self.kv_dtype].itemsize
        return max(1024, POOL_BYTES // per_page)

    def pool(self) -> PagedKV:
        """Random keys and values; int8 with scales of 1/64."""
        kv = PagedKV.allocate(self.pages, PAGE_TOKENS, self.kv_heads, self.head_dim, dtype=self.kv_dtype, layout=self.layout)
        rng = np.random.default_rng(0)
        for x in (kv.k, kv.v):
            page = rng.standard_normal(x.shape[1:]).astype(np.float32)
            x[...] = np.rint(page * 40).astype(np.int8) if self.kv_dtype == "int8" else encode(page, self.kv_dtype)
        for scale in (kv.k_scale, kv.v_scale):
            if scale is not None:
                scale.fill(1 / 64)
        return kv


class Stopwatch:
    """Steps of one shape over one pool: `median_s((query tokens, kv tokens), ...)`."""

    def __init__(self, shape: Shape, workers: int = 1, law: AttentionLaw | None = None) -> None:
        self.shape, self.attention, self.kv = shape, shape.attention(workers, law), shape.pool()
        self._rng = np.random.default_rng(1)

    def step(self, lengths: list[tuple[int, int]], run_pages: int = 1) -> tuple[NDArray[np.int32], BlockSparse]:
        """Query bounds and a table of random pages in contiguous runs of `run_pages`."""
        n_pages = np.array([-(-kv // PAGE_TOKENS) for _, kv in lengths])
        total = int(n_pages.sum())
        runs = self._rng.permutation(self.kv.pages // run_pages)
        runs = np.resize(runs, -(-total // run_pages)) * run_pages
        pages = (runs[:, None] + np.arange(run_pages)).ravel()[:total].astype(np.int32)
        qo = np.concatenate([[0], np.cumsum([q for q, _ in lengths])]).astype(np.int32)
        indptr = np.concatenate([[0], np.cumsum(n_pages)]).astype(np.int32)
        return qo, BlockSparse.from_lengths(indptr, pages, np.array([kv for _, kv in lengths], np.int32), PAGE_TOKENS)

    def measure(self, lengths: list[tuple[int, int]], run_pages: int = 1, repetitions: int = 5) -> tuple[Plan, float]:
        """The last repetition's plan and the median CPU seconds of `run`."""
        tokens = sum(q for q, _ in lengths)
        s = self.shape
        q = encode(np.random.default_rng(2).standard_normal((tokens, s.heads, s.head_dim)).astype(np.float32), s.q_dtype)
        out, lse = np.empty_like(q), np.empty((tokens, s.heads), np.float32)
        seconds = []
        for _ in range(repetitions + 1):
            plan = self.attention.plan(*self.step(lengths, run_pages))
            before_ns = time.thread_time_ns()
            self.attention.run(plan, q, self.kv, out, lse)
            seconds.append((time.thread_time_ns() - before_ns) / 1e9)
        return plan, float(np.median(seconds[1:]))  # the first one warms code and queries

    def point(self, lengths: list[tuple[int, int]], repetitions: int = 5) -> AttentionPoint:
        plan, seconds = self.measure(lengths, 1, repetitions)
        tokens = plan.array("item_end").astype(np.int64) - plan.array("item_start")
        kept = np.zeros(len(tokens), np.int64)
        sizes = plan.array("range_end").astype(np.int64) - plan.array("range_start")
        for i, (first, n) in enumerate(zip(plan.array("item_range"), plan.array("item_ranges"), strict=True)):
            kept[i] = sizes[first : first + n].sum()
        pairs = int((kept * plan.array("item_tokens")).sum()) * (self.shape.heads // self.shape.kv_heads)
        return AttentionPoint(plan.count(at.H_ITEMS), int(kept.sum()), pairs, plan.count(at.H_MERGE_PARTS), seconds)


def grid(quick: bool = False) -> Iterable[list[tuple[int, int]]]:
    """Steps that calibration measures: decode batches, prefill chunks, and both mixed."""
    decode = DECODE[::2] if quick else DECODE
    prefill = PREFILL[::2] if quick else PREFILL
    for b, kv in decode:
        yield [(1, kv)] * b
    for q, kv in prefill:
        yield [(q, kv)]
    for (b, kv), (q, longer) in zip(decode[::4], prefill, strict=False):
        yield [(1, kv)] * b + [(q, longer)]


def calibrate(shape: Shape, *, quick: bool = False, progress: Callable[[str], None] = lambda _: None) -> AttentionLaw:
    """Measure and fit. With a row layout of contiguous pages also the price of longer runs."""
    watch = Stopwatch(shape)
    points = []
    for lengths in grid(quick):
        points.append(watch.point(lengths))
        progress(f"{len(lengths)} requests, {sum(kv for _, kv in lengths)} kv tokens: {points[-1].seconds * 1e6:.0f} us")
    law = fit(points, 2 * shape.head_dim, made_by="headway attention calibrate")
    runs: list[tuple[float, float]] = []
    lengths = [(1, 2048)] * 16
    for n in RUN_PAGES:
        plan, seconds = watch.measure(lengths, n)
        tokens = 16 * 2048 * shape.kv_heads
        fixed = law.predict_s(plan.count(at.H_ITEMS), 0, tokens * shape.heads // shape.kv_heads, plan.count(at.H_MERGE_PARTS))
        size = watch.kv.run_bytes(plan.array("page"))
        if not runs or size > runs[-1][0] * 1.01:
            runs.append((size, max(seconds - fixed, 0.0) / tokens))
    return replace(law, runs=tuple(runs))


def save(law: AttentionLaw, shape: Shape) -> Path:
    """Publish a law where `Attention` finds it. Returns the file."""
    path = stored_path(
        shape.heads // shape.kv_heads, shape.head_dim, shape.head_dim, shape.q_dtype, shape.kv_dtype, shape.layout == "packed"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, law.to_json().encode(), durable=True)
    return path
