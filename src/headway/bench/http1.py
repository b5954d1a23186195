"""An incremental reader of one HTTP/1.1 response with server-sent events. Bytes in with their stamp, stamped events out; no I/O.

It does no JSON: parsing waits until the stream is over, so that no stamp waits for it.
"""

from dataclasses import dataclass, field

_MAX_HEAD_BYTES = 64 << 10


class BadResponse(Exception):
    """The peer does not speak HTTP/1.1."""


@dataclass(slots=True)
class ResponseReader:
    """`feed` every socket read. `events` holds (stamp of the read that completed it, payload) for each SSE event."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    headers_ns: int = 0
    events: list[tuple[int, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False
    _pending: bytearray = field(default_factory=bytearray)
    _sse: bytearray = field(default_factory=bytearray)
    _chunked: bool = False
    _chunk_left: int = 0
    _trailers: bool = False
    _length_left: int = -1
    _is_stream: bool = False

    def feed(self, stamp_ns: int, data: bytes) -> None:
        """Takes one read. Raises BadResponse."""
        self._pending += data
        if not self.headers_ns and not self._read_head(stamp_ns):
            return
        if self._chunked:
            self._read_chunks(stamp_ns)
            return
        piece = bytes(self._pending)
        self._pending.clear()
        if self._length_left >= 0:
            piece = piece[: self._length_left]
            self._length_left -= len(piece)
        self._payload(stamp_ns, piece)
        if self._length_left == 0:
            self.complete = True

    def end_of_file(self) -> None:
        """The peer closed. Without a declared length that is the end of the body; otherwise the response is cut."""
        if self.headers_ns and not self._chunked and self._length_left < 0:
            self.complete = True

    def _read_head(self, stamp_ns: int) -> bool:
        end = self._pending.find(b"\r\n\r\n")
        if end < 0:
            if len(self._pending) > _MAX_HEAD_BYTES:
                raise BadResponse(f"no end of the headers in {len(self._pending)} bytes")
            return False
        lines = bytes(self._pending[:end]).decode("latin-1").split("\r\n")
        del self._pending[: end + 4]
        parts = lines[0].split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise BadResponse(f"not an HTTP/1.1 status line: {lines[0][:80]!r}")
        if 100 <= int(parts[1]) < 200:
            return self._read_head(stamp_ns)
        self.status = int(parts[1])
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self.headers_ns = stamp_ns
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length", "")
        if not self._chunked and length.isdigit():
            self._length_left = int(length)
        self._is_stream = self.headers.get("content-type", "").startswith("text/event-stream")
        return True

    def _read_chunks(self, stamp_ns: int) -> None:
        while not self.complete:
            if self._chunk_left > 0:
                piece = bytes(self._pending[: self._chunk_left])
                if not piece:
                    return
                del self._pending[: len(piece)]
                self._chunk_left -= len(piece)
                # A chunk's payload ends with CRLF, counted in _chunk_left.
                keep = len(piece) - max(0, 2 - self._chunk_left)
                if keep > 0:
                    self._payload(stamp_ns, piece[:keep])
                continue
            end = self._pending.find(b"\r\n")
            if end < 0:
                return
            line = bytes(self._pending[:end])
            del self._pending[: end + 2]
            if self._trailers:
                self.complete = not line
                continue
            try:
                size = int(line.split(b";", 1)[0], 16)
            except ValueError as error:
                raise BadResponse(f"not a chunk size: {line[:40]!r}") from error
            if size == 0:
                self._trailers = True
            else:
                self._chunk_left = size + 2

    def _payload(self, stamp_ns: int, piece: bytes) -> None:
        if not self._is_stream:
            self.body += piece
            return
        self._sse += piece.replace(b"\r\n", b"\n") if b"\r" in piece else piece
        while (end := self._sse.find(b"\n\n")) >= 0:
            block = bytes(self._sse[:end])
            del self._sse[: end + 2]
            data = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
            if data:  # comments (": keep-alive") carry none
                self.events.append((stamp_ns, b"\n".join(data)))
