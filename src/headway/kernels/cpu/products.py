"""Matrix-product microkernels: two strips of 16 output rows times 1..n activation rows.

Packed weights do not depend on the ISA: a strip is 16 output rows, block after block along the input; lane r of every
vector belongs to output row r. The input length is a constant of the kernel (10 % of decode speed in the prototype). Each output element is
one lane of one accumulator, block after block in input order with the same fma sequence in every tile shape: a row's result does not
depend on the rows beside it.

Activation row of a quantised product: per block of 32 inputs a record of 48 bytes (one plane) or 80 (two planes):
`int8 a[32] | int8 b[32] if two planes | f32 scale | f32 scale*sum | i32 -128*sum | 4 bytes`, x ~ scale*a or scale*(256a + b).
On CPUs without int8 dot products the two planes are one `int16 (256a + b)[32]` (`is_wide`).
Activation row of a float product: float32[inputs].
"""

from dataclasses import dataclass
from typing import Any, Literal

from llvmlite import ir

from headway.kernels.cpu.emit import LOG2E, Kit, Value
from headway.kernels.cpu.isa import Isa

Kind = Literal["q4_1", "q8_0", "f32", "f16", "bf16"]
Epilogue = Literal["store", "add", "silu"]
QUANTISED: tuple[Kind, ...] = ("q4_1", "q8_0")
STRIP_ROWS = 16
UNIT_ROWS = 32  # a unit is two strips: what one kernel call computes
BLOCK = 32  # inputs of one quantised block
BLOCK_BYTES = {"q4_1": 320, "q8_0": 544, "f32": 64, "f16": 32, "bf16": 32}  # of a strip; float kinds: one input
BLOCK_INPUTS = {"q4_1": 32, "q8_0": 32, "f32": 1, "f16": 1, "bf16": 1}


def record_bytes(planes: int) -> int:
    return 16 + 32 * planes


def is_wide(isa: Isa, planes: int) -> bool:
    """Whether two planes are stored as one int16 a value: the form for CPUs whose int8 products are 16-bit pairs."""
    return planes == 2 and isa.dot == "maddubs"


def _splits_bytes(kind: Kind, isa: Isa) -> bool:
    """Whether nibbles of 8-bit weights are multiplied apart: int16 sums of whole bytes would saturate."""
    return kind == "q8_0" and isa.dot == "maddubs"


def strip_bytes(kind: Kind, inputs: int) -> int:
    return inputs // BLOCK_INPUTS[kind] * BLOCK_BYTES[kind]


def activation_bytes(kind: Kind, inputs: int, planes: int) -> int:
    """Bytes of one activation row as the product's kernels read it."""
    return inputs // BLOCK * record_bytes(planes) if kind in QUANTISED else 4 * inputs


