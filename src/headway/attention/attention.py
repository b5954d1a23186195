"""Attention: one head geometry and variant, compiled once; `plan` decides a step, `run` executes it for every layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headway.attention.block_sparse import BlockSparse
from headway.attention.kv import KINDS, PagedKV, as_array, encode, to_float32
from headway.attention.plan import Plan, PlanBuffer, PlanCapacity, StalePlanError
from headway.attention.planner import LARGE_TILE_ROWS, Planner, default_capacity
from headway.attention.price import AttentionLaw, assumed, largest_within, stored, stored_path
from headway.attention.reference import reference
from headway.attention.variant import Mask, Variant
from headway.core.errors import ConfigError

if TYPE_CHECKING:
    from headway.attention.cpu import CpuAttention, KvAddresses
    from headway.kernels.cpu.team import Team

BACKENDS = ("auto", "cpu", "reference")
Array = NDArray[Any]


class Attention:
    """`heads` query heads over `kv_heads`, rows of `head_dim_qk` (keys) and `head_dim_vo` (values, default the same).

    `q_dtype`: of queries and outputs, f32 | f16 | bf16. `kv_dtype`: f32 | f16 | bf16 | int8. `layout`: "rows" (NHD, HND) or "packed".
    `variant`, `mask`: default plain softmax over everything; `mask` is added to the variant's own. `max_requests` counts table rows.
    `workers`: threads a plan is balanced for; `run(team=...)` may use fewer. `law`: prices plans; by default what `headway attention
    calibrate` left, else an assumed one.
    Not re-entrant: one `plan` or `run` at a time.
    """

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int | None = None,
        *,
        q_dtype: str = "f32",
        kv_dtype: str = "f32",
        layout: str = "rows",
        variant: Variant | None = None,
        mask: Mask | None = None,
        sm_scale: float | None = None,
        max_requests: int = 64,
        max_q_tokens: int = 4096,
        max_pages: int = 16384,
        page_tokens: int = 16,
        workers: int = 1,
        backend: str = "auto",
        law: AttentionLaw | None = None,
        capacity: PlanCapacity | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise ConfigError(f"backend={backend!r} is not one of {', '.join(BACKENDS)}")
        if kv_heads < 1 or heads < 1 or heads % kv_heads:
            raise ConfigError(f"{heads} query heads do not divide evenly over {kv_heads} kv heads")
        if q_dtype not in ("f32", "f16", "bf16") or kv_dtype not in KINDS:
            raise ConfigError(f"q_dtype={q_dtype!r}, kv_dtype={kv_dtype!r}: q is f32, f16 or bf16, kv one of {', '.join(KINDS)}")
        self.heads, self.kv_heads, self.head_dim_qk, self.head_dim_vo = heads, kv_heads, head_dim_qk, head_dim_vo or head_dim_qk
        self.q_dtype, self.kv_dtype, self.layout, self.workers = q_dtype, kv_dtype, layout, workers
        self.variant = variant or Variant()
        if mask is not None:
            self.variant = self.variant.with_mask(mask)
        self.sm_scale = 1.0 / math.sqrt(head_dim_qk) if sm_scale is None else sm_scale
        self.backend = "cpu" if backend == "auto" else backend
        group, kv_bytes = heads // kv_heads, KINDS[kv_dtype].itemsize
        self.capacity = capacity or default_capacity(kv_heads, group, max_requests, max_q_tokens, max_pages, page_tokens, workers)
        path = stored_path(group, head_dim_qk, self.head_dim_vo, q_dtype, kv_dtype, layout == "packed")
        self.law = law or stored(path) or assumed(group, head_dim_qk, self.head_dim_vo, kv_bytes)
        scale_bytes = 4 if kv_dtype == "int8" else 0
        row_bytes = (head_dim_qk * kv_bytes + scale_bytes, self.head_dim_vo * kv_bytes + scale_bytes)
        self._planner = Planner(heads, kv_heads, row_bytes, self.variant.hooks.get("mask"), self.law, self.capacity, workers)
        self._mask_names = {name for name, _, _ in self.variant.hooks["mask"].captured} if "mask" in self.variant.hooks else set()
        self._planned: dict[str, Any] = {}
        self._bound: dict[str, Any] | None = None
        self._sources: dict[int, tuple[Array, BlockSparse]] = {}
        self.cpu: CpuAttention | None = None
        self._kv: tuple[PagedKV, KvAddresses] | None = None
        if self.backend == "cpu":
            self.cpu = self._compile()

    def _compile(self) -> "CpuAttention":
        from headway.attention.cpu import CpuAttention, HeadGeometry

        layout: Any = self.layout
        geometry = HeadGeometry(
            self.heads, self.kv_heads, self.head_dim_qk, self.head_dim_vo, self.q_dtype, self.kv_dtype, self.q_dtype, layout
        )
        return CpuAttention(
            geometry, self.variant, tile_rows=LARGE_TILE_ROWS, partial_rows=self.capacity.partial_rows, threads=self.workers
        )

    # ---- plan
    def buffer(self) -> PlanBuffer:
        """Another buffer for `plan(into=...)`: plans in different buffers live side by side."""
        return PlanBuffer(self.capacity)

    def plan(
        self,
        qo_indptr: Sequence[int] | Array,
        table: BlockSparse,
        split_tokens: int | bool | None = None,
        *,
        captured: Mapping[str, Any] | None = None,
        into: PlanBuffer | None = None,
    ) -> Plan:
        """Decide a step: query rows qo_indptr[b]..qo_indptr[b+1]-1 belong to request b and are its sequence's last tokens.

        `split_tokens`: None balances over the workers; n (a multiple of 16) cuts keys at multiples of n, which makes a request's bits
        independent of batch and workers; False does not split. `captured`: values the *mask* reads, where they are not its defaults;
        what is missing here is evaluated at run. Raises PlanCapacityError, ConfigError, TypeError (index arrays that are not int32).
        """
        indptr = qo_indptr if isinstance(qo_indptr, np.ndarray) else np.asarray(qo_indptr, np.int32)
        if self._mask_names and (captured is not None or not self._planned):
            self._bind_mask(captured or {})
        plan = self._planner.plan(indptr, table, split_tokens, into)
        if self.backend == "reference":
            self._sources[plan.buffer.address] = indptr.copy(), table
        return plan

    def _bind_mask(self, captured: Mapping[str, Any]) -> None:
        known = {n: v for n, v in {**self.variant.defaults, **captured}.items() if n in self._mask_names}
        assert self._planner.code is not None  # there is a mask
        self._planner.code.bind(known)
        self._planned = known

    # ---- run
    def run(
        self,
        plan: Plan,
        q: Any,
        kv: PagedKV,
        out: Any = None,
        lse: Any = None,
        captured: Mapping[str, Any] | None = None,
        team: "Team | None" = None,
    ) -> tuple[Array, Array | None]:
        """(o [tokens, heads, D_vo] in q's type, lse float32 [tokens, heads], natural log; None where the variant has no softmax).

        q [tokens, heads, D_qk]: NumPy, or a torch CPU tensor, in place. With `out` and `lse` given nothing is allocated. Captured arrays
        are read in place; bf16 is uint16 bits. Raises StalePlanError for another shape than planned, VariantError for captured values.
        """
        x = as_array(q)
        self._check(x, kv)
        plan.check(len(x), kv.page_tokens, kv.pages)
        o = np.empty((len(x), self.heads, self.head_dim_vo), x.dtype) if out is None else as_array(out)
        if o.shape != (len(x), self.heads, self.head_dim_vo) or o.dtype != x.dtype or o.strides[-1] != o.itemsize:
            raise ConfigError(
                f"out is {o.dtype} {o.shape}; needed is {x.dtype} {(len(x), self.heads, self.head_dim_vo)}, last axis contiguous"
            )
        logs = None
        if self.variant.softmax:
            logs = np.empty(x.shape[:2], np.float32) if lse is None else as_array(lse)
            if logs.shape != x.shape[:2] or logs.dtype != np.float32:
                raise ConfigError(f"lse is {logs.dtype} {logs.shape}; needed is float32 {x.shape[:2]}")
        if self.cpu is None:
            self._run_reference(plan, x, kv, o, logs, captured)
            return o, logs
        self._bind(captured or {})
        x0, x1, o0, o1 = *x.strides[:2], *o.strides[:2]
        where = (0, 0, 0) if logs is None else (logs.__array_interface__["data"][0], *logs.strides)
        place = x.__array_interface__["data"][0], o.__array_interface__["data"][0]
        self.cpu.run(plan.address, (place[0], x0, x1), self._addresses(kv), (place[1], o0, o1), where, team)
        return o, logs

    def _check(self, q: Array, kv: PagedKV) -> None:
        if q.ndim != 3 or q.shape[1:] != (self.heads, self.head_dim_qk) or q.dtype != KINDS[self.q_dtype] or q.strides[2] != q.itemsize:
            raise ConfigError(
                f"q is {q.dtype} {q.shape}; this attention takes {self.q_dtype} [tokens, {self.heads}, {self.head_dim_qk}], "
                f"last axis contiguous"
            )
        mine = (self.kv_heads, self.head_dim_qk, self.head_dim_vo, self.kv_dtype, self.layout)
        theirs = (kv.kv_heads, kv.head_dim_qk, kv.head_dim_vo, kv.dtype, "packed" if kv.layout == "packed" else "rows")
        if mine != theirs:
            raise ConfigError(f"kv (heads, D_qk, D_vo, dtype, layout) is {theirs}; this attention takes {mine}")

    def _bind(self, captured: Mapping[str, Any]) -> None:
        """New captured values reach the kernels only when one is another object: a decode loop binds once."""
        bound = self._bound
        if bound is not None and len(bound) == len(captured) and all(captured.get(n) is v for n, v in bound.items()):
            return
        values = self.variant.values(captured)
        for name in self._mask_names & set(self._planned):
            if not np.array_equal(values[name], np.asarray(self._planned[name], values[name].dtype)):
                raise StalePlanError(
                    f"captured {name!r} shapes the mask and differs from the plan's: give it to plan(..., captured=...) too"
                )
        assert self.cpu is not None
        self.cpu.bind(values, self.sm_scale)
        self._bound = dict(captured)

    def _addresses(self, kv: PagedKV) -> "KvAddresses":
        if self._kv is not None and self._kv[0] is kv:
            return self._kv[1]
        from headway.attention.cpu import KvAddresses, Strided

        scales = []
        for scale in (kv.k_scale, kv.v_scale):
            scales.append(None if scale is None else Strided(int(scale.ctypes.data), *scale.strides))
        addresses = KvAddresses(
            Strided(kv.k_address, *kv.k_strides), Strided(kv.v_address, *kv.v_strides), kv.page_tokens, scales[0], scales[1]
        )
        self._kv = kv, addresses
        return addresses

    def _run_reference(self, plan: Plan, q: Array, kv: PagedKV, o: Array, lse: Array | None, captured: Mapping[str, Any] | None) -> None:
        indptr, table = self._sources[plan.buffer.address]
        x = to_float32(q, self.q_dtype).astype(np.float64)
        exact, logs = reference(x, kv, indptr, table, self.variant, captured, sm_scale=self.sm_scale)
        o[...] = encode(exact.astype(np.float32), self.q_dtype)
        if lse is not None:
            lse[...] = logs

    # ---- price
    def with_run_bytes(self, run_bytes: float) -> None:
        """Price further plans for keys in contiguous runs of this many bytes (`PagedKV.run_bytes`), where the law was measured for it."""
        self._planner.set_law(replace(self.law, token_s=self.law.token_at(run_bytes)))

    def fit_chunk(
        self, budget_s: float, decode_table: BlockSparse | None, prefill_kv_tokens: int, *, cap: int = 4096, step: int = 8
    ) -> int:
        """Largest prefill chunk whose mixed step is predicted within `budget_s` at the law's 95 %: a multiple of `step`, or `cap`; else 0.

        The step is one query token for each row of `decode_table` and a chunk over `prefill_kv_tokens` cached tokens and itself.
        """
        buffer, page = self.buffer(), decode_table.page_tokens if decode_table else 16

        def seconds(chunk: int) -> float:
            lengths = [prefill_kv_tokens + chunk] if decode_table is None else [*decode_table.row_kv_tokens, prefill_kv_tokens + chunk]
            n_pages = [-(-int(n) // page) for n in lengths]
            indptr = np.concatenate([[0], np.cumsum(n_pages)]).astype(np.int32)
            table = BlockSparse.from_lengths(indptr, np.zeros(indptr[-1], np.int32), np.asarray(lengths, np.int32), page)
            qo = np.concatenate([np.arange(len(lengths)), [len(lengths) - 1 + chunk]]).astype(np.int32)
            return self._planner.plan(qo, table, None, buffer).predicted_p95_s

        try:
            return largest_within(budget_s, min(cap, self.capacity.tokens - (decode_table.rows if decode_table else 0)), step, seconds)
        finally:
            self._planner.table = None  # its arrays are gone
