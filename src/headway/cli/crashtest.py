"""`headway crashtest`: what a power cut can break in a program. Tables of actions and options; the actions are in crashtest_actions.py."""

import argparse
from collections.abc import Callable

from headway.cli.parser import CommandParser

EXIT_USAGE = 4
HELP = """\
usage: headway crashtest ACTION [options]

Finds what a power cut can break in any program: traces its file operations, builds the states that a file system may leave, lets your check
judge each, and names the missing fsync. (kill -9 is no crash test: the page cache survives it.)

  run       trace a command and check it               --oracle MODULE:FUNCTION | --checker 'CMD {dir} {acks}', -- COMMAND
  trace     only record                                -o FILE, --root DIR, --backend auto|strace|ptrace
  check     check a recorded trace                     as run
  realfs    the same on the kernel's own file systems  --fs ext4,xfs,btrfs --committer 5ms (root, FUSE, loop devices)
  explain   one bug of a run: lost, survived, barrier  [RUN] [BUG]   (RUN: the newest by default)
  repair    try the missing barriers on the trace      [RUN] --superfluous
  targets   known programs, with what must come out    [NAME ...] --planted
  litmus    what this kernel's file systems keep       --fs ext4,xfs,btrfs --seeds 2
  fidelity  does the trace give the real directory?    TRACE
  import    a strace log or a Pathfinder trace         LOG -o FILE --root-dir DIR
  export    a trace in Pathfinder's format             TRACE -o FILE
  pathfinder  Pathfinder's own algorithm on a trace    TRACE

An oracle is a Python function check(dir, acks, begun) that opens the recovered directory and returns None, or what is wrong.
The program says what it promised: headway.crashtest.begin("x") before and ack("x") after an operation (or lines `begin x`, `ack x` on its
standard output or on the descriptor that HEADWAY_CRASH_FD names).

examples:
  headway crashtest targets json-replace leveldb        see it find two known bugs
  headway crashtest run --oracle mycheck:check -- python3 mystore.py {dir}
  headway crashtest run --model ext4,xfs,btrfs,posix --budget 60s --checker './fsck.sh {dir}' -- ./mystore {dir}
  headway crashtest explain                             the newest run's first bug, step by step
  headway crashtest realfs --fs ext4 --oracle mycheck:check -- python3 mystore.py {dir}

Exit status: 0 clean, 1 bugs, 2 the trace is not faithful, 3 budget or limit hit before the end, 4 wrong usage or environment.
`headway crashtest ACTION --help` lists every option, such as --budget, --limit, --cap, --seed, --strategy, --workers, --timeout, --ignore.
"""


def run(argv: list[str]) -> int:
    from headway.core.errors import HeadwayError

    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        raise SystemExit(0)
    action = ACTIONS.get(argv[0])
    if action is None:
        print(f"headway: crashtest has no action {argv[0]!r}; there are {', '.join(ACTIONS)}", flush=True)
        return EXIT_USAGE
    summary, options, function = action
    parser = CommandParser(f"crashtest {argv[0]}", summary)
    options(parser)
    mine, command = _split(argv[1:])
    try:
        arguments = parser.parse_args(mine)
    except SystemExit as stop:
        raise SystemExit(EXIT_USAGE if stop.code else 0) from stop
    arguments.command = command
    try:
        import headway.cli.crashtest_actions as actions

        return int(getattr(actions, function)(arguments))
    except HeadwayError as problem:
        import sys

        print(f"headway: {problem}", file=sys.stderr)
        return EXIT_USAGE


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def _oracle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--oracle", default="", metavar="MODULE:FUNCTION", help="check(dir[, acks[, begun]]) -> None or what is wrong")
    parser.add_argument(
        "--checker", default="", metavar="COMMAND", help="a program: {dir} and {acks} are replaced, exit 0 means consistent"
    )
    parser.add_argument("--timeout", default="30s", help="for one check; a check that takes longer has failed (default 30s)")


def _checking(parser: argparse.ArgumentParser) -> None:
    _oracle(parser)
    parser.add_argument("--model", default="ext4", help="persistence models, comma-separated: ext4, xfs, btrfs, posix, apm, prefix ...")
    parser.add_argument("--model-file", help="TOML file with models of your own")
    parser.add_argument(
        "--strategy", default="representative", help="representative, exhaustive, prefix, drop-one, random or fsync-reorder"
    )
    parser.add_argument("--reps", action="store_const", const="representative", dest="strategy", help="the default strategy, by name")
    parser.add_argument("--budget", default="60s", help="time for exploring, for each model (default 60s)")
    parser.add_argument("--limit", type=int, help="at most so many distinct states")
    parser.add_argument("--cap", type=int, default=64, help="states of one crash point before only a sample is taken (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole-writes", action="store_true", help="no torn writes")
    parser.add_argument("--workers", type=int, default=0, help="checker processes (default: one a core)")
    parser.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="files that recovery never reads (lock files)")
    parser.add_argument("-o", "--out", help="run directory (default: a new one in the state directory)")


