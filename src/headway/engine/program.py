"""CpuProgram: a Llama model compiled at load into a flat list of operations over fixed buffers, executed by a Team.

One foreign call an iteration; inside it no Python, no allocation. Which kernel a row gets depends on its class and the model's accuracy
only, never on the rows beside it (docs/engine.md, "Rows and accuracy").
"""

import ctypes
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headway.attention.paged import HeadShape, PagedAttention
from headway.attention.pages import PagePool
from headway.core.errors import CapacityError, ConfigError
from headway.engine.step import Batch, DrawKernels, Float32
from headway.engine.weights import Matrix, PackedWeights
from headway.kernels.cpu import layout as at
from headway.kernels.cpu.bounds import Propose, WeightBounds
from headway.kernels.cpu.compile import Kernel
from headway.kernels.cpu.isa import Isa
from headway.kernels.cpu.memory import Arena, address
from headway.kernels.cpu.objects import Linked, ObjectCache, Progress
from headway.kernels.cpu.probe import ReadBytes
from headway.kernels.cpu.products import QUANTISED, UNIT_ROWS, Epilogue, Product, activation_bytes, tile_rows
from headway.kernels.cpu.rows import PrepareRow
from headway.kernels.cpu.team import Team

Accuracy = Literal["exact", "fast"]
KvDtype = Literal["f16", "bf16"]
MODE_KV: dict[Accuracy, KvDtype] = {"exact": "f16", "fast": "bf16"}
CHUNK_BYTES = 48 << 10  # weights of one chunk of a product: about 5 us of reading, 20-50 us of prefill work
FUSED_ROWS = 4  # up to here every thread prepares activations for itself instead of meeting at one more barrier
READ_CHUNK_BYTES = 128 << 10


@dataclass(frozen=True, slots=True)
class Limits:
    """Fixed sizes of a program. `pages` of `page_tokens` tokens; rows, segments and sampled rows of one iteration."""

    pages: int
    page_tokens: int = 16
    context_tokens: int = 8192
    max_rows: int = 512
    max_segments: int = 128
    max_sampled_rows: int = 64

    def __post_init__(self) -> None:
        if self.page_tokens % at.PAGE_TOKENS or self.page_tokens <= 0:
            raise ConfigError(f"page_tokens={self.page_tokens}: must be a multiple of {at.PAGE_TOKENS}")
        for name in ("pages", "context_tokens", "max_rows", "max_segments", "max_sampled_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")


@dataclass(slots=True)
class _Plan:
    """Operations while they are collected: int64 words with kernels still by name."""

    records: list[NDArray[np.int64]] = field(default_factory=list)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    patches: list[tuple[int, int, str]] = field(default_factory=list)  # operation, word, kernel symbol

    def add(self, code: int, words: dict[int, int], kernels: dict[int, Kernel]) -> int:
        record = np.zeros(at.OP_WORDS, np.int64)
        record[at.OP_CODE] = code
        for word, value in words.items():
            record[word] = value
        for word, kernel in kernels.items():
            self.kernels[kernel.symbol] = kernel
            self.patches.append((len(self.records), word, kernel.symbol))
        self.records.append(record)
        return len(self.records) - 1


