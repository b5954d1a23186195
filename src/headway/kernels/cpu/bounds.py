"""Draws by rejection without sorting or exponentials of the vocabulary: upper bounds of all weights, and proposals from them.

A weight is exp(scale*(logit - peak)). Its bound is the float32 whose bits are max(0, (logit - peak)*factor + 127*2^23) for factor =
scale*log2(e)*2^23: a straight line over each power of two, at most 6.15 % above (Schraudolph 1999). engine/sampling.py accepts or rejects.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from headway.kernels.cpu.emit import F32, F64, I32, I64, Kit, Value

ONE_BITS = 127 << 23  # float32 1.0, that is the exponent's bias


@dataclass(frozen=True, slots=True)
class WeightBounds:
    """Sums of the bounds of float32[rows * columns] logits over ids equal modulo `columns`, rows in order.

    The bounds themselves are not kept: writing them costs more than the sums. Call: (logits, parameters float32[2] = peak, factor; sums).
    """

    columns: int
    rows: int

    arguments = 3

    @property
    def symbol(self) -> str:
        return f"hw_weight_bounds_{self.columns}x{self.rows}"

    def emit(self, k: Kit, logits: Value, parameters: Value, sums: Value) -> None:
        b = k.b
        peak, factor = (k.splat(k.load(parameters, F32, offset)) for offset in (0, 4))
        vectors = k.i64(self.columns // k.lanes)

        def clear(i: Value, _: list[Value]) -> list[Value]:
            k.store(k.vf(0.0), k.index(sums, i, 4 * k.lanes))
            return []

        def row(r: Value, _: list[Value]) -> list[Value]:
            logits_row = k.index(logits, r, 4 * self.columns)

            def column(i: Value, _: list[Value]) -> list[Value]:
                x = k.load(k.index(logits_row, i, 4 * k.lanes), k.f)
                bound = _bound(k, x, peak, factor, k.vf(float(ONE_BITS)), k.vf(0.0), k.i)
                at = k.index(sums, i, 4 * k.lanes)
                k.store(b.fadd(k.load(at, k.f), bound), at)
                return []

            k.loop(vectors, [], column)
            return []

        k.loop(vectors, [], clear)
        k.loop(k.i64(self.rows), [], row)


@dataclass(frozen=True, slots=True)
class Propose:
    """An id drawn from the bounds with two running sums in float64: first its column, then its place in the column.

    Call: (numbers float64[6], logits float32[vocab], parameters as above, sums). numbers[0] = u in [0, 1) goes in; numbers[1:] come out:
    the id (int64), its bound, the column's sum as proposed, the column's sum in float64, the sum of all columns.
    """

    columns: int
    vocab: int

    arguments = 4

    @property
    def symbol(self) -> str:
        return f"hw_propose_{self.columns}_{self.vocab}"

    def emit(self, k: Kit, numbers: Value, logits: Value, parameters: Value, sums: Value) -> None:
        b = k.b
        peak, factor = (k.load(parameters, F32, offset) for offset in (0, 4))
        total = _total(k, k.i64(self.columns), lambda i: k.load(k.index(sums, i, 4), F32))
        target = b.fmul(k.load(numbers, F64, 0, 8), total)
        column, start = _search(k, k.i64(self.columns), target, lambda i: k.load(k.index(sums, i, 4), F32))
        proposed = b.fsub(b.fadd(start, b.fpext(k.load(k.index(sums, column, 4), F32), F64)), start)
        rows, rest = divmod(self.vocab, self.columns)
        members = b.add(k.i64(rows), b.zext(b.icmp_signed("<", column, k.i64(rest)), I64))
        first = k.index(logits, column, 4)

        def member(i: Value) -> Value:
            x = k.load(k.index(first, i, 4 * self.columns), F32)
            return _bound(k, x, peak, factor, ir.Constant(F32, float(ONE_BITS)), ir.Constant(F32, 0.0), I32)

        mass = _total(k, members, member)
        inside, _ = _search(k, members, b.fmul(b.fdiv(b.fsub(target, start), proposed), mass), member)
        k.store(b.add(column, b.mul(inside, k.i64(self.columns))), numbers, 8, 8)
        for offset, value in ((16, b.fpext(member(inside), F64)), (24, proposed), (32, mass), (40, total)):
            k.store(value, numbers, offset, 8)


def _bound(k: Kit, x: Value, peak: Value, factor: Value, one: Value, zero: Value, integers: Any) -> Value:
    """Of one logit or a vector of them; the same roundings for both."""
    exponent = k.b.fadd(k.b.fmul(k.b.fsub(x, peak), factor), one)
    return k.b.bitcast(k.b.fptosi(k.maximum(exponent, zero), integers), x.type)


def _total(k: Kit, count: Value, value: Callable[[Value], Value]) -> Value:
    """Sum of `count` >= 1 float32 values in float64, in order."""
    return k.loop(count, [ir.Constant(F64, 0.0)], lambda i, sums: [k.b.fadd(sums[0], k.b.fpext(value(i), F64))])[0]


def _search(k: Kit, count: Value, target: Value, value: Callable[[Value], Value]) -> tuple[Value, Value]:
    """How many running sums of the values are at most `target`, at most `count` - 1; and the last such sum."""
    b, zero = k.b, ir.Constant(F64, 0.0)
    last = b.sub(count, k.i64(1))

    def step(i: Value, state: list[Value]) -> list[Value]:
        running, passed, below = state
        running = b.fadd(running, b.fpext(value(i), F64))
        found = b.and_(b.fcmp_ordered("<=", running, target), b.icmp_signed("<", i, last))
        return [running, b.add(passed, b.zext(found, I64)), b.select(found, running, below)]

    _, passed, below = k.loop(count, [zero, k.i64(0), zero], step)
    return passed, below
