"""The bytes of one journal segment: how they are written and what a reader may conclude from damaged ones.

Segment `%016x.wal` (hex of its first sequence number): 32-byte header `magic, version u16, flags u16, first_seq u64, salt u64, CRC32, 0`,
then frames `length u32, CRC32 u32, seq u64, durable_seq u64, payload, zeros to 8 bytes`; the CRC covers salt, seq, durable_seq, payload.
The random salt tells frames of this segment from stale ones in reused blocks; `durable_seq`, the highest sequence number known durable
when the frame was written, tells bit rot (a later frame vouches for the damaged one) from a torn tail. The salt is an idea of
SQLite's write-ahead log (sqlite.org/fileformat2.html, section 4).
"""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headway.core.disk import DISK
from headway.core.errors import JournalCorrupt

MAGIC = b"HWJ1"
VERSION = 1
HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24

_HEADER = struct.Struct("<4sHHQQ")
_HEADER_CHECK = struct.Struct("<II")
_FRAME = struct.Struct("<IIQQ")
_VOUCHER = struct.Struct("<QQQ")
_NAME = re.compile(r"^([0-9a-f]{16})\.wal$")


def segment_name(first_seq: int) -> str:
    """File name of the segment whose first record is `first_seq`."""
    return f"{first_seq:016x}.wal"


def first_seq_of(name: str) -> int | None:
    """First sequence number a file name stands for; None for other files."""
    match = _NAME.match(name)
    return int(match[1], 16) if match else None


def header(first_seq: int, salt: int) -> bytes:
    """The 32 bytes a segment begins with."""
    body = _HEADER.pack(MAGIC, VERSION, 0, first_seq, salt)
    return body + _HEADER_CHECK.pack(zlib.crc32(body), 0)


def frame_bytes(payload_bytes: int) -> int:
    """Bytes a record of `payload_bytes` takes in a segment."""
    return FRAME_HEADER_BYTES + (payload_bytes + 7 & ~7)


def add_frame(buffer: bytearray, salt: int, seq: int, durable_seq: int, payload: bytes) -> None:
    """Appends one frame to `buffer`."""
    crc = zlib.crc32(payload, zlib.crc32(_VOUCHER.pack(salt, seq, durable_seq)))
    buffer += _FRAME.pack(len(payload), crc, seq, durable_seq)
    buffer += payload
    buffer += bytes(-len(payload) & 7)


@dataclass(slots=True)
class Segment:
    """What a segment file holds: the good frames as (seq, start, end) of their payloads in `data`. No header: `salt` is None."""

    name: str
    first_seq: int
    salt: int | None
    data: memoryview
    frames: list[tuple[int, int, int]]

    @property
    def last_seq(self) -> int:
        """`first_seq - 1` when there is no good frame."""
        return self.first_seq + len(self.frames) - 1


def _salt_of(data: memoryview, first_seq: int) -> int | None:
    if len(data) < HEADER_BYTES:
        return None
    magic, version, _, written_seq, salt = _HEADER.unpack_from(data)
    crc, _ = _HEADER_CHECK.unpack_from(data, _HEADER.size)
    if magic != MAGIC or crc != zlib.crc32(data[: _HEADER.size]) or written_seq != first_seq:
        return None
    if version != VERSION:
        raise JournalCorrupt(
            f"journal segment {first_seq} has format version {version}, this program reads {VERSION}; use the program that wrote it"
        )
    return int(salt)


def _good_frame(data: memoryview, offset: int, salt: int, max_record_bytes: int) -> tuple[int, int, int] | None:
    """(length, seq, durable_seq) of a whole frame at `offset` whose CRC holds."""
    if offset + FRAME_HEADER_BYTES > len(data):
        return None
    length, crc, seq, durable_seq = _FRAME.unpack_from(data, offset)
    start = offset + FRAME_HEADER_BYTES
    if not 0 < length <= max_record_bytes or start + length > len(data) or durable_seq >= seq:
        return None
    if crc != zlib.crc32(data[start : start + length], zlib.crc32(_VOUCHER.pack(salt, seq, durable_seq))):
        return None
    return length, seq, durable_seq


def read_segment(name: str, raw: bytes, max_record_bytes: int) -> Segment:
    """The good frames of a segment, up to the first bad one. Raises JournalCorrupt when damage is not what a crash leaves."""
    first_seq = first_seq_of(name)
    if first_seq is None:
        raise JournalCorrupt(f"{name!r} is no journal segment; move it elsewhere")
    data = memoryview(raw)
    salt = _salt_of(data, first_seq)
    if salt is None:
        _refuse_rotten_header(name, data, first_seq, max_record_bytes)
        return Segment(name, first_seq, None, data, [])
    frames: list[tuple[int, int, int]] = []
    offset, expected = HEADER_BYTES, first_seq
    while True:
        found = _good_frame(data, offset, salt, max_record_bytes)
        if found is None or found[1] != expected:
            break
        start = offset + FRAME_HEADER_BYTES
        frames.append((expected, start, start + found[0]))
        offset += frame_bytes(found[0])
        expected += 1
    _refuse_vouched(name, data, offset, salt, expected, max_record_bytes)
    return Segment(name, first_seq, salt, data, frames)


