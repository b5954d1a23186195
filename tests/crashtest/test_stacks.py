"""Call stacks from the preloaded library: the Python line that made a call, in every thread and child, and none where none is known."""

import subprocess
import sys
from pathlib import Path

import pytest

from headway.crashtest.fidelity import fidelity
from headway.crashtest.operations import Operation, Trace, TraceError
from headway.crashtest.trace import stacks, strace
from headway.crashtest.trace.record import Backend, record

needs_strace = pytest.mark.skipif(strace.version() is None, reason="strace does not run here")
needs_compiler = pytest.mark.skipif(not any(stacks._works(one) for one in stacks._COMPILERS), reason="no C compiler works here")
TRACERS = [pytest.param("strace", marks=needs_strace), "ptrace"]

PROGRAM = """
import os, sys, threading
root = sys.argv[1]

def store(name, data):
    fd = os.open(f"{root}/{name}", os.O_CREAT | os.O_WRONLY)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)

class Writer:
    def run(self):
        store("b c", b"2")

store("a", b"1")
thread = threading.Thread(target=Writer().run)
thread.start()
thread.join()
if os.fork() == 0:
    store("child", b"3")
    os._exit(0)
os.wait()
with open(f"{root}/buffered", "w") as file:
    file.write("4")
os.rename(f"{root}/a", f"{root}/d")
"""


def traced(tmp_path: Path, backend: Backend, text: str = PROGRAM, stacks: bool | None = True) -> Trace:
    program = tmp_path / "program.py"
    program.write_text(text)
    return record([sys.executable, "-I", program, tmp_path / "root"], tmp_path / "root", backend=backend, stacks=stacks)


def lines(operation: Operation) -> list[tuple[str, int]]:
    return [(frame.function, frame.line) for frame in operation.stack if frame.file.endswith("program.py")]


@needs_compiler
@pytest.mark.parametrize("backend", TRACERS)
def test_each_operation_knows_the_python_lines_that_made_it(tmp_path: Path, backend: Backend) -> None:
    trace = traced(tmp_path, backend)
    assert fidelity(trace) == []
    by_file = {
        (op.kind, op.paths[-1].rpartition("/")[2]): lines(op) for op in trace.operations if op.kind in ("open", "write", "fsync", "rename")
    }
    assert by_file["open", "a"] == [("store", 6), ("<module>", 15)]
    assert by_file["write", "a"] == [("store", 7), ("<module>", 15)]
    assert by_file["fsync", "b c"] == [("store", 8), ("Writer.run", 13)]
    assert by_file["write", "child"] == [("store", 7), ("<module>", 20)]
    assert by_file["write", "buffered"][-1][0] == "<module>"
    assert by_file["rename", "d"] == [("<module>", 25)]


@needs_compiler
def test_by_default_a_second_python_thread_is_never_waited_for(tmp_path: Path) -> None:
    """The thread in the middle has no Python frames then; before and after it, with one thread, they are there."""
    text = PROGRAM.replace("if os.fork() == 0", "store('after', b'5')\nif os.fork() == 0")
    trace = traced(tmp_path, "ptrace", text, stacks=None)
    seen = {op.paths[-1].rpartition("/")[2]: lines(op) for op in trace.operations if op.kind == "fsync"}
    assert seen["a"] == [("store", 8), ("<module>", 15)]
    assert seen["b c"] == []
    assert seen["after"] == [("store", 8), ("<module>", 19)]


def entry(tid: int, kind: str, fd: int, result: int, name: str, function: str) -> bytes:
    return f"{tid} {kind} {fd} {result} {name}\x1e{function}\x1f/f.py\x1f1\x1f0\n".encode()


def write_log(folder: Path, *entries: bytes) -> None:
    text = b"".join(entries)
    (folder / "1").write_bytes((8 + len(text)).to_bytes(8, "little") + text + bytes(100))


def test_a_call_that_bypassed_libc_has_no_stack_and_takes_none_from_its_neighbours(tmp_path: Path) -> None:
    write_log(
        tmp_path, entry(1, "write", 3, 1, "a", "first"), entry(1, "write", 4, 1, "b", "other"), entry(1, "write", 3, 1, "a", "second")
    )
    operations = [
        Operation(0, 0, 1, 1, 1, "write", ("/r/a",), 3, result=1),
        Operation(1, 2, 3, 1, 1, "write", ("/r/raw",), 3, result=1),
        Operation(2, 4, 5, 1, 2, "write", ("/r/a",), 3, result=1),
        Operation(3, 6, 7, 1, 1, "write", ("/r/a",), 3, result=1),
        Operation(4, 8, 9, 1, 1, "write", ("/r/b",), 4, result=1),
    ]
    found = [op.stack[0].function if op.stack else None for op in stacks.attach(operations, tmp_path)]
    # The last one is out of order for its thread, so its entry is not believed.
    assert found == ["first", None, None, "second", None]


def test_a_log_that_ran_full_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes((1 << 40).to_bytes(8, "little") + entry(1, "fsync", 3, 0, "a", "f") + b"1 fsync 3")
    (found,) = stacks.attach([Operation(0, 0, 1, 1, 1, "fsync", ("/r/a",), 3)], tmp_path)
    assert found.stack[0].function == "f"


def test_without_a_compiler_stacks_are_refused_with_the_remedy(tmp_path: Path, headway_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_COMPILERS", (["false"],))
    assert stacks.library() is None
    assert record(["true"], tmp_path / "root").exit_code == 0
    with pytest.raises(TraceError, match="ziglang"):
        record(["true"], tmp_path / "root", stacks=True)


@needs_compiler
def test_a_program_that_is_no_python_is_traced_too(tmp_path: Path) -> None:
    trace = record(["cp", "/etc/hostname", tmp_path / "root"], tmp_path / "root", backend="ptrace", stacks=True, stderr=subprocess.DEVNULL)
    assert fidelity(trace) == []
