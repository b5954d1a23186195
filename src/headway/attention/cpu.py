"""The "cpu" back end: a variant and a head shape compiled to kernels once; plans then run over addresses. `run` allocates nothing."""

import ctypes
import hashlib
import math
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.attention import print_llvm
from headway.attention.variant import Variant
from headway.core.errors import CapacityError, ConfigError
from headway.core.paths import kernels_dir
from headway.kernels.cpu import isa as isa_levels
from headway.kernels.cpu import item_layout as at
from headway.kernels.cpu import plan_layout
from headway.kernels.cpu.attention_loop import AttentionItems, AttentionMerges
from headway.kernels.cpu.attention_state import AttentionFinish, AttentionMerge
from headway.kernels.cpu.compile import Kernel
from headway.kernels.cpu.emit import LOG2E
from headway.kernels.cpu.isa import Isa
from headway.kernels.cpu.item import AttentionItem, KvLayout, state_bytes
from headway.kernels.cpu.item_hooks import PLAIN, Hooks
from headway.kernels.cpu.memory import Arena, address
from headway.kernels.cpu.objects import Linked, ObjectCache
from headway.kernels.cpu.team import Team
from headway.kernels.cpu.team_call import TeamCall

FEW_ROWS = 12  # measured: from here on, keys converted once for all rows pay (docs/attention.md)


@dataclass(frozen=True, slots=True)
class HeadGeometry:
    """Heads and number types of one attention. Dims are multiples of the ISA's lanes (8 or 16)."""

    heads: int
    kv_heads: int
    dims: int
    value_dims: int
    q_dtype: str = "f32"
    kv_dtype: str = "f32"
    out_dtype: str = "f32"
    layout: KvLayout = "rows"

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    def check(self, isa: Isa) -> None:
        """Raise ConfigError when no kernel exists for these numbers."""
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ConfigError(f"{self.heads} query heads do not divide evenly over {self.kv_heads} kv heads")
        for name, dims in (("head_dim_qk", self.dims), ("head_dim_vo", self.value_dims)):
            if dims < 16 or dims % isa.lanes:
                raise ConfigError(f"{name}={dims}: {isa.name} kernels need a multiple of {isa.lanes}, at least 16; pad the rows with zeros")


@dataclass(frozen=True, slots=True)
class Strided:
    """Byte address and strides of the elements (page, kv head, slot) of a pool of keys, values or scales."""

    address: int
    page_bytes: int
    head_bytes: int
    slot_bytes: int


@dataclass(frozen=True, slots=True)
class KvAddresses:
    """A pool as kernels see it. Packed layout: pages of 16, `keys.slot_bytes` is not used. Scales belong to int8 and are float32."""

    keys: Strided
    values: Strided
    page_tokens: int
    key_scales: Strided | None = None
    value_scales: Strided | None = None


