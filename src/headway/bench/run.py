"""`headway bench run WORKFLOW.yaml`: one measured run of a workflow, its table, its report."""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from headway.bench import schedule
from headway.bench.controller import measure, start_service
from headway.bench.outcome import Outcomes
from headway.bench.processes import children
from headway.bench.report import COLUMNS, Report, table_rows, write
from headway.bench.view import LiveView
from headway.bench.workflow import Workflow, load_file
from headway.core.errors import HeadwayError
from headway.core.stats import machine_fingerprint


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: measured; 2: the workflow or the command line is wrong; 3: the run is not valid; 130: interrupted."""
    parser = argparse.ArgumentParser("headway bench run", description="Run a workflow of competing apps and score every promise.")
    parser.add_argument("workflow", type=Path, help="a cbx/1 file, see docs/bench.md")
    parser.add_argument("-o", "--output", type=Path, help="folder of the report (default: bench-NAME-TIME here)")
    parser.add_argument("--seed", type=int, help="another seed than the file's")
    options = parser.parse_args(argv)
    try:
        workflow = load_file(options.workflow)
        if options.seed is not None:
            from dataclasses import replace

            workflow = replace(workflow, seed=options.seed)
        planned = schedule.build(workflow)
    except HeadwayError as error:
        print(f"headway bench run: {error}", file=sys.stderr)
        return 2
    folder = options.output or Path(f"bench-{workflow.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        outcome = asyncio.run(run(workflow, planned, folder))
    except HeadwayError as error:
        print(f"headway bench run: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted; every process it started has ended", file=sys.stderr)
        return 130
    report = Report(workflow.name, workflow, {"run": [outcome]}, [planned], machine_fingerprint())
    print_table(report)
    print(f"report  {write(report, folder).resolve()}")
    return 0


async def run(workflow: Workflow, planned: list[schedule.Planned], folder: Path) -> Outcomes:
    """Starts the workflow's services, measures once, ends them."""
    async with children() as group:
        urls = {name: await start_service(group, service, folder / f"{name}.log") for name, service in workflow.services.items()}
        with LiveView(workflow, workflow.name) as view:
            return await measure(workflow, urls, planned, observe=view.observe)


def print_table(report: Report) -> None:
    """The result table on the terminal, aligned, without colour codes when piped."""
    rows = [list(COLUMNS), *table_rows(report.summaries())]
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) if k < 2 else cell.rjust(width) for k, (cell, width) in enumerate(zip(row, widths))).rstrip())
        if number == 0:
            print("-" * (sum(widths) + 2 * (len(widths) - 1)))
