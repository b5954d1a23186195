"""A graph printed as vector code through `kernels.cpu.emit.Kit`: what gives the item kernel its hooks without any compiler but LLVM.

A value is an LLVM scalar while it is the same for all lanes and a vector from where lanes differ, so LLVM keeps loop-invariant parts out of
the loop. Captured values arrive in a table: 32 bytes each in the order of `Variant.captured`: a scalar's bits or a buffer's address, then
the buffer's sizes as int64 (`ENTRY_BYTES`).
"""

from collections.abc import Callable, Mapping, Sequence

from llvmlite import ir

from headway.attention.graph import Graph, Node, VariantError
from headway.kernels.cpu.emit import F32, I8, I32, I64, LOG2E, Kit, Value, vector

ENTRY_BYTES = 32
Captures = Sequence[tuple[str, str, int]]
Hook = Callable[[Kit, Mapping[str, Value], Value], Value]
"""(kit, {input name: scalar i32/f32 or vector value}, address of the captured table) -> result, a vector unless every input is a scalar."""

_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


def hook(graph: Graph, captured: Captures) -> Hook:
    """The graph as code. `captured`: the whole variant's, which fixes the table's order."""
    index = {name: i for i, (name, _, _) in enumerate(captured)}
    dtypes = {name: dtype for name, dtype, _ in captured}

    def emit(k: Kit, inputs: Mapping[str, Value], table: Value) -> Value:
        printer = _Printer(k, inputs, table, index, dtypes)
        values: list[Value] = []
        for node in graph.nodes:
            values.append(printer.node(node, [values[a] for a in node.args], graph.nodes[node.args[0]].dtype if node.args else ""))
        return values[-1]

    return emit


def hooks(graphs: Mapping[str, Graph], captured: Captures) -> dict[str, Hook]:
    """All hooks of a variant: `hooks(variant.hooks, variant.captured)`."""
    return {name: hook(graph, captured) for name, graph in graphs.items()}


