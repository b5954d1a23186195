"""uvicorn's HTTP/1.1 connection with what Headway needs besides: the transport within reach, bounded buffers, JSON for bad HTTP, and a
reply for clients that shut down their own side first.
"""

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from headway.server.errors import invalid
from headway.server.exchange import SLOW_READER_BYTES, TRANSPORT, Receive, Scope, Send
from headway.server.replies import encode

HEADER_TIMEOUT_S = 20.0
# The kernel would buffer megabytes for a reader that does not read (tcp_wmem grows to 4 MiB); what we cannot see we cannot bound.
SEND_BUFFER_BYTES = 128 * 1024
PROBE_FIRST_S, PROBE_S = 0.02, 1.0
_TCP_CLOSE = 7  # tcp_states.h; the first byte of TCP_INFO (tcp(7))


class FrontConnection(H11Protocol):
    """Give to `uvicorn.Config(http=...)`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._half_closed = False
        # uvicorn waits in `send` above the high mark; the end of a slow reader's stream must never wait.
        transport.set_write_buffer_limits(high=2 * SLOW_READER_BYTES)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        inner: Any = self.app

        async def reach_transport(scope: Scope, receive: Receive, send: Send) -> None:
            scope[TRANSPORT] = transport
            await inner(scope, receive, send)

        self.app = reach_transport
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._header_timer.cancel()
        super().connection_lost(exc)

    # ---- half-closed clients -------------------------------------------------------------------------------------------
    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has sent its request may shut down its side and still wants the reply (RFC 9112, 9.6); from here that looks like
        one that has closed everything. What we send next tells: a closed socket answers it with a reset."""
        cycle = self.cycle
        self._half_closed = cycle is not None and not cycle.response_complete and not cycle.more_body
        if self._half_closed:
            cycle.keep_alive = False
            self._probe(PROBE_FIRST_S)
        return self._half_closed

    def _probe(self, again_s: float) -> None:
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if self._peer_has_reset():
            self.transport.abort()
            return
        if self.conn.our_state is h11.SEND_RESPONSE and self.scope["http_version"] == "1.1":
            # Nothing of the reply can be sent yet. Clients skip a 100 that they did not ask for (RFC 9110, 10.1.1).
            self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")) or b"")
        self.loop.call_later(again_s, self._probe, PROBE_S)

    def _peer_has_reset(self) -> bool:
        peer = self.transport.get_extra_info("socket")
        if peer is None or peer.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        return bool(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._half_closed and self.cycle.response_complete:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Bytes that are not HTTP get the same error shape as everything else."""
        body = encode(invalid(f"{msg} Speak HTTP/1.1 with headers of less than 64 KiB.").body())
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
