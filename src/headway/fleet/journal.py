"""The router's journal: snapshots, events, finishes, and what a crash left open (docs/fleet.md).

Files, numbering and group commit are `core.durable`'s. After a failed sync nothing is acknowledged any more and `failure` says why.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from headway.core.durable import DurabilityLost, Journal, WriterLock, make_dirs, publish
from headway.core.errors import CapacityError
from headway.fleet.journal_records import (
    RECORD_OF,
    SCHEMA,
    EventRecord,
    Finish,
    Snapshot,
    ViewRecord,
    code_versions,
    encode,
    pack,
    read_commands,
    unpack,
)
from headway.fleet.ticket import JournalUnavailable
from headway.scheduling.messages import Shed

CAP_BYTES = 256 << 20
"""Oldest segments are dropped beyond it."""
SEGMENT_BYTES = 8 << 20
"""A segment opens with a snapshot; a file holds one, so that what is kept always starts with one."""
REMEDY = "What runs finishes. Make room, then restart the server: what was acknowledged is kept. Or serve without a record: --journal off"
_ARRIVE_KIND = 1


class KeyedHash:
    """Names of tenants and users become 16 hex digits under a key that never leaves the server's directory."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        if not name:
            return ""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= 4096:  # a client may send any number of names
                self._known.clear()
            known = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), key=self._key, digest_size=8).hexdigest()
            self._known[name] = known
        return known


def hash_key(directory: Path) -> bytes:
    """The directory's key, made on first use (mode 0600)."""
    path = directory / "hash.key"
    if not path.exists():
        publish(path, secrets.token_bytes(32), mode=0o600)
    return path.read_bytes()


class Recovery:
    """What a scan of an existing journal says: the requests left open and the next free id."""

    def __init__(self, records: Iterable[tuple[int, bytes]]) -> None:
        self.open_ids: dict[int, None] = {}
        self.next_id = 1
        for _, payload in records:
            self._take(payload)

    def _take(self, payload: bytes) -> None:
        if payload[:1] == RECORD_OF[ViewRecord]:
            return
        record = unpack(payload)
        if isinstance(record, EventRecord):
            if record.kind == _ARRIVE_KIND:
                id = int(msgspec.msgpack.decode(record.event)["id"])
                self.open_ids[id] = None
                self.next_id = max(self.next_id, id + 1)
            if len(record.commands) > 1:
                for command in read_commands(record.commands):
                    if type(command) is Shed:
                        self.open_ids.pop(command.id, None)
        elif isinstance(record, Finish):
            self.open_ids.pop(record.id, None)
        elif isinstance(record, Snapshot):
            self.next_id = max(self.next_id, record.next_id)
            if not record.first:
                self.open_ids = dict.fromkeys(record.open_ids)


class RouterJournal:
    """Append from the event loop; await `committed()` where something is promised. Everything is in one order.

    Appending never waits and never raises: after a failure records are dropped, `failure` says why, and every wait fails.
    """

    def __init__(self, directory: Path, policy: str, seed: int) -> None:
        """Locks `directory`, opens its journal and writes FAILED records for what was open. Raises Locked, JournalCorrupt, OSError."""
        make_dirs(directory)
        self.directory = directory
        self._lock = WriterLock(directory)
        self._policy, self._seed = policy, seed
        self._segment_bytes = 0
        self._last_seq = 0
        self.open_ids: dict[int, None] = {}
        self.failure = ""
        try:
            self.hashed = KeyedHash(hash_key(directory))
            self._journal = Journal(directory / "journal", segment_bytes=2 * SEGMENT_BYTES, cap_bytes=CAP_BYTES)
            recovery = Recovery(self._journal.records())
        except BaseException:
            self._lock.close()
            raise
        self.next_id = recovery.next_id
        self.recovered = tuple(recovery.open_ids)

    def start(self, state: Any) -> None:
        """Opens the first segment of this server's life and closes the books of the one before."""
        self._snapshot(state, first=True)
        for id in self.recovered:
            self.finish(Finish(id, 0, "failed", "server_died"))

    def arrived(self, id: int) -> None:
        self.open_ids[id] = None
        self.next_id = max(self.next_id, id + 1)

    def ended(self, id: int) -> None:
        """Shed: the command in the event's record says so."""
        self.open_ids.pop(id, None)

    def event(self, record: EventRecord) -> None:
        self._append(pack(record))

    def view(self, record: ViewRecord) -> None:
        self._append(pack(record))

    def finish(self, record: Finish) -> None:
        self.open_ids.pop(record.id, None)
        self._append(pack(record))

    def segment_due(self) -> bool:
        return self._segment_bytes > SEGMENT_BYTES and not self.failure

    def open_segment(self, state: Any) -> None:
        """Begins a new file with the router's state as of now, before its next event."""
        self._snapshot(state, first=False)

    def committed(self) -> Awaitable[None]:
        """Done when everything handed over so far is on disk; raises DurabilityLost."""
        future = asyncio.ensure_future(self._journal.commit_async(self._last_seq))
        future.add_done_callback(self._settled)
        return future

    def flush(self) -> None:
        """Sends what nobody waits for (reports, ticks) to the disk."""
        if not self.failure and self._journal.durable_seq < self._last_seq:
            self.committed()

    def unavailable(self) -> JournalUnavailable:
        return JournalUnavailable(f"no new requests: {self.failure}")

    def close(self) -> None:
        """Writes and syncs what is left (blocks). A failure stays in `failure`."""
        try:
            self._journal.close()
        except DurabilityLost as error:
            self._fail(error)
        finally:
            self._lock.close()

    def _settled(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        # Final for this process (core.journal): only opening the files anew tells what is on the medium.
        self.failure = self.failure or f"{str(error) or type(error).__name__}. {REMEDY}"

    def _snapshot(self, state: Any, *, first: bool) -> None:
        raw = msgspec.Raw(encode(state))
        record = Snapshot(SCHEMA, code_versions(), self._policy, self._seed, first, raw, list(self.open_ids), self.next_id, time.time())
        self._segment_bytes = 0
        if not self.failure:
            try:
                self._journal.rotate()
            except DurabilityLost as error:
                self._fail(error)
        self._append(pack(record))

    def _append(self, payload: bytes) -> None:
        if self.failure:
            return
        try:
            self._last_seq = self._journal.append(payload)
        except (DurabilityLost, CapacityError) as error:
            self._fail(error)
            return
        self._segment_bytes += len(payload)