@cache
def _printer_key() -> str:
    """Hash of what turns graphs into code, which the object cache's own key does not cover."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in ("print_llvm.py", "graph.py"))).hexdigest()


def hooks_of(variant: Variant | None) -> Hooks:
    """A variant as hooks of the kernels, named by a hash of its graphs."""
    if variant is None or (not variant.hooks and variant.softmax and not variant.sink):
        return PLAIN
    name = hashlib.sha256((variant.key + _printer_key()).encode()).hexdigest()[:20]
    printed: dict[str, Any] = print_llvm.hooks(variant.hooks, variant.captured)
    pairs: Any = variant.pairs
    return Hooks(name, **printed, softmax=variant.softmax, sink=variant.sink, pairs=pairs)


class CpuAttention:
    """Kernels of one variant and head geometry with their memory. Not re-entrant: one `run` at a time.

    `tile_rows`: most rows (query tokens times group) of an item. `partial_rows`: as in the plan's capacity (query tokens of split items).
    `threads`: the largest team that runs it.
    """

    def __init__(
        self,
        geometry: HeadGeometry,
        variant: Variant | None = None,
        *,
        tile_rows: int,
        partial_rows: int,
        threads: int = 1,
        isa: Isa | None = None,
        objects: ObjectCache | None = None,
        few_rows: int = FEW_ROWS,
    ) -> None:
        self.geometry, self.variant = geometry, variant
        self.isa = isa or isa_levels.select()
        geometry.check(self.isa)
        g, self.hooks = geometry, hooks_of(variant)
        if g.layout == "rows" and (self.hooks.key or self.hooks.query or self.hooks.value) and (g.dims // 2) % self.isa.lanes:
            raise ConfigError(f"head_dim {g.dims}: halves must be a multiple of {self.isa.lanes} for query, key and value hooks")
        self.tile_rows = max(tile_rows, g.group)
        items = [
            AttentionItem(g.q_dtype, g.kv_dtype, g.dims, g.value_dims, g.group, g.group, many, g.layout, self.hooks)
            for many in (False, True)
        ]
        finish, merge = AttentionFinish(g.out_dtype, g.value_dims, self.hooks), AttentionMerge(g.value_dims, self.hooks.softmax)
        loops = (AttentionItems(), AttentionMerges())
        self.kernels: tuple[Kernel, ...] = (*items, finish, merge, *loops)
        self.objects = objects or ObjectCache(kernels_dir(), self.isa)
        self._linked = Linked(list(self.objects.kernels(self.kernels).values()))
        states = max(item.padded_rows(self.isa, self.tile_rows) for item in items) * state_bytes(self.isa, g.value_dims)
        scratch = max(item.scratch_bytes(self.isa, self.tile_rows) for item in items)
        per_thread = -(-(8 * at.FRAME_WORDS + states + scratch) // 4096) * 4096 + 64
        partials = partial_rows * g.group * state_bytes(self.isa, g.value_dims)
        captured = print_llvm.ENTRY_BYTES * (len(variant.captured) if variant else 0)
        self._arena = Arena(8 * at.RUN_WORDS + partials + threads * per_thread + captured + 4096)
        run = self._arena.take(8 * at.RUN_WORDS, np.int64)
        self._run_at = address(run)
        self._words = (ctypes.c_int64 * at.RUN_WORDS).from_address(self._run_at)  # ctypes: an item costs a quarter of NumPy's
        self._captured = self._arena.take(captured + 32, np.int64)
        self.threads = threads
        self._checked = (0, 0)
        self._header: Any = None
        self._kv: KvAddresses | None = None
        entry = self._linked.address
        self._set(
            {
                at.RUN_FEW: entry(items[0].symbol),
                at.RUN_MANY: entry(items[1].symbol),
                at.RUN_FINISH: entry(finish.symbol),
                at.RUN_MERGE: entry(merge.symbol),
                at.RUN_FEW_ROWS: few_rows,
                at.RUN_PARTIALS: address(self._arena.take(max(partials, 64))),
                at.RUN_STATE_BYTES: state_bytes(self.isa, g.value_dims),
                at.RUN_SCRATCH: address(self._arena.take(threads * per_thread)),
                at.RUN_SCRATCH_BYTES: per_thread,
                at.RUN_STATES_BYTES: states,
                at.RUN_CAPTURED: address(self._captured),
            }
        )
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
        self._items, self._merges = (kind(entry(loop.symbol)) for loop in loops)
        self._call = TeamCall([entry(loop.symbol) for loop in loops], self._run_at)
        self._held: list[Any] = []

    def _set(self, words: dict[int, int]) -> None:
        for word, value in words.items():
            self._words[word] = value

    def bind(self, captured: dict[str, Any], sm_scale: float | None = None, v_scale: float = 1.0, k_scale: float = 1.0) -> None:
        """Set scales and captured values (Variant.values); arrays are read in place until the next `bind`."""
        scale = k_scale * (1.0 / math.sqrt(self.geometry.dims) if sm_scale is None else sm_scale)
        if self.hooks.score is None and self.hooks.softmax:
            scale *= LOG2E  # the softmax works in base 2; with a hook the factor comes after it
        self._set({at.RUN_QUERY_SCALE: _float_bits(scale), at.RUN_OUT_SCALE: _float_bits(v_scale)})
        if self.variant is None:
            return
        self._held = []
        for i, (name, dtype, rank) in enumerate(self.variant.captured):
            value, entry = captured[name], i * print_llvm.ENTRY_BYTES // 8
            if rank:
                array: NDArray[Any] = value
                self._held.append(array)
                self._captured[entry] = address(array)
                self._captured[entry + 1 : entry + 1 + rank] = array.shape
                if name == "sink":
                    if array.shape != (self.geometry.heads,):
                        raise ConfigError(
                            f"sink has shape {array.shape}: it is one logit for each of the {self.geometry.heads} query heads"
                        )
                    self._set({at.RUN_SINK: address(array)})
            else:
                self._captured[entry] = _float_bits(value) if dtype == "f32" else int(value)

    def run(
        self,
        plan: int,
        q: tuple[int, int, int],
        kv: KvAddresses,
        out: tuple[int, int, int],
        lse: tuple[int, int, int] = (0, 0, 0),
        team: Team | None = None,
    ) -> None:
        """Run a plan (address of its buffer). q, out, lse: (address, token bytes, head bytes); lse address 0: not wanted.

        Raises CapacityError when an item of the plan has more rows than this object has memory for.
        """
        self._check(plan)
        words = self._words
        words[at.RUN_PLAN] = plan
        words[at.RUN_Q], words[at.RUN_Q_TOKEN_BYTES], words[at.RUN_Q_HEAD_BYTES] = q
        words[at.RUN_OUT], words[at.RUN_OUT_TOKEN_BYTES], words[at.RUN_OUT_HEAD_BYTES] = out
        words[at.RUN_LSE], words[at.RUN_LSE_TOKEN_BYTES], words[at.RUN_LSE_HEAD_BYTES] = lse
        if kv is not self._kv:
            self._use(kv)
        words[at.RUN_ITEM_CURSOR] = 0
        words[at.RUN_MERGE_CURSOR] = 0
        if team is not None and team.n_threads > 1:
            if team.n_threads > self.threads:
                raise CapacityError(
                    f"a team of {team.n_threads} threads runs an attention built for {self.threads}: build it for as many workers",
                    needed=team.n_threads,
                    capacity=self.threads,
                )
            self._call.run(team)
            return
        self._items(self._run_at, 0, 0)
        if self._header[plan_layout.H_MERGES]:
            self._merges(self._run_at, 0, 0)

    def _use(self, kv: KvAddresses) -> None:
        self._words[at.RUN_PAGE_TOKENS] = kv.page_tokens
        pools = ((at.RUN_K, kv.keys), (at.RUN_V, kv.values), (at.RUN_KS, kv.key_scales), (at.RUN_VS, kv.value_scales))
        for word, pool in pools:
            if pool is not None:
                self._words[word : word + 4] = [pool.address, pool.page_bytes, pool.head_bytes, pool.slot_bytes]
        self._kv = kv

    def _check(self, plan: int) -> None:
        if plan != self._checked[0]:
            self._header = (ctypes.c_int32 * plan_layout.HEADER_WORDS).from_address(plan)
        words = self._header
        seen = (plan, words[plan_layout.H_GENERATION])
        if seen == self._checked:
            return
        items = words[plan_layout.H_ITEMS]
        if items:
            offset = words[plan_layout.OFFSETS + plan_layout.A_ITEM_TOKENS]
            rows = int(np.ctypeslib.as_array((ctypes.c_int32 * items).from_address(plan + 4 * offset)).max()) * self.geometry.group
            if rows > self.tile_rows:
                raise CapacityError(
                    f"an item of the plan has {rows} rows and this attention was built for {self.tile_rows}: plan with smaller tiles",
                    needed=rows,
                    capacity=self.tile_rows,
                )
        self._checked = seen


def _float_bits(value: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", float(value)))[0])
