"""Which crash points stand for all: one of each shape of pending changes, and one of each step from operation to operation.

A shape (behaviours.py) holds everything that no sync has made durable yet, also the tails of older files, so that bugs which span a log
switch need no luck. A point whose next micro-operation is a change or an ack is covered by the point after it: the same sets can be lost
there, and more.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from headway.crashtest import dag
from headway.crashtest.behaviours import Labels, Shape, shape_at
from headway.crashtest.history import History
from headway.crashtest.listing import Choice, in_waves, random_state, skeleton, torn_at

RECHECK_SHARE = 20  # one state in so many is a random one of a represented point: it measures the error of representing

NEWEST_GROUPS = 4  # of a shape with too many down-closed sets: how many are paired with every older group


@dataclass(slots=True)
class Chosen:
    """The representative of each class of crash points, by key, and of each context."""

    classes: dict[str, tuple[int, Shape]] = field(default_factory=dict)
    members: dict[str, int] = field(default_factory=dict)
    contexts: dict[tuple[str, str], int] = field(default_factory=dict)
    represented: list[int] = field(default_factory=list)

    @property
    def represented_points(self) -> int:
        return len(self.represented)


def choose(history: History) -> Chosen:
    """Classifies every crash point; of each class the one with most pending changes (the first of those) is tested."""
    labels = Labels(history)
    chosen = Chosen()
    points = [after for after in range(len(history.micros)) if not _covered_by_next(history, after)]
    for after in points:
        shape = shape_at(history, labels, after)
        chosen.members[shape.key] = chosen.members.get(shape.key, 0) + 1
        best = chosen.classes.get(shape.key)
        if best is None or history.pending_at(after).bit_count() > history.pending_at(best[0]).bit_count():
            chosen.classes[shape.key] = (after, shape)
    for after in range(len(history.micros)):
        following = labels.of[after + 1] if after + 1 < len(history.micros) else ""
        chosen.contexts.setdefault((labels.of[after], following), after)
    tested = {after for after, _ in chosen.classes.values()}
    chosen.represented = [after for after in range(len(history.micros)) if after not in tested]
    return chosen


def states(history: History, chosen: Chosen, *, cap: int | None, seed: int, torn: bool) -> Iterator[Choice]:
    """The states of every class in widening rounds, then of every context, with random re-checks of represented points in between."""
    listed = [_class_states(history, f"class {number}", *one, cap, torn) for number, one in enumerate(chosen.classes.values())]
    draw = random.Random(seed)
    for number, choice in enumerate(_with_contexts(history, chosen, listed)):
        yield choice
        if number % RECHECK_SHARE == RECHECK_SHARE - 1 and chosen.represented:
            after = draw.choice(chosen.represented)
            yield Choice(after, random_state(history, after, draw), "recheck")


def _with_contexts(history: History, chosen: Chosen, listed: list[Iterator[Choice]]) -> Iterator[Choice]:
    yield from in_waves(listed)
    for after in chosen.contexts.values():
        yield Choice(after, history.done_at(after), "context")
        yield Choice(after, history.durable_after[after], "context")


def _class_states(history: History, name: str, after: int, shape: Shape, cap: int | None, torn: bool) -> Iterator[Choice]:
    durable = history.durable_after[after]
    capped = shape.preds is None or (cap is not None and dag.count_ideals(shape.preds, limit=cap) > cap)
    if capped or shape.preds is None:
        for kept in skeleton(history, after, shape.groups):
            yield Choice(after, kept, name, capped=True)
        yield from _pairs(history, name, after, shape)
    else:
        for ideal in dag.ideals(shape.preds):
            kept = durable
            for number in dag.bits(ideal):
                kept |= shape.groups[number]
            yield Choice(after, kept, name)
    if torn:
        telling = _telling(shape)
        for choice in torn_at(history, after):
            if choice.variant is not None and telling >> choice.variant.place & 1:
                yield Choice(after, choice.kept, name, choice.variant)


def _pairs(history: History, name: str, after: int, shape: Shape) -> Iterator[Choice]:
    """Each group lost together with one of the newest, all else kept: what spans two behaviours."""
    for current in shape.groups[-NEWEST_GROUPS:]:
        for older in shape.groups:
            if older < current:
                yield Choice(after, history.without(after, older | current), name, capped=True)


def _telling(shape: Shape) -> int:
    """The writes worth tearing: of each group the last (the others of a merged run look the same)."""
    return sum(1 << (group.bit_length() - 1) for group in shape.groups)


def _covered_by_next(history: History, after: int) -> bool:
    if after + 1 >= len(history.micros):
        return False
    following = history.micros[after + 1]
    return following.kind not in ("sync", "marker") or (following.kind == "marker" and following.name.startswith("ack"))
