"""Torn, split and filled writes: what a model lets a single surviving write look like."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from headway.crashtest.micro import Micro
from headway.crashtest.models.model import PersistenceModel


@dataclass(frozen=True, slots=True)
class Variant:
    """One write that did not survive as it was made: `micro` stands where the write at `place` stood."""

    name: str
    place: int
    micro: Micro


def variants(model: PersistenceModel, place: int, micro: Micro) -> Iterator[Variant]:
    """The other forms of a write: cut at the first and the last tear boundary, without its beginning, in thirds, filled. Few a write."""
    if micro.kind not in ("data", "store") or not micro.data:
        return
    cuts: dict[int, str] = {}
    for unit in model.tear_bytes:
        boundaries = range((micro.offset // unit + 1) * unit, micro.offset + len(micro.data), unit)
        for boundary in (boundaries[0], boundaries[-1]) if boundaries else ():
            cuts.setdefault(boundary - micro.offset, f"torn at {unit}")
    if model.split_writes and len(micro.data) >= 3:
        third = len(micro.data) // 3
        cuts.setdefault(third, "split")
        cuts.setdefault(2 * third, "split")
    for cut, how in cuts.items():
        yield Variant(f"{how}: the first {cut} bytes of write {place}", place, _prefix(micro, cut))
    if cuts and micro.size < 0:
        last = max(cuts)
        tail = replace(micro, offset=micro.offset + last, data=micro.data[last:])
        yield Variant(f"torn: all but the first {last} bytes of write {place}", place, tail)
    for fill in model.fills:
        if micro.size >= 0 or not micro.allocated:
            content = bytes(len(micro.data)) if fill == "zeros" else random.Random(place).randbytes(len(micro.data))
            yield Variant(f"{fill} instead of the data of write {place}", place, replace(micro, data=content))


def _prefix(micro: Micro, length: int) -> Micro:
    size = micro.offset + length if micro.size >= 0 else micro.size
    return replace(micro, data=micro.data[:length], size=size)
