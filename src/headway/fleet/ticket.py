"""What a caller holds while its request lives: the request, its ticket, and the ways a request can be turned away.

A ticket belongs to one event loop. Knows nothing of sockets, routers or HTTP; a fleet feeds it through `feed`, `grant` and `fail`.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from headway.core.errors import DurabilityLost, HeadwayError
from headway.core.slo import Slo
from headway.engine.wire import Output, Sampling
from headway.scheduling.messages import Quote

State = Literal["waiting", "running", "ended"]


class Refused(HeadwayError):
    """The router shed the request: `reason` in a word, `quote` the nearest promise that could be kept."""

    def __init__(self, reason: str, quote: Quote | None, retry_after_s: float) -> None:
        nearest = ""
        if quote is not None:
            nearest = f"; in {quote.after_s:.1f} s ttft_s={quote.ttft_s:.3f} tpot_s={quote.tpot_s:.3f} could be kept"
        super().__init__(f"refused: {reason}{nearest}; retry after {retry_after_s:.1f} s or ask for a looser slo")
        self.reason = reason
        self.quote = quote
        self.retry_after_s = retry_after_s


class EngineBusy(HeadwayError):
    """Too many bytes wait to be read by the engine; nothing was accepted."""


class JournalUnavailable(HeadwayError):
    """The request cannot be recorded durably, so it is not accepted (`--journal off` serves without a record)."""


@dataclass(frozen=True, slots=True)
class FleetRequest:
    """One sequence to be executed; a request with n samples is n of these, told apart by `sampling.sample_index`.

    `slo` must be complete (class default applied). `tenant` and `user` are stored as keyed hashes only.
    """

    model: str
    token_ids: list[int]
    sampling: Sampling
    slo: Slo
    tenant: str = ""
    cache_salt: str = ""
    kind: str = "generate"
    user: str = ""


Canceller = Callable[[int, str], None]
Finisher = Callable[[int, str, object], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Ticket:
    """A request on its way. `slo` is what was granted; `arrival_ns` is `time.monotonic_ns()` at submission.

    Use: `await dispatched()`, then `async for output in ticket`, then `await finish(reason, score)` before the last byte.
    """

    id: int
    request: FleetRequest
    arrival_ns: int
    slo: Slo
    canceller: Canceller
    finisher: Finisher
    engine_id: str = ""
    state: State = "waiting"
    cancelled: str = ""
    finished: bool = False
    relegated: bool = False
    committed: Awaitable[None] | None = None
    error: HeadwayError | None = None
    outputs: deque[Output] = field(default_factory=deque)
    _decided: asyncio.Event = field(default_factory=asyncio.Event)
    _waiter: asyncio.Future[None] | None = None

    # ---- the caller's side ---------------------------------------------------------------------------------------------
    async def dispatched(self) -> None:
        """Returns once an engine has the request and its arrival is on disk.

        Raises Refused, EngineDied, EngineBusy or JournalUnavailable; after any of them the request is over and recorded.
        """
        await self._decided.wait()
        if self.committed is not None:
            try:
                await self.committed
            except DurabilityLost as lost:
                self.cancel("journal_unavailable")
                raise JournalUnavailable(f"the request could not be recorded: {lost}; or serve without a record: --journal off") from lost
        if self.error is not None:
            raise self.error

    def __aiter__(self) -> "Ticket":
        return self

    async def __anext__(self) -> Output:
        """The next output, in order. Ends after one with `finish`, or at once after `cancel`. Raises EngineDied."""
        while not self.outputs:
            if self.cancelled:
                raise StopAsyncIteration
            if self.error is not None:
                raise self.error
            if self.state == "ended":
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.outputs.popleft()

    def cancel(self, why: str) -> None:
        """Stops the work and ends iteration at once; later tokens are neither delivered nor counted. Idempotent."""
        if self.cancelled:
            return
        self.cancelled = why
        self.outputs.clear()
        over = self.state == "ended"
        self.state = "ended"
        self._decided.set()
        self._wake()
        if not over:
            self.canceller(self.id, why)

    async def finish(self, reason: str, score: object = None) -> None:
        """Records how the request ended; returns when that is on disk (or the journal is lost). Later calls do nothing.

        `reason`: finished | shed | failed | cancelled_by_us | cancelled_by_client. `score`: a `core.slo.Score` or None.
        """
        if not self.finished:
            self.finished = True
            await self.finisher(self.id, reason, score)

    # ---- the fleet's side ----------------------------------------------------------------------------------------------
    def grant(self, engine_id: str, slo: Slo) -> None:
        """An engine has it, under this promise."""
        if self.state == "waiting":
            self.state = "running"
        self.engine_id = engine_id
        self.slo = slo
        self._decided.set()

    def feed(self, output: Output) -> None:
        """An output arrived. Dropped when the request is over."""
        if self.state == "ended":
            return
        if output.finish:
            self.state = "ended"
        self.outputs.append(output)
        self._wake()

    def fail(self, error: HeadwayError) -> None:
        """Ends the request with an error; outputs that arrived before it are still delivered."""
        if self.state == "ended":
            return
        self.error = error
        self.state = "ended"
        self._decided.set()
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
