"""An append-only log of records that survive a crash once acknowledged, with group commit for threads and asyncio.

One background thread writes and syncs: while one fdatasync is in flight, everything that arrives joins the next batch.
`append` only numbers a record; `commit` (or `commit_async`) waits until it is on the medium. Group commit: DeWitt et al., SIGMOD 1984;
why a failed sync is final: Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from headway.core.disk import DISK, Disk
from headway.core.errors import CapacityError, DurabilityLost
from headway.core.journal_files import Numbered, SegmentFiles
from headway.core.publish import WriterLock
from headway.core.segment import HEADER_BYTES, frame_bytes, read_records
from headway.core.waiters import LoopWaiter, ThreadWaiter, release

# Records appended without a commit are written (not synced) once this much has gathered.
_WRITE_BYTES = 1 << 18


class Journal:
    """The journal in directory `dir`; one writer (locked). Records are bytes, numbered from 1 without gaps.

    Opening reads and syncs what is there and never changes an old segment. `opening()`, when given, makes the first record of every new
    segment (a snapshot, so that older segments may be dropped); it is called inside `append`, before that append's record is numbered.
    `cap_bytes` drops the oldest segments after each rotation. `max_pending_bytes` bounds what waits in memory for a slow disk.

    Raises Locked, JournalCorrupt (a hole or bit rot that no crash explains), OSError on opening. A failed write or sync is final: waiting
    and later commits raise DurabilityLost, and only a new Journal (which reads the medium again) can go on.
    """

    def __init__(
        self,
        dir: str | Path,
        *,
        segment_bytes: int = 16 << 20,
        max_record_bytes: int = 64 << 20,
        cap_bytes: int | None = None,
        max_pending_bytes: int = 64 << 20,
        opening: Callable[[], bytes] | None = None,
        disk: Disk = DISK,
    ) -> None:
        self.directory = str(Path(dir).absolute())
        self.segment_bytes = segment_bytes
        self.max_record_bytes = max_record_bytes
        self.cap_bytes = cap_bytes
        self.max_pending_bytes = max_pending_bytes
        self.opening = opening
        self._lock = threading.Lock()  # numbering, pending records, waiters
        self._wake = threading.Condition(self._lock)
        self._pending: list[Numbered] = []
        self._pending_bytes = 0
        self._waiters: list[ThreadWaiter | LoopWaiter] = []
        self._failure: str | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        self._fill_bytes = 0  # of the segment being numbered; 0 = the next append begins one
        self._writer_lock = WriterLock(self.directory, name="journal.lock")
        try:
            self._files = SegmentFiles(self.directory, max_record_bytes, disk)
        except BaseException:
            self._writer_lock.close()
            raise
        self._next_seq = self._files.durable_seq + 1

    # ---- state ---------------------------------------------------------------------------------------------------------
    @property
    def last_seq(self) -> int:
        """The newest number given out (0 = none)."""
        return self._next_seq - 1

    @property
    def durable_seq(self) -> int:
        """Everything up to here survives a crash."""
        return self._files.durable_seq

    @property
    def first_seq(self) -> int:
        """The oldest record kept (of an empty journal: the next one)."""
        return self._files.oldest_seq or self._next_seq

    @property
    def size_bytes(self) -> int:
        """Bytes in segment files."""
        return self._files.size_bytes

    @property
    def failure(self) -> str | None:
        """Why nothing can be acknowledged any more; None while all is well."""
        return self._failure

    # ---- appending -----------------------------------------------------------------------------------------------------
    def append(self, record: bytes) -> int:
        """Numbers a record and queues it; not durable before `commit`. Never waits for the disk.

        Raises CapacityError for an empty or oversized record or when `max_pending_bytes` wait for the disk, DurabilityLost after a failure.
        """
        with self._lock:
            self._check_open()
            self._check_size(record)
            size = frame_bytes(len(record))
            if self._fill_bytes and self._fill_bytes + size > self.segment_bytes:
                self._fill_bytes = 0
            if not self._fill_bytes:
                first = record
                if self.opening is not None:
                    first = self.opening()
                    self._check_size(first)
                    self._queue(first, begins=True)
                    self._queue(record, begins=False)
                else:
                    self._queue(record, begins=True)
            else:
                self._queue(record, begins=False)
            if self._pending_bytes >= _WRITE_BYTES:
                self._rouse()
            return self._next_seq - 1

    def _queue(self, record: bytes, *, begins: bool) -> None:
        self._pending.append((self._next_seq, record, begins))
        self._next_seq += 1
        size = frame_bytes(len(record))
        self._pending_bytes += size
        self._fill_bytes += size + (HEADER_BYTES if begins else 0)

    def _check_open(self) -> None:
        if self._failure is not None:
            raise DurabilityLost(self._failure)
        if self._closing:
            raise DurabilityLost(f"journal {self.directory} is closed; open it again")

    def _check_size(self, record: bytes) -> None:
        if not 0 < len(record) <= self.max_record_bytes:
            raise CapacityError(
                f"a journal record of {len(record)} bytes does not fit; records have 1 to {self.max_record_bytes} bytes",
                needed=len(record),
                capacity=self.max_record_bytes,
            )
        if self._pending_bytes and self._pending_bytes + frame_bytes(len(record)) > self.max_pending_bytes:
            raise CapacityError(
                f"journal {self.directory}: {self._pending_bytes} bytes wait for the disk, which does not keep up; try again later",
                needed=self._pending_bytes + frame_bytes(len(record)),
                capacity=self.max_pending_bytes,
            )

    def rotate(self) -> None:
        """Lets the next append begin a new segment."""
        with self._lock:
            self._check_open()
            self._fill_bytes = 0

    # ---- committing ----------------------------------------------------------------------------------------------------
    def commit(self, seq: int) -> None:
        """Blocks this thread until record `seq` and all before it are durable. Raises DurabilityLost."""
        with self._lock:
            if self._settled(seq):
                return
            waiter = ThreadWaiter(seq)
            self._waiters.append(waiter)
            self._rouse()
        waiter.wait()
        if waiter.failure is not None:
            raise DurabilityLost(waiter.failure)

    def append_commit(self, record: bytes) -> int:
        """`append`, then `commit`: when it returns, the record survives."""
        seq = self.append(record)
        self.commit(seq)
        return seq

    def commit_async(self, seq: int) -> Awaitable[None]:
        """A future of the running event loop, done when `seq` is durable; its exception is DurabilityLost. Never blocks the loop.

        Cancelling it only stops the waiting.
        """
        loop = asyncio.get_running_loop()
        waiter = LoopWaiter(seq, loop)
        with self._lock:
            try:
                settled = self._settled(seq)
            except DurabilityLost as problem:
                waiter.failure = str(problem)
                settled = True
            if not settled:
                self._waiters.append(waiter)
                self._rouse()
        if settled:
            waiter.release()
        return waiter.future

    async def append_commit_async(self, record: bytes) -> int:
        """`append`, then await `commit_async`."""
        seq = self.append(record)
        await self.commit_async(seq)
        return seq

    def _settled(self, seq: int) -> bool:
        if seq <= self.durable_seq:
            return True
        self._check_open()
        if seq >= self._next_seq:
            raise CapacityError(
                f"record {seq} was never appended; the newest is {self._next_seq - 1}", needed=seq, capacity=self._next_seq - 1
            )
        return False

    def _rouse(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()
        self._wake.notify()

    # ---- the writing thread ----------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._waiters or self._pending_bytes >= _WRITE_BYTES or self._closing):
                    self._wake.wait()
                if self._failure is not None or (
                    self._closing and not self._pending and not self._waiters and self._files.written_seq == self.durable_seq
                ):
                    return
                batch, self._pending, self._pending_bytes = self._pending, [], 0
                sync = bool(self._waiters) or self._closing
            try:
                self._files.write(batch, sync=sync)
            except BaseException as problem:  # a failure of any kind must reach the waiters, or they wait for ever
                self._fail(problem)
                return
            self._release_waiters()
            if self.cap_bytes is not None and any(begins for _, _, begins in batch):
                try:
                    self._files.drop_to(self.cap_bytes)
                except OSError as problem:
                    self._fail(problem)
                    return

    def _release_waiters(self) -> None:
        with self._lock:
            done = [waiter for waiter in self._waiters if waiter.seq <= self.durable_seq]
            self._waiters = [waiter for waiter in self._waiters if waiter.seq > self.durable_seq]
        release(done)

    def _fail(self, problem: BaseException) -> None:
        # Final: after a failed fsync the kernel marks the pages clean, and a second fsync would report success for lost data.
        with self._lock:
            self._failure = (
                f"journal {self.directory} cannot acknowledge records any more ({problem}); "
                f"nothing after record {self.durable_seq} is safe: make room or mend the disk, then open it again"
            )
            done, self._waiters = self._waiters, []
            self._pending, self._pending_bytes = [], 0
        for waiter in done:
            waiter.failure = self._failure
        release(done)

    # ---- reading and dropping --------------------------------------------------------------------------------------------
    def records(self, after: int = 0) -> Iterator[tuple[int, bytes]]:
        """(seq, record) of every kept record with seq > `after`, oldest first, up to the newest appended when called.

        Commits first, so that only durable records are handed out. Raises DurabilityLost, JournalCorrupt.
        """
        upto = self.last_seq
        self.commit(upto)
        return (item for item in read_records(self.directory, after=after, max_record_bytes=self.max_record_bytes) if item[0] <= upto)

    def drop_before(self, seq: int) -> int:
        """Unlinks segments that hold only records below `seq`, oldest first, and says how many.

        The newest segment with a durable record always stays: its name carries the count. Blocks for a directory sync each; raises OSError.
        """
        return self._files.drop_before(seq)

    def close(self) -> None:
        """Makes everything appended durable, stops the thread and lets go of the directory. Raises DurabilityLost if that failed."""
        with self._lock:
            already = self._closing
            self._closing = True
            if self._pending or self._files.written_seq > self.durable_seq:
                self._rouse()
            self._wake.notify()
            thread = self._thread
        if already:
            return
        if thread is not None:
            thread.join()
        self._files.close()
        self._writer_lock.close()
        if self._failure is not None:
            raise DurabilityLost(self._failure)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except DurabilityLost:
            if error is None:  # else the first error says more
                raise
