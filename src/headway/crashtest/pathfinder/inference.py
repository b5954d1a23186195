"""Update behaviours from call stacks: which runs of events one function issued for one purpose (specification, section 4).

A call tree per thread collects the runs that the longest common prefix of neighbouring stacks delimits; each function then owns its
runs and those of its callees, cut where the trace jumps to something else.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from headway.crashtest.operations import Frame
from headway.crashtest.pathfinder.events import Event

MAX_RUN_EVENTS = 40  # the original's max_um_size
MAX_HEIGHT = 5
GAP = 10  # the original clusters indices by DBSCAN with eps=10 and one point a cluster: the same as cutting at gaps


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A run of events of one function: `events` are positions in the list that was given, ascending."""

    function: str
    events: tuple[int, ...]


@dataclass(slots=True)
class _Call:
    function: str
    parent: "_Call | None" = None
    children: dict[str, "_Call"] = field(default_factory=dict)
    runs: list[list[int]] = field(default_factory=list)


def known(frame: Frame) -> bool:
    """Whether the frame has source information; others are the C library's and take no part."""
    return frame.file != ""


def infer(events: Sequence[Event], *, max_run_events: int = MAX_RUN_EVENTS) -> dict[str, list[Behaviour]]:
    """All update behaviours by function name, in the order in which functions and runs first appear."""
    threads: dict[int, list[int]] = defaultdict(list)
    for position, event in enumerate(events):
        threads[event.operation.tid].append(position)
    collected: dict[str, list[list[int]]] = {}
    for positions in threads.values():
        if len(positions) >= 2:
            root = _Thread(events, positions, max_run_events).call_tree()
            _collect(events, root, collected)
    return {
        function: [Behaviour(function, tuple(piece)) for run in runs for piece in _cut(events, run)] for function, runs in collected.items()
    }


class _Thread:
    """The scan over neighbouring events of one thread."""

    def __init__(self, events: Sequence[Event], positions: Sequence[int], max_run_events: int) -> None:
        self._events = events
        self._positions = positions
        self._max = max_run_events
        self._root = _Call("")
        self._leaf: dict[int, _Call] = {}

    def call_tree(self) -> _Call:
        for position in self._positions:
            node = self._root
            for frame in self._stack(position):
                if known(frame):
                    node = node.children.setdefault(frame.function, _Call(frame.function, node))
            self._leaf[position] = node
        run: list[int] = []
        name, base = "", -1
        for left, right in zip(self._positions, self._positions[1:]):
            depth = self._common_depth(left, right)
            if run and depth < base:
                self._emit(name, run, left)
                run = []
            elif run and depth == base:
                run.append(right)
                if len(run) >= self._max:
                    self._emit(name, run, left)
                    run = []
            elif depth >= 0:
                if run:
                    self._emit(name, run[:-1], left)
                name, run, base = self._name(left, right, depth, entered=not run), [left, right], depth
        if run:
            self._emit(name, run, self._positions[-2])
        return self._root

    def _stack(self, position: int) -> tuple[Frame, ...]:
        """From the root inward."""
        return self._events[position].operation.stack[::-1]

    def _common_depth(self, left: int, right: int) -> int:
        """The index of the last equal frame from the root, -1 without one; the innermost frames without source never count."""
        last = -1
        for k, (a, b) in enumerate(zip(_trimmed(self._stack(left)), _trimmed(self._stack(right)))):
            if a != b:
                break
            last = k
        return last

    def _name(self, left: int, right: int, depth: int, *, entered: bool) -> str:
        a, b = self._stack(left), self._stack(right)
        own = depth + 1 >= len(a) or not known(a[depth + 1])
        if entered:  # both sides must go on into the same function for the run to be that function's
            own = own or depth + 1 >= len(b) or b[depth + 1].function != a[depth + 1].function
        return a[depth].function if own else a[depth + 1].function

    def _emit(self, name: str, run: list[int], left: int) -> None:
        node: _Call | None = self._leaf[left]
        while node is not None and node.function != name:
            node = node.parent
        if node is not None and run:
            node.runs.append(list(run))


def _trimmed(stack: Sequence[Frame]) -> Sequence[Frame]:
    end = len(stack)
    while end and not known(stack[end - 1]):
        end -= 1
    return stack[:end]


def _collect(events: Sequence[Event], root: _Call, collected: dict[str, list[list[int]]]) -> None:
    """Adds each function's runs, lowest callers first (heights 0..5 of the tree without functions that own no run)."""
    by_height: dict[int, list[tuple[str, list[list[int]]]]] = defaultdict(list)

    def visit(node: _Call) -> tuple[int, set[int]]:
        """(height, events at or below); -1 = nothing below owns a run."""
        below = [visit(child) for child in node.children.values()]
        height = max((h for h, _ in below), default=-1)
        everything = {position for _, positions in below for position in positions} | {p for run in node.runs for p in run}
        if not node.runs:
            return height, everything
        height += 1
        pieces = node.runs if height == 0 else [sorted(everything)]
        by_height[height].append((node.function, [piece for run in pieces for piece in _cut(events, run)]))
        return height, everything

    visit(root)
    for height in sorted(by_height):
        if height <= MAX_HEIGHT:
            for function, runs in by_height[height]:
                collected.setdefault(function, []).extend(runs)


def _cut(events: Sequence[Event], run: Iterable[int]) -> list[list[int]]:
    pieces: list[list[int]] = []
    for position in run:
        if pieces and events[position].number - events[pieces[-1][-1]].number <= GAP:
            pieces[-1].append(position)
        else:
            pieces.append([position])
    return pieces
