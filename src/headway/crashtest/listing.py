"""In which order crash states of a history are listed: the exhaustive walk and the baselines of other testers. No state is built here."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from headway.crashtest import dag
from headway.crashtest.history import History
from headway.crashtest.models.variants import Variant, variants

FIRST_WAVE = 8  # states a crash point gives before the next has its turn; doubled in every further round


@dataclass(frozen=True, slots=True)
class Choice:
    """A crash right after place `after` of which exactly `kept` survives; `capped`: its point has more states than are listed."""

    after: int
    kept: int
    origin: str
    variant: Variant | None = None
    capped: bool = False


def exhaustive(history: History, *, cap: int | None, seed: int, torn: bool) -> Iterator[Choice]:
    """Every down-closed set at every crash point, a skeleton and random ones where there are more than `cap`; in widening rounds."""
    points = [at_point(history, after, cap=cap, seed=seed, torn=torn, origin="exhaustive") for after in range(len(history.micros))]
    return in_waves(points)


def at_point(history: History, after: int, *, cap: int | None, seed: int, torn: bool, origin: str) -> Iterator[Choice]:
    """The states of one crash point."""
    pending, durable = history.open_at(after), history.settled_at(after)
    capped = cap is not None and dag.count_ideals(history.ancestors, pending, limit=cap) > cap
    if not capped:
        for ideal in dag.ideals(history.ancestors, pending):
            yield Choice(after, durable | ideal, origin)
    else:
        for kept in skeleton(history, after, [1 << place for place in dag.bits(pending)]):
            yield Choice(after, kept, origin, capped=True)
    if torn:
        for choice in torn_at(history, after):
            yield Choice(after, choice.kept, origin, choice.variant, capped)
    if capped:
        draw = random.Random(f"{seed}/{after}")
        for _ in range(cap or 0):
            yield Choice(after, random_state(history, after, draw), origin, capped=True)


def skeleton(history: History, after: int, groups: Sequence[int]) -> Iterator[int]:
    """Few telling states of many: everything, nothing, all but each group, each group alone (with what must come along), all prefixes."""
    done, durable = history.done_at(after), history.settled_at(after)
    yield done
    yield durable
    for group in reversed(groups):
        yield history.without(after, group)
        yield history.with_predecessors(after, group)
    taken = durable
    for group in groups:
        taken = history.with_predecessors(after, taken | group)
        yield taken


def torn_at(history: History, after: int, among: int = -1) -> Iterator[Choice]:
    """Each pending write (of `among`) in its other forms, once alone and once with all that can be there while it is not whole."""
    durable = history.durable_after[after]
    for place in dag.bits(history.open_at(after) & among):
        for variant in variants(history.model, place, history.micros[place]):
            alone = history.with_predecessors(after, 1 << place)
            yield Choice(after, alone, "torn", variant)
            most = (history.without(after, 1 << place) | 1 << place) & ~durable
            yield Choice(after, durable | most, "torn", variant)


def random_state(history: History, after: int, draw: random.Random) -> int:
    """A random allowed state: every pending change survives with one probability, drawn once, if what it needs did."""
    kept, chance = history.settled_at(after), draw.random()
    for place in dag.bits(history.open_at(after)):
        if history.ancestors[place] & ~kept == 0 and draw.random() < chance:
            kept |= 1 << place
    return kept


def in_waves(points: Iterable[Iterator[Choice]]) -> Iterator[Choice]:
    """Round after round, so that a budget that ends early has seen something of every point."""
    alive, width = list(points), FIRST_WAVE
    while alive:
        still = []
        for point in alive:
            for _ in range(width):
                choice = next(point, None)
                if choice is None:
                    break
                yield choice
            else:
                still.append(point)
        alive, width = still, width * 2


def prefixes(history: History) -> Iterator[Choice]:
    """Everything up to each point: what a tester sees that cuts a log short."""
    return (Choice(after, history.done_at(after), "prefix") for after in range(len(history.micros)))


def drop_one(history: History) -> Iterator[Choice]:
    """At each point everything, and everything less one pending change and what depends on it (ALICE's way)."""
    for after in range(len(history.micros)):
        yield Choice(after, history.done_at(after), "drop-one")
        for place in dag.bits(history.open_at(after)):
            yield Choice(after, history.without(after, 1 << place), "drop-one")


def at_random(history: History, *, seed: int) -> Iterator[Choice]:
    """Random points and random states, without end."""
    draw = random.Random(seed)
    while history.micros:
        after = draw.randrange(len(history.micros))
        yield Choice(after, random_state(history, after, draw), "random")


def epochs(history: History, *, cap: int | None, seed: int) -> Iterator[Choice]:
    """Subsets between two syncs, everything before the first of them taken as durable (Pathfinder's fsync-reorder baseline)."""
    start = 0
    ends = [place for place, micro in enumerate(history.micros) if micro.kind == "sync"] + [len(history.micros)]
    points = []
    for end in ends:
        if end > start:
            points.append(_epoch(history, start, end - 1, cap, seed))
        start = end
    return in_waves(points)


def _epoch(history: History, start: int, last: int, cap: int | None, seed: int) -> Iterator[Choice]:
    before = history.changes & ((1 << start) - 1)
    among = history.done_at(last) & ~before
    if cap is None or dag.count_ideals(history.ancestors, among, limit=cap) <= cap:
        for ideal in dag.ideals(history.ancestors, among):
            yield Choice(last, before | ideal, "fsync-reorder")
        return
    draw = random.Random(f"{seed}/{start}")
    for _ in range(cap):
        kept, chance = before, draw.random()
        for place in dag.bits(among):
            if history.ancestors[place] & ~kept == 0 and draw.random() < chance:
                kept |= 1 << place
        yield Choice(last, kept, "fsync-reorder", capped=True)
