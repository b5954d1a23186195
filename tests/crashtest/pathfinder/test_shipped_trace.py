"""Pathfinder's own trace of LevelDB, judged by its rules: every count of the authors' plan, and the image in which their bug shows."""

import os
from functools import cache
from pathlib import Path

import pytest

from headway.crashtest import dag
from headway.crashtest.crash_states import explore
from headway.crashtest.history import History
from headway.crashtest.models import MODELS
from headway.crashtest.operations import Trace
from headway.crashtest.pathfinder import Faithful, windows
from headway.crashtest.trace import pathfinder_text

LOG = Path(__file__).parent.parent / "data" / "leveldb-bug-0-tracer.log"
ROOT = "/home/yilegu/squint_test_dir/628b-bda1-d221-d700"

# function: (members, representative, window, states, images)
TESTS = {
    "leveldb::(anonymous namespace)::PosixWritableFile::Sync": (2, (6, 7), (3, 10), 17, 7),
    "leveldb::(anonymous namespace)::PosixWritableFile::WriteUnbuffered": (2, (35, 36), (32, 39), 11, 11),
    "leveldb::DoWriteStringToFile": (2, (5, 7), (2, 10), 18, 8),
    "leveldb::DBImpl::RemoveObsoleteFiles": (1, (29, 32), (26, 35), 89, 18),
    "leveldb::DBImpl::Write": (1, (33, 41), (30, 44), 135, 28),
    "leveldb::SetCurrentFile": (2, (5, 9), (2, 12), 22, 8),
    "leveldb::DBImpl::NewDB": (1, (2, 9), (0, 12), 47, 19),
    "leveldb::VersionSet::LogAndApply": (1, (17, 28), (14, 31), 84, 10),
    "leveldb::DBImpl::Recover": (1, (1, 15), (0, 18), 89, 25),
    "leveldb::DB::Open": (1, (0, 32), (0, 35), 1097, 56),
}
SKIPPED = {
    "leveldb::ReadFileToString",
    "leveldb::(anonymous namespace)::PosixEnv::GetChildren",
    "leveldb::(anonymous namespace)::PosixWritableFile::SyncDirIfManifest",
    "leveldb::DBImpl::~DBImpl",
    "leveldb::VersionSet::Recover",
}


@cache
def _trace() -> Trace:
    return pathfinder_text.read(LOG, root=ROOT)


@cache
def _faithful() -> Faithful:
    return Faithful(_trace())


def _images(states: object) -> set[bytes]:
    return {state.tree.digest(empty_directories=False) for state in states}  # type: ignore[attr-defined]


def test_the_graph_has_the_published_edges() -> None:
    plan = _faithful().plan
    assert len(plan.events) == 46
    assert sum(mask.bit_count() for mask in plan.predecessors) == 349
    assert sum(mask.bit_count() for mask in Faithful(_trace(), decompose=False).plan.predecessors) == 302


@pytest.mark.parametrize(
    ("event", "successors"),
    [(3, {4, 8, 11, 13, 15, 32, 44}), (6, {7, 8, 11, 13, 15, 44}), (9, {10, 16, 17, 24, 28, 32})],
)
def test_what_must_follow_an_event(event: int, successors: set[int]) -> None:
    assert {i for i, mask in enumerate(_faithful().plan.predecessors) if mask >> event & 1} == successors


def test_behaviours_fall_into_fifteen_groups_of_which_ten_are_tested() -> None:
    plan = _faithful().plan
    assert len(plan.behaviours) == len(plan.groups) == 15
    assert {group.function for group in plan.skipped} == SKIPPED
    assert {test.group.function for test in plan.tests} == set(TESTS)


@pytest.mark.parametrize("function", TESTS)
def test_one_group_has_the_published_representative_window_states_and_images(function: str) -> None:
    members, representative, window, states, images = TESTS[function]
    faithful = _faithful()
    test = next(test for test in faithful.plan.tests if test.group.function == function)
    events = test.group.representative.events
    assert (len(test.group.members), (events[0], events[-1]), (test.window.first, test.window.last)) == (members, representative, window)
    listed = list(faithful.states(test))
    assert (len(listed), len(_images(listed))) == (states, images)


def test_all_tests_together() -> None:
    faithful = _faithful()
    sets = [
        mask for test in faithful.plan.tests for mask in windows.index_sets(faithful.plan.events, faithful.plan.predecessors, test.window)
    ]
    assert (len(sets), len(set(sets))) == (1609, 1405)
    assert len(_images(faithful.state(mask, "") for mask in set(sets))) == 72
    coarse = Faithful(_trace(), decompose=False).plan
    assert sum(1 for test in coarse.tests for _ in windows.index_sets(coarse.events, coarse.predecessors, test.window)) == 8179


def test_the_whole_trace_exhaustively() -> None:
    states = list(_faithful().baseline("exhaustive"))
    assert (len(states), len(_images(states))) == (4805, 92)


def test_the_bug_is_among_the_states() -> None:
    faithful = _faithful()
    new_db = next(test for test in faithful.plan.tests if test.group.function == "leveldb::DBImpl::NewDB")
    failing = sum(1 << i for i in (0, 1, 2, 5, 6, 9))
    assert failing in set(windows.index_sets(faithful.plan.events, faithful.plan.predecessors, new_db.window))
    files = faithful.state(failing, "").tree.files()
    assert files["CURRENT"] == b"MANIFEST-000001\n"
    assert files["MANIFEST-000001"] == b""


@pytest.mark.parametrize(("model", "states", "images"), [("prefix", 87, 23), ("ext4", 200, 51), ("posix", 320, 91), ("apm", 2832, 533)])
def test_our_models_on_the_same_trace_with_whole_writes(model: str, states: int, images: int) -> None:
    history = History.of(_trace(), MODELS[model], whole_writes=True)
    assert len(history.micros) == 29
    kept = [
        history.durable_after[after] | ideal
        for after in range(len(history.micros))
        for ideal in dag.ideals(history.ancestors, history.pending_at(after))
    ]
    assert len(kept) == states
    assert len({history.tree(one).digest(empty_directories=False) for one in kept}) == images


@pytest.mark.parametrize("model", ["ext4", "posix"])
def test_our_representatives_reach_the_same_bug(model: str) -> None:
    seen = explore(_trace(), model)
    assert any(_dangling(state.tree.files()) for state in seen)
    assert not any(_dangling(state.tree.files()) for state in explore(_trace(), model, strategy="prefix"))


def _dangling(files: dict[str, bytes]) -> bool:
    """CURRENT names a manifest that is empty: the database cannot be opened."""
    return files.get("CURRENT") == b"MANIFEST-000001\n" and files.get("MANIFEST-000001") == b""


def test_an_absolute_seek_is_not_lost() -> None:
    line = "0,0,OPEN,/d/f,{flags},420,3,-1;main,m.c,1,0x1;\n1,0,WRITE,3,/d/f,4,YWFhYQ==;main,m.c,2,0x2;\n"
    line += "2,0,LSEEK,3,/d/f,0,0;main,m.c,3,0x3;\n3,0,WRITE,3,/d/f,2,YmI=;main,m.c,4,0x4;\n"
    faithful = Faithful(pathfinder_text.parse(line.format(flags=os.O_CREAT | os.O_RDWR), root="/d"))
    assert not faithful.plan.events[3].extends
    assert faithful.state(0b1111, "").tree.files() == {"f": b"bbaa"}
