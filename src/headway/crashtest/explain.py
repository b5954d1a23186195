"""Why a state fails: the smallest set of lost changes, what survived although it should not have, and the barrier that was missing.

Bugs are counted as distinct pairs of source places, never as failing states (specs/crashtest.md 5.7).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headway.crashtest import dag
from headway.crashtest.history import History
from headway.crashtest.judge import Judges
from headway.crashtest.micro import NAME_KINDS, Micro
from headway.crashtest.models.variants import Variant, variants
from headway.crashtest.operations import Frame

if TYPE_CHECKING:
    from headway.crashtest.check import Failure

_NUMBERED = re.compile(r"[0-9a-fA-F]{6,}|(?<=/)[0-9a-f]{2}(?=/)|\d+")  # the two-digit folders of content-addressed stores too
_SYSTEM = ("/usr/lib", "/lib/", "<frozen", "/usr/include", "site-packages/headway")
ACKNOWLEDGED = "the acknowledgement"
NOTHING_LOST = "everything before"


@dataclass(frozen=True, slots=True)
class Barrier:
    """The missing order: before `before` (an operation's shape, or the acknowledgement) what `lost` did must be synced."""

    lost: str
    before: str
    sync: str
    """In words: `fsync of data.log`, `fsync of the directory .`"""

    def __str__(self) -> str:
        return f"{self.sync} before {self.before}" if self.before else self.sync


@dataclass(slots=True)
class Finding:
    """One root cause. `kinds` are the verdicts it leads to; `lost` and `survived` name places in the history."""

    lost_shape: str
    survived_shape: str
    verdict: str
    barrier: Barrier
    failure: "Failure"
    lost: tuple[int, ...]
    survived: int | None
    states: int = 1
    kinds: set[str] = field(default_factory=set)
    confirmed: tuple[str, ...] = ()
    lines: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        if self.survived_shape == NOTHING_LOST:
            return f"not atomic: wrong right after {self.lost_shape} even when nothing is lost"
        if self.survived is None:
            return f"acknowledged before it was durable: {self.lost_shape}"
        return f"lost: {self.lost_shape}; survived: {self.survived_shape}"


def root_causes(history: History, failures: Sequence["Failure"], judges: Judges["Failure"], *, limit: int) -> list[Finding]:
    """Minimises failing states until every failing state is explained by a pair, or `limit` pairs were looked for.

    A state is explained by a pair if it fails in a known way of that pair, lost something of its first place and kept something of its
    second.
    """
    findings: dict[tuple[str, str], Finding] = {}
    tries = 0
    names = Shapes(history)
    for failure in sorted(failures, key=lambda one: (history.done_at(one.after) & ~one.kept).bit_count()):
        known = next((finding for finding in findings.values() if _explains(history, names, finding, failure)), None)
        if known is not None:
            known.states += 1
            continue
        if tries >= limit:
            continue
        tries += 1
        finding = minimise(history, names, failure, judges)
        key = (finding.lost_shape, finding.survived_shape)
        if key in findings:
            findings[key].states += 1
            findings[key].kinds.add(failure.kind)
        else:
            finding.kinds.add(failure.kind)
            findings[key] = finding
    return sorted(findings.values(), key=lambda finding: -finding.states)


def _explains(history: History, names: "Shapes", finding: Finding, failure: "Failure") -> bool:
    if failure.kind not in finding.kinds:
        return False
    lost = history.done_at(failure.after) & ~failure.kept
    if finding.survived_shape == NOTHING_LOST:
        return not lost and not failure.variant
    if not any(names.of(place) == finding.lost_shape for place in dag.bits(lost)):
        return False
    return finding.survived is None or any(names.of(place) == finding.survived_shape for place in dag.bits(failure.kept & history.changes))


def minimise(history: History, names: "Shapes", failure: "Failure", judges: Judges["Failure"]) -> Finding:
    """Gives back lost changes while the state still fails in the same way, then takes away survivors; what is left is the cause."""
    after, kind = failure.after, failure.kind
    variant = find_variant(history, failure.variant)

    def fails(kept: int, acks: tuple[str, ...] = failure.acks) -> bool:
        verdict = judges.ask(failure, history.tree(kept, variant if variant and kept >> variant.place & 1 else None), acks, failure.begun)
        return verdict is not None and kind_of(verdict) == kind

    kept = failure.kept
    done = history.done_at(after)
    kept = _grow(kept, list(dag.bits(done & ~kept)), lambda place, now: now | history.with_predecessors(after, 1 << place), fails)
    lost = tuple(dag.bits(done & ~kept))
    survived: int | None = None
    if not lost and variant is None:
        # Nothing is lost and it fails all the same: two changes that belong together are not one step.
        last = max(dag.bits(done), default=0)
        barrier = Barrier(names.of(last), "", "one atomic step: new file, fsync, rename, fsync of the directory")
        finding = Finding(names.of(last), NOTHING_LOST, failure.verdict, barrier, failure, (), last)
    else:
        if not (failure.acks and not fails(kept, ())):
            durable = history.durable_after[after]
            least = _shrink(kept, durable, history, fails) if lost else kept
            pending = [place for place in dag.bits(least & ~durable) if variant is None or place != variant.place]
            survived = pending[-1] if pending else max(dag.bits(durable), default=0)
        cause = lost[0] if lost else variant.place if variant is not None else 0
        lost_shape = names.of(cause) + (f" ({variant.name.partition(':')[0]})" if variant is not None and not lost else "")
        survived_shape = ACKNOWLEDGED if survived is None else names.of(survived)
        barrier = Barrier(names.of(cause), survived_shape, names.sync_for(history.micros[cause]))
        finding = Finding(lost_shape, survived_shape, failure.verdict, barrier, failure, lost or (cause,), survived)
    finding.lines = timeline(history, names, finding, kept)
    return finding


def _grow(kept: int, missing: list[int], add: Callable[[int, int], int], fails: Callable[[int], bool]) -> int:
    """ddmin over the lost changes: gives back large parts first, then ever smaller ones."""
    size = len(missing)
    while size >= 1 and missing:
        for start in range(0, len(missing), size):
            wider = kept
            for place in missing[start : start + size]:
                wider = add(place, wider)
            if wider != kept and fails(wider):
                kept = wider
        missing = [place for place in missing if not kept >> place & 1]
        size = size // 2 if size <= len(missing) else len(missing)
    return kept


def _shrink(kept: int, durable: int, history: History, fails: Callable[[int], bool]) -> int:
    """The smallest survivors with which it still fails; newest first, so that later bystanders go before the cause."""
    least = kept
    for place in reversed(list(dag.bits(kept & ~durable))):
        if not least >> place & 1:
            continue
        narrower = least & ~history.descendants[place] & ~(1 << place) | durable
        if narrower != least and fails(narrower):
            least = narrower
    return least


def kind_of(verdict: str) -> str:
    """What `Failure.kind` says of a verdict."""
    from headway.crashtest.check import Failure

    return Failure(0, 0, "", (), (), verdict).kind


def find_variant(history: History, name: str) -> Variant | None:
    """The variant that an exploration named; it always names its place at the end."""
    if not name:
        return None
    place = int(name.rpartition(" ")[2])
    return next((one for one in variants(history.model, place, history.micros[place]) if one.name == name), None)


class Shapes:
    """What a change is called in reports: its source line if the trace has stacks, else what it does and to which kind of file."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._paths: dict[int, str] = {1: "."}
        for path, inode, _ in history.initial.walk():
            self._paths.setdefault(inode, path)
        for micro in history.micros:  # the first name a file had says most about it; a rename gives its final one too
            if micro.kind in ("link", "symlink", "mkdir"):
                parent = self._paths.get(micro.parent, "")
                self._paths.setdefault(micro.inode, micro.name if parent in (".", "") else f"{parent}/{micro.name}")

    def path(self, inode: int) -> str:
        return self._paths.get(inode, f"inode {inode}")

    def of(self, place: int) -> str:
        micro = self._history.micros[place]
        operation = self._history.operations.get(micro.op)
        what = self.describe(micro, exact=False)
        frame = source_frame(operation.stack) if operation is not None else None
        return f"{what} at {frame.file}:{frame.line} ({frame.function})" if frame else what

    def describe(self, micro: Micro, *, exact: bool = True) -> str:
        """One change in words; with `exact=False` digits become # so that equal purposes get equal words."""
        inode = self.path(micro.inode)
        if not exact and micro.kind in ("data", "size", "store"):  # halves of one system call are one source place
            return _NUMBERED.sub("#", f"write to {inode}")
        if micro.kind == "rename":
            text = f"rename of {self._name(micro.parent, micro.name)} to {self._name(micro.parent2, micro.name2)}"
        elif micro.kind == "exchange":
            text = f"exchange of {self._name(micro.parent, micro.name)} and {self._name(micro.parent2, micro.name2)}"
        elif micro.kind in ("link", "symlink"):
            text = f"creation of {self._name(micro.parent, micro.name)}"
        elif micro.kind in ("unlink", "rmdir"):
            text = f"removal of {self._name(micro.parent, micro.name)}"
        elif micro.kind == "mkdir":
            text = f"new directory {self._name(micro.parent, micro.name)}"
        elif micro.kind in ("data", "store"):
            bytes_ = f" ({len(micro.data)} bytes at {micro.offset})" if exact else ""
            text = f"data of {inode}{bytes_}"
        elif micro.kind in ("size", "trunc"):
            text = f"{'size' if micro.kind == 'size' else 'truncation'} of {inode}{f' ({micro.size})' if exact else ''}"
        elif micro.kind == "sync":
            text = f"{'fdatasync' if micro.scope == 'data' else 'fsync' if micro.scope in ('file', 'dir') else micro.scope} of {inode}"
        elif micro.kind == "marker":
            text = micro.name
        else:
            text = f"{micro.kind} of {inode}"
        return text if exact else _NUMBERED.sub("#", text)

    def sync_for(self, micro: Micro) -> str:
        if micro.kind in NAME_KINDS:
            return _NUMBERED.sub("#", f"fsync of the directory {self.path(micro.parent2 or micro.parent)}")
        return _NUMBERED.sub("#", f"fsync of {self.path(micro.inode)}")

    def _name(self, parent: int, name: str) -> str:
        above = self.path(parent)
        return name if above == "." else f"{above}/{name}"


def source_frame(stack: Iterable[Frame]) -> Frame | None:
    """The innermost frame with a source line outside of system and tool code; without one the innermost named function."""
    frames = [frame for frame in stack if not any(part in frame.file for part in _SYSTEM)]
    return next((frame for frame in frames if frame.line > 0), None)


def timeline(history: History, names: Shapes, finding: Finding, kept: int) -> list[str]:
    """The operations around the cause, one a line: `+` on the disk, `-` lost, and where the power went."""
    after = finding.failure.after
    marked = {*finding.lost, *([finding.survived] if finding.survived is not None else []), after}
    shown = {place + step for place in marked for step in (-1, 0, 1) if 0 <= place + step <= after}
    lines = []
    previous = -1
    for place in sorted(shown):
        micro = history.micros[place]
        if place > previous + 1:
            lines.append("        ...")
        if micro.kind in ("sync", "marker"):
            sign = " "
        else:
            sign = "+" if kept >> place & 1 else "-"
        cause = " <- lost" if place in finding.lost else " <- survived" if place == finding.survived else ""
        lines.append(f"  {sign} {place:4d}  {names.describe(micro)}{cause}")
        previous = place
    lines.append("        *** power cut")
    return lines
