"""One local channel between front and engine: length-prefixed, numbered frames over a stream socket; neither side blocks on a write.

`EngineSide` is for the engine's single loop, `FrontSide` for one asyncio loop. What is in a frame: engine.frames.
"""

import asyncio
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from headway.engine.frames import CONTROL, DATA, KIND_OF, REPORTS, ChannelError, decode, encode

HEADER = struct.Struct("<IBBHQ")
"""body length in bytes, family, kind, 0, number within its family (from 1)"""
MAX_FRAME_BYTES = 64 << 20
MAX_QUEUED_BYTES = 16 << 20
"""More than this waiting to be read = engine busy (front), no composing (engine)."""
PAUSE_LIMIT_S = 30.0
_READ_BYTES = 1 << 18


class PeerGone(ChannelError):
    """The other process closed the channel or died."""


def pair() -> tuple[socket.socket, socket.socket]:
    """(front, engine) ends. The engine's end is inheritable by a spawned process only when passed on explicitly."""
    front, engine = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (front, engine):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    return front, engine


class FrameWriter:
    """Numbers frames and keeps what the socket did not take."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._backlog = bytearray()
        self._numbers = {CONTROL: 0, REPORTS: 0, DATA: 0}

    @property
    def queued_bytes(self) -> int:
        return len(self._backlog)

    def send(self, *messages: object) -> None:
        """Queues the messages and writes what fits, in one system call when nothing waits. Raises PeerGone."""
        parts: list[bytes] = []
        for message in messages:
            kind, family = KIND_OF[type(message)]
            number = self._numbers[family] = self._numbers[family] + 1
            body = encode(message)
            if len(body) > MAX_FRAME_BYTES:
                raise ChannelError(f"a {type(message).__name__} of {len(body)} bytes exceeds a frame's {MAX_FRAME_BYTES} bytes")
            parts += (HEADER.pack(len(body), family, kind, 0, number), body)
        waiting = bool(self._backlog)
        self._backlog += b"".join(parts)
        if not waiting:
            self.flush()

    def flush(self) -> None:
        """Writes what the socket takes now. Raises PeerGone."""
        sent = 0
        try:
            with memoryview(self._backlog) as view:
                while sent < len(view):
                    sent += self._sock.send(view[sent : sent + (1 << 20)])
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            raise PeerGone(f"channel closed while writing: {error}") from error
        del self._backlog[:sent]


class FrameReader:
    """Cuts a byte stream into messages and checks the numbers of each family."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._bytes = bytearray()
        self._numbers = {CONTROL: 0, REPORTS: 0, DATA: 0}

    def read(self) -> list[tuple[int, Any]]:
        """(number, message) of everything that has arrived; [] when nothing did. Raises PeerGone at end of file, ChannelError."""
        while True:
            try:
                chunk = self._sock.recv(_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                return []
            except OSError as error:
                raise PeerGone(f"channel closed while reading: {error}") from error
            if not chunk:
                raise PeerGone("channel closed by the other side")
            self._bytes += chunk
            messages = self._cut()
            if messages:
                return messages

    def _cut(self) -> list[tuple[int, Any]]:
        messages: list[tuple[int, Any]] = []
        start, end = 0, len(self._bytes)
        with memoryview(self._bytes) as view:
            while end - start >= HEADER.size:
                length, family, kind, _, number = HEADER.unpack_from(view, start)
                if length > MAX_FRAME_BYTES or family not in self._numbers:
                    raise ChannelError(f"not a frame: length {length}, family {family}")
                if end - start < HEADER.size + length:
                    break
                if number != self._numbers[family] + 1:
                    raise ChannelError(f"frame {number} of family {family} after {self._numbers[family]}: frames were lost")
                self._numbers[family] = number
                messages.append((number, decode(kind, bytes(view[start + HEADER.size : start + HEADER.size + length]))))
                start += HEADER.size + length
        del self._bytes[:start]
        return messages


class EngineSide:
    """The engine's end: everything returns at once but `wait`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = FrameReader(sock)
        self._writer = FrameWriter(sock)
        self._poll = select.poll()
        self._paused_since: float | None = None

    def send(self, *messages: object) -> None:
        self._writer.send(*messages)

    def drain(self) -> list[tuple[int, Any]]:
        """All complete messages that have arrived. Raises PeerGone."""
        messages: list[tuple[int, Any]] = []
        while True:
            more = self._reader.read()
            if not more:
                break
            messages += more
        if self._writer.queued_bytes:
            self._writer.flush()
        return messages

    def paused(self) -> bool:
        """True while the front is so far behind that composing must wait. Raises PeerGone after PAUSE_LIMIT_S of it."""
        if self._writer.queued_bytes <= MAX_QUEUED_BYTES:
            self._paused_since = None
            return False
        now_s = time.monotonic()
        if self._paused_since is None:
            self._paused_since = now_s
        if now_s - self._paused_since > PAUSE_LIMIT_S:
            raise PeerGone(f"the front has not read for {PAUSE_LIMIT_S:.0f} s with {self._writer.queued_bytes} bytes waiting")
        return True

    def wait(self, timeout_s: float | None) -> None:
        """Sleeps until bytes arrive (or can leave, if some wait) or the time is over. None = for ever."""
        events = select.POLLIN | (select.POLLOUT if self._writer.queued_bytes else 0)
        self._poll.register(self._sock, events)
        self._poll.poll(None if timeout_s is None else max(0, round(timeout_s * 1e3)))

    def close(self) -> None:
        self._sock.close()


class FrontSide:
    """The front's end, driven by the running event loop. `on_message(number, message)`; `on_gone(why)` is called once."""

    def __init__(
        self, sock: socket.socket, loop: asyncio.AbstractEventLoop, on_message: Callable[[int, Any], None], on_gone: Callable[[str], None]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._reader = FrameReader(sock)
        self._writer = FrameWriter(sock)
        self._on_message = on_message
        self._on_gone = on_gone
        self._open = True
        self._writing = False
        loop.add_reader(sock, self.read_now)

    @property
    def busy(self) -> bool:
        """More than MAX_QUEUED_BYTES wait to be read by the engine."""
        return self._writer.queued_bytes > MAX_QUEUED_BYTES

    @property
    def queued_bytes(self) -> int:
        return self._writer.queued_bytes

    def send(self, *messages: object) -> None:
        """Never blocks, never raises for a dead engine: `on_gone` tells."""
        if not self._open:
            return
        try:
            self._writer.send(*messages)
        except PeerGone as error:
            self._loop.call_soon(self._gone, str(error))
            return
        if self._writer.queued_bytes and not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock, self._writable)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()

    def read_now(self) -> None:
        """Takes what has arrived; the loop calls it, and who has seen the other process end, for its last words."""
        try:
            for number, message in self._reader.read():
                self._on_message(number, message)
                if not self._open:
                    return
        except ChannelError as error:
            self._gone(str(error))

    def _writable(self) -> None:
        try:
            self._writer.flush()
        except PeerGone as error:
            self._gone(str(error))
            return
        if not self._writer.queued_bytes and self._open:
            self._writing = False
            self._loop.remove_writer(self._sock)

    def _gone(self, why: str) -> None:
        if self._open:
            self.close()
            self._on_gone(why)
