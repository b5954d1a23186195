"""What a plan promises: every visible key once, masks turned into ranges soundly, merges in order, balance, and a price that adds up."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.attention import library
from headway.attention.block_sparse import BlockSparse
from headway.attention.intervals import Classifier
from headway.attention.plan import Plan
from headway.attention.planner import Planner, compiled, default_capacity
from headway.attention.price import AttentionLaw, AttentionPoint, assumed, fit, largest_within
from headway.attention.print_numpy import evaluate
from headway.attention.variant import Mask, Variant
from headway.core.errors import ConfigError
from headway.kernels.cpu import plan_layout as at

IDS = np.sort(np.random.default_rng(0).integers(0, 6, (4, 512)), 1).astype(np.int32)


@Mask
def crooked(q: Any, kv: Any, h: Any, b: Any) -> Any:
    return (abs(q - kv * 2) < 40 + h) | ((kv // 7 - q // 5) % 3 == b)


ZOO: dict[str, Mask] = {
    "causal": library.causal,
    "window": library.causal & library.window(37),
    "sinks": library.causal & (library.window(20) | library.sink_tokens(5)),
    "prefix": library.causal | library.prefix(50),
    "document": library.causal & library.document(IDS),
    "dilated": library.dilated(3),
    "not causal": ~library.causal,
    "all but a window": library.causal & ~library.window(30),
    "crooked": crooked,
}
EXACT = ("causal", "window", "sinks", "prefix", "not causal", "all but a window", "document")


def planner(m: Mask | None, workers: int = 2, heads: int = 4, kv_heads: int = 2, law: AttentionLaw | None = None, **limits: int) -> Planner:
    sizes = {"max_requests": 64, "max_q_tokens": 512, "max_pages": 8192} | limits
    group = heads // kv_heads
    capacity = default_capacity(kv_heads, group, sizes["max_requests"], sizes["max_q_tokens"], sizes["max_pages"], 16, workers)
    made = Planner(heads, kv_heads, (128, 128), m.graph if m else None, law or assumed(group, 64, 64, 2), capacity, workers)
    if m is not None and made.code is not None:
        made.code.bind(m.defaults)
    return made


def table_of(kv_tokens: list[int], page_tokens: int = 16) -> BlockSparse:
    n = [-(-k // page_tokens) for k in kv_tokens]
    indptr = np.concatenate([[0], np.cumsum(n)]).astype(np.int32)
    pages = np.random.default_rng(1).permutation(indptr[-1] + 1)[: indptr[-1]].astype(np.int32)
    return BlockSparse.from_lengths(indptr, pages, np.array(kv_tokens, np.int32), page_tokens)


def indptr_of(q_tokens: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(q_tokens)]).astype(np.int32)


def covered(plan: Plan, table: BlockSparse, tokens: int, kv_heads: int) -> np.ndarray:
    """[tokens, kv heads, positions]: how often a key is computed, + 100 where without its mask."""
    size = int(max(table.sequence_tokens.max(initial=0), 1))
    seen = np.zeros((tokens, kv_heads, size), np.int64)
    starts, ends, kinds = (plan.array("range_" + n) for n in ("start", "end", "kind"))
    for i in range(plan.count(at.H_ITEMS)):
        row, head, token, n, first, count = (int(plan.array("item_" + x)[i]) for x in ("row", "head", "token", "tokens", "range", "ranges"))
        positions = table.positions(row)
        for r in range(first, first + count):
            assert starts[r] % at.SLOT_ALIGN == 0
            assert ends[r] % at.SLOT_ALIGN == 0 or ends[r] == table.row_kv_tokens[row]
            seen[token : token + n, head, positions[starts[r] : ends[r]]] += 101 if kinds[r] == at.FULL else 1
    return seen


LENGTHS = st.lists(st.tuples(st.sampled_from([1, 1, 5, 33, 100]), st.integers(0, 400)), min_size=1, max_size=4)
SPLITS = st.sampled_from([None, False, 16, 64, 160])


@given(st.sampled_from([None, *ZOO]), LENGTHS, SPLITS, st.sampled_from([1, 2, 7, 64]), st.sampled_from([1, 8, 16, 24]))
def test_every_visible_key_is_computed_once_and_full_means_full(
    name: str | None, lengths: list[tuple[int, int]], split: Any, workers: int, page_tokens: int
) -> None:
    m = ZOO[name] if name else None
    q_tokens, kv_tokens = [a for a, _ in lengths], [b for _, b in lengths]
    table, qo = table_of(kv_tokens, page_tokens), indptr_of(q_tokens)
    plan = planner(m, workers).plan(qo, table, split)
    seen = covered(plan, table, int(qo[-1]), 2)
    for b, (queries, keys) in enumerate(lengths):
        q, kv = keys - queries + np.arange(queries)[:, None], np.arange(keys)[None, :]
        for head in range(2):
            here = seen[qo[b] : qo[b + 1], head, :keys]
            assert set(np.unique(here)) <= {0, 1, 101}
            for h in (2 * head, 2 * head + 1):
                inputs = {"q": q, "kv": kv, "b": b, "h": h, "kv_head": head, "row": np.arange(queries)[:, None]}
                visible = np.broadcast_to(evaluate(m.graph, inputs, m.defaults), (queries, keys)) if m else np.ones((queries, keys), bool)
                assert (here[visible] > 0).all()
                assert visible[here == 101].all()


@given(LENGTHS, SPLITS, st.sampled_from([1, 2, 7, 64]))
def test_partial_rows_are_written_once_and_merged_in_key_order(lengths: list[tuple[int, int]], split: Any, workers: int) -> None:
    table, qo = table_of([b for _, b in lengths]), indptr_of([a for a, _ in lengths])
    plan = planner(ZOO["window"], workers).plan(qo, table, split)
    written: dict[int, tuple[int, int, int]] = {}
    direct = set()
    firsts: dict[tuple[int, int], int] = {}
    for i in range(plan.count(at.H_ITEMS)):
        head, token, n, slot, start, flags = (
            int(plan.array("item_" + x)[i]) for x in ("head", "token", "tokens", "slot", "start", "flags")
        )
        for t in range(n):
            if slot >= 0:
                assert slot + t not in written
                written[slot + t] = (token + t, head, start)
            else:
                assert (token + t, head) not in direct
                direct.add((token + t, head))
            firsts[token + t, head] = firsts.get((token + t, head), 0) + (flags & at.FLAG_FIRST)
    assert sorted(written) == list(range(plan.count(at.H_PART_ROWS)))
    assert all(n == 1 for n in firsts.values())
    assert len(firsts) == 2 * int(qo[-1])
    indptr, parts = plan.array("merge_indptr"), plan.array("merge_part")
    merged = set()
    for e, (token, head) in enumerate(zip(plan.array("merge_token"), plan.array("merge_head"), strict=True)):
        mine = [written.pop(int(p)) for p in parts[indptr[e] : indptr[e + 1]]]
        assert all(m[:2] == (token, head) for m in mine)
        assert [m[2] for m in mine] == sorted(m[2] for m in mine)
        merged.add((int(token), int(head)))
    assert not written
    assert merged | direct == set(firsts)
    assert not merged & direct
    if split is False:
        assert not merged


def test_cuts_of_the_batch_invariant_mode_lie_at_multiples() -> None:
    plan = planner(ZOO["sinks"], 5).plan(indptr_of([1, 40]), table_of([700, 333]), 64)
    for item in plan.items:
        assert item.start // 64 == max(item.end - 1, 0) // 64


def test_items_come_longest_first_and_ties_in_a_fixed_order() -> None:
    lengths = [100, 900, 16, 450, 450]
    a, b = (planner(None, 3, law=replace(assumed(2, 64, 64, 2), item_s=0.0)) for _ in range(2))
    first, second = a.plan(indptr_of([1] * 5), table_of(lengths), False), b.plan(indptr_of([1] * 5), table_of(lengths), False)
    sizes = [item.end - item.start for item in first.items]
    assert sizes == sorted(sizes, reverse=True)
    assert (first.buffer.words == second.buffer.words).all()


@pytest.mark.parametrize("workers", [2, 4, 16, 64, 132, 264])
def test_balance_on_zipf_lengths(workers: int) -> None:
    """Makespan within 5 % of total work / workers (issue 4), in the law's own seconds without fixed costs."""
    law = replace(assumed(4, 128, 128, 2), item_s=0.0, merge_s=0.0, call_s=0.0)
    made = planner(None, workers, 32, 8, law)
    ratios = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        for requests in (16, 64):
            raw = np.minimum(rng.zipf(1.5, requests), 200).astype(float)
            lengths = np.maximum(16, raw * 1024 / raw.mean()).astype(int)
            plan = made.plan(indptr_of([1] * requests), table_of(list(lengths)))
            total = sum(i.end - i.start for i in plan.items) * (law.token_s + 4 * law.pair_s)
            loads = np.zeros(workers)
            np.add.at(loads, [i.worker for i in plan.items], [(i.end - i.start) * (law.token_s + 4 * law.pair_s) for i in plan.items])
            assert plan.predicted_s == pytest.approx(loads.max())
            ratios.append(loads.max() / (total / workers))
    assert max(ratios) <= 1.05


