"""Attention microkernels over packed pages: one block of up to 64 tokens for a few query rows, and the fold of partial states.

A softmax block is 64 tokens at absolute multiples of 64, masked and never shortened, with one update of the running maximum; the state of a
row restarts at absolute multiples of SPLIT_TOKENS and partial states are merged as a left fold in ascending order, in decode and prefill
alike. So a row's result depends on its own position and keys only. Scores are in the log2 domain: queries come
scaled by sm_scale*log2(e). Math is float32 whatever the KV dtype. The idea of states and their merge is FlashInfer's (arXiv 2501.01005).

State of a row (float32): maximum [lanes] | denominator [lanes], to be summed | output [head_dim].
"""

from dataclasses import dataclass

from llvmlite import ir

from headway.kernels.cpu.emit import F32, I32, I64, Kit, Value
from headway.kernels.cpu.isa import Isa
from headway.kernels.cpu.layout import BLOCK_TOKENS, PAGE_TOKENS
from headway.kernels.cpu.rows import KV_BYTES, page_bytes

NO_SCORE = -1e30  # finite, so that (-inf) - (-inf) never happens


def state_bytes(isa: Isa, head_dim: int) -> int:
    return 4 * (2 * isa.lanes + head_dim)


def rows_at_once(isa: Isa) -> int:
    """Query rows of one kernel: their accumulators for 16 tokens, two key vectors and a broadcast must fit the registers."""
    return 6 if isa.lanes == 8 else 12


