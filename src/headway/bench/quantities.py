"""Numbers with units as workflow files write them: durations (us, ms, s, m), rates (/s, /m), percentages."""

import math
import re

from headway.core.errors import ConfigError

_DURATION_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_RATE_PER_S = {"/s": 1.0, "/m": 1.0 / 60.0}
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(/?[A-Za-z%]*)\s*")


def _split(value: object, where: str, what: str) -> tuple[float, str]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(f"{where}: {value!r} is not {what}")
    if not isinstance(value, str):
        number, unit = float(value), ""
    else:
        match = _NUMBER.fullmatch(value)
        if match is None:
            raise ConfigError(f"{where}: {value!r} is not {what}")
        number, unit = float(match[1]), match[2]
    if not math.isfinite(number) or number < 0:
        raise ConfigError(f"{where}: {value!r} must be finite and not negative; write {what}")
    return number, unit


def duration_s(value: object, where: str) -> float:
    """Seconds of "250ms", "10s", "2m". A bare number is refused except 0: its unit would be a guess."""
    what = "a duration such as 250ms, 10s or 2m"
    number, unit = _split(value, where, what)
    if number == 0.0 and unit == "":
        return 0.0
    if unit not in _DURATION_S:
        raise ConfigError(f"{where}: {value!r} is not {what}")
    return number * _DURATION_S[unit]


def rate_per_s(value: object, where: str) -> float:
    """Requests a second of "0.5/s" or "30/m"; must be above 0."""
    what = "a rate such as 0.5/s or 30/m"
    number, unit = _split(value, where, what)
    if unit not in _RATE_PER_S or number == 0.0:
        raise ConfigError(f"{where}: {value!r} is not {what}")
    return number * _RATE_PER_S[unit]


def share(value: object, where: str) -> float:
    """0..1 of "95%" or 0.95."""
    what = "a share such as 95% or 0.95"
    number, unit = _split(value, where, what)
    if unit not in ("", "%"):
        raise ConfigError(f"{where}: {value!r} is not {what}")
    number = number / 100.0 if unit == "%" else number
    if number > 1.0:
        raise ConfigError(f"{where}: {value!r} is above 100 %; write {what}")
    return number


def format_duration(seconds: float) -> str:
    """A duration that `duration_s` reads back exactly: shortest of s and ms."""
    milliseconds = seconds * 1e3
    if seconds >= 1.0 or milliseconds != int(milliseconds):
        return f"{seconds:.17g}s"
    return f"{int(milliseconds)}ms"