def test_price_counts_what_is_kept() -> None:
    law = AttentionLaw(1e-5, 1e-6, 1e-8, 1e-9, 1e-7, head_dims=128, p95_ratio=1.2)
    made = planner(ZOO["window"], 1, law=law)
    plan = made.plan(indptr_of([1, 1]), table_of([1000, 20]))
    # the last 38 keys of 1000 lie in blocks 960..1000; the second request is shorter than the window
    kept = (1000 - 960) + 20
    assert plan.kv_bytes == 2 * kept * 256
    assert plan.flops == 2 * 2 * kept * 2 * 128
    assert plan.predicted_s == pytest.approx(law.call_s + 4 * law.item_s + 2 * kept * (law.token_s + 2 * law.pair_s))
    assert plan.predicted_p95_s == pytest.approx(1.2 * plan.predicted_s)
    assert sum(i.end - i.start for i in plan.items) == 2 * kept


# ---- intervals
@settings(max_examples=60)
@given(st.sampled_from(list(ZOO)), st.integers(0, 400), st.integers(0, 90), st.integers(0, 400), st.integers(0, 90), st.integers(0, 3))
def test_rectangles_are_judged_soundly(name: str, q0: int, dq: int, k0: int, dk: int, b: int) -> None:
    m = ZOO[name]
    c = Classifier(m.graph, m.defaults, compiled().classify)
    verdict = c.classify((q0, q0 + dq), (k0, k0 + dk), b=(b, b), h=(0, 3))
    q, kv, h = np.arange(q0, q0 + dq + 1)[:, None, None], np.arange(k0, k0 + dk + 1)[:, None], np.arange(4)
    visible = evaluate(m.graph, {"q": q, "kv": kv, "h": h, "b": b}, m.defaults)
    if verdict == "empty":
        assert not visible.any()
    if verdict == "full":
        assert visible.all()


