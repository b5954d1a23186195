"""Pathfinder's graph for persistent memory and mappings (specification: MMIO/PM graph): stores to 64-byte lines, flushes, fences, msync.

Follows x86 TSO: stores to one line persist in order; a flush followed by a fence makes what was flushed come before later stores.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from headway.crashtest import dag
from headway.crashtest.operations import Frame, Operation

LINE_BYTES = 64
MAX_STATES = 512
KINDS = frozenset({"store", "flush", "fence", "msync"})


@dataclass(frozen=True, slots=True)
class Store:
    """A store, a node of the graph. `number` counts stores from 0; `field` is (instance address, type, field) where regions know it."""

    number: int
    operation: Operation
    field: tuple[int, str, str] | None = None

    @property
    def lines(self) -> range:
        """The cache lines it touches."""
        start, length = self.operation.address, max(1, self.operation.length)
        return range(start // LINE_BYTES, (start + length - 1) // LINE_BYTES + 1)


@dataclass(frozen=True, slots=True)
class Field:
    """A member of a type: bytes from `offset`, `size` of them; `array` if it is one."""

    offset: int
    size: int
    name: str
    array: bool = False


@dataclass(frozen=True, slots=True)
class Region:
    """An instance of a type at an address of the program, as the user describes it."""

    address: int
    size: int
    type: str
    fields: tuple[Field, ...]


def graph(operations: Iterable[Operation], regions: Sequence[Region] = ()) -> tuple[list[Store], list[int]]:
    """(stores, predecessors as bitsets of store numbers) of a trace's stores, flushes, fences and msyncs, in order."""
    stores: list[Store] = []
    preds: list[int] = []
    dirty: dict[int, int] = defaultdict(int)
    flushed: dict[int, int] = {}
    clean = 0
    for operation in operations:
        if operation.kind == "store":
            store = Store(len(stores), operation, _field_at(regions, operation.address))
            stores.append(store)
            preds.append(0)
            for line in store.lines:
                for x in dag.bits(flushed.pop(line, 0)):
                    preds[x] |= clean & ((1 << x) - 1)
                preds[store.number] |= dirty.pop(line, 0) & ~(1 << store.number)
                dirty[line] |= 1 << store.number
            preds[store.number] |= clean
        elif operation.kind == "flush":
            for line in _lines(operation):
                if line in dirty:
                    flushed[line] = flushed.get(line, 0) | dirty.pop(line)
        elif operation.kind == "fence":
            for mask in flushed.values():
                clean |= mask
        elif operation.kind == "msync":
            for line in _lines(operation):
                clean |= dirty.get(line, 0)
    return stores, preds


