"""A graph evaluated with NumPy: float64 for f32, int64 for i32. The oracle's printer, and what folds constants while tracing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headway.attention.graph import Graph

_WIDE = {"f32": np.float64, "i32": np.int64, "bool": np.bool_}


def apply(op: str, args: Sequence[Any], dtype: str, argument_dtype: str) -> Any:
    """One node's value from its arguments' values; NumPy broadcasting."""
    x = [np.asarray(a) for a in args]
    with np.errstate(all="ignore"):
        match op:
            case "add":
                y = x[0] + x[1]
            case "sub":
                y = x[0] - x[1]
            case "mul":
                y = x[0] * x[1]
            case "div":
                y = x[0] / x[1]
            case "floordiv":
                y = np.floor(x[0] / x[1]) if argument_dtype == "f32" else x[0] // np.where(x[1] == 0, 1, x[1])
            case "mod":
                y = x[0] - x[1] * np.floor(x[0] / x[1]) if argument_dtype == "f32" else x[0] % np.where(x[1] == 0, 1, x[1])
            case "shr":
                y = x[0] >> (x[1] & 31)
            case "and":
                y = x[0] & x[1]
            case "or":
                y = x[0] | x[1]
            case "not":
                y = ~x[0]
            case "lt" | "le" | "gt" | "ge" | "eq" | "ne":
                names = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal}
                y = names[op](x[0], x[1])
            case "min":
                y = np.minimum(x[0], x[1])
            case "max":
                y = np.maximum(x[0], x[1])
            case "abs":
                y = np.abs(x[0])
            case "where":
                y = np.where(x[0], x[1], x[2])
            case "sigmoid":
                y = 1 / (1 + np.exp(-x[0]))
            case "cast":
                y = np.trunc(x[0]) if dtype == "i32" else x[0]
            case _:
                y = getattr(np, op)(x[0])  # exp exp2 log tanh sqrt
    return np.asarray(y).astype(_WIDE[dtype])


def evaluate(graph: Graph, inputs: Mapping[str, Any], captured: Mapping[str, Any]) -> Any:
    """The graph's value over broadcastable input arrays. Indices into captured buffers are clamped to the buffer, as every printer does."""
    values: list[Any] = []
    for n in graph.nodes:
        if n.op == "input":
            value: Any = np.asarray(inputs[str(n.value)]).astype(_WIDE[n.dtype])
        elif n.op == "const":
            value = np.asarray(n.value, _WIDE[n.dtype])
        elif n.op == "scalar":
            value = np.asarray(captured[str(n.value)]).astype(_WIDE[n.dtype])
        elif n.op == "load":
            buffer = np.asarray(captured[str(n.value)])
            at = tuple(np.clip(values[a], 0, size - 1) for a, size in zip(n.args, buffer.shape, strict=True))
            value = buffer[at].astype(_WIDE[n.dtype])
        else:
            value = apply(n.op, [values[a] for a in n.args], n.dtype, graph.nodes[n.args[0]].dtype)
        values.append(value)
    return values[-1]
