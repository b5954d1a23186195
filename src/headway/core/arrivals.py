"""When requests come: seeded open-loop schedules as int64 nanoseconds from the start, sorted.

Streams are independent per app: a counter-based generator (Philox) keyed by seed and app name, so that adding an app leaves the others'
schedules as they are. Same seed, same numbers (numpy's uniform bits; only `gamma` uses a numpy distribution).
"""

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headway.core.errors import ConfigError

Times = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def generator(seed: int, app: str) -> np.random.Generator:
    """The random stream of one app."""
    key = hashlib.sha256(f"{seed}\0{app}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def _check(duration_s: float, **rates: float) -> None:
    for name, value in {"duration_s": duration_s, **rates}.items():
        if not (np.isfinite(value) and value >= 0):
            raise ConfigError(f"{name}: {value} cannot be used for arrivals; give a finite number that is not negative")
    if duration_s * max(rates.values(), default=0) > 1e8:
        raise ConfigError(f"{duration_s} s at {max(rates.values())} a second are more than 1e8 arrivals; shorten the run or lower the rate")


def _until(end: float, draw: Callable[[int], Floats]) -> Floats:
    """Running sums of positive gaps with mean 1, below `end`."""
    gaps = draw(int(end + 6 * np.sqrt(end) + 16))
    while (total := float(gaps.sum())) < end:
        gaps = np.concatenate([gaps, draw(int(end - total) + 16)])
    sums = np.cumsum(gaps)
    return sums[sums < end]


def _exponential(stream: np.random.Generator) -> Callable[[int], Floats]:
    # By inversion, because numpy may change its exponential sampler between versions but not its uniform bits.
    return lambda n: -np.log1p(-stream.random(n))


def _ns(seconds: Floats) -> Times:
    return np.rint(seconds * 1e9).astype(np.int64)


def poisson(rate_per_s: float, duration_s: float, *, seed: int, app: str) -> Times:
    """Independent arrivals at a constant rate."""
    return ramp(rate_per_s, rate_per_s, duration_s, seed=seed, app=app)


def gamma(rate_per_s: float, cv: float, duration_s: float, *, seed: int, app: str) -> Times:
    """Renewal process with Gamma gaps of coefficient of variation `cv` (1 = Poisson, above = bursty)."""
    _check(duration_s, rate_per_s=rate_per_s, cv=cv)
    if cv == 0:
        return constant(rate_per_s, duration_s)
    if rate_per_s == 0:
        return np.empty(0, np.int64)
    stream, shape = generator(seed, app), 1 / cv**2
    return _ns(_until(rate_per_s * duration_s, lambda n: stream.gamma(shape, 1 / shape, n)) / rate_per_s)


def constant(rate_per_s: float, duration_s: float) -> Times:
    """Evenly spaced, the first at 0."""
    _check(duration_s, rate_per_s=rate_per_s)
    return _ns(np.arange(int(np.ceil(rate_per_s * duration_s))) / rate_per_s) if rate_per_s else np.empty(0, np.int64)


def ramp(from_per_s: float, to_per_s: float, duration_s: float, *, seed: int, app: str) -> Times:
    """Poisson arrivals whose rate moves linearly from one value to another."""
    _check(duration_s, from_per_s=from_per_s, to_per_s=to_per_s)
    units = _until((from_per_s + to_per_s) / 2 * duration_s, _exponential(generator(seed, app)))
    # Time change: invert the expected count a*t + c*t^2/2, in the form that is stable for a small slope c.
    slope = (to_per_s - from_per_s) / duration_s if duration_s else 0.0
    root = np.sqrt(np.maximum(from_per_s**2 + 2 * slope * units, 0))
    return _ns(np.divide(2 * units, from_per_s + root, out=np.zeros_like(units), where=from_per_s + root > 0))


def burst(rate_per_s: float, factor: float, every_s: float, burst_s: float, duration_s: float, *, seed: int, app: str) -> Times:
    """Poisson arrivals at `rate_per_s`, and `factor` times that during the first `burst_s` of every `every_s` seconds."""
    _check(duration_s, rate_per_s=rate_per_s * max(factor, 1), factor=factor, every_s=every_s, burst_s=burst_s)
    if not every_s > 0 or burst_s > every_s:
        raise ConfigError(f"bursts of {burst_s} s every {every_s} s are not possible; burst_s must not exceed every_s")
    edges = np.unique(
        np.clip(
            np.concatenate([(k := np.arange(int(duration_s / every_s) + 1)) * every_s, k * every_s + burst_s, [duration_s]]), 0, duration_s
        )
    )
    middles = (edges[:-1] + edges[1:]) / 2
    rates = np.where(middles % every_s < burst_s, rate_per_s * factor, rate_per_s)
    expected = np.concatenate([[0.0], np.cumsum(rates * np.diff(edges))])
    units = _until(float(expected[-1]), _exponential(generator(seed, app)))
    return _ns(np.interp(units, expected, edges))
