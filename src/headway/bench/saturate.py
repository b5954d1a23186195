"""What this machine can do with a workflow's own clients: a short closed-loop run, from which the open-loop rates are set."""

from collections.abc import Sequence
from dataclasses import replace

from headway.bench.outcome import Outcomes, RequestRow
from headway.bench.workflow import Load, Run, Workflow
from headway.core.errors import HeadwayError

# Clients of each app in the saturating run: enough to keep every core busy, with the mix the demo wants.
CLIENTS = {"chat": 6, "completion": 2, "summary": 1}


class NoThroughput(HeadwayError):
    """The saturating run finished nothing."""


def saturating(workflow: Workflow, seconds: float, clients: dict[str, int] | None = None) -> Workflow:
    """The same apps as closed loops for `seconds`; what is then unfinished is cut and counts by its tokens."""
    clients = clients or CLIENTS
    apps = {name: replace(app, load=Load("closed", closed=clients.get(name, 1))) for name, app in workflow.apps.items()}
    return replace(workflow, name=f"{workflow.name}-saturating", run=Run(max_s=seconds, drain_s=0.0), apps=apps)


def served_per_s(workflow: Workflow, run: Outcomes, seconds: float) -> dict[str, float]:
    """Requests a second of each app; an unfinished one counts by the share of its time that had passed, its own app's median as whole.

    Raises NoThroughput naming the app that served nothing.
    """
    rates = {}
    for name in workflow.apps:
        rows = [row for row in run.requests if row.app == name]
        served = sum(row.outcome == "finished" for row in rows) + sum(_share(row, rows) for row in rows if row.outcome == "unfinished")
        if served <= 0:
            why = next((row.reason for row in rows if row.reason), "no request was sent")
            raise NoThroughput(f"{seconds:g} s at full load finished nothing of {name}: {why}; is the machine busy with something else?")
        rates[name] = served / seconds
    return rates


def with_rates(workflow: Workflow, served: dict[str, float], load: float, seconds: float, at_least: dict[str, int]) -> Workflow:
    """Open-loop rates of `load` times what was served, as exact request counts for `seconds` of arrivals, never below `at_least`."""
    apps = {}
    for name, app in workflow.apps.items():
        count = max(at_least.get(name, 1), round(served[name] * load * seconds))
        apps[name] = replace(app, load=Load("poisson", rate_per_s=count / seconds, requests=count))
    return replace(workflow, run=replace(workflow.run, max_s=seconds), apps=apps)


def _share(row: RequestRow, rows: Sequence[RequestRow]) -> float:
    """0..1. By tokens where tokens have come; while the prompt is read, by time against a finished request's."""
    whole = sorted(other.end_ns - other.scheduled_ns for other in rows if other.outcome == "finished")
    by_tokens = len(row.token_ns) / max(row.wanted_tokens, 1)
    if not whole:
        return max(by_tokens, 0.5 if row.token_ns else 0.0)
    return min(1.0, max(by_tokens, (row.end_ns - row.scheduled_ns) / whole[len(whole) // 2]))
