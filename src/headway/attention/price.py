"""AttentionLaw: the seconds of a plan from what it reads and multiplies, fitted by measurement; and the largest prefill within a budget.

T = call + items * item + kept tokens * token(run bytes) + packed rows * kept tokens * pair + partial rows * merge, on one worker; a plan
takes the most loaded of its workers. Every coefficient is non-negative, so that adding work never makes a plan cheaper.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from headway.core.errors import ConfigError
from headway.core.paths import laws_dir
from headway.kernels.cpu.isa import select
from headway.kernels.cpu.objects import code_key

SCHEMA = "headway.attention-law/1"


@dataclass(frozen=True, slots=True)
class AttentionPoint:
    """One measured run on one worker: counts over its items, and the median seconds of its repetitions."""

    items: int
    kv_tokens: int
    pairs: int
    merge_parts: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AttentionLaw:
    """Seconds, per kv head. `token_s` is of pages read at random; `runs` = ((contiguous bytes, token_s), ...) refines it where measured.

    `head_dims` = D_qk + D_vo. `p95_ratio`: 95 % quantile of actual / predicted. `error`: median relative error on held-out points.
    """

    call_s: float
    item_s: float
    token_s: float
    pair_s: float
    merge_s: float
    head_dims: int
    p95_ratio: float = 1.5
    error: float = math.nan
    runs: tuple[tuple[float, float], ...] = ()
    made_by: str = "assumed"

    def __post_init__(self) -> None:
        for name in ("call_s", "item_s", "token_s", "pair_s", "merge_s", "p95_ratio"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value!r} of an attention law must be finite and >= 0: run `headway attention calibrate` again")

    def token_at(self, run_bytes: float) -> float:
        """token_s where keys lie in contiguous runs of this many bytes (logarithmic interpolation)."""
        if not self.runs:
            return self.token_s
        sizes, seconds = zip(*self.runs, strict=True)
        return float(np.interp(math.log(max(run_bytes, 1.0)), np.log(sizes), seconds))

    def predict_s(self, items: int, kv_tokens: int, pairs: int, merge_parts: int) -> float:
        """Of one worker."""
        return self.call_s + items * self.item_s + kv_tokens * self.token_s + pairs * self.pair_s + merge_parts * self.merge_s

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True, indent=1)

    @staticmethod
    def from_json(text: str) -> "AttentionLaw":
        """Raises ConfigError for anything that is not a law of this schema."""
        try:
            data = json.loads(text)
            if data.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            runs = tuple((float(a), float(b)) for a, b in data.pop("runs"))
            known = {f.name for f in fields(AttentionLaw)}
            return AttentionLaw(runs=runs, **{k: v for k, v in data.items() if k in known})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"not an attention law ({error}): run `headway attention calibrate` again") from error


def assumed(group: int, head_dim_qk: int, head_dim_vo: int, kv_bytes: int) -> AttentionLaw:
    """A law before any measurement: 10 GB/s of random pages and 40 GFLOP/s a core (specs/attention.md 11, one Zen 4 under load)."""
    dims = head_dim_qk + head_dim_vo
    return AttentionLaw(8e-6, 5e-7, dims * kv_bytes / 10e9, 2 * dims / 40e9, 1e-8 + group * head_dim_vo * 4 / 10e9, dims)


def stored_path(group: int, head_dim_qk: int, head_dim_vo: int, q_dtype: str, kv_dtype: str, packed: bool) -> Path:
    """Where the law of a shape lies; its name carries the CPU and the kernels' code, so that another of either finds nothing."""
    isa = select()
    name = f"{group}-{head_dim_qk}-{head_dim_vo}-{q_dtype}-{kv_dtype}-{'packed' if packed else 'rows'}-{code_key(isa.name)}"
    return laws_dir() / f"attention-{name}.json"


def stored(path: Path) -> AttentionLaw | None:
    """The law at `path`; None when there is none or it cannot be read."""
    try:
        return AttentionLaw.from_json(path.read_text())
    except (OSError, ConfigError):
        return None


def fit(points: Sequence[AttentionPoint], head_dims: int, *, made_by: str = "") -> AttentionLaw:
    """Non-negative least squares on relative error; every third point is held out for the law's error, then all are used.

    Raises ConfigError for fewer than 9 points or seconds that are not positive.
    """
    if len(points) < 9 or any(p.seconds <= 0 for p in points):
        raise ConfigError(f"{len(points)} points with positive seconds cannot fit five coefficients: measure at least 9")
    from headway.core.law_fit import nnls  # not needed to read a law: it costs a second process 20 ms

    table = np.array([[1, p.items, p.kv_tokens, p.pairs, p.merge_parts] for p in points], np.float64)
    seconds = np.array([p.seconds for p in points])

    def solve(rows: "np.ndarray[tuple[int, ...], np.dtype[np.intp]]") -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
        return nnls(table[rows] / seconds[rows, None], np.ones(len(rows)))

    every = np.arange(len(points))
    held = every[2::3]
    ratios = seconds[held] / (table[held] @ solve(np.setdiff1d(every, held)))
    call_s, item_s, token_s, pair_s, merge_s = map(float, solve(every))
    return AttentionLaw(
        call_s,
        item_s,
        token_s,
        pair_s,
        merge_s,
        head_dims,
        p95_ratio=float(max(1.0, np.quantile(ratios, 0.95))),
        error=float(np.median(np.abs(1 / ratios - 1))),
        made_by=made_by,
    )


def largest_within(budget_s: float, cap: int, step: int, seconds_of: Callable[[int], float]) -> int:
    """Largest multiple of `step` up to `cap` (or `cap` itself) whose `seconds_of` is within the budget; 0 when none. Bisection."""
    if cap <= 0 or seconds_of(min(step, cap)) > budget_s:
        return 0
    if seconds_of(cap) <= budget_s:
        return cap
    low, high = 1, max(1, (cap - 1) // step)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds_of(middle * step) <= budget_s else (low, middle - 1)
    return low * step
