"""One trace under one persistence model: the micro-operations, their order, what was durable when, and the images of crash states."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property

from headway.crashtest import dag
from headway.crashtest.images import ImageBuilder
from headway.crashtest.micro import CHANGE_KINDS, CONTENT_KINDS, Micro
from headway.crashtest.models.forcing import forced
from headway.crashtest.models.model import PersistenceModel
from headway.crashtest.models.order import edges, rewritten_files
from headway.crashtest.models.variants import Variant
from headway.crashtest.operations import Operation, Trace
from headway.crashtest.tree import Tree
from headway.crashtest.vfs import lower


class History:
    """Micro-operations with a model's order. Places are positions in `micros`; sets of places are bitsets.

    `whole_writes`: a write and the size it sets are one micro-operation.
    """

    def __init__(self, initial: Tree, micros: Sequence[Micro], model: PersistenceModel, operations: Sequence[Operation] = ()) -> None:
        self.initial = initial
        self.micros = list(micros)
        self.model = model
        self.operations = {operation.index: operation for operation in operations}
        self.changes = sum(1 << place for place, micro in enumerate(micros) if micro.kind in CHANGE_KINDS)
        self.preds = edges(model, micros, rewritten_files(micros, operations))
        self.ancestors = dag.ancestors(self.preds)
        self.forced_by = forced(model, self.micros, self.preds, self.operations)

    @classmethod
    def of(cls, trace: Trace, model: PersistenceModel, *, whole_writes: bool = False) -> "History":
        """Lowers a trace; raises what the simulation raises."""
        return cls(trace.initial, lower(trace, split_size=not whole_writes), model, trace.operations)

    @cached_property
    def durable_after(self) -> list[int]:
        """For each place what is certainly on the disk once everything up to and including it has completed."""
        result, durable = [], 0
        for place in range(len(self.micros)):
            durable |= self.forced_by.get(place, 0)
            result.append(durable)
        return result

    @cached_property
    def moot_after(self) -> list[int]:
        """For each place the content of files that certainly have no name left by then: it makes no difference."""
        return [moot & self.changes for moot in moot_content(self.initial, self.micros, self.durable_after)]

    def done_at(self, after: int) -> int:
        """Every change made up to and including place `after`."""
        return self.changes & ((1 << (after + 1)) - 1)

    def pending_at(self, after: int) -> int:
        """Changes made by then that a crash may or may not lose."""
        return self.done_at(after) & ~self.durable_after[after]

    def settled_at(self, after: int) -> int:
        """What is on the disk in every state at `after`, or makes no difference."""
        return self.durable_after[after] | self.moot_after[after]

    def open_at(self, after: int) -> int:
        """Pending changes that make a difference."""
        return self.done_at(after) & ~self.settled_at(after)

    def allows(self, after: int, kept: int) -> bool:
        """Whether the model lets exactly `kept` survive a crash right after place `after`."""
        done, durable = self.done_at(after), self.durable_after[after]
        return kept & ~done == 0 and durable & ~kept == 0 and all(self.ancestors[i] & ~kept == 0 for i in dag.bits(kept & ~durable))

    def with_predecessors(self, after: int, wanted: int) -> int:
        """The smallest allowed state at `after` that holds `wanted`."""
        durable = self.durable_after[after]
        return durable | dag.closure_of(self.ancestors, wanted & ~durable)

    @cached_property
    def descendants(self) -> list[int]:
        """For each place everything that cannot be on the disk without it."""
        return dag.descendants(self.preds)

    def without(self, after: int, lost: int) -> int:
        """The largest allowed state at `after` without `lost` (which must be pending)."""
        gone = lost
        for place in dag.bits(lost):
            gone |= self.descendants[place]
        return self.done_at(after) & ~(gone & ~self.durable_after[after])

    @cached_property
    def _images(self) -> ImageBuilder:
        return ImageBuilder(self.initial, self.micros)

    def tree(self, kept: int, variant: Variant | None = None) -> Tree:
        """The directory after the changes in `kept`, applied in the order they were made; `variant` gives one of them another form."""
        return self._images.build(kept, None if variant is None else {variant.place: variant.micro})

    @cached_property
    def markers(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """For each place the (begun, acknowledged) operations of the program by then."""
        result: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        begun: tuple[str, ...] = ()
        acks: tuple[str, ...] = ()
        for micro in self.micros:
            if micro.kind == "marker":
                word, _, text = micro.name.partition(" ")
                if word == "begin":
                    begun = (*begun, text)
                else:
                    acks = (*acks, text)
            result.append((begun, acks))
        return result


def moot_content(initial: Tree, micros: Sequence[Micro], durable_after: Sequence[int]) -> list[int]:
    """For each place the changes of content to inodes whose every name is gone, and durably so."""
    names = Counter(inode for _, inode, _ in initial.walk())
    touched: dict[int, int] = defaultdict(int)  # places of changes of an inode's names
    content: dict[int, int] = defaultdict(int)
    nameless: set[int] = set()
    result, moot = [], 0
    for place, micro in enumerate(micros):
        bit = 1 << place
        if micro.kind in CONTENT_KINDS:
            content[micro.inode] |= bit
        for inode, change in _name_changes(micro):
            names[inode] += change
            touched[inode] |= bit
            nameless.discard(inode)
            if names[inode] == 0:
                nameless.add(inode)
        if micro.kind == "sync":
            for inode in [one for one in nameless if touched[one] & ~durable_after[place] == 0]:
                moot |= content[inode]
                nameless.discard(inode)
        result.append(moot)
    return result


def _name_changes(micro: Micro) -> list[tuple[int, int]]:
    if micro.kind == "link":
        return [(micro.inode, 1)]
    if micro.kind == "unlink":
        return [(micro.inode, -1)]
    if micro.kind == "rename":
        return [(micro.inode, 0), *([(micro.replaced, -1)] if micro.replaced else [])]
    return []
