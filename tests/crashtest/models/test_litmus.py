"""The shipped models against what was measured on the kernel's own file systems: every outcome seen there is allowed, and what those file
systems protect stays protected. The measured table: `headway crashtest litmus` and docs/crashtest.md.
"""

import os
from collections.abc import Callable

import pytest

from headway.crashtest.crash_states import explore
from headway.crashtest.operations import Trace
from tests.crashtest.recorder import Recorder

OLD, NEW = b"o" * 100, b"n" * 100
Outcomes = set[str]


def outcomes(trace: Trace, model: str, describe: Callable[[dict[str, bytes]], str], *, returned: bool = False) -> Outcomes:
    """What every crash state looks like; with `returned` only those after the last acknowledgement."""
    last = sum(1 for operation in trace.operations if operation.kind == "ack")
    states = explore(trace, model, strategy="exhaustive", cap=None, whole_writes=False)
    return {describe(state.tree.files()) for state in states if not returned or len(state.acks) == last}


def content(name: str) -> Callable[[dict[str, bytes]], str]:
    """A file in words."""

    def describe(files: dict[str, bytes]) -> str:
        data = files.get(name)
        if data is None:
            return "absent"
        words = {b"": "empty", OLD: "old", NEW: "new", OLD + NEW: "both", OLD + bytes(100): "zeros at the end"}
        return words.get(data, "zeros" if not any(data) else "other")

    return describe


def create_and_write() -> Trace:
    r = Recorder()
    fd = r.open("f")
    r.write(fd, NEW)
    r.close(fd)
    return r.trace()


def append_in_a_block() -> Trace:
    r = Recorder({"f": OLD})
    fd = r.open("f", os.O_WRONLY | os.O_APPEND)
    r.write(fd, NEW)
    r.close(fd)
    return r.trace()


def append_blocks() -> Trace:
    r = Recorder({"f": OLD * 40 + OLD[:96]})
    fd = r.open("f", os.O_WRONLY | os.O_APPEND)
    r.write(fd, b"n" * 8192)
    r.close(fd)
    return r.trace()


def rename_to(target_exists: bool) -> Trace:
    r = Recorder({"f": OLD} if target_exists else {})
    r.publish("f", NEW, sync=False, sync_directory=False)
    return r.trace()


def rewrite() -> Trace:
    r = Recorder({"f": OLD})
    fd = r.open("f", os.O_WRONLY | os.O_TRUNC)
    r.write(fd, NEW)
    r.close(fd)
    return r.trace()


def fsync_new_file() -> Trace:
    r = Recorder()
    fd = r.open("f")
    r.write(fd, NEW)
    r.fsync(fd)
    r.ack("f")
    return r.trace()


def rename_after_fsync() -> Trace:
    r = Recorder({"f": OLD})
    r.publish("f", NEW, sync=True, sync_directory=False)
    r.ack("f")
    return r.trace()


def overwrite_two_files() -> Trace:
    r = Recorder({"a": OLD, "b": OLD})
    for name in ("a", "b"):
        fd = r.open(name, os.O_WRONLY)
        r.write(fd, NEW)
        r.close(fd)
    return r.trace()


def rename_then_unlink() -> Trace:
    r = Recorder({"a": OLD, "b": OLD})
    r.rename("a", "c")
    r.unlink("b")
    return r.trace()


def another_file_synced() -> Trace:
    r = Recorder()
    r.write(r.open("a"), NEW)
    fd = r.open("b")
    r.write(fd, NEW)
    r.fsync(fd)
    r.ack("b")
    return r.trace()


def log_switch() -> Trace:
    r = Recorder({"a": OLD})
    r.write(r.open("a", os.O_WRONLY | os.O_APPEND), NEW)
    fd = r.open("b")
    r.write(fd, NEW)
    r.fsync(fd)
    r.ack("b")
    return r.trace()


def preallocate() -> Trace:
    r = Recorder()
    fd = r.open("f")
    r.fallocate(fd, 100)
    r.write(fd, NEW)
    return r.trace()


JOURNALING = ("ext4", "xfs", "btrfs")


@pytest.mark.parametrize("model", JOURNALING)
def test_a_created_file_may_be_absent_empty_or_full(model: str) -> None:
    assert outcomes(create_and_write(), model, content("f")) == {"absent", "empty", "new"}


def test_an_append_in_a_block_may_end_in_zeros_on_ext4_only() -> None:
    assert outcomes(append_in_a_block(), "ext4", content("f")) == {"old", "both", "zeros at the end"}
    assert outcomes(append_in_a_block(), "xfs", content("f")) == {"old", "both"}
    assert outcomes(append_in_a_block(), "btrfs", content("f")) == {"old", "both"}


@pytest.mark.parametrize("model", JOURNALING)
def test_appended_blocks_are_there_or_not(model: str) -> None:
    assert outcomes(append_blocks(), model, lambda files: str(len(files["f"]))) == {"4096", "12288"}


