"""Small stores with one planted bug each, and the same stores without it (bug kinds: specs/crashtest.md section 10, point 4).

Every recipe is a pair: `NAME` has the bug, `NAME-fixed` must stay clean under the same model.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from headway.crashtest.histories import acked_durable, old_or_new, prefix_of_history
from headway.crashtest.markers import ack, begin
from headway.crashtest.oracle import Verdict
from headway.crashtest.targets.stores import BLOCK, create, frame, frames, open_file, pair, sync_directory
from headway.crashtest.targets.target import TargetCheck


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
        create(directory / "value.tmp", _value(version), sync=fixed)
        (directory / "value.tmp").rename(directory / "value")
        sync_directory(directory)
        ack(str(version))


def _no_directory_sync(directory: Path, fixed: bool) -> None:
    for version in range(1, 4):
        begin(str(version))
        create(directory / "value.tmp", _value(version))
        (directory / "value.tmp").rename(directory / "value")
        if fixed:
            sync_directory(directory)
        ack(str(version))


def _rename_before_sync(directory: Path, fixed: bool) -> None:
    for version in range(1, 3):
        begin(str(version))
        fd = open_file(directory / "value.tmp", os.O_TRUNC)
        os.write(fd, _value(version))
        if fixed:
            os.fsync(fd)
        (directory / "value.tmp").rename(directory / "value")
        if not fixed:
            os.fsync(fd)
        os.close(fd)
        sync_directory(directory)
        ack(str(version))


def _sync_of_another_file(directory: Path, fixed: bool) -> None:
    """Opens the temporary file again for the sync, and by mistake the lock file."""
    create(directory / "lock", b"pid", sync=False)
    for version in range(1, 3):
        begin(str(version))
        create(directory / "value.tmp", _value(version), sync=False)
        fd = open_file(directory / ("value.tmp" if fixed else "lock"))
        os.fsync(fd)
        os.close(fd)
        (directory / "value.tmp").rename(directory / "value")
        sync_directory(directory)
        ack(str(version))


def _unlink_before_manifest(directory: Path, fixed: bool) -> None:
    for version in range(1, 4):
        begin(str(version))
        create(directory / f"data-{version}", _value(version))
        if not fixed and version > 1:
            (directory / f"data-{version - 1}").unlink()
        create(directory / "manifest.tmp", b"data-%d" % version)
        (directory / "manifest.tmp").rename(directory / "manifest")
        sync_directory(directory)
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
    fd = open_file(directory / "slots")
    os.write(fd, bytes(4 * BLOCK))
    os.fsync(fd)
    sync_directory(directory)
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


# ---- counted records ----------------------------------------------------------------------------------------------------------------
def _in_place_header(directory: Path, fixed: bool) -> None:
    """The count in block 0 says how many records follow; with the bug count and record are written together and synced once."""
    fd = open_file(directory / "table")
    os.write(fd, bytes(BLOCK))
    os.fsync(fd)
    sync_directory(directory)
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
    data, index = open_file(directory / "data", os.O_APPEND), open_file(directory / "index")
    sync_directory(directory)
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
        create(shard / "record", frame(number))
        sync_directory(shard)
        if fixed:
            sync_directory(directory)
        ack(str(number))


def _shards_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    whole = [n for n in range(1, 4) if (r := directory / f"shard-{n}" / "record").exists() and frames(r.read_bytes()) == [n]]
    return acked_durable(whole, acks)


# ---- applied once ----------------------------------------------------------------------------------------------------------------
def _double_apply(directory: Path, fixed: bool) -> None:
    """A counter and its redo log; with the bug the counter does not say which records it holds."""
    counter, log = open_file(directory / "counter"), open_file(directory / "0001.log")
    os.pwrite(counter, struct.pack("<II", 0, 0), 0)
    os.fsync(counter)
    sync_directory(directory)
    total = 0
    for number in range(1, 4):
        begin(str(number))
        os.pwrite(log, frame(number), 0)
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
        for number in frames(log.read_bytes()) if log.exists() else []:
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
    fd = open_file(directory / "mapped")
    os.ftruncate(fd, 4 * BLOCK)
    os.fsync(fd)
    sync_directory(directory)
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


TARGETS = (
    *pair("no-file-sync", "rename without fsync of the file", _no_file_sync, _value_check),
    *pair("no-directory-sync", "rename without fsync of the directory", _no_directory_sync, _value_check),
    *pair("rename-before-sync", "fsync after the rename", _rename_before_sync, _value_check),
    *pair("sync-of-another-file", "fsync of the wrong file", _sync_of_another_file, _value_check),
    *pair("unlink-before-manifest", "old data unlinked before the new manifest is durable", _unlink_before_manifest, _manifest_check),
    *pair(
        "checksum-over-half",
        "checksum that does not cover what it vouches for",
        _checksum_over_half,
        _slots_check(False),
        _slots_check(True),
    ),
    *pair("in-place-header", "header and record in one sync", _in_place_header, _counted_check("table", "table", BLOCK)),
    *pair("index-before-data", "index synced before its data", _index_before_data, _counted_check("index", "data", 0)),
    *pair("double-apply", "redo log applied twice", _double_apply, _counter_check(False), _counter_check(True)),
    *pair("directory-not-synced", "new directory whose parent is not synced", _directory_not_synced, _shards_check, model="apm"),
    *pair("msync-of-wrong-range", "msync of another page than was written", _msync_of_wrong_range, _mapped_check, backend="ptrace"),
)
