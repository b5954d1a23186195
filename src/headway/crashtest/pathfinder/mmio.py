"""Pathfinder's memory mode as a whole: a trace with stores in, crash states of the representatives out, with images of the mapped files.

Types are the user's: a TOML file of regions. Where none are given, all stores count as scalars, grouped by call stacks.
"""

import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.core.errors import ConfigError
from headway.crashtest import dag
from headway.crashtest.crash_states import CrashPoint, CrashState
from headway.crashtest.images import ImageBuilder
from headway.crashtest.operations import Trace
from headway.crashtest.pathfinder import pm
from headway.crashtest.vfs import lower


@dataclass(frozen=True, slots=True)
class MemoryTest:
    """A group of behaviours; the first is tested."""

    name: str
    members: tuple[pm.Behaviour, ...]


class Memory:
    """The groups of a trace's stores and the crash states of their representatives. System calls always count as durable."""

    def __init__(self, trace: Trace, regions: Sequence[pm.Region] = ()) -> None:
        self.stores, self.predecessors = pm.graph((one for one in trace.operations if one.kind in pm.KINDS), regions)
        found = pm.behaviours(self.stores, self.predecessors, regions)
        groups = pm.group(self.stores, self.predecessors, found) + pm.scalar_groups(self.stores)
        self.tests = [MemoryTest(members[0].type or f"scalar {members[0].instance:#x}", tuple(members)) for members in groups]
        self._micros = lower(trace)
        self._images = ImageBuilder(trace.initial, self._micros)
        self._places: dict[int, int] = defaultdict(int)
        for place, micro in enumerate(self._micros):
            self._places[micro.op] |= 1 << place
        self._all_stores = sum(self._places[store.operation.index] for store in self.stores)

    def states(self, test: MemoryTest, *, limit: int = pm.MAX_STATES) -> Iterator[CrashState]:
        """The crash states of a group's representative, at most `limit`."""
        for mask in pm.states(self.stores, self.predecessors, test.members[0], limit=limit):
            last = self.stores[test.members[0].stores[-1]].operation.index
            kept = sum(self._places[self.stores[number].operation.index] for number in dag.bits(mask))
            done = [place for place, micro in enumerate(self._micros) if micro.op <= last]
            kept |= (1 << (done[-1] + 1 if done else 0)) - 1 & ~self._all_stores
            begun = tuple(micro.name[6:] for micro in self._micros if micro.op <= last and micro.name.startswith("begin "))
            acks = tuple(micro.name[4:] for micro in self._micros if micro.op <= last and micro.name.startswith("ack "))
            tree = self._images.build(kept)
            yield CrashState(CrashPoint(done[-1] if done else 0), kept, "", tree, acks, begun, test.name, tree.digest())


def read_regions(path: str | Path) -> list[pm.Region]:
    """Regions of a TOML file: tables `[type.NAME]` with `size` and `fields = [{offset, size, name, array}]`, and `[[region]]` with `type`
    and `address`. Raises ConfigError.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"the regions file {path} cannot be read: {problem}") from problem
    try:
        types = {name: (int(table["size"]), tuple(_field(one) for one in table["fields"])) for name, table in data.get("type", {}).items()}
        return [pm.Region(int(one["address"]), types[one["type"]][0], one["type"], types[one["type"]][1]) for one in data.get("region", [])]
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ConfigError(f"the regions file {path} lacks or misuses {problem}; see docs/crashtest.md for an example") from problem


def _field(table: dict[str, Any]) -> pm.Field:
    return pm.Field(int(table["offset"]), int(table["size"]), str(table["name"]), bool(table.get("array", False)))
