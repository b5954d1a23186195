"""The crash states of one representative: all before its window in full, plus each down-closed set of the window (section 4)."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from headway.crashtest import dag
from headway.crashtest.pathfinder.edges import predecessors
from headway.crashtest.pathfinder.events import Event
from headway.crashtest.pathfinder.grouping import Group, group
from headway.crashtest.pathfinder.inference import MAX_RUN_EVENTS, Behaviour, infer

MARGIN = 3  # events before and after the representative that its window also covers
MAX_EXHAUSTIVE_EVENTS = 40  # longer windows: prefixes only
MAX_EVENTS = 100  # longer windows: skipped, and reported
ENUMERATION_S = 5.0
CHUNK_EVENTS = 8
CHUNK_STRIDE = 4

How = Literal["ideals", "prefixes", "skipped"]


@dataclass(frozen=True, slots=True)
class Window:
    """Positions `first`..`last` in the event list; `how` its crash states are listed."""

    first: int
    last: int
    how: How


@dataclass(frozen=True, slots=True)
class Test:
    """One representative to test. `states` are listed by `index_sets`."""

    __test__ = False  # not pytest's

    group: Group
    window: Window


@dataclass(frozen=True, slots=True)
class Plan:
    """What Pathfinder would test of a trace. `skipped` are groups without micro-operations."""

    events: list[Event]
    predecessors: list[int]
    behaviours: dict[str, list[Behaviour]]
    groups: list[Group]
    tests: list[Test]
    skipped: list[Group]


def plan(events: list[Event], *, decompose: bool = True, max_run_events: int = MAX_RUN_EVENTS) -> Plan:
    """Infers behaviours, groups them and chooses the tests. `decompose` switches edge rule 4 (off: many more states)."""
    preds = predecessors(events, decompose=decompose)
    behaviours = infer(events, max_run_events=max_run_events)
    groups = [made for runs in behaviours.values() for made in group(events, preds, runs)]
    tests, skipped = [], []
    for made in groups:
        if any(events[i].has_micro_operations for i in made.representative.events):
            tests.append(Test(made, window_of(events, made.representative)))
        else:
            skipped.append(made)
    return Plan(events, preds, behaviours, groups, tests, skipped)


def window_of(events: Sequence[Event], behaviour: Behaviour) -> Window:
    """Everything whose number is within three of the behaviour's, whichever thread did it."""
    low = events[behaviour.events[0]].number - MARGIN
    high = events[behaviour.events[-1]].number + MARGIN
    inside = [position for position, event in enumerate(events) if low <= event.number <= high]
    length = len(inside)
    how: How = "ideals" if length <= MAX_EXHAUSTIVE_EVENTS else "prefixes" if length <= MAX_EVENTS else "skipped"
    return Window(inside[0], inside[-1], how)


def index_sets(
    events: Sequence[Event], preds: Sequence[int], window: Window, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[int]:
    """Bitsets of the events (by position) that each crash state holds, no set twice, the empty ideal left out.

    The window's own sync events are left out (they were contracted), those before it are in.

    Listing that takes more than 5 s of `clock` goes on in overlapping chunks of 8 events, each with all that is before it in full.
    """
    if window.how == "skipped":
        return
    first, last = window.first, window.last
    durable = (1 << first) - 1
    if window.how == "prefixes":
        yield from _prefixes(events, first, last, durable)
        return
    seen: set[int] = set()
    started = clock()
    for mask in _ideals(events, preds, first, last):
        seen.add(mask)
        yield durable | mask
        if clock() - started > ENUMERATION_S:
            break
    else:
        return
    for start in range(first, last + 1, CHUNK_STRIDE):
        before = _changes(events, first, start)
        for mask in _ideals(events, preds, start, min(last, start + CHUNK_EVENTS - 1)):
            if before | mask not in seen:
                seen.add(before | mask)
                yield durable | before | mask


def exhaustive(events: Sequence[Event], preds: Sequence[int]) -> Iterator[int]:
    """Every non-empty down-closed set of the whole trace: only for very short ones."""
    return _ideals(events, preds, 0, len(events) - 1)


def _changes(events: Sequence[Event], start: int, stop: int) -> int:
    return sum(1 << i for i in range(start, stop) if not events[i].is_sync)


def _ideals(events: Sequence[Event], preds: Sequence[int], first: int, last: int) -> Iterator[int]:
    syncs = sum(1 << (i - first) for i in range(first, last + 1) if events[i].is_sync)
    order = dag.contract(dag.induced(preds, first, last), syncs)
    changes = (1 << (last - first + 1)) - 1 & ~syncs
    return (mask << first for mask in dag.ideals(order, changes) if mask)


def _prefixes(events: Sequence[Event], first: int, last: int, durable: int) -> Iterator[int]:
    mask = durable
    for i in range(first, last + 1):
        if not events[i].is_sync:
            mask |= 1 << i
            yield mask
