"""Random programs run for real under each tracer; the replay of their traces must give the very directory they left."""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.crashtest.fidelity import fidelity
from headway.crashtest.operations import Trace
from headway.crashtest.trace import strace
from headway.crashtest.trace.record import Backend, record
from headway.crashtest.vfs import lower, simulate

DRIVER = Path(__file__).parent / "driver.py"
needs_strace = pytest.mark.skipif(strace.version() is None, reason="strace does not run here")
TRACERS = [pytest.param("strace", marks=needs_strace), "ptrace"]

NAMES = st.sampled_from(["a", "b", "c d", "é,;", "d/x", "d/y", "d/e/z", "sl", "d"])
OPEN_FLAGS = st.builds(
    lambda access, how: access | how,
    st.sampled_from([os.O_RDWR, os.O_WRONLY, os.O_RDWR]),
    st.sampled_from(
        [os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_TRUNC, os.O_CREAT | os.O_APPEND, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_DSYNC, 0]
    ),
)
DATA = st.text('abcxyz\n\\"', min_size=1, max_size=12)
SMALL = st.integers(0, 40)


def step(do: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"do": st.just(do), **fields})


FD, OTHER, EXPLICIT = SMALL, SMALL, st.booleans()
TIMES = st.sampled_from([1, 3, 900])
STEPS = st.one_of(
    step("open", name=NAMES, flags=OPEN_FLAGS),
    step("open_relative", name=NAMES, flags=OPEN_FLAGS),
    step("tmpfile", name=NAMES, data=DATA),
    step("close", fd=FD),
    step("write", fd=FD, data=DATA, times=TIMES),
    step("writev", fd=FD, data=DATA),
    step("pwrite", fd=FD, data=DATA, times=TIMES, offset=st.sampled_from([0, 1, 50, 4096, 10000])),
    step("pwritev", fd=FD, data=DATA, offset=SMALL),
    step("read", fd=FD, length=SMALL),
    step("lseek", fd=FD, offset=st.integers(-5, 60), whence=st.sampled_from([0, 1, 2])),
    step("ftruncate", fd=FD, length=st.sampled_from([0, 3, 100, 5000])),
    step("truncate", name=NAMES, length=SMALL),
    step("fallocate", fd=FD, mode=st.sampled_from([0, 1, 3, 16, 17, 8, 32]), offset=st.integers(0, 3), length=SMALL),
    step("copy", fd=FD, other=OTHER, offset=SMALL, length=SMALL, explicit=EXPLICIT),
    step("sendfile", fd=FD, other=OTHER, offset=SMALL, length=SMALL, explicit=EXPLICIT),
    step("sync", fd=FD, how=st.sampled_from(["fsync", "fdatasync"])),
    step("dup", fd=FD),
    step("dup2", fd=FD, other=OTHER),
    step("append_on", fd=FD),
    step("rename", name=NAMES, new=NAMES),
    step("exchange", name=NAMES, new=NAMES),
    step("link", name=NAMES, new=NAMES),
    step("symlink", name=NAMES, new=NAMES),
    step("unlink", name=NAMES),
    step("mkdir", name=st.sampled_from(["d", "d/e", "f"])),
    step("rmdir", name=st.sampled_from(["d", "d/e", "f"])),
    step("chdir"),
    step("xattr", fd=FD, data=DATA),
    step("moved_in", name=NAMES, data=DATA),
    step("child", fd=FD),
    step("threads", times=SMALL),
    step("marker", how=st.sampled_from(["begin", "ack"]), data=st.sampled_from(["1", "put é"])),
)
BEFORE: dict[str, bytes] = {"a": b"there before", "d/x": b"x" * 5000}
PROGRAMS = st.lists(STEPS, min_size=25, max_size=60)


def run(steps: list[dict[str, Any]], backend: Backend, *, before: dict[str, bytes] = BEFORE) -> Trace:
    with TemporaryDirectory() as scratch:
        root = Path(scratch).resolve() / "root"
        for name, data in before.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        listed = Path(scratch) / "steps.json"
        listed.write_text(json.dumps(steps))
        return record([sys.executable, "-I", "-S", DRIVER, root, listed], root, backend=backend)


