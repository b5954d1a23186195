"""`replay` reproduces a run bit for bit, notices a changed decision, and refuses what other code wrote."""

import asyncio
import shutil

import pytest

from headway.core.durable import Journal, read_records
from headway.core.errors import ConfigError, EngineDied
from headway.core.slo import Slo
from headway.fleet import journal_records
from headway.fleet import replay as replays
from headway.fleet.journal_records import EventRecord, pack, pack_commands, unpack
from headway.fleet.replay import OtherVersion, replay
from headway.fleet.ticket import Refused
from headway.scheduling.messages import Hold
from tests.fleet.engine_double import KILL, STEP_S
from tests.fleet.support import fleet_of, request, tokens_of

PROMISES = [
    Slo(0.5, 0.03, None, "realtime"),
    Slo(1.0, 0.05),
    Slo(10.0, 0.5, None, "batch"),
    Slo(None, None, None, "background"),
    Slo(0.001, 0.0001),
]


async def run(directory, policy):
    """A run with everything in it: promises of all classes, cancels, refusals, an engine that dies and comes back."""

    async def one(fleet, i):
        ticket = fleet.submit(request([i] * (20 * i + 1), 5 + 3 * i, slo=PROMISES[i % 5]))
        try:
            await ticket.dispatched()
            async for _ in ticket:
                if i % 4 == 3:
                    ticket.cancel("client_gone")
        except Refused as refused:
            return refused.reason
        await ticket.finish("finished")
        return "done"

    async with fleet_of(directory, policy=policy) as fleet:
        ends = await asyncio.gather(*(one(fleet, i) for i in range(12)))
        with pytest.raises(EngineDied, match="signal 9"):
            await tokens_of(fleet.submit(request([KILL])))
        await tokens_of(fleet.submit(request([1], 3)))
        return ends


@pytest.mark.parametrize("policy", ["fcfs", "headway"])
async def test_a_run_replays_bit_for_bit(tmp_path, monkeypatch, policy):
    monkeypatch.setenv(STEP_S, "0.002")
    ends = await run(tmp_path, policy)
    assert "done" in ends
    result = replay(tmp_path)
    assert result.identical, result.first_difference
    assert (result.lives, result.snapshots, result.skipped_events, result.skipped_iterations) == (1, 1, 0, 0)
    assert result.events > 30 and result.commands >= 12 and result.iterations > 20
    assert replay(tmp_path / "journal") == result


@pytest.fixture
async def journal_dir(tmp_path):
    async with fleet_of(tmp_path / "run") as fleet:
        await tokens_of(fleet.submit(request([1], 5)))
    return tmp_path / "run" / "journal"


def rewrite(source, target, change):
    with Journal(target) as journal:
        for _, payload in read_records(source):
            record = change(unpack(payload))
            journal.append(pack(record))


async def test_a_changed_command_is_found(journal_dir, tmp_path):
    def change(record):
        if isinstance(record, EventRecord) and record.kind == 1:
            return EventRecord(record.now_ns, 1, record.event, pack_commands([Hold(1, 5)]), record.tape)
        return record

    rewrite(journal_dir, tmp_path / "other", change)
    assert "Arrive gave [Dispatch" in replay(tmp_path / "other").first_difference


async def test_a_changed_iteration_is_found(journal_dir, tmp_path, monkeypatch):
    real = replays.iteration.compose
    calls = []

    def one_longer(view, now_ns):
        composed = real(view, now_ns)
        calls.append(1)
        return composed if len(calls) < 3 else type(composed)(composed.decode, composed.work, composed.preempt, 1, 2)

    monkeypatch.setattr(replays.iteration, "compose", one_longer)
    assert "iteration 3 of engine-0" in replay(journal_dir).first_difference


async def test_another_code_version_is_refused_by_name(journal_dir, monkeypatch):
    monkeypatch.setattr(replays, "code_versions", lambda: {**journal_records.code_versions(), "decisions": "abc123"})
    with pytest.raises(OtherVersion, match=r"decisions \w+ \(here abc123\)"):
        replay(journal_dir)


async def test_nothing_to_replay_is_said(tmp_path, journal_dir):
    with pytest.raises(ConfigError, match="no journal"):
        replay(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no snapshot"):
        replay(tmp_path / "empty")


async def test_replay_reads_only_and_works_beside_the_server(tmp_path):
    async with fleet_of(tmp_path) as fleet:
        await tokens_of(fleet.submit(request([1], 5)))
        assert replay(tmp_path).identical
        shutil.copytree(tmp_path / "journal", tmp_path / "copy")
        assert replay(tmp_path / "copy").identical
