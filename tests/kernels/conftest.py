"""Kernels by name: compiled once a session for each ISA level this CPU can run (portable16 runs the 16-lane code everywhere)."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from headway.kernels.cpu import isa
from headway.kernels.cpu.compile import Kernel, compile_kernel
from headway.kernels.cpu.objects import Linked

LEVELS = [level for level in isa.LEVELS if isa.host_supports(level)]


class Bench:
    """Calls one microkernel from Python: `bench(kernel)(address, ...)`."""

    def __init__(self, level: isa.Isa) -> None:
        self.isa = level
        self._linked: dict[str, tuple[Linked, Callable[..., None]]] = {}

    def __call__(self, kernel: Kernel) -> Callable[..., None]:
        if kernel.symbol not in self._linked:
            linked = Linked([compile_kernel(kernel, self.isa)])
            kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * kernel.arguments)
            self._linked[kernel.symbol] = linked, kind(linked.address(kernel.symbol))
        return self._linked[kernel.symbol][1]


_benches: dict[str, Bench] = {}


@pytest.fixture(params=LEVELS, ids=lambda level: level.name)
def bench(request: Any) -> Bench:
    level: isa.Isa = request.param
    return _benches.setdefault(level.name, Bench(level))
