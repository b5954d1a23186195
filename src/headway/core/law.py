"""Law: the seconds of one engine iteration from its shape (docs/engine.md, "Laws"), its file form and its online correction.

Every coefficient is non-negative, so a law never shrinks when work is added: that is what lets `max_chunk` bisect.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise

from headway.core.errors import ConfigError

SCHEMA = "headway.law/1"

# Ours: half-life 2,000 iterations, alarm at 25 % drift.
FORGET = 0.5 ** (1.0 / 2000.0)
DRIFT_ALARM = 0.25
HOST_RISE_S = 0.010
"""Host time may be corrected upward by this much."""


@dataclass(frozen=True, slots=True)
class LawPoint:
    """One measured iteration: `seconds` is the median of its repetitions. At most one chunk, of `chunk_tokens` after `chunk_prefix`."""

    decode_rows: int
    kv_read_tokens: int
    chunk_tokens: int
    chunk_prefix: int
    sampled_rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FitQuality:
    """Relative errors of a fit: mean absolute, signed mean, worst.

    `held_out_mape` leaves whole groups of equal decode rows out in turn (NaN = too few points).
    """

    n: int = 0
    mape: float = 0.0
    bias: float = 0.0
    worst: float = 0.0
    held_out_mape: float = math.nan


@dataclass(frozen=True, slots=True)
class Residual:
    """Quantiles of actual / predicted."""

    q05: float = 1.0
    q50: float = 1.0
    q95: float = 1.0


@dataclass(frozen=True, slots=True)
class Valid:
    """Largest measured shape; beyond it the law extrapolates the last slope (`IterationLaw.covers` tells)."""

    tokens: int = 0
    kv: int = 0
    prefix: int = 0


def _interpolate(knots: tuple[int, ...], values: tuple[float, ...], at: int) -> float:
    """Piecewise linear through (knots, values), last slope beyond the end, first value before the start."""
    if not knots:
        return 0.0
    j = bisect_right(knots, at)
    if j == 0:
        return values[0]
    if j == len(knots):
        if j == 1:
            return values[0]
        j -= 1
    low, high = knots[j - 1], knots[j]
    return values[j - 1] + (values[j] - values[j - 1]) * ((at - low) / (high - low))


@dataclass(frozen=True, slots=True)
class IterationLaw:
    """T = c_host + s*(G(rows) + H(sampled) + [B>0](d0 + d1*B + d2*KV) + [c>0](p0 + p1*c + p2*sum c_k*(c_k + 2*prefix_k))).

    Seconds throughout. `rows` = decode rows B plus all chunk tokens c; KV = cached tokens the decode rows read. G and H are monotone
    piecewise linear: `g_tokens`/`g_s`, `h_rows`/`h_s`. The form is ours: weights are read once (G), keys once a decode row (d2)
    and once a pair of prompt rows (p2).
    """

    c_host_s: float = 0.0
    s: float = 1.0
    g_tokens: tuple[int, ...] = ()
    g_s: tuple[float, ...] = ()
    h_rows: tuple[int, ...] = ()
    h_s: tuple[float, ...] = ()
    d0: float = 0.0
    d1: float = 0.0
    d2: float = 0.0
    p0: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    residual: Residual = field(default_factory=Residual)
    quality: FitQuality = field(default_factory=FitQuality)
    valid: Valid = field(default_factory=Valid)
    model: str = ""
    device: str = ""
    dtype: str = ""
    engine: str = ""
    made_by: str = ""

    def __post_init__(self) -> None:
        for name in ("c_host_s", "s", "d0", "d1", "d2", "p0", "p1", "p2"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise ConfigError(f"law coefficient {name} is {value!r}; it must be a finite number >= 0: run `headway calibrate` again")
        for knots, values, name in ((self.g_tokens, self.g_s, "G"), (self.h_rows, self.h_s, "H")):
            rising = all(a < b for a, b in pairwise(knots)) and all(a <= b for a, b in pairwise(values))
            if len(knots) != len(values) or not rising or (values and not 0 <= values[0] <= values[-1] < math.inf):
                raise ConfigError(f"law table {name} is not monotone, finite and non-negative: run `headway calibrate` again")

    def bare_s(self, decode_rows: int, kv_read_tokens: int, chunks: Sequence[tuple[int, int]] = (), sampled_rows: int = 0) -> float:
        """The bracket of the form, before `s` and `c_host`; chunks = (tokens, prefix_tokens) of each."""
        tokens = 0
        pairs = 0
        for c, prefix in chunks:
            tokens += c
            pairs += c * (c + 2 * prefix)
        t = _interpolate(self.g_tokens, self.g_s, decode_rows + tokens) + _interpolate(self.h_rows, self.h_s, sampled_rows)
        if decode_rows:
            t += self.d0 + self.d1 * decode_rows + self.d2 * kv_read_tokens
        if tokens:
            t += self.p0 + self.p1 * tokens + self.p2 * pairs
        return t

    def predict_s(self, decode_rows: int, kv_read_tokens: int, chunks: Sequence[tuple[int, int]] = (), sampled_rows: int = 0) -> float:
        """Expected seconds of one iteration."""
        return self.c_host_s + self.s * self.bare_s(decode_rows, kv_read_tokens, chunks, sampled_rows)

    def covers(self, decode_rows: int, kv_read_tokens: int, chunks: Sequence[tuple[int, int]] = ()) -> bool:
        """Whether the shape lies inside what was measured. Studies and bounds must refuse to go on when it does not."""
        tokens = decode_rows + sum(c for c, _ in chunks)
        return tokens <= self.valid.tokens and kv_read_tokens <= self.valid.kv and all(p <= self.valid.prefix for _, p in chunks)

    def to_params(self) -> dict[str, object]:
        """Plain JSON-able data in the file form `headway.law/1`; floats survive exactly."""
        return {
            "schema": SCHEMA,
            "kind": "iteration",
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "engine": self.engine,
            "knots": {"tokens": list(self.g_tokens), "G_s": list(self.g_s), "rows": list(self.h_rows), "H_s": list(self.h_s)},
            "coef": {name: getattr(self, name) for name in ("d0", "d1", "d2", "p0", "p1", "p2")},
            "c_host_s": self.c_host_s,
            "s": self.s,
            "residual": asdict(self.residual),
            "fit": {k: (None if isinstance(v, float) and math.isnan(v) else v) for k, v in asdict(self.quality).items()},
            "valid": asdict(self.valid),
            "made_by": self.made_by,
        }

    @staticmethod
    def from_params(params: dict[str, object]) -> "IterationLaw":
        """Inverse of `to_params`. Raises ConfigError for another schema, a missing field or an impossible value."""
        if not isinstance(params, dict) or params.get("schema") != SCHEMA or params.get("kind") != "iteration":
            raise ConfigError(f"not a law of schema {SCHEMA}: run `headway calibrate` again")
        try:
            knots, coef, fit, valid, residual = (_mapping(params[key]) for key in ("knots", "coef", "fit", "valid", "residual"))
            return IterationLaw(
                c_host_s=_number(params["c_host_s"]),
                s=_number(params["s"]),
                g_tokens=tuple(int(_number(v)) for v in _list(knots["tokens"])),
                g_s=tuple(_number(v) for v in _list(knots["G_s"])),
                h_rows=tuple(int(_number(v)) for v in _list(knots["rows"])),
                h_s=tuple(_number(v) for v in _list(knots["H_s"])),
                d0=_number(coef["d0"]),
                d1=_number(coef["d1"]),
                d2=_number(coef["d2"]),
                p0=_number(coef["p0"]),
                p1=_number(coef["p1"]),
                p2=_number(coef["p2"]),
                residual=Residual(_number(residual["q05"]), _number(residual["q50"]), _number(residual["q95"])),
                quality=FitQuality(
                    n=int(_number(fit["n"])),
                    mape=_number(fit["mape"]),
                    bias=_number(fit["bias"]),
                    worst=_number(fit["worst"]),
                    held_out_mape=math.nan if fit.get("held_out_mape") is None else _number(fit["held_out_mape"]),
                ),
                valid=Valid(int(_number(valid["tokens"])), int(_number(valid["kv"])), int(_number(valid["prefix"]))),
                model=str(params.get("model", "")),
                device=str(params.get("device", "")),
                dtype=str(params.get("dtype", "")),
                engine=str(params.get("engine", "")),
                made_by=str(params.get("made_by", "")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"damaged law ({error!r}): run `headway calibrate` again") from error

    def to_json(self) -> str:
        return json.dumps(self.to_params(), sort_keys=True, indent=1)

    @staticmethod
    def from_json(text: str) -> "IterationLaw":
        """Raises ConfigError for anything that is not a law."""
        try:
            params = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"law file is not JSON ({error}): run `headway calibrate` again") from error
        return IterationLaw.from_params(params)


def _mapping(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def max_chunk(
    law: IterationLaw,
    budget_s: float,
    decode_rows: int,
    kv_read_tokens: int,
    prefix_tokens: int,
    cap: int,
    step: int = 8,
    before: Sequence[tuple[int, int]] = (),
    sampled_rows: int = 0,
) -> int:
    """Largest chunk (a multiple of `step`, or exactly `cap`) whose iteration is predicted within `budget_s`; 0 when not even `step` is.

    `before` are chunks the iteration already has. `step` is one kernel tile: part of a tile costs as much as a whole one.
    """
    if cap <= 0 or budget_s <= law.c_host_s:
        return 0
    bare_budget = (budget_s - law.c_host_s) / law.s if law.s > 0 else math.inf
    # Everything that does not depend on the chunk is summed once: this runs between two iterations.
    tokens = sum(c for c, _ in before)
    pairs = sum(c * (c + 2 * prefix) for c, prefix in before)
    fixed = _interpolate(law.h_rows, law.h_s, sampled_rows) + law.p0 + law.p1 * tokens + law.p2 * pairs
    if decode_rows:
        fixed += law.d0 + law.d1 * decode_rows + law.d2 * kv_read_tokens
    rows = decode_rows + tokens

    def fits(c: int) -> bool:
        grown = _interpolate(law.g_tokens, law.g_s, rows + c)
        return fixed + grown + law.p1 * c + law.p2 * c * (c + 2 * prefix_tokens) <= bare_budget

    if fits(cap):
        return cap
    low, high = 0, (cap - 1) // step  # in steps; low fits (or is 0), high + 1 does not
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle * step):
            low = middle
        else:
            high = middle - 1
    return low * step


@dataclass(slots=True)
class OnlineCorrection:
    """Recursive least squares on (c_host, s) only, relative error, half-life 2,000 iterations (with exponential
    forgetting: Ljung, "System Identification", 1987, ch. 11).

    `s` stays within [0.5, 2] x fitted. Plain floats: `to_plain`/`from_plain` restore it exactly.
    """

    c_host_s: float
    s: float
    fitted_s: float
    fitted_c_host_s: float
    p00: float
    p01: float
    p11: float
    drift: float = 0.0

    @staticmethod
    def of(law: IterationLaw) -> "OnlineCorrection":
        """A correction that trusts the law: prior spread 5 % of s and 1 ms of host time, in units of one relative observation of sd 5 %."""
        return OnlineCorrection(law.c_host_s, law.s, law.s, law.c_host_s, p00=(1e-3 / 0.05) ** 2, p01=0.0, p11=law.s**2)

    def observe(self, bare_s: float, actual_s: float) -> None:
        """One iteration: `bare_s` is the law's bracket (`IterationLaw.bare_s`), `actual_s` what it took.

        Outliers count as at most 2x off."""
        predicted = self.c_host_s + self.s * bare_s
        if bare_s <= 0 or actual_s <= 0 or predicted <= 0:
            return
        actual_s = min(max(actual_s, 0.5 * predicted), 2.0 * predicted)
        x0, x1 = 1.0 / predicted, bare_s / predicted
        error = actual_s / predicted - 1.0
        px0 = self.p00 * x0 + self.p01 * x1
        px1 = self.p01 * x0 + self.p11 * x1
        gain = FORGET + x0 * px0 + x1 * px1
        k0, k1 = px0 / gain, px1 / gain
        c_host_s, s = self._bounded(self.c_host_s + k0 * error, self.s + k1 * error)
        if c_host_s != self.c_host_s + k0 * error:
            # At its bound c_host cannot take its share of the step, and the other share alone may point away from what was seen (measured:
            # predictions grew to 2.5x): s is then fitted by itself.
            gain = FORGET + x1 * x1 * self.p11
            _, s = self._bounded(c_host_s, self.s + self.p11 * x1 / gain * (actual_s - c_host_s - self.s * bare_s) / predicted)
            self.p11 = min(self.p11 / gain, 4.0 * self.fitted_s**2)
            self.p01 = 0.0
        elif s != self.s + k1 * error:
            gain = FORGET + x0 * x0 * self.p00
            c_host_s, _ = self._bounded(self.c_host_s + self.p00 * x0 / gain * (actual_s - self.c_host_s - s * bare_s) / predicted, s)
            self.p00 = min(self.p00 / gain, 1e-3)
            self.p01 = 0.0
        else:
            # Bounded: with one unchanging shape forgetting alone would let the unseen direction grow without limit.
            self.p00 = min((self.p00 - k0 * px0) / FORGET, 1e-3)
            self.p11 = min((self.p11 - k1 * px1) / FORGET, 4.0 * self.fitted_s**2)
            self.p01 = (self.p01 - k0 * px1) / FORGET
            bound = math.sqrt(max(self.p00 * self.p11, 0.0)) * 0.999
            self.p01 = min(max(self.p01, -bound), bound)
        self.c_host_s, self.s = c_host_s, s
        self.drift += (error - self.drift) * 0.01

    def _bounded(self, c_host_s: float, s: float) -> tuple[float, float]:
        return min(max(c_host_s, 0.0), self.fitted_c_host_s + HOST_RISE_S), min(max(s, 0.5 * self.fitted_s), 2.0 * self.fitted_s)

    @property
    def alarm(self) -> bool:
        """True when `s`, or the recent mean error, is 25 % off the fitted law, or host time is at its upper bound: calibrate again."""
        if self.fitted_s <= 0:
            return False
        host_at_bound = self.c_host_s >= self.fitted_c_host_s + HOST_RISE_S
        return host_at_bound or abs(self.s / self.fitted_s - 1.0) > DRIFT_ALARM or abs(self.drift) > DRIFT_ALARM

    def corrected(self, law: IterationLaw) -> IterationLaw:
        """The law with today's (c_host, s)."""
        return replace(law, c_host_s=self.c_host_s, s=self.s)

    def to_plain(self) -> list[float]:
        return [self.c_host_s, self.s, self.fitted_s, self.fitted_c_host_s, self.p00, self.p01, self.p11, self.drift]

    @staticmethod
    def from_plain(plain: Sequence[float]) -> "OnlineCorrection":
        return OnlineCorrection(*plain)


def fit(
    points: Sequence[LawPoint], *, model: str = "", device: str = "", dtype: str = "", engine: str = "", made_by: str = ""
) -> IterationLaw:
    """The law that best explains the points: see `core.law_fit.fit` (imported only here, so that reading a law needs no numpy)."""
    from headway.core.law_fit import fit as solve

    return solve(points, model=model, device=device, dtype=dtype, engine=engine, made_by=made_by)
