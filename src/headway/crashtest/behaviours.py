"""What makes two runs of operations behave alike: labels that forget names, numbers and addresses, and the shape of what is pending.

A crash point's pending changes are grouped into steps (one operation on one object), repeated steps and repeated objects are collapsed, and
the resulting graph gets a key that does not depend on the order in which threads happened to take turns (Weisfeiler-Lehman refinement).
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from headway.crashtest import dag
from headway.crashtest.history import History
from headway.crashtest.micro import NAME_KINDS, Micro
from headway.crashtest.operations import Frame

ROUNDS = 3  # of refinement
MAX_PERIOD_STEPS = 6  # of a repetition on one object
KEPT_FRAMES = 4  # innermost frames with source that tell two call sites apart
# The C library's and the interpreter's frames say nothing about who called; files of ours are the tool's own.
_NOISE = re.compile(r"^/usr/(include|lib)/|/headway/crashtest/|<frozen ")
_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_HEX = re.compile(r"(?=[0-9a-fA-F]*[0-9])[0-9a-fA-F]{6,}")
_TEMPORARY = re.compile(r"\btmp[0-9a-z_]{8}\b")
_DIGITS = re.compile(r"[0-9]+")


def pattern(path: str) -> str:
    """A path with what differs from run to run replaced by #: numbers, hexadecimal runs of six or more, random names of temporary files."""
    for expression in (_UUID, _TEMPORARY, _HEX, _DIGITS):
        path = expression.sub("#", path)
    return path


def call_site(stack: Sequence[Frame]) -> tuple[tuple[str, str, int], ...]:
    """The innermost frames with source, without addresses, so that a rebuild or another run gives the same."""
    known = [frame for frame in stack if frame.file and not _NOISE.search(frame.file)]
    return tuple((frame.function, frame.file, frame.line) for frame in known[:KEPT_FRAMES])


@dataclass(frozen=True, slots=True)
class Shape:
    """What may be lost at a crash point, collapsed. `groups` are disjoint sets of pending places; `preds` their order (None where grouping
    made it cyclic); `key` is equal for points that behave alike.
    """

    groups: tuple[int, ...]
    preds: tuple[int, ...] | None
    key: str


class Labels:
    """Labels of a history's micro-operations, computed once."""

    def __init__(self, history: History) -> None:
        self._history = history
        micros = history.micros
        self._patterns: dict[int, str] = {}
        for micro in micros:
            if micro.kind in NAME_KINDS:
                self._patterns.setdefault(micro.inode, pattern(micro.name))
        grown = {(micro.op, micro.inode) for micro in micros if micro.kind == "size"}
        self.of = [self._label(micro, (micro.op, micro.inode) in grown) for micro in micros]
        acked, self._next_ack = len(micros), [0] * len(micros)
        for place in range(len(micros) - 1, -1, -1):
            if micros[place].kind == "marker" and micros[place].name.startswith("ack"):
                acked = place
            self._next_ack[place] = acked

    def acknowledged(self, place: int, after: int) -> bool:
        """Whether an ack came between a change and the crash: then losing the change may break a promise."""
        return self._next_ack[place] <= after

    def _label(self, micro: Micro, grown: bool) -> str:
        if micro.kind == "marker":
            return pattern(micro.name)
        operation = self._history.operations.get(micro.op)
        paths = [pattern(path.rpartition("/")[2]) for path in operation.paths] if operation else []
        names = paths or [pattern(name) for name in (micro.name, micro.name2) if name] or [self._patterns.get(micro.inode, "")]
        facts = [micro.kind, micro.scope, "/".join(names)]
        if micro.kind in ("data", "size", "trunc", "store"):
            extends = grown or micro.size >= 0
            facts += ["extends" if extends else "", "allocated" if micro.allocated else ""]
            facts += ["start" if micro.offset < 4096 and not extends else "", "to 0" if micro.size == 0 else ""]
        facts.append("replaces" if micro.replaced else "")
        if operation is not None:
            facts += [operation.kind, repr(call_site(operation.stack)) if operation.stack else ""]
        return "|".join(facts)


def shape_at(history: History, labels: Labels, after: int) -> Shape:
    """The collapsed graph of what is pending at a crash point."""
    pending = history.pending_at(after)
    objects = _objects(history, labels, after, pending)
    groups: list[int] = []
    names: list[str] = []
    for merged in _collapse_objects(objects):
        for name, mask in merged:
            groups.append(mask)
            names.append(name)
    order = sorted(range(len(groups)), key=lambda i: groups[i].bit_length())
    groups, names = [groups[i] for i in order], [names[i] for i in order]
    preds = _quotient(history, groups)
    return Shape(tuple(groups), None if preds is None else tuple(preds), _key(history, groups, names, preds))


