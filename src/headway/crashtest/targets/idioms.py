"""Four ways of writing a JSON file; only the last one keeps what it acknowledged (specs/crashtest.md section 7)."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from headway.crashtest.histories import old_or_new
from headway.crashtest.markers import ack, begin
from headway.crashtest.oracle import Verdict
from headway.crashtest.targets.target import Target

VERSIONS = 3
NAME = "settings.json"


def document(version: int) -> bytes:
    """About 6 KiB: two blocks, so that it can tear."""
    return json.dumps({"version": version, "values": [version] * 2000}).encode()


def in_place(directory: Path, data: bytes) -> None:
    (directory / NAME).write_bytes(data)


def replaced(directory: Path, data: bytes, *, sync_file: bool, sync_directory: bool) -> None:
    temporary = directory / f"{NAME}.tmp"
    with temporary.open("wb") as file:
        file.write(data)
        if sync_file:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(directory / NAME)
    if sync_directory:
        fd = os.open(directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def workload(save: Callable[[Path, bytes], None]) -> Callable[[Path], None]:
    def run(directory: Path) -> None:
        for version in range(1, VERSIONS + 1):
            begin(str(version))
            save(directory, document(version))
            ack(str(version))

    return run


def check(directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    """The file holds the last acknowledged version or a later one, whole."""
    file = directory / NAME
    if not file.exists():
        return old_or_new(None, acks, begun)
    raw = file.read_bytes()
    if not raw:
        return "the file is empty"
    try:
        found = json.loads(raw)
    except ValueError:
        return "the file is torn"
    if raw != document(found["version"]):
        return "the file mixes versions"
    return old_or_new(str(found["version"]), acks, begun)


TARGETS = (
    Target("json-in-place", "JSON file written in place", workload(in_place), check, clean=False),
    Target(
        "json-replace",
        "temporary file, rename",
        workload(lambda d, b: replaced(d, b, sync_file=False, sync_directory=False)),
        check,
        clean=False,
    ),
    Target(
        "json-replace-fsync",
        "temporary file, fsync, rename",
        workload(lambda d, b: replaced(d, b, sync_file=True, sync_directory=False)),
        check,
        clean=False,
    ),
    Target(
        "json-full",
        "temporary file, fsync, rename, fsync of the directory",
        workload(lambda d, b: replaced(d, b, sync_file=True, sync_directory=True)),
        check,
        clean=True,
    ),
)
