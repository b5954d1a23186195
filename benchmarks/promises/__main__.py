"""Five quiet pairs. Both servers run the whole time, idle unless it is their turn; a pair has one schedule; the order alternates."""

import asyncio
import sys
import time
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from benchmarks.quiet import repeat
from benchmarks.rows import Row, finish, header, parser
from benchmarks.servers import Server, headway
from headway.bench import saturate, schedule
from headway.bench.controller import measure
from headway.bench.outcome import Outcomes
from headway.bench.score import on_time, summarise
from headway.bench.workflow import Workflow, parse
from headway.core.stats import paired_difference

_CLASSES = {"interactive": "interactive", "realtime": "completion"}


@dataclass(slots=True)
class Pair:
    """Both policies on one schedule."""

    fcfs: Outcomes
    ours: Outcomes


def _rated(workflow: Workflow, server: Server, seconds: float, load: float) -> Workflow:
    # A seed of its own, so that no pair finds its prompts in the prefix cache.
    full = replace(saturate.saturating(workflow, 10.0), seed=workflow.seed + 1_000_003)
    run = asyncio.run(measure(full, {"llm": server.url}, schedule.build(full), send_slo=False))
    served = saturate.served_per_s(full, run, 10.0)
    rated = saturate.with_rates(workflow, served, load, seconds, {})
    shares = [f"{n} {a.load.rate_per_s:.2f}/s ({a.load.rate_per_s / served[n]:.0%})" for n, a in rated.apps.items()]
    print(f"rates, {load:.0%} of a 10 s saturating run as near as whole requests allow: {', '.join(shares)}")
    return rated


def _pair(workflow: Workflow, servers: dict[str, Server], k: int) -> Pair:
    part = replace(workflow, seed=workflow.seed + k)
    planned = schedule.build(part)
    runs = {}
    for policy in ("fcfs", "headway") if k % 2 == 0 else ("headway", "fcfs"):
        runs[policy] = asyncio.run(measure(part, {"llm": servers[policy].url}, planned))
    line = []
    for policy, run in runs.items():
        classes = summarise(part, [run])["classes"]
        line.append(policy + " " + " ".join(f"{cls} {item['met']}/{item['scheduled']}" for cls, item in classes.items()))
    print(f"  pair {k + 1}: " + "; ".join(line), flush=True)
    return Pair(runs["fcfs"], runs["headway"])


def _kept(workflow: Workflow, run: Outcomes, cls: str) -> dict[tuple[str, int], float]:
    apps = workflow.apps
    rows = (row for row in run.requests if apps[row.app].slo.cls == cls)
    return {(row.app, row.index): float(on_time(row, apps[row.app].slo).on_time is True) for row in rows}


def judge(workflow: Workflow, pairs: list[Pair], measurable: bool) -> list[Row]:
    """The issue's three lines; `met` stays None when the machine was too busy to say."""
    rows = []
    ours, fcfs = (summarise(workflow, [getattr(pair, name) for pair in pairs]) for name in ("ours", "fcfs"))
    for cls, name in _CLASSES.items():
        mine, other = ours["classes"][cls], fcfs["classes"][cls]
        left: list[float] = []
        right: list[float] = []
        for pair in pairs:
            a, b = _kept(workflow, pair.ours, cls), _kept(workflow, pair.fcfs, cls)
            left += [a[key] for key in sorted(a)]
            right += [b[key] for key in sorted(a)]
        difference = paired_difference(left, right)
        n = f"{mine['met']}/{mine['scheduled']}"
        rows.append(
            Row("bench", f"{name} promises kept ({n})", mine["attainment"] * 100, other["attainment"] * 100, "%", "fcfs", goal=">= 95 %")
        )
        rows[-1] = replace(rows[-1], met=mine["attainment"] >= 0.95 if measurable else None)
        value, low, high = difference.value or 0.0, difference.low or 0.0, difference.high or 0.0
        words = f">= 15 points, interval above 5 (is {low * 100:.1f} to {high * 100:.1f})"
        verdict = (value >= 0.15 and low > 0.05) if measurable else None
        rows.append(Row("bench", f"{name}: paired difference", value * 100, None, "points", "fcfs", goal=words, met=verdict))
    mine, other = ours["all"]["goodput_per_s"], fcfs["all"]["goodput_per_s"]
    ratio = mine / other if other else None
    verdict = mine >= other if measurable else None
    rows.append(Row("bench", "on-time requests per second, all", mine, other, "/s", "fcfs", ratio, goal="not below fcfs", met=verdict))
    return rows


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("--pairs", type=int, default=5)
    made.add_argument("--seconds", type=float, default=40.0, help="arrivals of one run")
    made.add_argument("--load", type=float, default=0.75)
    made.add_argument("--any-noise", action="store_true", help="do not wait for a quiet machine: a trial, no goal is judged")
    options = made.parse_args()
    machine = header(f"promises: {options.pairs} interleaved pairs of {options.seconds:g} s, client-side stamps against scheduled arrival")
    workflow = parse(files("headway.bench").joinpath("demo.yaml").read_bytes())
    with headway("fcfs") as first, headway("headway") as second:
        servers: dict[str, Server] = {"fcfs": first, "headway": second}
        for name, server in servers.items():
            service = replace(workflow.services["llm"], launch=None, url=server.url)
            workflow = replace(workflow, services={"llm": service}) if name == "fcfs" else workflow
        workflow = _rated(workflow, first, options.seconds, options.load)
        facts: dict[str, Any] = {policy: server.get("/stats") for policy, server in servers.items()}
        laws = {name: law.get("made_by") for name, law in (facts["headway"].get("law") or {}).items()}
        print(f"accuracy {facts['headway'].get('accuracy')}, law {laws}")
        began = time.monotonic()
        done = repeat(options.pairs, lambda k: _pair(workflow, servers, k), any_noise=options.any_noise)
    if not done.measurable:
        print(f"not measurable here: {done.void} of {done.void + len(done.kept)} pairs were void")
    machine |= {"pairs void": done.void, "seconds": time.monotonic() - began}
    pairs = done.kept or done.noisy
    return finish(judge(workflow, pairs, done.measurable and not options.any_noise), machine, options.json)


if __name__ == "__main__":
    sys.exit(main())
