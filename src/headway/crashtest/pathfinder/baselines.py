"""The explorers that Pathfinder compares itself with, over the same events and edges."""

import random
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from headway.crashtest import dag
from headway.crashtest.pathfinder.events import Event
from headway.crashtest.pathfinder.windows import exhaustive

Baseline = Literal["exhaustive", "linear", "random", "fsync", "fsync-reorder", "alice"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


def index_sets(kind: Baseline, events: Sequence[Event], preds: Sequence[int], *, seed: int = 0) -> Iterator[int]:
    """Bitsets of the events that each crash state holds; sync events are in none.

    - exhaustive: every down-closed set of the whole trace. linear: every prefix. random: random down-closed sets, without end.
    - fsync: the prefix up to each sync. fsync-reorder: for each stretch between syncs its down-closed subsets, all before it in full.
    - alice: every prefix, and every prefix less one event and what depends on it.
    """
    changes = sum(1 << i for i, event in enumerate(events) if not event.is_sync)
    order = dag.contract(preds, (1 << len(events)) - 1 & ~changes)
    if kind == "exhaustive":
        return exhaustive(events, preds)
    if kind == "linear":
        return (changes & ((2 << i) - 1) for i in dag.bits(changes))
    if kind == "random":
        return _random(order, changes, random.Random(seed))
    if kind == "fsync":
        return (changes & ((1 << i) - 1) for i, event in enumerate(events) if event.is_sync)
    if kind == "fsync-reorder":
        return _between_syncs(events, order, changes)
    return _drop_one(order, changes)


def _random(order: Sequence[int], changes: int, draw: random.Random) -> Iterator[int]:
    while changes:
        kept, chance = 0, draw.random()
        for i in dag.bits(changes):
            if order[i] & ~kept == 0 and draw.random() < chance:
                kept |= 1 << i
        yield kept


def _between_syncs(events: Sequence[Event], order: Sequence[int], changes: int) -> Iterator[int]:
    start = 0
    for end in [*(i for i, event in enumerate(events) if event.is_sync), len(events)]:
        before = changes & ((1 << start) - 1)
        for mask in dag.ideals(order, changes & ((1 << end) - 1) & ~before):
            if mask:
                yield before | mask
        start = end


def _drop_one(order: Sequence[int], changes: int) -> Iterator[int]:
    after = dag.descendants(order)
    for i in dag.bits(changes):
        prefix = changes & ((2 << i) - 1)
        yield prefix
        for lost in dag.bits(prefix):
            if lost != i:
                yield prefix & ~(after[lost] | 1 << lost)
