"""`headway crashtest pathfinder`: the published algorithm on a trace, with a table of its tests."""

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headway.cli.crashtest_actions import read_log
from headway.core.errors import ConfigError
from headway.core.settings import parse_duration_s
from headway.crashtest.check import EXIT_CLEAN, EXIT_INCOMPLETE, EXIT_VULNERABLE
from headway.crashtest.crash_states import CrashState
from headway.crashtest.judge import Judges
from headway.crashtest.operations import Trace
from headway.crashtest.pathfinder.baselines import BASELINES
from headway.crashtest.pathfinder.config import PathfinderConfig, fill, read
from headway.crashtest.pathfinder.faithful import Faithful
from headway.crashtest.pathfinder.mmio import Memory, read_regions
from headway.crashtest.stored import OracleSpec
from headway.crashtest.trace_file import MAGIC


@dataclass(frozen=True, slots=True)
class Group:
    """A line of the table: who is tested, for how many, and the crash states."""

    name: str
    members: int
    window: str
    states: Iterable[CrashState]


def run(arguments: argparse.Namespace) -> int:
    path = Path(arguments.trace)
    if path.suffix == ".ini":
        if arguments.regions:
            raise ConfigError(f"--regions describes a trace's memory; {path} names its own mode: give the trace itself")
        return _configured(path)
    if not path.is_file():
        raise ConfigError(f"{path} is no file: give a trace, or the tracer.log of an original run")
    trace = _trace(path, arguments.root_dir)
    skipped: list[str] = []
    if arguments.regions:
        groups = _memory_groups(Memory(trace, read_regions(arguments.regions)))
    else:
        faithful = Faithful(trace)
        groups, skipped = _call_groups(faithful), _skipped(faithful)
    oracle = OracleSpec(arguments.oracle, arguments.checker)
    judged = bool(arguments.oracle or arguments.checker)
    return test_groups(groups, skipped, oracle, parse_duration_s(arguments.timeout), judged=judged)


def _trace(path: Path, root_dir: str | None) -> Trace:
    with path.open("rb") as file:
        is_ours = file.read(len(MAGIC)) == MAGIC
    return Trace.load(path) if is_ours else read_log(str(path), root_dir)


def _call_groups(faithful: Faithful) -> list[Group]:
    return [
        Group(test.group.function, len(test.group.members), f"{test.window.first}..{test.window.last}", faithful.states(test))
        for test in faithful.plan.tests
    ]


def _skipped(faithful: Faithful) -> list[str]:
    return [f"{test.group.function}: its window is longer than 100 events" for test in faithful.skipped_windows]


def _memory_groups(memory: Memory) -> list[Group]:
    return [Group(test.name, len(test.members), "", memory.states(test)) for test in memory.tests]


def test_groups(groups: Sequence[Group], skipped: list[str], oracle: OracleSpec, timeout_s: float, *, judged: bool) -> int:
    """One line for each group; without a checker only counts. `skipped` may grow while states are listed."""
    print(f"{len(groups)} tests" + ("" if judged else " (no --oracle or --checker: counted only)"))
    print(f"{'function':<44}{'group':>6}{'window':>12}{'states':>8}{'images':>8}{'failing':>9}")
    total = [0, 0]
    images: set[bytes] = set()
    bad: set[bytes] = set()
    verdicts: dict[str, int] = {}
    judges: Judges[bytes] | None = Judges(oracle.loader(timeout_s), timeout_s=timeout_s) if judged else None
    try:
        for group in groups:
            states = failing = 0
            seen: set[bytes] = set()
            for state in group.states:
                states += 1
                seen.add(state.digest)
                verdict = judges.ask(state.digest, state.tree, state.acks, state.begun) if judges is not None else None
                if verdict is not None:
                    failing += 1
                    bad.add(state.digest)
                    verdicts[verdict] = verdicts.get(verdict, 0) + 1
            images |= seen
            total[0] += states
            total[1] += failing
            shown = str(failing) if judged else "-"
            print(f"{group.name[-43:]:<44}{group.members:>6}{group.window:>12}{states:>8}{len(seen):>8}{shown:>9}")
    finally:
        if judges is not None:
            judges.close()
    print(f"{'all':<44}{'':>6}{'':>12}{total[0]:>8}{len(images):>8}{total[1] if judged else '-':>9}")
    for what in skipped:
        print(f"skipped: {what}")
    for verdict, count in sorted(verdicts.items(), key=lambda one: -one[1]):
        print(f"  {count:5d}  {verdict.splitlines()[0][:150]}")
    if bad:
        print(f"{total[1]} failing test instances, {len(bad)} distinct failing images")
        return EXIT_VULNERABLE
    return EXIT_INCOMPLETE if skipped else EXIT_CLEAN


def _configured(path: Path) -> int:
    """An INI file of the original: its trace, its options, its checker with `{{pmdir}}` as the crash directory."""
    config = read(path)
    _refuse_unbuilt(path, config)
    trace = _trace(Path(config.trace_path), config.root_dir or None)
    skipped: list[str] = []
    if config.mode == "mmio":
        groups = _memory_groups(Memory(trace))
    else:
        faithful = Faithful(trace, decompose=config.decompose, max_run_events=config.max_run_events)
        baseline = next((kind for kind in BASELINES if kind == config.mode), None)
        if baseline is None:
            groups, skipped = _call_groups(faithful), _skipped(faithful)
        else:
            groups = [Group(baseline, 1, "", _until(faithful.baseline(baseline), config.baseline_timeout_s, skipped))]
    checker = fill(config.checker, {"pmdir": "{dir}"}) if config.checker else ""
    judged = bool(checker) and not config.count_crash_states
    return test_groups(groups, skipped, OracleSpec(program=checker), config.check_timeout_s, judged=judged)


def _refuse_unbuilt(path: Path, config: PathfinderConfig) -> None:
    if not config.trace_path:
        raise ConfigError(f"{path}: [trace] trace_path is missing; record with `headway crashtest trace` and name the file there")
    if config.selective_testing:
        raise ConfigError(f"{path}: general.selective_testing is not built; leave it out, and every group is tested")
    if not config.use_induced_subgraph:
        raise ConfigError(f"{path}: general.use_induced_subgraph = false is not built; leave it out, groups are induced subgraphs")


def _until(states: Iterator[CrashState], limit_s: float, skipped: list[str]) -> Iterator[CrashState]:
    """States for at most `limit_s` seconds; a baseline may have no end."""
    end_s = time.monotonic() + limit_s
    for state in states:
        yield state
        if time.monotonic() > end_s:
            skipped.append(f"what the baseline would list after {limit_s:g} s")
            return
