"""Vector toolkit over llvmlite.ir: what every emitter is written in.

An emitter is a function `emit(k, *addresses)`; `k` is a `Kit` around the IR builder, the arguments are int64 byte addresses and counts.
Every load and store states its own alignment, because the default (the vector's size) faults on unaligned rows. No fast-math anywhere:
products are explicit fma calls, so that a value never depends on how LLVM grouped a sum.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from headway.kernels.cpu.isa import Isa

I1, I8, I16, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32, F64, VOID = ir.HalfType(), ir.FloatType(), ir.DoubleType(), ir.VoidType()
Value = Any  # llvmlite has no types of its own to annotate with

# 2**f on [-0.5, 0.5], Horner, highest power first; max relative error 1.9e-7 in float32 (fitted by us)
EXP2_COEFFICIENTS = (1.326472663e-3, 9.671512959e-3, 5.550733748e-2, 2.402224208e-1, 6.931469776e-1, 1.0)
LOG2E = 1.4426950408889634


def vector(element: Any, count: int) -> Any:
    return ir.VectorType(element, count)


class Kit:
    """Short names for the IR of one vector width. `f`, `i`: vectors of float32 and int32 with `lanes` elements."""

    def __init__(self, builder: Any, isa: Isa) -> None:
        self.b = builder
        self.isa = isa
        self.lanes = isa.lanes
        self.f = vector(F32, isa.lanes)
        self.i = vector(I32, isa.lanes)
        self.bytes = vector(I8, 4 * isa.lanes)
        self.words = vector(I16, 2 * isa.lanes)

    # ---- constants and addresses
    def i64(self, value: int) -> Value:
        return ir.Constant(I64, value)

    def vf(self, value: float) -> Value:
        return ir.Constant(self.f, [value] * self.lanes)

    def vi(self, value: int) -> Value:
        return ir.Constant(self.i, [value] * self.lanes)

    def at(self, address: Value, offset: int) -> Value:
        return self.b.add(address, self.i64(offset)) if offset else address

    def index(self, address: Value, i: Value, stride: int) -> Value:
        return self.b.add(address, self.b.mul(i, self.i64(stride)))

    def load(self, address: Value, type_: Any, offset: int = 0, align: int = 4) -> Value:
        x = self.b.load(self.b.inttoptr(self.at(address, offset), type_.as_pointer()), typ=type_)
        x.align = align
        return x

    def store(self, value: Value, address: Value, offset: int = 0, align: int = 4) -> None:
        self.b.store(value, self.b.inttoptr(self.at(address, offset), value.type.as_pointer())).align = align

    def prefetch(self, address: Value, offset: int = 0) -> None:
        pointer = I8.as_pointer()
        f = self.function("llvm.prefetch.p0", VOID, [pointer, I32, I32, I32])
        self.b.call(f, [self.b.inttoptr(self.at(address, offset), pointer), I32(0), I32(3), I32(1)])

    def function(self, name: str, result: Any, arguments: Sequence[Any]) -> Value:
        return self.b.module.globals.get(name) or ir.Function(self.b.module, ir.FunctionType(result, arguments), name)

    # ---- vectors
    def splat(self, scalar: Value, count: int = 0) -> Value:
        n = count or self.lanes
        v = self.b.insert_element(ir.Constant(vector(scalar.type, n), ir.Undefined), scalar, I32(0))
        return self.b.shuffle_vector(v, v, ir.Constant(vector(I32, n), [0] * n))

    def splat_f32(self, address: Value, offset: int = 0) -> Value:
        return self.splat(self.load(address, F32, offset))

    def splat_i32(self, address: Value, offset: int = 0) -> Value:
        return self.splat(self.load(address, I32, offset))

    def shuffle(self, v: Value, lanes: Sequence[int]) -> Value:
        return self.b.shuffle_vector(v, v, ir.Constant(vector(I32, len(lanes)), list(lanes)))

    def shuffle2(self, x: Value, y: Value, lanes: Sequence[int]) -> Value:
        """Lanes of x (from 0) and y (from its length) in the given order."""
        return self.b.shuffle_vector(x, y, ir.Constant(vector(I32, len(lanes)), list(lanes)))

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        return self.b.call(self.function(f"llvm.fma.v{self.lanes}f32", self.f, [self.f] * 3), [x, y, z])

    def unary(self, name: str, x: Value) -> Value:
        return self.b.call(self.function(f"llvm.{name}.v{self.lanes}f32", self.f, [self.f]), [x])

    def maximum(self, x: Value, y: Value) -> Value:
        return self.b.select(self.b.fcmp_ordered(">", x, y), x, y)

    def minimum(self, x: Value, y: Value) -> Value:
        return self.b.select(self.b.fcmp_ordered("<", x, y), x, y)

    def reduce(self, v: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """All lanes to one scalar by halving: lane i with lane i + n/2. The order is fixed."""
        n = self.lanes
        step = n // 2
        while step:
            v = combine(v, self.shuffle(v, [(i + step) % n for i in range(n)]))
            step //= 2
        return self.b.extract_element(v, I32(0))

    def all_max(self, v: Value) -> Value:
        """The largest lane in every lane."""
        n = self.lanes
        step = n // 2
        while step:
            v = self.maximum(v, self.shuffle(v, [(i + step) % n for i in range(n)]))
            step //= 2
        return v

    def lane_numbers(self, first: Value) -> Value:
        """first, first + 1, ... as int32 lanes."""
        return self.b.add(self.splat(first), ir.Constant(self.i, list(range(self.lanes))))

    def sum_f32(self, v: Value) -> Value:
        return self.reduce(v, self.b.fadd)

    def max_f32(self, v: Value) -> Value:
        return self.reduce(v, self.maximum)

    def sum_i32(self, v: Value) -> Value:
        return self.reduce(v, self.b.add)

    def exp2(self, x: Value) -> Value:
        """2**x for x <= 127; below -126 the result is 2**-126, not 0 (callers mask)."""
        x = self.maximum(x, self.vf(-126.0))
        n = self.unary("rint", x)
        f = self.b.fsub(x, n)
        p = self.vf(EXP2_COEFFICIENTS[0])
        for c in EXP2_COEFFICIENTS[1:]:
            p = self.fma(p, f, self.vf(c))
        exponent = self.b.shl(self.b.fptosi(n, self.i), self.vi(23))
        return self.b.bitcast(self.b.add(self.b.bitcast(p, self.i), exponent), self.f)

    def log2(self, x: Value) -> Value:
        """log2 of normal x > 0: x = m*2**e with m in [sqrt(1/2), sqrt(2)), ln m = 2*atanh((m-1)/(m+1)) to the 9th power (error 4e-9)."""
        b = self.b
        shifted = b.sub(b.bitcast(x, self.i), self.vi(0x3F3504F3))  # bits of sqrt(1/2)
        e = b.ashr(shifted, self.vi(23))
        m = b.bitcast(b.sub(b.bitcast(x, self.i), b.shl(e, self.vi(23))), self.f)
        s = b.fdiv(b.fsub(m, self.vf(1.0)), b.fadd(m, self.vf(1.0)))
        square = b.fmul(s, s)
        p = self.vf(1.0 / 9.0)
        for c in (1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0):
            p = self.fma(p, square, self.vf(c))
        return self.fma(b.fmul(s, p), self.vf(2 * LOG2E), b.sitofp(e, self.f))

    # ---- 16-bit floats
    def load_f16(self, address: Value, offset: int = 0) -> Value:
        return self.b.fpext(self.load(address, vector(F16, self.lanes), offset, 2), self.f)

    def load_bf16(self, address: Value, offset: int = 0) -> Value:
        h = self.b.zext(self.load(address, vector(I16, self.lanes), offset, 2), self.i)
        return self.b.bitcast(self.b.shl(h, self.vi(16)), self.f)

    def load_float(self, kind: str, address: Value, offset: int = 0) -> Value:
        """`lanes` floats of storage type f32 | f16 | bf16 as float32."""
        if kind == "f32":
            return self.load(address, self.f, offset)
        return self.load_f16(address, offset) if kind == "f16" else self.load_bf16(address, offset)

    def to_16bit(self, kind: str, x: Value) -> Value:
        """float32 lanes to i16 bits of f16 | bf16, round to nearest even."""
        half = vector(I16, self.lanes)
        if kind == "f16":
            return self.b.bitcast(self.b.fptrunc(x, vector(F16, self.lanes)), half)
        bits = self.b.bitcast(x, self.i)
        odd = self.b.and_(self.b.lshr(bits, self.vi(16)), self.vi(1))
        rounded = self.b.lshr(self.b.add(self.b.add(bits, self.vi(0x7FFF)), odd), self.vi(16))
        nan = self.b.fcmp_unordered("uno", x, x)
        return self.b.trunc(self.b.select(nan, self.vi(0x7FC0), rounded), half)

    # ---- int8 dot products: sums of 4 u8*s8 a lane
    def dot_start(self) -> Value:
        return None if self.isa.dot == "maddubs" else self.vi(0)

    def dot_step(self, total: Value, unsigned: Value, signed: Value) -> Value:
        """Add a group of four products a lane. With maddubs totals are 16-bit pairs: exact for at most 8 groups of 4-bit weights."""
        if self.isa.dot == "vnni":
            name = "llvm.x86.avx512.vpdpbusd." + str(32 * self.lanes)
            return self.b.call(self.function(name, self.i, [self.i, self.bytes, self.bytes]), [total, unsigned, signed])
        if self.isa.dot == "maddubs":
            f = self.function("llvm.x86.avx2.pmadd.ub.sw", self.words, [self.bytes, self.bytes])
            pairs = self.b.call(f, [unsigned, signed])
            return pairs if total is None else self.b.add(total, pairs)
        wide = vector(I32, 4 * self.lanes)
        products = self.b.mul(self.b.zext(unsigned, wide), self.b.sext(signed, wide))
        for t in range(4):
            total = self.b.add(total, self.shuffle(products, range(t, 4 * self.lanes, 4)))
        return total

    def dot_end(self, total: Value) -> Value:
        if self.isa.dot != "maddubs":
            return total
        f = self.function("llvm.x86.avx2.pmadd.wd", self.i, [self.words, self.words])
        return self.b.call(f, [total, ir.Constant(self.words, [1] * 2 * self.lanes)])

    def multiply_pairs(self, x: Value, y: Value) -> Value:
        """int16 pairs: x[2i]*y[2i] + x[2i+1]*y[2i+1] as int32, one lane each (AVX2)."""
        return self.b.call(self.function("llvm.x86.avx2.pmadd.wd", self.i, [self.words, self.words]), [x, y])

    def every_other(self, x: Value, y: Value, first: int) -> Value:
        """Lanes first, first+2, ... of x followed by those of y."""
        return self.b.shuffle_vector(x, y, ir.Constant(vector(I32, self.lanes), list(range(first, 2 * self.lanes, 2))))

    # ---- order
    def fence(self, values: Sequence[Value]) -> list[Value]:
        """The same values, behind a point that no load crosses and no sum is regrouped over: an empty statement of assembly.

        LLVM's scheduler otherwise gathers the loads of a whole block and spills what it loaded.
        """
        if self.isa.dot == "portable":  # vectors of two registers
            return list(values)
        n, register = len(values), "v" if self.lanes == 16 else "x"
        types = [v.type for v in values]
        result = types[0] if n == 1 else ir.LiteralStructType(types)
        constraint = ",".join([f"={register}"] * n + [str(i) for i in range(n)] + ["~{memory}"])
        out = self.b.asm(ir.FunctionType(result, types), "", constraint, list(values), True)
        return [out] if n == 1 else [self.b.extract_value(out, i) for i in range(n)]

    # ---- control flow
    def loop(self, count: Value, initial: Sequence[Value], body: Callable[[Value, list[Value]], Sequence[Value]]) -> list[Value]:
        """do { values = body(i, values) } while (++i < count), count >= 1; returns the last values."""
        b = self.b
        before, head = b.block, b.append_basic_block("loop")
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(I64)
        i.add_incoming(self.i64(0), before)
        phis = []
        for v in initial:
            phi = b.phi(v.type)
            phi.add_incoming(v, before)
            phis.append(phi)
        out = list(body(i, phis))
        following = b.add(i, self.i64(1))
        i.add_incoming(following, b.block)
        for phi, v in zip(phis, out, strict=True):
            phi.add_incoming(v, b.block)
        end = b.append_basic_block("end")
        b.cbranch(b.icmp_signed("<", following, count), head, end)
        b.position_at_end(end)
        return out

    def do_while(self, initial: Sequence[Value], body: Callable[[list[Value]], tuple[Sequence[Value], Value]]) -> list[Value]:
        """do { values, again = body(values) } while (again); returns the last values."""
        b = self.b
        before, head = b.block, b.append_basic_block("again")
        b.branch(head)
        b.position_at_end(head)
        phis = []
        for v in initial:
            phi = b.phi(v.type)
            phi.add_incoming(v, before)
            phis.append(phi)
        out, again = body(phis)
        out = list(out)
        for phi, v in zip(phis, out, strict=True):
            phi.add_incoming(v, b.block)
        end = b.append_basic_block("end")
        b.cbranch(again, head, end)
        b.position_at_end(end)
        return out

    def when(self, condition: Value, body: Callable[[], None]) -> None:
        """if (condition) body()"""
        b = self.b
        inside, end = b.append_basic_block("then"), b.append_basic_block("endif")
        b.cbranch(condition, inside, end)
        b.position_at_end(inside)
        body()
        b.branch(end)
        b.position_at_end(end)

    def call(self, function: Value, arguments: Sequence[Value]) -> None:
        """Call the kernel at address `function` with int64 arguments."""
        kind = ir.FunctionType(VOID, [I64] * len(arguments))
        self.b.call(self.b.inttoptr(function, kind.as_pointer()), list(arguments))
