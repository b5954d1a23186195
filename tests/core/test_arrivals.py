"""Arrival schedules: sorted, within the run, the same for a seed, independent per app, at the rate asked for."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core import arrivals
from headway.core.arrivals import Times
from headway.core.errors import ConfigError

KINDS: dict[str, Callable[[float, float, int, str], Times]] = {
    "poisson": lambda r, d, s, a: arrivals.poisson(r, d, seed=s, app=a),
    "gamma": lambda r, d, s, a: arrivals.gamma(r, 3.0, d, seed=s, app=a),
    "ramp": lambda r, d, s, a: arrivals.ramp(0, 2 * r, d, seed=s, app=a),
    "burst": lambda r, d, s, a: arrivals.burst(r / 2, 6, 10, 2, d, seed=s, app=a),
    "constant": lambda r, d, s, a: arrivals.constant(r, d),
}


@given(kind=st.sampled_from(sorted(KINDS)), rate=st.floats(0, 50), duration=st.floats(0, 30), seed=st.integers(0, 2**63))
def test_schedules_are_sorted_within_the_run_and_repeatable(kind: str, rate: float, duration: float, seed: int) -> None:
    times = KINDS[kind](rate, duration, seed, "chat")
    assert times.dtype == np.int64
    assert (np.diff(times) >= 0).all()
    assert len(times) == 0 or (times[0] >= 0 and times[-1] <= duration * 1e9 + 1)
    assert np.array_equal(times, KINDS[kind](rate, duration, seed, "chat"))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_rate_is_kept(kind: str) -> None:
    count = len(KINDS[kind](10, 1000, 1, "chat"))
    assert abs(count - 10_000) < {"gamma": 1200, "constant": 1}.get(kind, 400)


def test_apps_and_seeds_have_streams_of_their_own() -> None:
    schedules = [arrivals.poisson(5, 20, seed=seed, app=app).tobytes() for seed in (1, 2) for app in ("chat", "code")]
    assert len(set(schedules)) == 4


def test_gamma_gaps_have_the_asked_variation() -> None:
    for cv in (0.5, 1.0, 4.0):
        gaps = np.diff(arrivals.gamma(100, cv, 1000, seed=3, app="x"))
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def test_a_ramp_ends_faster_than_it_began() -> None:
    times = arrivals.ramp(1, 9, 1000, seed=1, app="x") / 1e9
    assert (times < 500).sum() == pytest.approx(1500, rel=0.1)  # mean rate 3, then 7
    assert (times >= 500).sum() == pytest.approx(3500, rel=0.1)


def test_bursts_are_where_they_belong() -> None:
    times = arrivals.burst(1, 10, 10, 1, 2000, seed=1, app="x") / 1e9
    inside = (times % 10 < 1).sum()
    assert inside == pytest.approx(2000, rel=0.1)
    assert len(times) - inside == pytest.approx(1800, rel=0.1)


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf"), 1e12])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError):
        arrivals.poisson(rate, 10, seed=0, app="x")
