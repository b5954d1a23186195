"""Intervals that say what a sample supports, and no number where it supports none. Machine state: `headway.core.machine`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headway.core.errors import ConfigError
from headway.core.machine import Quiet, QuietWatch, machine_fingerprint, quiet_window

__all__ = [
    "Estimate",
    "Quiet",
    "QuietWatch",
    "hodges_lehmann",
    "machine_fingerprint",
    "median_spread",
    "paired_difference",
    "quantile_interval",
    "quiet_window",
    "wilson",
]

Sample = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval from `n` observations; all None with a `reason` when the sample does not support one."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""


def _finite(x: Sample) -> npt.NDArray[np.float64]:
    values = np.asarray(x, np.float64).ravel()
    if not np.isfinite(values).all():
        raise ConfigError(f"a sample holds {int((~np.isfinite(values)).sum())} non-finite values; count those as missed instead")
    return values


def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share, k of n (Wilson 1927). n = 0 tells nothing: (0, 1)."""
    if not 0 <= k <= n:
        raise ConfigError(f"{k} of {n} is no share; use 0 <= k <= n")
    if n == 0:
        return 0.0, 1.0
    share, z2 = k / n, z * z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (0.0 if k == 0 else middle - half), (1.0 if k == n else middle + half)


def quantile_interval(x: Sample, q: float) -> Estimate:
    """The q-quantile (linear) with the shortest pair of order statistics that covers it with >= 95 % (binomial, no shape assumed).

    None below the n at which the extreme bounds the quantile with 95 %: ln 0.05 / ln max(q, 1 - q), that is 59 for p95, 299 for p99.
    """
    if not 0 < q < 1:
        raise ConfigError(f"quantile {q} does not exist; use 0 < q < 1")
    values = np.sort(_finite(x))
    n = len(values)
    needed = math.ceil(math.log(0.05) / math.log(max(q, 1 - q)))
    if n < needed:
        return Estimate(None, None, None, n, f"n = {n} is too small for p{100 * q:g}: at least {needed}")
    counts = np.arange(n + 1)
    log_choose = math.lgamma(n + 1) - np.array([math.lgamma(c + 1) + math.lgamma(n - c + 1) for c in counts])
    below = np.concatenate([[0.0], np.cumsum(np.exp(log_choose + counts * math.log(q) + (n - counts) * math.log1p(-q)))])  # P(B < c)
    # x_(l) <= quantile <= x_(u) with probability P(l <= B < u), ranks from 1.
    lows = np.arange(1, n)
    highs = np.searchsorted(below, below[lows] + 0.95)
    possible = highs <= n
    if not possible.any():
        return Estimate(float(np.quantile(values, q)), float(values[0]), float(values[-1]), n)
    best = int(np.argmin(np.where(possible, highs - lows, n + 1)))
    return Estimate(float(np.quantile(values, q)), float(values[lows[best] - 1]), float(values[highs[best] - 1]), n)


def _bootstrap(n: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=seed)).integers(0, n, (resamples, n))


def paired_difference(a: Sample, b: Sample, *, seed: int = 0, resamples: int = 2000) -> Estimate:
    """Mean of a_i - b_i with a percentile bootstrap interval over pairs. Raises ConfigError on unequal lengths."""
    left, right = _finite(a), _finite(b)
    if len(left) != len(right):
        raise ConfigError(f"{len(left)} and {len(right)} values are no pairs; give samples of one length")
    differences = left - right
    n = len(differences)
    if n < 2:
        return Estimate(float(differences[0]) if n else None, None, None, n, f"n = {n} pairs give no interval: at least 2")
    low, high = np.quantile(differences[_bootstrap(n, resamples, seed)].mean(axis=1), [0.025, 0.975])
    return Estimate(float(differences.mean()), float(low), float(high), n)


def hodges_lehmann(a: Sample, b: Sample, *, seed: int = 0, resamples: int = 500) -> Estimate:
    """Shift of a against b: median of all a_i - b_j (Hodges and Lehmann 1963), with a bootstrap interval over both samples."""
    left, right = _finite(a), _finite(b)
    n = min(len(left), len(right))
    if n == 0:
        return Estimate(None, None, None, 0, "an empty sample has no shift")
    value = float(np.median(left[:, None] - right))
    if n < 2:
        return Estimate(value, None, None, n, "n = 1 gives no interval: at least 2")
    picks = zip(_bootstrap(len(left), resamples, seed), _bootstrap(len(right), resamples, seed + 1))
    low, high = np.quantile([np.median(left[i][:, None] - right[j]) for i, j in picks], [0.025, 0.975])
    return Estimate(value, float(low), float(high), n)


def median_spread(x: Sample) -> Estimate:
    """The median with the quartiles as low and high (spread of the sample, no confidence interval)."""
    values = _finite(x)
    if not len(values):
        return Estimate(None, None, None, 0, "an empty sample has no median")
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Estimate(float(middle), float(low), float(high), len(values))
