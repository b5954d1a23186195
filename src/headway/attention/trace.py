"""Tracing: a Python function called once with stand-ins that record arithmetic as a graph. And the functions such code may call."""

import inspect
import math
import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

from headway.attention.graph import COMPARISONS, Builder, Graph, VariantError


def _where() -> str:
    """The user's line that is being traced."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def refuse(what: str) -> VariantError:
    return VariantError(f"{what} ({_where()})")


class Expr:
    """A value being traced. Arithmetic builds nodes; anything that needs the number now is refused."""

    __slots__ = ("builder", "node")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, builder: Builder, node: int) -> None:
        self.builder = builder
        self.node = node

    @property
    def dtype(self) -> str:
        return self.builder.nodes[self.node].dtype

    def __add__(self, o: Any) -> "Expr":
        return _binary("add", self, o)

    def __radd__(self, o: Any) -> "Expr":
        return _binary("add", o, self)

    def __sub__(self, o: Any) -> "Expr":
        return _binary("sub", self, o)

    def __rsub__(self, o: Any) -> "Expr":
        return _binary("sub", o, self)

    def __mul__(self, o: Any) -> "Expr":
        return _binary("mul", self, o)

    def __rmul__(self, o: Any) -> "Expr":
        return _binary("mul", o, self)

    def __truediv__(self, o: Any) -> "Expr":
        return _binary("div", self, o)

    def __rtruediv__(self, o: Any) -> "Expr":
        return _binary("div", o, self)

    def __floordiv__(self, o: Any) -> "Expr":
        return _binary("floordiv", self, o)

    def __rfloordiv__(self, o: Any) -> "Expr":
        return _binary("floordiv", o, self)

    def __mod__(self, o: Any) -> "Expr":
        return _binary("mod", self, o)

    def __rmod__(self, o: Any) -> "Expr":
        return _binary("mod", o, self)

    def __rshift__(self, o: Any) -> "Expr":
        return _binary("shr", self, o)

    def __and__(self, o: Any) -> "Expr":
        return _binary("and", self, o)

    __rand__ = __and__

    def __or__(self, o: Any) -> "Expr":
        return _binary("or", self, o)

    __ror__ = __or__

    def __lt__(self, o: Any) -> "Expr":
        return _binary("lt", self, o)

    def __le__(self, o: Any) -> "Expr":
        return _binary("le", self, o)

    def __gt__(self, o: Any) -> "Expr":
        return _binary("gt", self, o)

    def __ge__(self, o: Any) -> "Expr":
        return _binary("ge", self, o)

    def __eq__(self, o: object) -> "Expr":  # type: ignore[override]
        return _binary("eq", self, o)

    def __ne__(self, o: object) -> "Expr":  # type: ignore[override]
        return _binary("ne", self, o)

    def __neg__(self) -> "Expr":
        return _binary("sub", 0, self)

    def __abs__(self) -> "Expr":
        return Expr(self.builder, self.builder.intern("abs", (_typed(self, "f32" if self.dtype == "f32" else "i32"),), self.dtype))

    def __invert__(self) -> "Expr":
        return Expr(self.builder, self.builder.intern("not", (_typed(self, "bool"),), "bool"))

    def __bool__(self) -> bool:
        raise refuse("data-dependent Python branch: use where(c, a, b), & and |")

    def __getitem__(self, index: Any) -> Any:
        raise refuse("only captured buffers can be indexed, and a captured name is either a buffer or a number everywhere")

    def _no_number(self) -> Any:
        raise refuse(f"{self.builder.nodes[self.node].op} node used as a Python number: use the functions of headway.attention, not math")

    __float__ = __int__ = __index__ = __iter__ = __len__ = _no_number

    def __array_ufunc__(self, ufunc: Any, *_: Any, **__: Any) -> Any:
        raise refuse(f"numpy.{ufunc.__name__} cannot be traced: use the function of headway.attention of that name")

    def __getattr__(self, name: str) -> Any:
        raise refuse(f"a traced value has no attribute {name!r}: use arithmetic, comparisons, & | ~, where, minimum, maximum, exp, ...")


class Captured(Expr):
    """A captured name before its first use decides whether it is a scalar (arithmetic) or a buffer (`name[i]`, `name[i, j]`)."""

    __slots__ = ("buffer_dtype", "name")

    def __init__(self, builder: Builder, name: str, dtype: str) -> None:
        self.builder = builder
        self.name = name
        self.buffer_dtype = dtype

    @property
    def node(self) -> int:  # type: ignore[override]
        dtype = "i32" if self.buffer_dtype == "u8" else self.buffer_dtype
        self.builder.capture(self.name, self.buffer_dtype, 0)
        return self.builder.intern("scalar", (), dtype, self.name)

    def __getitem__(self, index: Any) -> Expr:
        indices = index if isinstance(index, tuple) else (index,)
        if len(indices) > 2:
            raise refuse(f"{self.name!r} is indexed with {len(indices)} indices; captured buffers have one or two axes")
        self.builder.capture(self.name, self.buffer_dtype, len(indices))
        args = tuple(_typed(_lift(self.builder, i), "i32") for i in indices)
        return Expr(self.builder, self.builder.intern("load", args, "i32" if self.buffer_dtype == "u8" else self.buffer_dtype, self.name))


def _lift(builder: Builder, value: Any) -> Expr:
    if isinstance(value, Expr):
        return value
    if isinstance(value, bool):
        return Expr(builder, builder.const(value, "bool"))
    try:
        if not isinstance(value, float):
            return Expr(builder, builder.const(operator.index(value), "i32"))
        return Expr(builder, builder.const(float(value), "f32"))
    except TypeError:
        raise refuse(f"{value!r} of type {type(value).__name__} in a traced expression: pass arrays through `captured`") from None


def _typed(x: Expr, dtype: str) -> int:
    """The node of x as dtype. Only i32 -> f32 happens by itself."""
    node = x.node
    have = x.builder.nodes[node].dtype
    if have == dtype:
        return node
    if have == "i32" and dtype == "f32":
        return x.builder.intern("cast", (node,), "f32")
    raise refuse(f"a {have} value where {dtype} is needed: compare it, or cast with f32(x) / i32(x)")


def _binary(op: str, x: Any, y: Any) -> Expr:
    builder = x.builder if isinstance(x, Expr) else y.builder
    x, y = _lift(builder, x), _lift(builder, y)
    types = {x.dtype, y.dtype}
    if op in ("and", "or") and types == {"bool"}:
        dtype = "bool"
    elif op == "shr" or (op in ("and", "or") and types == {"i32"}):
        dtype = "i32"
    elif "bool" in types and not (op in ("eq", "ne") and types == {"bool"}):
        raise refuse(f"{op} of {x.dtype} and {y.dtype}: use where(c, a, b)")
    else:
        dtype = "f32" if "f32" in types or op == "div" else types.pop()
    result = "bool" if op in COMPARISONS else dtype
    return Expr(builder, builder.intern(op, (_typed(x, dtype), _typed(y, dtype)), result))


def _call(op: str, *values: Any) -> Any:
    builders = [v.builder for v in values if isinstance(v, Expr)]
    if not builders:
        return getattr(math, op)(*values)
    b = builders[0]
    return Expr(b, b.intern(op, tuple(_typed(_lift(b, v), "f32") for v in values), "f32"))


def where(condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, else y; both are evaluated."""
    builders = [v.builder for v in (condition, x, y) if isinstance(v, Expr)]
    if not builders:
        return x if condition else y
    b = builders[0]
    c, x, y = (_lift(b, v) for v in (condition, x, y))
    dtype = x.dtype if x.dtype == y.dtype else "f32"
    return Expr(b, b.intern("where", (_typed(c, "bool"), _typed(x, dtype), _typed(y, dtype)), dtype))


