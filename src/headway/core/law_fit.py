"""Fitting an `IterationLaw`: non-negative least squares on relative error (docs/engine.md, "Laws"). numpy only."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from headway.core.errors import ConfigError
from headway.core.law import FitQuality, IterationLaw, LawPoint, Residual, Valid

FloatArray = npt.NDArray[np.float64]

# A knot of G per this many points: more would fit noise (40 points at most).
POINTS_PER_KNOT = 4
MIN_POINTS = 4


def nnls(a: FloatArray, b: FloatArray, *, tolerance: float = 1e-10) -> FloatArray:
    """x >= 0 minimising |a x - b|, by the active-set method of Lawson and Hanson, "Solving Least Squares Problems" (1974), ch. 23.

    a: [m, n], b: [m] float64; returns [n]. Deterministic; at most 10 n outer steps.
    """
    _, n = a.shape
    scale = np.sqrt((a * a).sum(axis=0))
    scale[scale == 0] = 1.0
    a = a / scale
    x = np.zeros(n)
    passive = np.zeros(n, dtype=bool)
    for _ in range(10 * n):
        gradient = a.T @ (b - a @ x)
        gradient[passive] = -np.inf
        enter = int(np.argmax(gradient))
        if gradient[enter] <= tolerance:
            break
        passive[enter] = True
        while True:
            z = np.zeros(n)
            z[passive] = np.linalg.lstsq(a[:, passive], b, rcond=None)[0]
            blocked = passive & (z <= 0)
            if not blocked.any():
                x = z
                break
            step = np.min(x[blocked] / np.maximum(x[blocked] - z[blocked], 1e-300))
            x = x + step * (z - x)
            passive &= x > 1e-14
            x[~passive] = 0.0
            if not passive.any():
                break
    return np.asarray(x / scale, dtype=np.float64)


def _knots(points: Sequence[LawPoint]) -> list[int]:
    """Row counts where G may bend: measured ones, evenly thinned, so that every piece holds a measurement."""
    rows = sorted({p.decode_rows + p.chunk_tokens for p in points})
    wanted = max(2, min(len(rows), len(points) // POINTS_PER_KNOT))
    picked = {rows[round(i * (len(rows) - 1) / (wanted - 1))] for i in range(wanted)}
    return sorted({0} | picked)


def _design(points: Sequence[LawPoint], knots: Sequence[int]) -> FloatArray:
    """[points, 8 + pieces]: c_host, h, d0, d1, d2, p0, p1, p2, then the length of each piece of G that the point covers."""
    table = np.zeros((len(points), 8 + len(knots) - 1))
    for row, p in zip(table, points):
        c, has_decode, has_chunk = p.chunk_tokens, p.decode_rows > 0, p.chunk_tokens > 0
        row[:8] = (
            1.0,
            p.sampled_rows,
            has_decode,
            p.decode_rows,
            p.kv_read_tokens if has_decode else 0,
            has_chunk,
            c,
            c * (c + 2 * p.chunk_prefix),
        )
        total = p.decode_rows + c
        for j, (low, high) in enumerate(pairwise(knots)):
            top = total if j == len(knots) - 2 else min(total, high)
            row[8 + j] = max(0, top - low)
    return table


def _solve(points: Sequence[LawPoint], knots: Sequence[int]) -> IterationLaw:
    seconds = np.array([p.seconds for p in points])
    x = nnls(_design(points, knots) / seconds[:, None], np.ones(len(points)))
    g_s = np.concatenate([[0.0], np.cumsum(x[8:] * np.diff(np.array(knots, dtype=float)))])
    return IterationLaw(
        c_host_s=float(x[0]),
        g_tokens=tuple(knots),
        g_s=tuple(float(v) for v in g_s),
        h_rows=(0, 1) if x[1] > 0 else (),
        h_s=(0.0, float(x[1])) if x[1] > 0 else (),
        d0=float(x[2]),
        d1=float(x[3]),
        d2=float(x[4]),
        p0=float(x[5]),
        p1=float(x[6]),
        p2=float(x[7]),
    )


def _ratios(law: IterationLaw, points: Sequence[LawPoint]) -> FloatArray:
    """actual / predicted of every point."""
    predicted = [
        law.predict_s(p.decode_rows, p.kv_read_tokens, ((p.chunk_tokens, p.chunk_prefix),) if p.chunk_tokens else (), p.sampled_rows)
        for p in points
    ]
    return np.asarray(np.array([p.seconds for p in points]) / np.maximum(np.array(predicted), 1e-12), dtype=np.float64)


def _held_out_mape(points: Sequence[LawPoint], knots: Sequence[int]) -> float:
    """Mean absolute relative error when each group of equal decode rows is left out in turn; NaN under 12 points or 3 groups."""
    groups = sorted({p.decode_rows for p in points})
    if len(points) < 12 or len(groups) < 3:
        return math.nan
    errors: list[float] = []
    for left_out in groups:
        kept = [p for p in points if p.decode_rows != left_out]
        tested = [p for p in points if p.decode_rows == left_out]
        if len(kept) < MIN_POINTS:
            return math.nan
        errors.extend(np.abs(1.0 / _ratios(_solve(kept, knots), tested) - 1.0))
    return float(np.mean(errors))


def fit(
    points: Sequence[LawPoint], *, model: str = "", device: str = "", dtype: str = "", engine: str = "", made_by: str = ""
) -> IterationLaw:
    """The law that best explains the points, with its errors and residual quantiles.

    Raises ConfigError for fewer than 4 points or a time that is not positive. A quality above 10 % MAPE is used with a warning by the
    caller.
    """
    if len(points) < MIN_POINTS:
        raise ConfigError(f"a law needs at least {MIN_POINTS} measured points, got {len(points)}: run `headway calibrate`")
    for p in points:
        if not (math.isfinite(p.seconds) and p.seconds > 0):
            raise ConfigError(f"measured time {p.seconds!r} of {p} is not positive: run `headway calibrate` again")
    knots = _knots(points)
    law = _solve(points, knots)
    ratios = _ratios(law, points)
    errors = 1.0 / ratios - 1.0
    q05, q50, q95 = (float(q) for q in np.quantile(ratios, (0.05, 0.5, 0.95)))
    return replace(
        law,
        residual=Residual(q05, q50, q95),
        quality=FitQuality(
            n=len(points),
            mape=float(np.mean(np.abs(errors))),
            bias=float(np.mean(errors)),
            worst=float(np.max(np.abs(errors))),
            held_out_mape=_held_out_mape(points, knots),
        ),
        valid=Valid(
            tokens=max(p.decode_rows + p.chunk_tokens for p in points),
            kv=max(p.kv_read_tokens for p in points),
            prefix=max(p.chunk_prefix for p in points),
        ),
        model=model,
        device=device,
        dtype=dtype,
        engine=engine,
        made_by=made_by,
    )
