"""Traces from text: strace's logs in the forms people have them, and the format of Pathfinder's own tracer."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.crashtest.operations import Frame, Operation, Trace, TraceError
from headway.crashtest.trace import pathfinder_text, strace
from headway.crashtest.trace.calls import Cut, Descriptor
from headway.crashtest.trace.strace_text import parse, unescape
from headway.crashtest.tree import Tree
from headway.crashtest.vfs import simulate

SHIPPED = Path(__file__).parent / "data" / "leveldb-bug-0-tracer.log"


# ---- strace -------------------------------------------------------------------------------------------------------------
def test_a_line_becomes_a_call_with_descriptors_bytes_and_numbers() -> None:
    line = r'7 openat(AT_FDCWD</w>, "\x61\x0a", O_RDWR|O_CREAT|O_CLOEXEC, 0644) = 3</w/\x61\n>'
    (call,) = parse([line])
    assert (call.tid, call.name, call.result, call.result_path) == (7, "openat", 3, "/w/a\n")
    assert call.arguments == [Descriptor(-100, "/w"), b"a\n", 0o2000102, 0o644]


@pytest.mark.parametrize(
    "line",
    [
        "fsync(3</r/a>) = 0",
        "7 fsync(3</r/a>) = 0",
        "[pid    7] fsync(3</r/a>)                = 0",
        "7 12:00:01.123456 fsync(3</r/a>) = 0 <0.000200>",
        "7 1700000000.123456 fsync(3</r/a>(deleted)) = 0",
        "12:00:01 fsync(3</r/a>) = 0",
    ],
)
def test_every_way_to_print_a_line_is_read(line: str) -> None:
    (call,) = parse([line], first_tid=7)
    assert (call.tid, call.name, call.arguments) == (7, "fsync", [Descriptor(3, "/r/a")])


def test_calls_that_were_interrupted_by_another_thread_keep_their_span() -> None:
    lines = [
        '1 write(3</r/a>, "x", 1 <unfinished ...>',
        '2 write(4</r/b>, "y", 1) = 1',
        "1 <... write resumed>) = 1",
    ]
    spans = {call.tid: (call.seq_enter, call.seq_exit) for call in parse(lines)}
    assert spans == {2: (2, 2), 1: (1, 3)}


def test_failed_unfinished_and_foreign_lines_are_dropped() -> None:
    lines = [
        '1 open("/r/a", O_RDONLY) = -1 ENOENT (No such file or directory)',
        "1 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED} ---",
        "1 brk(NULL) = 0x55d5",
        '2 write(3</r/a>, "x", 1 <unfinished ...>',
        "1 fsync(3</r/a>) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)",
        "1 <... fsync resumed>) = 0",
        "1 +++ exited with 0 +++",
        "",
    ]
    assert list(parse(lines)) == []


def test_vectors_structures_offsets_and_cut_strings() -> None:
    lines = [
        r'1 writev(3</r/a>, [{iov_base="ab", iov_len=2}, {iov_base="\"c\\", iov_len=3}], 2) = 5',
        "1 clone3({flags=CLONE_VM|CLONE_FILES|CLONE_THREAD, child_tid=0x7f, exit_signal=0} => {parent_tid=[9]}, 88) = 9",
        "1 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD, child_tidptr=0x7f12) = 10",
        "1 copy_file_range(3</r/a>, [4] => [6], 5</r/b>, NULL, 2, 0) = 2",
        '1 write(3</r/a>, "abc"..., 5000) = 5000',
        "1 read(0x3, 0x7ffc, 0x10) = 0x10",
    ]
    vector, thread, child, copy, cut, read = parse(lines)
    assert vector.arguments[1] == [{"iov_base": b"ab", "iov_len": 2}, {"iov_base": b'"c\\', "iov_len": 3}]
    assert thread.arguments[0] == {"flags": 0x10500, "child_tid": 0x7F, "exit_signal": 0}
    assert child.result == 10
    assert copy.arguments[1] == [4]
    assert cut.arguments[1] == Cut(b"abc")
    assert read.result == 16


@given(st.binary(max_size=40))
def test_both_forms_of_escapes_give_the_bytes_back(data: bytes) -> None:
    assert unescape("".join(f"\\x{byte:02x}" for byte in data)) == data
    assert unescape("".join(f"\\{byte:03o}" for byte in data)) == data


def test_nonsense_is_refused_by_line() -> None:
    with pytest.raises(TraceError, match="line 2"):
        list(parse(["1 fsync(3</r/a>) = 0", "what is this"]))
    with pytest.raises(TraceError, match="line 1"):
        list(parse(['1 write(3</r/a>, "no end']))


def test_somebody_elses_log_is_a_trace_that_cannot_pass_for_complete(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        '1 openat(AT_FDCWD</r>, "a", O_WRONLY|O_CREAT, 0644) = 3</r/a>\n'
        '1 write(3</r/a>, "hello", 5) = 5\n'
        '1 write(1</dev/pts/0>, "ack 1\\n", 6) = 6\n'
        '1 write(3</r/a>, "cut"..., 90) = 90\n'
    )
    trace = strace.import_log(log, "/r")
    assert [op.kind for op in trace.operations] == ["open", "write", "ack", "write"]
    assert trace.final is None
    assert len(trace.unseen) == 1
    assert simulate(trace).image.tree().files() == {"a": b"hello" + bytes(90)}


# ---- Pathfinder ---------------------------------------------------------------------------------------------------------
def test_the_shipped_trace_is_read_in_full_and_written_back_byte_for_byte() -> None:
    trace = pathfinder_text.read(SHIPPED)
    assert trace.root.endswith("/squint_test_dir/628b-bda1-d221-d700")
    counted = {kind: sum(op.kind == kind for op in trace.operations) for kind in {op.kind for op in trace.operations}}
    assert counted == {"open": 12, "write": 12, "close": 12, "fdatasync": 7, "rename": 2, "unlink": 1}
    assert pathfinder_text.render(trace) == (SHIPPED.read_text(), [])


def test_the_shipped_trace_has_22_changes_and_7_syncs() -> None:
    done = simulate(pathfinder_text.read(SHIPPED), split_size=False)
    assert not done.contradictions
    assert [micro.kind == "sync" for micro in done.micros].count(True) == 7
    assert [micro.kind == "sync" for micro in done.micros].count(False) == 22
    sizes = {path: len(data) for path, data in done.image.tree().files().items()}
    assert sizes == {"000003.log": 144, "CURRENT": 16, "LOCK": 0, "LOG": 60, "MANIFEST-000002": 50}


def test_frames_keep_names_with_commas_and_missing_debug_information() -> None:
    trace = pathfinder_text.parse("0,1,UNLINK,/r/a;std::f<int, long>,/s/f.cc,12,0xff;main,,,0x1;\n", root="/r")
    assert trace.operations[0].stack == (Frame("std::f<int, long>", "/s/f.cc", 12, 255), Frame("main", "", -1, 1))


def test_stores_find_their_place_in_the_file_and_markers_are_begin_and_ack() -> None:
    payload = base64.b64encode(b"abcd").decode()
    text = (
        "0,0,PATHFINDER_OP_BEGIN,2,7\n"
        "1,0,REGISTER_FILE,/r/m,0x1000,8192,4096,3,1;\n"
        f"2,0,STORE,0,/r/m,0x1010,4,{payload};\n"
        "3,0,MSYNC,/r/m,0x1000,8192,4;\n"
        "4,0,PATHFINDER_OP_END,2,7\n"
        "5,0,LSEEK,3,/r/m,10,0;\n"
        "6,0,LSEEK,3,/r/m,-4,1;\n"
        "7,0,MKDIRAT,-100,/r/d,493;\n"
    )
    trace = pathfinder_text.parse(text)
    begin, _, store, _, ack, _, seek, made = trace.operations
    assert (begin.kind, begin.marker, ack.kind, ack.marker) == ("begin", "2,7", "ack", "2,7")
    assert (store.offset, store.payload) == (4112, b"abcd")
    assert seek.result == 6
    assert (made.kind, made.paths) == ("mkdir", ("/r/d",))


@pytest.mark.parametrize(
    "line",
    [
        "0,0,NOSUCH,/r/a;",
        "0,0,UNLINK,/r/a,b;",
        "0,0,WRITE,3,/r/a,1,!!!;",
        "0,0,UNLINK,/r/a;main,,,0x1",
        "zero,0,SYNC;",
        "0,0,STORE,0,/r/m,0x10,1,AA==;",
        "",
    ],
)
def test_malformed_lines_are_refused_by_number(line: str) -> None:
    with pytest.raises(TraceError):
        pathfinder_text.parse(line + "\n", root="/r")


def test_what_the_format_cannot_hold_is_refused_or_listed() -> None:
    def trace(*operations: Operation) -> Trace:
        return Trace("/r", list(operations), Tree(), None, "test")

    link = Operation(0, 0, 1, 1, 1, "link", ("/r/a", "/r/b"))
    text, left_out = pathfinder_text.render(trace(link))
    assert text == ""
    assert left_out == ["1 x link: no such event in Pathfinder's format"]
    with pytest.raises(TraceError, match="rename the file"):
        pathfinder_text.render(trace(Operation(0, 0, 1, 1, 1, "unlink", ("/r/a;b",))))
