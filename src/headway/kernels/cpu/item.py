"""AttentionItem: one work item of a plan, query tokens of one kv head against ascending ranges of its keys.

Row r is query token r/group, head r%group of the kv head, so that keys and values are read once a group. For every block of 64 keys:
addresses, scores (item_blocks), hooks and online softmax (item_softmax), values. Scores are in the log2 domain, math is float32. States
stay in memory for AttentionFinish, unnormalised, so that items of one tile can be merged.
"""

from dataclasses import dataclass
from typing import Literal

from headway.kernels.cpu import item_layout as at
from headway.kernels.cpu.emit import I32, I64, Kit, Value
from headway.kernels.cpu.isa import Isa
from headway.kernels.cpu.item_blocks import (
    NUMBER_BYTES,
    add_values,
    load_number,
    row_block,
    scores_from_pages,
    scores_from_rows,
)
from headway.kernels.cpu.item_hooks import PLAIN, Hooks, apply
from headway.kernels.cpu.item_softmax import NO_SCORE, softmax_rows
from headway.kernels.cpu.item_stage import element, partner_of, stage_keys, stage_values
from headway.kernels.cpu.item_walk import TABLE_BYTES, VALUES, Walk, pool, void

KvLayout = Literal["rows", "packed"]


def state_bytes(isa: Isa, dims: int) -> int:
    """State of a row, float32: output[dims] | maximum[lanes], all equal | denominator[lanes], to be summed."""
    return 4 * (dims + 2 * isa.lanes)


