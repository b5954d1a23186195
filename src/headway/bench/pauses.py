"""What a long prompt does to the streams beside it: the pauses of one app's tokens while another app's prompt is being read."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from headway.bench.outcome import Outcomes, RequestRow

# The picture shows this much before the document arrives and after its first token.
_MARGIN_NS = 300_000_000
_LONGEST_PICTURE_NS = 8_000_000_000
_STREAMS = 4


@dataclass(frozen=True, slots=True)
class Pause:
    """The longest gap between two tokens of `stream` that overlaps the reading of `document` (from arrival to first token)."""

    gap_ns: int
    begin_ns: int
    stream: RequestRow
    document: RequestRow


@dataclass(frozen=True, slots=True)
class Lane:
    """One row of the picture. Times in ns after the picture's start; one list of token times a stream, at most `_STREAMS` of them, the
    one that paused longest first."""

    name: str
    length_ns: int
    reading: list[tuple[int, int]]
    streams: list[list[int]]
    longest: Pause | None


def read_interval(document: RequestRow) -> tuple[int, int]:
    """(arrival, first token); until its end if no token came. Refused documents were not read: an empty interval."""
    if document.outcome == "refused":
        return document.scheduled_ns, document.scheduled_ns
    return document.scheduled_ns, document.token_ns[0] if document.token_ns else document.end_ns


def find(rows: Sequence[RequestRow], streams: str, documents: str) -> list[Pause]:
    """The longest pause of every (stream, document) pair that met, longest first. `streams`, `documents`: app names."""
    found = []
    for document in (row for row in rows if row.app == documents):
        begin, end = read_interval(document)
        for stream in (row for row in rows if row.app == streams):
            pairs = itertools.pairwise(stream.token_ns)
            gaps = [(after - before, before) for before, after in pairs if after > begin and before < end]
            if gaps and end > begin:
                gap_ns, at_ns = max(gaps)
                found.append(Pause(gap_ns, at_ns, stream, document))
    return sorted(found, key=lambda pause: (-pause.gap_ns, pause.begin_ns, pause.stream.index))


def lanes(arms: dict[str, list[Outcomes]], streams: str, documents: str) -> list[Lane]:
    """The same moment of the schedule under every arm (policy): around the document that hurt the worst arm most.

    `arms[name][k]` is the k-th run; runs with the same k had the same arrivals. Empty when no document met a stream in every arm.
    """
    candidates: list[tuple[int, int, int]] = []
    for runs in arms.values():
        for k, run in enumerate(runs):
            candidates += [(pause.gap_ns, k, pause.document.index) for pause in find(run.requests, streams, documents)]
    for _, k, index in sorted(candidates, reverse=True):
        picked = [_around(name, runs[k], streams, documents, index) for name, runs in arms.items() if k < len(runs)]
        if len(picked) == len(arms) and all(lane is not None and lane.longest is not None for lane in picked):
            length_ns = min(_LONGEST_PICTURE_NS, max(lane.length_ns for lane in picked if lane is not None))
            return [_clip(lane, length_ns) for lane in picked if lane is not None]
    return []


def _around(name: str, run: Outcomes, streams: str, documents: str, index: int) -> Lane | None:
    document = next((row for row in run.requests if row.app == documents and row.index == index), None)
    if document is None:
        return None
    zero_ns = document.scheduled_ns - _MARGIN_NS
    end_ns = read_interval(document)[1] + _MARGIN_NS
    reading = [read_interval(row) for row in run.requests if row.app == documents]
    met = [pause for pause in find(run.requests, streams, documents) if pause.document is document]
    longest = met[0].stream if met else None
    shown = sorted((row for row in run.requests if row.app == streams and row.token_ns), key=lambda row: row is not longest)
    return Lane(
        name,
        end_ns - zero_ns,
        [(a - zero_ns, b - zero_ns) for a, b in reading if b > a],
        [[at - zero_ns for at in row.token_ns] for row in shown],
        met[0] if met else None,
    )


def _clip(lane: Lane, length_ns: int) -> Lane:
    reading = [(max(0, a), min(length_ns, b)) for a, b in lane.reading if b > 0 and a < length_ns]
    streams = [kept for times in lane.streams if (kept := [at for at in times if 0 <= at < length_ns])]
    return Lane(lane.name, length_ns, reading, streams[:_STREAMS], lane.longest)


def in_words(nanoseconds: float) -> str:
    """A pause as people say it: "48 ms", "1.9 s"."""
    return f"{nanoseconds / 1e6:.0f} ms" if nanoseconds < 995e6 else f"{nanoseconds / 1e9:.1f} s"


def as_text(lane: Lane, width: int = 72) -> list[str]:
    """The lane as two lines of `width` cells: tokens (| one, ‖ several), and below the time a document was being read."""
    cell_ns = max(1, lane.length_ns // width)
    tokens, below = [" "] * width, [" "] * width
    for times in lane.streams:
        first, last = times[0] // cell_ns, min(width - 1, times[-1] // cell_ns)
        for cell in range(first, last + 1):
            tokens[cell] = "·" if tokens[cell] == " " else tokens[cell]
    for times in lane.streams:
        for at in times:
            cell = min(width - 1, at // cell_ns)
            tokens[cell] = "│" if tokens[cell] in " ·" else "┃"
    for begin, end in lane.reading:
        for cell in range(begin // cell_ns, min(width - 1, end // cell_ns) + 1):
            below[cell] = "▔"
    return ["".join(tokens), "".join(below)]
