"""Small programs with and without a crash bug, written as traces, and what must hold after their crash. Repeated `times` over."""

from collections.abc import Callable

from headway.crashtest.crash_states import CrashState
from headway.crashtest.operations import Trace
from tests.crashtest.recorder import Recorder

Oracle = Callable[[CrashState], str | None]


def version(number: int) -> bytes:
    return b"{%06d}" % number * 100


def saved(times: int, *, sync: bool = True, sync_directory: bool = True) -> Trace:
    """A file replaced again and again: temporary, fsync, rename, fsync of the directory."""
    r = Recorder({"state.json": version(0)})
    for number in range(1, times + 1):
        r.begin(str(number))
        r.publish("state.json", version(number), sync=sync, sync_directory=sync_directory)
        r.ack(str(number))
    return r.trace()


def rewritten(times: int) -> Trace:
    """A file truncated and written again in place."""
    r = Recorder({"state.json": version(0)})
    for number in range(1, times + 1):
        r.begin(str(number))
        fd = r.open("state.json", 0o1101)
        r.write(fd, version(number))
        r.close(fd)
        r.ack(str(number))
    return r.trace()


def saved_is_old_or_new(state: CrashState) -> str | None:
    """The file holds the newest acknowledged version or one begun later."""
    data = state.tree.files().get("state.json")
    legal = {version(number): number for number in range(len(state.begun) + 1)}
    if data not in legal:
        return "missing" if data is None else "empty" if not data else "torn"
    return "acknowledged version lost" if legal[data] < len(state.acks) else None


RECORD_BYTES = 80


def journal(records: int, *, sync_at_switch: bool, per_segment: int = 6) -> Trace:
    """Records appended to segments, synced and acknowledged by fours; the planted bug: no sync of the old segment at a switch."""
    r = Recorder()
    fd = -1
    for number in range(records):
        if number % per_segment == 0:
            if fd >= 0:
                if sync_at_switch:
                    r.fdatasync(fd)
                r.close(fd)
            fd = r.open(f"{number:08d}.wal")
            r.fsync_directory()
        r.begin(str(number))
        r.write(fd, b"%08d" % number * (RECORD_BYTES // 8))
        if number % 4 == 3:
            r.fdatasync(fd)
            for done in range(number - 3, number + 1):
                r.ack(str(done))
    return r.trace()


def journal_is_a_prefix(state: CrashState) -> str | None:
    """The whole records form a prefix of what was written, at least as long as what was acknowledged."""
    numbers = []
    for _, data in sorted(state.tree.files().items()):
        for start in range(0, len(data), RECORD_BYTES):
            record = data[start : start + RECORD_BYTES]
            if len(record) < RECORD_BYTES or record != record[:8] * (RECORD_BYTES // 8) or not record[:8].isdigit():
                break
            numbers.append(int(record[:8]))
    if numbers != list(range(len(numbers))):
        return "hole"
    return "acknowledged record lost" if len(numbers) < len(state.acks) else None


def header_in_place(times: int) -> Trace:
    """A record appended, then its count written into a header in place, both synced, the header first: count before data."""
    r = Recorder({"table": b"%08d" % 0})
    fd = r.open("table", 0o1)
    for number in range(1, times + 1):
        r.begin(str(number))
        r.write(fd, b"%08d" % number, offset=0)
        r.fdatasync(fd)
        r.write(fd, b"r" * 100, offset=8 + 100 * (number - 1))
        r.fdatasync(fd)
        r.ack(str(number))
    return r.trace()


def header_counts_what_is_there(state: CrashState) -> str | None:
    data = state.tree.files()["table"]
    return None if len(data) - 8 >= int(data[:8]) * 100 else "header counts a record that is not there"


PLANTED: dict[str, tuple[Callable[[int], Trace], Oracle]] = {
    "no fsync of the file": (lambda times: saved(times, sync=False), saved_is_old_or_new),
    "no fsync of the directory": (lambda times: saved(times, sync_directory=False), saved_is_old_or_new),
    "rewritten in place": (rewritten, saved_is_old_or_new),
    "no sync at a log switch": (lambda times: journal(4 * times, sync_at_switch=False), journal_is_a_prefix),
    "header before data": (header_in_place, header_counts_what_is_there),
}
CORRECT: dict[str, tuple[Callable[[int], Trace], Oracle]] = {
    "saved": (saved, saved_is_old_or_new),
    "journal": (lambda times: journal(4 * times, sync_at_switch=True), journal_is_a_prefix),
}
