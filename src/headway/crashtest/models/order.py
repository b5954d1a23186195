"""Predecessors: for each micro-operation the earlier ones that a model puts on the disk first. Linear in the length of the list."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from headway.crashtest.micro import BLOCK_BYTES, CHANGE_KINDS, CONTENT_KINDS, NAME_KINDS, Micro
from headway.crashtest.models.model import PersistenceModel
from headway.crashtest.operations import Operation
from headway.crashtest.tree import OUTSIDE, ROOT


def edges(model: PersistenceModel, micros: Sequence[Micro], rewrites: Mapping[int, int] | None = None) -> list[int]:
    """Bitsets over places in `micros`; syncs and markers have none and are in none. `rewrites` as from `rewritten_files`.

    Edges that others imply may be missing or present: take `dag.ancestors` for the whole order.
    """
    if model.everything_in_order:
        return _in_order(micros)
    rules = _Rules(model, micros, rewrites or {})
    return [rules.before(place, micro) if micro.kind in CHANGE_KINDS else 0 for place, micro in enumerate(micros)]


def rewritten_files(micros: Sequence[Micro], operations: Sequence[Operation]) -> dict[int, int]:
    """For each cut to 0 bytes (by place) the index of the operation that closed the descriptor it was made through."""
    open_cuts: dict[tuple[int, int], list[int]] = defaultdict(list)
    cuts = {micro.op: place for place, micro in enumerate(micros) if micro.kind == "trunc" and micro.size == 0}
    closes: dict[int, int] = {}
    for operation in operations:
        if operation.index in cuts:
            fd = operation.fd2 if operation.kind in ("open", "creat") else operation.fd
            if fd is not None:
                open_cuts[operation.pid, fd].append(cuts[operation.index])
        elif operation.kind == "close" and operation.fd is not None:
            for cut in open_cuts.pop((operation.pid, operation.fd), []):
                closes[cut] = operation.index
    return closes


def metadata_of_names(model: PersistenceModel, micros: Sequence[Micro]) -> int:
    """The micro-operations that take part in the model's order of names (and are committed with them)."""
    with_data = {(micro.op, micro.inode) for micro in micros if micro.kind == "data"}
    mask = 0
    for place, micro in enumerate(micros):
        joins = micro.kind in ("trunc", "xattr") or (micro.kind == "size" and (micro.op, micro.inode) not in with_data)
        if micro.kind in NAME_KINDS or (model.truncations_with_names and joins):
            mask |= 1 << place
    return mask


def _in_order(micros: Sequence[Micro]) -> list[int]:
    result, last = [], 0
    for place, micro in enumerate(micros):
        changes = micro.kind in CHANGE_KINDS
        result.append(last if changes else 0)
        last = 1 << place if changes else last
    return result


class _Rules:
    """What has happened so far, as the places that a later micro-operation may have to follow."""

    def __init__(self, model: PersistenceModel, micros: Sequence[Micro], rewrites: Mapping[int, int]) -> None:
        self._model = model
        self._metadata = metadata_of_names(model, micros)
        self._grows = {(micro.op, micro.inode) for micro in micros if micro.kind == "size"}
        # (operation that closed the file, inode, first place of its new content), soonest first
        self._rewrites = sorted((close, micros[cut].inode, cut) for cut, close in rewrites.items())
        self._created: dict[int, int] = {}
        self._last_name = 0
        self._last_in_directory: dict[int, int] = defaultdict(int)
        self._last_size: dict[int, int] = defaultdict(int)
        self._last_cut: dict[int, int] = defaultdict(int)
        self._last_on_page: dict[tuple[int, int], int] = {}
        self._content: dict[int, int] = defaultdict(int)
        self._own_data: dict[tuple[int, int], int] = defaultdict(int)

    def before(self, place: int, micro: Micro) -> int:
        mask = 0
        if micro.kind in CONTENT_KINDS:
            mask |= self._content_rules(place, micro)
        if micro.kind in NAME_KINDS:
            mask |= self._name_rules(place, micro)
        if self._model.names == "total" and self._metadata >> place & 1:
            mask |= self._last_name | self._awaited_rewrites(place, micro)
            self._last_name = 1 << place
        return mask

    def _content_rules(self, place: int, micro: Micro) -> int:
        model, inode, bit = self._model, micro.inode, 1 << place
        mask = self._created.get(inode, 0) if model.after_link else 0
        sets_size = micro.kind in ("size", "trunc") or micro.size >= 0
        extends = micro.kind == "data" and (sets_size or (micro.op, inode) in self._grows)
        if model.growth_in_order:
            if sets_size or extends:
                mask |= self._last_size[inode]
            elif micro.kind == "data" and not micro.allocated:
                mask |= self._last_cut[inode]  # a block that was allocated after the cut
        if model.pages_in_order and micro.kind in ("data", "store"):
            for page in range(micro.offset // BLOCK_BYTES, -(-(micro.offset + len(micro.data)) // BLOCK_BYTES)):
                mask |= self._last_on_page.get((inode, page), 0)
                self._last_on_page[inode, page] = bit
        if micro.kind == "data" and (model.data_before_size == "always" or (model.data_before_size == "fresh" and not micro.allocated)):
            self._own_data[micro.op, inode] |= bit
        if micro.kind == "size":
            mask |= self._own_data[micro.op, inode]
        if sets_size:
            self._last_size[inode] = bit
        if micro.kind == "trunc":
            self._last_cut[inode] = bit
        self._content[inode] |= bit
        return mask & ~bit

    def _name_rules(self, place: int, micro: Micro) -> int:
        model, bit = self._model, 1 << place
        directories = {micro.parent} | ({micro.parent2} if micro.kind in ("rename", "exchange") else set())
        directories.discard(OUTSIDE)
        mask = 0
        for directory in directories:
            if model.after_link and directory != ROOT:
                mask |= self._created.get(directory, 0)
            if model.names == "directory":
                mask |= self._last_in_directory[directory]
                self._last_in_directory[directory] = bit
        if micro.kind == "rename" and micro.replaced and model.replace_waits_for_data:
            mask |= self._content[micro.inode]
        if micro.kind in ("link", "symlink", "mkdir"):
            self._created.setdefault(micro.inode, bit)
        return mask

    def _awaited_rewrites(self, place: int, micro: Micro) -> int:
        mask = 0
        if self._model.rewrite_waits_for_data:
            while self._rewrites and self._rewrites[0][0] < micro.op:
                _, inode, cut = self._rewrites.pop(0)
                mask |= self._content[inode] >> cut << cut
        return mask & ~(1 << place)