def _lines(operation: Operation) -> range:
    start, length = operation.address, max(1, operation.length)
    return range(start // LINE_BYTES, (start + length - 1) // LINE_BYTES + 1)


def _field_at(regions: Sequence[Region], address: int) -> tuple[int, str, str] | None:
    for region in regions:
        if region.address <= address < region.address + region.size:
            for one in region.fields:
                if region.address + one.offset <= address < region.address + one.offset + one.size:
                    return region.address, region.type, one.name
    return None


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Stores (by number) to one instance of a type, or to one scalar (`type` "")."""

    type: str
    instance: int
    stores: tuple[int, ...]


def behaviours(stores: Sequence[Store], preds: Sequence[int], regions: Sequence[Region]) -> list[Behaviour]:
    """The update behaviours of every instance: its stores in order, cut by the three rules."""
    before = dag.ancestors(preds)
    sizes = {region.type: region.size for region in regions}
    arrays = {(region.type, one.name) for region in regions for one in region.fields if one.array}
    per_instance: dict[tuple[str, int], list[int]] = defaultdict(list)
    for store in stores:
        if store.field is not None:
            address, type_name, _ = store.field
            per_instance[type_name, address].append(store.number)
    result = []
    for (type_name, address), numbers in per_instance.items():
        for piece in _cut_by_order(numbers, preds, before, sizes[type_name]):
            for part in _cut_by_repetition(piece, stores, arrays):
                result += [Behaviour(type_name, address, tuple(final)) for final in _cut_at_one_field(part, stores)]
    return result


def _cut_by_order(numbers: Sequence[int], preds: Sequence[int], before: Sequence[int], size: int) -> list[list[int]]:
    """Rule 1: where only a path, no edge, leads on, or more stores lie between than the type has bytes."""
    pieces = [[numbers[0]]]
    for a, b in itertools.pairwise(numbers):
        indirect = before[b] >> a & 1 and not preds[b] >> a & 1
        if indirect or b - a > size:
            pieces.append([b])
        else:
            pieces[-1].append(b)
    return pieces


def _cut_by_repetition(piece: Sequence[int], stores: Sequence[Store], arrays: set[tuple[str, str]]) -> list[list[int]]:
    """Rule 2: where a field is written again after others, or an array field again at all."""
    parts: list[list[int]] = [[]]
    for number in piece:
        mine = stores[number].field
        seen = [stores[other].field for other in parts[-1]]
        again = mine in seen and (seen[-1] != mine or (mine is not None and (mine[1], mine[2]) in arrays))
        if again:
            parts.append([])
        parts[-1].append(number)
    return parts


def _cut_at_one_field(piece: Sequence[int], stores: Sequence[Store]) -> list[list[int]]:
    """Rule 3: before every write of the repeated field whose cuts give the shortest longest piece."""
    names = [stores[number].field for number in piece]
    best = [list(piece)]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            parts: list[list[int]] = [[]]
            for number, field_name in zip(piece, names):
                if field_name == name and parts[-1]:
                    parts.append([])
                parts[-1].append(number)
            if max(map(len, parts)) < max(map(len, best)):
                best = parts
    return best


def group(stores: Sequence[Store], preds: Sequence[int], found: Sequence[Behaviour]) -> list[list[Behaviour]]:
    """Behaviours of one type that the first of each group represents: fewer constraints on the same fields give more crash states."""
    groups: list[list[Behaviour]] = []
    for behaviour in sorted(found, key=lambda one: (-len(one.stores), _edge_count(preds, one))):
        joined = [members for members in groups if members[0].type == behaviour.type and _represents(stores, preds, members[0], behaviour)]
        for members in joined:
            members.append(behaviour)
        if not joined:
            groups.append([behaviour])
    return groups


def _edge_count(preds: Sequence[int], behaviour: Behaviour) -> int:
    inside = sum(1 << number for number in behaviour.stores)
    return sum((preds[number] & inside).bit_count() for number in behaviour.stores)


def _represents(stores: Sequence[Store], preds: Sequence[int], large: Behaviour, small: Behaviour) -> bool:
    image: dict[int, int] = {}
    for big in large.stores:
        for candidate in small.stores:
            if candidate not in image and _name(stores[candidate]) == _name(stores[big]):
                image[candidate] = big
                break
    if len(image) < len(small.stores):
        return False
    original = {big: candidate for candidate, big in image.items()}
    return all(
        preds[original[later]] >> original[earlier] & 1 for later in original for earlier in dag.bits(preds[later]) if earlier in original
    )


def _name(store: Store) -> str:
    return store.field[2] if store.field is not None else ""


def scalar_groups(stores: Sequence[Store]) -> list[list[Behaviour]]:
    """Stores outside of every region, by address, grouped where the same set of call stacks wrote them."""
    written: dict[int, list[int]] = defaultdict(list)
    for store in stores:
        if store.field is None:
            written[store.operation.address].append(store.number)
    groups: dict[frozenset[tuple[Frame, ...]], list[Behaviour]] = defaultdict(list)
    for address, numbers in written.items():
        stacks = frozenset(stores[number].operation.stack for number in numbers)
        groups[stacks].append(Behaviour("", address, tuple(numbers)))
    return list(groups.values())


def states(stores: Sequence[Store], preds: Sequence[int], behaviour: Behaviour, *, limit: int = MAX_STATES) -> Iterator[int]:
    """Crash states of a representative: all stores before it, and the orders in which the cache lines it touches may reach the memory.

    Bitsets of store numbers, each once, at most `limit`; a state is a down-closed set of the stores from the behaviour's first to its last.
    """
    first, last = behaviour.stores[0], behaviour.stores[-1]
    settled = (1 << first) - 1
    window = ((1 << (last + 1)) - 1) & ~settled
    for count, ideal in enumerate(dag.ideals(preds, window)):
        if count >= limit:
            return
        yield settled | ideal