@dataclass(frozen=True, slots=True)
class Product:
    """One kernel. `rows`: activation rows it takes; `planes`: int8 planes of the activations (ignored by float kinds).

    `silu`: strip 0 is gate, strip 1 is up; 16 outputs `silu(gate)*up`. `prefetch`: read the unit at the last argument ahead.
    Call: (weights, activations, out, out_stride_bytes, prefetch address).
    """

    kind: Kind
    inputs: int
    rows: int
    planes: int
    epilogue: Epilogue
    prefetch: bool

    arguments = 5

    @property
    def symbol(self) -> str:
        ahead = "_ahead" if self.prefetch else ""
        return f"hw_product_{self.kind}_{self.inputs}_{self.rows}x{self.planes}_{self.epilogue}{ahead}"

    def emit(self, k: Kit, weights: Value, x: Value, out: Value, out_stride: Value, ahead: Value) -> None:
        strip = strip_bytes(self.kind, self.inputs)
        row = activation_bytes(self.kind, self.inputs, self.planes)
        accumulate = _floats if self.kind not in QUANTISED else _wide if is_wide(k.isa, self.planes) else _quantised
        outs = [out]
        for _ in range(self.rows - 1):
            outs.append(k.b.add(outs[-1], out_stride))
        halves = k.isa.vectors_per_strip
        vectors = (
            [(s, h) for h in range(halves) for s in range(2)]
            if self.epilogue == "silu"
            else [(s, h) for s in range(2) for h in range(halves)]
        )
        at_once = self._vectors_at_once(k.isa)
        gates: dict[int, list[Value]] = {}
        for first in range(0, len(vectors), at_once):
            group = vectors[first : first + at_once]
            share = Share(len(group), k.at(ahead, 2 * strip * first // len(vectors)))
            sums = accumulate(k, self, [(k.at(weights, strip * s), h) for s, h in group], x, row, share)
            for v, (s, h) in enumerate(group):
                mine = sums[v * self.rows : (v + 1) * self.rows]
                if self.epilogue != "silu":
                    _store(k, self.epilogue, mine, outs, 64 * s + 4 * k.lanes * h)
                elif s == 0:
                    gates[h] = mine
                else:
                    _store_silu(k, gates[h], mine, outs, 4 * k.lanes * h)

    def _vectors_at_once(self, isa: Isa) -> int:
        """Vectors of output rows that share each activation broadcast: two, if their sums leave half of 16 registers free."""
        if isa.lanes == 16 or self.kind not in QUANTISED or is_wide(isa, self.planes):
            return 2
        return 2 if self.rows * self.planes * (2 if _splits_bytes(self.kind, isa) else 1) <= 4 else 1


@dataclass(frozen=True, slots=True)
class Share:
    """What one pass prefetches: its part, `vectors` of the unit's, of the unit ahead."""

    vectors: int
    ahead: Value


def _prefetch(k: Kit, share: Share, i: Value, block_bytes: int) -> None:
    """Step i of a pass over strips whose blocks have `block_bytes`: one vector is `lanes` of a strip's 16 rows."""
    part = block_bytes * share.vectors * k.lanes // STRIP_ROWS
    at = k.index(share.ahead, i, part)
    for offset in range(0, part, 64):
        k.prefetch(at, offset)


def _quantised(k: Kit, p: Product, vectors: list[tuple[Value, int]], x: Value, row: int, share: Share) -> list[Value]:
    b, block, record = k.b, BLOCK_BYTES[p.kind], record_bytes(p.planes)
    width = 4 * k.lanes
    nibble = ir.Constant(k.bytes, [15] * width)
    four = ir.Constant(k.words, [4] * 2 * k.lanes)
    split_bytes = _splits_bytes(p.kind, k.isa)

    def low(q: Value) -> Value:
        return b.and_(q, nibble)

    def high(q: Value) -> Value:
        return b.and_(b.bitcast(b.lshr(b.bitcast(q, k.words), four), k.bytes), nibble)

    def body(i: Value, sums: list[Value]) -> list[Value]:
        places = [(k.index(s, i, block), h) for s, h in vectors]
        xb = k.index(x, i, record)
        if p.prefetch:
            _prefetch(k, share, i, block)
        keys = [(v, t, q) for v in range(len(vectors)) for t in range(p.rows) for q in range(p.planes)]
        totals = {key: k.dot_start() for key in keys}
        highs = {key: k.dot_start() for key in keys} if split_bytes else {}

        def step(into: dict[Any, Value], group: int, weights: list[Value]) -> None:
            for t in range(p.rows):
                for q in range(p.planes):
                    a = b.bitcast(k.splat_i32(xb, t * row + 32 * q + 4 * group), k.bytes)
                    for v, w in enumerate(weights):
                        into[v, t, q] = k.dot_step(into[v, t, q], w, a)
            order = list(into)
            into.update(zip(order, k.fence([into[key] for key in order]), strict=True))

        if p.kind == "q4_1":
            for j in range(4):
                q4 = [k.load(w, k.bytes, 64 + 64 * j + width * h, 1) for w, h in places]
                step(totals, j, [low(q) for q in q4])
                step(totals, j + 4, [high(q) for q in q4])
        else:
            for j in range(8):
                q8 = [k.load(w, k.bytes, 32 + 64 * j + width * h, 1) for w, h in places]
                if split_bytes:
                    step(totals, j, [low(q) for q in q8])
                    step(highs, j, [high(q) for q in q8])
                else:
                    step(totals, j, q8)

        def total(v: int, t: int, q: int) -> Value:
            n = k.dot_end(totals[v, t, q])
            return b.add(b.shl(k.dot_end(highs[v, t, q]), k.vi(4)), n) if split_bytes else n

        planes = [total(v, t, 0) for v in range(len(vectors)) for t in range(p.rows)]
        if p.planes == 2:
            second = [total(v, t, 1) for v in range(len(vectors)) for t in range(p.rows)]
            planes = [b.add(b.shl(n, k.vi(8)), m) for n, m in zip(planes, second, strict=True)]
        return _scaled(k, p, places, xb, row, planes, sums)

    return k.loop(k.i64(p.inputs // BLOCK), [k.vf(0.0)] * (len(vectors) * p.rows), body)


def _wide(k: Kit, p: Product, vectors: list[tuple[Value, int]], x: Value, row: int, share: Share) -> list[Value]:
    """Two planes as one int16, multiplied with pairs of weights: for each field of a word of weights, shift, mask, multiply, add.

    A word of Q4_1 holds four inputs, one of Q8_0 two; the words of a row's group are its inputs (0, 2) and (1, 3): PrepareRow's order.
    """
    b, block, record = k.b, BLOCK_BYTES[p.kind], record_bytes(2)
    # of a group of weights: its offset in the block, then each field's first bit and the byte of the activations it is multiplied with
    if p.kind == "q4_1":
        width, groups = 4, [(64 + 64 * j, [(0, 8 * j), (4, 8 * j + 32), (8, 8 * j + 4), (12, 8 * j + 36)]) for j in range(4)]
    else:
        width, groups = 8, [(32 + 64 * j, [(0, 8 * j), (8, 8 * j + 4)]) for j in range(8)]
    mask = ir.Constant(k.words, [(1 << width) - 1] * 2 * k.lanes)

    def field(q: Value, bit: int) -> Value:
        down = b.lshr(q, ir.Constant(k.words, [bit] * 2 * k.lanes)) if bit else q
        return down if bit + width == 16 else b.and_(down, mask)

    def body(i: Value, sums: list[Value]) -> list[Value]:
        places = [(k.index(s, i, block), h) for s, h in vectors]
        xb = k.index(x, i, record)
        if p.prefetch:
            _prefetch(k, share, i, block)
        totals = [k.vi(0)] * (len(vectors) * p.rows)
        for offset, fields in groups:
            words = [b.bitcast(k.load(w, k.bytes, offset + 4 * k.lanes * h, 1), k.words) for w, h in places]
            for bit, at in fields:
                taken = [field(q, bit) for q in words]
                for t in range(p.rows):
                    a = b.bitcast(k.splat_i32(xb, t * row + at), k.words)
                    for v, w in enumerate(taken):
                        totals[v * p.rows + t] = b.add(totals[v * p.rows + t], k.multiply_pairs(w, a))
                totals = k.fence(totals)
        return _scaled(k, p, places, xb, row, totals, sums)

    return k.loop(k.i64(p.inputs // BLOCK), [k.vf(0.0)] * (len(vectors) * p.rows), body)


def _scaled(
    k: Kit, p: Product, places: list[tuple[Value, int]], xb: Value, row: int, totals: list[Value], sums: list[Value]
) -> list[Value]:
    """`sums` plus a block's integer `totals` times its scales, minima and offsets; both by vector, then row."""
    b, out = k.b, []
    for v, (w, h) in enumerate(places):
        d = k.load_f16(w, 2 * k.lanes * h)
        m = k.load_f16(w, 32 + 2 * k.lanes * h) if p.kind == "q4_1" else None
        for t in range(p.rows):
            n, scales = totals[v * p.rows + t], t * row + 32 * p.planes
            if p.kind == "q8_0":
                n = b.add(n, k.splat_i32(xb, scales + 8))
            s = k.fma(b.fmul(d, k.splat_f32(xb, scales)), b.sitofp(n, k.f), sums[v * p.rows + t])
            out.append(k.fma(m, k.splat_f32(xb, scales + 4), s) if m is not None else s)
    return out


def _floats(k: Kit, p: Product, vectors: list[tuple[Value, int]], x: Value, row: int, share: Share) -> list[Value]:
    element = BLOCK_BYTES[p.kind] // STRIP_ROWS
    unroll = 4 if p.inputs % 4 == 0 else 1

    def body(i: Value, sums: list[Value]) -> list[Value]:
        xb = k.index(x, i, 4 * unroll)
        places = [(k.index(s, i, 16 * element * unroll), h) for s, h in vectors]
        if p.prefetch:
            _prefetch(k, share, i, 16 * element * unroll)
        sums = list(sums)
        for u in range(unroll):
            weights = [k.load_float(p.kind, w, element * (16 * u + k.lanes * h)) for w, h in places]
            for t in range(p.rows):
                a = k.splat_f32(xb, t * row + 4 * u)
                for v, w in enumerate(weights):
                    sums[v * p.rows + t] = k.fma(w, a, sums[v * p.rows + t])
        return sums

    return k.loop(k.i64(p.inputs // unroll), [k.vf(0.0)] * (len(vectors) * p.rows), body)


def _store(k: Kit, epilogue: Epilogue, results: list[Value], outs: list[Value], offset: int) -> None:
    for v, out in zip(results, outs, strict=True):
        k.store(k.b.fadd(v, k.load(out, k.f, offset)) if epilogue == "add" else v, out, offset)


def _store_silu(k: Kit, gates: list[Value], ups: list[Value], outs: list[Value], offset: int) -> None:
    b = k.b
    for g, u, out in zip(gates, ups, outs, strict=True):
        # the argument of exp2 is bounded above too: 2**126 is finite, and silu(-88) is 0 to float32 anyway
        e = k.exp2(k.minimum(b.fmul(g, k.vf(-LOG2E)), k.vf(126.0)))
        k.store(b.fdiv(b.fmul(g, u), b.fadd(e, k.vf(1.0))), out, offset)


def tile_rows(isa: Isa, planes: int) -> tuple[int, ...]:
    """Row counts for which kernels exist, descending; every number of rows is a sum of them.

    AVX-512: the largest that does not spill. 16 registers: the fastest measured, interleaved (docs/kernels.md).
    """
    if isa.lanes == 16:
        return (6, 4, 2, 1) if planes == 1 else (4, 2, 1)
    return (4, 2, 1)
