"""What a recipe is made of."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headway.crashtest.oracle import CallableOracle, Oracle, Verdict

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
    imports: tuple[str, ...] = ()
    setup: Workload | None = None
    planted: bool = False
    backend: Literal["auto", "ptrace"] = "auto"
    ignore: tuple[str, ...] = ()
    """Files that recovery never reads and that no tracer sees written (lock tables in shared memory)."""

    def oracle(self) -> Oracle:
        """For a fork server: imports what the check uses, once."""
        for module in self.imports or ((self.needs,) if self.needs else ()):
            importlib.import_module(module)
        return CallableOracle(self.check)