@pytest.mark.parametrize("model", JOURNALING)
def test_a_rename_to_a_new_name_may_show_an_empty_file(model: str) -> None:
    assert outcomes(rename_to(target_exists=False), model, content("f")) == {"absent", "empty", "new"}


def test_a_rename_over_an_existing_file_is_protected_but_on_xfs() -> None:
    assert outcomes(rename_to(target_exists=True), "ext4", content("f")) == {"old", "new"}
    assert outcomes(rename_to(target_exists=True), "btrfs", content("f")) == {"old", "new"}
    assert outcomes(rename_to(target_exists=True), "xfs", content("f")) == {"old", "empty", "new"}
    assert outcomes(rename_to(target_exists=True), "ext4-wb", content("f")) >= {"old", "empty", "zeros", "new"}


@pytest.mark.parametrize("model", JOURNALING)
def test_a_rewritten_file_may_be_empty(model: str) -> None:
    assert outcomes(rewrite(), model, content("f")) == {"old", "empty", "new"}


@pytest.mark.parametrize("model", JOURNALING)
def test_fsync_of_a_new_file_keeps_its_name_too(model: str) -> None:
    assert outcomes(fsync_new_file(), model, content("f"), returned=True) == {"new"}


@pytest.mark.parametrize("model", [*JOURNALING, "posix"])
def test_a_rename_without_a_directory_sync_may_be_lost_after_it_returned(model: str) -> None:
    assert outcomes(rename_after_fsync(), model, content("f"), returned=True) == {"old", "new"}


@pytest.mark.parametrize("model", JOURNALING)
def test_overwrites_of_two_files_are_independent(model: str) -> None:
    seen = outcomes(overwrite_two_files(), model, lambda files: f"{files['a'] == NEW} {files['b'] == NEW}")
    assert seen == {"False False", "True False", "False True", "True True"}


@pytest.mark.parametrize("model", JOURNALING)
def test_names_change_in_order(model: str) -> None:
    assert outcomes(rename_then_unlink(), model, lambda files: "".join(sorted(files))) == {"ab", "bc", "c"}


def test_a_sync_of_another_file_keeps_older_names_but_on_btrfs() -> None:
    assert outcomes(another_file_synced(), "ext4", content("a"), returned=True) == {"empty", "new"}
    assert outcomes(another_file_synced(), "xfs", content("a"), returned=True) == {"empty", "new"}
    assert outcomes(another_file_synced(), "btrfs", content("a"), returned=True) == {"absent", "empty", "new"}
    for model in JOURNALING:
        assert outcomes(another_file_synced(), model, content("b"), returned=True) == {"new"}


@pytest.mark.parametrize("model", JOURNALING)
def test_the_tail_of_an_unsynced_log_may_be_lost_after_the_next_was_synced(model: str) -> None:
    assert "old" in outcomes(log_switch(), model, content("a"), returned=True)


def test_a_rewritten_file_has_its_content_before_any_name_that_changes_after_its_close() -> None:
    r = Recorder({"f": OLD})
    fd = r.open("f", os.O_WRONLY | os.O_TRUNC)
    r.write(fd, NEW)
    r.close(fd)
    r.mkdir("later")
    r.open("later/g")
    trace = r.trace()

    def describe(files: dict[str, bytes]) -> str:
        return content("f")(files) + (" with g" if "later/g" in files else "")

    assert {seen for seen in outcomes(trace, "ext4", describe) if "with g" in seen} == {"new with g"}
    assert {seen for seen in outcomes(trace, "xfs", describe) if "with g" in seen} == {"empty with g", "new with g"}


def test_msync_of_a_range_forces_only_what_it_names() -> None:
    r = Recorder({"f": OLD * 82})
    fd = r.open("f", os.O_RDWR)
    r.add("mmap", ("f",), fd=fd, address=0x10000, length=8192, offset=0, flags=1, mode=3)
    for offset in (0, 4096):
        r.add("store", ("f",), address=0x10000 + offset, offset=offset, length=3, payload=b"new")
    r.add("msync", ("f",), address=0x10000, length=4096, flags=4)
    r.ack("0")
    seen = outcomes(r.trace(), "ext4", lambda files: f"{files['f'][:3] == b'new'} {files['f'][4096:4099] == b'new'}", returned=True)
    assert seen == {"True False", "True True"}


@pytest.mark.parametrize("model", JOURNALING)
def test_preallocated_space_may_show_zeros(model: str) -> None:
    assert outcomes(preallocate(), model, content("f")) >= {"absent", "zeros", "new"}


def test_without_any_order_a_rename_may_survive_alone() -> None:
    seen = outcomes(rename_to(target_exists=True), "apm", content("f"))
    assert seen >= {"old", "new", "empty", "zeros", "other"}


def test_prefix_sees_what_a_process_kill_leaves() -> None:
    assert outcomes(rename_to(target_exists=True), "prefix", content("f")) == {"old", "new"}
    assert outcomes(rename_after_fsync(), "prefix", content("f"), returned=True) == {"old", "new"}
