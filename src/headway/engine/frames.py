"""The frames that travel between front and engine: three families, every kind a number and one type.

A tape is what a view went through during one iteration, [[now_ns, change kind, change], ...] and [compose now_ns, iteration]; the front
copies it into the journal without decoding it. Must not import numpy or numba: the front imports this.
"""

from typing import Any

import msgspec

from headway.core.errors import HeadwayError
from headway.engine.wire import Hello, Output, Submit
from headway.scheduling.messages import Abort, Amend, Dispatch, Downgrade, EngineUp, Iteration, LawUpdate, Pace, Relegate, Report, Result
from headway.scheduling.messages import Submit as ViewSubmit

CONTROL, REPORTS, DATA = 1, 2, 3


class ChannelError(HeadwayError):
    """The other side sent something that is not a frame, or skipped a number."""


class EngineSettings(msgspec.Struct, frozen=True):
    """What an engine needs to know to load; plain values, so that they travel. 0 and "" mean "choose"."""

    model: str
    accuracy: str = "fast"
    policy: str = "headway"
    threads: int = 0
    kv_memory_bytes: int = 512 << 20
    kv_dtype: str = ""
    context_tokens: int = 0
    page_tokens: int = 16
    max_sequences: int = 256


class Load(msgspec.Struct, frozen=True):
    """First control frame: build the engine. `record` asks for tapes."""

    settings: EngineSettings
    record: bool = True


class WantView(msgspec.Struct, frozen=True):
    """A journal segment opened: send the view after the next report."""


class Stop(msgspec.Struct, frozen=True):
    """End at once; nothing in flight is finished."""


class Progress(msgspec.Struct, frozen=True):
    """What a loading engine is doing and the fraction done, 0 to 1."""

    what: str
    fraction: float


class Failure(msgspec.Struct, frozen=True):
    """Last words: the class of the error and its message. `retry` says whether another try could help."""

    error: str
    message: str
    retry: bool


class Stepped(msgspec.Struct, frozen=True, array_like=True):
    """One iteration: its report (decoded and raw are the same bytes) and, if asked for, its tape."""

    report: msgspec.Raw
    tape: msgspec.Raw


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """CPU seconds of all threads inside the step program since this engine started; every second of work and at its end."""

    execute_cpu_s: float


class ViewFrame(msgspec.Struct, frozen=True, array_like=True):
    """The engine's view as plain data, valid after every tape sent before it."""

    engine_id: str
    boot: int
    view: msgspec.Raw


class Outputs(msgspec.Struct, frozen=True, array_like=True):
    """All outputs of one iteration."""

    outputs: list[Output]


KINDS: dict[int, tuple[int, type[Any]]] = {
    1: (CONTROL, Load),
    2: (CONTROL, Dispatch),
    3: (CONTROL, Abort),
    4: (CONTROL, Downgrade),
    5: (CONTROL, Relegate),
    6: (CONTROL, Pace),
    7: (CONTROL, WantView),
    8: (CONTROL, Stop),
    20: (REPORTS, Hello),
    21: (REPORTS, Progress),
    22: (REPORTS, Failure),
    23: (REPORTS, EngineUp),
    24: (REPORTS, LawUpdate),
    25: (REPORTS, Stepped),
    26: (REPORTS, ViewFrame),
    27: (REPORTS, Usage),
    40: (DATA, Submit),
    41: (DATA, Outputs),
}
KIND_OF: dict[type[Any], tuple[int, int]] = {cls: (kind, family) for kind, (family, cls) in KINDS.items()}

encode = msgspec.msgpack.Encoder().encode
_DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {kind: msgspec.msgpack.Decoder(cls) for kind, (_, cls) in KINDS.items()}
decode_report = msgspec.msgpack.Decoder(Report).decode

CHANGES: dict[int, type[Any]] = {1: ViewSubmit, 2: Abort, 3: Amend, 4: Pace, 5: LawUpdate, 6: Result}
CHANGE_OF: dict[type[Any], int] = {cls: kind for kind, cls in CHANGES.items()}
_CHANGE_DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {kind: msgspec.msgpack.Decoder(cls) for kind, cls in CHANGES.items()}
COMPOSED = 0
"""In a tape, the kind of an entry that is an iteration (what `compose` answered), not a change."""


def decode(kind: int, body: bytes | bytearray | memoryview) -> Any:
    """The message in a frame's body. Raises ChannelError for a kind or a body this version does not know."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise ChannelError(f"frame kind {kind} is unknown; front and engine are of different versions: restart both")
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise ChannelError(f"a frame of kind {kind} ({len(body)} bytes) does not decode: {error}") from error


def encode_tape(tape: list[tuple[int, object]]) -> bytes:
    """`tape`: (now_ns, change or Iteration) in the order they happened."""
    return encode([(now_ns, COMPOSED if type(entry) is Iteration else CHANGE_OF[type(entry)], entry) for now_ns, entry in tape])


class _TapeEntry(msgspec.Struct, array_like=True):
    now_ns: int
    kind: int
    body: msgspec.Raw


_decode_tape = msgspec.msgpack.Decoder(list[_TapeEntry]).decode


def read_tape(tape: bytes | msgspec.Raw) -> list[tuple[int, Any, bytes]]:
    """(now_ns, change, raw) in order; for an iteration the second item is None and `raw` holds its encoding."""
    entries = _decode_tape(tape)
    return [(e.now_ns, None if e.kind == COMPOSED else _CHANGE_DECODERS[e.kind].decode(e.body), bytes(e.body)) for e in entries]