class CpuProgram:
    """`StepProgram` (step.py) of one model on one Team. `profile_us` says where the caller's thread spent an iteration."""

    def __init__(
        self,
        weights: PackedWeights,
        team: Team,
        cache: ObjectCache,
        limits: Limits,
        *,
        accuracy: Accuracy = "fast",
        kv_dtype: KvDtype | None = None,
        rope_factors: NDArray[np.float32] | None = None,
        progress: Progress | None = None,
    ) -> None:
        c = weights.config
        self.weights, self.team, self.limits = weights, team, limits
        self.accuracy, self.kv_dtype = accuracy, kv_dtype or MODE_KV[accuracy]
        self.isa = cache.isa
        self.vocab, self.context_tokens = c.vocab, limits.context_tokens
        self.page_tokens, self.pages = limits.page_tokens, limits.pages
        self.max_rows, self.max_segments, self.max_sampled_rows = limits.max_rows, limits.max_segments, limits.max_sampled_rows
        first = weights.layers[0]
        self._qkv_bytes = 4 * sum(m.padded for m in first.qkv)
        shape = HeadShape(c.heads, c.kv_heads, c.head_dim, c.rope_dim, c.rope_pairs)
        self._attention = PagedAttention(shape, self.isa, self.kv_dtype, self._qkv_bytes)
        self.pool = PagePool(c.layers, c.kv_heads, c.head_dim, limits.pages, limits.page_tokens)
        self._buffers(rope_factors)
        plan = _Plan()
        self._compile(plan)
        self._read = plan.add(at.OP_READ, {}, {at.L_KERNEL: ReadBytes()})
        plan.add(at.OP_EMPTY, {}, {})
        draw = _draw_kernels(c.vocab, self.isa)
        objects = cache.kernels([*plan.kernels.values(), *(draw or ())], progress, team.n_threads)
        self._linked = Linked(list(objects.values()))
        self.draw_kernels: DrawKernels | None = _DrawKernels(draw, self._linked) if draw else None
        self._install(plan)

    # ---- memory
    def _buffers(self, rope_factors: NDArray[np.float32] | None) -> None:
        c, n, w = self.weights.config, self.limits, self.weights
        matrices = [m for layer in w.layers for m in (*layer.qkv, layer.output, layer.gate_up, layer.down)] + [w.head]
        self._act2 = max(activation_bytes(m.kind, m.inputs, 2) for m in matrices)
        self._act1 = max(activation_bytes(m.kind, m.inputs, 1) for m in matrices)
        self._logits_bytes = 4 * w.head.padded
        states_at = _up(self._attention.scratch_bytes)
        prepare_at = states_at + _up(self._attention.tile_states_bytes)
        scratch = prepare_at + _up(FUSED_ROWS * self._act2)
        partials, partial_bytes = self._attention.partials(n.max_segments, n.context_tokens)
        items = n.max_rows // at.TILE_TOKENS + n.max_segments * (n.context_tokens // at.SPLIT_TOKENS + 2)
        rows = n.max_rows + 8
        self._arena = Arena(
            rows * (4 * c.width + self._qkv_bytes + 4 * padded(c.heads * c.head_dim) + 4 * c.ffn_width + self._act2 + self._act1 + 16)
            + n.max_sampled_rows * (self._logits_bytes + self._act2 + 4)
            + self.team.n_threads * scratch
            + n.context_tokens * 8 * c.rope_dim
            + partials * (partial_bytes + 8)
            + items * 4 * at.ITEM_WORDS
            + (c.layers * 16 + 16) * (8 * at.OP_WORDS + at.CONTROL_BYTES)
            + (1 << 20)
        )
        take = self._arena.take
        self._x = take(rows * 4 * c.width, align=4096)
        self._qkv = take(rows * self._qkv_bytes, align=4096)
        self._attended = take(rows * 4 * padded(c.heads * c.head_dim), align=4096)
        self._hidden = take(rows * 4 * c.ffn_width, align=4096)
        self._generated_act = take(max(rows, n.max_sampled_rows) * self._act2, align=4096)
        self._prompt_act = take(rows * self._act1, align=4096)
        full = take(n.max_sampled_rows * self._logits_bytes, np.float32, 4096).reshape(n.max_sampled_rows, -1)
        self.logits: Float32 = full[:, : c.vocab]
        self._full_logits = full
        self._partials = take(partials * partial_bytes, align=4096)
        self._counters = take(8 * partials, np.int64)
        self._row_segment = take(4 * rows, np.int32)
        self._items = take(items * 4 * at.ITEM_WORDS, np.int32)
        self._angles = self._angle_table(take(n.context_tokens * 8 * c.rope_dim, np.float32, 4096), rope_factors)
        self._profile = take(16 * 16, np.int64)
        self._scratch = take(self.team.n_threads * scratch, align=4096)
        block = take(8 * at.PROGRAM_WORDS, np.int64)
        for word, value in {
            at.P_SCRATCH: address(self._scratch),
            at.P_SCRATCH_BYTES: scratch,
            at.P_STATES_OFFSET: states_at,
            at.P_PREPARE_OFFSET: prepare_at,
            at.P_ROW_SEGMENT: address(self._row_segment),
            at.P_ITEMS: address(self._items),
            at.P_PAGES_PER_ENTRY: n.page_tokens // at.PAGE_TOKENS,
            at.P_PROFILE: address(self._profile),
            at.P_COUNTERS: address(self._counters),
            at.P_FUSED_ROWS: FUSED_ROWS,
        }.items():
            block[word] = value
        self._block = block

    def _angle_table(self, table: NDArray[np.float32], factors: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """[position][rope_dim cosines | rope_dim signed sines], one an element, in the order of the rotated pairs."""
        c = self.weights.config
        frequency = c.rope_base ** (-np.arange(0, c.rope_dim, 2) / c.rope_dim)
        if factors is not None:
            frequency = frequency / factors
        angle = np.arange(self.context_tokens)[:, None] * frequency
        cos, sin = np.cos(angle), np.sin(angle)
        out = table.reshape(self.context_tokens, 2 * c.rope_dim)
        if c.rope_pairs == "adjacent":
            out[:, : c.rope_dim] = np.repeat(cos, 2, 1)
            out[:, c.rope_dim :: 2], out[:, c.rope_dim + 1 :: 2] = -sin, sin
        else:
            out[:, : c.rope_dim] = np.concatenate([cos, cos], 1)
            out[:, c.rope_dim :] = np.concatenate([-sin, sin], 1)
        return out

    # ---- operations
    def _compile(self, plan: _Plan) -> None:
        c, w = self.weights.config, self.weights
        x, qkv, attended, hidden = (address(b) for b in (self._x, self._qkv, self._attended, self._hidden))
        x_bytes, attended_bytes = 4 * c.width, 4 * padded(c.heads * c.head_dim)
        plan.add(
            at.OP_EMBED,
            {
                at.E_KIND: at.EMBED_KINDS[w.embedding.kind],
                at.E_TABLE: w.embedding.address,
                at.E_STRIP_BYTES: w.embedding.n_bytes // (w.embedding.padded // 16),
                at.E_WIDTH: c.width,
                at.E_OUT: x,
            },
            {},
        )
        for i, layer in enumerate(w.layers):
            offsets = _offsets(layer.qkv)
            prepared: dict[bool, int] = {}
            out = qkv
            for m in layer.qkv:
                kind = m.kind in QUANTISED
                if kind not in prepared:
                    prepared[kind] = self._prepare(plan, m, x, x_bytes, layer.attention_norm)
                self._product(plan, m, prepared[kind], "store", out, self._qkv_bytes)
                out += 4 * m.padded
            plan.add(at.OP_ROTATE, *self._attention.append(self.pool, i, qkv, offsets, address(self._angles)))
            plan.add(at.OP_ATTEND, *self._attention.attend(self.pool, i, qkv, attended, attended_bytes, address(self._partials)))
            ready = self._prepare(plan, layer.output, attended, attended_bytes, None)
            self._product(plan, layer.output, ready, "add", x, x_bytes)
            ready = self._prepare(plan, layer.gate_up, x, x_bytes, layer.ffn_norm)
            self._product(plan, layer.gate_up, ready, "silu", hidden, 4 * c.ffn_width)
            ready = self._prepare(plan, layer.down, hidden, 4 * c.ffn_width, None)
            self._product(plan, layer.down, ready, "add", x, x_bytes)
        ready = self._prepare(plan, w.head, x, x_bytes, w.output_norm, sampled_only=True)
        self._product(plan, w.head, ready, "store", address(self._full_logits), self._logits_bytes)

    def _prepare(
        self, plan: _Plan, m: Matrix, source: int, source_bytes: int, norm: NDArray[np.float32] | None, sampled_only: bool = False
    ) -> int:
        """Activation rows of product `m`; the operation's number."""
        quantised = m.kind in QUANTISED
        eps = self.weights.config.norm_eps

        def kernel(planes: int) -> PrepareRow:
            return PrepareRow(m.inputs, norm is not None, eps, planes)

        words = {
            at.R_SOURCE: source,
            at.R_SOURCE_BYTES: source_bytes,
            at.R_NORM: 0 if norm is None else address(norm),
            at.R_GENERATED_OUT: address(self._generated_act),
            at.R_GENERATED_BYTES: activation_bytes(m.kind, m.inputs, 2),
            at.R_PROMPT_OUT: address(self._prompt_act),
            at.R_PROMPT_BYTES: activation_bytes(m.kind, m.inputs, 1),
            at.R_SAMPLED_ONLY: int(sampled_only),
        }
        kernels: dict[int, Kernel] = {at.R_GENERATED: kernel(2 if quantised else 0)}
        if self._two_classes(m) and not sampled_only:
            kernels[at.R_PROMPT] = kernel(1)
        return plan.add(at.OP_PREPARE, words, kernels)

    def _two_classes(self, m: Matrix) -> bool:
        return self.accuracy == "fast" and m.kind in QUANTISED

    def _product(self, plan: _Plan, m: Matrix, prepare: int, epilogue: Epilogue, out: int, out_bytes: int) -> None:
        units = m.padded // UNIT_ROWS
        unit_bytes = m.n_bytes // units
        chunk_units = max(1, CHUNK_BYTES // unit_bytes)
        chunk_units = max(1, min(chunk_units, units // (4 * self.team.n_threads)))
        last_chunk = (units - 1) // chunk_units * chunk_units
        words = {
            at.M_WEIGHTS: m.address,
            at.M_UNIT_BYTES: unit_bytes,
            at.M_UNITS: units,
            at.M_CHUNK_UNITS: chunk_units,
            at.M_OUT: out,
            at.M_OUT_BYTES: out_bytes,
            at.M_OUT_UNIT_BYTES: 64 if epilogue == "silu" else 128,
            at.M_PREPARE: prepare,
            at.M_NEXT: m.address,  # until the next product is known (_install)
            at.M_NEXT_BACK: m.address + last_chunk * unit_bytes,
        }
        kernels: dict[int, Kernel] = {}
        classes = [(at.M_GENERATED, 2, True)] + ([(at.M_PROMPT, 1, False)] if self._two_classes(m) else [])
        for base, planes, ahead in classes:
            sizes = tile_rows(self.isa, planes)
            for i in range(at.M_TILES):
                rows = sizes[min(i, len(sizes) - 1)]
                words[base + 2 * i] = rows
                kernels[base + 2 * i + 1] = Product(m.kind, m.inputs, rows, planes, epilogue, ahead)
        plan.add(at.OP_PRODUCT, words, kernels)

    def _install(self, plan: _Plan) -> None:
        """Copy the records to where the compiled loop reads them, with addresses for names and each product told what follows it."""
        for op, word, symbol in plan.patches:
            plan.records[op][word] = self._linked.address(symbol)
        products = [r for r in plan.records if r[at.OP_CODE] == at.OP_PRODUCT]
        starts = [(r[at.M_NEXT], r[at.M_NEXT_BACK]) for r in products]
        for r, (front, back) in zip(products, starts[1:] + starts[:1], strict=True):
            r[at.M_NEXT], r[at.M_NEXT_BACK] = front, back
        n = len(plan.records)
        self._ops = self._arena.take(8 * at.OP_WORDS * n, np.int64).reshape(n, at.OP_WORDS)
        self._ops[:] = plan.records
        self._controls = self._arena.take(at.CONTROL_BYTES * n, np.int64, 128)
        self._block[at.P_OPS] = address(self._ops)
        self._block[at.P_N_OPS] = n - 2  # the last two are the probes
        self._block[at.P_CONTROLS] = address(self._controls)
        self._probe = self._arena.take(8 * at.PROGRAM_WORDS, np.int64)
        self._probe[:] = self._block
        self._probe[at.P_N_OPS], self._probe[at.P_SEGMENTS] = 1, 0
        self._probe[at.P_CONTROLS] = address(self._arena.take(at.CONTROL_BYTES, np.int64, 128))

    # ---- running
    def execute(self, batch: Batch) -> None:
        """One iteration. Raises CapacityError when the batch exceeds the limits; the arrays must stay alive and unchanged meanwhile."""
        rows, segments, sampled = len(batch.token_ids), len(batch.segment_rows), len(batch.sampled_rows)
        for name, needed, capacity in (
            ("rows", rows, self.max_rows),
            ("segments", segments, self.max_segments),
            ("sampled rows", sampled, self.max_sampled_rows),
        ):
            if needed > capacity:
                raise CapacityError(f"an iteration of {needed} {name} exceeds this program's {capacity}", needed=needed, capacity=capacity)
        if rows == 0:
            return
        b = self._block
        b[at.P_ROWS], b[at.P_SEGMENTS], b[at.P_SAMPLED] = rows, segments, sampled
        b[at.P_GENERATED_ROWS] = batch.generated_rows
        b[at.P_TOKEN_IDS] = batch.token_ids.ctypes.data
        b[at.P_POSITIONS] = batch.positions.ctypes.data
        b[at.P_SEGMENT_FIRST] = batch.segment_first_row.ctypes.data
        b[at.P_SEGMENT_ROWS] = batch.segment_rows.ctypes.data
        b[at.P_SEGMENT_TABLE] = batch.segment_table.ctypes.data
        b[at.P_TABLES] = batch.block_tables.ctypes.data
        b[at.P_TABLE_BYTES] = batch.block_tables.strides[0]
        b[at.P_SAMPLED_ROWS] = batch.sampled_rows.ctypes.data
        self.team.run(b.ctypes.data)

    def copy_page(self, source: int, target: int) -> None:
        self.pool.copy_page(source, target)

    def close(self) -> None:
        """Nothing to give back by hand: memory goes with the object. The team belongs to the caller."""

    # ---- measuring
    def _run_probe(self, op: int, words: dict[int, int]) -> None:
        """One operation through a program block of its own: a thread still late for a probe must never see half of the model's block."""
        self._ops[op, list(words)] = list(words.values())
        self._probe[at.P_OPS] = address(self._ops[op:])
        self.team.run(address(self._probe))

    def read_weights(self) -> int:
        """Read every weight byte once with plain loads, on all threads; returns the bytes. Timed by the caller this is the read limit."""
        layers = self.weights.layers
        first = layers[0].qkv[0].address
        chunks = (self.weights.head.address + self.weights.head.n_bytes - first) // READ_CHUNK_BYTES
        self._run_probe(self._read, {at.L_ADDRESS: first, at.L_BYTES: READ_CHUNK_BYTES, at.OP_CHUNKS: chunks})
        return chunks * READ_CHUNK_BYTES

    def meet(self) -> None:
        """One empty operation that every thread must reach: a barrier, plus the cost of a call."""
        self._run_probe(self._read + 1, {at.OP_CHUNKS: self.team.n_threads})

    def profile_us(self, reset: bool = True) -> dict[str, tuple[float, float]]:
        """{operation: (microseconds working, microseconds waiting)} of the caller's thread since the last reset."""
        table = self._profile[: 2 * len(at.OP_NAMES)].reshape(-1, 2) * (1e6 / self.team.tsc_hz)
        found = {name: (float(a), float(b)) for name, (a, b) in zip(at.OP_NAMES, table, strict=True) if a}
        if reset:
            self._profile[:] = 0
        return found


class _DrawKernels:
    """step.DrawKernels by address; keeps the code it calls."""

    def __init__(self, kernels: tuple[WeightBounds, Propose], linked: Linked) -> None:
        self._linked = linked
        self.weight_bounds, self.propose = (
            ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * kernel.arguments)(linked.address(kernel.symbol)) for kernel in kernels
        )


def _draw_kernels(vocab: int, isa: Isa) -> tuple[WeightBounds, Propose] | None:
    """None for toy vocabularies of no whole vector."""
    columns = min(at.SAMPLING_COLUMNS, vocab)
    return None if columns % isa.lanes else (WeightBounds(columns, vocab // columns), Propose(columns, vocab))


def _up(n_bytes: int) -> int:
    return -(-n_bytes // 4096) * 4096


def padded(n: int) -> int:
    return -(-n // UNIT_ROWS) * UNIT_ROWS


def _offsets(qkv: tuple[Matrix, ...]) -> tuple[int, int]:
    """Byte offsets of keys and values in a row of the qkv buffer."""
    if len(qkv) == 1:
        q, k, _ = qkv[0].outputs
        return 4 * q, 4 * (q + k)
    return 4 * qkv[0].padded, 4 * (qkv[0].padded + qkv[1].padded)
