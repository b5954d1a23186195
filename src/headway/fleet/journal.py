"""The router's journal: one writer thread, group commit, snapshots, and what a crash left open.

The event loop only hands over bytes; the thread appends and syncs. After a failed sync nothing is acknowledged any more: `failure` says why.
"""

import asyncio
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from headway.core.durable import Journal, WriterLock, make_dirs, publish
from headway.core.errors import HeadwayError
from headway.fleet.journal_records import (
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
"""DESIGN.md 3.5. Whole files of FILE_BYTES are dropped, so the kept snapshots span a little less."""
FILE_BYTES = 16 << 20
SNAPSHOT_BYTES = 8 << 20
"""A segment of the replay: half a file, so that dropping the oldest file always leaves a snapshot."""
IDLE_FLUSH_S = 1.0
"""Records nobody waits for (reports, ticks) reach the disk this often."""
_IDLE_FLUSH_BYTES = 1 << 18
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
    """What a scan of an existing journal says: requests left open, the next free id, where its snapshots are."""

    def __init__(self, records: Iterable[tuple[int, bytes]]) -> None:
        self.open_ids: dict[int, None] = {}
        self.next_id = 1
        self.snapshots: list[tuple[int, int]] = []
        """(sequence number, bytes of records before it)"""
        self.total_bytes = 0
        for seq, payload in records:
            self._take(seq, payload)
            self.total_bytes += len(payload)

    def _take(self, seq: int, payload: bytes) -> None:
        if payload[:1] == b"\x03":
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
            self.snapshots.append((seq, self.total_bytes))
            self.next_id = max(self.next_id, record.next_id)
            self.open_ids = self.open_ids if record.first else dict.fromkeys(record.open_ids)


class RouterJournal:
    """Append from the event loop, `await committed(position)` where something is promised. Everything is in one order."""

    def __init__(self, directory: Path, policy: str, seed: int) -> None:
        """Locks `directory`, opens its journal and writes FAILED records for what was open. Raises Locked, JournalCorrupt, OSError."""
        make_dirs(directory)
        self.directory = directory
        self._lock = WriterLock(directory)
        self.hashed = KeyedHash(hash_key(directory))
        self._journal = Journal(directory / "journal", segment_bytes=FILE_BYTES)
        self._policy, self._seed = policy, seed
        recovery = Recovery(self._journal.records())
        self.next_id = recovery.next_id
        self.recovered = tuple(recovery.open_ids)
        self._snapshots = recovery.snapshots
        self._total_bytes = self._written_bytes = recovery.total_bytes
        self._last_snapshot_bytes = self._total_bytes
        self.open_ids: dict[int, None] = {}
        self.failure = ""
        self._changed = threading.Condition()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.on_failure: Callable[[str], None] | None = None
        self._thread = threading.Thread(target=self._write, name="headway-journal", daemon=True)
        for id in self.recovered:
            self._append(pack(Finish(id, 0, "failed", "server_died")))

    def start(self, loop: asyncio.AbstractEventLoop, state: Any) -> None:
        """Writes the first snapshot and starts the writer."""
        self._loop = loop
        self._append(self._snapshot(state, first=True))
        self._thread.start()

    # ---- called on the event loop ------------------------------------------------------------------------------------------
    def event(self, record: EventRecord) -> None:
        self._append(pack(record))

    def view(self, record: ViewRecord) -> None:
        self._append(pack(record))

    def arrived(self, id: int) -> None:
        self.open_ids[id] = None
        self.next_id = max(self.next_id, id + 1)

    def ended(self, id: int) -> None:
        """Shed: the command in the event's record says so."""
        self.open_ids.pop(id, None)

    def finish(self, record: Finish) -> None:
        self.open_ids.pop(record.id, None)
        self._append(pack(record))

    def segment_due(self) -> bool:
        return self._total_bytes - self._last_snapshot_bytes > SNAPSHOT_BYTES

    def snapshot(self, state: Any) -> None:
        """Opens a segment with the router's state as of now."""
        self._append(self._snapshot(state, first=False))

    def committed(self) -> asyncio.Future[None]:
        """Done when everything handed over so far is on disk; fails with JournalUnavailable."""
        assert self._loop is not None, "start() first"
        future = self._loop.create_future()
        with self._changed:
            if self.failure:
                future.set_exception(self.unavailable())
                future.exception()  # somebody may not wait for it
            else:
                self._waiters.append(future)
                self._changed.notify()
        return future

    def unavailable(self) -> JournalUnavailable:
        return JournalUnavailable(
            f"the journal in {self.directory} cannot be written: {self.failure}; free the disk and restart, or use --journal off"
        )

    def close(self) -> None:
        """Writes and syncs what is left. The failure, if any, stays in `failure`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._journal.close()
        self._lock.close()

    # ---- inside --------------------------------------------------------------------------------------------------------------
    def _snapshot(self, state: Any, *, first: bool) -> bytes:
        raw = msgspec.Raw(encode(state))
        open_ids = list(self.open_ids)
        record = Snapshot(SCHEMA, code_versions(), self._policy, self._seed, first, raw, open_ids, self.next_id, time.time())
        self._last_snapshot_bytes = self._total_bytes
        return pack(record)

    def _append(self, payload: bytes) -> None:
        with self._changed:
            if self.failure:
                return
            self._pending.append(payload)
            self._pending_bytes += len(payload)
            self._total_bytes += len(payload)
            if self._pending_bytes > _IDLE_FLUSH_BYTES:
                self._changed.notify()

    def _write(self) -> None:
        """The writer thread: takes everything that waits, appends it, syncs once, tells the waiters."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiters or self._closing or self._pending_bytes > _IDLE_FLUSH_BYTES, IDLE_FLUSH_S)
                pending, self._pending, self._pending_bytes = self._pending, [], 0
                waiters, self._waiters = self._waiters, []
                closing = self._closing
            try:
                self._append_and_sync(pending)
                self._resolve(waiters, None)
            except (OSError, HeadwayError) as error:
                with self._changed:
                    self.failure = str(error) or type(error).__name__
                    waiters += self._waiters
                    self._waiters, self._pending = [], []
                self._resolve(waiters, self.unavailable())
                return
            if closing:
                return

    def _append_and_sync(self, pending: list[bytes]) -> None:
        if not pending:
            return
        written_bytes = self._written_bytes
        for payload in pending:
            seq = self._journal.append(payload)
            if payload[0] == 1:
                self._snapshots.append((seq, written_bytes))
            written_bytes += len(payload)
        self._written_bytes = written_bytes
        self._journal.commit(seq)
        self._drop_old(written_bytes)

    def _drop_old(self, written_bytes: int) -> None:
        kept = CAP_BYTES - 2 * FILE_BYTES
        drop = 0
        while drop + 1 < len(self._snapshots) and written_bytes - self._snapshots[drop][1] > kept:
            drop += 1
        if drop:
            del self._snapshots[:drop]
            self._journal.drop_before(self._snapshots[0][0])

    def _resolve(self, waiters: list[asyncio.Future[None]], error: JournalUnavailable | None) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(self._tell, waiters, error)
        except RuntimeError:  # the loop closed meanwhile: nobody waits any more
            return

    def _tell(self, waiters: list[asyncio.Future[None]], error: JournalUnavailable | None) -> None:
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
                waiter.exception()
        if error is not None and self.on_failure is not None:
            self.on_failure(self.failure)
