"""Who waits for a record to become durable: threads and coroutines, one waker each, released in batches."""

import asyncio
import threading

from headway.core.errors import DurabilityLost


class ThreadWaiter:
    """A thread waiting for one sequence number. A bare lock each: notify_all on one condition wakes everybody (p99 22 ms at 64 writers)."""

    __slots__ = ("_gate", "failure", "seq")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.failure: str | None = None
        self._gate = threading.Lock()
        self._gate.acquire()

    def wait(self) -> None:
        self._gate.acquire()

    def release(self) -> None:
        self._gate.release()


class LoopWaiter:
    """A coroutine waiting for one sequence number."""

    __slots__ = ("failure", "future", "loop", "seq")

    def __init__(self, seq: int, loop: asyncio.AbstractEventLoop) -> None:
        self.seq = seq
        self.failure: str | None = None
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def release(self) -> None:
        """Runs in the loop's thread."""
        if self.future.done():  # cancelled meanwhile
            return
        if self.failure is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(DurabilityLost(self.failure))


def release(waiters: list[ThreadWaiter | LoopWaiter]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[LoopWaiter]] = {}
    for waiter in waiters:
        if isinstance(waiter, ThreadWaiter):
            waiter.release()
        else:
            by_loop.setdefault(waiter.loop, []).append(waiter)
    for loop, ready in by_loop.items():
        try:
            loop.call_soon_threadsafe(_release_in_loop, ready)
        except RuntimeError:  # the loop is closed: nobody waits there any more
            continue


def _release_in_loop(waiters: list[LoopWaiter]) -> None:
    for waiter in waiters:
        waiter.release()
