"""Named test doubles of the fleet room: `ScriptedFleet`, a fleet without processes for tests of the rooms above."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headway.core.errors import EngineDied, HeadwayError
from headway.engine.wire import Output
from headway.fleet.ticket import FleetRequest, Ticket


@dataclass(slots=True)
class Script:
    """What happens to one request: `token_ids` one a step, `gap_s` apart, then `finish`.

    `refuse` is raised by `dispatched()`; `die_after` tokens the engine "dies" (-1 = never); `hold` never dispatches.
    """

    token_ids: tuple[int, ...] = (72, 105, 33)
    gap_s: float = 0.0
    finish: str = "stop"
    stop_id: int | None = None
    refuse: HeadwayError | None = None
    die_after: int = -1
    hold: bool = False
    outputs: tuple[Output, ...] = ()
    """Exact outputs instead of `token_ids` (their id is replaced); for logprobs."""


class ScriptedFleet:
    """TEST DOUBLE of `fleet.local.LocalFleet`: same interface, in process; `script(request) -> Script` decides what each does."""

    def __init__(
        self, script: Callable[[FleetRequest], Script] | Script | None = None, *, model: str = "tiny", context_tokens: int = 512
    ) -> None:
        chosen = Script() if script is None else script
        self.script: Callable[[FleetRequest], Script] = chosen if callable(chosen) else lambda request: chosen
        self.model = model
        self.context_tokens = context_tokens
        self.tickets: dict[int, Ticket] = {}
        self.requests: list[FleetRequest] = []
        self.cancels: list[tuple[int, str]] = []
        self.finishes: list[tuple[int, str, object]] = []
        self.unhealthy = ""
        self.stopped = False
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, request: FleetRequest) -> Ticket:
        ticket = Ticket(len(self.requests) + 1, request, time.monotonic_ns(), request.slo, self._cancel, self._finish)
        self.requests.append(request)
        self.tickets[ticket.id] = ticket
        script = self.script(request)
        if script.refuse is not None:
            ticket.fail(script.refuse)
        elif not script.hold:
            task = asyncio.get_running_loop().create_task(self._play(ticket, script))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return ticket

    async def _play(self, ticket: Ticket, script: Script) -> None:
        ticket.grant("engine-0", ticket.request.slo)
        limit = ticket.request.sampling.max_tokens
        outputs = list(script.outputs) or [Output(0, [token]) for token in script.token_ids]
        for i, output in enumerate(outputs[:limit]):
            if i == script.die_after:
                ticket.fail(EngineDied("engine-0 died (scripted)"))
                return
            await asyncio.sleep(script.gap_s)
            last = i + 1 == len(outputs)
            finish = script.finish if last else ("length" if i + 1 == limit else "")
            stop_id = script.stop_id if last else None
            ticket.feed(Output(ticket.id, output.token_ids, output.logprobs, output.prompt_logprobs, finish, stop_id, output.cached_tokens))

    def _cancel(self, id: int, why: str) -> None:
        self.cancels.append((id, why))

    async def _finish(self, id: int, reason: str, score: object) -> None:
        self.finishes.append((id, reason, score))

    def open(self) -> list[Ticket]:
        return [ticket for ticket in self.tickets.values() if ticket.state != "ended"]

    def stats(self) -> dict[str, Any]:
        waiting = sum(ticket.state == "waiting" for ticket in self.tickets.values())
        return {
            "kv_pages_total": 100, "kv_pages_used": 0, "kv_pages_cached": 0, "open_requests": len(self.open()), "queued_requests": waiting,
            "engine_pids": [0], "accuracy": "fast", "policy": "headway", "journal": "off", "law": {}, "slack_ms": None, "pace_ms": None,
            "tokens_total": 0, "engine_restarts": 0,
        }  # fmt: skip

    def health(self) -> tuple[bool, str]:
        return (not self.unhealthy, self.unhealthy or "ok")

    def models(self) -> list[dict[str, Any]]:
        spec = {"accuracy": "fast", "kv_dtype": "bf16", "page_tokens": 16, "pages": 100, "law": "quick"}
        return [{"model": self.model, "context_tokens": self.context_tokens, **spec}]

    async def drain(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while self.open() and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        return len(self.open())

    async def stop(self) -> None:
        self.stopped = True
        for ticket in self.open():
            ticket.fail(EngineDied("shutting down"))
