"""The files of a journal: segments, oldest first, written at the end and dropped at the front.

It holds the order of writes and syncs that a crash may interrupt anywhere; waiting, batches and threads are core.journal's.
"""

import os
import secrets
import threading

from headway.core.disk import Disk
from headway.core.segment import HEADER_BYTES, Segment, add_frame, header, read_segment, refuse_hole, segment_name, segment_names

Numbered = tuple[int, bytes, bool]
"""A record with its number, and whether it begins a segment."""


class SegmentFiles:
    """Opening reads and syncs what is there and never changes an old segment. Methods may be called from any thread.

    `written_seq`, `durable_seq`: everything up to here was handed to the system, and survives a crash. Raises JournalCorrupt (a hole or bit
    rot that no crash explains) on opening, OSError everywhere; after one from `write` nothing more may be written.
    """

    def __init__(self, directory: str, max_record_bytes: int, disk: Disk) -> None:
        self.directory = directory
        self._disk = disk
        self._lock = threading.Lock()  # segment list and file operations
        self._fd = -1
        self._salt = 0
        self._stale: str | None = None  # a last segment without a good frame, in the way of the next one
        self._segments: list[tuple[int, int]] = []  # (first_seq, bytes), oldest first
        self.written_seq = self.durable_seq = self._recover(max_record_bytes)

    def _recover(self, max_record_bytes: int) -> int:
        """Returns the newest number on the medium."""
        names = segment_names(self.directory)
        last: Segment | None = None
        for index, name in enumerate(names):
            is_last = index == len(names) - 1
            raw = self._disk.read(self._path(name), fresh=is_last)
            segment = read_segment(name, raw, max_record_bytes)
            refuse_hole(last, segment, is_last)
            if segment.frames:
                self._segments.append((segment.first_seq, len(raw)))
                last = segment
            else:
                self._stale = name
                if last is None:  # all older ones were dropped: keep counting from the name
                    last = segment
        if self._segments:
            # The records may so far only be in the page cache of a killed writer. They must be on the medium before anybody sees them
            # or a later segment makes them the middle of the log; older segments were synced before their successor began.
            self._disk.sync_path(self._path(segment_name(self._segments[-1][0])))
            self._disk.sync_path(self.directory)
        return last.last_seq if last is not None else 0

    def _path(self, name: str) -> str:
        return f"{self.directory}{os.sep}{name}"

    @property
    def oldest_seq(self) -> int | None:
        """The oldest record kept; None when there is none."""
        with self._lock:
            return self._segments[0][0] if self._segments else None

    @property
    def size_bytes(self) -> int:
        with self._lock:
            return sum(size for _, size in self._segments)

    # ---- writing -------------------------------------------------------------------------------------------------------
    def write(self, batch: list[Numbered], *, sync: bool) -> None:
        """Appends the batch, in order; with `sync` it and all before it are durable afterwards."""
        with self._lock:
            buffer = bytearray()
            for seq, record, begins in batch:
                if begins:
                    self._flush(buffer, seq - 1)
                    self._begin_segment(seq)
                add_frame(buffer, self._salt, seq, self.durable_seq, record)
            if batch:
                self._flush(buffer, batch[-1][0])
            if sync:
                self._sync()

    def _sync(self) -> None:
        if self.written_seq > self.durable_seq:
            self._disk.datasync(self._fd)
            self.durable_seq = self.written_seq

    def _flush(self, buffer: bytearray, last_seq: int) -> None:
        if buffer:
            self._disk.write_all(self._fd, buffer)
            first_seq, size = self._segments[-1]
            self._segments[-1] = (first_seq, size + len(buffer))
            self.written_seq = last_seq
            buffer.clear()

    def _begin_segment(self, first_seq: int) -> None:
        if self._fd >= 0:
            # Before the first byte of the new segment: otherwise a crash could keep the new one and lose the old one's tail, a hole.
            self._sync()
            self._disk.close(self._fd)
            self._fd = -1
        if self._stale is not None:
            self._disk.unlink(self._path(self._stale))
            self._disk.sync_path(self.directory)
            self._stale = None
        self._salt = secrets.randbits(64)
        self._fd = self._disk.create(self._path(segment_name(first_seq)))
        self._segments.append((first_seq, HEADER_BYTES))
        self._disk.write_all(self._fd, header(first_seq, self._salt))
        self._disk.sync_path(self.directory)

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                self._disk.close(self._fd)
                self._fd = -1

    # ---- dropping ------------------------------------------------------------------------------------------------------
    def drop_before(self, seq: int) -> int:
        """Unlinks segments that hold only records below `seq`, oldest first, and says how many; never the newest with a durable record."""
        dropped = 0
        with self._lock:
            while len(self._segments) > 1 and self._segments[1][0] <= min(seq, self.durable_seq):
                self._drop_oldest()
                dropped += 1
        return dropped

    def drop_to(self, limit_bytes: int) -> None:
        """Unlinks oldest segments until at most `limit_bytes` are left, as far as `drop_before` may."""
        with self._lock:
            while (
                len(self._segments) > 1
                and sum(size for _, size in self._segments) > limit_bytes
                and self._segments[1][0] <= self.durable_seq
            ):
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._disk.unlink(self._path(segment_name(self._segments[0][0])))
        # One by one: two unsynced unlinks could survive in the wrong order and leave a hole.
        self._disk.sync_path(self.directory)
        del self._segments[0]
