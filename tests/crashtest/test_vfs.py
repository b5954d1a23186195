"""The simulation of open files and names, without a tracer: what a list of system calls means for inodes."""

from typing import Any

import pytest

from headway.core.errors import CapacityError
from headway.crashtest import linux_abi as abi
from headway.crashtest.fidelity import fidelity
from headway.crashtest.micro import Micro
from headway.crashtest.operations import Operation, Trace
from headway.crashtest.tree import OUTSIDE, ROOT, Tree
from headway.crashtest.vfs import Simulated, lower, simulate

CREATE = abi.O_RDWR | abi.O_CREAT


def op(kind: str, *paths: str, pid: int = 1, **fields: Any) -> Operation:
    absolute = tuple(path if path.startswith("/") else f"/r/{path}" for path in paths)
    if "payload" in fields:
        fields.setdefault("result", len(fields["payload"]))
        fields.setdefault("length", len(fields["payload"]))
    return Operation(-1, 0, 0, pid, fields.pop("tid", pid), kind, absolute, **fields)


def run(*operations: Operation, initial: Tree | None = None, split_size: bool = True) -> Simulated:
    listed = [
        Operation(index, 2 * index, 2 * index + 1, *(getattr(one, name) for name in Operation.__slots__[3:]))
        for index, one in enumerate(operations)
    ]
    return simulate(Trace("/r", listed, initial or Tree(), None, "test"), split_size=split_size)


def files(done: Simulated) -> dict[str, bytes]:
    assert not done.contradictions
    return done.image.tree().files()


def kinds(micros: list[Micro]) -> list[str]:
    return [micro.kind if micro.kind != "sync" else f"sync {micro.scope}" for micro in micros]


def opened(path: str, fd: int, flags: int = CREATE, **fields: Any) -> Operation:
    return op("open", path, fd2=fd, flags=flags, result=fd, **fields)


def test_reads_move_the_position_that_the_next_write_uses() -> None:
    done = run(opened("a", 3), op("read", fd=3, result=2), op("write", "a", fd=3, payload=b"X"), initial=Tree.of({"a": b"0123"}))
    assert files(done) == {"a": b"01X3"}


def test_positioned_reads_and_writes_leave_the_position_alone() -> None:
    done = run(
        opened("a", 3),
        op("pwrite", "a", fd=3, offset=2, payload=b"YY"),
        op("read", fd=3, offset=0, result=3),
        op("write", "a", fd=3, payload=b"X"),
    )
    assert files(done) == {"a": b"X\0YY"}


def test_a_dup_shares_the_position_and_another_open_does_not() -> None:
    done = run(
        opened("a", 3),
        op("dup", "a", fd=3, fd2=4, result=4),
        opened("a", 5),
        op("write", "a", fd=3, payload=b"11"),
        op("write", "a", fd=4, payload=b"22"),
        op("write", "a", fd=5, payload=b"5"),
    )
    assert files(done) == {"a": b"5122"}


def test_a_child_shares_positions_but_not_the_table_and_a_thread_shares_both() -> None:
    done = run(
        opened("a", 3),
        op("fork", result=2),
        op("write", "a", fd=3, payload=b"c", pid=2),
        op("close", "a", fd=3, pid=2),
        op("write", "a", fd=3, payload=b"p"),
        op("fork", result=9, flags=abi.CLONE_FILES | abi.CLONE_VM),
        opened("b", 4, pid=9),
        op("write", "b", fd=4, payload=b"t"),
    )
    assert files(done) == {"a": b"cp", "b": b"t"}


def test_exec_closes_what_is_marked_so_that_a_reused_number_cannot_move_it() -> None:
    done = run(
        opened("a", 3, CREATE | abi.O_CLOEXEC),
        op("fork", result=2),
        op("exec", pid=2),
        op("read", fd=3, result=100, pid=2),  # descriptor 3 is now a library of the new program
        op("write", "a", fd=3, payload=b"p"),
    )
    assert files(done) == {"a": b"p"}


def test_append_goes_to_the_end_whoever_wrote_last() -> None:
    done = run(
        opened("a", 3, CREATE | abi.O_APPEND),
        opened("a", 4),
        op("write", "a", fd=4, payload=b"1234"),
        op("write", "a", fd=3, payload=b"5"),
        op("pwrite", "a", fd=3, offset=0, payload=b"6"),  # Linux appends here too (pwrite(2), BUGS)
    )
    assert files(done) == {"a": b"123456"}