class _Printer:
    def __init__(self, k: Kit, inputs: Mapping[str, Value], table: Value, index: Mapping[str, int], dtypes: Mapping[str, str]) -> None:
        self.k, self.inputs, self.table, self.index, self.dtypes = k, inputs, table, index, dtypes

    def vector(self, x: Value) -> Value:
        return x if isinstance(x.type, ir.VectorType) else self.k.splat(x)

    def alike(self, args: Sequence[Value]) -> tuple[list[Value], bool]:
        """All scalars, or all vectors."""
        wide = any(isinstance(x.type, ir.VectorType) for x in args)
        return [self.vector(x) for x in args] if wide else list(args), wide

    def number(self, like: Value, value: float) -> Value:
        if isinstance(like.type, ir.VectorType):
            return ir.Constant(like.type, [value] * like.type.count)
        return ir.Constant(like.type, value)

    def node(self, n: Node, args: list[Value], argument_dtype: str) -> Value:
        name = str(n.value)
        if n.op == "input":
            if name not in self.inputs:
                raise VariantError(f"this kernel does not offer the input {name!r} to the hook that reads it")
            return self.inputs[name]
        if n.op == "const":
            return ir.Constant({"f32": F32, "i32": I32, "bool": ir.IntType(1)}[n.dtype], n.value)
        if n.op == "scalar":
            value = self.k.load(self.table, F32 if n.dtype == "f32" else I32, ENTRY_BYTES * self.index[name])
            return self.k.b.trunc(value, ir.IntType(1)) if n.dtype == "bool" else value
        if n.op == "load":
            return self.load(name, args, n.dtype)
        if n.op in ("exp", "exp2", "log", "tanh", "sigmoid", "sqrt"):
            return getattr(self, n.op)(self.vector(args[0]))
        args, wide = self.alike(args)
        return self.operation(n, args, argument_dtype, wide)

    def operation(self, n: Node, args: list[Value], argument_dtype: str, wide: bool) -> Value:
        b, floating = self.k.b, argument_dtype == "f32"
        match n.op:
            case "add" | "sub" | "mul":
                return getattr(b, ("f" if floating else "") + n.op)(*args)
            case "div":
                return b.fdiv(*args)
            case "floordiv" | "mod":
                return self.divide(n.op, args, floating)
            case "and" | "or":
                return getattr(b, n.op + "_")(*args)
            case "not":
                return b.not_(args[0])
            case "shr":
                return b.ashr(args[0], b.and_(args[1], self.number(args[1], 31)))
            case "where":
                return b.select(*args)
            case "min" | "max":
                sign = "<" if n.op == "min" else ">"
                c = b.fcmp_ordered(sign, *args) if floating else b.icmp_signed(sign, *args)
                return b.select(c, *args)
            case "abs":
                negative = b.fneg(args[0]) if floating else b.neg(args[0])
                zero = self.number(args[0], 0)
                return b.select(b.fcmp_ordered("<", args[0], zero) if floating else b.icmp_signed("<", args[0], zero), negative, args[0])
            case "cast":
                return self.cast(args[0], argument_dtype, n.dtype, wide)
            case _:
                sign = _COMPARE[n.op]
                if not floating:
                    return b.icmp_signed(sign, *args)
                return b.fcmp_unordered(sign, *args) if sign == "!=" else b.fcmp_ordered(sign, *args)

    def cast(self, x: Value, source: str, target: str, wide: bool) -> Value:
        b, k = self.k.b, self.k
        to = (k.f if target == "f32" else k.i) if wide else (F32 if target == "f32" else I32)
        if source == "i32":
            return b.sitofp(x, to)
        if source == "bool":
            return b.uitofp(x, to) if target == "f32" else b.zext(x, to)
        # beyond int32 the instruction's result is undefined: stop short of it
        low, high = self.number(x, -2147483648.0), self.number(x, 2147483520.0)
        x = b.select(b.fcmp_ordered(">", x, low), x, low)
        return b.fptosi(b.select(b.fcmp_ordered("<", x, high), x, high), to)

    def divide(self, op: str, args: list[Value], floating: bool) -> Value:
        """Floor division and its remainder, Python's signs. An int32 divisor of 0 counts as 1: a trap would end the process."""
        b = self.k.b
        x, y = args
        if floating:
            quotient = self.k.unary("floor", self.vector(b.fdiv(x, y)))
            return quotient if op == "floordiv" else b.fsub(self.vector(x), b.fmul(self.vector(y), quotient))
        zero, one = self.number(y, 0), self.number(y, 1)
        # -1 is left to a negation: INT_MIN / -1 traps too
        by_minus_one = b.icmp_signed("==", y, self.number(y, -1))
        safe = b.select(b.or_(b.icmp_signed("==", y, zero), by_minus_one), one, y)
        quotient, rest = b.sdiv(x, safe), b.srem(x, safe)
        differs = b.and_(b.icmp_signed("!=", rest, zero), b.icmp_signed("<", b.xor(rest, safe), zero))
        if op == "floordiv":
            return b.select(by_minus_one, b.neg(x), b.select(differs, b.sub(quotient, one), quotient))
        return b.select(differs, b.add(rest, safe), rest)

    def load(self, name: str, indices: list[Value], dtype: str) -> Value:
        """Element of a captured buffer, each index clamped to the buffer: a lane beyond the keys may compute any index."""
        k, b = self.k, self.k.b
        entry = ENTRY_BYTES * self.index[name]
        base = k.load(self.table, I64, entry, 8)
        flat: Value = None
        for axis, i in enumerate(indices):
            size = b.trunc(k.load(self.table, I64, entry + 8 + 8 * axis, 8), I32)
            (i, last), _ = self.alike([i, b.sub(size, I32(1))])
            zero = self.number(i, 0)
            i = b.select(b.icmp_signed("<", i, zero), zero, i)
            i = b.select(b.icmp_signed("<", i, last), i, last)
            if flat is None:
                flat = i
            else:
                (flat, i, size), _ = self.alike([flat, i, size])
                flat = b.add(b.mul(flat, size), i)
        narrow = self.dtypes[name] in ("u8", "bool")
        width, element = (1, I8) if narrow else (4, F32 if dtype == "f32" else I32)

        def one(i: Value) -> Value:
            value = k.load(k.index(base, b.sext(i, I64), width), element, 0, width)
            return b.zext(value, I32) if narrow else value

        if not isinstance(flat.type, ir.VectorType):
            value = one(flat)
        else:
            value = ir.Constant(vector(F32 if dtype == "f32" else I32, k.lanes), ir.Undefined)
            for lane in range(k.lanes):
                value = b.insert_element(value, one(b.extract_element(flat, I32(lane))), I32(lane))
        return b.icmp_signed("!=", value, self.number(value, 0)) if dtype == "bool" else value

    # ---- functions of float vectors
    def exp2(self, x: Value) -> Value:
        k = self.k
        y = k.exp2(k.minimum(x, k.vf(127.0)))
        y = k.b.select(k.b.fcmp_ordered("<", x, k.vf(-126.0)), k.vf(0.0), y)
        return k.b.select(k.b.fcmp_ordered(">=", x, k.vf(128.0)), k.vf(float("inf")), y)

    def exp(self, x: Value) -> Value:
        return self.exp2(self.k.b.fmul(x, self.k.vf(LOG2E)))

    def tanh(self, x: Value) -> Value:
        """1 - 2/(exp(2x) + 1), and x itself near 0 where that cancels."""
        k, b = self.k, self.k.b
        e = self.exp2(b.fmul(x, k.vf(2 * LOG2E)))
        far = b.fsub(k.vf(1.0), b.fdiv(k.vf(2.0), b.fadd(e, k.vf(1.0))))
        square = b.fmul(x, x)
        p = k.fma(square, k.vf(-17.0 / 315.0), k.vf(2.0 / 15.0))
        near = k.fma(b.fmul(x, square), k.fma(square, p, k.vf(-1.0 / 3.0)), x)
        return b.select(b.fcmp_ordered("<", square, k.vf(0.02)), near, far)

    def sigmoid(self, x: Value) -> Value:
        k, b = self.k, self.k.b
        return b.fdiv(k.vf(1.0), b.fadd(k.vf(1.0), self.exp2(b.fmul(x, k.vf(-LOG2E)))))

    def sqrt(self, x: Value) -> Value:
        return self.k.unary("sqrt", x)

    def log(self, x: Value) -> Value:
        """x = m * 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh((m-1)/(m+1)), series to s^9 (error 4e-9). Zero -inf, negative NaN."""
        k, b = self.k, self.k.b
        tiny = b.fcmp_ordered("<", x, k.vf(1.1754944e-38))
        bits = b.bitcast(b.select(tiny, b.fmul(x, k.vf(2.0**24)), x), k.i)
        shifted = b.sub(bits, k.vi(0x3F3504F3))
        e = b.ashr(shifted, k.vi(23))
        m = b.bitcast(b.sub(bits, b.shl(e, k.vi(23))), k.f)
        power = b.fsub(b.sitofp(e, k.f), b.select(tiny, k.vf(24.0), k.vf(0.0)))
        s = b.fdiv(b.fsub(m, k.vf(1.0)), b.fadd(m, k.vf(1.0)))
        square = b.fmul(s, s)
        p = k.vf(1.0 / 9.0)
        for c in (1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0):
            p = k.fma(p, square, k.vf(c))
        y = k.fma(power, k.vf(0.6931471805599453), b.fmul(b.fmul(s, p), k.vf(2.0)))
        y = b.select(b.fcmp_unordered("uno", x, x), x, b.select(b.fcmp_ordered("==", x, k.vf(float("inf"))), x, y))
        y = b.select(b.fcmp_ordered("==", x, k.vf(0.0)), k.vf(float("-inf")), y)
        return b.select(b.fcmp_ordered("<", x, k.vf(0.0)), k.vf(float("nan")), y)
