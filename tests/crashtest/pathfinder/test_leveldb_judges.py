"""LevelDB itself (through plyvel, where it is installed) opens every crash state of the shipped trace: which fail is known."""

from pathlib import Path
from typing import Any

import pytest

from headway.crashtest import dag
from headway.crashtest.history import History
from headway.crashtest.models import MODELS
from headway.crashtest.pathfinder import Faithful
from headway.crashtest.trace import pathfinder_text
from headway.crashtest.tree import Tree

plyvel: Any = pytest.importorskip("plyvel", reason="plyvel is not installed: pip install plyvel")
LOG = Path(__file__).parent.parent / "data" / "leveldb-bug-0-tracer.log"
TRACE = pathfinder_text.read(LOG, root="/home/yilegu/squint_test_dir/628b-bda1-d221-d700")
FAILING = {"Sync": 2, "DoWriteStringToFile": 2, "SetCurrentFile": 2, "NewDB": 4, "Recover": 4, "Open": 12}


class Judge:
    """Opens each distinct image once."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._fails: dict[bytes, bool] = {}

    def fails(self, tree: Tree) -> bool:
        digest = tree.digest(empty_directories=False)
        if digest not in self._fails:
            place = self._where / str(len(self._fails))
            tree.write(place)
            try:
                plyvel.DB(str(place), create_if_missing=True).close()
                self._fails[digest] = False
            except plyvel.Error:
                self._fails[digest] = True
        return self._fails[digest]

    def failing_images(self) -> int:
        return sum(self._fails.values())


def test_twenty_six_test_instances_fail_in_two_images(tmp_path: Path) -> None:
    judge, faithful = Judge(tmp_path), Faithful(TRACE)
    failing = {
        test.group.function.rpartition("::")[2]: sum(judge.fails(state.tree) for state in faithful.states(test))
        for test in faithful.plan.tests
    }
    assert {name: count for name, count in failing.items() if count} == FAILING
    assert sum(failing.values()) == 26
    assert judge.failing_images() == 2


def test_the_whole_trace_has_the_same_two_failing_images(tmp_path: Path) -> None:
    judge = Judge(tmp_path)
    for state in Faithful(TRACE).baseline("exhaustive"):
        judge.fails(state.tree)
    assert judge.failing_images() == 2


@pytest.mark.parametrize(("model", "images"), [("prefix", 0), ("ext4", 10), ("posix", 20)])
def test_failing_images_under_our_models(tmp_path: Path, model: str, images: int) -> None:
    judge, history = Judge(tmp_path), History.of(TRACE, MODELS[model], whole_writes=True)
    for after in range(len(history.micros)):
        for ideal in dag.ideals(history.ancestors, history.pending_at(after)):
            judge.fails(history.tree(history.durable_after[after] | ideal))
    assert judge.failing_images() == images