_Step = tuple[str, int]  # label of an operation's pending changes on one object, and their places


def _objects(history: History, labels: Labels, after: int, pending: int) -> list[list[_Step]]:
    """Per object (inode) its steps in order, an operation each."""
    steps: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place in dag.bits(pending):
        micro = history.micros[place]
        steps[micro.inode][micro.op].append(place)
    objects = []
    for by_operation in steps.values():
        listed = []
        for places in by_operation.values():
            acked = "acknowledged" if labels.acknowledged(places[-1], after) else ""
            label = "+".join(labels.of[place] for place in places) + acked
            listed.append((label, sum(1 << place for place in places)))
        objects.append(listed)
    return objects


def _collapse_objects(objects: list[list[_Step]]) -> list[list[_Step]]:
    """Runs of equal steps to first, middle and last; of objects that look alike the newest stays, the older ones become one."""
    alike: dict[tuple[str, ...], list[list[_Step]]] = {}
    for steps in objects:
        collapsed = _collapse_runs(steps)
        alike.setdefault(tuple(label for label, _ in collapsed), []).append(collapsed)
    result: list[list[_Step]] = []
    for shape, members in alike.items():
        older = members[:-1] if len(members) > 2 else []
        result.extend(members[len(older) :])
        if older:
            result.append([("older: " + ";".join(shape), _union([step for steps in older for step in steps]))])
    return result


def _collapse_runs(steps: list[_Step]) -> list[_Step]:
    """Repetitions of one to six steps: the first and the last stay as they are, those in between are lost or kept together."""
    result: list[_Step] = []
    start = 0
    while start < len(steps):
        period, times = _repetition(steps, start)
        middle = steps[start + period : start + period * (times - 1)]
        result += steps[start : start + period]
        if times > 2:
            result.append(("many " + ";".join(label for label, _ in middle[:period]), _union(middle)))
        if times > 1:
            result += steps[start + period * (times - 1) : start + period * times]
        start += period * times
    return result


def _repetition(steps: list[_Step], start: int) -> tuple[int, int]:
    """(period, times) of the repetition at `start` that covers most steps, the shortest such period; (1, 1) without one."""
    best = (1, 1)
    for period in range(1, min(MAX_PERIOD_STEPS, (len(steps) - start) // 3) + 1):
        end = start + period
        while end < len(steps) and steps[end][0] == steps[end - period][0]:
            end += 1
        times = (end - start) // period
        if times > 2 and period * times > best[0] * best[1]:
            best = (period, times)
    return best


def _union(steps: Sequence[_Step]) -> int:
    mask = 0
    for _, places in steps:
        mask |= places
    return mask


def _quotient(history: History, groups: Sequence[int]) -> list[int] | None:
    """The order among groups; None if it has a cycle. Groups are sorted by their last place."""
    owner = {place: number for number, mask in enumerate(groups) for place in dag.bits(mask)}
    everything = 0
    for mask in groups:
        everything |= mask
    direct = []
    for number, mask in enumerate(groups):
        before = 0
        for place in dag.bits(mask):
            before |= history.ancestors[place]
        preds = 0
        for place in dag.bits(before & everything & ~mask):
            preds |= 1 << owner[place]
        if preds >> number:
            return None  # a later group comes before this one: merged steps of several objects are interleaved
        direct.append(preds)
    return direct


def _key(history: History, groups: Sequence[int], names: Sequence[str], preds: Sequence[int] | None) -> str:
    """Refinement over order edges and shared objects, then the sorted multiset of what the nodes became."""
    roles: list[set[tuple[str, int]]] = []
    for mask in groups:
        mine: set[tuple[str, int]] = set()
        for place in dag.bits(mask):
            micro = history.micros[place]
            mine |= {("is", micro.inode), ("in", micro.parent), ("to", micro.parent2), ("over", micro.replaced)}
        roles.append({(role, inode) for role, inode in mine if inode})
    users: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for number, mine in enumerate(roles):
        for role, inode in mine:
            users[inode].append((role, number))
    edges = dag.reduced(preds) if preds is not None else [0] * len(groups)
    after: list[int] = [0] * len(groups)
    for number, mask in enumerate(edges):
        for before in dag.bits(mask):
            after[before] |= 1 << number
    colours = [_hash(name) for name in names]
    for _ in range(ROUNDS):
        objects = {inode: _hash(*sorted({role + colours[number] for role, number in used})) for inode, used in users.items()}
        colours = [
            _hash(
                colours[i],
                "<",
                *sorted(colours[j] for j in dag.bits(edges[i])),
                ">",
                *sorted(colours[j] for j in dag.bits(after[i])),
                "o",
                *sorted({role + objects[inode] for role, inode in roles[i]}),
            )
            for i in range(len(groups))
        ]
    return _hash(*sorted(colours))


def _hash(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
