"""Pathfinder's mode as a whole: a trace in, crash states of its representatives (or of a baseline) out, with images."""

from collections import defaultdict
from collections.abc import Iterator

from headway.crashtest import dag
from headway.crashtest.crash_states import CrashPoint, CrashState
from headway.crashtest.images import ImageBuilder
from headway.crashtest.operations import Trace
from headway.crashtest.pathfinder import baselines, windows
from headway.crashtest.pathfinder.events import events_of
from headway.crashtest.pathfinder.inference import MAX_RUN_EVENTS
from headway.crashtest.pathfinder.windows import Plan, Test
from headway.crashtest.tree import Directory, File
from headway.crashtest.vfs import lower


class Faithful:
    """The plan of a trace and the states of its tests. A system call is applied whole and at its own offset."""

    def __init__(self, trace: Trace, *, decompose: bool = True, max_run_events: int = MAX_RUN_EVENTS) -> None:
        existing = [(f"{trace.root}/{path}", len(node.data)) for path, _, node in trace.initial.walk() if isinstance(node, File)]
        existing += [(f"{trace.root}/{path}", 0) for path, _, node in trace.initial.walk() if isinstance(node, Directory)]
        self.plan: Plan = windows.plan(events_of(trace.operations, existing), decompose=decompose, max_run_events=max_run_events)
        self.micros = lower(trace, split_size=False)
        self._images = ImageBuilder(trace.initial, self.micros)
        self._places: dict[int, int] = defaultdict(int)
        for place, micro in enumerate(self.micros):
            self._places[micro.op] |= 1 << place
        self._spans = _marked_spans(trace, {event.operation.index: i for i, event in enumerate(self.plan.events)})

    @property
    def skipped_windows(self) -> list[Test]:
        """Tests whose window is too long to be tested at all: to be reported."""
        return [test for test in self.plan.tests if test.window.how == "skipped"]

    def states(self, test: Test) -> Iterator[CrashState]:
        """The crash states of one representative, each index set once (several may look the same on disk: see `digest`)."""
        for mask in windows.index_sets(self.plan.events, self.plan.predecessors, test.window):
            yield self.state(mask, test.group.function)

    def baseline(self, kind: baselines.Baseline, *, seed: int = 0) -> Iterator[CrashState]:
        """The crash states that a baseline explorer lists."""
        for mask in baselines.index_sets(kind, self.plan.events, self.plan.predecessors, seed=seed):
            yield self.state(mask, kind)

    def state(self, mask: int, origin: str) -> CrashState:
        """The crash state of a bitset of events."""
        kept = 0
        for i in dag.bits(mask):
            kept |= self._places[self.plan.events[i].operation.index]
        tree = self._images.build(kept)
        begun = tuple(text for text, span in self._spans if span & mask)
        acks = tuple(text for text, span in self._spans if span and span & ~mask == 0)
        return CrashState(CrashPoint(max(0, kept.bit_length() - 1)), kept, "", tree, acks, begun, origin, tree.digest())


def _marked_spans(trace: Trace, position: dict[int, int]) -> list[tuple[str, int]]:
    """For each begin marker its text and the events of its thread up to the ack of the same text, syncs left out."""
    open_spans: dict[int, dict[str, int]] = defaultdict(dict)
    spans: list[tuple[str, int]] = []
    for operation in trace.operations:
        mine = open_spans[operation.tid]
        text = operation.marker or ""
        if operation.kind == "begin":
            mine[text] = 0
        elif operation.kind == "ack":
            if text in mine:
                spans.append((text, mine.pop(text)))
        elif operation.index in position and operation.kind not in ("fsync", "fdatasync", "sync", "syncfs"):
            for begun in mine:
                mine[begun] |= 1 << position[operation.index]
    return spans
