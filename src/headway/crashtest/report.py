"""Reports of a check: text for a terminal, Markdown, SARIF for code hosts. HTML timelines: timeline.py."""

import json
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from headway.crashtest.check import Run

TIER = "model only"


def text(runs: Sequence[Run]) -> str:
    """What the command prints at the end."""
    lines = []
    for run in runs:
        lines.append(f"\n{run.model}: {run.verdict}")
        lines += [f"  ! {line}" for line in run.infidel]
        lines.append(f"  {coverage_line(run)}")
        for number, finding in enumerate(run.findings, 1):
            lines.append(f"  [{number}] {finding.title}")
            lines.append(f"      {finding.verdict.splitlines()[0][:150]}  ({finding.states} states, {_tier(finding.confirmed)})")
            lines.append(f"      barrier: {finding.barrier}")
    return "\n".join(lines)


def coverage_line(run: Run) -> str:
    """States, points and classes: what "clean" stands on."""
    coverage = run.coverage
    parts = [f"{run.checked} states checked, {run.failing} failing, {len(coverage.visited_points)} of {coverage.crash_points} crash points"]
    if coverage.classes:
        parts.append(f"{len(coverage.classes_tested)} of {coverage.classes} behaviour classes")
    if coverage.capped_points:
        parts.append(f"{len(coverage.capped_points)} points sampled (more states than the cap)")
    parts.append(f"{run.seconds:.1f} s")
    return ", ".join(parts)


def markdown(runs: Sequence[Run], command: Sequence[str]) -> str:
    """A page a maintainer can read: reproduction, order of operations, model or file system."""
    lines = ["# Crash consistency report", "", f"`{' '.join(command)}`, headway {_version()}", ""]
    for run in runs:
        lines += [f"## Model {run.model}: {run.verdict}", "", coverage_line(run) + ".", ""]
        lines += [f"- not faithful: {line}" for line in run.infidel]
        for number, finding in enumerate(run.findings, 1):
            lines += [
                f"### {number}. {finding.title}",
                "",
                f"- What goes wrong: {finding.verdict.splitlines()[0][:300]}",
                f"- Missing: {finding.barrier}",
                f"- Verdict tier: {_tier(finding.confirmed)}; {finding.states} failing states",
                f"- Acknowledged by then: {', '.join(finding.failure.acks[-3:]) or 'nothing'}",
                "",
                "```",
                *finding.lines,
                "```",
                "",
            ]
    return "\n".join(lines) + "\n"


def sarif(runs: Sequence[Run]) -> str:
    """SARIF 2.1.0: one rule a root cause, located at the source line of what was lost where the trace has stacks."""
    rules: dict[str, dict[str, Any]] = {}
    results = []
    for run in runs:
        for finding in run.findings:
            rule = re.sub(r"[^a-z0-9]+", "-", finding.title.lower()).strip("-")[:80]
            rules.setdefault(rule, {"id": rule, "shortDescription": {"text": finding.title}})
            place = re.search(r" at (?P<file>[^:]+):(?P<line>\d+)", finding.lost_shape)
            location = (
                {"artifactLocation": {"uri": place["file"]}, "region": {"startLine": int(place["line"])}}
                if place
                else {"artifactLocation": {"uri": finding.lost_shape.rpartition(" ")[2]}}
            )
            message = f"{finding.verdict.splitlines()[0][:300]}. Missing: {finding.barrier} (model {run.model}, {_tier(finding.confirmed)})"
            results.append(
                {
                    "ruleId": rule,
                    "level": "error" if finding.confirmed else "warning",
                    "message": {"text": message},
                    "locations": [{"physicalLocation": location}],
                }
            )
    driver = {"name": "headway crashtest", "version": _version(), "rules": list(rules.values())}
    document = {
        "version": "2.1.0",
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
    return json.dumps(document, indent=1)


def _tier(confirmed: Sequence[str]) -> str:
    return f"confirmed on {', '.join(confirmed)}" if confirmed else TIER


def _version() -> str:
    try:
        return version("headway")
    except PackageNotFoundError:  # run from a source tree
        return "0"
