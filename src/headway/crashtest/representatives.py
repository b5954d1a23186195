"""Which crash points stand for all: one for each kind of part of what is pending, each pair of kinds, and each step between operations.

A part (behaviours.py) is a set of pending changes that no order binds to the others. Where two parts are pending together, any loss in one
goes with any loss in the other; instead of all combinations, every part is tested with the others all kept and all lost, and every older
part lost while the newest survives. Parts hold all that no sync has made durable yet, also the tails of older files, so that bugs which
span a log switch need no luck.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from headway.crashtest import dag
from headway.crashtest.behaviours import Labels, Part, parts_at
from headway.crashtest.history import History
from headway.crashtest.listing import Choice, in_waves, random_state, torn_at

RECHECK_SHARE = 20  # one state in so many is a random one of a represented point: it measures the error of representing


@dataclass(slots=True)
class Chosen:
    """The crash point (and part) that stands for each class of parts, each pair of classes and each context, and who is represented."""

    classes: dict[str, tuple[int, Part]] = field(default_factory=dict)
    members: dict[str, int] = field(default_factory=dict)
    pairs: dict[tuple[str, str], tuple[int, Part]] = field(default_factory=dict)
    contexts: dict[tuple[str, str], int] = field(default_factory=dict)
    represented: list[int] = field(default_factory=list)


def choose(history: History) -> Chosen:
    """Classifies every crash point; of each class the instance with most changes (the first of those) is tested.

    A point whose next micro-operation is a change or an ack is covered by the point after it: the same sets can be lost there, and more.
    """
    labels = Labels(history)
    chosen = Chosen()
    for after in range(len(history.micros)):
        if _covered_by_next(history, after):
            continue
        parts = parts_at(history, labels, after)
        for part in parts:
            chosen.members[part.key] = chosen.members.get(part.key, 0) + 1
            best = chosen.classes.get(part.key)
            if best is None or part.places.bit_count() > best[1].places.bit_count():
                chosen.classes[part.key] = (after, part)
        for part in parts[:-1]:
            chosen.pairs.setdefault((part.key, parts[-1].key), (after, part))
    for after in range(len(history.micros)):
        following = labels.of[after + 1] if after + 1 < len(history.micros) else ""
        chosen.contexts.setdefault((labels.of[after], following), after)
    tested = {after for after, _ in chosen.classes.values()}
    chosen.represented = [after for after in range(len(history.micros)) if after not in tested]
    return chosen


def states(history: History, chosen: Chosen, *, cap: int | None, seed: int, torn: bool) -> Iterator[Choice]:
    """The states of every class in widening rounds, then of pairs and contexts, with random re-checks of represented points in between."""
    listed = [_class_states(history, f"class {number}", *one, cap, torn) for number, one in enumerate(chosen.classes.values())]
    draw = random.Random(seed)
    for number, choice in enumerate(_all_of(history, chosen, listed)):
        yield choice
        if number % RECHECK_SHARE == RECHECK_SHARE - 1 and chosen.represented:
            after = draw.choice(chosen.represented)
            yield Choice(after, random_state(history, after, draw), "recheck")


def _all_of(history: History, chosen: Chosen, listed: list[Iterator[Choice]]) -> Iterator[Choice]:
    yield from in_waves(listed)
    for after, part in chosen.pairs.values():
        yield Choice(after, history.without(after, part.places), "pair")
    for after in chosen.contexts.values():
        yield Choice(after, history.done_at(after), "context")
        yield Choice(after, history.settled_at(after), "context")


def _class_states(history: History, name: str, after: int, part: Part, cap: int | None, torn: bool) -> Iterator[Choice]:
    """Every down-closed set of the part's groups, with the other parts kept and with them lost."""
    settled = history.settled_at(after)
    others = history.done_at(after) & ~part.places & ~settled
    capped = part.preds is None or (cap is not None and dag.count_ideals(part.preds, limit=cap) > cap)
    sets = _skeleton(history, after, part) if capped or part.preds is None else _ideals(part.groups, part.preds)
    for mine in sets:
        yield Choice(after, settled | others | mine, name, capped=capped)
        yield Choice(after, settled | mine, name, capped=capped)
    for kept in _size_first(history, after, part):
        yield Choice(after, kept, name)
    if torn:
        telling = sum(1 << (group.bit_length() - 1) for group in part.groups)  # the last of each group; the others look the same
        for choice in torn_at(history, after, telling):
            yield Choice(after, choice.kept, name, choice.variant)


def _ideals(groups: tuple[int, ...], preds: tuple[int, ...]) -> Iterator[int]:
    for ideal in dag.ideals(preds):
        yield sum(groups[number] for number in dag.bits(ideal))


def _skeleton(history: History, after: int, part: Part) -> Iterator[int]:
    """Few telling subsets of a part with too many: all, none, all but each group, each with what it needs, prefixes, two groups lost."""
    inside = part.places
    yield inside
    yield 0
    taken = 0
    for group in part.groups:
        yield history.without(after, group) & inside
        yield history.with_predecessors(after, group) & inside
        taken |= history.with_predecessors(after, group) & inside
        yield taken
    for one in part.groups[:-1]:
        yield history.without(after, one | part.groups[-1]) & inside


def _size_first(history: History, after: int, part: Part) -> Iterator[int]:
    """For the newest write of each file whose size the model lets precede its data: the size without the data."""
    newest: dict[int, tuple[int, int]] = {}
    data_of: dict[tuple[int, int], int] = {}
    for place in dag.bits(part.places):
        micro = history.micros[place]
        if micro.kind == "data":
            data_of[micro.op, micro.inode] = place
        elif micro.kind == "size" and (micro.op, micro.inode) in data_of:
            data = data_of[micro.op, micro.inode]
            if history.ancestors[place] >> data & 1 == 0:
                newest[micro.inode] = (data, place)
    for data, size in newest.values():
        yield history.without(after, 1 << data)
        yield history.with_predecessors(after, 1 << size)


def _covered_by_next(history: History, after: int) -> bool:
    if after + 1 >= len(history.micros):
        return False
    following = history.micros[after + 1]
    return following.kind not in ("sync", "marker") or (following.kind == "marker" and following.name.startswith("ack"))
