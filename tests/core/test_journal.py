"""The journal's promises while nothing crashes: numbering, group commit, rotation, dropping, refusing after a failure."""

import asyncio
import errno
import resource
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from headway.core.durable import Journal, read_records
from headway.core.errors import CapacityError, DurabilityLost, Locked
from tests.core.crash_disk import CrashDisk, FailingDisk


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.glob("*.wal")}


def test_records_come_back_in_order_after_reopening(tmp_path: Path) -> None:
    written = [bytes([n % 256]) * (n % 40 + 1) for n in range(200)]
    with Journal(tmp_path, segment_bytes=600) as journal:
        assert [journal.append(record) for record in written] == list(range(1, 201))
        journal.commit(200)
        assert journal.durable_seq == journal.last_seq == 200
        assert [record for _, record in journal.records()] == written
    assert len(contents(tmp_path)) > 5
    with Journal(tmp_path) as journal:
        assert list(journal.records()) == list(enumerate(written, 1))
        assert list(journal.records(after=150)) == list(enumerate(written, 1))[150:]
        assert journal.append_commit(b"next") == 201


def test_opening_never_changes_an_old_segment(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append_commit(b"one")
    before = contents(tmp_path)
    with Journal(tmp_path) as journal:
        assert contents(tmp_path) == before
        journal.append_commit(b"two")
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {f"{2:016x}.wal"}


def test_close_makes_everything_appended_durable(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(b"never committed by hand")
    assert list(read_records(tmp_path)) == [(1, b"never committed by hand")]


def test_the_order_of_system_calls(tmp_path: Path) -> None:
    disk = CrashDisk()
    with Journal(tmp_path, segment_bytes=100, disk=disk) as journal:
        first = journal.append(b"a" * 40)
        second = journal.append(b"b" * 40)  # does not fit any more: a new segment
        journal.commit(second)
    one, two = f"{first:016x}.wal", f"{second:016x}.wal"
    here = tmp_path.name
    assert disk.log == [
        ("create", one),
        ("write", one),
        ("sync", here),
        ("write", one),
        ("datasync", one),  # before the first byte of the next segment
        ("create", two),
        ("write", two),
        ("sync", here),
        ("write", two),
        ("datasync", two),
    ]


class GatedDisk(CrashDisk):
    """Holds every datasync until told."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def datasync(self, fd: int) -> None:
        self.entered.release()
        self.gate.acquire()
        super().datasync(fd)


def test_what_arrives_during_a_sync_shares_the_next_one(tmp_path: Path) -> None:
    disk = GatedDisk()
    journal = Journal(tmp_path, disk=disk)
    acked: list[int] = []
    threads = [threading.Thread(target=lambda: acked.append(journal.append_commit(b"x"))) for _ in range(33)]
    threads[0].start()
    disk.entered.acquire()  # the first one's sync is in flight
    for thread in threads[1:]:
        thread.start()
    while journal.last_seq < 33:
        threading.Event().wait(0.001)
    assert acked == []
    disk.gate.release()
    disk.entered.acquire()
    threads[0].join()
    assert acked == [1]
    disk.gate.release(2)
    for thread in threads:
        thread.join()
    journal.close()
    assert sorted(acked) == list(range(1, 34))
    assert [what for what, _ in disk.log].count("datasync") <= 3  # 33 acknowledgements; the third when a commit came late


def test_many_threads_and_coroutines_at_once(tmp_path: Path) -> None:
    seen: dict[int, bytes] = {}
    with Journal(tmp_path, segment_bytes=2000) as journal:

        def write(name: int) -> None:
            for n in range(25):
                record = f"{name}:{n}".encode()
                seen[journal.append_commit(record)] = record

        async def write_async() -> None:
            async def one(n: int) -> None:
                record = f"loop:{n}".encode()
                seq = await journal.append_commit_async(record)
                assert journal.durable_seq >= seq
                seen[seq] = record

            await asyncio.gather(*(one(n) for n in range(100)))

        threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        asyncio.run(write_async())
        for thread in threads:
            thread.join()
    assert dict(read_records(tmp_path)) == seen
    assert len(seen) == 300


async def test_a_cancelled_waiter_harms_nobody(tmp_path: Path) -> None:
    disk = GatedDisk()
    journal = Journal(tmp_path, disk=disk)
    gone, stays = (asyncio.ensure_future(journal.commit_async(journal.append(record))) for record in (b"1", b"2"))
    gone.cancel()
    disk.gate.release(4)
    await stays
    assert gone.cancelled()
    await journal.commit_async(1)  # settled already
    journal.close()


async def test_a_closed_loop_harms_nobody(tmp_path: Path) -> None:
    disk = GatedDisk()
    journal = Journal(tmp_path, disk=disk)

    def short_loop() -> None:
        async def leave() -> None:
            journal.commit_async(journal.append(b"left behind"))

        asyncio.run(leave())

    thread = threading.Thread(target=short_loop)
    thread.start()
    thread.join()
    disk.gate.release(4)
    await journal.append_commit_async(b"served")
    journal.close()


def test_committing_what_was_never_appended_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal, pytest.raises(CapacityError, match="never appended"):
        journal.commit(1)


@pytest.mark.parametrize("size", [0, 101])
def test_record_sizes_are_checked(tmp_path: Path, size: int) -> None:
    with Journal(tmp_path, max_record_bytes=100) as journal, pytest.raises(CapacityError, match="1 to 100"):
        journal.append(bytes(size))


def test_a_record_larger_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    with Journal(tmp_path, segment_bytes=100) as journal:
        for size in (10, 5000, 10):
            journal.append_commit(b"r" * size)
    assert [len(record) for _, record in read_records(tmp_path)] == [10, 5000, 10]
    assert len(contents(tmp_path)) == 3


def test_a_slow_disk_bounds_memory(tmp_path: Path) -> None:
    disk = GatedDisk()
    journal = Journal(tmp_path, disk=disk, max_pending_bytes=1000)
    thread = threading.Thread(target=lambda: journal.append_commit(b"x"))
    thread.start()
    disk.entered.acquire()
    with pytest.raises(CapacityError, match="does not keep up"):
        for _ in range(100):
            journal.append(b"y" * 100)
    disk.gate.release(4)
    thread.join()
    journal.close()


def test_one_writer_only(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(Locked, match="in use by process"):
        Journal(tmp_path)
    Journal(tmp_path).close()


# ---- dropping ------------------------------------------------------------------------------------------------------------
def test_drop_before_keeps_every_record_from_there_on(tmp_path: Path) -> None:
    disk = CrashDisk()
    with Journal(tmp_path, segment_bytes=200, disk=disk) as journal:
        for n in range(1, 31):
            journal.append_commit(b"%04d" % n)
        assert journal.first_seq == 1
        disk.log.clear()
        dropped = journal.drop_before(15)
        assert disk.log == [step for n in range(dropped) for step in (("unlink", disk.log[2 * n][1]), ("sync", tmp_path.name))]
        assert dropped > 0
        assert 1 < journal.first_seq <= 15
        kept = [seq for seq, _ in journal.records()]
        assert kept == list(range(journal.first_seq, 31))
        journal.drop_before(10**9)  # the newest segment stays: it carries the count
        assert journal.last_seq == 30
        assert len(contents(tmp_path)) == 1
    with Journal(tmp_path) as journal:
        assert journal.append_commit(b"x") == 31


def test_a_segment_without_a_durable_record_is_no_reason_to_drop(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append_commit(b"a")
        journal.rotate()
        journal.append(b"b")
        assert journal.drop_before(2) == 0
        journal.commit(2)
        assert journal.drop_before(2) == 1


def test_the_cap_drops_the_oldest_segments_and_snapshots_open_the_kept_ones(tmp_path: Path) -> None:
    state = {"count": 0}
    with Journal(tmp_path, segment_bytes=1000, cap_bytes=5000, opening=lambda: b"snapshot %d" % state["count"]) as journal:
        for n in range(1, 401):
            journal.append_commit(b"event %d" % n)
            state["count"] = n
        assert journal.size_bytes <= 6000
        kept = [record for _, record in journal.records()]
    assert sum(len(data) for data in contents(tmp_path).values()) <= 6000
    assert kept[0].startswith(b"snapshot ")
    count = int(kept[0].split()[1])
    for record in kept[1:]:  # from the snapshot on nothing is missing
        if record.startswith(b"event "):
            count += 1
            assert record == b"event %d" % count
        else:
            assert record == b"snapshot %d" % count
    assert count == 400


# ---- failures ------------------------------------------------------------------------------------------------------------
def test_a_failed_sync_is_final(tmp_path: Path) -> None:
    disk = FailingDisk()
    journal = Journal(tmp_path, disk=disk)
    journal.append_commit(b"safe")
    disk.sync_error = errno.EIO
    lost = journal.append(b"lost")
    with pytest.raises(DurabilityLost, match=r"sync failed.*after record 1"):
        journal.commit(lost)
    disk.sync_error = None  # a retry would succeed, and lie
    syncs = disk.datasyncs
    for attempt in (lambda: journal.commit(lost), lambda: journal.append(b"more"), lambda: journal.append_commit(b"more"), journal.rotate):
        with pytest.raises(DurabilityLost):
            attempt()
    assert disk.datasyncs == syncs
    assert journal.durable_seq == 1
    assert journal.failure is not None
    journal.commit(1)  # what was safe stays safe
    with pytest.raises(DurabilityLost):
        journal.close()
    with Journal(tmp_path) as again:
        assert again.append_commit(b"goes on") == again.last_seq
        assert next(again.records()) == (1, b"safe")


async def test_a_failed_sync_reaches_every_waiter(tmp_path: Path) -> None:
    disk = FailingDisk()
    journal = Journal(tmp_path, disk=disk)
    disk.sync_error = errno.EIO
    results = await asyncio.gather(*(journal.append_commit_async(b"x") for _ in range(10)), return_exceptions=True)
    assert all(isinstance(result, DurabilityLost) for result in results)
    with pytest.raises(DurabilityLost):
        await journal.commit_async(1)
    with pytest.raises(DurabilityLost):
        journal.close()


@pytest.mark.parametrize("room_bytes", [0, 1, 31, 32, 33, 60, 100, 140])
def test_a_full_disk(tmp_path: Path, room_bytes: int) -> None:
    disk = FailingDisk()
    disk.room_bytes = room_bytes
    journal = Journal(tmp_path, disk=disk)
    acked: list[int] = []
    with pytest.raises(DurabilityLost, match="No space left"):
        for _ in range(10):
            acked.append(journal.append_commit(b"x" * 24))
    assert len(acked) == max(0, room_bytes - 32) // 48
    with pytest.raises(DurabilityLost):
        journal.close()
    disk.room_bytes = None  # somebody made room
    with Journal(tmp_path, disk=disk) as again:
        assert [seq for seq, _ in again.records()] == acked
        assert again.append_commit(b"y") == len(acked) + 1
    assert [seq for seq, _ in read_records(tmp_path)] == [*acked, len(acked) + 1]


def test_a_real_limit_of_the_file_size(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import resource, sys
        from headway.core.durable import Journal
        from headway.core.errors import DurabilityLost
        journal = Journal({str(tmp_path)!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))
        try:
            while True:
                print(journal.append_commit(b"z" * 100), flush=True)
        except DurabilityLost as problem:
            print("lost", "File too large" in str(problem), flush=True)
        """
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    *acked, verdict = out.stdout.split("\n")[:-1]
    assert verdict == "lost True"
    assert len(acked) == (3000 - 32) // 128
    assert [str(seq) for seq, _ in read_records(tmp_path)] == acked
    with Journal(tmp_path) as journal:
        assert journal.append_commit(b"more") == len(acked) + 1
