"""Team: the only owner of compute threads in a process.

Helper threads sit in one foreign call for the life of the team; an iteration is one more foreign call by the caller, who works as thread 0.
They take chunks from atomic cursors, spin for a few microseconds when there is nothing to take, then sleep on a futex (control.py).
"""

import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headway.core.errors import CapacityError, ConfigError
from headway.kernels.cpu import layout
from headway.kernels.cpu.memory import Arena, address
from headway.kernels.cpu.objects import Linked, ObjectCache

MAX_THREADS = 256
_SIGNATURES = {"run": "int64(int64)", "worker": "int64(int64,int64)", "execute": "void(int64,int64,int64)"}


def _load(name: str) -> Callable[[], tuple[Callable[..., Any], str]]:
    def load() -> tuple[Callable[..., Any], str]:
        from headway.kernels.cpu import control

        return getattr(control, name), _SIGNATURES[name]

    return load


def _tsc_hz() -> float:
    """Ticks of the time stamp counter in a second, from the kernel's own calibration (bogomips counts two a tick)."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as f:
            for line in f:
                if line.startswith("bogomips"):
                    return float(line.split(":")[1]) * 0.5e6
    except (OSError, ValueError):
        pass
    return 2.5e9


class Team:
    """`threads` threads including the caller. Not re-entrant: one `run` at a time.

    `spin_us`: how long a thread spins before it sleeps; barriers of a lockstep pass stay below it, a busy neighbour gets its core back.
    """

    def __init__(self, threads: int, cache: ObjectCache, *, spin_us: float = 5.0) -> None:
        if not 1 <= threads <= MAX_THREADS:
            raise ConfigError(f"threads={threads}: a team has 1 to {MAX_THREADS} threads")
        self.n_threads = threads
        self.spin_us = spin_us
        self.tsc_hz = _tsc_hz()
        compiled = {name: cache.control(name, _load(name)) for name in _SIGNATURES}
        self._linked = Linked([code for _, code in compiled.values()])
        entries = {name: self._linked.address(symbol) for name, (symbol, _) in compiled.items()}
        self._arena = Arena(4096)
        block = self._arena.take(layout.TEAM_BYTES, np.int64)
        block[layout.TEAM_SPIN // 8] = int(spin_us * self.tsc_hz / 1e6)
        block[layout.TEAM_THREADS // 8] = threads
        block[layout.TEAM_TIMEOUT // 8 : layout.TEAM_TIMEOUT // 8 + 2] = (
            1,
            0,
        )  # belt and braces: a lost wake-up costs a second, not the process
        block[layout.TEAM_EXECUTE // 8] = entries["execute"]
        self._block = block
        self._address = address(block)
        self._results = (ctypes.c_int64 * (2 * threads))()
        pointer = ctypes.c_void_p
        self._run = ctypes.CFUNCTYPE(ctypes.c_int32, pointer, pointer, ctypes.c_int64)(entries["run"])
        self._worker = ctypes.CFUNCTYPE(ctypes.c_int32, pointer, pointer, ctypes.c_int64, ctypes.c_int64)(entries["worker"])
        self._boxes = [ctypes.addressof(self._results) + 16 * i for i in range(threads)]
        self._threads = [threading.Thread(target=self._help, args=(i,), name=f"headway-team-{i}", daemon=True) for i in range(1, threads)]
        for t in self._threads:
            t.start()
        self._caller_cpu_ns = 0
        self._helper_clocks = [time.pthread_getcpuclockid(t.ident) for t in self._threads if t.ident is not None]
        self._helper_cpu_ns = 0
        self.closed = False

    def _help(self, thread: int) -> None:
        box = self._boxes[thread]
        self._worker(box, box + 8, self._address, thread)

    def run(self, program: int) -> None:
        """One iteration of the program block at this address."""
        self._block[layout.TEAM_PROGRAM // 8] = program
        box = self._boxes[0]
        before_ns = time.thread_time_ns()
        self._run(box, box + 8, self._address)
        self._caller_cpu_ns += time.thread_time_ns() - before_ns
        failed = self._results[0]
        if failed:
            raise CapacityError(
                f"operation {failed - 1} needs more than {layout.MAX_CHUNKS} chunks: use fewer rows", needed=-1, capacity=layout.MAX_CHUNKS
            )

    def cpu_s(self) -> float:
        """CPU seconds of all threads inside `run` so far. Helpers do nothing else in their lives; what they spin after the last chunk, at
        most `spin_us` a run, is counted too."""
        if not self.closed:
            self._helper_cpu_ns = sum(time.clock_gettime_ns(clock) for clock in self._helper_clocks)
        return (self._caller_cpu_ns + self._helper_cpu_ns) / 1e9

    def native_ids(self) -> list[int]:
        """Kernel thread ids of the helper threads (for schedstat)."""
        return [t.native_id for t in self._threads if t.native_id is not None]

    def close(self) -> None:
        if self.closed:
            return
        self.cpu_s()  # the helpers' clocks end with them
        self.closed = True
        self._block[layout.TEAM_STOP // 8] = 1
        for t in self._threads:
            t.join(timeout=5)
            while t.is_alive():  # asleep on the futex: its timeout ends the wait
                time.sleep(0.01)
