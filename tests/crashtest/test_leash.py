"""However a recording ends, no process of it is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headway.crashtest.operations import TraceError
from headway.crashtest.trace import strace
from headway.crashtest.trace.record import Backend, choose, record

needs_strace = pytest.mark.skipif(strace.version() is None, reason="strace does not run here")
TRACERS = [pytest.param("strace", marks=needs_strace), "ptrace"]
SOURCES = Path(strace.__file__).parents[3]
# A program with a child in a session of its own and a thread; each says its number, then all wait.
FAMILY = """
import os, sys, threading, time
root = sys.argv[1]
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(f"{root}/{os.getpid()}.pid", "w").close()
    else:
        os._exit(0)
else:
    open(f"{root}/{os.getpid()}.pid", "w").close()
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
time.sleep(600)
"""


def members(root: Path, wanted: int = 2) -> list[int]:
    """The processes of the family, once all have said their numbers."""
    for _ in range(600):
        found = [int(path.stem) for path in root.glob("*.pid")]
        if len(found) == wanted:
            return found
        time.sleep(0.05)
    raise AssertionError("the family did not start")


def gone(pid: int) -> bool:
    """Whether a process ended; waits for it."""
    for _ in range(400):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.025)
    return False


def recorder(root: Path, backend: Backend) -> subprocess.Popen[bytes]:
    """A process that records the family."""
    command = [sys.executable, "-c", FAMILY, str(root)]
    code = f"from headway.crashtest.trace.record import record; record({command!r}, {str(root)!r}, backend={backend!r})"
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(SOURCES)}, stderr=subprocess.DEVNULL)


def tracers(root: Path) -> list[int]:
    """The processes whose command line names the directory: recorder, leash, tracer and family."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(root).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("backend", TRACERS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_recorder_leaves_no_process(tmp_path: Path, backend: Backend, number: signal.Signals) -> None:
    process = recorder(tmp_path, backend)
    family = members(tmp_path)
    everybody = tracers(tmp_path)
    process.send_signal(number)
    process.wait(30)
    assert all(gone(pid) for pid in [*family, *everybody])


@pytest.mark.parametrize("backend", TRACERS)
def test_a_killed_tracer_leaves_no_process_and_is_reported(tmp_path: Path, backend: Backend) -> None:
    process = recorder(tmp_path, backend)
    family = members(tmp_path)
    name = "strace" if backend == "strace" else "ptrace.py"
    for pid in tracers(tmp_path):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if "leash.py" not in str(words[:5]) and any(Path(os.fsdecode(word)).name == name for word in words[:4]):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)
    assert all(gone(pid) for pid in family)


@pytest.mark.parametrize("backend", TRACERS)
def test_a_program_that_does_not_end_is_killed_with_its_daemons(tmp_path: Path, backend: Backend) -> None:
    with pytest.raises(TraceError, match="did not end within"):
        record([sys.executable, "-c", FAMILY, tmp_path], tmp_path, backend=backend, timeout_s=3)
    assert all(gone(pid) for pid in members(tmp_path))


@pytest.mark.parametrize("backend", TRACERS)
def test_exit_codes_and_signals_of_the_program_are_in_the_trace(tmp_path: Path, backend: Backend) -> None:
    root = tmp_path / "root"
    assert record(["sh", "-c", "exit 3"], root, backend=backend).exit_code == 3
    assert record(["sh", "-c", "kill -9 $$"], root, backend=backend).exit_code == -9


@pytest.mark.parametrize("backend", TRACERS)
def test_a_command_that_does_not_exist_is_an_error(tmp_path: Path, backend: Backend) -> None:
    with pytest.raises(TraceError, match="could not be run"):
        record(["/no/such/program"], tmp_path, backend=backend, stderr=subprocess.DEVNULL)
    with pytest.raises(TraceError, match="no command"):
        record([], tmp_path)


def test_without_a_working_strace_the_fallback_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "strace"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert choose("auto") == "ptrace"
    with pytest.raises(TraceError, match="install it"):
        choose("strace")
