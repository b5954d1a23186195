"""The router's journal: what it holds and does not hold, after kill -9 of the front, on a full disk, across segments."""

import contextlib
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headway.core.durable import read_records
from headway.core.slo import Slo
from headway.fleet import journal as journals
from headway.fleet.journal import KeyedHash, RouterJournal
from headway.fleet.journal_records import EventRecord, Finish, Snapshot, ViewRecord, read_event, unpack
from headway.fleet.replay import replay
from headway.fleet.ticket import JournalUnavailable
from headway.scheduling import router
from headway.scheduling.messages import Arrive
from tests.fleet.engine_double import STEP_S
from tests.fleet.support import fleet_of, request, tokens_of

ROOT = Path(__file__).parents[2]


def records(directory: Path) -> list[object]:
    return [unpack(payload) for _, payload in read_records(directory / "journal")]


def raw_bytes(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((directory / "journal").glob("*.wal")))


def gone(pid: int) -> bool:
    """True when the process has ended (also while nobody has reaped it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("engine", ["streams", "hang"])  # a loop sees end of file; one stuck in a call needs PR_SET_PDEATHSIG
def test_kill_9_of_the_front_ends_the_engine_and_open_requests_become_failed_records(tmp_path, engine):
    environment = {**os.environ, STEP_S: "0.005", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.fleet.front_double", str(tmp_path), engine]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT) as front:
        assert front.stdout is not None
        engine_pid, *ids = map(int, front.stdout.readline().split())
        assert not gone(engine_pid)
        front.kill()
        front.wait()
        deadline = time.monotonic() + 20
        while not gone(engine_pid) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert gone(engine_pid)

    journal = RouterJournal(tmp_path, "fcfs", 1)
    assert journal.recovered == tuple(ids) and journal.next_id == max(ids) + 1
    journal.start(router.new_state("fcfs", 1).to_plain())
    journal.close()
    failed = [record for record in records(tmp_path) if isinstance(record, Finish)]
    assert [(record.id, record.reason, record.detail) for record in failed] == [(id, "failed", "server_died") for id in ids]
    assert replay(tmp_path).identical and replay(tmp_path).lives == 2

    again = RouterJournal(tmp_path, "fcfs", 1)  # FAILED once, not at every start
    assert again.recovered == ()
    again.close()


async def test_arrivals_and_finishes_are_on_disk_when_promised_and_no_text_ever(tmp_path):
    prompt = list(range(11, 75))
    async with fleet_of(tmp_path) as fleet:
        ticket = fleet.submit(request(prompt, 6, tenant="alice@example.org", user="bob@example.org", cache_salt="salt-of-alice"))
        await ticket.dispatched()
        arrivals = [read_event(record) for record in records(tmp_path) if isinstance(record, EventRecord)]
        assert [event.id for event in arrivals if isinstance(event, Arrive)] == [ticket.id]
        async for _ in ticket:
            pass
        await ticket.finish("finished", {"on_time": True})
        (finish,) = [record for record in records(tmp_path) if isinstance(record, Finish)]
        assert (finish.id, finish.reason, finish.score) == (ticket.id, "finished", {"on_time": True})
    raw = raw_bytes(tmp_path)
    for secret in (b"alice", b"bob", b"salt", bytes(prompt), bytes(range(75, 80))):
        assert secret not in raw
    tenants = {event.tenant for event in arrivals if isinstance(event, Arrive)}
    users = {record.user for record in records(tmp_path) if isinstance(record, EventRecord)} - {""}
    assert len(tenants) == len(users) == 1 and len(tenants.pop()) == 16


def test_hashes_depend_on_the_key():
    assert KeyedHash(b"1" * 32)("alice") == KeyedHash(b"1" * 32)("alice") != KeyedHash(b"2" * 32)("alice")
    assert KeyedHash(b"1" * 32)("") == ""


def test_clients_that_send_ever_new_names_do_not_fill_the_memory():
    hashed = KeyedHash(b"1" * 32)
    first = hashed("name 0")
    for i in range(10_000):
        hashed(f"name {i}")
    assert len(hashed._known) <= 4096 and hashed("name 0") == first


@contextlib.contextmanager
def no_file_may_grow_beyond(size_bytes: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_on_a_full_disk_running_streams_finish_and_new_ones_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(STEP_S, "0.002")
    async with fleet_of(tmp_path) as fleet:
        running = fleet.submit(request([1], 300))
        await running.dispatched()
        with no_file_may_grow_beyond(max(path.stat().st_size for path in (tmp_path / "journal").glob("*.wal"))):
            caught_out = fleet.submit(request([2], 300))
            with pytest.raises(JournalUnavailable):
                await caught_out.dispatched()
            assert [output async for output in caught_out] == []
            ok, reason = fleet.health()
            assert not ok and reason.startswith("journal_unavailable")
            assert all(words in reason for words in ("too large", "Make room, then restart the server", "--journal off"))
            with pytest.raises(JournalUnavailable, match="journal off"):
                await fleet.submit(request([3])).dispatched()
            got = [token async for output in running for token in output.token_ids]
            await running.finish("finished")
        assert len(got) == 300
        while fleet.stats()["open_requests"]:
            await journals.asyncio.sleep(0.01)
    # the disk is mended, the server restarts: the stream whose end could not be recorded is FAILED, not forgotten
    async with fleet_of(tmp_path) as fleet:
        assert fleet.health() == (True, "ok")
        assert await tokens_of(fleet.submit(request([1], 2))) == ([2, 3], "length")
    assert [record.detail for record in records(tmp_path) if isinstance(record, Finish) and record.id == running.id] == ["server_died"]


async def test_once_the_journal_is_lost_a_request_reaches_no_engine(tmp_path, monkeypatch):
    monkeypatch.setenv(STEP_S, "0.01")
    async with fleet_of(tmp_path) as fleet:
        with no_file_may_grow_beyond(max(path.stat().st_size for path in (tmp_path / "journal").glob("*.wal"))):
            with pytest.raises(JournalUnavailable):
                await fleet.submit(request([2], 300)).dispatched()
            late = fleet.submit(request([3], 300))
            assert late.state == "ended" and not late.engine_id and late.id not in fleet._tickets
            with pytest.raises(JournalUnavailable):
                await late.dispatched()


async def test_every_segment_opens_with_a_snapshot_and_gets_a_view(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "SEGMENT_BYTES", 16_384)
    async with fleet_of(tmp_path) as fleet:
        for i in range(12):
            await tokens_of(fleet.submit(request([i], 20)))
    files = sorted((tmp_path / "journal").glob("*.wal"))
    assert len(files) > 3
    for path in files:
        first = next(read_records(tmp_path / "journal", after=int(path.stem, 16) - 1))[1]
        assert isinstance(unpack(first), Snapshot)
    assert sum(isinstance(record, ViewRecord) for record in records(tmp_path)) > 3
    for path in files[:-1]:  # oldest segments dropped: the replay starts at any of the others
        assert replay(tmp_path).identical
        path.unlink()


async def test_old_segments_are_dropped_at_the_cap(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "SEGMENT_BYTES", 16_384)
    monkeypatch.setattr(journals, "CAP_BYTES", 80_000)
    async with fleet_of(tmp_path) as fleet:
        for i in range(30):
            await tokens_of(fleet.submit(request([i], 20)))
    assert sum(path.stat().st_size for path in (tmp_path / "journal").glob("*.wal")) <= 80_000 + 2 * 16_384
    result = replay(tmp_path)
    assert result.identical and result.lives == 0 and result.iterations > 20


async def test_without_a_journal_nothing_is_written(tmp_path):
    async with fleet_of(tmp_path, journal="off") as fleet:
        assert await tokens_of(fleet.submit(request([1], 2, slo=Slo(60.0)))) == ([2, 3], "length")
        assert fleet.stats()["journal"] == "off"
    assert list(tmp_path.iterdir()) == []
