"""Repetitions that count only when the machine was quiet: before each one and during it."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from headway.core.stats import QuietWatch

T = TypeVar("T")


@dataclass(slots=True)
class Repetitions(Generic[T]):
    """`kept` are quiet, `void` is how many were not. `measurable` is False when more than half were void."""

    kept: list[T] = field(default_factory=list)
    noisy: list[T] = field(default_factory=list)
    void: int = 0

    @property
    def measurable(self) -> bool:
        return bool(self.kept) and self.void <= len(self.kept)


def repeat(times: int, once: Callable[[int], T], *, before_s: float = 5.0, any_noise: bool = False) -> Repetitions[T]:
    """Calls `once(k)` until `times` quiet repetitions are there, at most 3 times as many. `any_noise` keeps all (for a trial run)."""
    out: Repetitions[T] = Repetitions()
    for attempt in range(3 * times):
        watch = QuietWatch([os.getpid()])
        time.sleep(0.0 if any_noise else before_s)
        before = watch.quiet()
        watch.restart()
        value = once(attempt)
        during = watch.quiet()
        if any_noise or (before.is_quiet and during.is_quiet):
            out.kept.append(value)
        else:
            out.noisy.append(value)
            out.void += 1
            worst = max(before.others_share, during.others_share)
            print(f"  repetition {attempt + 1} is void: others used {worst:.0%} of the cores", flush=True)
        if len(out.kept) == times:
            break
    return out
