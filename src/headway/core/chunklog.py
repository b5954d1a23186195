"""A log for metrics: may lose the last seconds in a crash, never invents or repeats a point, always opens.

16-byte header (magic, salt u64, CRC32), then chunks `magic, length u32, CRC32 u32, payload`. The CRC covers the salt, the chunk's own
offset and the payload, so that neither stale blocks nor a chunk log stored inside a payload can pass for data.
"""

import contextlib
import os
import secrets
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from headway.core.disk import DISK, Disk
from headway.core.errors import CapacityError, DurabilityLost
from headway.core.publish import publish

_FILE_MAGIC = b"HWC1"
_CHUNK_MAGIC = b"\xf4CHK"
_HEADER = struct.Struct("<4sQI")
_CHUNK = struct.Struct("<4sII")
_PLACE = struct.Struct("<QQ")
MAX_CHUNK_BYTES = 64 << 20


def _header(salt: int) -> bytes:
    return _HEADER.pack(_FILE_MAGIC, salt, zlib.crc32(_FILE_MAGIC + salt.to_bytes(8, "little")))


def _salt_of(raw: bytes) -> int | None:
    if len(raw) < _HEADER.size:
        return None
    salt = int(_HEADER.unpack_from(raw)[1])
    return salt if raw[: _HEADER.size] == _header(salt) else None


def _crc(salt: int, offset: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_PLACE.pack(salt, offset)))


class ChunkLog:
    """Appends chunks to `path`; at most `sync_every_s` after an append (plus one sync) it is on the medium.

    A file whose header is damaged is moved aside to `NAME.damaged-RANDOM`. Raises OSError on opening, DurabilityLost once a write or sync
    has failed, CapacityError for a chunk that is empty or above 64 MiB.
    """

    def __init__(self, path: str | Path, *, sync_every_s: float = 1.0, disk: Disk = DISK) -> None:
        self.path = Path(path)
        self.sync_every_s = sync_every_s
        self._disk = disk
        self._failure: str | None = None
        self._lock = threading.Lock()
        self._dirty = threading.Event()
        self._closing = threading.Event()
        if self.path.exists():
            with self.path.open("rb") as file:
                salt = _salt_of(file.read(_HEADER.size))
            if salt is None:
                disk.rename(str(self.path), f"{self.path}.damaged-{secrets.token_hex(4)}")
        else:
            salt = None
        if salt is None:
            salt = secrets.randbits(64)
            publish(self.path, _header(salt), disk=disk)  # a header that is there is whole
        self._salt = salt
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._offset = os.fstat(self._fd).st_size
        self._thread = threading.Thread(target=self._sync_loop, name="chunklog", daemon=True)
        self._thread.start()

    def append(self, payload: bytes) -> None:
        """Writes one chunk (into the page cache; synced later)."""
        if not 0 < len(payload) <= MAX_CHUNK_BYTES:
            raise CapacityError(
                f"a chunk of {len(payload)} bytes does not fit; use 1 to {MAX_CHUNK_BYTES}", needed=len(payload), capacity=MAX_CHUNK_BYTES
            )
        with self._lock:
            if self._failure is not None or self._fd < 0:
                raise DurabilityLost(self._failure or f"{self.path} is closed; open it again")
            chunk = _CHUNK.pack(_CHUNK_MAGIC, len(payload), _crc(self._salt, self._offset, payload)) + payload
            try:
                self._disk.write_all(self._fd, chunk)
            except OSError as problem:
                raise self._failed(problem) from problem
            self._offset += len(chunk)
        self._dirty.set()

    def _failed(self, problem: OSError) -> DurabilityLost:
        self._failure = f"{self.path} cannot be written ({problem}); make room or mend the disk, then open it again"
        return DurabilityLost(self._failure)

    def _sync_loop(self) -> None:
        while True:
            self._dirty.wait()
            self._closing.wait(self.sync_every_s)
            self._dirty.clear()
            try:
                self._disk.datasync(self._fd)
            except OSError as problem:
                with self._lock:
                    self._failed(problem)
                return
            if self._closing.is_set():
                return

    def close(self) -> None:
        """Syncs and closes. Raises DurabilityLost if a write or sync failed."""
        if self._fd < 0:
            return
        self._closing.set()
        self._dirty.set()
        self._thread.join()
        with self._lock:
            os.close(self._fd)
            self._fd = -1
        if self._failure is not None:
            raise DurabilityLost(self._failure)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(DurabilityLost) if error is not None else contextlib.nullcontext():
            self.close()


def read_chunks(path: str | Path) -> Iterator[bytes]:
    """The whole chunks of a file in order. Damaged stretches (zeros, torn or rotten chunks) are skipped up to the next whole chunk."""
    raw = Path(path).read_bytes()
    salt = _salt_of(raw)
    if salt is None:
        return
    offset = _HEADER.size
    while (offset := raw.find(_CHUNK_MAGIC, offset)) >= 0 and offset + _CHUNK.size <= len(raw):
        _, length, crc = _CHUNK.unpack_from(raw, offset)
        start = offset + _CHUNK.size
        payload = raw[start : start + length]
        if 0 < length == len(payload) and length <= MAX_CHUNK_BYTES and crc == _crc(salt, offset, payload):
            yield payload
            offset = start + length
        else:
            offset += 1
