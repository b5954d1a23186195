"""The device log: epochs between flushes, the states that may be left of them, and which markers were true by then."""

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from headway.crashtest.realfs.write_log import ENTRY, Epoch, Stamp, WriteLog, markers_at, read_log, states


def entry(kind: bytes, data: bytes = b"", offset: int = 0) -> bytes:
    return ENTRY.pack(kind, offset, len(data), 0.0) + data


def test_epochs_end_at_flushes_and_the_last_may_have_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    parts = [entry(b"W", b"aa"), entry(b"W", b"bbb"), entry(b"F"), entry(b"F"), entry(b"M", b"ack 1\n"), entry(b"W", b"c")]
    log.write_bytes(b"".join(parts))
    read = read_log(log, log.stat().st_size)
    assert read.lengths == (2, 3, 1)
    assert [(epoch.first, epoch.stop) for epoch in read.epochs] == [(0, 2), (2, 3)]
    assert [stamp.text for stamp in read.stamps] == ["ack 1"]
    assert read_log(log, len(parts[0])).lengths == (2,)


def test_few_writes_give_every_subset_once() -> None:
    log = WriteLog((4,) * 3, (Epoch(0, 3, 100),), ())
    found = [state.parts for state in states(log, log.epochs)]
    assert len(found) == len(set(found)) == 8


def test_many_writes_give_prefixes_and_drop_ones() -> None:
    log = WriteLog((4,) * 7, (Epoch(0, 7, 100),), ())
    found = {tuple(index for index, _, _ in state.parts) for state in states(log, log.epochs)}
    assert found == {tuple(range(n)) for n in range(8)} | {tuple(i for i in range(7) if i != n) for n in range(7)}


def test_writes_are_torn_where_it_is_asked_for() -> None:
    log = WriteLog((10,), (Epoch(0, 1, 100),), ())
    assert ((0, 0, 4), (0, 8, 10)) in [state.parts for state in states(log, log.epochs, split_bytes=4)]


def test_every_state_of_an_epoch_keeps_the_epochs_before_it() -> None:
    log = WriteLog((1, 1), (Epoch(0, 1, 50), Epoch(1, 2, 100)), (Stamp(20, "begin 1"), Stamp(60, "ack 1")))
    assert [(state.prefix, state.acks, state.begun) for state in states(log, log.epochs)] == [
        (0, (), ("1",)),
        (0, (), ("1",)),
        (1, ("1",), ("1",)),  # with the markers of its end, "nothing of the second epoch" is a state of its own
        (1, ("1",), ("1",)),
    ]


@given(st.lists(st.sampled_from(["begin a", "ack a", "begin b"])), st.integers(0, 100))
def test_markers_grow_with_the_position(texts: list[str], step: int) -> None:
    stamps = [Stamp(10 * number, text) for number, text in enumerate(texts)]
    seen = [markers_at(stamps, position) for position in range(0, 10 * len(texts) + 1, step + 1)]
    for (acks, begun), (later_acks, later_begun) in pairwise(seen):
        assert later_acks[: len(acks)] == acks
        assert later_begun[: len(begun)] == begun
