"""The default tracer: strace runs the program and writes every system call of interest to a file."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from headway.crashtest.linux_abi import SYSTEM_CALLS
from headway.crashtest.operations import Trace, TraceError
from headway.crashtest.trace.assemble import assemble
from headway.crashtest.trace.calls import Call
from headway.crashtest.trace.strace_text import parse
from headway.crashtest.tree import Tree

MAX_PAYLOAD_BYTES = 32 << 20  # of one write; strace keeps the beginning of longer ones, which makes a trace infidel
_SECCOMP_SINCE = (5, 3)


def version() -> tuple[int, int] | None:
    """Version of an strace that works; None without one."""
    try:
        asked = subprocess.run(["strace", "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"version (\d+)\.(\d+)", asked.stdout)
    return (int(found[1]), int(found[2])) if asked.returncode == 0 and found else None


def command_line(log: Path, command: list[str], preload: Path | None = None) -> list[str]:
    """strace and its options in front of a command. Contents of reads are not decoded: only how far they move matters."""
    known = version()
    fast = ["--seccomp-bpf"] if known is not None and known >= _SECCOMP_SINCE else []
    calls = ",".join(f"?{name}" for name, (number, _) in SYSTEM_CALLS.items() if number >= 0)
    options = ["-f", *fast, "-y", "-xx", "-qq", "-s", str(MAX_PAYLOAD_BYTES), "-e", "signal=none", "-e", "raw=read,readv,preadv2"]
    if preload is not None:
        options += ["-E", f"LD_PRELOAD={preload}"]
    return ["strace", *options, "-e", f"trace={calls}", "-o", str(log), "--", *command]


def import_log(log: str | Path, root: str, *, cwd: str = "/") -> Trace:
    """The trace in somebody's own log, recorded with `strace -f -y -xx -s 33554432` (-xx and -f may be missing).

    `root` is the absolute path of the directory that matters, `cwd` where the program started. The tree before the run is taken as empty
    and the one after it is unknown, so such a trace cannot pass the fidelity gate. Raises TraceError.
    """
    assembly = assemble(read_log(Path(log)), root.rstrip("/"), cwd)
    return Trace(root.rstrip("/"), assembly.operations, assembly.initial(Tree()), None, "strace log", tuple(assembly.unseen))


def read_log(log: Path) -> Iterator[Call]:
    """The calls in a log. Raises TraceError."""
    try:
        with log.open(encoding="latin-1", newline="\n") as lines:
            yield from parse(lines)
    except OSError as problem:
        raise TraceError(f"strace's log {log} cannot be read: {problem}") from problem
