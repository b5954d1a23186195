"""Scores a run: attainment per class and app over everything scheduled, goodput, and quantiles only where n allows them.

Pure functions over rows. Whether one request was on time is `core.slo.score`'s word alone; refused and failed are missed,
unfinished is missed once a due time has passed and undetermined before.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headway.bench.outcome import Outcomes, RequestRow
from headway.bench.workflow import App, Workflow
from headway.core.slo import CLASSES, Ended, Score, Slo, resolve, score
from headway.core.stats import Estimate, quantile_interval, wilson

_ENDED: dict[str, Ended] = {"finished": "finished", "refused": "shed", "failed": "failed", "unfinished": "cancelled_by_client"}


@dataclass(frozen=True, slots=True)
class Summary:
    """One class or one app. `low`, `high`: Wilson 95 % around [met/n, (met + undetermined)/n]. Latencies in seconds from schedule."""

    name: str
    cls: str
    scheduled: int
    met: int
    undetermined: int
    refused: int
    failed: int
    unfinished: int
    attainment: float | None
    low: float | None
    high: float | None
    goodput_per_s: float
    tokens_per_s: float
    ttft: dict[str, Estimate]
    tpot: dict[str, Estimate]
    longest_gap_s: float | None
    prompt_tokens_median: float | None
    counted_by: str


def on_time(row: RequestRow, slo: Slo) -> Score:
    """The one scorer, on this client's read stamps against the scheduled time."""
    return score(resolve(slo), row.scheduled_ns, row.token_ns, _ENDED[row.outcome], row.end_ns)


def summarise(workflow: Workflow, runs: Sequence[Outcomes], *, seconds: float | None = None) -> dict[str, Any]:
    """Everything the report says about runs of one workflow (pooled), as plain data.

    `seconds`: length of the arrivals of all runs together (default: run.max each), the denominator of goodput.
    """
    seconds = seconds if seconds is not None else workflow.run.max_s * len(runs)
    warm_ns = round(workflow.run.warmup_s * 1e9)
    rows = [row for run in runs for row in run.requests if row.scheduled_ns - run.start_ns >= warm_ns]
    apps = {
        name: _summary(name, app.slo.cls, workflow.apps, (row for row in rows if row.app == name), seconds)
        for name, app in workflow.apps.items()
    }
    classes = {}
    present = {app.slo.cls for app in workflow.apps.values()}
    for cls in (cls for cls in CLASSES if cls in present):
        members = (row for row in rows if workflow.apps[row.app].slo.cls == cls)
        classes[cls] = _summary(cls, cls, workflow.apps, members, seconds)
    everything = _summary("all", "", workflow.apps, rows, seconds)
    lateness_ns = sorted(row.sent_ns - row.scheduled_ns for row in rows if row.sent_ns)
    return {
        "seconds": seconds,
        "apps": {name: asdict(item) for name, item in apps.items()},
        "classes": {name: asdict(item) for name, item in classes.items()},
        "all": asdict(everything),
        "client": {
            "lateness_p50_s": _at(lateness_ns, 0.5),
            "lateness_p99_s": _at(lateness_ns, 0.99),
            "cpu_s": {name: round(sum(run.client_cpu_s.get(name, 0.0) for run in runs), 4) for name in workflow.apps},
            "run_queue_wait_s": {name: round(sum(run.client_wait_ns.get(name, 0) for run in runs) / 1e9, 4) for name in workflow.apps},
        },
    }


def scored(workflow: Workflow, rows: Iterable[RequestRow]) -> list[tuple[RequestRow, Score]]:
    """Rows with their scores, in order."""
    return [(row, on_time(row, workflow.apps[row.app].slo)) for row in rows]


def _summary(name: str, cls: str, apps: dict[str, App], members: Iterable[RequestRow], seconds: float) -> Summary:
    rows = list(members)
    scores = [on_time(row, apps[row.app].slo) for row in rows]
    counted = [(row, item) for row, item in zip(rows, scores) if apps[row.app].slo.cls != "background"]
    met = sum(item.on_time is True for _, item in counted)
    undetermined = sum(item.on_time is None for _, item in counted)
    low = high = attainment = None
    if counted:
        attainment = met / len(counted)
        low, high = wilson(met, len(counted))[0], wilson(met + undetermined, len(counted))[1]
    prompts = sorted(row.prompt_tokens for row in rows if row.prompt_tokens is not None)
    gaps = [row.longest_gap_ns for row in rows if len(row.token_ns) > 1]
    return Summary(
        name=name,
        cls=cls,
        scheduled=len(rows),
        met=met,
        undetermined=undetermined,
        refused=sum(row.outcome == "refused" for row in rows),
        failed=sum(row.outcome == "failed" for row in rows),
        unfinished=sum(row.outcome == "unfinished" for row in rows),
        attainment=attainment,
        low=low,
        high=high,
        goodput_per_s=met / seconds,
        tokens_per_s=sum(len(row.token_ns) for row in rows) / seconds,
        ttft=_quantiles(rows, lambda row: row.ttft_ns),
        tpot=_quantiles(rows, lambda row: row.tpot_ns),
        longest_gap_s=max(gaps) / 1e9 if gaps else None,
        prompt_tokens_median=prompts[len(prompts) // 2] if prompts else None,
        counted_by="+".join(sorted({row.counted_by for row in rows if row.counted_by})),
    )


def _quantiles(rows: Sequence[RequestRow], value_ns: Callable[[RequestRow], float | None]) -> dict[str, Estimate]:
    """p50, p95, p99 in seconds over the requests that have the value; its `n` says how many, and the rest is counted as missed."""
    values = [value / 1e9 for row in rows if (value := value_ns(row)) is not None]
    return {label: quantile_interval(values, q) for label, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}


def _at(ordered: Sequence[float], q: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] / 1e9 if ordered else None
