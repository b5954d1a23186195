"""Planner: query lengths and a table to a plan, in one call of compiled code (kernels/cpu/plan_loop.py)."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.attention.block_sparse import BlockSparse
from headway.attention.graph import Graph
from headway.attention.intervals import IntervalCode, compile_intervals
from headway.attention.plan import Plan, PlanBuffer, PlanCapacity, PlanCapacityError
from headway.attention.price import AttentionLaw
from headway.core import paths
from headway.core.errors import ConfigError
from headway.kernels.cpu import isa
from headway.kernels.cpu import plan_words as w
from headway.kernels.cpu.objects import Linked, ObjectCache
from headway.kernels.cpu.plan_layout import H_GENERATION, H_TOKENS, SLOT_ALIGN

_SIGNATURES = {"plan": "int64(int64)", "classify": "int64(int64,int64,int64)"}
SMALL_TILE_ROWS, LARGE_TILE_ROWS = 16, 64  # packed rows of a query tile (specs/attention.md 5.1)
SHARES = 8.0  # balanced mode cuts towards items of a worker's share / SHARES: makespan within 5 % up to 264 workers
CHUNK_S = 100e-6  # longest decode item in balanced mode: what a preempted thread delays


def _load(name: str) -> Callable[[], tuple[Callable[..., Any], str]]:
    def load() -> tuple[Callable[..., Any], str]:
        from headway.kernels.cpu import intervals_loop, plan_loop

        functions: dict[str, Callable[..., Any]] = {"plan": plan_loop.plan, "classify": intervals_loop.classify}
        return functions[name], _SIGNATURES[name]

    return load


@dataclass(frozen=True, slots=True)
class Compiled:
    """The planner's entries; `linked` keeps their code alive. Results come through the first pointer."""

    plan: Callable[[Any, Any, int], int]
    classify: Callable[[int, int, int], int]
    linked: Linked


@cache
def compiled() -> Compiled:
    """The planner, from the object cache or compiled once (about 5 CPU-s)."""
    objects = ObjectCache(paths.kernels_dir(), isa.select())
    entries = {name: objects.control("attention:" + name, _load(name)) for name in _SIGNATURES}
    linked = Linked([code for _, code in entries.values()])
    pointer = ctypes.c_void_p
    plan = ctypes.CFUNCTYPE(ctypes.c_int32, pointer, pointer, ctypes.c_int64)(linked.address(entries["plan"][0]))
    raw = ctypes.CFUNCTYPE(ctypes.c_int32, pointer, pointer, *[ctypes.c_int64] * 3)(linked.address(entries["classify"][0]))

    def classify(words: int, registers: int, inputs: int) -> int:
        box = (ctypes.c_int64 * 2)()
        raw(ctypes.addressof(box), ctypes.addressof(box) + 8, words, registers, inputs)
        return int(box[0])

    return Compiled(plan, classify, linked)


