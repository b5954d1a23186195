"""What a completed sync makes durable under a model."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from headway.crashtest import dag
from headway.crashtest.micro import CHANGE_KINDS, CONTENT_KINDS, NAME_KINDS, Micro
from headway.crashtest.models.model import PersistenceModel
from headway.crashtest.models.order import metadata_of_names
from headway.crashtest.operations import Operation


def forced(
    model: PersistenceModel, micros: Sequence[Micro], preds: Sequence[int], operations: Mapping[int, Operation] | None = None
) -> dict[int, int]:
    """For each sync (by place) the bitset of what it alone makes durable, predecessors included.

    A change is forced only if its call had returned when the sync was called (`operations` by index; without them the list's order counts).
    A sync of a range forces nothing: it does not empty the disk's cache and commits no metadata.
    """
    all_before = dag.ancestors(preds)
    own_before = _own_order(micros)
    book = _Book(model, micros)
    result = {}
    for place, micro in enumerate(micros):
        if micro.kind == "sync":
            mask = book.target(micro) & _returned(place, micros, operations)
            result[place] = dag.closure_of(own_before if model.sync_alone and micro.scope != "all" else all_before, mask)
        elif micro.kind in CHANGE_KINDS:
            book.note(place, micro)
    return result


class _Book:
    """Which changes belong to which inode and directory, so far."""

    def __init__(self, model: PersistenceModel, micros: Sequence[Micro]) -> None:
        self._model = model
        self._micros = micros
        self._metadata = metadata_of_names(model, micros)
        self._everything = 0
        self._content: dict[int, int] = defaultdict(int)
        self._names_of: dict[int, int] = defaultdict(int)
        self._names_in: dict[int, int] = defaultdict(int)

    def note(self, place: int, micro: Micro) -> None:
        bit = 1 << place
        self._everything |= bit
        if micro.kind in CONTENT_KINDS:
            self._content[micro.inode] |= bit
        if micro.kind in NAME_KINDS:
            for inode in {micro.inode, micro.replaced} - {0}:
                self._names_of[inode] |= bit
            for directory in {micro.parent, micro.parent2} - {0}:
                self._names_in[directory] |= bit

    def target(self, sync: Micro) -> int:
        if sync.scope == "all":
            return self._everything
        if sync.scope == "range":
            return 0
        if sync.scope == "dir":
            mask = self._names_in[sync.inode] | self._content[sync.inode]
        else:
            mask = self._content[sync.inode]
            if sync.size >= 0:
                mask = sum(1 << place for place in dag.bits(mask) if _touches(self._micros[place], sync))
        if self._model.sync_names == "all":
            mask |= self._metadata & self._everything
        elif self._model.sync_names == "own":
            mask |= self._names_of[sync.inode]
        return mask


def _touches(micro: Micro, sync: Micro) -> bool:
    """Whether a change of content is in the bytes that an msync names; sizes and cuts always are."""
    return micro.kind not in ("data", "store") or (micro.offset < sync.offset + sync.size and sync.offset < micro.offset + len(micro.data))


def _returned(place: int, micros: Sequence[Micro], operations: Mapping[int, Operation] | None) -> int:
    """Everything before `place` whose system call had returned when the sync at `place` was called."""
    mask = (1 << place) - 1
    if operations is None or micros[place].op not in operations:
        return mask
    called = operations[micros[place].op].seq_enter
    for earlier in range(place - 1, -1, -1):
        operation = operations.get(micros[earlier].op)
        if operation is None or operation.index == micros[place].op:
            continue  # an O_DSYNC write's own data
        if operation.seq_exit <= called:
            break
        mask &= ~(1 << earlier)
    return mask


def _own_order(micros: Sequence[Micro]) -> list[int]:
    """What a log tree must hold to show an inode at all: its own older changes and the directories above it."""
    last: dict[int, int] = defaultdict(int)
    direct = []
    for place, micro in enumerate(micros):
        mask = 0
        if micro.kind in CHANGE_KINDS:
            mask = last[micro.inode]
            if micro.kind in NAME_KINDS:
                for directory in {micro.parent, micro.parent2} - {0}:
                    mask |= last[-directory]  # what created the directory
            last[micro.inode] = 1 << place
            if micro.kind == "mkdir":
                last[-micro.inode] = 1 << place
        direct.append(mask)
    return dag.ancestors(direct)