def _refuse_vouched(name: str, data: memoryview, offset: int, salt: int, missing: int, max_record_bytes: int) -> None:
    """Raises when a valid frame behind `offset` says that the bad one was durable: then it was damaged later, not torn."""
    end = len(data) & ~7
    if end - offset < FRAME_HEADER_BYTES:
        return
    highest = missing + (end - offset) // frame_bytes(1)
    # Frames lie on 8-byte steps; looking at the durable_seq word first makes the scan one comparison a step.
    for index, durable_seq in enumerate(data[offset + 16 : end].cast("Q")):
        if missing <= durable_seq <= highest:
            found = _good_frame(data, offset + 8 * index, salt, max_record_bytes)
            if found is not None and found[1] > missing:
                raise JournalCorrupt(
                    f"journal segment {name}: record {missing} at byte {offset} is damaged, and record {found[1]} says that it "
                    "was safe on disk: the medium lost it; restore the file from a backup, or move the directory away to start anew"
                )


def _refuse_rotten_header(name: str, data: memoryview, first_seq: int, max_record_bytes: int) -> None:
    """Raises when only the header is damaged. A header is synced with the first frames, so a crash cannot spoil it alone.

    Looks for a salt under which the first frame is good: the one in place, or the one that a single flipped bit of the header hides.
    """
    if len(data) < HEADER_BYTES + FRAME_HEADER_BYTES:
        return
    salts = {int(_HEADER.unpack_from(data)[4])}
    for bit in range(8 * _HEADER.size):
        fixed = bytearray(data[:HEADER_BYTES])
        fixed[bit >> 3] ^= 1 << (bit & 7)
        if zlib.crc32(fixed[: _HEADER.size]) == _HEADER_CHECK.unpack_from(data, _HEADER.size)[0]:
            salts.add(int(_HEADER.unpack_from(fixed)[4]))
    for salt in salts:
        found = _good_frame(data, HEADER_BYTES, salt, max_record_bytes)
        if found is not None and found[1] == first_seq:
            raise JournalCorrupt(
                f"journal segment {name}: its header is damaged but its records are not; restore the file from a backup, "
                "or move the directory away to start anew"
            )


def segment_names(directory: str) -> list[str]:
    """Segment files of a directory, oldest first."""
    return sorted(name for name in os.listdir(directory) if first_seq_of(name) is not None)  # noqa: PTH208


def refuse_hole(before: Segment | None, segment: Segment, is_last: bool) -> None:
    """Only the first segment may start above 1, each other one right behind its predecessor; only the last may be empty."""
    if before is not None and segment.first_seq != before.last_seq + 1:
        raise JournalCorrupt(
            f"journal segment {before.name} ends with record {before.last_seq}, but the next one, {segment.name}, begins with "
            f"{segment.first_seq}: records are missing between them; "
            "restore the files from a backup, or move the directory away to start anew"
        )
    if not segment.frames and not is_last:
        raise JournalCorrupt(f"journal segment {segment.name} holds no record but has a successor; restore the file from a backup")


def read_records(directory: str | Path, *, after: int = 0, max_record_bytes: int = 64 << 20) -> Iterator[tuple[int, bytes]]:
    """(seq, record) of a journal's directory, oldest first, without locking or changing it (`headway replay`).

    Segments that end at or before `after` are not read. Segments dropped while this runs are skipped if nothing was yielded yet.
    Raises JournalCorrupt, also for a hole.
    """
    names = segment_names(str(directory))
    starts = [first_seq_of(name) or 0 for name in names]
    before: Segment | None = None
    for index, name in enumerate(names):
        if index + 1 < len(names) and starts[index + 1] <= after + 1:
            continue
        try:
            raw = DISK.read(f"{directory}{os.sep}{name}")
        except FileNotFoundError:
            if before is None:
                continue
            raise JournalCorrupt(f"journal segment {name} vanished while it was read; read again") from None
        segment = read_segment(name, raw, max_record_bytes)
        refuse_hole(before, segment, index == len(names) - 1)
        before = segment
        for seq, start, end in segment.frames:
            if seq > after:
                yield seq, bytes(segment.data[start:end])
