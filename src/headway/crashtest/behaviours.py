"""What makes two runs of operations behave alike: labels that forget names, numbers and addresses, and the shape of what is pending.

A crash point's pending changes are grouped into steps (one operation on one object), repeated steps and repeated objects are collapsed, and
the resulting graph falls into parts that no order binds together. A part's key does not depend on the order in which threads happened to
take turns (Weisfeiler-Lehman refinement).
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
MAX_STEPS = 8  # pending on one object after repetitions were collapsed; with more the newest few stay
NEWEST_STEPS = 5
KEPT_FRAMES = 4  # innermost frames with source that tell two call sites apart
# The C library's and the interpreter's frames say nothing about who called; files of ours are the tool's own.
_NOISE = re.compile(r"^/usr/(include|lib)/|/headway/crashtest/|<frozen ")
_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_HEX = re.compile(r"(?=[0-9a-fA-F]*[0-9])[0-9a-fA-F]{6,}")
_TEMPORARY = re.compile(r"\btmp[0-9a-z_]{8}\b")
_DIGITS = re.compile(r"[0-9]+")


def pattern(path: str) -> str:
    """A path with what differs from run to run replaced by #: numbers, hexadecimal runs of six or more, random names of temporary files."""
    path = _TEMPORARY.sub("tmp#", path)
    for expression in (_UUID, _HEX, _DIGITS):
        path = expression.sub("#", path)
    return path


def call_site(stack: Sequence[Frame]) -> tuple[tuple[str, str, int], ...]:
    """The innermost frames with source, without addresses, so that a rebuild or another run gives the same."""
    known = [frame for frame in stack if frame.file and not _NOISE.search(frame.file)]
    return tuple((frame.function, frame.file, frame.line) for frame in known[:KEPT_FRAMES])


@dataclass(frozen=True, slots=True)
class Part:
    """Pending changes that are ordered among themselves only. `groups` are disjoint sets of places, each lost or kept as a whole; `preds`
    their order (None where grouping made it cyclic); `key` is equal for parts that behave alike.
    """

    groups: tuple[int, ...]
    preds: tuple[int, ...] | None
    key: str

    @property
    def places(self) -> int:
        """All pending places of the part."""
        return sum(self.groups)


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
        threads = [history.operations[micro.op].tid if micro.op in history.operations else 0 for micro in micros]
        next_ack: dict[int, int] = {}
        self._next_ack = [0] * len(micros)
        for place in range(len(micros) - 1, -1, -1):
            if micros[place].kind == "marker" and micros[place].name.startswith("ack"):
                next_ack[threads[place]] = place
            self._next_ack[place] = next_ack.get(threads[place], len(micros))

    def acknowledged(self, place: int, after: int) -> bool:
        """Whether the thread that made a change acknowledged something before the crash: then losing it may break a promise."""
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
            facts += ["extends" if extends else "allocated" if micro.allocated else ""]
            facts += ["start" if micro.offset < 4096 and not extends else "", "to 0" if micro.size == 0 else ""]
        facts.append("replaces" if micro.replaced else "")
        if operation is not None:
            facts += [operation.kind, repr(call_site(operation.stack)) if operation.stack else ""]
        return "|".join(facts)


def parts_at(history: History, labels: Labels, after: int) -> list[Part]:
    """What may be lost at a crash point, collapsed, in parts that are independent of each other; the one with the newest change last."""
    objects = _objects(history, labels, after, history.open_at(after))
    collapsed = [step for merged in _collapse_objects(history, objects) for step in merged]
    collapsed.sort(key=lambda step: step[1].bit_length())
    groups, names = [mask for _, mask in collapsed], [name for name, _ in collapsed]
    preds = _quotient(history, groups)
    if preds is None:
        return [Part(tuple(groups), None, _key(history, groups, names, None))]
    parts = []
    for members in _components(preds):
        number_of = {old: new for new, old in enumerate(members)}
        mine = [sum(1 << number_of[before] for before in dag.bits(preds[old])) for old in members]
        some = [groups[old] for old in members]
        parts.append(Part(tuple(some), tuple(mine), _key(history, some, [names[old] for old in members], mine)))
    return sorted(parts, key=lambda part: part.groups[-1].bit_length())


def _components(preds: Sequence[int]) -> list[list[int]]:
    """The connected components of a graph, each in topological order."""
    label = list(range(len(preds)))
    for i, mask in enumerate(preds):
        for j in dag.bits(mask):
            old, new = max(label[i], label[j]), min(label[i], label[j])
            label = [new if one == old else one for one in label]
    return [[i for i, one in enumerate(label) if one == root] for root in sorted(set(label))]


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
            # One write may cover old and new blocks: how many pieces that makes says where the file's end happens to lie.
            label = "+".join(dict.fromkeys(labels.of[place] for place in places)) + acked
            listed.append((label, sum(1 << place for place in places)))
        objects.append(listed)
    return objects


def _collapse_objects(history: History, objects: list[list[_Step]]) -> list[list[_Step]]:
    """Repetitions of steps collapse; of objects that then look alike the newest stays, the older ones become one."""
    alike: dict[tuple[str, ...], list[list[_Step]]] = {}
    for steps in objects:
        collapsed = _newest(_collapse_runs(history, steps))
        alike.setdefault(tuple(label for label, _ in collapsed), []).append(collapsed)
    result: list[list[_Step]] = []
    for shape, members in alike.items():
        older = members[:-1] if len(members) > 2 else []
        result.extend(members[len(older) :])
        if older:
            result.append([("older: " + ";".join(shape), _union([step for steps in older for step in steps]))])
    return result


def _collapse_runs(history: History, steps: list[_Step]) -> list[_Step]:
    """Repetitions of one to six steps: the last stays as it is, those before are lost or kept together; so does the first where no order
    holds between it and the last (a header that is written in place, for one).
    """
    result: list[_Step] = []
    start = 0
    while start < len(steps):
        period, times = _repetition(steps, start)
        end = start + period * times
        if times > 1:
            free = times > 2 and steps[start][1] & history.ancestors[steps[end - 1][1].bit_length() - 1] == 0
            many = start + period if free else start
            result += steps[start:many]
            middle = steps[many : end - period]
            result.append(("many " + ";".join(label for label, _ in middle[:period]), _union(middle)))
        result += steps[end - period : end]
        start = end
    return result


def _newest(steps: list[_Step]) -> list[_Step]:
    """Of an object with a long history that no sync ended, the newest steps, and all the older ones as one."""
    if len(steps) <= MAX_STEPS:
        return steps
    older = steps[:-NEWEST_STEPS]
    return [("older " + ";".join(sorted({label.removeprefix("many ") for label, _ in older})), _union(older)), *steps[-NEWEST_STEPS:]]


def _repetition(steps: list[_Step], start: int) -> tuple[int, int]:
    """(period, times) of the repetition at `start` that covers most steps, the shortest such period; (1, 1) without one."""
    best = (1, 1)
    for period in range(1, min(MAX_PERIOD_STEPS, (len(steps) - start) // 2) + 1):
        end = start + period
        while end < len(steps) and steps[end][0] == steps[end - period][0]:
            end += 1
        times = (end - start) // period
        if times > 1 and period * times > best[0] * best[1]:
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
