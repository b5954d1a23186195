"""Headway's own `core.durable`, which must stay clean, and its journal with one planted bug: no sync before the next segment."""

from collections.abc import Callable, Sequence
from pathlib import Path

from headway.core.disk import Disk
from headway.core.durable import ChunkLog, Journal, publish, publish_dir, read_chunks
from headway.core.journal_files import SegmentFiles
from headway.crashtest.histories import old_or_new, prefix_of_history
from headway.crashtest.markers import ack, begin
from headway.crashtest.oracle import Verdict
from headway.crashtest.targets.target import Target

RECORDS = 40
SEGMENT_BYTES = 600


class _NoDataSync(Disk):
    def datasync(self, fd: int) -> None:
        pass


class _ForgetfulFiles(SegmentFiles):
    def _begin_segment(self, first_seq: int) -> None:
        disk, self._disk = self._disk, _NoDataSync()
        try:
            super()._begin_segment(first_seq)
        finally:
            self._disk = disk


class ForgetfulJournal(Journal):
    """The planted bug: the old segment is not synced before the first byte of the new one."""

    def __init__(self, directory: str | Path, *, segment_bytes: int) -> None:
        super().__init__(directory, segment_bytes=segment_bytes)
        self._files.__class__ = _ForgetfulFiles


def _payload(n: int) -> bytes:
    return b"%04d" % n * 11  # seven frames a segment, so that segments do not end where a sync is due anyway


def _journal(kind: type[Journal]) -> Callable[[Path], None]:
    def run(directory: Path) -> None:
        with kind(directory / "journal", segment_bytes=SEGMENT_BYTES) as journal:
            for n in range(1, RECORDS + 1):
                begin(str(n))
                seq = journal.append(_payload(n))
                if n % 4 == 0:
                    journal.commit(seq)
                    ack(str(n))

    return run


def _journal_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    """Recovers, appends, and recovers again: what was handed out once must stay."""
    if not (directory / "journal").is_dir():
        return prefix_of_history([], acks, begun)
    with Journal(directory / "journal", segment_bytes=SEGMENT_BYTES) as journal:
        first = list(journal.records())
        journal.append_commit(b"after")
    with Journal(directory / "journal", segment_bytes=SEGMENT_BYTES) as journal:
        second = list(journal.records())
    if second != [*first, (len(first) + 1, b"after")]:
        return "a second recovery finds other records than the first"
    if any(record != _payload(seq) for seq, record in first):
        return "a record holds other bytes than were written"
    return prefix_of_history([seq for seq, _ in first], acks, begun)


def _published(directory: Path) -> None:
    for version in range(1, 4):
        begin(str(version))
        publish(directory / "value", b"%d" % version * 5000)
        ack(str(version))


def _published_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    file = directory / "value"
    if not file.exists():
        return old_or_new(None, acks, begun)
    raw = file.read_bytes()
    if len(raw) != 5000 or len(set(raw)) != 1:
        return f"the published file is partial: {len(raw)} bytes"
    return old_or_new(raw[:1].decode(), acks, begun)


def _published_dir(directory: Path) -> None:
    parts = directory / "parts"
    parts.mkdir()
    for name in ("a", "b"):
        (parts / name).write_bytes(name.encode() * 5000)
    begin("1")
    publish_dir(parts, directory / "whole")
    ack("1")


def _published_dir_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    whole = directory / "whole"
    if not whole.exists():
        return old_or_new(None, acks, begun)
    found = {file.name: file.read_bytes() for file in whole.iterdir()}
    return None if found == {name: name.encode() * 5000 for name in ("a", "b")} else f"the published directory is partial: {sorted(found)}"


def _chunks(directory: Path) -> None:
    log = ChunkLog(directory / "metrics", sync_every_s=60)
    for n in range(1, 6):
        begin(str(n))
        log.append(_payload(n))
    log.close()
    ack("5")


def _chunks_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    """May lose the last ones before close, never lies: what is read is what was written, in order."""
    if not (directory / "metrics").exists():
        return prefix_of_history([], acks, begun)
    found = list(read_chunks(directory / "metrics"))
    numbers = [int(chunk[:4]) for chunk in found]
    if any(chunk != _payload(n) for n, chunk in zip(numbers, found, strict=True)) or numbers != sorted(set(numbers)):
        return f"chunks that nobody wrote: {numbers}"
    return f"acknowledged data lost: chunks {numbers}" if acks and len(numbers) < 5 else None


TARGETS = (
    Target("headway-journal", "headway.core.durable.Journal", _journal(Journal), _journal_check, clean=True),
    Target("headway-publish", "headway.core.durable.publish", _published, _published_check, clean=True),
    Target("headway-publish-dir", "headway.core.durable.publish_dir", _published_dir, _published_dir_check, clean=True),
    Target("headway-chunklog", "headway.core.durable.ChunkLog", _chunks, _chunks_check, clean=True),
    Target(
        "journal-no-sync-at-rotation",
        "the journal without the sync before a new segment",
        _journal(ForgetfulJournal),
        _journal_check,
        clean=False,
        planted=True,
    ),
)
