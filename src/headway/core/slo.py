"""Slo: what was promised for one request, when each token is due, and whether a request was on time (README, "Promises").

The one scorer of the project: server, scheduler, bench and simulator all call `score`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from headway.core.errors import InvalidRequest

SloClass = Literal["realtime", "interactive", "batch", "background"]
Ended = Literal["finished", "shed", "failed", "cancelled_by_us", "cancelled_by_client"]

CLASSES: tuple[SloClass, ...] = get_args(SloClass)
MAX_PROMISE_S = 86_400.0
NS_PER_S = 1_000_000_000


def to_ns(seconds: float) -> int:
    """Nearest whole nanosecond; the one place where a promise in seconds becomes integer time."""
    return round(seconds * NS_PER_S)


@dataclass(frozen=True, slots=True)
class Slo:
    """A promise. Seconds at the edge; due times are int64 nanoseconds.

    Token i (from 0) is due at `arrival + ttft + i*tpot`. Absent parts (None) promise nothing.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    cls: SloClass = "interactive"

    @property
    def empty(self) -> bool:
        """True when no part is given (not yet resolved, or `background`)."""
        return self.ttft_s is None and self.tpot_s is None and self.e2e_s is None

    def due_ns(self, arrival_ns: int, i: int, first_ns: int | None = None) -> int | None:
        """When token `i` is due, or None when nothing is promised for it.

        Without `ttft_s` the pace counts from token 0, whose time is `first_ns` (None = not yet out: nothing is due).
        `e2e_s` is due once, for the last token: see `result_due_ns`.
        """
        if self.cls == "background":
            return None
        if i == 0:
            return None if self.ttft_s is None else arrival_ns + to_ns(self.ttft_s)
        if self.tpot_s is None:
            return None
        if self.ttft_s is not None:
            return arrival_ns + to_ns(self.ttft_s) + i * to_ns(self.tpot_s)
        return None if first_ns is None else first_ns + i * to_ns(self.tpot_s)

    def result_due_ns(self, arrival_ns: int) -> int | None:
        """When the last token, or the result, is due by `e2e_s`; None without one."""
        if self.cls == "background" or self.e2e_s is None:
            return None
        return arrival_ns + to_ns(self.e2e_s)


# The default classes (ours).
_DEFAULTS: dict[SloClass, Slo] = {
    "realtime": Slo(ttft_s=0.5, tpot_s=0.03, cls="realtime"),
    "interactive": Slo(ttft_s=1.0, tpot_s=0.05, cls="interactive"),
    "batch": Slo(ttft_s=10.0, tpot_s=0.5, cls="batch"),
    "background": Slo(cls="background"),
}


def class_default(cls: SloClass) -> Slo:
    """The promise of a class when the client names no numbers. Raises InvalidRequest for an unknown class."""
    try:
        return _DEFAULTS[cls]
    except KeyError:
        raise InvalidRequest(f"unknown SLO class {cls!r}; use one of {', '.join(CLASSES)}", param="slo.class") from None