@dataclass(frozen=True, slots=True)
class Attend:
    """One block for `tokens` consecutive tokens x `heads` query heads of one kv head.

    Call: (queries, table of page addresses int64[4], pages, states, limit, scratch). `limit` is the last visible token of the block for
    token 0 (token t: limit + t), `pages` those up to the last token's, 1..4. Queries: token stride `token_bytes`, heads adjacent.
    Scratch: `scratch_bytes(isa, rows)`.
    """

    head_dim: int
    tokens: int
    heads: int
    token_bytes: int
    kv_dtype: str

    arguments = 6

    @property
    def symbol(self) -> str:
        return f"hw_attend_{self.head_dim}_{self.tokens}x{self.heads}_{self.token_bytes}_{self.kv_dtype}"

    def emit(self, k: Kit, queries: Value, table: Value, pages: Value, states: Value, limit: Value, scratch: Value) -> None:
        rows = [(t, h) for t in range(self.tokens) for h in range(self.heads)]
        self._scores(k, rows, queries, table, pages, scratch)
        factors = self._softmax(k, rows, states, limit, scratch)
        self._values(k, rows, table, pages, states, limit, scratch, factors)

    def _page(self, k: Kit, table: Value, i: Value) -> Value:
        return k.load(k.index(table, i, 8), I64, 0, 8)

    def _scores(self, k: Kit, rows: list[tuple[int, int]], queries: Value, table: Value, pages: Value, scratch: Value) -> None:
        offsets = [t * self.token_bytes + 4 * self.head_dim * h for t, h in rows]
        vectors = PAGE_TOKENS // k.lanes

        def of_page(i: Value, _: list[Value]) -> list[Value]:
            page = self._page(k, table, i)

            def over_dims(d: Value, sums: list[Value]) -> list[Value]:
                keys = k.index(page, d, KV_BYTES * PAGE_TOKENS)
                q = k.index(queries, d, 4)
                ks = [k.load_float(self.kv_dtype, keys, KV_BYTES * k.lanes * v) for v in range(vectors)]
                out = []
                for r, offset in enumerate(offsets):
                    qs = k.splat_f32(q, offset)
                    out += [k.fma(qs, ks[v], sums[r * vectors + v]) for v in range(vectors)]
                return out

            sums = k.loop(k.i64(self.head_dim), [k.vf(0.0)] * (len(rows) * vectors), over_dims)
            at = k.index(scratch, i, 4 * PAGE_TOKENS)
            for r in range(len(rows)):
                for v in range(vectors):
                    k.store(sums[r * vectors + v], at, 4 * BLOCK_TOKENS * r + 4 * k.lanes * v)
            return []

        k.loop(pages, [], of_page)

    def _softmax(self, k: Kit, rows: list[tuple[int, int]], states: Value, limit: Value, scratch: Value) -> Value:
        """Scores in scratch become weights there; maxima and denominators move on. Returns where the factor of each row's output is."""
        b = k.b
        vectors = BLOCK_TOKENS // k.lanes
        factors = k.at(scratch, 4 * BLOCK_TOKENS * len(rows))
        size = state_bytes(k.isa, self.head_dim)
        lanes = [ir.Constant(k.i, list(range(k.lanes * v, k.lanes * (v + 1)))) for v in range(vectors)]
        for r, (t, _) in enumerate(rows):
            last = k.splat(b.trunc(k.at(limit, t), I32))
            at, state = k.at(scratch, 4 * BLOCK_TOKENS * r), k.at(states, size * r)
            seen = [b.icmp_signed("<=", lane, last) for lane in lanes]
            scores = [b.select(s, k.load(at, k.f, 4 * k.lanes * v), k.vf(NO_SCORE)) for v, s in enumerate(seen)]
            top = scores[0]
            for s in scores[1:]:
                top = k.maximum(top, s)
            before = k.load(state, k.f)
            after = k.maximum(before, k.splat(k.max_f32(top)))
            factor = k.exp2(b.fsub(before, after))
            denominator = b.fmul(k.load(state, k.f, 4 * k.lanes), factor)
            for v, (s, visible) in enumerate(zip(scores, seen, strict=True)):
                weight = b.select(visible, k.exp2(b.fsub(s, after)), k.vf(0.0))  # exp2 stops at 2**-126: mask to a true 0
                denominator = b.fadd(denominator, weight)
                k.store(weight, at, 4 * k.lanes * v)
            k.store(after, state)
            k.store(denominator, state, 4 * k.lanes)
            k.store(factor, factors, 4 * k.lanes * r)
        return factors

    def _values(
        self,
        k: Kit,
        rows: list[tuple[int, int]],
        table: Value,
        pages: Value,
        states: Value,
        limit: Value,
        scratch: Value,
        factors: Value,
    ) -> None:
        """Only slots up to the last token's position are read: the others hold what the page's last owner left, and 0*NaN is NaN."""
        visible = k.at(limit, self.tokens)
        vectors = 2 if k.lanes == 8 or self.head_dim % (2 * k.lanes) == 0 else 1
        if self.head_dim % (vectors * k.lanes):
            vectors = 1
        size = state_bytes(k.isa, self.head_dim)
        outputs = 8 * k.lanes

        def over_columns(c: Value, _: list[Value]) -> list[Value]:
            column = k.b.mul(c, k.i64(vectors * k.lanes))
            at = k.b.add(states, k.b.mul(column, k.i64(4)))
            start = []
            for r in range(len(rows)):
                factor = k.load(factors, k.f, 4 * k.lanes * r)
                start += [k.b.fmul(k.load(at, k.f, size * r + outputs + 4 * k.lanes * v), factor) for v in range(vectors)]

            def of_page(i: Value, sums: list[Value]) -> list[Value]:
                page = k.b.add(self._page(k, table, i), k.b.mul(column, k.i64(KV_BYTES)))
                weights = k.index(scratch, i, 4 * PAGE_TOKENS)

                def over_tokens(t: Value, sums: list[Value]) -> list[Value]:
                    row = k.index(page, t, KV_BYTES * self.head_dim)
                    w = k.index(weights, t, 4)
                    base = page_bytes(self.head_dim) // 2
                    vs = [k.load_float(self.kv_dtype, row, base + KV_BYTES * k.lanes * v) for v in range(vectors)]
                    out = []
                    for r in range(len(rows)):
                        p = k.splat_f32(w, 4 * BLOCK_TOKENS * r)
                        out += [k.fma(p, vs[v], sums[r * vectors + v]) for v in range(vectors)]
                    return out

                left = k.b.sub(visible, k.b.mul(i, k.i64(PAGE_TOKENS)))
                used = k.b.select(k.b.icmp_signed("<", left, k.i64(PAGE_TOKENS)), left, k.i64(PAGE_TOKENS))
                return k.loop(used, sums, over_tokens)

            sums = k.loop(pages, start, of_page)
            for r in range(len(rows)):
                for v in range(vectors):
                    k.store(sums[r * vectors + v], at, size * r + outputs + 4 * k.lanes * v)
            return []

        k.loop(k.i64(self.head_dim // (vectors * k.lanes)), [], over_columns)


def scratch_bytes(isa: Isa, rows: int) -> int:
    return rows * (4 * BLOCK_TOKENS + 4 * isa.lanes)


@dataclass(frozen=True, slots=True)
class ClearStates:
    """Empty states of `rows` rows. Call: (states, rows)."""

    head_dim: int

    arguments = 2

    @property
    def symbol(self) -> str:
        return f"hw_clear_states_{self.head_dim}"

    def emit(self, k: Kit, states: Value, rows: Value) -> None:
        size = state_bytes(k.isa, self.head_dim)

        def body(i: Value, _: list[Value]) -> list[Value]:
            at = k.index(states, i, size)
            k.store(k.vf(NO_SCORE), at)
            for offset in range(4 * k.lanes, size, 4 * k.lanes):
                k.store(k.vf(0.0), at, offset)
            return []

        k.loop(rows, [], body)


@dataclass(frozen=True, slots=True)
class FoldState:
    """Merge a later partial state of one row into an earlier one. Call: (state, later)."""

    head_dim: int

    arguments = 2

    @property
    def symbol(self) -> str:
        return f"hw_fold_state_{self.head_dim}"

    def emit(self, k: Kit, state: Value, later: Value) -> None:
        b = k.b
        m, n = k.load(state, k.f), k.load(later, k.f)
        top = k.maximum(m, n)
        x, y = k.exp2(b.fsub(m, top)), k.exp2(b.fsub(n, top))
        k.store(top, state)
        for offset in range(4 * k.lanes, state_bytes(k.isa, self.head_dim), 4 * k.lanes):
            k.store(k.fma(k.load(later, k.f, offset), y, b.fmul(k.load(state, k.f, offset), x)), state, offset)


@dataclass(frozen=True, slots=True)
class FinishState:
    """Normalised output of one row. Call: (state, out float32[head_dim])."""

    head_dim: int

    arguments = 2

    @property
    def symbol(self) -> str:
        return f"hw_finish_state_{self.head_dim}"

    def emit(self, k: Kit, state: Value, out: Value) -> None:
        inverse = k.splat(k.b.fdiv(ir.Constant(F32, 1.0), k.sum_f32(k.load(state, k.f, 4 * k.lanes))))
        for j in range(self.head_dim // k.lanes):
            k.store(k.b.fmul(k.load(state, k.f, 8 * k.lanes + 4 * k.lanes * j), inverse), out, 4 * k.lanes * j)
