"""Logs with one planted bug each, and the same logs without it (bug kinds: specs/crashtest.md section 10, point 4)."""

import os
from collections.abc import Sequence
from pathlib import Path

from headway.crashtest.histories import acked_durable, prefix_of_history
from headway.crashtest.markers import ack, begin
from headway.crashtest.oracle import Verdict
from headway.crashtest.targets.stores import BLOCK, create, frame, frames, open_file, pair, sync_directory
from headway.crashtest.targets.target import TargetCheck


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
            fd = open_file(directory / f"{number:04d}.log", os.O_APPEND)
            sync_directory(directory)
        os.write(fd, frame(number))
        if number % 2 == 0:
            os.fdatasync(fd)
            ack(str(number))
    os.close(fd)


def _recovery_not_synced(directory: Path, fixed: bool) -> None:
    """A process crash, a recovery that reads from the page cache and starts a new segment, then the power cut."""
    fd = open_file(directory / "0001.log", os.O_APPEND)
    sync_directory(directory)
    for number in range(1, 4):
        begin(str(number))
        os.write(fd, frame(number))
    os.close(fd)  # killed here: nothing was synced, nothing acknowledged
    fd = os.open(directory / "0001.log", os.O_RDONLY)
    found = frames(os.pread(fd, 1 << 20, 0))
    if fixed:
        os.fdatasync(fd)
    os.close(fd)
    fd = open_file(directory / f"{len(found) + 1:04d}.log", os.O_APPEND)
    sync_directory(directory)
    for number in range(len(found) + 1, len(found) + 3):
        begin(str(number))
        os.write(fd, frame(number))
        os.fdatasync(fd)
        ack(str(number))
    os.close(fd)


def _log_check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    found: list[int] = []
    for segment in sorted(directory.glob("*.log")):
        found += frames(segment.read_bytes())
    return prefix_of_history(found, acks, begun)


def _no_odsync(directory: Path, fixed: bool) -> None:
    """Every write was meant to be durable by itself."""
    fd = open_file(directory / "0001.log", os.O_APPEND | (os.O_DSYNC if fixed else 0))
    sync_directory(directory)
    for number in range(1, 6):
        begin(str(number))
        os.write(fd, frame(number))
        ack(str(number))
    os.close(fd)


def _ack_before_sync(directory: Path, fixed: bool) -> None:
    fd = open_file(directory / "0001.log", os.O_APPEND)
    sync_directory(directory)
    for number in range(1, 6):
        begin(str(number))
        os.write(fd, frame(number))
        if not fixed:
            ack(str(number))
        os.fdatasync(fd)
        if fixed:
            ack(str(number))
    os.close(fd)


def _segment_without_salt(directory: Path, fixed: bool) -> None:
    """A log that starts over in the same blocks, a frame a block. With the bug a lost end marker lets old frames follow new ones."""
    generation_at = directory / "generation"
    fd = open_file(directory / "ring")
    sync_directory(directory)
    for generation in (1, 2):
        begin(f"{generation}.0")
        if fixed:
            create(directory / "generation.tmp", str(generation).encode())
            (directory / "generation.tmp").rename(generation_at)
            sync_directory(directory)
        for place in range(3 if generation == 1 else 2):
            begin(f"{generation}.{place}")
            number = generation * 16 + place
            os.pwrite(fd, frame(number).ljust(BLOCK, b"\0"), place * BLOCK)
            os.pwrite(fd, bytes(BLOCK), (place + 1) * BLOCK)
            os.fdatasync(fd)
            ack(f"{generation}.{place}")
    os.close(fd)


def _ring_check(fixed: bool) -> TargetCheck:
    def check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
        file = directory / "ring"
        found = [(number >> 4, number & 15) for number in frames(file.read_bytes() if file.exists() else b"", step=BLOCK)]
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


TARGETS = (
    *pair("rotate-without-sync", "next log segment before the old one is synced", _rotate_without_sync, _log_check),
    *pair("recovery-not-synced", "recovery trusts the page cache", _recovery_not_synced, _log_check),
    *pair("no-odsync", "log opened without O_DSYNC", _no_odsync, _log_check),
    *pair("ack-before-sync", "acknowledged before the sync", _ack_before_sync, _log_check),
    *pair(
        "segment-without-salt",
        "reused log blocks without a salt or generation",
        _segment_without_salt,
        _ring_check(False),
        _ring_check(True),
    ),
)
