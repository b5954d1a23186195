"""The paged-read limit: the same bytes in the same order as a decode step, loaded and summed, with prefetch. No kernel can be faster."""

import ctypes
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from headway.kernels.cpu.compile import compile_kernel
from headway.kernels.cpu.emit import I32, I64, VOID, Kit, Value
from headway.kernels.cpu.isa import Isa
from headway.kernels.cpu.memory import address
from headway.kernels.cpu.objects import Linked


@dataclass(frozen=True, slots=True)
class ReadRuns:
    """Read `count` runs of `run_bytes` at the addresses in a table, prefetching `ahead` bytes further along. Call: (table, count)."""

    run_bytes: int
    ahead: int

    arguments = 2

    @property
    def symbol(self) -> str:
        return f"bench_read_runs_{self.run_bytes}_{self.ahead}"

    def emit(self, k: Kit, table: Value, count: Value) -> None:
        step = min(512, self.run_bytes)
        vectors = step // (4 * k.lanes)
        runs_ahead = -(-self.ahead // self.run_bytes)

        def of_run(i: Value, sums: list[Value]) -> list[Value]:
            run = k.load(k.index(table, i, 8), I64, 0, 8)
            coming = k.load(k.index(table, k.at(i, runs_ahead), 8), I64, 0, 8)

            def body(j: Value, sums: list[Value]) -> list[Value]:
                at, soon = k.index(run, j, step), k.index(coming, j, step)
                for line in range(0, step, 64):
                    k.prefetch(soon, line)
                sums, n = list(sums), len(sums)
                for v in range(vectors):
                    sums[v % n] = k.b.add(sums[v % n], k.load(at, k.i, 4 * k.lanes * v))
                return k.fence(sums)

            return k.loop(k.i64(self.run_bytes // step), sums, body)

        sums = k.loop(count, [k.vi(0)] * 4, of_run)
        total = k.b.add(k.b.add(sums[0], sums[1]), k.b.add(sums[2], sums[3]))
        k.b.call(ir.InlineAsm(ir.FunctionType(VOID, [I32]), "", "r", side_effect=True), [k.sum_i32(total)])


class Reader:
    """Reads runs at given addresses; the best of several prefetch distances is the limit."""

    def __init__(self, isa: Isa, run_bytes: int) -> None:
        kernels = [ReadRuns(run_bytes, ahead) for ahead in (2048, 8192, 32768)]
        self._linked = Linked([compile_kernel(kernel, isa) for kernel in kernels])
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)
        self.calls = [kind(self._linked.address(kernel.symbol)) for kernel in kernels]
        self.most_ahead = 32768 // min(run_bytes, 32768) + 16

    def table(self, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([addresses, np.repeat(addresses[-1:], self.most_ahead)])

    def read(self, which: int, table: NDArray[np.int64]) -> None:
        self.calls[which](address(table), len(table) - self.most_ahead)
