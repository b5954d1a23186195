"""Which update behaviours stand for which others: the induced-subgraph relation between runs of the same function (section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

from headway.crashtest.dag import bits
from headway.crashtest.operations import Frame
from headway.crashtest.pathfinder.events import Event
from headway.crashtest.pathfinder.inference import Behaviour


@dataclass(frozen=True, slots=True)
class Group:
    """Behaviours that the first one represents; only the first is tested."""

    function: str
    members: tuple[Behaviour, ...]

    @property
    def representative(self) -> Behaviour:
        return self.members[0]


def group(events: Sequence[Event], preds: Sequence[int], behaviours: Sequence[Behaviour]) -> list[Group]:
    """Groups the behaviours of one function, largest first. `preds` is the whole trace's graph. A behaviour may be in several groups."""
    founders: list[list[Behaviour]] = []
    for behaviour in sorted(behaviours, key=lambda b: -len(b.events)):
        joined = [members for members in founders if represents(events, preds, members[0], behaviour)]
        for members in joined:
            members.append(behaviour)
        if not joined:
            founders.append([behaviour])
    return [Group(members[0].function, tuple(members)) for members in founders]


def represents(events: Sequence[Event], preds: Sequence[int], large: Behaviour, small: Behaviour) -> bool:
    """Whether `small` maps onto events of `large` with exactly the same edges between them."""
    image: dict[int, int] = {}  # event of small -> event of large
    for big in large.events:
        for candidate in small.events:
            if candidate not in image and _equivalent(events[candidate].operation.stack, events[big].operation.stack, large.function):
                image[candidate] = big
                break
    if len(image) < len(small.events):
        return False
    for later in small.events:
        wanted = {image[i] for i in bits(preds[later]) if i in image}
        mapped = sum(1 << i for i in image.values())
        if wanted != set(bits(preds[image[later]] & mapped)):
            return False
    return True


def _equivalent(small: Sequence[Frame], large: Sequence[Frame], function: str) -> bool:
    """Small's outermost frame of the function equals large's innermost one; where small has none, the whole stacks are equal."""
    outermost = next((frame for frame in reversed(small) if frame.function == function), None)
    if outermost is None:
        return tuple(small) == tuple(large)
    return outermost == next((frame for frame in large if frame.function == function), None)
