"""States of attention rows: merged in ascending order of their keys, and turned into an output row and its log-sum-exp.

The idea of states and their merge is FlashInfer's (arXiv 2501.01005). A row that saw no key has output 0 and log-sum-exp -inf.
"""

from dataclasses import dataclass

from headway.kernels.cpu import item_layout as at
from headway.kernels.cpu import plan_layout as plan
from headway.kernels.cpu.emit import I32, I64, LOG2E, Kit, Value
from headway.kernels.cpu.item_blocks import NUMBER_BYTES
from headway.kernels.cpu.item_hooks import PLAIN, Hooks, apply
from headway.kernels.cpu.item_softmax import NO_SCORE


@dataclass(frozen=True, slots=True)
class AttentionMerge:
    """Merge a later state of a row into an earlier one (item.state_bytes). Call: (state, later)."""

    value_dims: int
    softmax: bool = True

    arguments = 2

    @property
    def symbol(self) -> str:
        return f"hw_attention_merge_{self.value_dims}_{int(self.softmax)}"

    def emit(self, k: Kit, state: Value, later: Value) -> None:
        b, top_at = k.b, 4 * self.value_dims
        m, n = k.load(state, k.f, top_at), k.load(later, k.f, top_at)
        top = k.maximum(m, n)
        x, y = k.exp2(b.fsub(m, top)), k.exp2(b.fsub(n, top))

        def add(offset: int) -> None:
            mine, other = k.load(state, k.f, offset), k.load(later, k.f, offset)
            k.store(k.fma(other, y, b.fmul(mine, x)) if self.softmax else b.fadd(mine, other), state, offset)

        for j in range(self.value_dims // k.lanes):
            add(4 * k.lanes * j)
        add(top_at + 4 * k.lanes)
        k.store(top, state, top_at)


@dataclass(frozen=True, slots=True)
class AttentionFinish:
    """Output and log-sum-exp of one row. Call: (run block, state, token, head).

    A sink is a key without value: d += exp(sink - m). Without an output hook the output is o/d, times RUN_OUT_SCALE in both cases.
    """

    out_dtype: str
    value_dims: int
    hooks: Hooks = PLAIN

    arguments = 4

    @property
    def symbol(self) -> str:
        return f"hw_attention_finish_{self.out_dtype}_{self.value_dims}_{self.hooks.name}"

    def emit(self, k: Kit, run: Value, state: Value, token: Value, head: Value) -> None:
        b, hooks = k.b, self.hooks
        top = k.load(state, k.f, 4 * self.value_dims)
        total = k.splat(k.sum_f32(k.load(state, k.f, 4 * self.value_dims + 4 * k.lanes)))
        factor = k.vf(1.0)
        if hooks.sink:
            sink = b.fmul(k.splat_f32(k.index(k.load(run, I64, 8 * at.RUN_SINK, 8), head, 4)), k.vf(LOG2E))
            before, top = top, k.maximum(top, sink)
            factor = k.exp2(b.fsub(before, top))
            weight = b.select(b.fcmp_ordered(">", sink, k.vf(NO_SCORE)), k.exp2(b.fsub(sink, top)), k.vf(0.0))
            total = k.fma(total, factor, weight)
        some = b.fcmp_ordered(">", total, k.vf(0.0))
        scale = k.splat_f32(run, 8 * at.RUN_OUT_SCALE)
        inverse = b.select(some, b.fdiv(k.vf(1.0), total), k.vf(0.0)) if hooks.softmax else k.vf(1.0)
        out, token_bytes, head_bytes = (k.load(run, I64, 8 * (at.RUN_OUT + i), 8) for i in range(3))
        to = b.add(b.add(out, b.mul(token, token_bytes)), b.mul(head, head_bytes))
        size = NUMBER_BYTES[self.out_dtype]
        inputs: dict[str, Value] = {}
        captured = k.load(run, I64, 8 * at.RUN_CAPTURED, 8)
        if hooks.output is not None:
            plan_at = k.load(run, I64, 8 * at.RUN_PLAN, 8)
            request, row = (k.load(k.index(array(k, plan_at, a), token, 4), I32) for a in (plan.A_TOKEN_REQUEST, plan.A_TOKEN_ROW))
            natural = b.fmul(top, k.vf(1 / LOG2E))
            inputs = {"m": natural, "d": total, "b": request, "row": row, "h": b.trunc(head, I32)}
        for j in range(self.value_dims // k.lanes):
            o = b.fmul(k.load(state, k.f, 4 * k.lanes * j), factor)
            o = b.fmul(o, inverse) if hooks.output is None else apply(k, hooks.output, inputs | {"o": o}, captured)
            o = b.fmul(o, scale)
            if self.out_dtype == "f32":
                k.store(o, to, size * k.lanes * j)
            else:
                k.store(k.to_16bit(self.out_dtype, o), to, size * k.lanes * j, 2)
        if hooks.softmax:
            self._store_lse(k, run, token, head, top, total)

    def _store_lse(self, k: Kit, run: Value, token: Value, head: Value, top: Value, total: Value) -> None:
        b = k.b
        lse, token_bytes, head_bytes = (k.load(run, I64, 8 * (at.RUN_LSE + i), 8) for i in range(3))
        value = b.fmul(b.fadd(top, k.log2(total)), k.vf(1 / LOG2E))
        value = b.select(b.fcmp_ordered(">", total, k.vf(0.0)), value, k.vf(float("-inf")))

        def store() -> None:
            to = b.add(b.add(lse, b.mul(token, token_bytes)), b.mul(head, head_bytes))
            k.store(b.extract_element(value, I32(0)), to)

        k.when(b.icmp_signed("!=", lse, k.i64(0)), store)


def array(k: Kit, plan_at: Value, number: int) -> Value:
    """Address of an array of a plan."""
    offset = k.b.zext(k.load(plan_at, I32, 4 * (plan.OFFSETS + number)), I64)
    return k.b.add(plan_at, k.b.mul(offset, k.i64(4)))
