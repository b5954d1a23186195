"""What machine this is, and whether others were using it while we measured ("quiet": docs/benchmarks.md). Linux /proc only."""

import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

OTHERS_LIMIT = 0.05
STEAL_LIMIT = 0.02


def machine_fingerprint() -> dict[str, object]:
    """CPU model, cores, ISA flags, kernel, versions, load, governor; what cannot be read is "" or empty."""
    fields = {}
    for line in _read("/proc/cpuinfo").split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "isa": [flag for flag in wanted if flag in flags],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load": list(os.getloadavg()),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # absent in a container or gone with its process
        return ""


@dataclass(frozen=True, slots=True)
class Quiet:
    """Shares of all cores' time in a window: used by other processes, and stolen by the hypervisor."""

    seconds: float
    others_share: float
    steal_share: float

    @property
    def is_quiet(self) -> bool:
        return self.others_share < OTHERS_LIMIT and self.steal_share < STEAL_LIMIT


@dataclass(frozen=True, slots=True)
class _Ticks:
    at_s: float
    total: int
    busy: int
    steal: int
    ours: int


class QuietWatch:
    """Watches from its creation (or `restart`) on. `roots`: pids whose process trees are ours; default this process."""

    def __init__(self, roots: Iterable[int] = (), *, proc: str | Path = "/proc") -> None:
        self._roots = set(roots) or {os.getpid()}
        self._proc = Path(proc)
        self._start = self._sample()

    def restart(self) -> None:
        self._start = self._sample()

    def quiet(self) -> Quiet:
        """The window since the start."""
        now, start = self._sample(), self._start
        total = max(now.total - start.total, 1)
        others = (now.busy - start.busy) - (now.ours - start.ours)
        return Quiet(now.at_s - start.at_s, max(others, 0) / total, (now.steal - start.steal) / total)

    def _sample(self) -> _Ticks:
        # user nice system idle iowait irq softirq steal (guest time is already part of user)
        values = [int(word) for word in _read(self._proc / "stat").split("\n")[0].split()[1:9]]
        user, nice, system, idle, iowait, irq, softirq, steal = values + [0] * (8 - len(values))
        busy = user + nice + system + irq + softirq
        return _Ticks(time.monotonic(), busy + idle + iowait + steal, busy, steal, self._ours())

    def _ours(self) -> int:
        """Ticks of our trees. Waited-for children count through their parent, so that a process that ends is not lost."""
        parents: dict[int, int] = {}
        used: dict[int, int] = {}
        for directory in self._proc.iterdir():
            if directory.name.isdecimal():
                # The name in parentheses may hold blanks and parentheses itself.
                words = _read(directory / "stat").rpartition(")")[2].split()
                if len(words) > 14:
                    pid = int(directory.name)
                    parents[pid] = int(words[1])
                    used[pid] = sum(int(word) for word in words[11:15])
        ticks = 0
        for pid in used:
            here, seen = pid, set[int]()
            while here in parents and here not in self._roots and here not in seen:
                seen.add(here)
                here = parents[here]
            if here in self._roots:
                ticks += used[pid]
        return ticks


def quiet_window(seconds: float = 5.0, roots: Iterable[int] = ()) -> Quiet:
    """Waits `seconds` and says how quiet the machine was meanwhile."""
    watch = QuietWatch(roots)
    time.sleep(seconds)
    return watch.quiet()
