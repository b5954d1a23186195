"""Stored traces: what is loaded is what was saved, and nothing else is believed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.crashtest.operations import Frame, Operation, Trace, TraceError
from headway.crashtest.tree import OUTSIDE, Directory, File, Tree


def example() -> Trace:
    frame = Frame("ns::f<a, b>", "/src/f.cc", 12, 0xFFFF_FFFF_FFFF)
    operations = [
        Operation(0, 1, 4, 7, 8, "open", ("/r/\udcff",), None, 3, 0o101, 0o644, result=3, stack=(frame, Frame("g", "", -1, 0))),
        Operation(1, 2, 3, 7, 9, "pwrite", ("/r/\udcff",), 3, None, 0, 0, 1 << 40, 5, b"x" * 5, 5, None, (frame,)),
        Operation(2, 5, 6, 7, 7, "ack", marker="put é"),
        Operation(3, 7, 8, 7, 7, "mmap", ("/r/m",), 3, address=1 << 47),
    ]
    initial = Tree.of({"a": b"x" * 5, "d/e": b""})
    initial.nodes[OUTSIDE] = Directory({"/elsewhere/f": 9})
    initial.nodes[9] = File(b"z", 0o600, (("user.k", b"\0"),))
    return Trace("/r", operations, initial, Tree.of({"a": b"y"}), "test", ("someone",), ("cmd", "\udc80"), -9)


def test_a_trace_reads_back_equal(tmp_path: Path) -> None:
    trace = example()
    trace.save(tmp_path / "t")
    assert Trace.load(tmp_path / "t") == trace
    trace.final = None
    trace.save(tmp_path / "t")
    assert Trace.load(tmp_path / "t").final is None


@given(st.data())
def test_a_damaged_file_is_refused_or_differs_in_payloads_only(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("traces") / "t"
    example().save(path)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[place] ^= data.draw(st.integers(1, 255))
    else:
        del raw[place:]
    path.write_bytes(raw)
    try:
        loaded = Trace.load(path)
    except TraceError:
        return
    assert [op.kind for op in loaded.operations] == [op.kind for op in example().operations]


@pytest.mark.parametrize("content", [b"", b"HWCT", b"not a trace, but long enough to hold a header"])
def test_other_files_are_refused_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(TraceError, match="import"):
        Trace.load(tmp_path / "t")
    with pytest.raises(TraceError, match="cannot be read"):
        Trace.load(tmp_path / "missing")


def test_names_that_would_leave_the_directory_are_refused(tmp_path: Path) -> None:
    trace = example()
    trace.initial = Tree({1: Directory({"../../etc": 2}), 2: File(b"")})
    trace.save(tmp_path / "t")
    with pytest.raises(TraceError, match="no file name"):
        Trace.load(tmp_path / "t")


def test_directories_in_a_circle_are_refused(tmp_path: Path) -> None:
    trace = example()
    trace.initial = Tree({1: Directory({"a": 2}), 2: Directory({"b": 1})})
    trace.save(tmp_path / "t")
    with pytest.raises(TraceError, match="two names"):
        Trace.load(tmp_path / "t")