def test_an_unlinked_file_and_one_renamed_over_live_on_as_orphans() -> None:
    done = run(
        opened("a", 3),
        op("unlink", "a"),
        op("write", "a", fd=3, payload=b"gone"),
        opened("a", 4),
        op("write", "a", fd=4, payload=b"new"),
        opened("b", 5),
        op("rename", "b", "a"),
        op("write", "a", fd=4, payload=b"lost"),
    )
    assert files(done) == {"a": b""}
    rename = next(micro for micro in done.micros if micro.kind == "rename")
    assert rename.replaced == next(micro.inode for micro in done.micros if micro.kind == "data" and micro.data == b"new")


def test_o_trunc_is_a_truncation_only_where_there_is_something() -> None:
    done = run(opened("a", 3, CREATE | abi.O_TRUNC), opened("b", 4, CREATE | abi.O_TRUNC), initial=Tree.of({"a": b"old"}))
    assert kinds(done.micros) == ["trunc", "link"]


def test_a_write_is_split_where_blocks_held_data_before() -> None:
    done = run(opened("a", 3), op("pwrite", "a", fd=3, offset=90, payload=b"x" * 8192), initial=Tree.of({"a": b"y" * 100}))
    data = [(micro.offset, len(micro.data), micro.allocated) for micro in done.micros if micro.kind == "data"]
    assert data == [(90, 4006, True), (4096, 4186, False)]
    assert kinds(done.micros) == ["data", "data", "size"]
    assert done.micros[-1].size == 8282


def test_whole_writes_carry_their_size() -> None:
    done = run(opened("a", 3), op("write", "a", fd=3, payload=b"12"), op("pwrite", "a", fd=3, offset=0, payload=b"3"), split_size=False)
    assert [(micro.kind, micro.size) for micro in done.micros] == [("link", -1), ("data", 2), ("data", -1)]
    assert files(done) == {"a": b"32"}


@pytest.mark.parametrize(
    ("flags", "rwf", "scope"),
    [(abi.O_DSYNC, 0, "sync data"), (abi.O_SYNC, 0, "sync file"), (0, abi.RWF_DSYNC, "sync data"), (0, abi.RWF_SYNC, "sync file")],
)
def test_synchronous_writes_are_followed_by_a_sync(flags: int, rwf: int, scope: str) -> None:
    done = run(opened("a", 3, CREATE | flags), op("pwrite", "a", fd=3, offset=0, payload=b"1", flags=rwf))
    assert kinds(done.micros) == ["link", "data", "size", scope]


def test_syncs_know_what_they_are_about() -> None:
    done = run(
        op("mkdir", "d"),
        opened("d", 3, abi.O_DIRECTORY),
        opened("d/a", 4),
        op("fsync", "d", fd=3),
        op("fdatasync", "d/a", fd=4),
        op("fsync", "d/a", fd=4),
        op("sync_file_range", "d/a", fd=4, offset=5, length=7, flags=2),
        op("sync_file_range", "d/a", fd=4, offset=5, length=7, flags=0),
        op("sync"),
    )
    assert kinds(done.micros) == ["mkdir", "link", "sync dir", "sync data", "sync file", "sync range", "sync all"]
    directory, file = done.micros[0].inode, done.micros[1].inode
    assert [micro.inode for micro in done.micros[2:]] == [directory, file, file, file, 0]


