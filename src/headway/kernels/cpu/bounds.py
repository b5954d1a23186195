"""WeightBounds: cheap upper bounds of the weights exp(scale*(logit - peak)) of a row, for draws by rejection (engine/sampling.py)."""

from dataclasses import dataclass

from headway.kernels.cpu.emit import F32, Kit, Value

ONE_BITS = 127 << 23  # float32 1.0, that is the exponent's bias


@dataclass(frozen=True, slots=True)
class WeightBounds:
    """Bounds of float32[rows * columns] logits and their sums over ids equal modulo `columns`, rows in order.

    The float32 whose bits are max(0, (logit - peak) * factor + 127*2^23), factor = scale*log2(e)*2^23, lies between 2^y and 1.0615 * 2^y for
    the exponent y it stands for (Schraudolph 1999). Call: (logits, parameters float32[2] = peak, factor; bounds, sums float32[columns]).
    """

    columns: int
    rows: int

    arguments = 4

    @property
    def symbol(self) -> str:
        return f"hw_weight_bounds_{self.columns}x{self.rows}"

    def emit(self, k: Kit, logits: Value, parameters: Value, bounds: Value, sums: Value) -> None:
        b = k.b
        peak, factor = (k.splat(k.load(parameters, F32, offset)) for offset in (0, 4))
        vectors = k.i64(self.columns // k.lanes)

        def clear(i: Value, _: list[Value]) -> list[Value]:
            k.store(k.vf(0.0), k.index(sums, i, 4 * k.lanes))
            return []

        def row(r: Value, _: list[Value]) -> list[Value]:
            logits_row, bounds_row = k.index(logits, r, 4 * self.columns), k.index(bounds, r, 4 * self.columns)

            def column(i: Value, _: list[Value]) -> list[Value]:
                x = k.load(k.index(logits_row, i, 4 * k.lanes), k.f)
                exponent = b.fadd(b.fmul(b.fsub(x, peak), factor), k.vf(float(ONE_BITS)))
                bits = b.fptosi(k.maximum(exponent, k.vf(0.0)), k.i)
                k.store(bits, k.index(bounds_row, i, 4 * k.lanes))
                at = k.index(sums, i, 4 * k.lanes)
                k.store(b.fadd(k.load(at, k.f), b.bitcast(bits, k.f)), at)
                return []

            k.loop(vectors, [], column)
            return []

        k.loop(vectors, [], clear)
        k.loop(k.i64(self.rows), [], row)