@pytest.mark.parametrize("backend", TRACERS)
def test_random_programs_replay_byte_for_byte(backend: Backend) -> None:
    @settings(max_examples=settings.default.max_examples // 4)
    @given(PROGRAMS)
    def check(steps: list[dict[str, Any]]) -> None:
        trace = run(steps, backend)
        assert trace.exit_code == 0
        assert not trace.unseen
        assert fidelity(trace) == []
        assert simulate(trace).contradictions == []

    check()


def test_random_programs_with_shared_mappings_replay_byte_for_byte_under_ptrace() -> None:
    stores = step("store", fd=FD, offset=SMALL, length=SMALL, explicit=EXPLICIT)

    @settings(max_examples=settings.default.max_examples // 4)
    @given(st.lists(st.one_of(STEPS.filter(lambda one: one["do"] != "threads"), stores, stores), min_size=25, max_size=60))
    def check(steps: list[dict[str, Any]]) -> None:
        assert fidelity(run([{"do": "open", "name": "d/x", "flags": os.O_RDWR}, *steps], "ptrace")) == []

    check()


@needs_strace
def test_stores_to_a_mapping_make_a_trace_of_strace_infidel_and_the_report_names_the_way_out() -> None:
    steps = [
        {"do": "open", "name": "a", "flags": os.O_RDWR},
        {"do": "store", "fd": 0, "offset": 3, "length": 1, "explicit": True},
    ]
    problems = fidelity(run(steps, "strace"))
    assert len(problems) == 1
    assert "a: 12 bytes against 12, the first difference at byte 3" in problems[0]
    assert "ptrace" in problems[0]


@needs_strace
def test_both_tracers_give_the_same_operations() -> None:
    steps = [
        {"do": "marker", "how": "begin", "data": "one"},
        {"do": "open", "name": "a", "flags": os.O_RDWR | os.O_CREAT},
        {"do": "write", "fd": 0, "data": "hello", "times": 900},
        {"do": "pwritev", "fd": 0, "data": "x", "offset": 7},
        {"do": "sync", "fd": 0, "how": "fdatasync"},
        {"do": "rename", "name": "a", "new": "é,;"},
        {"do": "child", "fd": 0},
        {"do": "unlink", "name": "é,;"},
        {"do": "marker", "how": "ack", "data": "one"},
        {"do": "close", "fd": 0},
    ]

    def seen(backend: Backend) -> list[tuple[object, ...]]:
        trace = run(steps, backend)
        return [
            (op.kind, tuple(path.rpartition("/")[2] for path in op.paths), op.offset, op.length, op.payload, op.marker)
            for op in trace.operations
            if op.kind not in ("read", "fork")
        ]

    ours, theirs = seen("ptrace"), seen("strace")
    assert ours == theirs
    assert [one[0] for one in ours if one[0] in ("begin", "ack")] == ["begin", "ack"]


@pytest.mark.parametrize("backend", TRACERS)
def test_a_file_opened_with_o_dsync_is_synced_by_each_write(backend: Backend) -> None:
    steps = [
        {"do": "open", "name": "b", "flags": os.O_RDWR | os.O_CREAT | os.O_DSYNC},
        {"do": "write", "fd": 0, "data": "x", "times": 1},
        {"do": "write", "fd": 0, "data": "y", "times": 1},
    ]
    kinds = [micro.kind for micro in lower(run(steps, backend))]
    assert kinds == ["link", "data", "size", "sync", "data", "size", "sync"]


@pytest.mark.parametrize("backend", TRACERS)
def test_threads_that_overlap_are_not_ordered_but_one_thread_is(backend: Backend) -> None:
    trace = run([{"do": "threads", "times": 4}], backend)
    by_thread: dict[int, list[tuple[int, int]]] = {}
    for op in trace.operations:
        if op.kind in ("write", "fsync"):
            by_thread.setdefault(op.tid, []).append((op.seq_enter, op.seq_exit))
    assert len(by_thread) == 2
    for spans in by_thread.values():
        assert all(before[1] < after[0] for before, after in pairwise(spans))
    assert len({op.pid for op in trace.operations if op.kind == "write"}) == 1


@pytest.mark.parametrize("backend", ["ptrace", "auto"])
def test_threads_that_race_on_the_same_names_are_put_in_the_order_that_happened(backend: Backend) -> None:
    trace = run([{"do": "race", "times": 40}], backend, before={})
    assert len([op for op in trace.operations if op.kind == "write"]) > 40
    assert fidelity(trace) == []


@needs_strace
def test_auto_runs_again_under_ptrace_when_strace_cannot_see_a_store() -> None:
    steps = [
        {"do": "open", "name": "a", "flags": os.O_RDWR | os.O_CREAT},
        {"do": "write", "fd": 0, "data": "hello", "times": 3},
        {"do": "store", "fd": 0, "offset": 3, "length": 1, "explicit": True},
    ]
    trace = run(steps, "auto", before={})
    assert trace.source == "ptrace"
    assert [op.kind for op in trace.operations if op.kind in ("write", "store", "msync")] == ["write", "store", "msync"]
    assert run(steps[:2], "auto", before={}).source == "strace"