def _checked_s(name: str, value: object, unit_s: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InvalidRequest(f"{name} is {value!r}; give a number", param=name) from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequest(f"{name} is {value!r}; give a number", param=name)
    # Compared before the conversion to float: an int may be too large for one.
    if not 0 < value <= MAX_PROMISE_S / unit_s:
        raise InvalidRequest(f"{name} is {value!r}; give a number above 0 and at most 24 hours", param=name)
    seconds = float(value) * unit_s
    if not math.isfinite(seconds) or to_ns(seconds) < 1:
        raise InvalidRequest(f"{name} is {value!r}; give at least one nanosecond", param=name)
    return seconds


def validate(slo: Slo) -> Slo:
    """The same promise, checked. Raises InvalidRequest (param `slo.*`) for a value <= 0, above 24 hours, NaN, or an unknown class."""
    class_default(slo.cls)
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        _checked_s(f"slo.{name}", getattr(slo, name), 1.0)
    return slo


def resolve(slo: Slo | None) -> Slo:
    """What is promised: given parts stand alone, nothing given is the class default (None: `interactive`), background promises nothing."""
    if slo is None:
        return _DEFAULTS["interactive"]
    validate(slo)
    if slo.cls == "background":
        return _DEFAULTS["background"]
    return _DEFAULTS[slo.cls] if slo.empty else slo


def from_request(body: object = None, headers: dict[str, str] | None = None) -> Slo:
    """The promise a client asked for, *unresolved* (`empty` when it gave no numbers), from the body's `slo` and lower-case headers.

    Body: `{"ttft_ms", "tpot_ms", "e2e_ms", "class"}`. Headers: `x-slo-ttft-ms`, `x-slo-tpot-ms`, `x-slo-e2e-ms`, `x-slo-class`, and
    `x-llm-d-slo-ttft-ms`, `x-llm-d-slo-tpot-ms`; the body wins, part by part. Raises InvalidRequest.
    """
    asked: dict[str, object] = {}
    for name, value in (headers or {}).items():
        for part in ("ttft-ms", "tpot-ms", "e2e-ms", "class"):
            if name == f"x-slo-{part}":
                asked[part.replace("-", "_")] = value
            elif name == f"x-llm-d-slo-{part}":
                asked.setdefault(part.replace("-", "_"), value)
    if body is not None:
        if not isinstance(body, dict):
            raise InvalidRequest(f"slo is {body!r}; give an object with ttft_ms, tpot_ms, e2e_ms, class", param="slo")
        unknown = sorted(str(key) for key in body if key not in ("ttft_ms", "tpot_ms", "e2e_ms", "class"))
        if unknown:
            raise InvalidRequest(f"slo has unknown field {unknown[0]!r}; use ttft_ms, tpot_ms, e2e_ms, class", param=f"slo.{unknown[0]}")
        asked.update({key: value for key, value in body.items() if value is not None})
    cls = asked.get("class", "interactive")
    if not isinstance(cls, str) or cls not in CLASSES:
        raise InvalidRequest(f"unknown SLO class {cls!r}; use one of {', '.join(CLASSES)}", param="slo.class")
    return Slo(
        ttft_s=_checked_s("slo.ttft_ms", asked.get("ttft_ms"), 1e-3),
        tpot_s=_checked_s("slo.tpot_ms", asked.get("tpot_ms"), 1e-3),
        e2e_s=_checked_s("slo.e2e_ms", asked.get("e2e_ms"), 1e-3),
        cls=cls,
    )


def looser(slo: Slo) -> Slo | None:
    """The default promise of the next looser class, or None below `background`."""
    at = CLASSES.index(slo.cls)
    return None if at + 1 == len(CLASSES) else _DEFAULTS[CLASSES[at + 1]]


def with_class(slo: Slo, cls: SloClass) -> Slo:
    """The same numbers under another class (background drops them)."""
    return _DEFAULTS["background"] if cls == "background" else replace(slo, cls=cls)


@dataclass(frozen=True, slots=True)
class Score:
    """Outcome of one request. `on_time` None = not scored; `tpot_s` is the mean pace, reported but never what is scored."""

    on_time: bool | None
    late_tokens: int
    max_lateness_ns: int
    ttft_s: float | None
    tpot_s: float | None
    first_late: int | None


def score(slo: Slo, arrival_ns: int, token_ns: Sequence[int], ended: Ended, end_ns: int) -> Score:
    """Whether the request was on time: every token met its due time, and the last one `e2e_s`.

    `token_ns[i]` is when token i was out (same clock as `arrival_ns`), `end_ns` when the request ended. Shed, failed and cancelled by
    us are missed. Cancelled by the client is not scored, unless a due time had passed unmet before. A request that finished without
    any token (the model stopped at once) is judged by its end. `background` is never scored.
    """
    count = len(token_ns)
    first_ns = token_ns[0] if count else None
    late_tokens = 0
    max_lateness_ns = 0
    first_late: int | None = None
    for i, out_ns in enumerate(token_ns):
        due = slo.due_ns(arrival_ns, i, first_ns)
        if ended == "finished" and i == count - 1:
            result_due = slo.result_due_ns(arrival_ns)
            if result_due is not None:
                due = result_due if due is None else min(due, result_due)
        if due is not None and out_ns > due:
            late_tokens += 1
            max_lateness_ns = max(max_lateness_ns, out_ns - due)
            first_late = i if first_late is None else first_late
    # What was due next when it ended: unmet if that time had passed.
    pending = [due for due in (slo.due_ns(arrival_ns, count, first_ns), slo.result_due_ns(arrival_ns)) if due is not None]
    if pending and end_ns > min(pending) and (ended != "finished" or count == 0):
        max_lateness_ns = max(max_lateness_ns, end_ns - min(pending))
        first_late = count if first_late is None else first_late
    on_time: bool | None
    if slo.cls == "background":
        on_time = None
    elif ended == "finished":
        on_time = first_late is None
    elif ended == "cancelled_by_client":
        on_time = None if first_late is None else False
    else:
        on_time = False
    return Score(
        on_time=on_time,
        late_tokens=late_tokens,
        max_lateness_ns=max_lateness_ns,
        ttft_s=None if first_ns is None else (first_ns - arrival_ns) / NS_PER_S,
        tpot_s=None if count < 2 else (token_ns[-1] - token_ns[0]) / (count - 1) / NS_PER_S,
        first_late=first_late,
    )
