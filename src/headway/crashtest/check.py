"""Checks a trace: explores crash states under a model, lets an oracle judge each, and groups what fails into root causes."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.core.errors import ConfigError
from headway.crashtest.crash_states import CAP, Coverage, Strategy, explore
from headway.crashtest.explain import Finding, root_causes
from headway.crashtest.fidelity import fidelity
from headway.crashtest.history import History
from headway.crashtest.judge import Judges
from headway.crashtest.models import MODELS, load
from headway.crashtest.models.model import PersistenceModel
from headway.crashtest.operations import Trace
from headway.crashtest.oracle import DEFAULT_TIMEOUT_S, Oracle

EXIT_CLEAN, EXIT_VULNERABLE, EXIT_INFIDEL, EXIT_INCOMPLETE, EXIT_USAGE = 0, 1, 2, 3, 4
_VARYING = re.compile(r"\b0x[0-9a-f]+|[0-9a-f]{6,}|\d+|'[^']{1,200}'|/[\w./-]+")


@dataclass(frozen=True, slots=True)
class Failure:
    """One failing crash state; `kept` is a bitset of places in the history's micro-operations."""

    after: int
    kept: int
    variant: str
    acks: tuple[str, ...]
    begun: tuple[str, ...]
    verdict: str

    @property
    def kind(self) -> str:
        """The verdict without numbers, names and addresses: states of one kind fail in the same way."""
        return _VARYING.sub("#", self.verdict)[:160]


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How to explore. `workers` 0 = one a core; `causes` bounds how many root causes are minimised."""

    strategy: Strategy = "representative"
    budget_s: float | None = 60.0
    cap: int | None = CAP
    limit: int | None = None
    seed: int = 0
    whole_writes: bool = False
    workers: int = 0
    timeout_s: float = DEFAULT_TIMEOUT_S
    ignore: tuple[str, ...] = ()
    causes: int = 12
    stop_at_first: bool = False


@dataclass(slots=True)
class Run:
    """The outcome of one model. `states_to_first` counts checks until the first failure (0: none)."""

    model: str
    coverage: Coverage
    infidel: list[str]
    checked: int = 0
    failing: int = 0
    states_to_first: int = 0
    seconds: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def incomplete(self) -> str:
        """Why "clean" would claim too much; empty if the exploration came to its own end."""
        if self.coverage.budget_hit:
            return "the budget ended before every chosen state was tested: give more with --budget"
        if self.coverage.limit_hit:
            return "the limit of states was hit before every chosen state was tested: raise --limit"
        return ""

    @property
    def exit_code(self) -> int:
        """0 clean, 1 vulnerabilities, 2 infidel trace (whatever it seems to show), 3 budget or limit hit first."""
        if self.infidel:
            return EXIT_INFIDEL
        if self.failing:
            return EXIT_VULNERABLE
        return EXIT_INCOMPLETE if self.incomplete else EXIT_CLEAN

    @property
    def verdict(self) -> str:
        """In words; "clean" is only said of a faithful trace that was explored to the end."""
        words = {
            EXIT_CLEAN: "clean",
            EXIT_VULNERABLE: f"{len(self.findings)} root cause{'s' if len(self.findings) != 1 else ''}",
            EXIT_INFIDEL: "no verdict: the trace is not faithful",
            EXIT_INCOMPLETE: f"no failure found, but not clean: {self.incomplete}",
        }
        return words[self.exit_code]


def find_model(name: str, file: str | Path | None = None) -> PersistenceModel:
    """A shipped model, or one of a TOML file. Raises ConfigError."""
    known = MODELS if file is None else {**MODELS, **load(file)}
    if name not in known:
        raise ConfigError(f"there is no persistence model {name!r}; there are {', '.join(known)}")
    return known[name]


def check(
    trace: Trace,
    oracle: Callable[[], Oracle],
    model: PersistenceModel | str = "ext4",
    options: CheckOptions | None = None,
    *,
    progress: Callable[[Run], None] | None = None,
) -> Run:
    """`oracle()` is called in each checker process. A crash-free end that fails is reported like any other state.

    Raises ConfigError, TraceError and CheckerDied.
    """
    chosen = options or CheckOptions()
    history = History.of(trace, find_model(model) if isinstance(model, str) else model, whole_writes=chosen.whole_writes)
    return check_history(history, oracle, chosen, infidel=fidelity(trace, ignore=chosen.ignore), progress=progress)


def check_history(
    history: History,
    oracle: Callable[[], Oracle],
    options: CheckOptions,
    *,
    infidel: Sequence[str] = (),
    progress: Callable[[Run], None] | None = None,
) -> Run:
    """`check` of what is lowered already; a repaired history comes this way too."""
    states = explore(
        history, strategy=options.strategy, budget_s=options.budget_s, cap=options.cap, limit=options.limit, seed=options.seed,
        whole_writes=options.whole_writes,
    )  # fmt: skip
    run = Run(history.model.name, states.coverage, list(infidel))
    with Judges[Failure](oracle, workers=options.workers, timeout_s=options.timeout_s) as judges:
        for state in states:
            asked = Failure(state.point.after, state.kept, state.variant, state.acks, state.begun, "")
            _note(run, judges.submit(asked, state.tree, state.acks, state.begun))
            if progress is not None:
                progress(run)
            if options.stop_at_first and run.failing:
                break
        _note(run, judges.drain())
        run.seconds = states.coverage.seconds
        run.failures.sort(key=lambda failure: (failure.after, failure.kept))
        run.findings = root_causes(history, run.failures, judges, limit=options.causes)
    return run


def _note(run: Run, answers: Any) -> None:
    for asked, verdict in answers:
        run.checked += 1
        if verdict is None:
            continue
        run.failing += 1
        run.states_to_first = run.states_to_first or run.checked
        failure = Failure(asked.after, asked.kept, asked.variant, asked.acks, asked.begun, verdict)
        run.failures.append(failure)
        run.kinds[failure.kind] = run.kinds.get(failure.kind, 0) + 1
