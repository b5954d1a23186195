"""Short ways to start a LocalFleet over the engine double and to run one request to its end."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from headway.core.config import ServeConfig
from headway.core.slo import Slo
from headway.engine.wire import Sampling
from headway.fleet.local import LocalFleet
from headway.fleet.ticket import FleetRequest, Ticket
from tests.fleet.engine_double import FACTORY

LOOSE = Slo(60.0, 10.0)


@contextlib.asynccontextmanager
async def fleet_of(directory: Path, **settings: Any) -> AsyncIterator[LocalFleet]:
    config = ServeConfig(**{"model": "double", "policy": "fcfs", **settings})
    fleet = await LocalFleet.start(config, directory=directory, factory=FACTORY)
    try:
        yield fleet
    finally:
        await fleet.stop()


def request(prompt: list[int] | None = None, max_tokens: int = 8, **more: Any) -> FleetRequest:
    sampling = Sampling(max_tokens, temperature=0.0)
    return FleetRequest("double", [1, 2, 3] if prompt is None else prompt, sampling, more.pop("slo", LOOSE), **more)


async def tokens_of(ticket: Ticket) -> tuple[list[int], str]:
    """Runs a ticket as the server does: all its tokens, and how it finished."""
    await ticket.dispatched()
    tokens: list[int] = []
    finish = ""
    async for output in ticket:
        tokens += output.token_ids
        finish = output.finish
    await ticket.finish("finished")
    return tokens, finish
