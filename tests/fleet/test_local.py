"""LocalFleet over a real engine process (the engine double's): what callers see when all is well and when the engine is not."""

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from headway.core.config import ServeConfig
from headway.core.durable import read_records
from headway.core.errors import EngineDied, Locked, ModelError
from headway.fleet import link as links
from headway.fleet.journal_records import Finish, unpack
from headway.fleet.local import LocalFleet
from headway.fleet.replay import replay
from headway.fleet.ticket import EngineBusy, Refused
from headway.scheduling.kernels import GUESSED_LAW
from tests.fleet.engine_double import FACTORY, HANG, KILL, STEP_S
from tests.fleet.support import fleet_of, request, tokens_of


@pytest.fixture(autouse=True)
def quick_restarts(monkeypatch):
    monkeypatch.setattr(links, "RESTART_AFTER_S", (0.01, 0.02, 0.04))


def finishes(directory: Path) -> dict[int, Finish]:
    records = [unpack(payload) for _, payload in read_records(directory / "journal")]
    return {record.id: record for record in records if isinstance(record, Finish)}


async def healthy(fleet: LocalFleet) -> None:
    while not fleet.health()[0]:
        await asyncio.sleep(0.01)


def assert_nothing_stuck(fleet: LocalFleet) -> None:
    stats = fleet.stats()
    assert (stats["open_requests"], stats["queued_requests"], stats["running_requests"], stats["kv_pages_used"]) == (0, 0, 0, 0)
    assert fleet._mirrors.waiting == 0 and not fleet._state.requests


async def test_tokens_come_in_order_and_the_counters_return_to_zero(tmp_path):
    async with fleet_of(tmp_path) as fleet:
        assert await tokens_of(fleet.submit(request([1, 2, 3], 4))) == ([4, 5, 6, 7], "length")
        assert await tokens_of(fleet.submit(request([93], 4))) == ([4, 5, 6, 7], "length")
        assert fleet.models()[0]["model"] == "double" and fleet.health() == (True, "ok")
        assert_nothing_stuck(fleet)
    assert {record.reason for record in finishes(tmp_path).values()} == {"finished"}


async def test_the_router_learns_how_fast_the_engine_really_is(tmp_path):
    """A law far from the truth (here the guess an engine starts from) must not decide for ever what is refused."""
    async with fleet_of(tmp_path, policy="headway") as fleet:
        await tokens_of(fleet.submit(request([1, 2, 3], 300)))
        await tokens_of(fleet.submit(request([1, 2, 3], 1)))
        law = fleet._state.laws["double/generate"]
        assert law.predict_s(1, 300, (), 1) < 0.7 * GUESSED_LAW.predict_s(1, 300, (), 1)
    assert replay(tmp_path).identical


async def test_cpu_inside_the_step_program_is_exact_when_the_engine_is_idle(tmp_path):
    async with fleet_of(tmp_path) as fleet:
        assert fleet.stats()["execute_cpu_s"] == 0
        for _ in range(2):
            await tokens_of(fleet.submit(request([1, 2, 3], 40)))
            await asyncio.sleep(0.1)
            assert fleet.stats()["execute_cpu_s"] == pytest.approx(fleet.stats()["iterations"] / 1e3) != 0


async def test_an_engine_killed_with_unread_frames_is_said_to_be_killed(tmp_path):
    """The kernel answers a death with unread bytes by a reset, not by an end of file."""
    async with fleet_of(tmp_path) as fleet:
        hung = fleet.submit(request([HANG]))
        await hung.dispatched()
        await asyncio.sleep(0.2)
        unread = fleet.submit(request([1, 2, 3]))
        await unread.dispatched()
        await asyncio.sleep(0.1)
        os.kill(fleet.stats()["engine_pids"][0], signal.SIGKILL)
        for ticket in (hung, unread):
            with pytest.raises(EngineDied, match="signal 9"):
                await anext(ticket)
            await ticket.finish("failed")


async def test_a_second_prompt_with_the_same_beginning_arrives_as_cached(tmp_path):
    async with fleet_of(tmp_path) as fleet:
        prompt = list(range(60))
        await tokens_of(fleet.submit(request(prompt)))
        ticket = fleet.submit(request([*prompt, 3, 4]))
        assert fleet._state.requests[ticket.id].cached_tokens == {"engine-0": 48}
        await ticket.dispatched()
        assert (await anext(ticket)).cached_tokens == 48


async def test_kill_9_mid_stream_tells_every_client_records_it_and_serves_again(tmp_path, monkeypatch):
    monkeypatch.setenv(STEP_S, "0.01")
    async with fleet_of(tmp_path) as fleet:
        tickets = [fleet.submit(request([i, i + 1], 500)) for i in range(8)]
        for ticket in tickets:
            await ticket.dispatched()
            assert (await anext(ticket)).token_ids
        (pid,) = fleet.stats()["engine_pids"]
        os.kill(pid, signal.SIGKILL)
        for ticket in tickets:
            with pytest.raises(EngineDied):
                async for _ in ticket:
                    pass
            await ticket.finish("failed")
        assert_nothing_stuck(fleet)
        held = fleet.submit(request([5, 6], 3))  # arrives while no engine is there: waits for the next boot
        assert await asyncio.wait_for(tokens_of(held), 30) == ([7, 8, 9], "length")
        assert fleet.stats()["engine_pids"] != [pid] and fleet.stats()["engine_restarts"] == 1
    records = finishes(tmp_path)
    assert [records[ticket.id].reason for ticket in tickets] == ["failed"] * 8
    assert {records[ticket.id].detail for ticket in tickets} == {"engine_died"} and records[held.id].reason == "finished"


