"""Runs a program under a tracer and returns its Trace. No process of the run is left behind, whatever ends it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal

from headway.crashtest.markers import VARIABLE
from headway.crashtest.operations import Operation, Trace, TraceError
from headway.crashtest.trace import leash, strace
from headway.crashtest.trace.assemble import assemble
from headway.crashtest.trace.calls import Call
from headway.crashtest.tree import Tree

Backend = Literal["auto", "strace", "ptrace"]
LEASH_GRACE_S = 10.0


def record(
    command: Sequence[str | Path],
    root: str | Path,
    *,
    backend: Backend = "auto",
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = 600.0,
    stdout_markers: bool = True,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> Trace:
    """Runs `command` and records what it and its children do to the directory `root`, which is created if missing.

    `backend`: "strace" where it is installed, else "ptrace", which needs nothing but Python and also sees stores to shared mappings
    at every sync; "auto" chooses. The program finds HEADWAY_CRASH_FD for its markers. Its exit code is in the trace, not an error.
    Raises TraceError when the program cannot be started or traced, or runs longer than `timeout_s` (it is killed then).
    """
    if not command:
        raise TraceError("there is no command to trace; give one behind --")
    chosen = choose(backend)
    here = Path(root).resolve()
    here.mkdir(parents=True, exist_ok=True)
    start = os.path.realpath(cwd or Path.cwd())
    initial = Tree.read(here)
    words = [os.fspath(word) for word in command]
    with tempfile.TemporaryDirectory(prefix="headway-trace-") as scratch:
        marker_path = Path(scratch).resolve() / "markers"
        marker_path.touch()
        marker_fd = os.open(marker_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        log = Path(scratch) / "log"
        try:
            environment = dict(os.environ if env is None else env)
            environment[VARIABLE] = str(marker_fd)
            traced = strace.command_line(log, words) if chosen == "strace" else _ptrace_command(log, here, words)
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), "--", *traced],
                cwd=start,
                env=environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(marker_fd,),
            )
            code = _wait(process, timeout_s, words)
        finally:
            os.close(marker_fd)
        final = Tree.read(here)
        calls: Iterable[Call]
        stores: Sequence[Operation] = ()
        if chosen == "strace":
            calls = strace.read_log(log) if log.exists() else []
        else:
            from headway.crashtest.trace import ptrace_log

            calls, stores = ptrace_log.read(log)
        assembly = assemble(calls, str(here), start, marker_path=str(marker_path), stdout_markers=stdout_markers, stores=stores)
    if code in (126, 127) and not assembly.operations:
        raise TraceError(f"{words[0]!r} could not be run under {chosen} (exit code {code}); its message is above")
    return Trace(
        str(here),
        assembly.operations,
        assembly.initial(initial),
        final,
        chosen,
        tuple(assembly.unseen),
        tuple(words),
        code if code < 128 else 128 - code,
    )


def choose(backend: Backend) -> Literal["strace", "ptrace"]:
    """The tracer to use. Raises TraceError when the one that was asked for is not installed."""
    if backend == "ptrace":
        return "ptrace"
    if strace.version() is not None:
        return "strace"
    if backend == "strace":
        raise TraceError("strace does not run here; install it (apt-get install strace), or use the ptrace tracer, which needs nothing")
    return "ptrace"


def _ptrace_command(log: Path, root: Path, words: list[str]) -> list[str]:
    from headway.crashtest.trace import ptrace

    return [sys.executable, "-I", "-S", ptrace.__file__, str(log), str(root), "--", *words]


def _wait(process: subprocess.Popen[bytes], timeout_s: float | None, words: list[str]) -> int:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired as problem:
        raise TraceError(
            f"{words[0]} did not end within {timeout_s:g} s and was killed; raise the limit or shorten the workload"
        ) from problem
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(LEASH_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