def _recording(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", help="directory that the program writes (default: a new one; {dir} in the command names it)")
    parser.add_argument("--backend", default="auto", choices=("auto", "strace", "ptrace"), help="tracer; ptrace needs nothing but Python")


def _run_options(parser: argparse.ArgumentParser) -> None:
    _recording(parser)
    _checking(parser)


def _trace_options(parser: argparse.ArgumentParser) -> None:
    _recording(parser)
    parser.add_argument("-o", "--out", required=True, help="file for the trace")


def _check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", help="file from `headway crashtest trace` or `import`")
    _checking(parser)


def _real_options(parser: argparse.ArgumentParser) -> None:
    _oracle(parser)
    parser.add_argument("--fs", default="ext4", help="ext4, xfs, btrfs, comma-separated")
    parser.add_argument("--target", help="a recipe of `headway crashtest targets` instead of an oracle and a command")
    parser.add_argument("--committer", default="5ms", help="how often an unrelated file is synced beside the program (0s: never)")
    parser.add_argument("--block-bytes", type=int, default=4096, help="ext4's block size; 1024 tears more")
    parser.add_argument("--split-bytes", type=int, default=0, help="tear device writes at multiples of this")
    parser.add_argument("--limit", type=int, default=5000, help="at most so many states")
    parser.add_argument("--seed", type=int, default=0)


def _bug_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", help="run directory (default: the newest)")
    parser.add_argument("bug", nargs="?", type=int, default=1, help="number of the bug (default 1)")
    parser.add_argument("--model", help="which model of the run (default: the first)")


def _repair_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", help="run directory (default: the newest)")
    parser.add_argument("--model", help="which model of the run (default: the first)")
    parser.add_argument("--budget", default="60s", help="for each check of a changed trace (default 60s)")
    parser.add_argument("--superfluous", action="store_true", help="also try to leave out every sync of the program")


def _targets_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes to run (none: list them)")
    parser.add_argument("--planted", action="store_true", help="run every recipe with a planted bug")
    _checking(parser)
    parser.set_defaults(model="")


def _litmus_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fs", default="ext4,xfs,btrfs", help="file systems, comma-separated")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each program (default 2)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="one litmus program (repeatable)")
    parser.add_argument("-o", "--out", help="write the counts as JSON")


def _one_trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", help="file from `headway crashtest trace` or `import`")
    parser.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="files that recovery never reads")


def _import_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", help="tracer.log of Pathfinder, or a log of `strace -f -y -xx -s 1000000`")
    parser.add_argument("--root-dir", help="directory that was traced (default: the deepest one that holds every path)")
    parser.add_argument("-o", "--out", required=True, help="file for the trace")


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace")
    parser.add_argument("-o", "--out", required=True, help="file for the text")


def _pathfinder_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", help="a trace, a tracer.log, or an INI configuration of the original")
    _oracle(parser)
    parser.add_argument("--root-dir", help="directory that was traced, for a tracer.log")
    parser.add_argument("--regions", metavar="FILE.toml", help="the types of a trace's mapped memory: test its stores instead of its calls")


ACTIONS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], str]] = {
    "run": ("Trace a command (after --) and check every model.", _run_options, "run_command"),
    "trace": ("Record what a command (after --) does to a directory.", _trace_options, "trace_command"),
    "check": ("Check a recorded trace.", _check_options, "check_trace"),
    "realfs": ("Run a command (after --) on real file systems and check the states they leave.", _real_options, "real_file_systems"),
    "explain": ("One bug of a run, step by step, with a stand-alone reproduction.", _bug_options, "explain_bug"),
    "repair": ("Insert the missing barriers into the trace and judge again.", _repair_options, "repair_run"),
    "targets": ("Recipes of known programs and planted bugs.", _targets_options, "run_targets"),
    "litmus": ("What small programs find after crashes on this kernel's file systems.", _litmus_options, "run_litmus"),
    "fidelity": ("Whether replaying the trace gives the directory that the program left.", _one_trace, "show_fidelity"),
    "import": ("Read a trace that another tool recorded.", _import_options, "import_log"),
    "export": ("Write a trace in Pathfinder's text format.", _export_options, "export_trace"),
    "pathfinder": ("Pathfinder's own algorithm, as published.", _pathfinder_options, "run_pathfinder"),
}
