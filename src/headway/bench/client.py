"""One request over raw HTTP/1.1: stamps are taken at the socket read, before anything is parsed. No retries, no pool.

A connection a request: what a client that comes and goes does, and no request waits for another's socket.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from headway.bench.http1 import BadResponse, ResponseReader
from headway.bench.outcome import RequestRow
from headway.bench.tokens import error_text, read_stream

_REFUSALS = (429, 503)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an OpenAI-compatible server answers: `host`, `port`, and the path before `/chat/completions`."""

    host: str
    port: int
    prefix: str = "/v1"

    @classmethod
    def of(cls, url: str) -> "Endpoint":
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or 80, parts.path.rstrip("/"))


class _Reader(asyncio.Protocol):
    def __init__(self, on_tokens: "asyncio.Future[None]") -> None:
        self.reader = ResponseReader()
        self.done = on_tokens
        self.error = ""

    def data_received(self, data: bytes) -> None:
        stamp_ns = time.monotonic_ns()
        try:
            self.reader.feed(stamp_ns, data)
        except BadResponse as error:
            self.error = str(error)
        if (self.error or self.reader.complete) and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.reader.end_of_file()
        if not self.reader.complete and not self.error:
            self.error = f"connection lost: {exc}" if exc else "connection closed in mid-answer"
        if not self.done.done():
            self.done.set_result(None)


class Call:
    """One exchange in flight; `row` is complete once `run` returns, or after `cut` for one that the run's end overtook."""

    def __init__(self, endpoint: Endpoint, path: str, headers: dict[str, str], body: dict[str, object], row: RequestRow) -> None:
        self._endpoint = endpoint
        payload = json.dumps(body).encode()
        lines = [
            f"POST {endpoint.prefix}{path} HTTP/1.1",
            f"Host: {endpoint.host}:{endpoint.port}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            f"Content-Length: {len(payload)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self._message = ("\r\n".join(lines) + "\r\n\r\n").encode() + payload
        self._protocol: _Reader | None = None
        self.row = row

    @property
    def tokens_so_far(self) -> int:
        """Events read so far: good enough for a live view, never for a result."""
        return len(self._protocol.reader.events) if self._protocol else 0

    async def run(self, timeout_s: float) -> None:
        """Sends and reads to the end. Never raises for what the server does: it is in the row."""
        loop = asyncio.get_running_loop()
        protocol = self._protocol = _Reader(loop.create_future())
        try:
            transport, _ = await loop.create_connection(lambda: protocol, self._endpoint.host, self._endpoint.port)
        except OSError as error:
            self.row.end_ns = time.monotonic_ns()
            self.row.outcome, self.row.reason = "failed", f"cannot connect: {error.strerror or error}"
            return
        try:
            self.row.sent_ns = time.monotonic_ns()
            transport.write(self._message)
            async with asyncio.timeout(timeout_s):
                await protocol.done
        except TimeoutError:
            protocol.error = f"no end after {timeout_s:g} s"
        finally:
            transport.abort()
        self.row.end_ns = time.monotonic_ns()
        self._settle(protocol)

    def cut(self) -> None:
        """The run is over: keep what is known."""
        self.row.end_ns = time.monotonic_ns()
        if self._protocol is not None and self._protocol.reader.status == 200:
            self._take_tokens(self._protocol.reader)
        self.row.outcome, self.row.reason = "unfinished", "still running when the run ended"

    def _settle(self, protocol: _Reader) -> None:
        reader, row = protocol.reader, self.row
        row.status, row.headers_ns = reader.status, reader.headers_ns
        if reader.status == 200:
            error = self._take_tokens(reader)
            if error or (protocol.error and not row.finish_reason):
                row.outcome, row.reason = "failed", error or protocol.error
            elif not row.finish_reason:
                row.outcome, row.reason = "failed", "the stream ended without a finish_reason"
            else:
                row.outcome = "finished"
            return
        if not reader.status:
            row.outcome, row.reason = "failed", protocol.error
            return
        try:
            body: object = json.loads(bytes(reader.body))
        except ValueError:
            body = bytes(reader.body[:200]).decode("utf-8", "replace")
        row.outcome = "refused" if reader.status in _REFUSALS else "failed"
        row.reason = f"{reader.status} {error_text(body)}"
        error_part = body.get("error") if isinstance(body, dict) else None
        extras = error_part.get("headway") if isinstance(error_part, dict) else None
        if isinstance(extras, dict) and isinstance(extras.get("quote"), dict):
            row.quote = extras["quote"]

    def _take_tokens(self, reader: ResponseReader) -> str:
        times, row = read_stream(reader.events), self.row
        row.status, row.headers_ns = reader.status, reader.headers_ns
        row.token_ns, row.first_chunk_tokens, row.counted_by = times.token_ns, times.first_chunk_tokens, times.counted_by
        row.prompt_tokens, row.cached_tokens, row.usage_tokens = times.prompt_tokens, times.cached_tokens, times.usage_tokens
        row.finish_reason, row.text, row.server = times.finish_reason, times.text, dict(times.server)
        return times.error


async def get_json(url: str, timeout_s: float = 5.0, headers: dict[str, str] | None = None) -> tuple[int, object]:
    """Status and parsed body of a GET; status 0 if nobody answers. For readiness and `/v1/models`, not for measurements."""
    endpoint = Endpoint.of(url)
    loop = asyncio.get_running_loop()
    protocol = _Reader(loop.create_future())
    lines = [f"GET {endpoint.prefix or '/'} HTTP/1.1", f"Host: {endpoint.host}:{endpoint.port}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    try:
        async with asyncio.timeout(timeout_s):
            transport, _ = await loop.create_connection(lambda: protocol, endpoint.host, endpoint.port)
            try:
                transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())
                await protocol.done
            finally:
                transport.abort()
    except (OSError, TimeoutError):
        return 0, None
    try:
        return protocol.reader.status, json.loads(bytes(protocol.reader.body) or b"null")
    except ValueError:
        return protocol.reader.status, None
