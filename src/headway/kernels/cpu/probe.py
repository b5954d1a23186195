"""ReadBytes: plain loads and nothing else, the yardstick for memory-bound kernels."""

from dataclasses import dataclass

from llvmlite import ir

from headway.kernels.cpu.emit import I32, VOID, Kit, Value


@dataclass(frozen=True, slots=True)
class ReadBytes:
    """Read a range in steps of 512 bytes. Call: (address, steps)."""

    arguments = 2
    symbol = "hw_read_bytes"

    def emit(self, k: Kit, address: Value, steps: Value) -> None:
        n = 512 // (4 * k.lanes)

        def body(i: Value, sums: list[Value]) -> list[Value]:
            at = k.index(address, i, 512)
            return [k.b.add(s, k.load(at, k.i, 4 * k.lanes * j)) for j, s in enumerate(sums)]

        sums = k.loop(steps, [k.vi(0)] * n, body)
        total = sums[0]
        for s in sums[1:]:
            total = k.b.add(total, s)
        # an empty instruction that wants the sum: else the loads would be optimised away
        k.b.call(ir.InlineAsm(ir.FunctionType(VOID, [I32]), "", "r", side_effect=True), [k.sum_i32(total)])
