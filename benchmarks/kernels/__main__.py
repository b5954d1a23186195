"""Billions of multiplications and additions a second of each product tile, beside NumPy's float32 product of the same shape.

One thread, 512 outputs of 576 inputs: quantised weights stay in L2 (float32 ones would need 1.2 MB: NumPy reads L3). Two planes count once,
because both are one product for the model. Thread CPU time; contenders take turns, medians.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy
for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)

import numpy as np  # noqa: E402

from benchmarks.rows import finish, header, parser, ratio_row  # noqa: E402
from headway.kernels.cpu import isa  # noqa: E402
from headway.kernels.cpu.compile import compile_kernel  # noqa: E402
from headway.kernels.cpu.emit import Kit, Value  # noqa: E402
from headway.kernels.cpu.memory import Arena, address  # noqa: E402
from headway.kernels.cpu.objects import Linked  # noqa: E402
from headway.kernels.cpu.products import UNIT_ROWS, Kind, Product, activation_bytes, strip_bytes, tile_rows  # noqa: E402

_INPUTS, _UNITS = 576, 16
_OPERATIONS = 3e7  # of one turn: about 0.3 ms


@dataclass(frozen=True, slots=True)
class _Repeated:
    """A product over all units, many times, in one call. Call: (weights, activations, out, repetitions)."""

    product: Product
    units: int

    arguments = 4
    symbol = "hw_repeated_product"

    def emit(self, k: Kit, weights: Value, x: Value, out: Value, times: Value) -> None:
        unit = 2 * strip_bytes(self.product.kind, self.product.inputs)

        def one(i: Value, _: list[Value]) -> list[Value]:
            at = k.index(weights, i, unit)
            self.product.emit(k, at, x, out, k.i64(4 * UNIT_ROWS), k.at(at, unit))
            return []

        def again(_: Value, __: list[Value]) -> list[Value]:
            k.loop(k.i64(self.units), [], one)
            return []

        k.loop(times, [], again)


def _ours(kind: Kind, rows: int, planes: int) -> Callable[[], float]:
    kernel = _Repeated(Product(kind, _INPUTS, rows, planes, "store", prefetch=planes == 2), _UNITS)
    linked = Linked([compile_kernel(kernel, isa.select())])
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * kernel.arguments)(linked.address(kernel.symbol))
    size, activations = 2 * strip_bytes(kind, _INPUTS) * (_UNITS + 1), activation_bytes(kind, _INPUTS, planes) * rows + 64
    arena = Arena(size + activations + 4 * UNIT_ROWS * rows + 4096)
    weights, x, out = arena.take(size), arena.take(activations), arena.take(4 * UNIT_ROWS * rows)
    weights[:] = np.random.default_rng(0).integers(0, 60, size, np.uint8)  # scales stay finite
    operations = 2 * _UNITS * UNIT_ROWS * _INPUTS * rows
    times = max(1, int(_OPERATIONS / operations))

    def run() -> float:
        start_s = time.thread_time()
        call(address(weights), address(x), address(out), times)
        return operations * times / (time.thread_time() - start_s) / 1e9

    run.keep = linked, arena  # type: ignore[attr-defined]
    return run


def _numpy(rows: int) -> Callable[[], float]:
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=(_INPUTS, _UNITS * UNIT_ROWS)).astype(np.float32), rng.normal(size=(rows, _INPUTS)).astype(np.float32)
    out = np.zeros((rows, _UNITS * UNIT_ROWS), np.float32)
    operations = 2 * weights.size * rows
    times = max(1, int(_OPERATIONS / operations))

    def run() -> float:
        start_s = time.thread_time()
        for _ in range(times):
            np.matmul(x, weights, out=out)
        return operations * times / (time.thread_time() - start_s) / 1e9

    return run


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("--turns", type=int, default=60)
    options = made.parse_args()
    machine = header(f"products of {_UNITS * UNIT_ROWS} outputs of {_INPUTS} inputs, one thread, {isa.select().name}")
    kinds: tuple[Kind, ...] = ("q4_1", "q8_0")
    cases = [(kind, planes, rows) for kind in kinds for planes in (2, 1) for rows in reversed(tile_rows(isa.select(), planes))]
    ours = [_ours(kind, rows, planes) for kind, planes, rows in cases]
    theirs = {rows: _numpy(rows) for rows in sorted({rows for _, _, rows in cases})}
    seen: list[list[float]] = [[] for _ in cases]
    peers: dict[int, list[float]] = {rows: [] for rows in theirs}
    for _ in range(options.turns):
        for speeds, run in zip(seen, ours, strict=True):
            speeds.append(run())
        for rows, run in theirs.items():
            peers[rows].append(run())
    found = []
    for (kind, planes, rows), speeds in zip(cases, seen, strict=True):
        name = f"{kind}, {planes} plane{'s' * (planes > 1)}, {rows} row{'s' * (rows > 1)}"
        found.append(ratio_row("kernels", name, speeds, peers[rows], "GOP/s", peer_version=f"numpy {np.__version__}"))
    return finish(found, machine, options.json)


if __name__ == "__main__":
    sys.exit(main())
