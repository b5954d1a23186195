"""Statistics: known values, coverage on simulated samples, and no number where the sample supports none."""

from pathlib import Path

import numpy as np
import pytest

from headway.core.errors import ConfigError
from headway.core.machine import QuietWatch
from headway.core.stats import hodges_lehmann, machine_fingerprint, median_spread, paired_difference, quantile_interval, wilson


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, table I: 81/263 and 15/148.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ConfigError, match="3 of 2"):
        wilson(3, 2)


@pytest.mark.parametrize(("q", "needed"), [(0.95, 59), (0.99, 299), (0.05, 59), (0.5, 5)])
def test_no_percentile_from_too_few(q: float, needed: int) -> None:
    few = quantile_interval(np.arange(needed - 1.0), q)
    assert (few.value, few.low, few.high) == (None, None, None)
    assert f"at least {needed}" in few.reason
    assert quantile_interval(np.arange(float(needed)), q).value is not None


@pytest.mark.parametrize(("q", "n"), [(0.5, 20), (0.95, 60), (0.95, 200), (0.99, 400)])
def test_quantile_intervals_cover(q: float, n: int) -> None:
    stream = np.random.Generator(np.random.Philox(key=5))
    estimates = [quantile_interval(stream.random(n), q) for _ in range(400)]
    assert np.mean([e.low <= q <= e.high for e in estimates if e.low is not None and e.high is not None]) >= 0.93


def test_paired_difference_finds_a_shift_that_pairs_share() -> None:
    stream = np.random.Generator(np.random.Philox(key=6))
    common = stream.normal(0, 100, 40)
    found = paired_difference(common + 1 + stream.normal(0, 0.1, 40), common)
    assert found.value == pytest.approx(1, abs=0.1)
    assert found.low is not None
    assert found.low > 0.9
    assert paired_difference(common, common) == paired_difference(common, common)
    with pytest.raises(ConfigError, match="no pairs"):
        paired_difference([1.0], [1.0, 2.0])
    assert "at least 2" in paired_difference([1.0], [0.0]).reason


def test_hodges_lehmann_resists_outliers() -> None:
    stream = np.random.Generator(np.random.Philox(key=7))
    a, b = stream.normal(3, 1, 60), stream.normal(1, 1, 60)
    a[:3] = 1e6
    found = hodges_lehmann(a, b)
    assert found.value == pytest.approx(2, abs=0.5)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high < 10
    assert hodges_lehmann([], [1.0]).value is None


def test_median_spread() -> None:
    found = median_spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.low, found.value, found.high) == (2.0, 3.0, 4.0)
    with pytest.raises(ConfigError, match="1 non-finite"):
        median_spread([1.0, float("nan")])


def test_the_machine_describes_itself() -> None:
    found = machine_fingerprint()
    assert {"cpu", "cores", "isa", "kernel", "python", "load", "governor"} <= set(found)
    assert isinstance(found["cores"], int)
    assert found["cores"] >= 1


def proc(root: Path, user: int, idle: int, steal: int, processes: dict[int, tuple[int, int, int]]) -> None:
    """A /proc test double; processes: pid -> (parent, own ticks, ticks of waited-for children)."""
    (root / "stat").write_text(f"cpu  {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 0\n")
    for pid, (parent, own, children) in processes.items():
        (root / str(pid)).mkdir(exist_ok=True)
        (root / str(pid) / "stat").write_text(f"{pid} (a) b (c) S {parent} 0 0 0 0 0 0 0 0 0 {own} 0 {children} 0 20 0\n")


def test_only_the_others_make_a_machine_unquiet(tmp_path: Path) -> None:
    proc(tmp_path, 100, 1000, 0, {1: (0, 10, 0), 50: (1, 20, 0), 51: (50, 30, 0), 60: (1, 5, 0)})
    watch = QuietWatch([50], proc=tmp_path)
    proc(tmp_path, 200, 1900, 0, {51: (50, 110, 0), 60: (1, 25, 0)})  # 100 busy, 80 of them ours
    found = watch.quiet()
    assert found.others_share == pytest.approx(0.02)
    assert found.is_quiet
    proc(tmp_path, 300, 2800, 10, {60: (1, 125, 0)})
    found = watch.quiet()
    assert found.others_share == pytest.approx(120 / 2010)
    assert found.steal_share == pytest.approx(10 / 2010)
    assert not found.is_quiet


def test_a_child_that_ended_still_counts_as_ours(tmp_path: Path) -> None:
    proc(tmp_path, 0, 0, 0, {50: (1, 0, 0), 51: (50, 40, 0)})
    watch = QuietWatch([50], proc=tmp_path)
    (tmp_path / "51" / "stat").unlink()
    proc(tmp_path, 60, 940, 0, {50: (1, 0, 100)})  # 51 used 60 more, then ended and was waited for
    assert watch.quiet().others_share == 0
