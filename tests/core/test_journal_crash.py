"""What the journal makes of damage: every legal crash loses nothing acknowledged, everything else is refused by name."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.durable import Journal, read_records
from headway.core.errors import DurabilityLost, JournalCorrupt
from headway.core.segment import add_frame, header, read_segment, segment_name
from tests.core.crash_disk import CrashDisk

LIMIT = 1 << 20


def segment_bytes(records: list[tuple[int, bytes]], salt: int = 7, first_seq: int = 1) -> bytearray:
    """A segment of frames (durable_seq, payload)."""
    buffer = bytearray(header(first_seq, salt))
    for n, (durable_seq, payload) in enumerate(records):
        add_frame(buffer, salt, first_seq + n, durable_seq, payload)
    return buffer


def read(raw: bytes) -> list[int]:
    return [seq for seq, _, _ in read_segment(segment_name(1), bytes(raw), LIMIT).frames]


def test_the_bytes_on_disk_are_as_specified() -> None:
    raw = segment_bytes([(0, b"abc")], salt=0x0102030405060708, first_seq=5)
    assert raw.hex() == (
        "48574a31" "0100" "0000" "0500000000000000" "0807060504030201" + raw[24:28].hex() + "00000000"
        "03000000" + raw[36:40].hex() + "0500000000000000" "0000000000000000" "6162630000000000"
    )  # fmt: skip


ACKED = [(n, b"payload %d" % n * (n + 1)) for n in range(5)]  # each frame vouches for all before it


def test_a_tail_torn_at_every_byte_loses_only_torn_records() -> None:
    raw = segment_bytes(ACKED)
    ends = [32]
    for _, payload in ACKED:
        ends.append(ends[-1] + 24 + len(payload) + (-len(payload) & 7))
    for cut in range(len(raw) + 1):
        for fill in (b"", bytes(64), b"\xa5" * 64):
            # A record is whole once its payload is; the padding may be missing.
            whole = sum(ends[n] + 24 + len(ACKED[n][1]) <= cut for n in range(5)) if cut >= 32 else 0
            found = len(read(bytes(raw[:cut]) + fill))
            assert found in (whole, whole + 1) if fill else found == whole  # fill may happen to equal lost zeros


def test_every_flipped_bit_is_refused_or_only_costs_the_last_record() -> None:
    raw = segment_bytes(ACKED)
    last_start = len(raw) - 24 - (len(ACKED[-1][1]) + 7 & ~7)
    for bit in range(8 * len(raw)):
        rotten = bytearray(raw)
        rotten[bit >> 3] ^= 1 << (bit & 7)
        try:
            found = read(rotten)
        except JournalCorrupt:
            continue
        # Unused bytes (padding, the header's last word) may rot unseen; a rotten newest record looks like a torn one.
        assert found == [1, 2, 3, 4, 5] or (found == [1, 2, 3, 4] and bit >> 3 >= last_start)


def test_a_hole_that_a_later_record_vouches_for_is_rot() -> None:
    raw = segment_bytes([(0, b"a" * 16), (1, b"b" * 16), (2, b"c" * 16)])
    raw[32 + 40 : 32 + 80] = bytes(40)  # record 2 is gone, record 3 says it was safe
    with pytest.raises(JournalCorrupt, match="record 2 at byte 72"):
        read(raw)


def test_a_hole_that_nobody_vouches_for_is_a_torn_tail() -> None:
    raw = segment_bytes([(0, b"a" * 16), (1, b"b" * 16), (1, b"c" * 16)])  # 2 and 3 were one unsynced batch
    raw[32 + 40 : 32 + 80] = bytes(40)
    assert read(raw) == [1]


def test_stale_frames_of_a_reused_block_are_no_records() -> None:
    old = segment_bytes([(n, b"old %d!!!!" % n) for n in range(6)], salt=1)
    new = segment_bytes([(0, b"new 0!!!!!")], salt=2)
    raw = new + old[len(new) :]  # same sizes, so old record 2 stands exactly where new record 2 would
    assert read(raw) == [1]


def test_a_missing_segment_is_a_hole(tmp_path: Path) -> None:
    with Journal(tmp_path, segment_bytes=100) as journal:
        for n in range(6):
            journal.append_commit(b"%d" % n * 40)
    names = sorted(file.name for file in tmp_path.glob("*.wal"))
    (tmp_path / names[2]).unlink()
    with pytest.raises(JournalCorrupt, match=f"{names[1]}.*{names[3]}.*missing"):
        Journal(tmp_path)
    with pytest.raises(JournalCorrupt, match="missing"):
        list(read_records(tmp_path))


def test_a_shortened_segment_in_the_middle_is_a_hole(tmp_path: Path) -> None:
    with Journal(tmp_path, segment_bytes=200) as journal:
        for n in range(9):
            journal.append_commit(b"%d" % n * 40)
    first = min(tmp_path.glob("*.wal"))
    first.write_bytes(first.read_bytes()[:-20])
    with pytest.raises(JournalCorrupt, match="missing"):
        Journal(tmp_path)


def test_a_last_segment_without_a_good_frame_makes_way(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append_commit(b"one")
    for junk in (b"", b"\0" * 100, header(2, 9), header(2, 9)[:20], bytes(segment_bytes([(1, b"torn")], first_seq=2)[:-9])):
        (tmp_path / segment_name(2)).write_bytes(junk)
        with Journal(tmp_path) as journal:
            assert [record for _, record in journal.records()] == [b"one"]
            assert (tmp_path / segment_name(2)).read_bytes() == junk  # reading changes nothing
    with Journal(tmp_path) as journal:
        assert journal.append_commit(b"two") == 2
    assert list(read_records(tmp_path)) == [(1, b"one"), (2, b"two")]


def test_the_empty_segment_is_gone_for_good_before_its_name_is_used_again(tmp_path: Path) -> None:
    (tmp_path / segment_name(1)).write_bytes(header(1, 9))
    disk = CrashDisk()
    with Journal(tmp_path, disk=disk) as journal:
        journal.append_commit(b"one")
    assert disk.log[:3] == [("unlink", segment_name(1)), ("sync", tmp_path.name), ("create", segment_name(1))]


def test_an_empty_last_segment_still_tells_of_lost_ones(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append_commit(b"one")
    (tmp_path / segment_name(9)).write_bytes(header(9, 1))  # somebody once synced records up to 8
    with pytest.raises(JournalCorrupt, match="missing"):
        Journal(tmp_path)


def test_another_format_version_is_refused_by_number(tmp_path: Path) -> None:
    import zlib

    body = bytearray(header(1, 5)[:24])
    body[4] = 9
    (tmp_path / segment_name(1)).write_bytes(bytes(body) + zlib.crc32(body).to_bytes(4, "little") + bytes(4))
    with pytest.raises(JournalCorrupt, match="version 9"):
        Journal(tmp_path)


def test_recovery_syncs_what_it_read_before_it_shows_it(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append_commit(b"one")
    disk = CrashDisk()
    with Journal(tmp_path, disk=disk):
        assert disk.log == [("sync", segment_name(1)), ("sync", tmp_path.name)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 90)),
        st.tuples(st.just("commit"), st.just(0)),
        st.tuples(st.just("rotate"), st.just(0)),
        st.tuples(st.just("drop"), st.integers(0, 12)),
    ),
    max_size=25,
)
LIVES = st.lists(st.tuples(STEPS, st.integers(0, 40), st.sampled_from(["power", "kill"]), st.integers(0, 2**32)), min_size=1, max_size=4)


@settings(max_examples=120, deadline=None)
@given(lives=LIVES)
def test_no_history_of_crashes_loses_an_acknowledged_record(lives: list[tuple[list[tuple[str, int]], int, str, int]]) -> None:
    """Each life appends, commits, rotates and drops until its disk dies at some system call, by a power cut or a kill -9."""
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch) / "0"
        here.mkdir()
        disk = CrashDisk()
        history: list[bytes] = []  # record n+1
        acked = dropped_below = 0
        for number, (steps, calls, death, seed) in enumerate(lives, 1):
            disk.calls_left = None
            journal = Journal(here, segment_bytes=240, disk=disk)
            found = list(journal.records())
            seqs = [seq for seq, _ in found]
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs))) if seqs else acked == 0
            assert journal.last_seq >= acked, "an acknowledged record is gone"
            assert not seqs or seqs[0] <= max(dropped_below, 1), "a record was dropped that should be kept"
            assert all(history[seq - 1] == record for seq, record in found)
            del history[journal.last_seq :]
            acked = journal.last_seq  # handed out: from now on it must stay
            disk.calls_left = calls
            try:
                for step, size in steps:
                    if step == "append":
                        record = random.Random(len(history) * 1000 + size + number).randbytes(size)
                        history.append(record)
                        journal.append(record)
                    elif step == "commit":
                        journal.commit(journal.last_seq)
                        acked = journal.last_seq
                    elif step == "rotate":
                        journal.rotate()
                    else:
                        bound = max(acked - size, 0)
                        dropped_below = max(dropped_below, bound)
                        journal.drop_before(bound)
                journal.close()
                acked = len(history)
            except DurabilityLost:
                pass
            except BaseException as cut:  # the cut hit this thread, in drop_before
                assert type(cut).__name__ == "PowerCut", cut
            disk.calls_left = 0
            with contextlib.suppress(DurabilityLost):
                journal.close()
            if death == "power":
                disk_image = Path(scratch) / str(number)
                disk.image(here, disk_image, random.Random(seed))
                here, disk = disk_image, CrashDisk()
                for file in here.glob("*.wal"):  # what is on the medium after a power cut is durable
                    disk.synced[str(file)] = file.read_bytes()
                    disk.durable_names.add(str(file))
        disk.calls_left = None
        with Journal(here, disk=disk) as journal:
            assert journal.last_seq >= acked
            assert all(history[seq - 1] == record for seq, record in journal.records())


def test_kill_9_of_a_real_writer_again_and_again(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import sys, threading
        from headway.core.durable import Journal
        journal = Journal({str(tmp_path)!r}, segment_bytes=4000)
        print("up", journal.last_seq, flush=True)
        def write():
            while True:
                journal.append(b"filler")
                seq = journal.append_commit(b"acked")
                sys.stdout.write(f"{{seq}}\\n"); sys.stdout.flush()
        for _ in range(3):
            threading.Thread(target=write).start()
        """
    )
    acked = 0
    for round in range(5):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": ":".join(sys.path)})
        assert child.stdout is not None
        assert int(child.stdout.readline().split()[1]) >= acked
        lines = [child.stdout.readline() for _ in range(20 + 37 * round)]
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split("\n")
        child.wait()
        acked = max([acked, *(int(line) for line in [*lines, *rest[:-1]] if line.strip())])
        records = dict(read_records(tmp_path))
        assert sorted(records) == list(range(1, len(records) + 1))
        assert len(records) >= acked
    with Journal(tmp_path) as journal:
        assert journal.append_commit(b"the end") > acked
