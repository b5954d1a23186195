"""Slo: what was promised for one request, when each token is due, and whether a request was on time (DESIGN.md section 2)."""

from dataclasses import dataclass
from typing import Literal

SloClass = Literal["realtime", "interactive", "batch", "background"]


@dataclass(frozen=True, slots=True)
class Slo:
    """A promise. Seconds at the edge; due times are int64 nanoseconds.

    Token i (from 0) is due at `arrival + ttft + i*tpot`. Absent parts (None) promise nothing.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    cls: SloClass = "interactive"
