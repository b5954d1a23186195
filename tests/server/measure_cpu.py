"""CPU of the front's HTTP part per token: `PYTHONPATH=src:. python -m tests.server.measure_cpu`. Not a test: it asserts nothing.

A scripted fleet feeds 16 streams in lockstep in the server's process, a client in another process reads. The first line is what the
double and its tickets cost alone; the HTTP part is the second line less the first.
"""

import asyncio
import json
import multiprocessing
import os
import socket
import time

import uvicorn
from tests.fleet.doubles import ScriptedFleet
from tests.server.scripted import byte_model

from headway.core.config import ServeConfig
from headway.core.slo import class_default
from headway.engine.wire import Output, Sampling
from headway.fleet.ticket import FleetRequest, Ticket
from headway.server.app import build_app
from headway.server.connection import FrontConnection

STREAMS, TOKENS = 16, 600


class Lockstep(ScriptedFleet):
    """TEST DOUBLE: feeds every open ticket one token every 5 ms from one task, as an engine's iterations do."""

    def submit(self, request: FleetRequest) -> Ticket:
        ticket = Ticket(len(self.requests) + 1, request, time.monotonic_ns(), request.slo, self._cancel, self._finish)
        self.requests.append(request)
        self.tickets[ticket.id] = ticket
        ticket.grant("engine-0", request.slo)
        return ticket

    async def beat(self) -> None:
        left = dict.fromkeys(self.tickets, TOKENS)
        while left:
            await asyncio.sleep(0.005)
            for id in list(left):
                left[id] -= 1
                self.tickets[id].feed(Output(id, [97], finish="" if left[id] else "length"))
                if not left[id]:
                    del left[id]


async def bare() -> None:
    fleet = Lockstep()
    tickets = [fleet.submit(FleetRequest("tiny", [1], Sampling(TOKENS), class_default("interactive"))) for _ in range(STREAMS)]

    async def read(ticket: Ticket) -> None:
        async for _ in ticket:
            pass

    start = time.process_time()
    await asyncio.gather(fleet.beat(), *(read(ticket) for ticket in tickets))
    print(f"fleet double and tickets alone: {(time.process_time() - start) * 1e3 / STREAMS / TOKENS:.4f} ms CPU per token")


def client(port: int) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": TOKENS}).encode()
    sockets = []
    for _ in range(STREAMS):
        link = socket.create_connection(("127.0.0.1", port))
        link.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        sockets.append(link)
    for link in sockets:
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received = received[-8:] + link.recv(1 << 16)


async def main() -> None:
    await bare()
    fleet = Lockstep()
    listener = socket.create_server(("127.0.0.1", 0))
    app = build_app(fleet, {"tiny": byte_model(context_tokens=10**6, pool_tokens=10**6)}, ServeConfig())
    options = {"log_config": None, "access_log": False, "loop": "asyncio", "ws": "none", "proxy_headers": False}
    server = uvicorn.Server(uvicorn.Config(app, http=FrontConnection, **options))
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    process = multiprocessing.get_context("spawn").Process(target=client, args=(listener.getsockname()[1],))
    process.start()
    while len(fleet.tickets) < STREAMS:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    times, start = os.times(), time.process_time()
    await fleet.beat()
    while app.board.open_requests:
        await asyncio.sleep(0.005)
    used = os.times()
    total = STREAMS * TOKENS
    print(
        f"{total} tokens, {STREAMS} streams: {(time.process_time() - start) * 1e3 / total:.4f} ms CPU per token "
        f"(user {(used.user - times.user) * 1e3 / total:.4f}, system {(used.system - times.system) * 1e3 / total:.4f})"
    )
    process.join()
    server.should_exit = True
    await task


if __name__ == "__main__":
    asyncio.run(main())
