"""`headway crashtest pathfinder`: the published algorithm on a trace, with a table of its tests."""

import argparse
from pathlib import Path

from headway.cli.crashtest_actions import read_log
from headway.core.errors import ConfigError
from headway.core.settings import parse_duration_s
from headway.crashtest.check import EXIT_CLEAN, EXIT_INCOMPLETE, EXIT_VULNERABLE
from headway.crashtest.judge import Judges
from headway.crashtest.operations import Trace
from headway.crashtest.pathfinder.faithful import Faithful
from headway.crashtest.stored import OracleSpec
from headway.crashtest.trace_file import MAGIC


def run(arguments: argparse.Namespace) -> int:
    path = Path(arguments.trace)
    if path.suffix == ".ini":
        return _configured(path)
    if not path.is_file():
        raise ConfigError(f"{path} is no file: give a trace, or the tracer.log of an original run")
    is_ours = path.open("rb").read(len(MAGIC)) == MAGIC
    trace = Trace.load(path) if is_ours else read_log(str(path), arguments.root_dir)
    oracle = OracleSpec(arguments.oracle, arguments.checker)
    judged = bool(arguments.oracle or arguments.checker)
    timeout_s = parse_duration_s(arguments.timeout)
    return test_groups(Faithful(trace), oracle, timeout_s, judged=judged)


def test_groups(faithful: Faithful, oracle: OracleSpec, timeout_s: float, *, judged: bool) -> int:
    """One line for each tested group; without a checker only counts."""
    tests = faithful.plan.tests
    print(f"{len(faithful.plan.events)} events, {len(tests)} tests" + ("" if judged else " (no --oracle or --checker: counted only)"))
    print(f"{'function':<44}{'group':>6}{'window':>12}{'states':>8}{'images':>8}{'failing':>9}")
    total = [0, 0]
    images: set[bytes] = set()
    bad: set[bytes] = set()
    verdicts: dict[str, int] = {}
    judges: Judges[bytes] | None = Judges(oracle.loader(timeout_s), timeout_s=timeout_s) if judged else None
    try:
        for test in tests:
            states = failing = 0
            seen: set[bytes] = set()
            for state in faithful.states(test):
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
            window = f"{test.window.first}..{test.window.last}"
            shown = str(failing) if judged else "-"
            print(f"{test.group.function[-43:]:<44}{len(test.group.members):>6}{window:>12}{states:>8}{len(seen):>8}{shown:>9}")
    finally:
        if judges is not None:
            judges.close()
    print(f"{'all':<44}{'':>6}{'':>12}{total[0]:>8}{len(images):>8}{total[1] if judged else '-':>9}")
    for test in faithful.skipped_windows:
        print(f"skipped: {test.group.function}: its window is longer than 100 events")
    for verdict, count in sorted(verdicts.items(), key=lambda one: -one[1]):
        print(f"  {count:5d}  {verdict.splitlines()[0][:150]}")
    if bad:
        print(f"{total[1]} failing test instances, {len(bad)} distinct failing images")
        return EXIT_VULNERABLE
    return EXIT_INCOMPLETE if faithful.skipped_windows else EXIT_CLEAN


def _configured(path: Path) -> int:
    """An INI file of the original: its trace, its options, its checker with `{{pmdir}}` as the crash directory."""
    from headway.crashtest.pathfinder.config import fill, read

    config = read(path)
    if not config.trace_path:
        raise ConfigError(f"{path}: [trace] trace_path is missing; record with `headway crashtest trace` and name the file there")
    if config.mode != "posix":
        raise ConfigError(f"{path}: mode {config.mode!r} is not run from a configuration; use `headway crashtest check --strategy ...`")
    trace = read_log(config.trace_path, config.root_dir or None)
    faithful = Faithful(trace, decompose=config.decompose, max_run_events=config.max_run_events)
    checker = fill(config.checker, {"pmdir": "{dir}"}) if config.checker else ""
    return test_groups(faithful, OracleSpec(program=checker), config.check_timeout_s, judged=bool(checker))
