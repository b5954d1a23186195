"""The self-contained HTML report of one or several arms (policies) of a workflow, and the JSON beside it. No network, no script."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from headway.bench import charts
from headway.bench.outcome import Outcomes
from headway.bench.pauses import Lane, in_words
from headway.bench.schedule import Planned, to_jsonl
from headway.bench.score import scored, summarise
from headway.bench.workflow import Workflow, dump

SCHEMA = "headway.bench.report/1"
_ABOUT_LANES = (
    "One tick is one token read by a chat client; a row is one chat. The yellow band is the time from a long document's arrival to its "
    "first token. Both lanes show the same moment of the same arrivals."
)
_ABOUT_BARS = "Pale: waiting for the first token. Solid: writing. Red: promise missed. Hover for details."
_ABOUT_KEPT = (
    "Kept: every token was read by its due time, counted from the scheduled arrival. Everything scheduled is in the denominator; refused "
    "and failed count as missed. Brackets: Wilson 95 %. A dash: too few requests for that percentile."
)


@dataclass(slots=True)
class Report:
    """What a report says. `arms[name]`: the runs of one arm; runs with the same place had the same arrivals. `notes`: what to know."""

    title: str
    workflow: Workflow
    arms: dict[str, list[Outcomes]]
    schedules: list[list[Planned]]
    machine: dict[str, Any]
    sentence: str = ""
    lanes: Sequence[Lane] = ()
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    next_commands: Sequence[str] = ()

    def summaries(self) -> dict[str, dict[str, Any]]:
        return {name: summarise(self.workflow, runs) for name, runs in self.arms.items()}

    def to_plain(self) -> dict[str, Any]:
        """The JSON report: a pure function of the rows."""
        pauses = {lane.name: lane.longest.gap_ns / 1e9 for lane in self.lanes if lane.longest is not None}
        return {
            "schema": SCHEMA,
            "title": self.title,
            "sentence": self.sentence,
            "arms": self.summaries(),
            "picture_longest_pause_s": pauses,
            "facts": self.facts,
            "notes": self.notes,
            "machine": self.machine,
        }


def write(report: Report, folder: Path) -> Path:
    """Writes report.html, report.json, workflow.yaml, schedule-K.jsonl and events-ARM-K.jsonl into `folder`; returns the HTML's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "workflow.yaml").write_text(dump(report.workflow), encoding="utf-8")
    for k, rows in enumerate(report.schedules):
        (folder / f"schedule-{k}.jsonl").write_bytes(to_jsonl(rows))
    for name, runs in report.arms.items():
        for k, run in enumerate(runs):
            lines = (json.dumps(row.to_plain(), separators=(",", ":")) + "\n" for row in run.requests)
            (folder / f"events-{name}-{k}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(report.to_plain(), indent=1, default=str), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(to_html(report), encoding="utf-8")
    return page


def to_html(report: Report) -> str:
    """The whole page."""
    summaries = report.summaries()
    key = "".join(f'<span class="arm{k}"><i></i>{escape(name)}</span>' for k, name in enumerate(report.arms))
    parts = [f"<h1>{escape(report.title)}</h1>"]
    if report.sentence:
        parts.append(f'<p class="say">{escape(report.sentence)}</p>')
    if report.lanes:
        parts.append(charts.two_lanes(report.lanes))
        parts.append(f'<p class="soft">{_ABOUT_LANES}</p>')
    parts.append(f'<h2>Promises kept</h2><p class="key">{key}</p>{charts.attainment_bars(summaries)}{_table(summaries)}')
    parts.append(f'<p class="soft">{_ABOUT_KEPT}</p>')
    parts.append('<h2>How long until the first token</h2><div class="grid">')
    for app in report.workflow.apps.values():
        waits = {
            name: [row.ttft_ns / 1e9 for run in runs for row in run.requests if row.app == app.name and row.ttft_ns is not None]
            for name, runs in report.arms.items()
        }
        parts.append(charts.distribution(f"{app.name} ({app.slo.cls})", waits, app.slo.ttft_s))
    parts.append(f'</div><h2>Every request</h2><p class="soft">{_ABOUT_BARS}</p>')
    for name, runs in report.arms.items():
        for k, run in enumerate(runs):
            part = f"{name}, part {k + 1} of {len(runs)}" if len(runs) > 1 else name
            late = {(row.app, row.index): item.on_time for row, item in scored(report.workflow, run.requests)}
            parts.append(charts.gantt(part, run, list(report.workflow.apps), late))
    parts.append("<h2>Conditions</h2>" + "".join(f"<p>{escape(note)}</p>" for note in report.notes))
    parts += [f"<pre>{escape(json.dumps(block, indent=1, default=str))}</pre>" for block in (report.facts, report.machine)]
    parts.append(f"<h2>Workflow</h2><pre>{escape(dump(report.workflow))}</pre>")
    if report.next_commands:
        parts.append("<h2>Next</h2><pre>" + escape("\n".join(report.next_commands)) + "</pre>")
    style = files("headway.bench").joinpath("data", "report.css").read_text(encoding="utf-8")
    head = f"<style>{style}</style>"
    head += '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f"<title>{escape(report.title)}</title>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


COLUMNS = ("class", "arm", "kept", "95 %", "refused", "failed", "TTFT p50", "TTFT p95", "TPOT p50", "TPOT p95", "longest gap", "on time/s")


def table_rows(summaries: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The result table, shared by terminal and page: classes x arms, then all."""
    rows = []
    classes = list(dict.fromkeys(cls for summary in summaries.values() for cls in summary["classes"]))
    for cls in [*classes, "all"]:
        for name, summary in summaries.items():
            item = summary["all"] if cls == "all" else summary["classes"][cls]
            share = "not scored" if item["attainment"] is None else f"{item['met']}/{item['scheduled']} = {item['attainment']:.0%}"
            interval = "" if item["low"] is None else f"{item['low']:.0%}-{item['high']:.0%}"
            cells = [cls, name, share, interval, str(item["refused"]), str(item["failed"] + item["unfinished"])]
            if cls == "all":  # a mixture of classes has no meaningful latency
                cells += [""] * 5
            else:
                cells += [_seconds(item[kind][q]["value"]) for kind in ("ttft", "tpot") for q in ("p50", "p95")]
                cells.append(_seconds(item["longest_gap_s"]))
            rows.append([*cells, f"{item['goodput_per_s']:.2f}"])
    return rows


def _table(summaries: dict[str, dict[str, Any]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table_rows(summaries))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _seconds(value: float | None) -> str:
    return "-" if value is None else in_words(value * 1e9)
