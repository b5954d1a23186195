"""Virtual repair: puts missing barriers into a history, judges it again, and says what they cost; and which syncs nobody would miss.

Nothing of the program is changed or run: a barrier is a synthetic sync among the micro-operations (specs/crashtest.md 5.7).
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from headway.crashtest.check import CheckOptions, Run, check_history
from headway.crashtest.explain import ACKNOWLEDGED, NOTHING_LOST, Finding, Shapes
from headway.crashtest.history import History
from headway.crashtest.micro import CHANGE_KINDS, NAME_KINDS, Micro
from headway.crashtest.oracle import Oracle
from headway.crashtest.tree import OUTSIDE

SYNTHETIC = -1  # operation index of a sync that no system call made


@dataclass(slots=True)
class Repair:
    """What a set of barriers does. `remaining` are verdict kinds that still occur; `added` syncs a run of the workload."""

    barriers: list[str]
    added: int
    cost_ms: float
    remaining: dict[str, int]
    checked: int
    complete: bool

    @property
    def works(self) -> bool:
        return not self.remaining


@dataclass(frozen=True, slots=True)
class Superfluous:
    """A sync (by shape) whose removal left every tested state as it was; `times` it was called in the trace."""

    shape: str
    times: int
    checked: int


def repair(history: History, findings: Sequence[Finding], oracle: Callable[[], Oracle], options: CheckOptions) -> Repair:
    """Inserts the barriers of all findings, judges again, then leaves out every barrier that is not needed."""
    wanted = [finding for finding in findings if finding.survived_shape != NOTHING_LOST]
    options = replace(options, causes=0)
    run = check_history(with_barriers(history, wanted), oracle, options)
    if not run.failing:
        for finding in list(wanted):
            fewer = [one for one in wanted if one is not finding]
            trial = check_history(with_barriers(history, fewer), oracle, replace(options, stop_at_first=True))
            if not trial.failing and not trial.incomplete:
                wanted, run = fewer, trial
    added = sum(micro.op == SYNTHETIC for micro in with_barriers(history, wanted).micros)
    barriers = list(dict.fromkeys(str(finding.barrier) for finding in wanted))
    return Repair(barriers, added, added * fsync_ms(), dict(run.kinds), run.checked, not run.incomplete)


def with_barriers(history: History, findings: Sequence[Finding]) -> History:
    """The history with a sync before every operation that a finding's survivor resembles, of what its lost place wrote until then."""
    names = Shapes(history)
    shapes = [names.of(place) if micro.kind in CHANGE_KINDS else "" for place, micro in enumerate(history.micros)]
    dirty: list[dict[tuple[str, int], None]] = [{} for _ in findings]
    micros: list[Micro] = []
    for place, micro in enumerate(history.micros):
        for finding, pending in zip(findings, dirty, strict=True):
            due = micro.name.startswith("ack ") if finding.survived_shape == ACKNOWLEDGED else shapes[place] == finding.survived_shape
            other_file = finding.survived is not None and _differ(history, finding)
            for scope, inode in list(pending):
                if due and not (other_file and scope == "file" and inode == micro.inode):
                    micros.append(Micro(0, SYNTHETIC, "sync", inode=inode, scope="dir" if scope == "dir" else "file"))
                    del pending[scope, inode]
            if shapes[place] == finding.barrier.lost:
                if micro.kind in NAME_KINDS:
                    pending.update({("dir", directory): None for directory in (micro.parent, micro.parent2) if directory != OUTSIDE})
                else:
                    pending["file", micro.inode] = None
        micros.append(micro)
    numbered = [replace(micro, index=index) for index, micro in enumerate(micros)]
    return History(history.initial, numbered, history.model, list(history.operations.values()))


def superfluous(history: History, oracle: Callable[[], Oracle], options: CheckOptions, baseline: Run) -> list[Superfluous]:
    """Syncs that can go without a new kind of failure. Only as good as the oracle and the workload: a hint, never a proof."""
    names = Shapes(history)
    shapes: dict[str, list[int]] = {}
    for place, micro in enumerate(history.micros):
        if micro.kind == "sync":
            shapes.setdefault(names.describe(micro, exact=False), []).append(place)
    found = []
    for shape, places in shapes.items():
        gone = set(places)
        micros = [replace(micro, index=0) for place, micro in enumerate(history.micros) if place not in gone]
        trial = History(
            history.initial,
            [replace(micro, index=index) for index, micro in enumerate(micros)],
            history.model,
            list(history.operations.values()),
        )
        run = check_history(trial, oracle, replace(options, causes=0, stop_at_first=not baseline.failing))
        if not run.incomplete and not set(run.kinds) - set(baseline.kinds):
            found.append(Superfluous(shape, len(places), run.checked))
    return found


def fsync_ms(times: int = 15) -> float:
    """Median cost of an fsync after a 4 KiB write in the current directory, measured now."""
    path = Path.cwd() / f".headway-fsync-{os.getpid()}"
    taken = []
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(times):
            os.pwrite(fd, bytes(4096), 0)
            began = time.perf_counter()
            os.fsync(fd)
            taken.append(time.perf_counter() - began)
    finally:
        os.close(fd)
        path.unlink()
    return sorted(taken)[times // 2] * 1000


def _differ(history: History, finding: Finding) -> bool:
    assert finding.survived is not None
    return bool(finding.lost) and history.micros[finding.lost[0]].inode != history.micros[finding.survived].inode
