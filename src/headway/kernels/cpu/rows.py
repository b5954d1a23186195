"""Row microkernels: normalise and quantise activations, rotate queries, append keys and values to a page.

Each works on one row with its length as a constant; a row's result depends on nothing but that row.
"""

from dataclasses import dataclass
from typing import Literal

from llvmlite import ir

from headway.kernels.cpu.emit import F32, I8, I16, I32, Kit, Value, vector
from headway.kernels.cpu.layout import PAGE_TOKENS
from headway.kernels.cpu.products import BLOCK, is_wide, record_bytes

KV_BYTES = 2  # f16 and bf16 alike


def page_bytes(head_dim: int) -> int:
    """One (page, kv head): keys [head_dim][16], then values [16][head_dim], 16 bit each."""
    return 2 * PAGE_TOKENS * head_dim * KV_BYTES


def _scale(k: Kit, x: Value, length: int, eps: float) -> Value:
    """1/sqrt(mean(x^2) + eps) in every lane; four running sums so that the latency of fma does not bound it."""
    n = 4 if length % (4 * k.lanes) == 0 else 1

    def body(i: Value, sums: list[Value]) -> list[Value]:
        at = k.index(x, i, 4 * n * k.lanes)
        out = []
        for j, s in enumerate(sums):
            v = k.load(at, k.f, 4 * k.lanes * j)
            out.append(k.fma(v, v, s))
        return out

    sums = k.loop(k.i64(length // (n * k.lanes)), [k.vf(0.0)] * n, body)
    while len(sums) > 1:
        sums = [k.b.fadd(a, b) for a, b in zip(sums[::2], sums[1::2], strict=True)]
    mean = k.b.fadd(k.b.fdiv(k.sum_f32(sums[0]), ir.Constant(F32, float(length))), ir.Constant(F32, eps))
    root = k.b.call(k.function("llvm.sqrt.f32", F32, [F32]), [mean])
    return k.splat(k.b.fdiv(ir.Constant(F32, 1.0), root))


@dataclass(frozen=True, slots=True)
class PrepareRow:
    """float32[length] -> one activation row of a product. Call: (x, norm weights or 0, out).

    `norm`: RMS-normalise first. `planes` 1 or 2: int8 records (products.py); 0: float32.
    Quantising: d = max|x|/127 per block, a = rint(x/d), b = min(rint((x/d - a)*256), 127); d = 0 gives zeros.
    """

    length: int
    norm: bool
    eps: float
    planes: int

    arguments = 3

    @property
    def symbol(self) -> str:
        return f"hw_prepare_{self.length}_{int(self.norm)}_{self.eps:g}_{self.planes}".replace("-", "m").replace(".", "p")

    def emit(self, k: Kit, x: Value, weights: Value, out: Value) -> None:
        scale = _scale(k, x, self.length, self.eps) if self.norm else None
        step = BLOCK if self.planes else k.lanes

        def body(i: Value, _: list[Value]) -> list[Value]:
            at = k.index(x, i, 4 * step)
            wat = k.index(weights, i, 4 * step)
            values = []
            for j in range(step // k.lanes):
                v = k.load(at, k.f, 4 * k.lanes * j)
                if scale is not None:
                    v = k.b.fmul(k.b.fmul(v, scale), k.load(wat, k.f, 4 * k.lanes * j))
                values.append(v)
            if self.planes:
                _quantise(k, values, k.index(out, i, record_bytes(self.planes)), self.planes)
            else:
                k.store(values[0], k.index(out, i, 4 * step))
            return []

        k.loop(k.i64(self.length // step), [], body)


def _quantise(k: Kit, values: list[Value], record: Value, planes: int) -> None:
    b = k.b
    wide = is_wide(k.isa, planes)
    order = [4 * (i // 4) + (0, 2, 1, 3)[i % 4] for i in range(k.lanes)]  # products._wide
    top = k.unary("fabs", values[0])
    for v in values[1:]:
        top = k.maximum(top, k.unary("fabs", v))
    peak = k.max_f32(top)
    zero = ir.Constant(F32, 0.0)
    inverse = k.splat(b.select(b.fcmp_ordered(">", peak, zero), b.fdiv(ir.Constant(F32, 127.0), peak), zero))
    d = b.fmul(peak, ir.Constant(F32, 1.0 / 127 / (256 if planes == 2 else 1)))
    total = k.vi(0)
    for j, v in enumerate(values):
        y = b.fmul(v, inverse)
        a = k.unary("rint", y)
        n = b.fptosi(a, k.i)
        if not wide:
            k.store(b.trunc(n, vector(I8, k.lanes)), record, k.lanes * j, 1)
        if planes == 2:
            rest = k.minimum(k.unary("rint", b.fmul(b.fsub(y, a), k.vf(256.0))), k.vf(127.0))
            m = b.fptosi(rest, k.i)
            if not wide:
                k.store(b.trunc(m, vector(I8, k.lanes)), record, BLOCK + k.lanes * j, 1)
            n = b.add(b.shl(n, k.vi(8)), m)
            if wide:
                k.store(k.shuffle(b.trunc(n, vector(I16, k.lanes)), order), record, 2 * k.lanes * j, 2)
        total = b.add(total, n)
    s = k.sum_i32(total)
    k.store(d, record, BLOCK * planes)
    k.store(b.fmul(d, b.sitofp(s, F32)), record, BLOCK * planes + 4)
    k.store(b.mul(s, I32(-128)), record, BLOCK * planes + 8)


Pairs = Literal["adjacent", "half"]


def _rotate(k: Kit, source: Value, angles: Value, head_dim: int, rope_dim: int, pairs: Pairs) -> list[Value]:
    """Vectors of one rotated head. `angles`: rope_dim cosines, then rope_dim signed sines, one an element."""
    out = []
    for j in range(head_dim // k.lanes):
        at = 4 * k.lanes * j
        v = k.load(source, k.f, at)
        first = k.lanes * j
        if first >= rope_dim:
            out.append(v)
            continue
        if pairs == "adjacent":
            partner = k.shuffle(v, [i ^ 1 for i in range(k.lanes)])
        else:
            partner = k.load(source, k.f, at + (2 * rope_dim if first < rope_dim // 2 else -2 * rope_dim))
        turned = k.b.fmul(partner, k.load(angles, k.f, 4 * rope_dim + at))
        out.append(k.fma(v, k.load(angles, k.f, at), turned))
    return out


@dataclass(frozen=True, slots=True)
class RotateQueries:
    """RoPE on `heads` query heads, in place, times `scale`. Call: (queries, angles of the position)."""

    heads: int
    head_dim: int
    rope_dim: int
    pairs: Pairs
    scale: float

    arguments = 2

    @property
    def symbol(self) -> str:
        return (
            f"hw_rotate_{self.heads}_{self.head_dim}_{self.rope_dim}_{self.pairs}_{self.scale.hex()}".replace("-", "m")
            .replace(".", "p")
            .replace("+", "")
        )

    def emit(self, k: Kit, queries: Value, angles: Value) -> None:
        def body(i: Value, _: list[Value]) -> list[Value]:
            at = k.index(queries, i, 4 * self.head_dim)
            for j, v in enumerate(_rotate(k, at, angles, self.head_dim, self.rope_dim, self.pairs)):
                k.store(k.b.fmul(v, k.vf(self.scale)), at, 4 * k.lanes * j)
            return []

        k.loop(k.i64(self.heads), [], body)


@dataclass(frozen=True, slots=True)
class Append:
    """Rotate one key row and store key and value at `slot` of a page. Call: (key, value, angles, page, slot).

    Nothing else of the page is touched: rows of one page may be appended by several threads and in any order.
    """

    head_dim: int
    rope_dim: int
    pairs: Pairs
    kv_dtype: str

    arguments = 5

    @property
    def symbol(self) -> str:
        return f"hw_append_{self.head_dim}_{self.rope_dim}_{self.pairs}_{self.kv_dtype}"

    def emit(self, k: Kit, key: Value, value: Value, angles: Value, page: Value, slot: Value) -> None:
        b = k.b
        row = KV_BYTES * self.head_dim
        values = k.at(page, PAGE_TOKENS * row)
        column = k.index(page, slot, KV_BYTES)
        for j, v in enumerate(_rotate(k, key, angles, self.head_dim, self.rope_dim, self.pairs)):
            bits = k.to_16bit(self.kv_dtype, v)
            for lane in range(k.lanes):
                k.store(b.extract_element(bits, I32(lane)), column, 2 * PAGE_TOKENS * (k.lanes * j + lane), 2)
        at = k.index(values, slot, row)
        for j in range(self.head_dim // k.lanes):
            k.store(k.to_16bit(self.kv_dtype, k.load(value, k.f, 4 * k.lanes * j)), at, KV_BYTES * k.lanes * j, 2)
