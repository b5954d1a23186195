"""One HTTP request and its reply over ASGI: body with limits, JSON replies, event streams, and word when the client has gone.

Where uvicorn's transport is known (connection.py) its write buffer is measured, so that a slow reader can be cut off.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from headway import __version__
from headway.core.errors import HeadwayError
from headway.server.errors import HttpError, Problem
from headway.server.replies import encode

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
HeaderList = Iterable[tuple[bytes, bytes]]

TRANSPORT = "headway.transport"
SLOW_READER_BYTES = 1024 * 1024  # some 4,000 chunks of a token: minutes behind
SLOW_READER_LINGER_S = 10.0
BODY_TIMEOUT_S = 30.0
_DISCARD_BYTES = 64 * 1024 * 1024
_DISCARD_S = 5.0
_VERSION = __version__.encode()
EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


class SlowReader(HeadwayError):
    """The client reads slower than its tokens come and is too far behind."""


class ClientGone(HeadwayError):
    """The client closed the connection."""


class Exchange:
    """One request. `reply*` answers it whole; `start_events`, `write`, `end_events` answer it with a stream."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.transport: asyncio.Transport | None = scope.get(TRANSPORT)
        self.request_id = "req_" + secrets.token_hex(12)
        self.started_ns = time.monotonic_ns()
        self.reply_headers: list[tuple[bytes, bytes]] = []
        self.status = 0
        self.streaming = False
        self.gone = False
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None

    # ---- the request ---------------------------------------------------------------------------------------------------
    async def body(self, limit_bytes: int) -> bytes:
        """The whole body. Raises HttpError 413 over the limit, 408 when it does not arrive in time; ClientGone."""
        declared = self.headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit_bytes:
            await self._discard()
            raise HttpError(_too_large(int(declared), limit_bytes))
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        self.gone = True
                        raise ClientGone("the client left before its request was complete")
                    pieces.append(message.get("body", b""))
                    size += len(pieces[-1])
                    if size > limit_bytes:
                        pieces.clear()
                        if message.get("more_body", False):
                            await self._discard()
                        raise HttpError(_too_large(size, limit_bytes))
                    if not message.get("more_body", False):
                        return b"".join(pieces)
        except TimeoutError:
            message_text = f"the request body did not arrive within {BODY_TIMEOUT_S:.0f} s; send it faster or in smaller parts"
            raise HttpError(Problem(408, "invalid_request_error", message_text, headers=[(b"connection", b"close")])) from None

    async def _discard(self) -> None:
        """Reads a too large body away for a moment: clients that write before they read would see a reset instead of the 413."""
        if b"expect" in self.headers:
            return
        size = 0
        try:
            async with asyncio.timeout(_DISCARD_S):
                while size < _DISCARD_BYTES:
                    message = await self._receive()
                    size += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Calls `on_gone` once when the client closes the connection before the reply is complete. The body must have been read."""

        async def wait() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self.gone = True
            on_gone()

        self._watcher = asyncio.get_running_loop().create_task(wait())

    def unwatch(self) -> None:
        """Stops watching; called before the reply's end, which looks like a disconnect."""
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    # ---- the reply -----------------------------------------------------------------------------------------------------
    async def reply(self, status: int, body: bytes, content_type: bytes, headers: HeaderList = ()) -> None:
        """The whole reply at once."""
        self.unwatch()
        await self._start(status, [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def reply_json(self, body: object, status: int = 200, headers: HeaderList = ()) -> None:
        """The whole reply, as JSON."""
        await self.reply(status, encode(body), b"application/json", headers)

    async def reply_problem(self, problem: Problem) -> None:
        """An error in OpenAI's shape; inside a stream an error event and the end."""
        if self.streaming:
            self.unwatch()
            await self._out(b"data: " + encode(problem.body()) + b"\n\n")
            await self.end_events()
        elif not self.gone:
            await self.reply_json(problem.body(), problem.status, problem.headers)

    async def start_events(self, headers: HeaderList = ()) -> None:
        """Status 200 and the headers of an event stream."""
        self.streaming = True
        await self._start(200, [*EVENT_STREAM, *headers])

    async def write(self, events: bytes) -> None:
        """Hands whole events to the socket, in one write. Raises SlowReader; does nothing when the client has gone."""
        await self._out(events)
        transport = self.transport
        if transport is not None and transport.get_write_buffer_size() > SLOW_READER_BYTES:
            behind = transport.get_write_buffer_size()
            raise SlowReader(
                f"{behind} bytes wait for the client (limit {SLOW_READER_BYTES}): its request was cancelled; read the stream faster"
            )

    async def end_events(self) -> None:
        """Ends the stream. A reader that is far behind gets a moment to catch up, then its connection is cut."""
        self.unwatch()
        transport = self.transport
        if transport is not None and transport.get_write_buffer_size() > SLOW_READER_BYTES:
            asyncio.get_running_loop().call_later(SLOW_READER_LINGER_S, transport.abort)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _out(self, events: bytes) -> None:
        # h11 frames the chunk: about 0.013 ms CPU a token (tests/server/measure_cpu.py), not worth going around it.
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def _start(self, status: int, headers: HeaderList) -> None:
        self.status = status
        elapsed_ms = (time.monotonic_ns() - self.started_ns) // 1_000_000
        own = [(b"x-request-id", self.request_id.encode()), (b"openai-processing-ms", b"%d" % elapsed_ms), (b"x-headway-version", _VERSION)]
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *own, *self.reply_headers]})


def _too_large(size_bytes: int, limit_bytes: int) -> Problem:
    message = f"the request body has {size_bytes} bytes or more; this server takes at most {limit_bytes} (max_body_bytes)"
    return Problem(413, "invalid_request_error", message, headers=[(b"connection", b"close")])
