"""The log of a device: its writes, its flush epochs, and the crash states that may be left of an epoch."""

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

ENTRY = struct.Struct("<cQQd")  # kind, offset, length, wall time
ALL_SUBSETS_UP_TO = 5  # writes in an epoch; specs/crashtest.md 5.5


@dataclass(frozen=True, slots=True)
class Epoch:
    """Writes `first` to `stop` (numbers of writes) between two flushes; `end` is the log position (bytes) of the flush that ends it."""

    first: int
    stop: int
    end: int


@dataclass(frozen=True, slots=True)
class Stamp:
    """A marker line and its log position (bytes)."""

    position: int
    text: str


@dataclass(frozen=True, slots=True)
class WriteLog:
    """`lengths` of every write, flush epochs (the last may have no flush), markers."""

    lengths: tuple[int, ...]
    epochs: tuple[Epoch, ...]
    stamps: tuple[Stamp, ...]


@dataclass(frozen=True, slots=True)
class RealState:
    """Everything before the epoch, and of the epoch the given parts (write, from byte, to byte)."""

    epoch: int
    prefix: int
    parts: tuple[tuple[int, int, int], ...]
    acks: tuple[str, ...]
    begun: tuple[str, ...]

    def command(self) -> str:
        """What the device's `control` file understands."""
        return " ".join([str(self.prefix), *(f"{index}:{low}:{high}" for index, low, high in self.parts)])


def read_log(path: Path, end: int) -> WriteLog:
    """The log up to position `end` (bytes)."""
    lengths: list[int] = []
    epochs: list[Epoch] = []
    stamps: list[Stamp] = []
    first = position = 0
    with path.open("rb") as file:
        while position < end:
            kind, _, length, _ = ENTRY.unpack(file.read(ENTRY.size))
            if kind == b"W":
                lengths.append(length)
                file.seek(length, 1)
            elif kind == b"M":
                stamps += [Stamp(position, line) for line in file.read(length).decode(errors="replace").splitlines()]
            else:
                if len(lengths) > first:
                    epochs.append(Epoch(first, len(lengths), position))
                first = len(lengths)
            position += ENTRY.size + length
    if len(lengths) > first:
        epochs.append(Epoch(first, len(lengths), end))
    return WriteLog(tuple(lengths), tuple(epochs), tuple(stamps))


def states(log: WriteLog, epochs: Sequence[Epoch], *, split_bytes: int = 0, seed: int = 0, samples: int = 0) -> Iterator[RealState]:
    """Of each of `epochs` all subsets of few writes, else prefixes, drop-ones and `samples` random ones. `split_bytes` tears writes."""
    lengths, stamps = log.lengths, log.stamps
    chooser = random.Random(seed)
    last_full: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    for number, epoch in enumerate(epochs):
        parts = [
            (index, low, min(low + (split_bytes or lengths[index]), lengths[index]))
            for index in range(epoch.first, epoch.stop)
            for low in range(0, lengths[index], split_bytes or lengths[index])
        ]
        acks, begun = markers_at(stamps, epoch.end)
        for chosen in _subsets(parts, chooser, samples):
            if not chosen and last_full == (acks, begun):
                continue  # the epoch before, complete, with the same markers
            yield RealState(number, epoch.first, chosen, acks, begun)
        last_full = (acks, begun)


def _subsets(parts: Sequence[tuple[int, int, int]], chooser: random.Random, samples: int) -> Iterator[tuple[tuple[int, int, int], ...]]:
    if len(parts) <= ALL_SUBSETS_UP_TO:
        for size in range(len(parts) + 1):
            yield from combinations(parts, size)
        return
    for size in range(len(parts) + 1):
        yield tuple(parts[:size])
    for without in range(len(parts) - 1):
        yield tuple(parts[:without]) + tuple(parts[without + 1 :])
    for _ in range(samples):
        yield tuple(part for part in parts if chooser.random() < 0.5)


def markers_at(stamps: Sequence[Stamp], position: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(acks, begun) of a power cut at a log position."""
    before = [stamp.text.partition(" ") for stamp in stamps if stamp.position <= position]
    return tuple(text for kind, _, text in before if kind == "ack"), tuple(text for kind, _, text in before if kind == "begin")