@pytest.mark.parametrize("name", EXACT)
def test_tiles_agree_with_brute_force(name: str) -> None:
    """Masks of comparisons lose nothing: every tile's verdict is the exact one (for documents when their ids are known)."""
    m, n, tile = ZOO[name], 512, 64
    got = np.zeros((n // tile, n // tile), int)
    for q0, q1, k0, k1, verdict in Classifier(m.graph, m.defaults, compiled().classify).tiles(n, n, tile):
        got[q0 // tile : q1 // tile, k0 // tile : k1 // tile] = {"partial": 1, "full": 2}[verdict]
    inputs = {"q": np.arange(n)[:, None], "kv": np.arange(n)[None, :], "b": 0}
    visible = np.broadcast_to(evaluate(m.graph, inputs, m.defaults), (n, n)).reshape(n // tile, tile, n // tile, tile)
    want = visible.any((1, 3)) + visible.all((1, 3)).astype(int)
    wrong = got != want
    assert (got >= np.minimum(want, 1)).all()
    # a document's ids are known for blocks of 64: a tile may hold the border of two
    assert wrong.mean() <= (0.1 if name == "document" else 0.0)


def test_what_is_not_known_is_partial() -> None:
    unknown = Classifier((library.causal & library.document(IDS[0])).graph, {}, compiled().classify)
    assert unknown.classify((100, 110), (0, 10)) == "partial"
    assert unknown.classify((0, 10), (100, 110)) == "empty"
    unknown_window = Classifier(library.window(5).graph, {}, compiled().classify)
    assert unknown_window.classify((100, 110), (0, 10)) == "partial"


def test_integers_that_would_wrap_are_not_believed() -> None:
    m = Mask(lambda q, kv: q * 65536 * 65536 >= kv)
    assert Classifier(m.graph, {}, compiled().classify).classify((1, 2), (0, 0)) == "partial"


# ---- law
def test_a_law_is_recovered_from_its_own_points() -> None:
    law = AttentionLaw(1e-5, 6e-7, 3e-8, 4e-10, 2e-8, head_dims=128)
    rng = np.random.default_rng(0)
    points = []
    for _ in range(40):
        shape = [int(x) for x in (rng.integers(1, 200), rng.integers(100, 90000), rng.integers(400, 900000), rng.integers(0, 900))]
        points.append(AttentionPoint(*shape, law.predict_s(*shape)))
    got = fit(points, 128)
    assert got.error < 1e-3
    for name in ("item_s", "token_s", "pair_s", "merge_s"):
        assert getattr(got, name) == pytest.approx(getattr(law, name), rel=0.02)
    assert AttentionLaw.from_json(replace(got, runs=((1024.0, 2e-8), (65536.0, 1e-8))).to_json()).token_at(8192) == pytest.approx(1.5e-8)


def test_broken_laws_are_refused() -> None:
    for text in ("{}", "[]", '{"schema": "headway.attention-law/1"}', "x"):
        with pytest.raises(ConfigError, match="calibrate"):
            AttentionLaw.from_json(text)
    with pytest.raises(ConfigError, match="at least 9"):
        fit([AttentionPoint(1, 1, 1, 0, 1.0)] * 3, 128)


@given(st.floats(0, 50), st.integers(0, 100), st.integers(1, 9))
def test_the_largest_chunk_within_a_budget(budget: float, cap: int, step: int) -> None:
    got = largest_within(budget, cap, step, lambda c: 1.0 + 0.5 * c)
    allowed = [c for c in {*range(step, cap, step), cap} if c > 0 and 1.0 + 0.5 * c <= budget]
    assert got == max(allowed, default=0)


def test_unused_variants_do_not_reach_the_plan() -> None:
    assert planner(None).code is None
    assert "mask" not in Variant().hooks
