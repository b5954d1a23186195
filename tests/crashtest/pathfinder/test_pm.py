"""The persistent-memory graph on stores written by hand."""

import pytest

from headway.crashtest.operations import Frame, Operation
from headway.crashtest.pathfinder import pm

BASE = 0x10000
TYPE = (pm.Field(0, 8, "key"), pm.Field(8, 8, "value"), pm.Field(64, 8, "valid"), pm.Field(128, 64, "log", array=True))


def region(number: int = 0) -> pm.Region:
    return pm.Region(BASE + 256 * number, 256, "entry", TYPE)


class Memory:
    """Stores, flushes and fences in order."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def add(self, kind: str, offset: int = 0, length: int = 8, stack: tuple[Frame, ...] = ()) -> "Memory":
        index = len(self.operations)
        self.operations.append(
            Operation(index, index, index, 1, 1, kind, ("/pm",), address=BASE + offset, length=length, payload=b"x" * length, stack=stack)
        )
        return self

    def entry(self, number: int, *, fence: bool) -> "Memory":
        """Key and value, then the valid flag in another line; with `fence` in that order."""
        start = 256 * number
        self.add("store", start).add("store", start + 8)
        if fence:
            self.add("flush", start, 16).add("fence")
        return self.add("store", start + 64).add("flush", start + 64).add("fence")


def edges(memory: Memory) -> set[tuple[int, int]]:
    _, preds = pm.graph(memory.operations)
    return {(a, b) for b, mask in enumerate(preds) for a in range(b) if mask >> a & 1}


def test_stores_to_one_line_keep_their_order() -> None:
    assert edges(Memory().add("store", 0).add("store", 8).add("store", 64)) == {(0, 1)}


def test_a_flush_alone_orders_nothing_a_fence_after_it_does() -> None:
    assert edges(Memory().add("store", 0).add("flush", 0).add("store", 64)) == set()
    assert edges(Memory().add("store", 0).add("fence").add("store", 64)) == set()
    assert edges(Memory().add("store", 0).add("flush", 0).add("fence").add("store", 64)) == {(0, 1)}


def test_msync_orders_what_is_in_its_range() -> None:
    assert edges(Memory().add("store", 0).add("store", 4096).add("msync", 0, 4096).add("store", 8192)) == {(0, 2)}


def test_a_store_to_a_flushed_line_orders_what_was_clean_before_the_flushed_store() -> None:
    memory = Memory().add("store", 0).add("store", 64).add("flush", 0).add("flush", 64).add("fence").add("store", 64)
    assert edges(memory) == {(0, 1), (0, 2), (1, 2)}


def test_a_store_across_two_lines_follows_both() -> None:
    assert edges(Memory().add("store", 0).add("store", 64).add("store", 60, 8)) == {(0, 2), (1, 2)}


@pytest.mark.parametrize(("fence", "torn"), [(True, False), (False, True)])
def test_a_missing_fence_shows_as_a_valid_entry_without_its_value(fence: bool, torn: bool) -> None:
    stores, preds = pm.graph(Memory().entry(0, fence=fence).operations, [region()])
    whole = pm.Behaviour("entry", BASE, (0, 1, 2))
    seen = set(pm.states(stores, preds, whole))
    assert (0b100 in seen) == torn
    assert 0b111 in seen


def test_behaviours_are_cut_where_an_entry_is_written_again() -> None:
    memory = Memory().entry(0, fence=False).entry(0, fence=False)
    stores, preds = pm.graph(memory.operations, [region()])
    assert [one.stores for one in pm.behaviours(stores, preds, [region()])] == [(0, 1, 2), (3, 4, 5)]


def test_array_fields_cut_at_every_write() -> None:
    memory = Memory().add("store", 128).add("store", 136)
    stores, preds = pm.graph(memory.operations, [region()])
    assert [one.stores for one in pm.behaviours(stores, preds, [region()])] == [(0,), (1,)]


def test_the_behaviour_with_fewer_constraints_stands_for_the_others() -> None:
    regions = [region(0), region(1), region(2)]
    memory = Memory().entry(0, fence=True).entry(1, fence=False).entry(2, fence=True)
    stores, preds = pm.graph(memory.operations, regions)
    fenced = [pm.Behaviour("entry", BASE + 256 * n, (3 * n, 3 * n + 1, 3 * n + 2)) for n in range(3)]
    groups = pm.group(stores, preds, fenced)
    assert [[one.instance for one in members] for members in groups] == [[BASE + 256, BASE, BASE + 512]]


def test_scalars_are_grouped_by_who_writes_them() -> None:
    put, get = (Frame("put", "a.c", 1, 1),), (Frame("get", "a.c", 2, 2),)
    memory = Memory().add("store", 0, stack=put).add("store", 64, stack=put).add("store", 128, stack=get)
    stores, _ = pm.graph(memory.operations)
    assert [[one.instance - BASE for one in members] for members in pm.scalar_groups(stores)] == [[0, 64], [128]]


def test_the_number_of_states_is_capped() -> None:
    memory = Memory()
    for line in range(12):
        memory.add("store", 64 * line)
    stores, preds = pm.graph(memory.operations)
    assert len(list(pm.states(stores, preds, pm.Behaviour("", BASE, tuple(range(12)))))) == 512
