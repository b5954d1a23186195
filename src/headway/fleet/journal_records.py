"""What the router's journal holds, record by record (docs/fleet.md): plain numbers and names, never text, token ids or page hashes.

A record is one byte that says its type, then msgpack. Events and commands carry the number of their type (EVENTS, COMMANDS).
"""

import hashlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

import headway
from headway.core.errors import JournalCorrupt
from headway.scheduling import messages as m

SCHEMA = "headway.router-journal/1"

EVENTS: dict[int, type[Any]] = {1: m.Arrive, 2: m.Report, 3: m.EngineUp, 4: m.EngineDown, 5: m.Cancel, 6: m.Tick, 7: m.LawUpdate}
COMMANDS: dict[int, type[Any]] = {
    1: m.Dispatch,
    2: m.Abort,
    3: m.Hold,
    4: m.Shed,
    5: m.Downgrade,
    6: m.Relegate,
    7: m.Pace,
    8: m.Claim,
    9: m.Release,
    10: m.ScaleUp,
    11: m.ScaleDown,
}
EVENT_OF: dict[type[Any], int] = {cls: kind for kind, cls in EVENTS.items()}
COMMAND_OF: dict[type[Any], int] = {cls: kind for kind, cls in COMMANDS.items()}

encode = msgspec.msgpack.Encoder().encode
NO_COMMANDS = NO_TAPE = msgspec.Raw(encode([]))


class Snapshot(msgspec.Struct, frozen=True):
    """Opens a segment: who wrote it and the router's state before the next event. `first` marks the start of a server's life.

    `open_ids`: requests that have arrived and not ended. `wall_s`: seconds since 1970, for people.
    """

    schema: str
    versions: dict[str, str]
    policy: str
    seed: int
    first: bool
    state: msgspec.Raw
    open_ids: list[int]
    next_id: int
    wall_s: float


class EventRecord(msgspec.Struct, frozen=True, array_like=True):
    """One call of `router.step`. `event` and `commands` are kept as encoded; `tape` belongs to a Report.

    `user` is a keyed hash.
    """

    now_ns: int
    kind: int
    event: msgspec.Raw
    commands: msgspec.Raw
    tape: msgspec.Raw = NO_TAPE
    user: str = ""


class ViewRecord(msgspec.Struct, frozen=True, array_like=True):
    """An engine's view as plain data; tapes after it continue from here."""

    engine_id: str
    boot: int
    view: msgspec.Raw


class Finish(msgspec.Struct, frozen=True, array_like=True):
    """How a request ended. `reason` as in `Ticket.finish`; `detail` in a word; `score` a `core.slo.Score` as plain data."""

    id: int
    now_ns: int
    reason: str
    detail: str = ""
    score: Any = None


RECORDS: dict[int, type[Any]] = {1: Snapshot, 2: EventRecord, 3: ViewRecord, 4: Finish}
RECORD_OF: dict[type[Any], bytes] = {cls: bytes([kind]) for kind, cls in RECORDS.items()}
_DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {kind: msgspec.msgpack.Decoder(cls) for kind, cls in RECORDS.items()}
_EVENT_DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {kind: msgspec.msgpack.Decoder(cls) for kind, cls in EVENTS.items()}
_PAIRS = msgspec.msgpack.Decoder(list[tuple[int, msgspec.Raw]])
_COMMAND_DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {kind: msgspec.msgpack.Decoder(cls) for kind, cls in COMMANDS.items()}


def pack(record: Snapshot | EventRecord | ViewRecord | Finish) -> bytes:
    return RECORD_OF[type(record)] + encode(record)


def unpack(payload: bytes) -> Any:
    """The record in a journal payload. Raises JournalCorrupt."""
    try:
        return _DECODERS[payload[0]].decode(payload[1:])
    except (KeyError, IndexError, msgspec.MsgspecError) as error:
        raise JournalCorrupt(
            f"a record of {len(payload)} bytes is not of {SCHEMA}: {error!r}; was it written by another version?"
        ) from error


def pack_commands(commands: list[Any]) -> msgspec.Raw:
    if not commands:
        return NO_COMMANDS
    return msgspec.Raw(encode([(COMMAND_OF[type(command)], command) for command in commands]))


def read_commands(raw: bytes | msgspec.Raw) -> list[Any]:
    return [_COMMAND_DECODERS[kind].decode(body) for kind, body in _PAIRS.decode(raw)]


def read_event(record: EventRecord) -> Any:
    try:
        return _EVENT_DECODERS[record.kind].decode(record.event)
    except (KeyError, msgspec.MsgspecError) as error:
        raise JournalCorrupt(f"an event of kind {record.kind} does not decode: {error!r}") from error


@cache
def code_versions() -> dict[str, str]:
    """What must be equal for a replay to be bit for bit: the decisions' source text, and the interpreter (float sums differ between)."""
    from headway.core import law, slo
    from headway.scheduling import messages

    folder = Path(str(messages.__file__)).parent
    core = [Path(str(module.__file__)) for module in (slo, law)]
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted([*folder.rglob("*.py"), *core]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return {
        "headway": headway.__version__,
        "decisions": digest.hexdigest(),
        "messages": messages.SCHEMA,
        "law": law.SCHEMA,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }
