"""`replay(path)`: feeds a server's journal to the pure functions again and compares every command and iteration, byte for byte.

Starts at the oldest snapshot kept (per engine: its first view). Reads only: works on a copy, and beside a running server.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from headway.core.durable import read_records
from headway.core.errors import ConfigError, HeadwayError, JournalCorrupt
from headway.engine.frames import read_tape
from headway.fleet.journal_records import (
    SCHEMA,
    EventRecord,
    Finish,
    Snapshot,
    ViewRecord,
    code_versions,
    encode,
    pack_commands,
    read_commands,
    read_event,
    unpack,
)
from headway.scheduling import iteration, router
from headway.scheduling.messages import EngineDown, Report
from headway.scheduling.state import RouterState
from headway.scheduling.view import View


class OtherVersion(HeadwayError):
    """The journal was written by other code; its decisions cannot be expected from this one."""


@dataclass(slots=True)
class ReplayResult:
    """What was fed and compared. `first_difference` is "" when everything was equal bit for bit."""

    lives: int = 0
    """server starts seen"""
    snapshots: int = 0
    events: int = 0
    commands: int = 0
    iterations: int = 0
    changes: int = 0
    finishes: int = 0
    skipped_events: int = 0
    """older than the first snapshot"""
    skipped_iterations: int = 0
    """of an engine whose first view was not seen yet"""
    first_difference: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def identical(self) -> bool:
        return not self.first_difference


def replay(path: str | Path) -> ReplayResult:
    """`path`: a server's state directory, the journal in it, or one of its segments (to start there).

    Raises OtherVersion, JournalCorrupt, ConfigError (nothing there).
    """
    directory, after = Path(path), 0
    if directory.suffix == ".wal" and directory.is_file():
        after = int(directory.stem, 16) - 1
        directory = directory.parent
    if (directory / "journal").is_dir():
        directory = directory / "journal"
    if not directory.is_dir():
        raise ConfigError(f"{directory} is no journal; give state/serve/PORT of a server that ran with --journal on")
    player = _Player()
    for seq, payload in read_records(directory, after=after):
        player.take(seq, unpack(payload))
        if player.result.first_difference:
            break
    if not player.result.lives and not player.result.snapshots:
        raise ConfigError(f"{directory} holds no snapshot, so there is nothing to start a replay from")
    return player.result


class _Player:
    def __init__(self) -> None:
        self.result = ReplayResult()
        self._state: RouterState | None = None
        self._views: dict[str, tuple[int, View]] = {}

    def take(self, seq: int, record: Any) -> None:
        kind = type(record)
        if kind is EventRecord:
            self._event(seq, record)
        elif kind is ViewRecord:
            self._views[record.engine_id] = (record.boot, View.from_plain(msgspec.msgpack.decode(record.view)))
        elif kind is Snapshot:
            self._snapshot(seq, record)
        elif kind is Finish:
            self.result.finishes += 1

    def _snapshot(self, seq: int, record: Snapshot) -> None:
        _refuse_other_version(record)
        self.result.snapshots += 1
        self.result.versions = record.versions
        if record.first:
            self.result.lives += 1
            self._views.clear()
        elif self._state is not None and encode(self._state.to_plain()) != bytes(record.state):
            self._differ(seq, "the router's state at this snapshot is another")
        self._state = RouterState.from_plain(msgspec.msgpack.decode(record.state))

    def _event(self, seq: int, record: EventRecord) -> None:
        if self._state is None:
            self.result.skipped_events += 1
            return
        event = read_event(record)
        commands = router.step(self._state, record.now_ns, event)
        self.result.events += 1
        self.result.commands += len(commands)
        if bytes(pack_commands(commands)) != bytes(record.commands):
            self._differ(seq, f"{type(event).__name__} gave {commands}, the journal says {read_commands(record.commands)}")
        elif type(event) is EngineDown:
            self._views.pop(event.engine_id, None)
        elif type(event) is Report:
            self._tape(seq, event, record.tape)

    def _tape(self, seq: int, report: Report, tape: msgspec.Raw) -> None:
        boot, view = self._views.get(report.engine_id, (-1, None))
        for now_ns, change, raw in read_tape(tape):
            if view is None or boot != report.boot:
                self.result.skipped_iterations += change is None
            elif change is not None:
                iteration.apply(view, now_ns, change)
                self.result.changes += 1
            else:
                composed = iteration.compose(view, now_ns)
                self.result.iterations += 1
                if encode(composed) != raw:
                    self._differ(seq, f"iteration {report.iteration} of {report.engine_id} came out as {composed}")
                    return

    def _differ(self, seq: int, what: str) -> None:
        self.result.first_difference = self.result.first_difference or f"record {seq}: {what}"


def _refuse_other_version(record: Snapshot) -> None:
    if record.schema != SCHEMA:
        raise JournalCorrupt(f"a snapshot of schema {record.schema!r}; this code reads {SCHEMA}")
    ours = code_versions()
    other = [
        f"{name} {record.versions.get(name, 'absent')} (here {value})" for name, value in ours.items() if record.versions.get(name) != value
    ]
    if other:
        raise OtherVersion(f"the journal was written by another version: {', '.join(other)}; replay it with that version")