@dataclass(frozen=True, slots=True)
class AttentionItem:
    """Call: (run block, frame), item_layout's words.

    `rows`: query rows of the usual item. `many`: keys and values are converted (and keys transposed) once a block for all its rows, which
    pays from about 12 rows on. Dims are multiples of the ISA's lanes. `layout` "rows": each token's numbers are contiguous; "packed": keys
    [dims][16] and values [16][dims] a page of 16.
    """

    q_dtype: str
    kv_dtype: str
    dims: int
    value_dims: int
    group: int
    rows: int
    many: bool
    layout: KvLayout
    hooks: Hooks = PLAIN

    arguments = 2

    @property
    def symbol(self) -> str:
        kind = f"{self.layout}_{self.q_dtype}_{self.kv_dtype}_{self.dims}x{self.value_dims}_{self.group}_{self.rows}_{int(self.many)}"
        return f"hw_item_{kind}_{self.hooks.name}"

    def block_rows(self, isa: Isa) -> int:
        return row_block(isa, self.rows, self.many)

    def padded_rows(self, isa: Isa, rows: int) -> int:
        """Rows of memory that an item of `rows` rows needs: whole register blocks."""
        n = self.block_rows(isa)
        return -(-rows // n) * n

    @property
    def stages_keys(self) -> bool:
        return self.many or self.hooks.key is not None

    @property
    def stages_values(self) -> bool:
        return self.hooks.value is not None or (self.many and self.kv_dtype != "f32")

    def _offsets(self, isa: Isa, rows: int) -> tuple[int, int, int, int, int, int]:
        """Scratch: two address tables | queries | scores | factors | staged keys | staged values | (end)."""
        n = self.padded_rows(isa, rows)
        sizes = [
            2 * TABLE_BYTES,
            4 * n * self.dims,
            4 * n * at.BLOCK_TOKENS,
            -(-4 * n // 64) * 64,
            4 * at.BLOCK_TOKENS * self.dims if self.stages_keys else 0,
            4 * at.BLOCK_TOKENS * self.value_dims if self.stages_values else 0,
        ]
        ends = [sum(sizes[: i + 1]) for i in range(6)]
        return ends[0], ends[1], ends[2], ends[3], ends[4], ends[5]

    def scratch_bytes(self, isa: Isa, max_rows: int) -> int:
        return self._offsets(isa, max_rows)[5]

    def emit(self, k: Kit, run: Value, frame: Value) -> None:
        ItemEmission(self, k, run, frame).emit()


class ItemEmission:
    """One emission of an item: the values that its parts share."""

    def __init__(self, item: AttentionItem, k: Kit, run: Value, frame: Value) -> None:
        self.item, self.k, self.run = item, k, run
        b = k.b

        def of(word: int) -> Value:
            return k.load(frame, I64, 8 * word, 8)

        self.token, self.tokens, self.head = of(at.F_TOKEN), of(at.F_TOKENS), of(at.F_KV_HEAD)
        self.token_position, self.token_request, self.token_row = of(at.F_TOKEN_POSITION), of(at.F_TOKEN_REQUEST), of(at.F_TOKEN_ROW)
        self.ranges, self.n_ranges = [of(at.F_RANGE_START), of(at.F_RANGE_END), of(at.F_RANGE_KIND)], of(at.F_N_RANGES)
        self.states = of(at.F_STATES)
        self.rows = b.mul(self.tokens, k.i64(item.group))
        self.captured = k.load(run, I64, 8 * at.RUN_CAPTURED, 8)
        n = item.block_rows(k.isa)
        self.groups = b.udiv(b.add(self.rows, k.i64(n - 1)), k.i64(n))
        self.tables = of(at.F_SCRATCH)
        padded = b.mul(self.groups, k.i64(n))
        self.queries = k.at(self.tables, 2 * TABLE_BYTES)
        self.scores = b.add(self.queries, b.mul(padded, k.i64(4 * item.dims)))
        self.factors = b.add(self.scores, b.mul(padded, k.i64(4 * at.BLOCK_TOKENS)))
        line = b.and_(b.add(b.mul(padded, k.i64(4)), k.i64(63)), k.i64(-64))
        self.staged_keys = b.add(self.factors, line)
        self.staged_values = k.at(self.staged_keys, 4 * at.BLOCK_TOKENS * item.dims if item.stages_keys else 0)
        scales = item.kv_dtype == "int8"
        self.walk = Walk(
            pool(k, run, at.RUN_K, self.head),
            pool(k, run, at.RUN_V, self.head),
            (pool(k, run, at.RUN_KS, self.head), pool(k, run, at.RUN_VS, self.head)) if scales else None,
            k.load(run, I64, 8 * at.RUN_PAGE_TOKENS, 8),
            of(at.F_PAGES),
            of(at.F_PAGE_POSITIONS) if item.hooks.wants_positions else None,
            item.layout == "packed",
        )

    def emit(self) -> None:
        k = self.k
        self._prepare_rows()

        def of_range(i: Value, _: list[Value]) -> list[Value]:
            start, end, kind = (k.b.sext(k.load(k.index(words, i, 4), I32), I64) for words in self.ranges)
            k.when(k.b.icmp_signed("<", start, end), lambda: self._range(start, end, kind))
            return []

        k.when(k.b.icmp_signed(">", self.n_ranges, k.i64(0)), lambda: void(k.loop(self.n_ranges, [], of_range)))

    def token_and_head(self, row: Value) -> tuple[Value, Value]:
        """Query token (row of q) and query head of a row of this item."""
        b, group = self.k.b, self.k.i64(self.item.group)
        token = b.udiv(row, group)
        return b.add(self.token, token), b.add(b.mul(self.head, group), b.sub(row, b.mul(token, group)))

    def _prepare_rows(self) -> None:
        """Queries as scaled float32 rows in scratch, and empty states."""
        k, item = self.k, self.item
        b = k.b
        q, token_bytes, head_bytes = (k.load(self.run, I64, 8 * (at.RUN_Q + i), 8) for i in range(3))
        scale = k.splat_f32(self.run, 8 * at.RUN_QUERY_SCALE)
        size = NUMBER_BYTES[item.q_dtype]

        def of_row(r: Value, _: list[Value]) -> list[Value]:
            token, head = self.token_and_head(r)
            source = b.add(b.add(q, b.mul(token, token_bytes)), b.mul(head, head_bytes))
            to = k.index(self.queries, r, 4 * item.dims)
            position = k.load(k.index(self.token_position, token, 4), I32)

            def of_vector(j: Value, _: list[Value]) -> list[Value]:
                at_source = k.index(source, j, size * k.lanes)
                x = load_number(k, item.q_dtype, at_source)
                if item.hooks.query is not None:
                    first = b.mul(j, k.i64(k.lanes))
                    partner = partner_of(k, item.hooks, item.q_dtype, item.dims, source, first, x)
                    d = k.lane_numbers(b.trunc(first, I32))
                    inputs = element(k, item.dims, x, partner, d, position, b.trunc(head, I32))
                    x = apply(k, item.hooks.query, inputs, self.captured)
                k.store(b.fmul(x, scale), k.index(to, j, 4 * k.lanes))
                return []

            k.loop(k.i64(item.dims // k.lanes), [], of_vector)
            state = k.index(self.states, r, state_bytes(k.isa, item.value_dims))

            def clear(j: Value, _: list[Value]) -> list[Value]:
                k.store(k.vf(0.0), k.index(state, j, 4 * k.lanes))
                return []

            k.loop(k.i64(item.value_dims // k.lanes + 2), [], clear)
            k.store(k.vf(NO_SCORE), state, 4 * item.value_dims)
            return []

        k.loop(self.rows, [], of_row)

    def _range(self, start: Value, end: Value, kind: Value) -> None:
        k = self.k
        b = k.b
        size = k.i64(at.BLOCK_TOKENS)
        first = b.and_(start, k.i64(-at.BLOCK_TOKENS))
        count = b.udiv(b.add(b.sub(end, first), k.i64(at.BLOCK_TOKENS - 1)), size)

        def bounds(i: Value) -> tuple[Value, Value, Value]:
            block = b.add(first, b.mul(i, size))
            low, high = b.sub(start, block), b.sub(end, block)
            low = b.select(b.icmp_signed(">", low, k.i64(0)), low, k.i64(0))
            return block, low, b.select(b.icmp_signed("<", high, size), high, size)

        def table_of(i: Value) -> Value:
            return k.index(self.tables, b.and_(i, k.i64(1)), TABLE_BYTES)

        self.walk.fill(k, self.tables, *bounds(k.i64(0)))

        def of_block(i: Value, _: list[Value]) -> list[Value]:
            following = b.add(i, k.i64(1))
            more = b.icmp_signed("<", following, count)
            k.when(more, lambda: self.walk.fill(k, table_of(following), *bounds(following)))
            table = table_of(i)
            _, low, high = bounds(i)
            self._block(table, b.select(more, table_of(following), table), low, high, kind)
            return []

        k.loop(count, [], of_block)

    def _block(self, table: Value, ahead: Value, low: Value, high: Value, kind: Value) -> None:
        k, item = self.k, self.item
        b = k.b
        rows, dims = item.block_rows(k.isa), item.dims
        pages = b.udiv(b.add(high, k.i64(at.PAGE_TOKENS - 1)), k.i64(at.PAGE_TOKENS))
        if item.stages_keys:
            stage_keys(k, item, table, ahead, pages, self.staged_keys, self.head, self.captured)
            scores_from_pages(k, "f32", dims, rows, self.queries, self.groups, table, None, pages, self.scores)
        elif item.layout == "packed":
            scores_from_pages(k, item.kv_dtype, dims, rows, self.queries, self.groups, table, ahead, pages, self.scores)
        else:
            scores_from_rows(k, item.kv_dtype, dims, rows, self.queries, self.groups, table, ahead, high, self.scores)
        softmax_rows(k, self, table, low, high, kind)
        dtype = item.kv_dtype
        if item.stages_values:
            whole = b.and_(b.add(high, k.i64(7)), k.i64(-8))  # add_values takes up to 8 tokens at once
            stage_values(k, item, table, whole, self.staged_values, self.head, self.captured)
            dtype = "f32"

        def value_row(t: Value) -> Value:
            if item.stages_values:
                return k.index(self.staged_values, t, 4 * item.value_dims)
            return k.load(k.index(k.at(table, VALUES), t, 8), I64, 0, 8)

        add_values(
            k,
            dtype,
            item.value_dims,
            rows,
            self.scores,
            self.factors if item.hooks.softmax else None,
            self.groups,
            value_row,
            ahead,
            high,
            self.states,
            state_bytes(k.isa, item.value_dims),
        )
