"""The loops over a plan: threads take items by an atomic cursor, then merges of what was split. Nothing is allocated, nobody is waited for.

Two kernels, so that a team has one barrier between them. They know no shape: kernels of items, finish and merge are called by address.
"""

from collections.abc import Callable
from dataclasses import dataclass

from headway.kernels.cpu import item_layout as at
from headway.kernels.cpu import plan_layout as plan
from headway.kernels.cpu.attention_state import array
from headway.kernels.cpu.emit import I32, I64, Kit, Value


def _word(k: Kit, run: Value, word: int) -> Value:
    return k.load(run, I64, 8 * word, 8)


def _each(k: Kit, cursor: Value, count: Value, body: Callable[[Value], None]) -> None:
    """body(i) for every i below `count` that this thread takes from the cursor."""
    b = k.b

    def take(_: list[Value]) -> tuple[list[Value], Value]:
        i = b.atomic_rmw("add", b.inttoptr(cursor, I64.as_pointer()), k.i64(1), "seq_cst")
        more = b.icmp_signed("<", i, count)
        k.when(more, lambda: body(i))
        return [], more

    k.do_while([], take)


@dataclass(frozen=True, slots=True)
class AttentionItems:
    """All items of a plan that this thread gets. Call: (run block, chunk of the team's cursor, thread)."""

    arguments = 3
    symbol = "hw_attention_items"

    def emit(self, k: Kit, run: Value, chunk: Value, thread: Value) -> None:
        b, plan_at = k.b, _word(k, run, at.RUN_PLAN)
        group = b.zext(k.load(plan_at, I32, 4 * plan.H_GROUP), I64)
        count = b.zext(k.load(plan_at, I32, 4 * plan.H_ITEMS), I64)
        frame = b.add(_word(k, run, at.RUN_SCRATCH), b.mul(thread, _word(k, run, at.RUN_SCRATCH_BYTES)))
        states = k.at(frame, 8 * at.FRAME_WORDS)
        state_bytes = _word(k, run, at.RUN_STATE_BYTES)

        def put(word: int, value: Value) -> None:
            k.store(value, frame, 8 * word, 8)

        def of(number: int, i: Value) -> Value:
            return b.sext(k.load(k.index(array(k, plan_at, number), i, 4), I32), I64)

        put(at.F_STATES, states)
        put(at.F_SCRATCH, b.add(states, _word(k, run, at.RUN_STATES_BYTES)))
        token_arrays = (plan.A_TOKEN_POSITION, plan.A_TOKEN_REQUEST, plan.A_TOKEN_ROW)
        for word, number in zip((at.F_TOKEN_POSITION, at.F_TOKEN_REQUEST, at.F_TOKEN_ROW), token_arrays, strict=True):
            put(word, array(k, plan_at, number))

        def item(i: Value) -> None:
            n = of(plan.A_ORDER, i)
            head, token, tokens = of(plan.A_ITEM_HEAD, n), of(plan.A_ITEM_TOKEN, n), of(plan.A_ITEM_TOKENS, n)
            first_page = of(plan.A_ROW_PAGE, of(plan.A_ITEM_ROW, n))
            put(at.F_TOKEN, token)
            put(at.F_TOKENS, tokens)
            put(at.F_KV_HEAD, head)
            put(at.F_PAGES, k.index(array(k, plan_at, plan.A_PAGE), first_page, 4))
            put(at.F_PAGE_POSITIONS, k.index(array(k, plan_at, plan.A_PAGE_POSITION), first_page, 4))
            first_range = of(plan.A_ITEM_RANGE, n)
            range_arrays = (plan.A_RANGE_START, plan.A_RANGE_END, plan.A_RANGE_KIND)
            for word, number in zip((at.F_RANGE_START, at.F_RANGE_END, at.F_RANGE_KIND), range_arrays, strict=True):
                put(word, k.index(array(k, plan_at, number), first_range, 4))
            put(at.F_N_RANGES, of(plan.A_ITEM_RANGES, n))
            rows = b.mul(tokens, group)
            many = b.icmp_signed(">", rows, _word(k, run, at.RUN_FEW_ROWS))
            k.call(b.select(many, _word(k, run, at.RUN_MANY), _word(k, run, at.RUN_FEW)), [run, frame])
            slot = of(plan.A_ITEM_SLOT, n)
            whole = b.icmp_signed("<", slot, k.i64(0))
            first_head = b.mul(head, group)

            def finish(r: Value, _: list[Value]) -> list[Value]:
                t = b.udiv(r, group)
                h = b.add(first_head, b.sub(r, b.mul(t, group)))
                k.call(_word(k, run, at.RUN_FINISH), [run, b.add(states, b.mul(r, state_bytes)), b.add(token, t), h])
                return []

            def keep() -> None:
                n_bytes = b.mul(rows, state_bytes)
                to = b.add(_word(k, run, at.RUN_PARTIALS), b.mul(b.mul(slot, group), state_bytes))

                def copy(j: Value, _: list[Value]) -> list[Value]:
                    k.store(k.load(k.index(states, j, 4 * k.lanes), k.f), k.index(to, j, 4 * k.lanes))
                    return []

                k.loop(b.udiv(n_bytes, k.i64(4 * k.lanes)), [], copy)

            k.when(whole, lambda: discard(k.loop(rows, [], finish)))
            k.when(b.not_(whole), keep)

        _each(k, k.at(run, 8 * at.RUN_ITEM_CURSOR), count, item)


@dataclass(frozen=True, slots=True)
class AttentionMerges:
    """All merges of a plan that this thread gets, parts in the plan's (ascending) order. Call: (run block, chunk, thread)."""

    arguments = 3
    symbol = "hw_attention_merges"

    def emit(self, k: Kit, run: Value, chunk: Value, thread: Value) -> None:
        b, plan_at = k.b, _word(k, run, at.RUN_PLAN)
        group = b.zext(k.load(plan_at, I32, 4 * plan.H_GROUP), I64)
        count = b.zext(k.load(plan_at, I32, 4 * plan.H_MERGES), I64)
        state_bytes = _word(k, run, at.RUN_STATE_BYTES)
        partials = _word(k, run, at.RUN_PARTIALS)

        def of(number: int, i: Value) -> Value:
            return b.sext(k.load(k.index(array(k, plan_at, number), i, 4), I32), I64)

        def merge(i: Value) -> None:
            token, first_head = of(plan.A_MERGE_TOKEN, i), b.mul(of(plan.A_MERGE_HEAD, i), group)
            first, end = of(plan.A_MERGE_INDPTR, i), of(plan.A_MERGE_INDPTR, k.at(i, 1))

            def part(p: Value, g: Value) -> Value:
                return b.add(partials, b.mul(b.add(b.mul(of(plan.A_MERGE_PART, p), group), g), state_bytes))

            def row(g: Value, _: list[Value]) -> list[Value]:
                state = part(first, g)

                def fold(p: Value, _: list[Value]) -> list[Value]:
                    k.call(_word(k, run, at.RUN_MERGE), [state, part(b.add(k.at(first, 1), p), g)])
                    return []

                later = b.sub(b.sub(end, first), k.i64(1))
                k.when(b.icmp_signed(">", later, k.i64(0)), lambda: discard(k.loop(later, [], fold)))
                k.call(_word(k, run, at.RUN_FINISH), [run, state, token, b.add(first_head, g)])
                return []

            k.loop(group, [], row)

        _each(k, k.at(run, 8 * at.RUN_MERGE_CURSOR), count, merge)


def discard(_: object) -> None:
    """For a callback whose result is not wanted."""