def test_msync_is_about_the_mapped_part_of_the_file() -> None:
    page = 4096
    done = run(
        opened("a", 3),
        op("mmap", "a", fd=3, flags=abi.MAP_SHARED, length=3 * page, offset=page, address=100 * page),
        op("munmap", length=page, address=101 * page),
        op("fork", result=2),
        op("msync", length=3 * page, address=100 * page, flags=abi.MS_SYNC, pid=2),
        op("msync", length=page, address=100 * page, flags=1),
        op("mremap", offset=page, length=2 * page, address=102 * page, result=500 * page),
        op("msync", length=9 * page, address=500 * page, flags=abi.MS_SYNC),
        initial=Tree.of({"a": bytes(4 * page)}),
    )
    ranges = [(micro.offset // page, micro.size // page) for micro in done.micros if micro.kind == "sync"]
    assert ranges == [(1, 1), (3, 1), (3, 2)]


def test_links_dots_and_symbolic_links_lead_where_the_kernel_goes() -> None:
    done = run(
        op("mkdir", "d"),
        Operation(-1, 0, 0, 1, 1, "symlink", ("./d", "/r/s")),
        op("symlink", "/r/d/f", "abs"),
        opened("s/../d/./f", 3),
        op("write", "d/f", fd=3, payload=b"1"),
        opened("abs", 4, abi.O_RDWR | abi.O_APPEND),
        op("write", "d/f", fd=4, payload=b"2"),
        op("link", "s/f", "hard"),
        op("rename", "d", "e"),
        op("truncate", "hard", length=1),
    )
    assert files(done) == {"hard": b"1", "e/f": b"1"}


def test_a_file_made_outside_and_renamed_in_keeps_its_content_and_its_inode() -> None:
    done = run(opened("/outside/x", 3), op("write", "/outside/x", fd=3, payload=b"made"), op("rename", "/outside/x", "a"))
    assert files(done) == {"a": b"made"}
    link, *_, rename = done.micros
    assert (link.parent, link.name, rename.parent, rename.name, rename.parent2) == (OUTSIDE, "/outside/x", OUTSIDE, "/outside/x", ROOT)


def test_a_directory_made_outside_and_renamed_in_brings_its_files() -> None:
    done = run(
        op("mkdir", "/outside/d"),
        opened("/outside/d/f", 3),
        op("write", "/outside/d/f", fd=3, payload=b"1"),
        op("rename", "/outside/d", "d"),
    )
    assert files(done) == {"d/f": b"1"}


def test_exchange_swaps_files_and_directories() -> None:
    done = run(op("rename", "a", "d", flags=abi.RENAME_EXCHANGE), initial=Tree.of({"a": b"file", "d/f": b"inner"}))
    assert files(done) == {"d": b"file", "a/f": b"inner"}


@pytest.mark.parametrize(
    ("mode", "offset", "length", "content"),
    [
        (0, 8, 4, b"0123456789\0\0"),
        (abi.FALLOC_KEEP_SIZE, 8, 4, b"0123456789"),
        (abi.FALLOC_PUNCH_HOLE | abi.FALLOC_KEEP_SIZE, 8, 40, b"01234567\0\0"),
        (abi.FALLOC_ZERO_RANGE, 8, 4, b"01234567\0\0\0\0"),
        (abi.FALLOC_COLLAPSE_RANGE, 2, 3, b"0156789"),
        (abi.FALLOC_INSERT_RANGE, 2, 3, b"01\0\0\x0023456789"),
    ],
)
def test_fallocate_in_all_its_modes(mode: int, offset: int, length: int, content: bytes) -> None:
    done = run(opened("a", 3), op("fallocate", "a", fd=3, mode=mode, offset=offset, length=length), initial=Tree.of({"a": b"0123456789"}))
    assert files(done) == {"a": content}


def test_copies_move_both_positions_that_were_not_given() -> None:
    done = run(
        opened("a", 3),
        opened("b", 4),
        op("copy_range", "a", "b", fd=4, fd2=3, result=3, address=-1),
        op("copy_range", "a", "b", fd=4, fd2=3, result=2, address=0),
        op("copy_range", "a", "b", fd=4, fd2=3, result=1, address=-1, offset=9),
        initial=Tree.of({"a": b"0123456789"}),
    )
    assert files(done)["b"] == b"01201\0\0\0\x003"


def test_unknown_descriptors_and_missing_files_are_contradictions_not_guesses() -> None:
    done = run(op("write", fd=77, payload=b"x"), opened("missing", 3, abi.O_RDWR), op("rename", "no", "where"))
    assert len(done.contradictions) == 3
    assert not done.micros


def test_contradictions_alone_do_not_make_a_trace_infidel_but_a_difference_does() -> None:
    operations = [Operation(0, 0, 1, 1, 1, "open", ("/r/a",), None, 3, CREATE, result=3)]
    assert fidelity(Trace("/r", operations, Tree(), Tree.of({"a": b""}), "test")) == []
    assert fidelity(Trace("/r", operations, Tree(), Tree.of({"a": b"1"}), "test")) != []
    assert fidelity(Trace("/r", operations, Tree(), Tree.of({"a": b"1"}), "test"), ignore=["a"]) == []
    assert fidelity(Trace("/r", operations, Tree(), Tree.of({"a": b""}), "test", unseen=("io_uring",))) == ["io_uring"]
    assert fidelity(Trace("/r", operations, Tree(), None, "test")) != []


def test_a_file_too_large_to_simulate_is_refused_with_its_size() -> None:
    with pytest.raises(CapacityError, match="smaller workload"):
        run(opened("a", 3), op("pwrite", "a", fd=3, offset=1 << 50, payload=b"x"))


def test_markers_keep_their_place() -> None:
    done = run(op("begin", marker="1"), opened("a", 3), op("ack", marker="1"))
    assert [(micro.kind, micro.name) for micro in done.micros] == [("marker", "begin 1"), ("link", "a"), ("marker", "ack 1")]
    assert lower(Trace("/r", [], Tree(), None, "test")) == []
