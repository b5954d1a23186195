"""Small stores with one planted bug each, and the same stores without it (bug kinds: specs/crashtest.md section 10, point 4).

Every recipe is a pair: `NAME` has the bug, `NAME-fixed` must stay clean under the same model.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from headway.crashtest.histories import acked_durable, old_or_new, prefix_of_history
from headway.crashtest.markers import ack, begin
from headway.crashtest.oracle import Verdict
from headway.crashtest.targets.target import Target, TargetCheck

BLOCK = 4096
_FRAME = struct.Struct("<III")  # number, length, CRC32
Store = Callable[[Path, bool], None]


def _open(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _create(path: Path, data: bytes, *, sync: bool = True) -> None:
    fd = _open(path, os.O_TRUNC)
    os.write(fd, data)
    if sync:
        os.fsync(fd)
    os.close(fd)


def _frame(number: int, size: int = 600) -> bytes:
    payload = bytes([number]) * size
    return _FRAME.pack(number, size, zlib.crc32(payload)) + payload


def _frames(raw: bytes, *, step: int = 0) -> list[int]:
    """Numbers of the whole frames from the start; `step` aligns each to a multiple."""
    found, at = [], 0
    while at + _FRAME.size <= len(raw):
        number, size, crc = _FRAME.unpack_from(raw, at)
        payload = raw[at + _FRAME.size : at + _FRAME.size + size]
        if size == 0 or len(payload) < size or zlib.crc32(payload) != crc:
            break
        found.append(number)
        at += step or _FRAME.size + size
    return found


# ---- one value, replaced as a whole --------------------------------------------------------------------------------------------
def _value(version: int) -> bytes:
    return str(version).encode() * 6000


def _value_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    file = directory / "value"
    if not file.exists():
        return old_or_new(None, acks, begun)
    raw = file.read_bytes()
    if len(raw) != 6000 or len(set(raw)) != 1:
        return "the value is partial"
    return old_or_new(raw[:1].decode(), acks, begun)


def _no_file_sync(directory: Path, fixed: bool) -> None:
    for version in range(1, 4):
        begin(str(version))
        _create(directory / "value.tmp", _value(version), sync=fixed)
        (directory / "value.tmp").rename(directory / "value")
        _sync_directory(directory)
        ack(str(version))


def _no_directory_sync(directory: Path, fixed: bool) -> None:
    for version in range(1, 4):
        begin(str(version))
        _create(directory / "value.tmp", _value(version))
        (directory / "value.tmp").rename(directory / "value")
        if fixed:
            _sync_directory(directory)
        ack(str(version))


def _rename_before_sync(directory: Path, fixed: bool) -> None:
    for version in range(1, 3):
        begin(str(version))
        fd = _open(directory / "value.tmp", os.O_TRUNC)
        os.write(fd, _value(version))
        if fixed:
            os.fsync(fd)
        (directory / "value.tmp").rename(directory / "value")
        if not fixed:
            os.fsync(fd)
        os.close(fd)
        _sync_directory(directory)
        ack(str(version))


def _sync_of_another_file(directory: Path, fixed: bool) -> None:
    """Opens the temporary file again for the sync, and by mistake the lock file."""
    _create(directory / "lock", b"pid", sync=False)
    for version in range(1, 3):
        begin(str(version))
        _create(directory / "value.tmp", _value(version), sync=False)
        fd = _open(directory / ("value.tmp" if fixed else "lock"))
        os.fsync(fd)
        os.close(fd)
        (directory / "value.tmp").rename(directory / "value")
        _sync_directory(directory)
        ack(str(version))


def _unlink_before_manifest(directory: Path, fixed: bool) -> None:
    for version in range(1, 4):
        begin(str(version))
        _create(directory / f"data-{version}", _value(version))
        if not fixed and version > 1:
            (directory / f"data-{version - 1}").unlink()
        _create(directory / "manifest.tmp", b"data-%d" % version)
        (directory / "manifest.tmp").rename(directory / "manifest")
        _sync_directory(directory)
        if fixed and version > 1:
            (directory / f"data-{version - 1}").unlink()
        ack(str(version))


def _manifest_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    manifest = directory / "manifest"
    if not manifest.exists():
        return old_or_new(None, acks, begun)
    named = directory / manifest.read_text()
    if not named.is_file():
        return "the manifest names a file that is missing"
    if named.read_bytes() != _value(int(named.name[5:])):
        return "the manifest names a file that is partial"
    return old_or_new(named.name[5:], acks, begun)


def _checksum_over_half(directory: Path, fixed: bool) -> None:
    """Two slots, written in turn; the checksum covers only the first block of a slot, so a torn slot looks whole."""
    fd = _open(directory / "slots")
    os.write(fd, bytes(4 * BLOCK))
    os.fsync(fd)
    _sync_directory(directory)
    for version in range(1, 4):
        begin(str(version))
        body = bytes([version]) * (2 * BLOCK - 8)
        covered = body if fixed else body[: BLOCK - 8]
        os.pwrite(fd, struct.pack("<II", version, zlib.crc32(covered)) + body, (version % 2) * 2 * BLOCK)
        os.fsync(fd)
        ack(str(version))
    os.close(fd)


def _slots_check(fixed: bool) -> TargetCheck:
    def check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
        file = directory / "slots"
        raw = file.read_bytes() if file.exists() else b""
        newest, content = 0, b""
        for slot in (raw[: 2 * BLOCK], raw[2 * BLOCK :]):
            if len(slot) == 2 * BLOCK:
                version, crc = struct.unpack_from("<II", slot)
                body = slot[8:]
                if version > newest and zlib.crc32(body if fixed else body[: BLOCK - 8]) == crc:
                    newest, content = version, body
        if newest and set(content) != {newest}:
            return "a slot with a good checksum holds torn data"
        return old_or_new(str(newest) if newest else None, acks, begun)

    return check


# ---- a list of records ---------------------------------------------------------------------------------------------------------
def _rotate_without_sync(directory: Path, fixed: bool) -> None:
    """Three records a segment, every second one synced and acknowledged."""
    fd = -1
    for number in range(1, 10):
        begin(str(number))
        if number % 3 == 1:
            if fd >= 0:
                if fixed:
                    os.fdatasync(fd)
                os.close(fd)
            fd = _open(directory / f"{number:04d}.log", os.O_APPEND)
            _sync_directory(directory)
        os.write(fd, _frame(number))
        if number % 2 == 0:
            os.fdatasync(fd)
            ack(str(number))
    os.close(fd)


def _recovery_not_synced(directory: Path, fixed: bool) -> None:
    """A process crash, a recovery that reads from the page cache and starts a new segment, then the power cut."""
    fd = _open(directory / "0001.log", os.O_APPEND)
    _sync_directory(directory)
    for number in range(1, 4):
        begin(str(number))
        os.write(fd, _frame(number))
    os.close(fd)  # killed here: nothing was synced, nothing acknowledged
    fd = os.open(directory / "0001.log", os.O_RDONLY)
    found = _frames(os.pread(fd, 1 << 20, 0))
    if fixed:
        os.fdatasync(fd)
    os.close(fd)
    fd = _open(directory / f"{len(found) + 1:04d}.log", os.O_APPEND)
    _sync_directory(directory)
    for number in range(len(found) + 1, len(found) + 3):
        begin(str(number))
        os.write(fd, _frame(number))
        os.fdatasync(fd)
        ack(str(number))
    os.close(fd)


def _log_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    found: list[int] = []
    for segment in sorted(directory.glob("*.log")):
        found += _frames(segment.read_bytes())
    return prefix_of_history(found, acks, begun)


def _no_odsync(directory: Path, fixed: bool) -> None:
    """Every write was meant to be durable by itself."""
    fd = _open(directory / "0001.log", os.O_APPEND | (os.O_DSYNC if fixed else 0))
    _sync_directory(directory)
    for number in range(1, 6):
        begin(str(number))
        os.write(fd, _frame(number))
        ack(str(number))
    os.close(fd)


def _ack_before_sync(directory: Path, fixed: bool) -> None:
    fd = _open(directory / "0001.log", os.O_APPEND)
    _sync_directory(directory)
    for number in range(1, 6):
        begin(str(number))
        os.write(fd, _frame(number))
        if not fixed:
            ack(str(number))
        os.fdatasync(fd)
        if fixed:
            ack(str(number))
    os.close(fd)


def _segment_without_salt(directory: Path, fixed: bool) -> None:
    """A log that starts over in the same blocks, a frame a block. With the bug a lost end marker lets old frames follow new ones."""
    generation_at = directory / "generation"
    fd = _open(directory / "ring")
    _sync_directory(directory)
    for generation in (1, 2):
        begin(f"{generation}.0")
        if fixed:
            _create(directory / "generation.tmp", str(generation).encode())
            (directory / "generation.tmp").rename(generation_at)
            _sync_directory(directory)
        for place in range(3 if generation == 1 else 2):
            begin(f"{generation}.{place}")
            number = generation * 16 + place
            os.pwrite(fd, _frame(number).ljust(BLOCK, b"\0"), place * BLOCK)
            os.pwrite(fd, bytes(BLOCK), (place + 1) * BLOCK)
            os.fdatasync(fd)
            ack(f"{generation}.{place}")
    os.close(fd)


def _ring_check(fixed: bool) -> TargetCheck:
    def check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
        file = directory / "ring"
        found = [(number >> 4, number & 15) for number in _frames(file.read_bytes() if file.exists() else b"", step=BLOCK)]
        if fixed:
            named = directory / "generation"
            current = int(named.read_text()) if named.exists() else 1
            found = [item for item in found if item[0] == current]
        if len({generation for generation, _ in found}) > 1:
            return "records of an older generation follow newer ones"
        newest = max((text.partition(".")[0] for text in acks), default="")
        wanted = [text for text in acks if text.startswith(f"{newest}.")]
        if found and str(found[0][0]) > newest:
            return None  # the next generation has begun
        if not found and newest and any(text.partition(".")[0] > newest for text in begun):
            return None
        return acked_durable((f"{generation}.{place}" for generation, place in found), wanted)

    return check


def _in_place_header(directory: Path, fixed: bool) -> None:
    """The count in block 0 says how many records follow; with the bug count and record are written together and synced once."""
    fd = _open(directory / "table")
    os.write(fd, bytes(BLOCK))
    os.fsync(fd)
    _sync_directory(directory)
    for number in range(1, 5):
        begin(str(number))
        os.pwrite(fd, bytes([number]) * BLOCK, number * BLOCK)
        if fixed:
            os.fdatasync(fd)
        os.pwrite(fd, struct.pack("<I", number), 0)
        os.fdatasync(fd)
        ack(str(number))
    os.close(fd)


def _index_before_data(directory: Path, fixed: bool) -> None:
    """Records in one file, their count in another; with the bug the data is synced only at the end."""
    data, index = _open(directory / "data", os.O_APPEND), _open(directory / "index")
    _sync_directory(directory)
    for number in range(1, 5):
        begin(str(number))
        os.write(data, bytes([number]) * BLOCK)
        if fixed:
            os.fdatasync(data)
        os.pwrite(index, struct.pack("<I", number), 0)
        os.fdatasync(index)
        ack(str(number))
    os.fdatasync(data)
    os.close(data)
    os.close(index)


def _counted_check(header: str, body: str, skip_bytes: int) -> TargetCheck:
    def check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
        head = directory / header
        raw = head.read_bytes()[:4] if head.exists() else b""
        count = struct.unpack("<I", raw)[0] if len(raw) == 4 else 0
        data = (directory / body).read_bytes()[skip_bytes:] if (directory / body).exists() else b""
        for number in range(1, count + 1):
            if data[(number - 1) * BLOCK : number * BLOCK] != bytes([number]) * BLOCK:
                return "the header counts a record that is not there"
        return prefix_of_history(list(range(1, count + 1)), acks, begun)

    return check


def _directory_not_synced(directory: Path, fixed: bool) -> None:
    """A new sub-directory for each record; its name in the parent is never synced. Journals forgive it, POSIX does not promise it."""
    for number in range(1, 4):
        begin(str(number))
        shard = directory / f"shard-{number}"
        shard.mkdir()
        _create(shard / "record", _frame(number))
        _sync_directory(shard)
        if fixed:
            _sync_directory(directory)
        ack(str(number))


def _shards_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    whole = [n for n in range(1, 4) if (r := directory / f"shard-{n}" / "record").exists() and _frames(r.read_bytes()) == [n]]
    return acked_durable(whole, acks)


# ---- applied once ----------------------------------------------------------------------------------------------------------------
def _double_apply(directory: Path, fixed: bool) -> None:
    """A counter and its redo log; with the bug the counter does not say which records it holds."""
    counter, log = _open(directory / "counter"), _open(directory / "0001.log")
    os.pwrite(counter, struct.pack("<II", 0, 0), 0)
    os.fsync(counter)
    _sync_directory(directory)
    total = 0
    for number in range(1, 4):
        begin(str(number))
        os.pwrite(log, _frame(number), 0)
        os.fdatasync(log)
        ack(str(number))
        total += number
        os.pwrite(counter, struct.pack("<II", total, number), 0)
        os.fdatasync(counter)
        os.ftruncate(log, 0)
        os.fsync(log)
    os.close(counter)
    os.close(log)


def _counter_check(fixed: bool) -> TargetCheck:
    def check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
        raw = (directory / "counter").read_bytes() if (directory / "counter").exists() else b""
        total, applied = struct.unpack("<II", raw) if len(raw) == 8 else (0, 0)
        log = directory / "0001.log"
        for number in _frames(log.read_bytes()) if log.exists() else []:
            if not fixed or number > applied:
                total += number
        sums = {sum(range(n + 1)): n for n in range(4)}
        if total not in sums:
            return "a record was applied twice"
        return prefix_of_history(list(range(1, sums[total] + 1)), acks, begun)

    return check


# ---- mappings --------------------------------------------------------------------------------------------------------------------
def _msync_of_wrong_range(directory: Path, fixed: bool) -> None:
    """Record n lies in page n of a mapping; with the bug always the first page is synced."""
    fd = _open(directory / "mapped")
    os.ftruncate(fd, 4 * BLOCK)
    os.fsync(fd)
    _sync_directory(directory)
    with mmap.mmap(fd, 4 * BLOCK) as mapping:
        for number in range(1, 4):
            begin(str(number))
            mapping[number * BLOCK : (number + 1) * BLOCK] = bytes([number]) * BLOCK
            mapping.flush(number * BLOCK if fixed else 0, BLOCK)
            ack(str(number))
    os.close(fd)


def _mapped_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    raw = (directory / "mapped").read_bytes() if (directory / "mapped").exists() else b""
    return acked_durable([n for n in range(1, 4) if raw[n * BLOCK : (n + 1) * BLOCK] == bytes([n]) * BLOCK], acks)


def _pair(
    name: str,
    title: str,
    store: Store,
    check: TargetCheck,
    fixed_check: TargetCheck | None = None,
    model: str = "ext4",
    backend: Literal["auto", "ptrace"] = "auto",
) -> tuple[Target, Target]:
    return (
        Target(name, title, lambda directory: store(directory, False), check, clean=False, model=model, planted=True, backend=backend),
        Target(
            f"{name}-fixed",
            f"{title}: without the bug",
            lambda directory: store(directory, True),
            fixed_check or check,
            clean=True,
            model=model,
            backend=backend,
        ),
    )


TARGETS = (
    *_pair("no-file-sync", "rename without fsync of the file", _no_file_sync, _value_check),
    *_pair("no-directory-sync", "rename without fsync of the directory", _no_directory_sync, _value_check),
    *_pair("rename-before-sync", "fsync after the rename", _rename_before_sync, _value_check),
    *_pair("sync-of-another-file", "fsync of the wrong file", _sync_of_another_file, _value_check),
    *_pair("unlink-before-manifest", "old data unlinked before the new manifest is durable", _unlink_before_manifest, _manifest_check),
    *_pair(
        "checksum-over-half",
        "checksum that does not cover what it vouches for",
        _checksum_over_half,
        _slots_check(False),
        _slots_check(True),
    ),
    *_pair("rotate-without-sync", "next log segment before the old one is synced", _rotate_without_sync, _log_check),
    *_pair("recovery-not-synced", "recovery trusts the page cache", _recovery_not_synced, _log_check),
    *_pair("no-odsync", "log opened without O_DSYNC", _no_odsync, _log_check),
    *_pair("ack-before-sync", "acknowledged before the sync", _ack_before_sync, _log_check),
    *_pair(
        "segment-without-salt",
        "reused log blocks without a salt or generation",
        _segment_without_salt,
        _ring_check(False),
        _ring_check(True),
    ),
    *_pair("in-place-header", "header and record in one sync", _in_place_header, _counted_check("table", "table", BLOCK)),
    *_pair("index-before-data", "index synced before its data", _index_before_data, _counted_check("index", "data", 0)),
    *_pair("double-apply", "redo log applied twice", _double_apply, _counter_check(False), _counter_check(True)),
    *_pair("directory-not-synced", "new directory whose parent is not synced", _directory_not_synced, _shards_check, model="apm"),
    *_pair("msync-of-wrong-range", "msync of another page than was written", _msync_of_wrong_range, _mapped_check, backend="ptrace"),
)
