"""Trees: what is read is what is written, and equal digests mean equal content."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import CapacityError
from headway.crashtest.tree import BadTree, Tree

NAME = st.sampled_from(["a", "b", "ü", "d/x", "d/y", "d/e/z"])
FILES = st.dictionaries(NAME, st.binary(max_size=20), max_size=5)


def test_a_written_tree_reads_back_with_links_attributes_and_odd_names(tmp_path: Path) -> None:
    first = tmp_path / "first"
    (first / "d").mkdir(parents=True)
    (first / "d" / "file").write_bytes(b"content")
    os.link(first / "d" / "file", first / "second name")
    (first / "link").symlink_to("d/file")
    (first / "empty").mkdir()
    (first / os.fsdecode(b"\xff\n;,")).write_bytes(b"")
    tree = Tree.read(first)
    tree.write(tmp_path / "second")
    again = Tree.read(tmp_path / "second")
    assert tree.digest() == again.digest()
    assert tree.differences(again) == []
    assert (tmp_path / "second" / "second name").stat().st_nlink == 2


@given(FILES, FILES)
def test_digests_are_equal_exactly_when_contents_are(one: dict[str, bytes], two: dict[str, bytes]) -> None:
    a, b = Tree.of(one), Tree.of(two)
    same = one == two
    assert (a.digest() == b.digest()) == same
    assert (a.differences(b) == []) == same


def test_a_copy_is_not_a_hard_link(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"x")
    os.link(tmp_path / "one" / "a", tmp_path / "one" / "b")
    (tmp_path / "two" / "b").write_bytes(b"x")
    assert Tree.read(tmp_path / "one").digest() != Tree.read(tmp_path / "two").digest()


def test_empty_directories_may_be_left_out_of_the_digest() -> None:
    with_empty, without = Tree.of({"a": b"1", "d": None}), Tree.of({"a": b"1"})
    assert with_empty.digest() != without.digest()
    assert with_empty.digest(empty_directories=False) == without.digest(empty_directories=False)


def test_patterns_take_files_out_by_name_or_path() -> None:
    tree = Tree.of({"a": b"1", "lock.mdb": b"2", "d/lock.mdb": b"3", "d/keep": b"4"})
    assert tree.without(["lock.mdb"]).files() == {"a": b"1", "d/keep": b"4"}
    assert tree.without(["d/*"]).files() == {"a": b"1", "lock.mdb": b"2"}


def test_a_tree_is_never_written_over_something(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"")
    with pytest.raises(BadTree, match="not empty"):
        Tree.of({"a": b""}).write(tmp_path)


def test_a_directory_that_is_too_large_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100))
    with pytest.raises(CapacityError, match="smaller workload"):
        Tree.read(tmp_path, max_bytes=50)
    with pytest.raises(BadTree, match="cannot be read"):
        Tree.read(tmp_path / "missing")
