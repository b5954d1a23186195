"""The actions of `headway crashtest`; each takes parsed arguments (with `command`: what stood behind --) and returns the exit status."""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from headway.cli.crashtest import EXIT_USAGE
from headway.cli.progress import ProgressBar
from headway.core.durable import make_dirs, publish
from headway.core.errors import ConfigError
from headway.core.settings import parse_duration_s
from headway.crashtest import report, stored
from headway.crashtest.check import EXIT_CLEAN, EXIT_INFIDEL, EXIT_VULNERABLE, CheckOptions, Run, check, find_model
from headway.crashtest.crash_states import Strategy
from headway.crashtest.explain import Finding, find_variant
from headway.crashtest.fidelity import fidelity
from headway.crashtest.history import History
from headway.crashtest.operations import Trace, acknowledged
from headway.crashtest.scratch import scratch_directory
from headway.crashtest.stored import OracleSpec


# ---- recording and checking ----------------------------------------------------------------------------------------------------
def run_command(arguments: argparse.Namespace) -> int:
    oracle = OracleSpec(arguments.oracle, arguments.checker)
    oracle.loader(1.0)  # complain before the program runs
    return _check_and_report(_record(arguments), oracle, arguments)


def trace_command(arguments: argparse.Namespace) -> int:
    trace = _record(arguments)
    trace.save(arguments.out)
    _say_trace(trace)
    print(f"written to {arguments.out}")
    return _say_fidelity(trace, [])


def check_trace(arguments: argparse.Namespace) -> int:
    return _check_and_report(Trace.load(arguments.trace), OracleSpec(arguments.oracle, arguments.checker), arguments)


def _record(arguments: argparse.Namespace, command: list[str] | None = None) -> Trace:
    from headway.crashtest.trace.record import record

    words = command or arguments.command
    if not words:
        raise ConfigError("there is no command to trace: put it behind --, as in `-- python3 mystore.py {dir}`")
    scratch = None if arguments.root else scratch_directory("trace")
    root = Path(arguments.root) if scratch is None else scratch / "root"
    try:
        return record([word.replace("{dir}", str(root)) for word in words], root, backend=arguments.backend)
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _options(arguments: argparse.Namespace) -> CheckOptions:
    if arguments.strategy not in get_args(Strategy):
        raise ConfigError(f"--strategy {arguments.strategy} is not known; there are {', '.join(get_args(Strategy))}")
    return CheckOptions(
        strategy=arguments.strategy,
        budget_s=parse_duration_s(arguments.budget),
        cap=arguments.cap,
        limit=arguments.limit,
        seed=arguments.seed,
        whole_writes=arguments.whole_writes,
        workers=arguments.workers,
        timeout_s=parse_duration_s(arguments.timeout),
        ignore=tuple(arguments.ignore),
    )


