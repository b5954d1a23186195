"""`python -m benchmarks.crashtest`: representatives against the explorers that other testers use, at an equal budget of states.

Every explorer gets the same trace and as many states as the representative strategy tested; exhaustive gets `--exhaustive` states and is
the truth that recall is counted against. Cells: distinct root causes / states to the first failure.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rows import Row, finish, header, parser
from headway.crashtest.check import CheckOptions, Run, check
from headway.crashtest.crash_states import Strategy
from headway.crashtest.targets.catalogue import TARGETS, command, find
from headway.crashtest.trace.record import record

OTHERS: tuple[Strategy, ...] = ("prefix", "drop-one", "random", "fsync-reorder")
EXTRA = ("json-replace", "sqlite-full", "sqlite-off", "lmdb-nosync", "leveldb")


@dataclass(slots=True)
class Cell:
    """One explorer on one target; lists hold one value a seed."""

    causes: list[set[tuple[str, str]]]
    kinds: list[set[str]]
    states: list[int]
    first: list[int]
    seconds: list[float]

    def middle(self, values: list[int]) -> int:
        return int(statistics.median(values))


def run(name: str, strategies: tuple[Strategy, ...], seeds: int, exhaustive_states: int, budget_s: float) -> dict[str, Cell]:
    target = find(name)
    cells: dict[str, Cell] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        trace = record([word.replace("{dir}", str(root)) for word in command(name)], root, backend=target.backend)
        limit: int | None = None
        for strategy in strategies:
            cell = Cell([], [], [], [], [])
            for seed in range(seeds if strategy == "random" else 1):
                allowed = exhaustive_states if strategy == "exhaustive" else limit
                options = CheckOptions(strategy, budget_s, limit=allowed, seed=seed, ignore=target.ignore, causes=24)
                result = check(trace, target.oracle, target.model, options)
                note(cell, result)
            cells[strategy] = cell
            if strategy == "representative":
                limit = max(cell.states)
    return cells


def note(cell: Cell, result: Run) -> None:
    cell.causes.append({(finding.lost_shape, finding.survived_shape) for finding in result.findings})
    cell.kinds.append(set(result.kinds))
    cell.states.append(result.checked)
    cell.first.append(result.states_to_first)
    cell.seconds.append(result.seconds)


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("targets", nargs="*", help="recipes (default: every planted bug and five known programs)")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--exhaustive", type=int, default=2000, help="states for the exhaustive explorer")
    options.add_argument("--budget", type=float, default=60.0, help="seconds for one explorer on one target")
    arguments = options.parse_args()
    names = arguments.targets or [*(name for name, target in TARGETS.items() if target.planted), *EXTRA]
    machine = header("crash-state explorers: distinct root causes (states to the first failure)")
    strategies: tuple[Strategy, ...] = ("representative", "exhaustive", *OTHERS)
    print(f"{'target':<30}{'states':>7}" + "".join(f"{strategy:>16}" for strategy in strategies) + f"{'kinds kept':>12}{'of states':>10}")
    rows: list[Row] = []
    total: dict[Strategy, float] = dict.fromkeys(strategies, 0.0)
    found = dict.fromkeys(strategies, 0)
    for name in names:
        began = time.monotonic()
        cells = run(name, strategies, arguments.seeds, arguments.exhaustive, arguments.budget)
        ours, truth = cells["representative"], cells["exhaustive"]
        kept = len(ours.kinds[0] & truth.kinds[0]), len(truth.kinds[0])
        share = ours.states[0] / max(truth.states[0], 1)
        line = f"{name:<30}{ours.states[0]:>7}"
        for strategy in strategies:
            cell = cells[strategy]
            causes = statistics.median(len(one) for one in cell.causes)
            total[strategy] += causes
            found[strategy] += causes >= 1
            line += f"{f'{causes:g} ({cell.middle(cell.first)})':>16}"
        print(f"{line}{f'{kept[0]}/{kept[1]}':>12}{share:>10.0%}   {time.monotonic() - began:.0f} s", flush=True)
        rows.append(Row("crashtest", f"{name}: kinds kept of exhaustive", kept[0], kept[1], "kinds", goal="all", met=kept[0] == kept[1]))
    print(f"{'all targets':<37}" + "".join(f"{f'{total[s]:g} in {found[s]}':>16}" for s in strategies))
    for strategy in OTHERS:
        ratio = total["representative"] / total[strategy] if total[strategy] else None
        rows.append(
            Row("crashtest", f"root causes against {strategy}", total["representative"], total[strategy], "causes", ratio=ratio, goal="4x")
        )
    return finish(rows, machine, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