def default_capacity(
    kv_heads: int, group: int, max_requests: int, max_q_tokens: int, max_pages: int, page_tokens: int, workers: int
) -> PlanCapacity:
    """Room for any step within the limits whose decode items the chunk bound cuts no shorter than 128 tokens on average."""
    small, large = max(1, SMALL_TILE_ROWS // group), max(1, LARGE_TILE_ROWS // group)
    tiles = max_requests * (1 + -(-SMALL_TILE_ROWS // (group * small))) + max_q_tokens // min(large, max(1, SMALL_TILE_ROWS // group))
    chunks = max_pages * page_tokens // 128 + 8 * workers
    pieces = tiles + chunks
    parts = chunks * small + 8 * workers * large + max_requests
    return PlanCapacity(
        rows=max_requests,
        tokens=max_q_tokens,
        pages=max_pages,
        items=pieces * kv_heads,
        ranges=4 * pieces + 64,
        merges=max_q_tokens * kv_heads,
        partial_rows=(parts + max_q_tokens) * kv_heads,
    )


class Planner:
    """Plans of one head geometry, mask and law. One `plan` at a time; each plan overwrites `buffer` unless another is given."""

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        element_bytes: tuple[int, int],
        mask: Graph | None,
        law: AttentionLaw,
        capacity: PlanCapacity,
        workers: int,
    ) -> None:
        """`element_bytes`: of a token's key and value row of one kv head."""
        if kv_heads < 1 or heads % kv_heads:
            raise ConfigError(f"{heads} query heads do not divide evenly over {kv_heads} kv heads")
        if workers < 1:
            raise ConfigError(f"workers={workers} must be at least 1")
        self.group, self.law, self.capacity = heads // kv_heads, law, capacity
        self.row_bytes = element_bytes
        self.buffer = PlanBuffer(capacity)
        self.code: IntervalCode | None = None if mask is None else compile_intervals(mask)
        self._compiled = compiled()
        self._words: NDArray[np.int64] = np.zeros(w.PARAMETER_WORDS + 2, np.int64)
        self._floats = self._words.view(np.float64)
        self._address = int(self._words.ctypes.data)
        self._box = self._address + 8 * w.PARAMETER_WORDS
        self.table: BlockSparse | None = None
        words = self._words
        words[w.W_KV_HEADS], words[w.W_GROUP], words[w.W_WORKERS] = kv_heads, self.group, workers
        words[w.W_SMALL_TILE], words[w.W_LARGE_TILE] = SMALL_TILE_ROWS, LARGE_TILE_ROWS
        for name, word in zip(w.CAPACITIES, range(w.W_CAP_ROWS, w.W_CAP_ROWS + 7), strict=True):
            words[word] = getattr(capacity, name)
        if self.code is not None:
            words[w.W_CODE], words[w.W_CODE_LENGTH] = self.code.code.ctypes.data, len(self.code.code)
            words[w.W_VALUES], words[w.W_BUFFERS] = self.code.values.ctypes.data, self.code.buffers.ctypes.data
        self._scratch = np.zeros(0, np.uint8)
        self.set_law(law)

    def set_law(self, law: AttentionLaw) -> None:
        """Price and balance further plans by this law."""
        self.law = law
        self._floats[w.W_ITEM_S], self._floats[w.W_TOKEN_S] = law.item_s, law.token_s
        self._floats[w.W_PAIR_S], self._floats[w.W_MERGE_S] = law.pair_s, law.merge_s
        self._floats[w.W_CHUNK_S], self._floats[w.W_SHARES] = CHUNK_S, SHARES

    def _bind_table(self, table: BlockSparse) -> None:
        """Addresses of a table's arrays, kept while the same table is planned again: a decode loop changes its arrays in place."""
        arrays = (
            table.row_page,
            table.page,
            table.row_kv_tokens,
            table.row_request,
            table.row_requests,
            table.row_start,
            table.row_tokens,
            table.row_head,
            table.sequence_tokens,
        )
        places = (
            w.W_ROW_PAGE,
            w.W_PAGE,
            w.W_ROW_KV,
            w.W_ROW_REQUEST,
            w.W_ROW_REQUESTS,
            w.W_ROW_START,
            w.W_ROW_TOKENS,
            w.W_ROW_HEAD,
            w.W_SEQUENCE,
        )
        for place, array in zip(places, arrays, strict=True):
            self._words[place] = array.ctypes.data
        self._words[w.W_POSITION] = 0 if table.page_position is None else table.page_position.ctypes.data
        self._words[w.W_REQUESTS], self._words[w.W_ROWS] = table.requests, table.rows
        self._words[w.W_PAGE_TOKENS], self._words[w.W_OVERLAPPING] = table.page_tokens, table.overlapping
        self.table = table

    def plan(
        self, qo_indptr: NDArray[np.int32], table: BlockSparse, split_tokens: int | bool | None = None, into: PlanBuffer | None = None
    ) -> Plan:
        """`qo_indptr` int32 [requests + 1]. `split_tokens`: None balances, n cuts at multiples of n, False does not split.

        Raises ConfigError for lengths that do not fit the table, PlanCapacityError for a step that is too large.
        """
        buffer = into or self.buffer
        if buffer.capacity != self.capacity:
            raise ConfigError("`into` is a buffer of another Attention: take one from attention.buffer()")
        if qo_indptr.dtype != np.int32:
            raise TypeError(f"qo_indptr is {qo_indptr.dtype}; index arrays are int32: convert it with .astype(np.int32)")
        if table is not self.table:
            self._bind_table(table)
        if qo_indptr.shape != (len(table.sequence_tokens) + 1,) or not qo_indptr.flags.c_contiguous:
            raise ConfigError(f"qo_indptr has shape {qo_indptr.shape}; {table.requests} requests need a contiguous [{table.requests + 1}]")
        words = self._words
        words[w.W_SPLIT] = _split_mode(split_tokens)
        words[w.W_QO_INDPTR] = qo_indptr.__array_interface__["data"][0]
        words[w.W_BUFFER] = buffer.address
        self._run()
        tokens = int(words[w.W_KV_TOKENS])
        predicted_s = self.law.call_s + float(self._floats[w.W_PREDICTED_S])
        generation = int(buffer.words[H_GENERATION])
        bytes_, flops = tokens * sum(self.row_bytes), 2 * int(words[w.W_PAIRS]) * self.law.head_dims
        return Plan(
            buffer, generation, int(buffer.words[H_TOKENS]), table.page_tokens, bytes_, flops, predicted_s, predicted_s * self.law.p95_ratio
        )

    def _run(self) -> None:
        words = self._words
        while True:
            status = self._compiled.plan(self._box, self._box + 8, self._address)
            if status:
                raise RuntimeError(f"the planner failed with status {status}; this is a bug")
            result = int(words[w.PARAMETER_WORDS])
            if result == 0:
                return
            if result == 1:
                which = w.CAPACITIES[int(words[w.W_WHICH]) - 1]
                raise PlanCapacityError(which, int(words[w.W_NEEDED]), getattr(self.capacity, which))
            if result == 3:
                raise ConfigError("qo_indptr must start at 0 and never fall: it holds the bounds of each request's query tokens")
            self._scratch = np.zeros(int(words[w.W_NEEDED]), np.uint8)
            words[w.W_SCRATCH], words[w.W_SCRATCH_BYTES] = self._scratch.ctypes.data, len(self._scratch)


def _split_mode(split_tokens: int | bool | None) -> int:
    if split_tokens is None:
        return 0
    if split_tokens is False:
        return -1
    if split_tokens is True or split_tokens <= 0 or split_tokens % SLOT_ALIGN:
        raise ConfigError(f"split_tokens={split_tokens!r} must be None, False or a positive multiple of {SLOT_ALIGN}")
    return int(split_tokens)