def _check_and_report(trace: Trace, oracle: OracleSpec, arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    loader = oracle.loader(options.timeout_s)
    models = [find_model(name.strip(), arguments.model_file) for name in arguments.model.split(",")]
    _say_trace(trace)
    runs = []
    for model in models:
        with ProgressBar(model.name, sys.stderr) as bar:
            runs.append(check(trace, loader, model, options, progress=_shower(bar, options)))
    directory = Path(arguments.out) if arguments.out else stored.new_directory()
    make_dirs(directory)
    stored.save(directory, trace, oracle, options, runs, arguments.model_file)
    publish(directory / "report.md", report.markdown(runs, trace.command).encode())
    publish(directory / "report.sarif", report.sarif(runs).encode())
    print(report.text(runs))
    _say_missing_markers(trace)
    print(
        f"\n{directory}: run.json, report.md, report.sarif" + ("; next: headway crashtest explain" if any(r.findings for r in runs) else "")
    )
    return _worst(runs)


def _shower(bar: ProgressBar, options: CheckOptions) -> Callable[[Run], None]:
    def show(run: Run) -> None:
        coverage = run.coverage
        done = coverage.seconds / options.budget_s if options.budget_s else len(coverage.visited_points) / max(coverage.crash_points, 1)
        bar.update(f"{run.checked} states, {run.failing} failing" if sys.stderr.isatty() else "explored", done)

    return show


def _worst(runs: list[Run]) -> int:
    """An unfaithful trace spoils everything; then bugs, then what is incomplete."""
    codes = {run.exit_code for run in runs}
    return next((code for code in (EXIT_INFIDEL, EXIT_VULNERABLE) if code in codes), max(codes, default=0))


def _say_trace(trace: Trace) -> None:
    syncs = sum(operation.kind in ("fsync", "fdatasync", "sync", "syncfs", "msync") for operation in trace.operations)
    acks = len(acknowledged(trace.operations))
    print(f"{len(trace.operations)} operations ({trace.source}), {syncs} syncs, {acks} acknowledgements")


def _say_missing_markers(trace: Trace) -> None:
    if not acknowledged(trace.operations):
        print(
            "The program acknowledged nothing, so nothing counts as promised: add headway.crashtest.begin(x) and ack(x), or print `ack x`."
        )


# ---- after a run -----------------------------------------------------------------------------------------------------------------
def _reopen(arguments: argparse.Namespace) -> tuple[stored.Stored, Run, History]:
    """The stored run's model checked again: seconds, and nothing of it has to be trusted from a file."""
    run = stored.load(Path(arguments.run) if arguments.run else stored.newest_directory())
    name = arguments.model or run.models[0]
    model = find_model(name, run.model_file)
    with ProgressBar(f"checking {name} again", sys.stderr) as bar:
        result = check(run.trace, run.oracle.loader(run.options.timeout_s), model, run.options, progress=_shower(bar, run.options))
    return run, result, History.of(run.trace, model, whole_writes=run.options.whole_writes)


def explain_bug(arguments: argparse.Namespace) -> int:
    from headway.crashtest.timeline import page

    if arguments.run is not None and arguments.run.isdigit() and not Path(arguments.run).exists():
        arguments.run, arguments.bug = None, int(arguments.run)
    run, result, history = _reopen(arguments)
    if not 1 <= arguments.bug <= len(result.findings):
        raise ConfigError(f"{run.directory} has bugs 1 to {len(result.findings)} under {result.model}; there is no bug {arguments.bug}")
    finding = result.findings[arguments.bug - 1]
    title = f"{shlex.join(run.trace.command)}: bug {arguments.bug}"
    print(f"\n{finding.title}\n\n  {finding.verdict}\n")
    print("\n".join(finding.lines))
    print(
        f"\nMissing: {finding.barrier}\nModel: {result.model}; {finding.states} failing states; acknowledged: {finding.failure.acks[-3:]}"
    )
    script = _reproduce(run, history, finding, arguments.bug)
    publish(run.directory / f"bug-{arguments.bug}.html", page(history, finding, title).encode())
    print(f"Reproduction: {script}\nTimeline: {run.directory / f'bug-{arguments.bug}.html'}")
    return EXIT_VULNERABLE


def _reproduce(run: stored.Stored, history: History, finding: Finding, number: int) -> Path:
    failure = finding.failure
    tree = history.tree(failure.kept, find_variant(history, failure.variant))
    return stored.reproduction(run.directory, number, tree, run.oracle, failure.acks, failure.begun)


def repair_run(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from headway.crashtest.repair import repair, superfluous

    run, result, history = _reopen(arguments)
    options = replace(run.options, budget_s=parse_duration_s(arguments.budget))
    loader = run.oracle.loader(options.timeout_s)
    status = EXIT_CLEAN
    if result.findings:
        fixed = repair(history, result.findings, loader, options)
        print("\nBarriers:" + "".join(f"\n  + {barrier}" for barrier in fixed.barriers))
        print(f"{fixed.added} syncs more a run, about {fixed.cost_ms:.1f} ms on this disk; {fixed.checked} states checked again")
        if fixed.works:
            print(
                "No state fails with them."
                if fixed.complete
                else "No tested state fails with them; the budget ended before all were tested."
            )
        else:
            print("Still failing:" + "".join(f"\n  {count} x {kind}" for kind, count in fixed.remaining.items()))
            status = EXIT_VULNERABLE
    else:
        print("\nNothing fails: there is nothing to repair.")
    if arguments.superfluous:
        for sync in superfluous(history, loader, options, result):
            print(f"  - {sync.shape} ({sync.times} times): no state of {sync.checked} fails without it, as far as this check can see")
    return status


# ---- recipes, real file systems --------------------------------------------------------------------------------------------------
def run_targets(arguments: argparse.Namespace) -> int:
    from headway.crashtest.targets.catalogue import TARGETS, command, find

    names = [name for name, target in TARGETS.items() if target.planted] if arguments.planted else arguments.names
    if not names:
        for name, target in TARGETS.items():
            promise = {True: "clean", False: "bugs", None: "unsure"}[target.clean]
            print(f"{name:<34} {promise:<7} {target.title}{f' (pip install {target.needs})' if target.needs else ''}")
        return EXIT_CLEAN
    statuses = []
    one_model, arguments.root, arguments.backend = arguments.model, None, "auto"
    given = list(arguments.ignore)
    for name in names:
        target = find(name)
        print(f"\n== {name}: {target.title}")
        arguments.model, arguments.ignore = one_model or target.model, [*given, *target.ignore]
        arguments.backend = target.backend
        statuses.append(_check_and_report(_record(arguments, command(name)), OracleSpec(target=name), arguments))
    return next((code for code in (EXIT_USAGE, EXIT_INFIDEL, EXIT_VULNERABLE) if code in statuses), max(statuses))


def real_file_systems(arguments: argparse.Namespace) -> int:
    from headway.crashtest.realfs.session import RealOptions, run_real
    from headway.crashtest.targets.catalogue import command

    timeout_s = parse_duration_s(arguments.timeout)
    oracle = OracleSpec(arguments.oracle, arguments.checker, arguments.target or "")
    words = command(arguments.target) if arguments.target else arguments.command
    if not words:
        raise ConfigError("there is no command to run: put it behind --, or name a recipe with --target")
    options = RealOptions(
        committer_ms=parse_duration_s(arguments.committer) * 1000,
        block_bytes=arguments.block_bytes,
        split_bytes=arguments.split_bytes,
        seed=arguments.seed,
        limit=arguments.limit,
        timeout_s=timeout_s,
    )
    status = EXIT_CLEAN
    for name in arguments.fs.split(","):
        with ProgressBar(name, sys.stderr) as bar:

            def show(states: int, total: int, bar: ProgressBar = bar) -> None:
                bar.update(f"{states} of {total} states" if sys.stderr.isatty() else "mounted", states / max(total, 1))

            run = run_real(name, words, oracle.loader(timeout_s), options, progress=show)
        each_ms = 1000 * run.seconds / max(run.states, 1)
        counts = f"{run.states} states, {run.distinct} distinct, {run.failing_states} failing"
        print(f"{name} (kernel {run.kernel}): {counts}, {each_ms:.0f} ms each")
        for failure in run.failures[:12]:
            print(f"  {failure.states:5d}  {failure.verdict.splitlines()[0][:150]}")
        if run.failures:
            status = EXIT_VULNERABLE
    return status


def run_litmus(arguments: argparse.Namespace) -> int:
    from headway.crashtest.litmus import measure, table

    systems = tuple(arguments.fs.split(","))
    counts = measure(systems, seeds=arguments.seeds, only=tuple(arguments.only), say=lambda line: print(line, file=sys.stderr, flush=True))
    print(table(counts, systems))
    if arguments.out:
        publish(arguments.out, json.dumps(counts, indent=1).encode())
    return EXIT_CLEAN


# ---- traces ----------------------------------------------------------------------------------------------------------------------
def show_fidelity(arguments: argparse.Namespace) -> int:
    trace = Trace.load(arguments.trace)
    _say_trace(trace)
    return _say_fidelity(trace, arguments.ignore)


def _say_fidelity(trace: Trace, ignore: list[str]) -> int:
    problems = fidelity(trace, ignore=ignore)
    print("faithful: replaying it gives the directory byte for byte" if not problems else "not faithful:\n  " + "\n  ".join(problems))
    return EXIT_INFIDEL if problems else EXIT_CLEAN


def import_log(arguments: argparse.Namespace) -> int:
    trace = read_log(arguments.log, arguments.root_dir)
    trace.save(arguments.out)
    _say_trace(trace)
    print(f"written to {arguments.out}" + "".join(f"\n  note: {line}" for line in trace.unseen))
    return EXIT_CLEAN


def read_log(log: str, root: str | None) -> Trace:
    """A Pathfinder trace starts with `0,tid,OP`; anything else is taken for strace's."""
    from headway.crashtest.trace import pathfinder_text

    with Path(log).open(errors="replace") as file:
        first = file.readline()
    if first.count(",") >= 2 and first.partition(",")[0].isdigit():
        return pathfinder_text.read(log, root=root)
    if root is None:
        raise ConfigError(f"{log} looks like a log of strace: name the directory that was traced with --root-dir")
    from headway.crashtest.trace import strace
    from headway.crashtest.trace.assemble import assemble
    from headway.crashtest.tree import Tree

    assembly = assemble(strace.read_log(Path(log)), root, root)
    return Trace(root, assembly.operations, assembly.initial(Tree()), None, "strace log", tuple(assembly.unseen))


def export_trace(arguments: argparse.Namespace) -> int:
    from headway.crashtest.trace import pathfinder_text

    text, left_out = pathfinder_text.render(Trace.load(arguments.trace))
    publish(arguments.out, text.encode("utf-8", "surrogateescape"))
    print(f"written to {arguments.out}" + "".join(f"\n  left out: {line}" for line in left_out))
    return EXIT_CLEAN


def run_pathfinder(arguments: argparse.Namespace) -> int:
    from headway.cli.crashtest_pathfinder import run

    return int(run(arguments))
