"""MergeStates: attention states as users hold them, output and natural-log LSE, merged over disjoint sets of keys."""

from dataclasses import dataclass

from llvmlite import ir

from headway.kernels.cpu.emit import F32, I32, LOG2E, Kit, Value

EMPTY = -3.4028234663852886e38  # stands in for an LSE of -inf, so that (-inf) - (-inf) never happens


@dataclass(frozen=True, slots=True)
class MergeStates:
    """`state_count` states of each of `rows` rows into one, in ascending order. Call: (o, lse, out, out_lse, rows, states).

    o float32 [rows][states][dims], lse float32 [rows][states]; out may be o's and lse's memory when `states` is 1. Two passes: the largest
    LSE, then the weighted sum. A row whose states are all empty has output 0 and LSE -inf.
    """

    dims: int

    arguments = 6

    @property
    def symbol(self) -> str:
        return f"hw_merge_states_{self.dims}"

    def emit(self, k: Kit, o: Value, lse: Value, out: Value, out_lse: Value, rows: Value, states: Value) -> None:
        b = k.b
        columns = max(c for c in range(1, 5) if (self.dims // k.lanes) % c == 0)

        def of_row(r: Value, _: list[Value]) -> list[Value]:
            first = b.mul(r, states)
            logs = k.index(lse, first, 4)
            outputs = k.index(o, first, 4 * self.dims)
            empty = ir.Constant(F32, EMPTY)

            def top_of(s: Value, top: list[Value]) -> list[Value]:
                x = k.load(k.index(logs, s, 4), F32)
                return [b.select(b.fcmp_ordered(">", x, top[0]), x, top[0])]

            top = k.splat(k.loop(states, [empty], top_of)[0])

            def weight(s: Value) -> Value:
                x = k.splat_f32(k.index(logs, s, 4))
                some = b.fcmp_ordered(">", x, k.vf(EMPTY))
                return b.select(some, k.exp2(b.fmul(b.fsub(x, top), k.vf(LOG2E))), k.vf(0.0))

            total = k.loop(states, [k.vf(0.0)], lambda s, t: [b.fadd(t[0], weight(s))])[0]
            some = b.fcmp_ordered(">", total, k.vf(0.0))
            inverse = b.select(some, b.fdiv(k.vf(1.0), total), k.vf(0.0))

            def of_columns(c: Value, _: list[Value]) -> list[Value]:
                along = k.index(outputs, c, 4 * k.lanes * columns)

                def of_state(s: Value, sums: list[Value]) -> list[Value]:
                    w, at = weight(s), k.index(along, s, 4 * self.dims)
                    return [k.fma(w, k.load(at, k.f, 4 * k.lanes * v), x) for v, x in enumerate(sums)]

                to = k.index(k.index(out, r, 4 * self.dims), c, 4 * k.lanes * columns)
                for v, x in enumerate(k.loop(states, [k.vf(0.0)] * columns, of_state)):
                    k.store(b.fmul(x, inverse), to, 4 * k.lanes * v)
                return []

            k.loop(k.i64(self.dims // k.lanes // columns), [], of_columns)
            log = b.select(some, k.fma(k.log2(total), k.vf(1 / LOG2E), top), k.vf(float("-inf")))
            k.store(b.extract_element(log, I32(0)), k.index(out_lse, r, 4))
            return []

        k.loop(rows, [], of_row)
