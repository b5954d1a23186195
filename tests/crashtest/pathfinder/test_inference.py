"""Behaviours, groups, windows and baselines on stacks and events written by hand."""

import os

import pytest

from headway.crashtest.operations import Frame
from headway.crashtest.pathfinder import Faithful, baselines, windows
from tests.crashtest.recorder import Recorder


def stack(*calls: str) -> tuple[Frame, ...]:
    """Innermost first, below a frame of the C library."""
    frames = [Frame(name, "app.c", int(line), 0) for name, line in (call.split(":") for call in calls)]
    return (Frame("libc", "", -1, 0), *reversed(frames))


def recorder(times: int) -> Recorder:
    """`put` writes and syncs; `main` calls it `times` times from one line."""
    r = Recorder({"f": b""})
    r.stack = stack("main:1", "init:2")
    fd = r.open("f", os.O_WRONLY)
    for number in range(times):
        r.stack = stack("main:3", "put:10")
        r.write(fd, b"%d" % number)
        r.stack = stack("main:3", "put:11")
        r.fsync(fd)
    return r


def test_a_function_that_is_called_again_and_again_is_one_behaviour_per_stretch() -> None:
    plan = Faithful(recorder(3).trace()).plan
    assert "put" in plan.behaviours
    assert {event for one in plan.behaviours["put"] for event in one.events} == set(range(1, 7))


def test_gaps_of_more_than_ten_events_separate_behaviours() -> None:
    r = Recorder()
    for half in range(2):
        r.stack = stack("main:1", f"work:{half}", "save:5")
        for name in range(2):
            r.open(f"{half}{name}")
        for number in range(12):
            r.stack = stack("main:1", "noise:1", f"inner{number % 2}:{number}")
            r.open(f"n{half}{number}")
    runs = Faithful(r.trace()).plan.behaviours["save"]
    assert len(runs) == 2


def test_a_run_ends_at_its_largest_size() -> None:
    r = Recorder({"f": b""})
    r.stack = stack("main:1", "put:10")
    fd = r.open("f", os.O_WRONLY)
    for number in range(9):
        r.write(fd, b"%d" % number)
    limited = Faithful(r.trace(), max_run_events=4).plan
    assert max(len(one.events) for runs in limited.behaviours.values() for one in runs) <= 10
    assert limited.behaviours


def test_threads_are_inferred_apart_but_share_windows() -> None:
    r = Recorder({"a": b"", "b": b""})
    fds = {}
    for tid, name in ((1, "a"), (2, "b")):
        r.tid, r.stack = tid, stack(f"thread{tid}:1", "open:1")
        fds[tid] = r.open(name, os.O_WRONLY)
    for _ in range(3):
        for tid in (1, 2):
            r.tid, r.stack = tid, stack(f"thread{tid}:2", "append:4")
            r.write(fds[tid], b"x")
    plan = Faithful(r.trace()).plan
    for run in plan.behaviours["append"]:
        assert len({plan.events[i].operation.tid for i in run.events}) == 1
    assert any(test.window.last - test.window.first >= 6 for test in plan.tests)


def test_long_windows_give_prefixes_and_longer_ones_are_reported_as_skipped() -> None:
    def test_of(writes: int) -> tuple[Faithful, list[str]]:
        r = Recorder({"f": b""})
        r.stack = stack("main:1", "fill:2")
        fd = r.open("f", os.O_WRONLY)
        for number in range(writes):
            r.stack = stack("main:1", "fill:3")
            r.write(fd, b"x", offset=number * 8192)
        faithful = Faithful(r.trace(), max_run_events=10_000)
        return faithful, [test.window.how for test in faithful.plan.tests]

    faithful, how = test_of(60)
    assert "prefixes" in how
    long = next(test for test in faithful.plan.tests if test.window.how == "prefixes")
    assert len(list(faithful.states(long))) == long.window.last - long.window.first + 1
    faithful, how = test_of(150)
    assert "skipped" in how
    assert [test.window.how for test in faithful.skipped_windows] == ["skipped"] * how.count("skipped")
    assert not list(faithful.states(faithful.skipped_windows[0]))


def test_enumeration_that_takes_too_long_goes_on_in_chunks() -> None:
    r = Recorder({"f": b"", "g": b""})
    for name in ("f", "g"):
        fd = r.open(name, os.O_WRONLY)
        for number in range(12):
            r.write(fd, b"x", offset=number * 8192)
    faithful = Faithful(r.trace())
    window = windows.Window(0, len(faithful.plan.events) - 1, "ideals")
    ticks = iter(range(0, 10**9, 1))
    sets = list(windows.index_sets(faithful.plan.events, faithful.plan.predecessors, window, clock=lambda: float(next(ticks))))
    assert len(sets) == len(set(sets))
    assert 26 < len(sets) < 1000  # the ideals that there was time for, and those of chunks of eight
    assert max(mask.bit_count() for mask in sets) == 26


def test_markers_say_which_operations_a_state_holds() -> None:
    r = Recorder()
    for number in range(2):
        r.begin(str(number))
        r.write(r.open(str(number)), b"x")
        r.ack(str(number))
    faithful = Faithful(r.trace())
    none, half, one = faithful.state(0, ""), faithful.state(0b0111, ""), faithful.state(0b0011, "")
    assert (none.begun, none.acks) == ((), ())
    assert (half.begun, half.acks) == (("0", "1"), ("0",))
    assert (one.begun, one.acks) == (("0",), ("0",))


@pytest.mark.parametrize(("kind", "expected"), [("exhaustive", 7), ("linear", 4), ("fsync", 1), ("fsync-reorder", 6), ("alice", 7)])
def test_baselines_on_independent_writes(kind: baselines.Baseline, expected: int) -> None:
    r = Recorder({str(name): b"" for name in range(3)})
    trace = r.trace()
    fds = [100, 101, 102]
    for name, fd in enumerate(fds):
        r._path_of[fd] = str(name)
    r.write(100, b"x", offset=0)
    r.write(101, b"x", offset=0)
    r.fsync(101)
    r.write(102, b"x", offset=0)
    r.write(100, b"x", offset=8192)
    states = list(Faithful(trace).baseline(kind))
    assert all(state.origin == kind for state in states)
    assert len({state.kept for state in states}) == expected


def test_random_is_reproducible_and_endless() -> None:
    faithful = Faithful(recorder(4).trace())
    first = [state.kept for state, _ in zip(faithful.baseline("random", seed=3), range(10))]
    again = [state.kept for state, _ in zip(faithful.baseline("random", seed=3), range(10))]
    assert first == again
    assert len(first) == 10
