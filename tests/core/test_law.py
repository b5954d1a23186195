"""The law: form, fit, file, correction, largest chunk."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import ConfigError
from headway.core.law import IterationLaw, LawPoint, OnlineCorrection, fit, max_chunk
from headway.core.law_fit import nnls


def truth_s(rows: int, kv: int, c: int, prefix: int, sampled: int) -> float:
    return 0.006 + 1.5e-3 * rows + 1e-6 * kv + 1.6e-3 * c + 2e-8 * c * (c + 2 * prefix) + 3e-4 * sampled


def grid(noise: float = 0.0) -> list[LawPoint]:
    rng = np.random.default_rng(0)
    shapes = [(b, 300 * b, c, p) for b in (0, 1, 2, 4, 8, 16) for c, p in ((0, 0), (8, 0), (32, 500), (128, 0), (256, 1000)) if b + c]
    return [LawPoint(b, kv, c, p, b + 1, truth_s(b, kv, c, p, b + 1) * (1 + noise * rng.standard_normal())) for b, kv, c, p in shapes]


def test_fit_finds_a_law_of_the_same_form_and_its_noise() -> None:
    exact = fit(grid())
    assert exact.quality.mape < 0.005
    assert exact.predict_s(3, 900, ((64, 200),), 4) == pytest.approx(truth_s(3, 900, 64, 200, 4), rel=0.03)
    noisy = fit(grid(0.03))
    assert 0.005 < noisy.quality.mape < 0.04 and noisy.quality.held_out_mape < 0.10
    assert noisy.residual.q05 < 1 < noisy.residual.q95


def test_a_quick_law_of_eight_points_predicts_within_ten_percent() -> None:
    quick = [
        (1, 100, 0, 0),
        (1, 1500, 0, 0),
        (8, 800, 0, 0),
        (0, 0, 8, 0),
        (0, 0, 64, 0),
        (0, 0, 256, 0),
        (4, 400, 32, 0),
        (0, 0, 64, 1000),
    ]
    law = fit([LawPoint(b, kv, c, p, b + (c > 0), truth_s(b, kv, c, p, b + (c > 0))) for b, kv, c, p in quick])
    for b, kv, c, p in ((3, 900, 24, 500), (1, 300, 24, 1500), (6, 2000, 0, 0)):
        assert law.predict_s(b, kv, ((c, p),) if c else (), b) == pytest.approx(truth_s(b, kv, c, p, b), rel=0.10)


def test_nnls_meets_the_optimality_conditions() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = rng.standard_normal((12, 6)), rng.standard_normal(12)
        x = nnls(a, b)
        gradient = a.T @ (b - a @ x)
        assert (x >= 0).all() and (gradient <= 1e-8).all() and np.abs(gradient[x > 0]).max(initial=0.0) < 1e-8


def test_the_file_form_restores_the_law_exactly_and_refuses_damage() -> None:
    law = fit(grid(0.02), model="m", device="cpu")
    assert IterationLaw.from_json(law.to_json()).to_params() == law.to_params()
    for text in ("", "{}", "[]", law.to_json().replace("headway.law/1", "headway.law/9"), law.to_json().replace('"s": 1.0', '"s": -1.0')):
        with pytest.raises(ConfigError):
            IterationLaw.from_json(text)


@given(st.floats(0.001, 0.5), st.integers(0, 32), st.integers(0, 2000), st.integers(1, 512))
def test_max_chunk_is_the_largest_that_fits(budget_s: float, rows: int, prefix: int, cap: int) -> None:
    law = fit(grid())
    chunk = max_chunk(law, budget_s, rows, 100 * rows, prefix, cap, sampled_rows=rows)
    assert chunk == cap or chunk % 8 == 0
    if chunk:
        assert law.predict_s(rows, 100 * rows, ((chunk, prefix),), rows) <= budget_s * (1 + 1e-9)
    if chunk < cap:
        following = min(chunk + 8, cap)
        assert law.predict_s(rows, 100 * rows, ((following, prefix),), rows) > budget_s * (1 - 1e-9)


def test_correction_follows_a_slower_machine_and_sounds_the_alarm() -> None:
    law = fit(grid())
    correction = OnlineCorrection.of(law)
    rng = np.random.default_rng(2)
    for _ in range(3000):
        b, c = int(rng.integers(1, 8)), int(rng.integers(0, 64))
        bare = law.bare_s(b, 300 * b, ((c, 0),) if c else (), b)
        correction.observe(bare, (law.c_host_s + law.s * bare) * 1.4 * (1 + 0.03 * rng.standard_normal()))
    shape = (4, 1200, ((40, 0),), 4)
    assert correction.corrected(law).predict_s(*shape) == pytest.approx(1.4 * law.predict_s(*shape), rel=0.03)
    assert correction.alarm
    assert OnlineCorrection.from_plain(correction.to_plain()) == correction


def test_a_law_that_overrates_the_context_is_corrected_and_never_driven_further_off() -> None:
    """The law a server measured beside a busy neighbour on 2 vCPUs, and what it then ran: two growing streams, 8.7 ms an iteration.

    One of c_host and s reaches its bound early; with its share of each step lost, the other drifted: predictions stayed 2.4 times too long.
    """
    law = IterationLaw(c_host_s=0.00266, d0=0.00536, d1=0.00243, d2=2.6e-5, p0=0.0234, p1=0.0032)
    correction = OnlineCorrection.of(law)
    for _ in range(10):
        correction.observe(law.bare_s(0, 0, [(8, 0)]), 0.020)
    ratios = []
    for _ in range(4):
        for context in range(20, 300):
            bare_s = law.bare_s(2, 2 * context)
            ratios.append(0.0087 / correction.corrected(law).predict_s(2, 2 * context))
            correction.observe(bare_s, 0.0087)
    assert 0.75 <= sum(ratios[-280:]) / 280 <= 1.25


def test_the_alarm_rings_when_host_time_sits_at_its_bound() -> None:
    law = IterationLaw(c_host_s=0.001, d1=1e-3)
    correction = OnlineCorrection.of(law)
    assert not correction.alarm
    correction.c_host_s = law.c_host_s + 0.010
    assert correction.alarm