async def test_three_deaths_make_it_unhealthy_with_a_reason(tmp_path):
    async with fleet_of(tmp_path) as fleet:
        for _ in range(3):
            await healthy(fleet)
            with pytest.raises(EngineDied):
                await tokens_of(fleet.submit(request([KILL])))
        ok, reason = fleet.health()
        assert not ok and "3 deaths in 60 s" in reason and "signal 9" in reason
        with pytest.raises(EngineDied, match="3 deaths"):
            await fleet.submit(request()).dispatched()
        assert_nothing_stuck(fleet)


async def test_an_engine_that_stops_answering_is_killed_and_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "WATCHDOG_S", 0.2)
    async with fleet_of(tmp_path) as fleet:
        with pytest.raises(EngineDied, match="no report for"):
            await tokens_of(fleet.submit(request([HANG])))
        await healthy(fleet)
        assert (await tokens_of(fleet.submit(request([1], 2))))[0] == [2, 3]


async def test_frames_of_an_old_boot_are_dropped(tmp_path):
    async with fleet_of(tmp_path) as fleet:
        link = fleet._links["engine-0"]
        seen = []
        monkey, link._on_message = link._on_message, seen.append
        link._receive(link.boot - 1, object())
        link._on_message = monkey
        assert seen == []


async def test_64_tickets_with_random_cancels_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv(STEP_S, "0.002")
    dice = random.Random(64)

    async def one(fleet: LocalFleet, i: int) -> str:
        ticket = fleet.submit(request([i % 80] * dice.randint(1, 200), dice.randint(1, 60)))
        leave_after = dice.choice([None, 0, 1, 5, 30])
        if dice.random() < 0.1:
            ticket.cancel("client_gone")
        await ticket.dispatched()
        got = 0
        async for output in ticket:
            got += len(output.token_ids)
            if leave_after is not None and got >= leave_after:
                ticket.cancel("client_gone")
        await ticket.finish("cancelled_by_client" if ticket.cancelled else "finished")
        return ticket.cancelled

    async with fleet_of(tmp_path) as fleet:
        ended = await asyncio.gather(*(one(fleet, i) for i in range(64)))
        assert "" in ended and "client_gone" in ended
        assert (await tokens_of(fleet.submit(request([1], 2))))[0] == [2, 3]
        for _ in range(100):  # the aborts' own reports may still be on their way
            if not fleet._tickets and not fleet.stats()["kv_pages_used"]:
                break
            await asyncio.sleep(0.01)
        assert_nothing_stuck(fleet)
    assert len(finishes(tmp_path)) == 65


async def test_a_promise_nobody_could_keep_is_refused_with_a_quote(tmp_path):
    async with fleet_of(tmp_path, policy="headway") as fleet:
        ticket = fleet.submit(request([1] * 900, slo=type(request().slo)(1e-6, 1e-6, None, "realtime")))
        with pytest.raises(Refused) as refused:
            await ticket.dispatched()
        assert refused.value.reason and refused.value.retry_after_s >= 0
        assert_nothing_stuck(fleet)


async def test_too_much_unread_by_the_engine_is_engine_busy(tmp_path, monkeypatch):
    async with fleet_of(tmp_path) as fleet:
        monkeypatch.setattr(links.EngineLink, "busy", property(lambda self: True))
        with pytest.raises(EngineBusy):
            await fleet.submit(request()).dispatched()
        assert_nothing_stuck(fleet)


async def test_drain_refuses_new_and_finishes_old(tmp_path, monkeypatch):
    monkeypatch.setenv(STEP_S, "0.005")
    async with fleet_of(tmp_path) as fleet:
        running = asyncio.create_task(tokens_of(fleet.submit(request([1], 20))))
        await asyncio.sleep(0.02)
        draining = asyncio.create_task(fleet.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(Refused):
            await fleet.submit(request()).dispatched()
        assert await draining == 0 and len((await running)[0]) == 20


async def test_stop_reports_every_open_request_and_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.setenv(STEP_S, "0.01")
    async with fleet_of(tmp_path) as fleet:
        ticket = fleet.submit(request([1], 900))
        await ticket.dispatched()
        (pid,) = fleet.stats()["engine_pids"]
        await fleet.stop()
        with pytest.raises(EngineDied, match="shutting down"):
            async for _ in ticket:
                pass
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert finishes(tmp_path)[ticket.id].detail == "shutdown"


async def test_a_model_that_cannot_be_loaded_is_the_callers_error_and_is_not_retried(tmp_path):
    with pytest.raises(ModelError, match="broken"):
        await LocalFleet.start(ServeConfig(model="broken"), directory=tmp_path, factory=FACTORY)
    async with fleet_of(tmp_path):  # and everything was let go of
        with pytest.raises(Locked):
            await LocalFleet.start(ServeConfig(model="double"), directory=tmp_path, factory=FACTORY)


async def test_an_engine_that_dies_while_loading_gives_up_after_three(tmp_path):
    with pytest.raises(EngineDied, match="3 deaths"):
        await LocalFleet.start(ServeConfig(model="dying"), directory=tmp_path, factory=FACTORY)
