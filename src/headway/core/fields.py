"""Typed reading of one JSON object sent by a client; every complaint names the field (`param`), the value and the range."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from headway.core.errors import InvalidRequest

Object = Mapping[str, Any]
JSON_DEPTH = 64  # tools' schemas nest about 10 deep; what comes after us recurses
_SHOWN_CHARACTERS = 80


def shown(value: object) -> str:
    """The value as an error message may repeat it: short, on one line."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def expect(condition: bool, name: str, value: object, rule: str) -> None:
    """Raises InvalidRequest "NAME must be RULE; got VALUE" unless `condition`."""
    if not condition:
        raise InvalidRequest(f"'{name}' must be {rule}; got {shown(value)}", param=name)


def integer(body: Object, name: str, default: int | None, low: int, high: int) -> int | None:
    """An integer in [low, high]; absent or null gives `default`. A float without a fraction counts as an integer."""
    value = body.get(name)
    if value is None:
        return default
    rule = f"an integer between {low} and {high}"
    expect(type(value) in (int, float) and value == value and abs(value) < 2**64 and int(value) == value, name, value, rule)
    expect(low <= value <= high, name, value, rule)
    return int(value)


def number(body: Object, name: str, default: float, low: float, high: float) -> float:
    """A finite number in [low, high]; absent or null gives `default`."""
    value = body.get(name)
    if value is None:
        return default
    rule = f"a number between {low:g} and {high:g}"
    expect(type(value) in (int, float), name, value, rule)
    expect(math.isfinite(value) and low <= value <= high, name, value, rule)
    return float(value)


def boolean(body: Object, name: str, default: bool = False) -> bool:
    """true or false; absent or null gives `default`."""
    value = body.get(name)
    if value is None:
        return default
    expect(type(value) is bool, name, value, "true or false")
    return bool(value)


def text(body: Object, name: str, default: str = "", limit: int = 1024) -> str:
    """A string of at most `limit` characters; absent or null gives `default`."""
    value = body.get(name)
    if value is None:
        return default
    expect(isinstance(value, str) and len(value) <= limit, name, value, f"a string of at most {limit} characters")
    return str(value)


def mapping(body: Object, name: str) -> dict[str, Any]:
    """A JSON object; absent or null gives {}."""
    value = body.get(name)
    if value is None:
        return {}
    expect(isinstance(value, dict), name, value, "an object")
    return dict(value)


def no_others(body: Object, name: str, known: Collection[str]) -> None:
    """Raises InvalidRequest when `body` (the field called `name`) has a key outside `known` that is not null."""
    for key, value in body.items():
        if key not in known and value is not None:
            raise InvalidRequest(
                f"'{name}.{shown(key)[1:-1]}' is not known here; known are {', '.join(sorted(known))}", param=f"{name}.{key}"[:200]
            )


def is_token_ids(value: object) -> bool:
    """Whether this is a list of plain integers (bool is none)."""
    return isinstance(value, list) and all(type(item) is int for item in value)


def check_depth(raw: bytes, parsed: object) -> None:
    """Raises InvalidRequest when the JSON is nested deeper than JSON_DEPTH.

    Counting brackets settles nearly every body at memory speed (n brackets cannot nest deeper than n); only others are walked.
    """
    if raw.count(b"[") + raw.count(b"{") <= JSON_DEPTH:
        return
    level: list[Any] = [parsed]
    for _ in range(JSON_DEPTH):
        deeper: list[Any] = []
        for item in level:
            if type(item) is dict:
                deeper.extend(value for value in item.values() if type(value) in (dict, list))
            elif type(item) is list:
                deeper.extend(value for value in item if type(value) in (dict, list))
        if not deeper:
            return
        level = deeper
    raise InvalidRequest(f"the JSON body is nested deeper than {JSON_DEPTH} levels")
