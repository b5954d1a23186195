"""Down-closed sets of a partial order, as bitsets in Python integers.

A graph is a list `preds`: preds[i] has bit j set when j must come before i; every j is below i (the nodes are in topological order).
"""

from collections.abc import Iterator, Sequence


def bits(mask: int) -> Iterator[int]:
    """The positions of the set bits, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def ancestors(preds: Sequence[int]) -> list[int]:
    """For every node everything that must come before it, directly or not."""
    closed: list[int] = []
    for direct in preds:
        mask = direct
        for j in bits(direct):
            mask |= closed[j]
        closed.append(mask)
    return closed


def descendants(preds: Sequence[int]) -> list[int]:
    """For every node everything that must come after it."""
    after = [0] * len(preds)
    for i in range(len(preds) - 1, -1, -1):
        mine = after[i] | 1 << i
        for j in bits(preds[i]):
            after[j] |= mine
    return after


def reduced(preds: Sequence[int]) -> list[int]:
    """The transitive reduction: only the edges that no longer path implies."""
    closed = ancestors(preds)
    result = []
    for direct in preds:
        implied = 0
        for j in bits(direct):
            implied |= closed[j]
        result.append(direct & ~implied)
    return result


def contract(preds: Sequence[int], removed: int) -> list[int]:
    """The same order without the nodes of `removed`: what came before one of them comes before all that follow it (transitively).

    Removed nodes keep their position and get no predecessors.
    """
    through: list[int] = []
    for direct in preds:
        mask = direct & ~removed
        for j in bits(direct & removed):
            mask |= through[j]
        through.append(mask)
    return [0 if removed >> i & 1 else mask for i, mask in enumerate(through)]


def induced(preds: Sequence[int], first: int, last: int) -> list[int]:
    """The graph on nodes first..last (inclusive), renumbered from 0."""
    window = (1 << (last - first + 1)) - 1
    return [(preds[i] >> first) & window for i in range(first, last + 1)]


def closed_under(preds: Sequence[int], mask: int) -> bool:
    return all(preds[i] & ~mask == 0 for i in bits(mask))


def ideals(preds: Sequence[int], among: int | None = None) -> Iterator[int]:
    """Every down-closed subset of the nodes in `among` (default: all), each once, the empty one included.

    Predecessors outside `among` count as present. Include/exclude recursion in topological order, fullest branch first: neighbours in
    the sequence share most of their members, and the work is linear in what is listed.
    """
    order = list(bits((1 << len(preds)) - 1 if among is None else among))
    scope = sum(1 << i for i in order)
    stack = [(0, 0)]
    while stack:
        at, taken = stack.pop()
        while at < len(order):
            i = order[at]
            at += 1
            if preds[i] & scope & ~taken == 0:
                stack.append((at, taken))
                taken |= 1 << i
        yield taken


def count_ideals(preds: Sequence[int], among: int | None = None, *, limit: int) -> int:
    """How many down-closed subsets there are; stops at limit + 1."""
    count = 0
    for _ in ideals(preds, among):
        count += 1
        if count > limit:
            break
    return count


def closure_of(ancestors_: Sequence[int], mask: int) -> int:
    """`mask` and everything that must come before its members; `ancestors_` from `ancestors`."""
    result = mask
    for i in bits(mask):
        result |= ancestors_[i]
    return result
