"""Hooks, masks and the online softmax of one block of 64 keys, row by row.

A masked score is -inf in scratch; the running maximum starts at the lowest finite number, so that (-inf) - (-inf) never happens and a
weight is zero exactly where its score is -inf. The output is rescaled by the factor left in scratch when values are added.
"""

from typing import TYPE_CHECKING

from headway.kernels.cpu import item_layout as at
from headway.kernels.cpu import plan_layout as plan
from headway.kernels.cpu.emit import I32, LOG2E, Kit, Value
from headway.kernels.cpu.item_hooks import apply
from headway.kernels.cpu.item_walk import KEY_SCALES, POSITIONS, VALUE_SCALES

if TYPE_CHECKING:
    from headway.kernels.cpu.item import ItemEmission

NO_SCORE = -3.4028234663852886e38
MASKED = float("-inf")


def softmax_rows(k: Kit, e: "ItemEmission", table: Value, low: Value, high: Value, kind: Value) -> None:
    """Scores of all rows of an item become weights; maxima, denominators and factors move on."""
    b, item = k.b, e.item
    hooks = item.hooks
    size = 4 * (item.value_dims + 2 * k.lanes)
    vectors = at.BLOCK_TOKENS // k.lanes
    cut = b.icmp_signed("<", b.sub(high, low), k.i64(at.BLOCK_TOKENS))
    partial = b.icmp_signed("!=", kind, k.i64(plan.FULL))
    low32, high32 = k.splat(b.trunc(low, I32)), k.splat(b.trunc(high, I32))
    scaled = item.kv_dtype == "int8"

    def place(r: Value) -> dict[str, Value]:
        token, head = e.token_and_head(r)
        q, request, row = (k.load(k.index(words, token, 4), I32) for words in (e.token_position, e.token_request, e.token_row))
        return {"b": request, "h": b.trunc(head, I32), "kv_head": b.trunc(e.head, I32), "q": q, "row": row}

    def edit(r: Value, scores: Value, masked: bool) -> None:
        """Key scales, score hook and range of every vector of a row; the mask too if `masked`."""
        row = place(r) if hooks.score is not None or masked else {}

        def of_vector(v: Value, _: list[Value]) -> list[Value]:
            where = k.index(scores, v, 4 * k.lanes)
            x = k.load(where, k.f)
            slot = k.lane_numbers(b.trunc(b.mul(v, k.i64(k.lanes)), I32))
            if scaled:
                x = b.fmul(x, k.load(k.index(table, v, 4 * k.lanes), k.f, KEY_SCALES))
            inputs = row | {"score": x}
            if row:
                inputs["kv"] = k.load(k.index(table, v, 4 * k.lanes), k.i, POSITIONS)
            if hooks.score is not None:
                x = apply(k, hooks.score, inputs, e.captured)
                if hooks.softmax:
                    x = b.fmul(x, k.vf(LOG2E))
            seen = b.and_(b.icmp_signed(">=", slot, low32), b.icmp_signed("<", slot, high32))
            if masked and hooks.mask is not None:
                seen = b.and_(seen, apply(k, hooks.mask, inputs, e.captured))
            k.store(b.select(seen, x, k.vf(MASKED if hooks.softmax else 0.0)), where)
            return []

        k.loop(k.i64(vectors), [], of_vector)

    def weigh(r: Value, scores: Value) -> None:
        state = k.at(k.index(e.states, r, size), 4 * item.value_dims)
        values = [k.load(scores, k.f, 4 * k.lanes * v) for v in range(vectors)]
        tops = values
        while len(tops) > 1:
            tops = [k.maximum(x, y) for x, y in zip(tops[::2], tops[1::2], strict=True)]
        before = k.load(state, k.f)
        after = k.maximum(k.all_max(tops[0]), before)
        factor = k.exp2(b.fsub(before, after))
        k.store(b.extract_element(factor, I32(0)), k.index(e.factors, r, 4))
        k.store(after, state)
        total = b.fmul(k.load(state, k.f, 4 * k.lanes), factor)

        def of_vectors(v: Value, totals: list[Value]) -> list[Value]:
            where = k.index(scores, v, 8 * k.lanes)
            out = []
            for i in range(2):
                x = k.load(where, k.f, 4 * k.lanes * i)
                weight = b.select(b.fcmp_unordered(">", x, k.vf(MASKED)), k.exp2(b.fsub(x, after)), k.vf(0.0))
                out.append(b.fadd(totals[i], weight))
                if scaled:
                    weight = b.fmul(weight, k.load(k.index(table, v, 8 * k.lanes), k.f, VALUE_SCALES + 4 * k.lanes * i))
                k.store(weight, where, 4 * k.lanes * i)
            return out

        totals = k.loop(k.i64(vectors // 2), [total, k.vf(0.0)], of_vectors)
        k.store(b.fadd(totals[0], totals[1]), state, 4 * k.lanes)

    def scale_values(scores: Value) -> None:
        for v in range(vectors):
            x = k.load(scores, k.f, 4 * k.lanes * v)
            k.store(b.fmul(x, k.load(table, k.f, VALUE_SCALES + 4 * k.lanes * v)), scores, 4 * k.lanes * v)

    def of_row(r: Value, _: list[Value]) -> list[Value]:
        scores = k.index(e.scores, r, 4 * at.BLOCK_TOKENS)
        if hooks.mask is not None:
            k.when(partial, lambda: edit(r, scores, True))
            rest = b.not_(partial)
        else:
            rest = ALWAYS
        if scaled or hooks.score is not None or not hooks.softmax:
            edit(r, scores, False) if rest is ALWAYS else k.when(rest, lambda: edit(r, scores, False))
        else:
            k.when(cut if rest is ALWAYS else b.and_(cut, rest), lambda: edit(r, scores, False))
        if hooks.softmax:
            weigh(r, scores)
        elif scaled:
            scale_values(scores)
        return []

    k.loop(e.rows, [], of_row)


ALWAYS = None
