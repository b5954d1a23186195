"""The fleet of one machine: an engine process on a local channel, the router driven here, tickets fanned out to callers.

A thin shell: every decision is `router.step`'s. All of it runs on one event loop; only the journal has a thread of its own.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from headway.core import paths
from headway.core.config import ServeConfig
from headway.core.errors import DurabilityLost, EngineDied, HeadwayError
from headway.engine import wire
from headway.engine.frames import EngineSettings, Outputs, Stepped, Usage, ViewFrame, WantView, decode_report
from headway.fleet.journal import KeyedHash, RouterJournal
from headway.fleet.journal_records import EVENT_OF, NO_TAPE, EventRecord, Finish, ViewRecord, encode, pack_commands
from headway.fleet.link import EngineLink
from headway.fleet.mirror import Mirrors
from headway.fleet.observed import Observed
from headway.fleet.ticket import EngineBusy, FleetRequest, Refused, Ticket
from headway.scheduling import messages as m
from headway.scheduling import router

Progress = Callable[[str, float], None]
"""Called while an engine loads: what it does ("weights", "kernels", "law") and the fraction done in [0, 1]."""

HOUSEKEEPING_S = 1.0
HELD_TICK_S = 0.1
"""How often the router may think again about requests that wait and have no Hold time of their own."""
ENGINE_ID = "engine-0"


class LocalFleet:
    """One engine of this machine behind the router. All methods belong to the event loop that ran `start`."""

    def __init__(self, config: ServeConfig, journal: RouterJournal | None, seed: int) -> None:
        self._config = config
        self._journal = journal
        self._hashed = journal.hashed if journal is not None else KeyedHash(secrets.token_bytes(32))
        self._state = router.new_state(config.policy, seed)
        self._links: dict[str, EngineLink] = {}
        self._observed = Observed()
        self._mirrors = Mirrors()
        self._tickets: dict[int, Ticket] = {}
        """what the router knows: submitted and not over at the engine"""
        self._in_flight: dict[str, dict[int, None]] = {}
        self._next_id = 1 if journal is None else journal.next_id
        self._last_ns = 0
        self._loop = asyncio.get_running_loop()
        self._tick: asyncio.TimerHandle | None = None
        self._tick_ns = 0
        self._housekeeping: asyncio.TimerHandle | None = None
        self._closing = ""

    @classmethod
    async def start(
        cls, config: ServeConfig, on_progress: Progress | None = None, *, directory: Path | None = None, factory: str = ""
    ) -> "LocalFleet":
        """Spawns the engine, waits until it is up. Raises ModelError, ConfigError, EngineDied, Locked, JournalCorrupt, OSError.

        `directory` instead of `state/serve/<port>`; `factory` ("module:function") builds a test double of the engine.
        """
        seed = secrets.randbits(63)
        journal = None
        if config.journal == "on":
            journal = RouterJournal(directory or paths.serve_dir(config.port), config.policy, seed)
        fleet = cls(config, journal, seed)
        if journal is not None:
            journal.start(fleet._state.to_plain())
        settings = EngineSettings(
            model=config.model,
            accuracy=config.accuracy,
            policy=config.policy,
            threads=config.threads,
            kv_memory_bytes=config.kv_memory_bytes,
            kv_dtype=config.kv_dtype,
            context_tokens=config.context_tokens,
            page_tokens=config.page_tokens,
            max_sequences=config.max_open_requests,
        )
        link = EngineLink(
            ENGINE_ID,
            settings,
            record=journal is not None,
            on_message=lambda message: fleet._receive(ENGINE_ID, message),
            on_down=lambda boot, why: fleet._engine_down(ENGINE_ID, boot, why),
            on_progress=on_progress,
            factory=factory,
        )
        fleet._links[ENGINE_ID] = link
        fleet._in_flight[ENGINE_ID] = {}
        try:
            link.spawn()
            fleet._keep_house()
            await link.first_up
        except BaseException:
            await fleet.stop()
            raise
        return fleet

    # ---- requests --------------------------------------------------------------------------------------------------------
    def submit(self, request: FleetRequest) -> Ticket:
        """Hands a request to the router. Never raises: what goes wrong is raised by `ticket.dispatched()`."""
        id, self._next_id = self._next_id, self._next_id + 1
        ticket = Ticket(id, request, self._now_ns(), request.slo, self._cancel, self._finish)
        refusal = self._refusal()
        if refusal is not None:
            ticket.finished = True  # it never arrived: no record
            ticket.fail(refusal)
            return ticket
        arrive = m.Arrive(
            id=id,
            model=request.model,
            kind=request.kind,
            prompt_tokens=len(request.token_ids),
            samples=1,
            cached_tokens=self._mirrors.cached_tokens(id, request.model, request.token_ids, request.cache_salt, self._links),
            slo=request.slo,
            tenant=self._hashed(request.tenant),
            max_tokens=request.sampling.max_tokens,
        )
        self._tickets[id] = ticket
        if self._journal is not None:
            self._journal.arrived(id)
        self._step(arrive, user=self._hashed(request.user), now_ns=ticket.arrival_ns)
        if self._journal is not None:
            ticket.committed = self._journal.committed()
        return ticket

    def _refusal(self) -> HeadwayError | None:
        if self._closing:
            return Refused(self._closing, None, 5.0)
        if self._journal is not None and self._journal.failure:
            return self._journal.unavailable()
        for link in self._links.values():
            if link.unhealthy:
                return EngineDied(link.unhealthy)
            if link.busy:
                return EngineBusy(f"16 MiB wait to be read by {link.engine_id}; retry in a second")
        return None

    def _cancel(self, id: int, why: str) -> None:
        if id in self._tickets:
            self._step(m.Cancel(id, why))
            if id not in self._dispatched():
                self._forget(id)

    def _dispatched(self) -> set[int]:
        return {id for flights in self._in_flight.values() for id in flights}

    async def _finish(self, id: int, reason: str, score: object) -> None:
        if self._journal is None:
            return
        self._journal.finish(Finish(id, self._now_ns(), reason, "", score))
        try:
            await self._journal.committed()
        except DurabilityLost:
            return  # health says so; a stream that runs is allowed to finish

    # ---- the router ------------------------------------------------------------------------------------------------------
    def _now_ns(self) -> int:
        self._last_ns = max(self._last_ns, time.monotonic_ns())
        return self._last_ns

    def _step(
        self, event: Any, *, raw: msgspec.Raw | None = None, tape: msgspec.Raw = NO_TAPE, user: str = "", now_ns: int | None = None
    ) -> None:
        """One event through the router: decide, record, carry out."""
        if now_ns is None:
            now_ns = self._now_ns()
        journal = self._journal
        if journal is not None and journal.segment_due():
            journal.open_segment(self._state.to_plain())
            for link in self._links.values():
                link.send(WantView())
        commands = router.step(self._state, now_ns, event)
        if journal is not None and not journal.failure:
            if raw is None:
                raw = msgspec.Raw(encode(event))
            journal.event(EventRecord(now_ns, EVENT_OF[type(event)], raw, pack_commands(commands), tape, user))
        for command in commands:
            self._carry_out(command)

    def _carry_out(self, command: Any) -> None:
        kind = type(command)
        if kind is m.Dispatch:
            self._dispatch(command)
        elif kind is m.Abort:
            self._links[command.engine_id].send(command)
            ticket = self._tickets.get(command.id)
            if ticket is not None:
                ticket.feed(wire.Output(command.id, [], finish="abort", error=command.why))
        elif kind is m.Hold:
            self._tick_at(command.until_ns)
        elif kind is m.Shed:
            self._shed(command)
        elif kind is m.Downgrade or kind is m.Relegate:
            ticket = self._tickets.get(command.id)
            if ticket is not None:
                ticket.relegated |= kind is m.Relegate
                if ticket.engine_id:
                    self._links[ticket.engine_id].send(command)
        elif kind is m.Pace:
            self._observed.pace_ns = command.pace_ns
            self._links[command.engine_id].send(command)
        # Claim, Release, ScaleUp, ScaleDown: this fleet is its one engine.

    def _dispatch(self, command: m.Dispatch) -> None:
        ticket = self._tickets.get(command.id)
        if ticket is None:
            return
        flights, link = self._in_flight[command.engine_id], self._links[command.engine_id]
        if not flights:
            link.work_began()
        flights[command.id] = None
        request = ticket.request
        submit = wire.Submit(command.id, request.model, request.kind, request.token_ids, request.sampling, request.cache_salt)
        link.send(submit, command)
        ticket.grant(command.engine_id, command.slo)

    def _shed(self, command: m.Shed) -> None:
        if self._journal is not None:
            self._journal.ended(command.id)
        ticket = self._tickets.get(command.id)
        if ticket is not None:
            self._forget(command.id)
            retry_after_s = 1.0 if command.quote is None else max(command.quote.after_s, 0.0)
            ticket.finished = True  # the Shed in the journal is its record
            ticket.fail(Refused(command.reason, command.quote, retry_after_s))

    def _forget(self, id: int) -> None:
        self._mirrors.forget(id)
        ticket = self._tickets.pop(id, None)
        if ticket is not None and ticket.engine_id:
            self._in_flight[ticket.engine_id].pop(id, None)

    # ---- ticks -----------------------------------------------------------------------------------------------------------
    def _tick_at(self, until_ns: int) -> None:
        if self._tick is not None:
            if self._tick_ns <= until_ns:
                return
            self._tick.cancel()
        self._tick_ns = until_ns
        self._tick = self._loop.call_later(max(0.001, (until_ns - time.monotonic_ns()) / 1e9), self._tick_now)

    def _tick_now(self) -> None:
        self._tick = None
        self._step(m.Tick())
        if any(ticket.state == "waiting" for ticket in self._tickets.values()):
            self._tick_at(self._last_ns + round(HELD_TICK_S * 1e9))

    def _keep_house(self) -> None:
        """Once a second: the watchdog, a Tick while anything is open, and to disk what nobody waits for."""
        for engine_id, link in self._links.items():
            link.check(bool(self._in_flight[engine_id]))
        if self._tickets:
            self._tick_at(time.monotonic_ns())
        if self._journal is not None:
            self._journal.flush()
        self._housekeeping = self._loop.call_later(HOUSEKEEPING_S, self._keep_house)

    # ---- frames ----------------------------------------------------------------------------------------------------------
    def _receive(self, engine_id: str, message: Any) -> None:
        kind = type(message)
        if kind is Outputs:
            self._fan_out(engine_id, message.outputs)
        elif kind is Stepped:
            self._reported(engine_id, message)
        elif kind is Usage:
            self._observed.execute_cpu_s[engine_id] = message.execute_cpu_s
        elif kind is m.EngineUp:
            self._observed.engine_up(message)
            self._mirrors.engine_up(engine_id, message.spec)
            self._step(message)
        elif kind is m.LawUpdate:
            self._observed.law(message)
            self._step(message)
        elif kind is ViewFrame and self._journal is not None:
            self._journal.view(ViewRecord(message.engine_id, message.boot, message.view))

    def _fan_out(self, engine_id: str, outputs: list[wire.Output]) -> None:
        tickets = self._tickets
        for output in outputs:
            self._observed.tokens_total += len(output.token_ids)
            ticket = tickets.get(output.id)
            if ticket is None:
                continue
            self._mirrors.learn(engine_id, ticket.request.model, output)
            ticket.feed(output)

    def _reported(self, engine_id: str, stepped: Stepped) -> None:
        report = decode_report(stepped.report)
        self._links[engine_id].reported(report.next_ns)
        self._observed.reported(report)
        self._step(report, raw=stepped.report, tape=stepped.tape)
        for id, why in report.failed:
            ticket = self._tickets.get(id)
            if ticket is not None:
                ticket.feed(wire.Output(id, [], finish="error", error=why))
                self._forget(id)
        for id, _ in report.finished:
            self._forget(id)

    def _engine_down(self, engine_id: str, boot: int, why: str) -> None:
        """The process is gone: everything dispatched to it is over, held requests wait for the next boot."""
        lost = list(self._in_flight[engine_id])
        self._observed.engine_down(engine_id)
        self._step(m.EngineDown(engine_id, boot, why))
        error = EngineDied(f"{engine_id} {why}; send the request again")
        for id in lost:
            self._give_up(id, error, "engine_died")
        unhealthy = self._links[engine_id].unhealthy
        if unhealthy:
            for id in list(self._tickets):
                self._give_up(id, EngineDied(unhealthy), "engine_died")

    def _give_up(self, id: int, error: HeadwayError, detail: str) -> None:
        """FAILED: the caller is told and the journal says so, whatever the caller does next."""
        ticket = self._tickets.get(id)
        self._forget(id)
        if ticket is None:
            return
        ticket.fail(error)
        if not ticket.finished:
            ticket.finished = True
            if self._journal is not None:
                self._journal.finish(Finish(id, self._now_ns(), "failed", detail))

    # ---- what others want to know --------------------------------------------------------------------------------------------
    def stats(self) -> dict[str, Any]:
        """What `/stats` shows of this fleet: `Observed.stats` and the counts of requests and processes."""
        return self._observed.stats() | {
            "open_requests": len(self._tickets),
            "queued_requests": sum(ticket.state == "waiting" for ticket in self._tickets.values()),
            "running_requests": sum(len(flights) for flights in self._in_flight.values()),
            "engine_pids": [link.pid for link in self._links.values() if link.pid is not None],
            "engine_restarts": sum(link.restarts for link in self._links.values()),
            "accuracy": self._config.accuracy,
            "policy": self._config.policy,
            "journal": "off" if self._journal is None else (self._journal.failure or "on"),
        }

    def health(self) -> tuple[bool, str]:
        """(True, "ok") or (False, why new requests would fail or wait)."""
        for link in self._links.values():
            if link.unhealthy:
                return False, link.unhealthy
            if not link.up:
                return False, f"engine {link.engine_id} is (re)starting"
        if self._journal is not None and self._journal.failure:
            return False, f"journal_unavailable: {self._journal.failure}"
        return (False, self._closing) if self._closing else (True, "ok")

    def models(self) -> list[dict[str, Any]]:
        """`Observed.models`."""
        return self._observed.models()

    # ---- the end ---------------------------------------------------------------------------------------------------------
    async def drain(self, seconds: float) -> int:
        """Refuses new requests and waits until none is open, at most `seconds`; returns how many still are."""
        self._closing = "shutting_down"
        deadline = self._loop.time() + seconds
        while self._tickets and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        return len(self._tickets)

    async def stop(self) -> None:
        """Fails what is open (EngineDied "shutting down", FAILED records), ends the engine, closes the journal. Idempotent."""
        self._closing = "shutting_down"
        for handle in (self._housekeeping, self._tick):
            if handle is not None:
                handle.cancel()
        for id in list(self._tickets):
            self._give_up(id, EngineDied("the server is shutting down; send the request again"), "shutdown")
        for link in self._links.values():
            await link.stop()
        if self._journal is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._journal.close)
            self._journal = None
