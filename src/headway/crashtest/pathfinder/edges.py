"""Pathfinder's persistence graph: which event must reach the disk before which (specification: rules 1-4 over all pairs of a window).

There is no other order between files. Sync events are nodes while edges are derived; `dag.contract` removes them before enumeration.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath

from headway.crashtest.pathfinder.events import WRITES, Event

_NAME_CHANGES = frozenset({"rename", "unlink", "truncate", "fallocate"})
_WHOLE_SYNCS = frozenset({"sync", "syncfs"})
# The original leaves out of rule 4 every path that holds these letters (LevelDB's info log is LOG).
_UNORDERED = "LOG"


def predecessors(events: Sequence[Event], *, decompose: bool = True) -> list[int]:
    """For each event the bitset of the earlier events (by position) that must persist first; `decompose` switches rule 4."""
    result = []
    for j, later in enumerate(events):
        mask = 0
        for i in range(j):
            if _before(events[i], later, decompose):
                mask |= 1 << i
        result.append(mask)
    return result


def _before(a: Event, b: Event, decompose: bool) -> bool:
    return a.is_sync or b.kind in _WHOLE_SYNCS or _synced(a, b) or _descriptor(a, b) or (decompose and _micro_operations(a, b))


def _synced(a: Event, b: Event) -> bool:
    """Rule 2: what the sync b waits for."""
    if not b.is_sync:
        return False
    same = a.path == b.path and a.fd is not None and a.fd == b.fd
    if b.kind == "fsync":
        return same or (a.kind in _NAME_CHANGES and any(str(PurePosixPath(path).parent) == b.path for path in a.paths))
    if not (same and a.kind in WRITES):
        return False
    if b.kind == "fdatasync":
        return True
    start = b.operation.offset or 0
    end = start + b.operation.length if b.operation.length else None  # length 0 = to the end of the file
    return _overlap(a.blocks, range(start // 4096, a.blocks.stop if end is None else -(-end // 4096)))


def _descriptor(a: Event, b: Event) -> bool:
    """Rule 3: open before use, use before close, close before opening again, rename before opening the new name."""
    same_fd = a.fd is not None and a.fd == b.fd
    if a.kind in ("open", "creat") and (same_fd or (a.created and a.path in b.paths)):
        return True
    if b.kind == "close" and same_fd:
        return True
    if b.kind not in ("open", "creat"):
        return False
    return (a.kind == "close" and same_fd and a.path == b.path) or (a.kind == "rename" and a.path2 == b.path)


def _micro_operations(a: Event, b: Event) -> bool:
    """Rule 4: two micro-operations on the same thing keep their order."""
    if _UNORDERED in a.path or _UNORDERED in b.path:
        return False
    if a.path == b.path and (_overlap(a.blocks, b.blocks) or (a.kind in WRITES and b.kind in WRITES and b.extends)):
        return True
    return bool(a.attributes & b.attributes or a.directories & b.directories or a.added & (b.attributes | b.directories))


def _overlap(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop and len(a) > 0 and len(b) > 0
