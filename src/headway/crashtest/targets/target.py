"""What a recipe is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headway.crashtest.oracle import Verdict

Workload = Callable[[Path], None]
TargetCheck = Callable[[Path, Sequence[str], Sequence[str]], Verdict]


@dataclass(frozen=True, slots=True)
class Target:
    """`setup` runs before the trace, `workload` in it; `clean` says what must come out under `model` (None: nothing is promised)."""

    name: str
    title: str
    workload: Workload
    check: TargetCheck
    clean: bool | None
    model: str = "ext4"
    needs: str = ""
    setup: Workload | None = None
    planted: bool = False
    ignore: tuple[str, ...] = ()
    """Files that recovery never reads and that no tracer sees written (lock tables in shared memory)."""
