"""Built-in verdicts: what a recovered history may look like, given what was acknowledged and what was begun (specs/crashtest.md 5.6).

Begin markers are necessary: an operation in flight may survive or not, and an oracle that knows only acknowledgements calls both a loss.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from headway.crashtest.oracle import Verdict


def acked_durable(found: Iterable[Hashable], acks: Sequence[str]) -> Verdict:
    """Every acknowledged operation is there; `found` holds the same texts as the markers."""
    there = {str(item) for item in found}
    lost = [text for text in acks if text not in there]
    return f"acknowledged data lost: {_few(lost)}" if lost else None


def nothing_invented(found: Iterable[Hashable], begun: Sequence[str]) -> Verdict:
    """Nothing is there that was never begun."""
    known = set(begun)
    extra = [str(item) for item in found if str(item) not in known]
    return f"data that nobody wrote: {_few(extra)}" if extra else None


def no_duplicates(found: Iterable[Hashable]) -> Verdict:
    """Nothing was applied twice."""
    twice = [str(item) for item, count in Counter(found).items() if count > 1]
    return f"applied twice: {_few(twice)}" if twice else None


def prefix_of_history(found: Sequence[int], acks: Sequence[str], begun: Sequence[str]) -> Verdict:
    """Records numbered from 1: `found` is 1..k without a hole, in order, with last acknowledged <= k <= last begun."""
    for place, number in enumerate(found, 1):
        if number != place:
            return f"hole or disorder in the history: record {place} should stand where {number} does"
    acked = max((int(text) for text in acks), default=0)
    started = max((int(text) for text in begun), default=0)
    if len(found) < acked:
        return f"acknowledged data lost: recovered {len(found)} records, {acked} were acknowledged"
    if len(found) > started:
        return f"data that nobody wrote: recovered {len(found)} records, only {started} were begun"
    return None


def old_or_new(found: str | None, acks: Sequence[str], begun: Sequence[str], *, initial: str | None = None) -> Verdict:
    """A value that is replaced as a whole: the last acknowledged one, or one begun since; `initial` before the first."""
    allowed: list[str | None] = [acks[-1] if acks else initial]
    allowed += begun[begun.index(acks[-1]) + 1 :] if acks else begun
    if found in allowed:
        return None
    return f"neither old nor new: found {found!r}, allowed {', '.join(map(repr, allowed[-4:]))}"


def _few(items: Sequence[str]) -> str:
    shown = ", ".join(items[:3])
    return f"{shown} and {len(items) - 3} more" if len(items) > 3 else shown
