"""Runs a program under a tracer and returns its Trace. No process of the run is left behind, whatever ends it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from headway.crashtest.fidelity import fidelity
from headway.crashtest.markers import VARIABLE
from headway.crashtest.operations import Trace, TraceError
from headway.crashtest.trace import leash, ptrace, strace
from headway.crashtest.trace import stacks as stacks_log
from headway.crashtest.trace.assemble import assemble
from headway.crashtest.tree import Tree

Backend = Literal["auto", "strace", "ptrace"]
LEASH_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class _Run:
    """How a program is started."""

    words: list[str]
    root: Path
    cwd: str
    env: Mapping[str, str]
    timeout_s: float | None
    stdout_markers: bool
    preload: Path | None
    all_python_stacks: bool
    streams: dict[str, int | IO[bytes] | None]


def record(
    command: Sequence[str | Path],
    root: str | Path,
    *,
    backend: Backend = "auto",
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = 600.0,
    stdout_markers: bool = True,
    stacks: bool | None = None,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> Trace:
    """Runs `command` and records what it and its children do to the directory `root`, which is created if missing.

    `backend`: "strace", or "ptrace", which is slower, needs nothing but Python, also sees stores to shared mappings (at every sync) and
    lets changes by several threads in one at a time, so that their order is known. "auto" takes strace where it is installed; if its
    trace is not faithful and `root` was empty before, the directory is emptied and the program run once more under ptrace.
    `stacks`: call stacks of the operations that went through libc, native and Python. None: where a C compiler works or has worked once,
    Python frames only while the program has one Python thread; True: also with more, which may deadlock a library that takes a lock
    with and without the interpreter's; False: none.
    The program finds HEADWAY_CRASH_FD for its markers. Its exit code is in the trace, not an error.
    Raises TraceError when the program cannot be started or traced, or runs longer than `timeout_s` (it is killed then).
    """
    if not command:
        raise TraceError("there is no command to trace; give one behind --")
    here = Path(root).resolve()
    here.mkdir(parents=True, exist_ok=True)
    run = _Run(
        [os.fspath(word) for word in command],
        here,
        os.path.realpath(cwd or Path.cwd()),
        os.environ if env is None else env,
        timeout_s,
        stdout_markers,
        _stack_library(stacks),
        bool(stacks),
        {"stdin": stdin, "stdout": stdout, "stderr": stderr},
    )
    chosen = choose(backend)
    was_empty = not any(here.iterdir())
    trace = _record_once(run, chosen)
    if backend == "auto" and chosen == "strace" and was_empty and not trace.unseen and fidelity(trace):
        for entry in here.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        trace = _record_once(run, "ptrace")
    return trace


def _record_once(run: _Run, tracer: Literal["strace", "ptrace"]) -> Trace:
    initial = Tree.read(run.root)
    with tempfile.TemporaryDirectory(prefix="headway-trace-") as scratch:
        marker_path = Path(scratch).resolve() / "markers"
        marker_path.touch()
        marker_fd = os.open(marker_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        log = Path(scratch) / "log"
        traced = strace.command_line(log, run.words, run.preload) if tracer == "strace" else _ptrace_command(log, run.root, run.words)
        logs = Path(scratch) / "stacks"
        logs.mkdir()
        env = {**run.env, VARIABLE: str(marker_fd)}
        if run.preload is not None:
            env |= {stacks_log.FOLDER_VARIABLE: str(logs), stacks_log.PRELOAD_VARIABLE: str(run.preload)}
            env |= {stacks_log.WAIT_VARIABLE: "1"} if run.all_python_stacks else {}
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), "--", *traced],
                cwd=run.cwd,
                env=env,
                pass_fds=(marker_fd,),
                **run.streams,  # type: ignore[call-overload]
            )
            code = _wait(process, run.timeout_s, run.words)
        finally:
            os.close(marker_fd)
        final = Tree.read(run.root)
        calls = strace.read_log(log) if log.exists() else []
        assembly = assemble(calls, str(run.root), run.cwd, marker_path=str(marker_path), stdout_markers=run.stdout_markers)
        operations = assembly.operations if run.preload is None else stacks_log.attach(assembly.operations, logs)
    if not any(operation.kind == "exec" for operation in operations):
        raise TraceError(
            f"{run.words[0]!r} could not be run under {tracer} (exit code {code}): its message is above; "
            "check the command, and whether this container allows ptrace"
        )
    return Trace(
        str(run.root),
        operations,
        assembly.initial(initial),
        final,
        tracer,
        tuple(assembly.unseen),
        tuple(run.words),
        code if code < 128 else 128 - code,
    )


def _stack_library(wanted: bool | None) -> Path | None:
    if wanted is False:
        return None
    built = stacks_log.library()
    if built is None and wanted:
        raise TraceError("call stacks need a C compiler once: install gcc, or `pip install ziglang`, or trace without stacks")
    return built


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
    sources = Path(ptrace.__file__).parents[3]
    return [sys.executable, "-I", "-S", ptrace.__file__, str(sources), str(log), str(root), "--", *words]


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
