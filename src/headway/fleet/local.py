"""The fleet of one machine: engine processes on local channels, the router driven here, tickets fanned out to callers.

Interface first; the body follows.
"""

from collections.abc import Callable
from typing import Any

from headway.fleet.ticket import FleetRequest, Ticket

Progress = Callable[[str, float], None]
"""Called while an engine loads: what it does ("weights", "kernels", "law") and the fraction done in [0, 1]."""


class LocalFleet:
    """Engines of this machine behind one router. All methods belong to the event loop that ran `start`."""

    @classmethod
    async def start(cls, config: Any, on_progress: Progress | None = None) -> "LocalFleet":
        """Spawns the engine, waits until it is up. Raises ModelError, ConfigError, EngineDied, Locked, JournalCorrupt."""
        raise NotImplementedError

    def submit(self, request: FleetRequest) -> Ticket:
        """Hands a request to the router. Never raises: what goes wrong is raised by `ticket.dispatched()`."""
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        """Counters of DESIGN.md section 3 and the issue: kv_pages_total/used/cached, open_requests, queued_requests, engine_pids, ..."""
        raise NotImplementedError

    def health(self) -> tuple[bool, str]:
        """(True, "ok") or (False, why new requests would fail)."""
        raise NotImplementedError

    def models(self) -> list[dict[str, Any]]:
        """One dict a model: model, accuracy, kv_dtype, context_tokens, page_tokens, pages, law."""
        raise NotImplementedError

    async def drain(self, seconds: float) -> int:
        """Waits until no request is open, at most `seconds`; returns how many still are."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Fails what is open (EngineDied "shutting down", FAILED records), ends the engines, closes the journal."""
        raise NotImplementedError
