"""Crash states: which of the changes made so far survived a crash right after some point, under a persistence model.

`explore` lists them by one of several strategies, each distinct (image, begun, acknowledged) once, and counts what it covered. The
strategies beside "representative" and "exhaustive" are the baselines that other testers use.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from headway.core.errors import ConfigError
from headway.crashtest import listing
from headway.crashtest.history import History
from headway.crashtest.listing import Choice
from headway.crashtest.models import MODELS
from headway.crashtest.models.model import PersistenceModel
from headway.crashtest.operations import Trace
from headway.crashtest.tree import Tree

Strategy = Literal["representative", "exhaustive", "prefix", "drop-one", "random", "fsync-reorder"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
CAP = 64  # down-closed sets listed at one crash point before only a skeleton of them is
MAX_STALE_DRAWS = 2000  # random draws in a row without a new state: the space is as good as covered


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """A crash right after the micro-operation at place `after` completed."""

    after: int


@dataclass(frozen=True, slots=True)
class CrashState:
    """What one crash may leave. `kept`: the surviving changes (bitset of places in the history's micro-operations).

    `variant` says in words which write is torn or filled ("" = none). `begun` and `acks` are the program's markers by then. `origin`: why
    this state was chosen. `digest` is the tree's.
    """

    point: CrashPoint
    kept: int
    variant: str
    tree: Tree
    acks: tuple[str, ...]
    begun: tuple[str, ...]
    origin: str
    digest: bytes


@dataclass(slots=True)
class Coverage:
    """What an exploration did. `classes`, `pairs` and `contexts` are those of the representative strategy (0 for others).

    `listed` counts states before de-duplication, `distinct` those that were handed out; `capped_points` had more down-closed sets than
    the cap and were sampled.
    """

    strategy: Strategy
    model: str
    crash_points: int
    visited_points: set[int] = field(default_factory=set)
    capped_points: set[int] = field(default_factory=set)
    classes: int = 0
    classes_tested: set[str] = field(default_factory=set)
    pairs: int = 0
    contexts: int = 0
    represented_points: int = 0
    rechecked: int = 0
    listed: int = 0
    distinct: int = 0
    limit_hit: bool = False
    budget_hit: bool = False
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the strategy came to its own end (crash points that were only sampled: `capped_points`)."""
        return not (self.limit_hit or self.budget_hit)


class Exploration:
    """An iterator over crash states; `coverage` is up to date after each."""

    def __init__(
        self,
        history: History,
        choices: Iterator[Choice],
        coverage: Coverage,
        *,
        limit: int | None,
        budget_s: float | None,
        clock: Callable[[], float],
    ) -> None:
        self.history = history
        self.coverage = coverage
        self._choices = choices
        self._limit = limit
        self._budget_s = budget_s
        self._clock = clock
        self._seen_sets: set[tuple[int, str, int, int]] = set()
        self._seen_images: set[tuple[bytes, int, int]] = set()
        self._started: float | None = None
        self._stale = 0

    def __iter__(self) -> "Exploration":
        return self

    def __next__(self) -> CrashState:
        if self._started is None:
            self._started = self._clock()
        for choice in self._choices:
            self.coverage.seconds = self._clock() - self._started
            if self._budget_s is not None and self.coverage.seconds > self._budget_s:
                self.coverage.budget_hit = True
                break
            state = self._state(choice)
            if state is None:
                self._stale += 1
                if choice.origin == "random" and self._stale > MAX_STALE_DRAWS:
                    break
                continue
            self._stale = 0
            if self._limit is not None and self.coverage.distinct >= self._limit:
                self.coverage.limit_hit = True
                break
            self.coverage.distinct += 1
            if choice.origin == "recheck":
                self.coverage.rechecked += 1
            return state
        self.coverage.seconds = self._clock() - self._started
        self._choices = iter(())
        raise StopIteration

    def _state(self, choice: Choice) -> CrashState | None:
        coverage, history = self.coverage, self.history
        coverage.listed += 1
        coverage.visited_points.add(choice.after)
        if choice.capped:
            coverage.capped_points.add(choice.after)
        if choice.origin.startswith("class "):
            coverage.classes_tested.add(choice.origin)
        begun, acks = history.markers[choice.after]
        variant = choice.variant.name if choice.variant else ""
        key = (choice.kept, variant, len(begun), len(acks))
        if key in self._seen_sets:
            return None
        self._seen_sets.add(key)
        tree = history.tree(choice.kept, choice.variant)
        digest = tree.digest()
        image = (digest, len(begun), len(acks))
        if image in self._seen_images:
            return None
        self._seen_images.add(image)
        return CrashState(CrashPoint(choice.after), choice.kept, variant, tree, acks, begun, choice.origin, digest)


def explore(
    trace: Trace | History,
    model: PersistenceModel | str = "ext4",
    *,
    strategy: Strategy = "representative",
    budget_s: float | None = None,
    cap: int | None = CAP,
    limit: int | None = None,
    seed: int = 0,
    whole_writes: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Exploration:
    """Lists the crash states of a trace (or of a history, whose own model then counts).

    `cap` None lists every down-closed set; `limit` ends after so many distinct states, `budget_s` after so many seconds of `clock` (also
    those the caller spends between states); both are noted in the coverage. "random" goes on until one of them, or until 2,000 draws
    brought nothing new. `whole_writes`: no torn or filled writes, and a size comes with its write. Raises ConfigError.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy {strategy!r} is not known; use one of {', '.join(STRATEGIES)}")
    if isinstance(model, str):
        if model not in MODELS:
            raise ConfigError(f"persistence model {model!r} is not known; use one of {', '.join(MODELS)}, or load one from a TOML file")
        model = MODELS[model]
    history = trace if isinstance(trace, History) else History.of(trace, model, whole_writes=whole_writes)
    coverage = Coverage(strategy, history.model.name, len(history.micros))
    if strategy == "representative":
        from headway.crashtest import representatives

        chosen = representatives.choose(history)
        coverage.classes = len(chosen.classes)
        coverage.pairs = len(chosen.pairs)
        coverage.contexts = len(chosen.contexts)
        coverage.represented_points = len(chosen.represented)
        choices = representatives.states(history, chosen, cap=cap, seed=seed, torn=not whole_writes)
    elif strategy == "exhaustive":
        choices = listing.exhaustive(history, cap=cap, seed=seed, torn=not whole_writes)
    elif strategy == "prefix":
        choices = listing.prefixes(history)
    elif strategy == "drop-one":
        choices = listing.drop_one(history)
    elif strategy == "random":
        choices = listing.at_random(history, seed=seed)
    else:
        choices = listing.epochs(history, cap=cap, seed=seed)
    return Exploration(history, choices, coverage, limit=limit, budget_s=budget_s, clock=clock)
