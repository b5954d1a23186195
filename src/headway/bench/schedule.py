"""The whole schedule of a run, computed from the seed before the run: same workflow and seed, same bytes.

A row says when a request is due to be sent, which prompt it carries (a draw, see `prompts`) and how many tokens it asks for.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

from headway.bench.workflow import App, Workflow
from headway.core.arrivals import constant, poisson
from headway.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Planned:
    """One request. `scheduled_ns` counts from the run's start; in a closed loop it is 0 and the client's turn decides."""

    app: str
    index: int
    scheduled_ns: int
    draw: int
    output_tokens: int


def build(workflow: Workflow) -> list[Planned]:
    """Every request of every app, by time, then app name. Raises ConfigError when nothing would arrive."""
    rows = [row for app in workflow.apps.values() for row in _of_app(workflow, app)]
    if not rows:
        raise ConfigError(f"the workflow {workflow.name!r} schedules no request in {workflow.run.max_s:g} s; raise run.max or the rates")
    return sorted(rows, key=lambda row: (row.scheduled_ns, row.app, row.index))


def to_jsonl(rows: list[Planned]) -> bytes:
    """The schedule's file: one JSON object a line, keys in a fixed order."""
    return b"".join(json.dumps(asdict(row), separators=(",", ":")).encode() + b"\n" for row in rows)


def _of_app(workflow: Workflow, app: App) -> list[Planned]:
    load, seed = app.load, workflow.seed
    if load.arrival == "closed":
        # More than any run can send; a closed loop takes them in order.
        times = [0] * (load.requests or 10_000)
    else:
        times = _arrivals(workflow, app)
    return [
        Planned(app.name, index, at, _draw(seed, app.name, index, "prompt"), _tokens(app, seed, index)) for index, at in enumerate(times)
    ]


def _arrivals(workflow: Workflow, app: App) -> list[int]:
    """Open-loop times below run.max. With `requests`, exactly that many: a Poisson process given its count is that many even draws."""
    load, horizon_ns = app.load, round(workflow.run.max_s * 1e9)
    if load.arrival == "poisson" and load.requests:
        draws = sorted(_draw(workflow.seed, app.name, index, "arrival") for index in range(load.requests))
        return [draw * horizon_ns >> 64 for draw in draws]
    if load.arrival == "poisson":
        times = poisson(load.rate_per_s, workflow.run.max_s, seed=workflow.seed, app=app.name)
    else:
        times = constant(load.rate_per_s, workflow.run.max_s)
    kept = np.asarray(times)[: load.requests or None]
    return [int(at) for at in kept if at < horizon_ns]


def _tokens(app: App, seed: int, index: int) -> int:
    low, high = app.output.low, app.output.high
    return low + (_draw(seed, app.name, index, "output") * (high - low + 1) >> 64)


def _draw(seed: int, app: str, index: int, purpose: str) -> int:
    """A uniform 64-bit number; counter-based, so it depends on nothing but its arguments on any platform."""
    key = f"headway.bench/1 {seed} {app} {index} {purpose}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
