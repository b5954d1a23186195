"""The "cpu" back end against float64: head groups, head sizes, number types, layouts, splits, masks and hooks, NaN in every unused slot."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.attention import library
from headway.attention.cpu import CpuAttention, HeadGeometry
from headway.attention.variant import Variant
from headway.core.errors import CapacityError, ConfigError
from headway.kernels.cpu import isa
from headway.kernels.cpu import plan_layout as at
from tests.attention.steps import Step, causal, from_bf16, to_bf16

LEVELS = [level for level in isa.LEVELS if isa.host_supports(level)]
LENGTHS = [(1, 1), (1, 100), (5, 5), (20, 77), (1, 0), (40, 300), (1, 64), (3, 129)]
CAUSAL = Variant(mask=library.causal)


def attention(geometry: HeadGeometry, variant: Variant | None = None, level: isa.Isa | None = None, **options: int) -> CpuAttention:
    made = CpuAttention(geometry, variant, isa=level, **({"tile_rows": 64, "partial_rows": 4000} | options))
    made.bind(variant.values() if variant else {})
    return made


def check(step: Step, got: tuple[np.ndarray, np.ndarray], want: tuple[np.ndarray, np.ndarray]) -> None:
    """|dO| <= 5e-6, |dLSE| <= 1e-5; 16-bit outputs within one unit in the last place of the rounded reference."""
    out, lse = got
    if step.geometry.out_dtype == "f32":
        assert np.abs(out - want[0]).max() <= 5e-6
    elif step.geometry.out_dtype == "f16":
        near = want[0].astype(np.float16)
        assert (np.abs(out.astype(np.float64) - near) <= np.spacing(np.abs(near)).astype(np.float64)).all()
    else:
        near = to_bf16(want[0])
        close = np.abs(from_bf16(out) - want[0]) <= 1e-6
        assert ((np.abs(out.astype(np.int32) - near.astype(np.int32)) <= 1) | close).all()
    empty = np.isneginf(want[1])
    assert (np.isneginf(lse) == empty).all()
    assert np.abs(lse[~empty] - want[1][~empty]).max(initial=0.0) <= 1e-5


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize(
    "geometry",
    [
        HeadGeometry(4, 1, 128, 128),
        HeadGeometry(9, 3, 64, 64, kv_dtype="bf16", layout="packed"),
        HeadGeometry(7, 1, 128, 32, q_dtype="bf16", kv_dtype="int8", out_dtype="f16"),
        HeadGeometry(4, 4, 32, 64, q_dtype="f16", kv_dtype="f16", out_dtype="bf16"),
        HeadGeometry(16, 1, 256, 256, kv_dtype="int8", layout="packed"),
    ],
    ids=lambda g: f"{g.heads}/{g.kv_heads} {g.dims}x{g.value_dims} {g.kv_dtype} {g.layout}",
)
def test_causal_attention_equals_float64(geometry: HeadGeometry, level: isa.Isa) -> None:
    step = Step(geometry, LENGTHS, 16)
    made = attention(geometry, CAUSAL, level)
    want = step.want(causal)
    for tile, split in ((1, 0), (64 // geometry.group, 0), (3, 48)):
        check(step, step.run(made, step.plan(tile, split)), want)


@given(
    group=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 16]),
    kv_heads=st.integers(1, 2),
    dims=st.sampled_from([(32, 32), (64, 64), (80, 80), (96, 96), (128, 64), (64, 256)]),
    kv_dtype=st.sampled_from(["f32", "f16", "bf16", "int8"]),
    page=st.sampled_from([1, 3, 8, 16, 64]),
    layout=st.sampled_from(["NHD", "HND", "packed"]),
    split=st.sampled_from([0, 16, 80, 128]),
    tile=st.integers(1, 24),
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 150)), min_size=1, max_size=4),
    seed=st.integers(0, 999),
)
def test_any_shape_equals_float64(
    group: int,
    kv_heads: int,
    dims: tuple[int, int],
    kv_dtype: str,
    page: int,
    layout: str,
    split: int,
    tile: int,
    lengths: list[tuple[int, int]],
    seed: int,
) -> None:
    geometry = HeadGeometry(group * kv_heads, kv_heads, *dims, kv_dtype=kv_dtype, layout="packed" if layout == "packed" else "rows")
    step = Step(geometry, lengths, 16 if layout == "packed" else page, "NHD" if layout == "packed" else layout, seed)
    made = attention(geometry, tile_rows=24 * 16)
    check(step, step.run(made, step.plan(tile, split, at.FULL)), step.want())


def test_more_keys_than_queries_of_negative_position_leave_empty_rows() -> None:
    geometry = HeadGeometry(2, 1, 32, 32)
    step = Step(geometry, [(5, 2)], 16)  # the first three queries see no key at all
    out, lse = step.run(attention(geometry, CAUSAL), step.plan(8))
    assert (out[:3] == 0).all() and np.isneginf(lse[:3]).all() and np.isfinite(lse[3:]).all()
    check(step, (out, lse), step.want(causal))


@pytest.mark.parametrize("few_rows", [0, 12], ids=["many", "few"])
@pytest.mark.parametrize("layout", ["rows", "packed"])
def test_score_hooks_windows_and_sinks(layout: str, few_rows: int) -> None:
    geometry = HeadGeometry(6, 2, 64, 64, layout=layout)  # type: ignore[arg-type]
    step = Step(geometry, LENGTHS, 16, spread=2.0)
    slopes, sink = np.linspace(0.02, 0.3, 6).astype(np.float32), np.linspace(-3, 3, 6).astype(np.float32)

    def score(score, *, h, q, kv, cap, slopes):  # type: ignore[no-untyped-def]
        return cap * library.tanh((score + slopes[h] * (kv - q)) / cap)

    variant = Variant(
        score,
        library.causal & (library.window(20) | library.sink_tokens(4)),
        sink=True,
        defaults={"cap": 30.0, "slopes": slopes, "sink": sink},
    )
    made = attention(geometry, variant, few_rows=few_rows)
    o, lse = step.want(
        lambda r, h, rows, q, kv: (kv <= q) & ((kv + 20 >= q) | (kv < 4)),
        lambda s, h, q, kv: 30 * np.tanh((s + slopes[h].astype(float) * (kv - q)) / 30),
    )
    with_sink = np.logaddexp(lse, sink[None].astype(float))
    want = o * np.exp(lse - with_sink)[..., None], with_sink
    for tile, split in ((1, 0), (10, 0), (4, 64)):
        check(step, step.run(made, step.plan(tile, split)), want)


def test_sigmoid_attention_has_no_softmax() -> None:
    geometry = HeadGeometry(4, 2, 32, 64, kv_dtype="int8")
    step = Step(geometry, [(1, 100), (9, 50)], 8)
    variant = library.sigmoid_attention(bias=-1.0)
    o, _ = step.run(attention(geometry, variant), step.plan(4, 64))
    first = 0
    for r, (rows, _) in enumerate(step.lengths):
        for h in range(4):
            s = step.want_q[first : first + rows, h] @ step.k[r][:, h // 2].T / np.sqrt(32) - 1.0
            want = (1 / (1 + np.exp(-s))) @ step.v[r][:, h // 2]
            assert np.abs(o[first : first + rows, h] - want).max() <= 3e-5  # sums of up to 100 weights, not divided
        first += rows


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("layout", ["rows", "packed"])
@pytest.mark.parametrize("pairs", ["half", "adjacent"])
def test_rope_on_the_fly_equals_rotated_keys(pairs: str, layout: str, level: isa.Isa) -> None:
    geometry = HeadGeometry(4, 2, 64, 32, kv_dtype="bf16", layout=layout)  # type: ignore[arg-type]
    step = Step(geometry, LENGTHS, 16)
    made = attention(geometry, library.rope(64, 300, pairs=pairs), level)

    def turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        angle = positions[:, None] * 1e4 ** (-2 * np.arange(32) / 64)
        cos, sin = (np.concatenate([f(angle)] * 2, 1) if pairs == "half" else np.repeat(f(angle), 2, 1) for f in (np.cos, np.sin))
        partner = np.roll(x, 32, 2) if pairs == "half" else x.reshape(*x.shape[:2], 32, 2)[..., ::-1].reshape(x.shape)
        sign = np.where(np.arange(64) < 32, -1, 1) if pairs == "half" else np.tile([-1, 1], 32)
        return x * cos[:, None] + partner * (sin * sign)[:, None]

    plain = Step(geometry, LENGTHS, 16)
    plain.want_q = np.concatenate(
        [
            turned(plain.want_q[a : a + n], keys - n + np.arange(n))
            for (n, keys), a in zip(LENGTHS, np.cumsum([0] + [n for n, _ in LENGTHS]), strict=False)
        ]
    )
    plain.k = [turned(k, np.arange(len(k))) for k in plain.k]
    got, want = step.run(made, step.plan(8)), plain.want()
    assert np.abs(got[0] - want[0]).max() <= 5e-5  # float32 angles of positions up to 300
    for rows in (1, 8):
        check_bits = step.run(made, step.plan(rows))[0]
        assert np.abs(check_bits - want[0]).max() <= 5e-5


def test_threads_and_splits_do_not_change_bits() -> None:
    """One plan, 1 to 3 threads; and a cut at multiples of n gives the same bits whatever else is in the batch."""
    from headway.core.paths import kernels_dir
    from headway.kernels.cpu.objects import ObjectCache
    from headway.kernels.cpu.team import Team

    geometry = HeadGeometry(8, 2, 64, 64, kv_dtype="bf16")
    step = Step(geometry, [(1, 700), *LENGTHS], 16)
    made = attention(geometry, CAUSAL, threads=3)
    plan = step.plan(8, 64)
    out, lse = step.run(made, plan)
    check(step, (out, lse), step.want(causal))
    for threads in (1, 2, 3):
        team = Team(threads, ObjectCache(kernels_dir(), made.isa))
        for _ in range(10):
            again, again_lse = step.run(made, plan, team)
            assert (again == out).all() and (again_lse == lse).all()
        team.close()
    alone = Step(geometry, [(1, 700)], 16)
    alone.pool_k, alone.pool_v, alone.numbers, alone.q = step.pool_k, step.pool_v, step.numbers, step.q[:1]
    out_alone, _ = alone.run(made, alone.plan(1, 64))
    assert (out_alone[0] == out[0]).all()


def test_packed_rows_have_the_same_bits_alone_and_in_a_tile() -> None:
    geometry = HeadGeometry(3, 1, 64, 64, kv_dtype="f16", layout="packed")
    step = Step(geometry, [(40, 300)], 16)
    made = attention(geometry, CAUSAL)
    wide, _ = step.run(made, step.plan(21, 128))
    narrow, _ = step.run(made, step.plan(1, 128))
    assert (wide == narrow).all()


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not divide"):
        attention(HeadGeometry(5, 2, 64, 64))
    with pytest.raises(ConfigError, match="head_dim_qk=20"):
        attention(HeadGeometry(2, 2, 20, 64))
    geometry = HeadGeometry(2, 1, 32, 32)
    step = Step(geometry, [(40, 40)], 16)
    with pytest.raises(CapacityError, match="80 rows"):
        step.run(attention(geometry, tile_rows=64), step.plan(40))
