"""The process of one app: reads its job from stdin, sends every request at its scheduled time, writes rows to stdout as JSON Lines.

One process an app, because one event loop for several apps makes them delay each other (arXiv 2605.24217). stdin is the leash: when the
controller dies it closes, and the worker ends. Run as `python -m headway.bench.worker`.
"""

import asyncio
import contextlib
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from headway.bench import prompts
from headway.bench.client import Call, Endpoint
from headway.bench.outcome import RequestRow

_SPIN_NS = 500_000
_PROGRESS_S = 0.25


class _App:
    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.endpoint = Endpoint.of(job["url"])
        self.open: dict[int, Call] = {}
        self.slots = asyncio.Semaphore(job["max_inflight"])
        self.sent = self.finished = self.missed = self.read_events = 0
        # Built before the start: making a prompt must not delay another request's stamps.
        self.texts = [prompts.text(job["source"], draw, job["prompt_tokens"]) for _, _, draw, _ in job["plan"]]

    def call(self, place: int, scheduled_ns: int) -> Call:
        index, _, draw, wanted = self.job["plan"][place]
        job = self.job
        body: dict[str, object] = {"model": job["model"], "max_tokens": wanted, "temperature": 0, "stream": True, "seed": draw & 0x7FFFFFFF}
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        if job["ignore_eos"]:
            body["ignore_eos"] = True
        if job["kind"] == "chat":
            path, body["messages"] = "/chat/completions", [{"role": "user", "content": self.texts[place]}]
        else:
            path, body["prompt"] = "/completions", self.texts[place]
        if job.get("slo_body"):
            body["slo"] = job["slo_body"]
        return Call(self.endpoint, path, job["headers"], body, RequestRow(job["app"], index, scheduled_ns, wanted))

    async def send(self, place: int, scheduled_ns: int) -> None:
        async with self.slots:
            call = self.call(place, scheduled_ns)
            self.open[place] = call
            self.sent += 1
            try:
                await call.run(self.job["timeout_s"])
            except asyncio.CancelledError:
                call.cut()
                emit({"kind": "request", "row": call.row.to_plain()})
                raise
            finally:
                del self.open[place]
                self.read_events += call.tokens_so_far
        self.finished += 1
        self.missed += call.row.outcome != "finished"
        emit({"kind": "request", "row": call.row.to_plain()})

    async def open_loop(self, start_ns: int, end_ns: int) -> None:
        tasks = set()
        for place, (_, at_ns, _, _) in enumerate(self.job["plan"]):
            due_ns = start_ns + at_ns
            await _until(due_ns)
            task = asyncio.create_task(self.send(place, due_ns))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(0)
        await _settle(tasks, end_ns + round(self.job["drain_s"] * 1e9))

    async def closed_loop(self, start_ns: int, end_ns: int) -> None:
        places = iter(range(len(self.job["plan"])))
        think_s = self.job["think_s"]

        async def client() -> None:
            await _until(start_ns)
            for place in places:
                if time.monotonic_ns() >= end_ns:
                    return
                await self.send(place, time.monotonic_ns())
                if think_s:
                    await asyncio.sleep(think_s)

        await _settle({asyncio.create_task(client()) for _ in range(self.job["closed"])}, end_ns + round(self.job["drain_s"] * 1e9))

    async def report_progress(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            events = self.read_events + sum(call.tokens_so_far for call in self.open.values())
            state = {"sent": self.sent, "open": len(self.open), "finished": self.finished, "missed": self.missed, "events": events}
            emit({"kind": "progress", "app": self.job["app"], **state})


async def _until(due_ns: int) -> None:
    """Sleeps to 0.5 ms before, then spins: timers wake late, and lateness here would be read as the server's."""
    left_ns = due_ns - time.monotonic_ns()
    if left_ns > _SPIN_NS:
        await asyncio.sleep((left_ns - _SPIN_NS) / 1e9)
    while time.monotonic_ns() < due_ns:
        pass


async def _settle(tasks: set[asyncio.Task[None]], limit_ns: int) -> None:
    """Waits for the rest until the limit, then cuts them: unfinished is a result, too."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=max(0.0, (limit_ns - time.monotonic_ns()) / 1e9))
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def emit(message: dict[str, Any]) -> None:
    """One line to the controller."""
    sys.stdout.write(json.dumps(message, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _run_queue_wait_ns() -> int:
    """Time this process's main thread was ready but did not run (schedstat's second field); 0 where the kernel does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/schedstat").read_text().split()[1])
    return 0


async def _main() -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    app = _App(json.loads(await lines.readline()))
    gc.collect()
    gc.freeze()
    emit({"kind": "ready"})
    command = await lines.readline()
    if not command:
        return
    start_ns = int(command)
    end_ns = start_ns + app.job["duration_ns"]
    drive: Callable[[int, int], Awaitable[None]] = app.closed_loop if app.job["closed"] else app.open_loop
    progress = asyncio.create_task(app.report_progress())
    leash = asyncio.create_task(lines.read(1))
    cpu_s, wait_ns = time.process_time(), _run_queue_wait_ns()
    work = asyncio.ensure_future(drive(start_ns, end_ns))
    await asyncio.wait({leash, work}, return_when=asyncio.FIRST_COMPLETED)
    progress.cancel()
    if not work.done():
        work.cancel()
        return
    work.result()
    emit({"kind": "end", "cpu_s": time.process_time() - cpu_s, "wait_ns": _run_queue_wait_ns() - wait_ns})


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        asyncio.run(_main())