def minimum(x: Any, y: Any) -> Any:
    return _binary("min", x, y) if isinstance(x, Expr) or isinstance(y, Expr) else min(x, y)


def maximum(x: Any, y: Any) -> Any:
    return _binary("max", x, y) if isinstance(x, Expr) or isinstance(y, Expr) else max(x, y)


def exp(x: Any) -> Any:
    return _call("exp", x)


def exp2(x: Any) -> Any:
    return _call("exp2", x)


def log(x: Any) -> Any:
    """Natural logarithm."""
    return _call("log", x)


def tanh(x: Any) -> Any:
    return _call("tanh", x)


def sqrt(x: Any) -> Any:
    return _call("sqrt", x)


def sigmoid(x: Any) -> Any:
    return _call("sigmoid", x) if isinstance(x, Expr) else 1 / (1 + math.exp(-x))


def f32(x: Any) -> Any:
    """i32 or bool as f32."""
    return _cast(x, "f32")


def i32(x: Any) -> Any:
    """f32 towards zero, bool as 0 or 1."""
    return _cast(x, "i32")


def _cast(x: Any, dtype: str) -> Any:
    if not isinstance(x, Expr):
        return float(x) if dtype == "f32" else int(x)
    return x if x.dtype == dtype else Expr(x.builder, x.builder.intern("cast", (x.node,), dtype))


def trace(function: Callable[..., Any], inputs: Mapping[str, str], result: str, dtypes: Mapping[str, str] | None = None) -> Graph:
    """The graph of `function`, called once with the inputs its signature names; every other parameter is captured.

    `inputs`: {name: dtype} the hook offers. `dtypes`: dtype of captured names (f32 unless named; also as annotation). Raises VariantError.
    """
    builder = Builder()
    arguments: dict[str, Expr] = {}
    positional: list[Expr] = []
    for p in inspect.signature(function).parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise VariantError(f"{function.__name__} takes *{p.name}: name every input and captured value in the signature")
        if p.name in inputs:
            value = Expr(builder, builder.intern("input", (), inputs[p.name], p.name))
        else:
            dtype = (dtypes or {}).get(p.name) or (p.annotation if p.annotation in ("f32", "i32", "u8", "bool") else "f32")
            value = Captured(builder, p.name, dtype)
        if p.kind is p.KEYWORD_ONLY:
            arguments[p.name] = value
        else:
            positional.append(value)
    out = _lift(builder, function(*positional, **arguments))
    if out.dtype != result and not (out.dtype == "i32" and result == "f32"):
        raise VariantError(f"{function.__name__} returns {out.dtype}, its hook needs {result}")
    return builder.graph(_typed(out, result))
