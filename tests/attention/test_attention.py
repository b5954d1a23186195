"""Attention as its users see it: plan and run over every format, against float64, and what must not change the answer."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.attention import library
from headway.attention.attention import Attention
from headway.attention.block_sparse import BlockSparse
from headway.attention.kv import PagedKV
from headway.attention.plan import PlanCapacityError, StalePlanError
from headway.attention.state import State, merge
from headway.attention.trace import tanh
from headway.attention.variant import Mask, Variant
from headway.core.errors import ConfigError
from headway.kernels.cpu import isa
from headway.kernels.cpu.objects import ObjectCache
from headway.kernels.cpu.team import Team
from tests.attention.drawn import Drawn, assert_close, draw, expected

SINK = np.linspace(-1, 2, 16).astype(np.float32)


def gemma(score: Any, *, h: Any, q: Any, kv: Any, slopes: Any, cap: Any = 30.0) -> Any:
    return cap * tanh((score + slopes[h] * (kv - q)) / cap)


VARIANTS: dict[str, Variant] = {
    "plain": Variant(),
    "causal": Variant(mask=library.causal),
    "window": Variant(mask=library.causal & library.window(20)),
    "sinks and window": Variant(mask=library.causal & (library.window(9) | library.sink_tokens(3))),
    "prefix": Variant(mask=library.causal | library.prefix(30)),
    "dilated": Variant(mask=library.causal & library.dilated(3)),
    "nothing": Variant(mask=~library.causal & library.window(5)),
    "soft cap": library.soft_cap(5.0).with_mask(library.causal),
    "gemma": Variant(gemma, library.causal, defaults={"slopes": library.alibi_slopes(16)}),
    "sink logits": Variant(mask=library.causal & library.window(7), sink=True),
    "sigmoid": library.sigmoid_attention(-2.0).with_mask(library.causal),
}


def options(v: Variant, heads: int) -> dict[str, Any]:
    return {"sink": SINK[:heads]} if v.sink else {}


def built(d: Drawn, v: Variant, **more: Any) -> Attention:
    kv = d.kv
    return Attention(
        d.q.shape[1],
        kv.kv_heads,
        kv.head_dim_qk,
        kv.head_dim_vo,
        q_dtype=d.q_dtype,
        kv_dtype=kv.dtype,
        layout="packed" if kv.layout == "packed" else "rows",
        variant=v,
        **({"max_requests": 16, "max_q_tokens": 512, "max_pages": 2048} | more),
    )


@st.composite
def steps(draw_: st.DrawFn) -> tuple[Drawn, Variant]:
    group = draw_(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 16]))
    kv_heads = draw_(st.sampled_from([1, 2])) if group < 8 else 1
    dims = draw_(st.sampled_from([32, 64, 80, 96, 128, 256]))
    value_dims = draw_(st.sampled_from([dims, 32, 64]))
    layout = draw_(st.sampled_from(["NHD", "HND", "head-major", "sliced", "packed"]))
    page_tokens = 16 if layout == "packed" else draw_(st.sampled_from([1, 8, 16, 64]))
    pairs = st.tuples(st.sampled_from([1, 1, 1, 5, 40]), st.integers(0, 200))
    lengths = [(m, max(n, 0)) for m, n in draw_(st.lists(pairs, min_size=1, max_size=4))]
    d = draw(
        draw_(st.integers(0, 9)),
        lengths,
        heads=group * kv_heads,
        kv_heads=kv_heads,
        dims=dims,
        value_dims=value_dims,
        page_tokens=page_tokens,
        dtype=draw_(st.sampled_from(["f32", "f16", "bf16", "int8"])),
        q_dtype=draw_(st.sampled_from(["f32", "f32", "f16", "bf16"])),
        layout=layout,
    )
    return d, VARIANTS[draw_(st.sampled_from(list(VARIANTS)))]


@settings(max_examples=30)
@given(steps(), st.sampled_from([None, None, 16, 48, False]), st.integers(1, 3))
def test_any_step_equals_float64(step: tuple[Drawn, Variant], split: Any, workers: int) -> None:
    d, v = step
    a = built(d, v, workers=workers)
    captured = options(v, a.heads)
    got = a.run(a.plan(d.qo_indptr, d.table, split), d.q, d.kv, captured=captured)
    want = expected(a, d, captured=captured)
    if not v.softmax:
        assert got[1] is None
    assert_close(got, want, d.q_dtype)


MIXED = [(1, 300), (40, 200), (1, 0), (5, 5), (1, 17), (3, 1)]


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "plain"])
def test_every_variant_on_a_mixed_batch(name: str) -> None:
    d = draw(1, MIXED, heads=8, kv_heads=2, dims=64)
    a = built(d, VARIANTS[name], workers=2)
    captured = options(a.variant, a.heads)
    for split in (None, 32, False):
        assert_close(a.run(a.plan(d.qo_indptr, d.table, split), d.q, d.kv, captured=captured), expected(a, d, captured=captured))


def test_document_tree_and_custom_masks() -> None:
    rng = np.random.default_rng(0)
    lengths = [(6, 40), (6, 90), (6, 6)]
    d = draw(2, lengths)
    masks: list[Mask] = [
        library.causal & library.document(np.sort(rng.integers(0, 4, (3, 90)), 1)),
        library.tree([-1, 0, 0, 1, 2, -1]),
        library.pack_masks([rng.random(shape) < 0.3 for shape in lengths]) & library.window(60),
    ]
    for mask in masks:
        a = built(d, Variant(mask=mask))
        assert_close(a.run(a.plan(d.qo_indptr, d.table), d.q, d.kv), expected(a, d))


@pytest.mark.parametrize("pairs", ["half", "adjacent"])
def test_keys_rotated_on_the_fly(pairs: str) -> None:
    d = draw(3, [(1, 70), (20, 50)], dims=64)
    a = built(d, library.rope(64, 128, pairs=pairs).with_mask(library.causal))
    assert_close(a.run(a.plan(d.qo_indptr, d.table), d.q, d.kv), expected(a, d))


# ---- formats
def test_block_sparse_rows_of_any_block_size() -> None:
    rng = np.random.default_rng(4)
    for r, c in ((16, 15), (8, 24), (20, 8), (64, 1)):
        q_tokens, kv_tokens = 70, 120
        blocks = rng.random((-(-q_tokens // r), -(-kv_tokens // c))) < 0.4
        blocks[0] = False
        d = draw(5, [(q_tokens, kv_tokens)], page_tokens=120)
        k, v = d.kv.read(np.full(120, d.table.page[0]), np.arange(120), 0)
        both = [np.stack([x, 2 * x], 1).astype(np.float32) for x in (k, v)]
        d.kv = PagedKV.ragged(*both, c)
        table = BlockSparse.from_mask(blocks, q_tokens, kv_tokens, r, c)
        a = built(d, Variant())
        got = a.run(a.plan(d.qo_indptr, table), d.q, d.kv)
        assert_close(got, expected(a, d, table))
        # the same as a mask by element
        dense = np.repeat(np.repeat(blocks, r, 0), c, 1)[:q_tokens, :kv_tokens]
        masked = built(d, Variant(mask=library.pack_masks([dense])))
        whole = BlockSparse.from_mask(np.ones((1, kv_tokens // c), bool), q_tokens, kv_tokens, q_tokens, c)
        assert_close(masked.run(masked.plan(d.qo_indptr, whole), d.q, d.kv), expected(a, d, table))


def test_top_k_blocks_of_each_head_keep_their_positions() -> None:
    rng = np.random.default_rng(6)
    for block, layout in ((16, "HND"), (8, "head-major"), (1, "NHD")):
        d = draw(7, [(1, 300), (1, 40), (3, 100)], layout=layout)
        chosen = np.stack([[np.pad(rng.permutation(n // block)[:2], (0, 1), constant_values=-1) for _ in range(2)] for n in (300, 40, 100)])
        table = BlockSparse.from_topk(d.table, chosen.astype(np.int32), block)
        d.kv = d.kv.with_page_tokens(block)
        a = built(d, Variant(mask=library.causal & library.window(150)))
        assert_close(a.run(a.plan(d.qo_indptr, table), d.q, d.kv), expected(a, d, table))


def test_shared_prefixes_equal_the_flat_table() -> None:
    d = draw(8, [(1, 64), (1, 40), (2, 96), (5, 21)], dims=64)
    shared = np.array([[60, 61, 62, 63]], np.int32)
    pool = draw(9, [(1, 16)] * 70, dims=64).kv
    pool.write(np.arange(70).repeat(16), np.tile(np.arange(16), 70), *np.random.default_rng(9).standard_normal((2, 1120, 2, 64)))
    prefix = BlockSparse.from_block_tables(shared, [64], 16)
    rng = np.random.default_rng(10)
    pages = rng.permutation(60)[:28].reshape(4, 7).astype(np.int32)
    suffix = BlockSparse.from_block_tables(pages, [64, 40, 96, 21], 16)
    levels = BlockSparse.levels([prefix, suffix], [[0, 4]])
    flat = BlockSparse.from_block_tables(np.concatenate([np.repeat(shared, 4, 0), pages], 1), [128, 104, 160, 85], 16)
    d.kv = pool
    for v in (VARIANTS["causal"], VARIANTS["sinks and window"], VARIANTS["sigmoid"], VARIANTS["sink logits"]):
        a = built(d, v, workers=2)
        captured = options(v, a.heads)
        want = expected(a, d, flat, captured)
        assert_close(a.run(a.plan(d.qo_indptr, levels), d.q, pool, captured=captured), want)
        assert_close(a.run(a.plan(d.qo_indptr, flat), d.q, pool, captured=captured), want)


def test_ragged_keys_without_a_page_table() -> None:
    rng = np.random.default_rng(11)
    for bounds in ([0, 32, 112], [0, 9, 9, 50]):
        k, v = (rng.standard_normal((bounds[-1], 2, 32)).astype(np.float32) for _ in range(2))
        table = BlockSparse.ragged(bounds)
        kv = PagedKV.ragged(k, v, table.page_tokens)
        n = len(bounds) - 1
        d = Drawn(kv, table, np.arange(n + 1, dtype=np.int32), rng.standard_normal((n, 4, 32)).astype(np.float32), "f32")
        a = built(d, Variant())
        assert_close(a.run(a.plan(d.qo_indptr, table), d.q, kv), expected(a, d))


def test_two_machines_with_half_the_pages_each_give_the_whole_answer() -> None:
    d = draw(12, [(1, 200), (4, 90)])
    a = built(d, VARIANTS["causal"])
    whole = a.run(a.plan(d.qo_indptr, d.table), d.q, d.kv)
    states = []
    for part in (0, 1):
        indptr, page, position, kept = [0], [], [], []
        for b in range(2):
            mine = d.table.page[d.table.row_page[b] : d.table.row_page[b + 1]]
            cut = len(mine) // 2
            chosen = slice(0, cut) if part == 0 else slice(cut, None)
            page += list(mine[chosen])
            position += list(np.arange(len(mine))[chosen] * 16)
            kept.append(cut * 16 if part == 0 else d.table.row_kv_tokens[b] - cut * 16)
            indptr.append(len(page))
        table = BlockSparse.from_lengths(indptr, page, [int(k) for k in kept], 16)
        table = BlockSparse(
            16, table.row_page, table.page, np.array(position, np.int32), table.row_kv_tokens, table.row_request, table.row_requests,
            table.row_start, table.row_tokens, table.row_head, d.table.sequence_tokens,
        )  # fmt: skip
        o, lse = a.run(a.plan(d.qo_indptr, table), d.q, d.kv)
        assert lse is not None
        states.append(State(o, lse))
    merged = merge(*states)
    assert_close((merged.o, merged.lse), (whole[0].astype(np.float64), np.asarray(whole[1], np.float64)))


# ---- what must not change the answer
def test_bits_do_not_depend_on_threads_runs_or_neighbours() -> None:
    d = draw(13, [(1, 700), (1, 33), (40, 300), (1, 512)], heads=8, kv_heads=2, dims=64)
    a = built(d, VARIANTS["causal"], workers=3)
    cache = ObjectCache(a.cpu.objects.directory, isa.select()) if a.cpu else None
    assert cache is not None
    plan = a.plan(d.qo_indptr, d.table)
    first = a.run(plan, d.q, d.kv)
    for threads in (1, 2, 3):
        team = Team(threads, cache)
        try:
            for _ in range(5):
                again = a.run(plan, d.q, d.kv, team=team)
                assert again[0].tobytes() == first[0].tobytes()
                assert np.asarray(again[1]).tobytes() == np.asarray(first[1]).tobytes()
        finally:
            team.close()


@settings(max_examples=15)
@given(st.lists(st.tuples(st.sampled_from([1, 1, 6]), st.integers(6, 300)), max_size=4), st.integers(1, 7), st.integers(0, 3))
def test_batch_invariant_mode_gives_a_request_the_same_bits_in_any_batch(others: list[tuple[int, int]], workers: int, at: int) -> None:
    alone = draw(14, [(1, 250)], dims=64, heads=8)
    a = built(alone, VARIANTS["window"], workers=1)
    want = a.run(a.plan(alone.qo_indptr, alone.table, 64), alone.q, alone.kv)
    at = min(at, len(others))
    batch = draw(15, [*others[:at], (1, 250), *others[at:]], dims=64, heads=8)
    row = int(batch.qo_indptr[at])
    batch.q[row] = alone.q[0]
    slots = np.arange(250)
    source = alone.table.page[slots // 16], slots % 16
    k, v = (np.stack([alone.kv.read(*source, h)[i] for h in range(2)], 1).astype(np.float32) for i in range(2))
    batch.kv.write(batch.table.page[batch.table.row_page[at] + slots // 16], slots % 16, k, v)
    b = built(batch, VARIANTS["window"], workers=workers)
    got = b.run(b.plan(batch.qo_indptr, batch.table, 64), batch.q, batch.kv)
    assert got[0][row].tobytes() == want[0][0].tobytes()
    assert np.asarray(got[1])[row].tobytes() == np.asarray(want[1])[0].tobytes()


# ---- the interface
def test_outputs_and_captured_values_are_used_in_place() -> None:
    d = draw(16, [(1, 40), (1, 9)])
    a = built(d, Variant(lambda score, *, h, bias: score + bias[h]))
    plan = a.plan(d.qo_indptr, d.table)
    o, lse, bias = np.empty((2, 4, 32), np.float32), np.empty((2, 4), np.float32), np.zeros(4, np.float32)
    captured = {"bias": bias}
    got = a.run(plan, d.q, d.kv, o, lse, captured)
    assert got[0] is o
    assert got[1] is lse
    before = lse.copy()
    bias += 1.5
    a.run(plan, d.q, d.kv, o, lse, captured)
    assert np.allclose(lse, before + 1.5, atol=1e-5)  # a constant on all scores moves the LSE only


def test_a_stale_plan_is_refused() -> None:
    d = draw(17, [(1, 40), (1, 9)])
    a = built(d, VARIANTS["window"])
    old = a.plan(d.qo_indptr, d.table)
    kept = a.plan(d.qo_indptr, d.table, into=a.buffer())
    new = a.plan(d.qo_indptr, d.table)
    a.run(kept, d.q, d.kv)
    a.run(new, d.q, d.kv)
    with pytest.raises(StalePlanError, match="overwritten"):
        a.run(old, d.q, d.kv)
    with pytest.raises(StalePlanError, match="plan again"):
        a.run(new, np.concatenate([d.q, d.q]), d.kv)
    with pytest.raises(StalePlanError, match="the pool has"):
        a.run(new, d.q, PagedKV(d.kv.k[:1], d.kv.v[:1]))
    with pytest.raises(StalePlanError, match="shapes the mask"):
        a.run(new, d.q, d.kv, captured={"window": 5})
    a.run(a.plan(d.qo_indptr, d.table, captured={"window": 5}), d.q, d.kv, captured={"window": 5})


def test_capacities_are_named_when_they_do_not_hold() -> None:
    d = draw(18, [(1, 40), (1, 9), (30, 30)])
    for limits, which in (({"max_requests": 2}, "rows"), ({"max_q_tokens": 31}, "tokens"), ({"max_pages": 5}, "pages")):
        a = built(d, Variant(), **limits)
        with pytest.raises(PlanCapacityError) as caught:
            a.plan(d.qo_indptr, d.table)
        assert caught.value.which == which
        assert caught.value.needed > caught.value.capacity


def test_what_does_not_fit_is_refused_with_its_value() -> None:
    d = draw(19, [(1, 40)])
    a = built(d, Variant())
    plan = a.plan(d.qo_indptr, d.table)
    with pytest.raises(ConfigError, match="q is float64"):
        a.run(plan, d.q.astype(np.float64), d.kv)
    with pytest.raises(ConfigError, match=r"kv \(heads"):
        a.run(plan, d.q, PagedKV(d.kv.k[:, :, :1], d.kv.v[:, :, :1]))
    with pytest.raises(ConfigError, match="out is"):
        a.run(plan, d.q, d.kv, out=np.zeros((1, 4, 16), np.float32))
    with pytest.raises(TypeError, match="int64"):
        a.plan(np.array([0, 1]), d.table)
    with pytest.raises(ConfigError, match="never fall"):
        a.plan([1, 1], d.table)
    with pytest.raises(ConfigError, match="multiple of 16"):
        a.plan(d.qo_indptr, d.table, split_tokens=24)
    with pytest.raises(ConfigError, match="do not divide evenly"):
        Attention(9, 2, 64)


def test_fit_chunk_keeps_the_mixed_step_within_its_budget() -> None:
    d = draw(20, [(1, 300), (1, 900)], heads=8, kv_heads=2, dims=64)
    a = built(d, VARIANTS["causal"])
    chunks = []
    for budget_s in (1e-6, 5e-4, 2e-3, 1.0):
        chunk = a.fit_chunk(budget_s, d.table, 256, cap=400)
        chunks.append(chunk)
        for c, fits in ((chunk, True), (chunk + 8, False)):
            if 0 < c <= 400:
                kv_tokens = np.array([300, 900, 256 + c], np.int32)
                n = -(-kv_tokens // 16)
                indptr = np.concatenate([[0], np.cumsum(n)]).astype(np.int32)
                table = BlockSparse.from_lengths(indptr, np.zeros(indptr[-1], np.int32), kv_tokens, 16)
                assert (a.plan([0, 1, 2, 2 + c], table).predicted_p95_s <= budget_s) == fits
    assert chunks[0] == 0
    assert chunks[-1] == 400
    assert chunks == sorted(chunks)
    assert 0 < chunks[2] < 400


def test_run_with_given_outputs_keeps_no_memory() -> None:
    import tracemalloc

    d = draw(21, [(1, 300), (1, 900)])
    a = built(d, VARIANTS["window"])
    plan = a.plan(d.qo_indptr, d.table)
    o, lse = np.empty_like(d.q), np.empty(d.q.shape[:2], np.float32)
    for _ in range(3):
        a.run(plan, d.q, d.kv, o, lse)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20):
            a.run(plan, d.q, d.kv, o, lse)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before <= 1024  # Python's own bookkeeping; the state of a row alone is 512 bytes
    assert peak - before <= 4096


def test_a_second_process_needs_no_numba() -> None:
    import os
    import subprocess
    import sys

    code = (
        "import sys, numpy as np\n"
        "from headway.attention import Attention, BlockSparse, PagedKV, causal, soft_cap\n"
        "a = Attention(4, 2, 32, variant=soft_cap(7.0).with_mask(causal))\n"
        "kv = PagedKV.allocate(4, 16, 2, 32)\n"
        "a.run(a.plan([0, 1], BlockSparse.from_lengths([0, 1], [2], [9], 16)), np.ones((1, 4, 32), np.float32), kv)\n"
        "print(a.cpu.objects.compiled, 'numba' in sys.modules)"
    )
    for _ in range(2):
        child = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=os.environ | {"PYTHONPATH": "src"}
        )
        assert child.returncode == 0, child.stderr
    assert child.stdout.split() == ["0", "False"]
