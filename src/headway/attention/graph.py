"""A variant as a typed, hash-consed graph: traced once from Python (trace.py), printed by every back end from the same nodes.

Types are f32, i32 and bool. The graph knows no machine: lanes, addresses and intervals belong to the printers. Source of the idea: traced
score functions of FlexAttention (arXiv 2412.05496), lowered as FlashInfer's variants are (arXiv 2501.01005).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headway.core.errors import HeadwayError

Number = bool | int | float
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


class VariantError(HeadwayError):
    """A variant's Python function cannot be traced, or is used with other inputs than it names."""


@dataclass(frozen=True, slots=True)
class Node:
    """`op` of earlier nodes `args`. `value`: a constant, or the name of an input, captured scalar or captured buffer."""

    op: str
    args: tuple[int, ...]
    dtype: str
    value: Number | str | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in evaluation order; the last one is the result. `captured`: dtype of each captured name, `ranks`: 0 scalar, 1 or 2 buffer."""

    nodes: tuple[Node, ...]
    captured: tuple[tuple[str, str, int], ...]  # (name, dtype f32|i32|u8|bool, rank)

    @property
    def dtype(self) -> str:
        return self.nodes[-1].dtype

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset(str(n.value) for n in self.nodes if n.op == "input")

    @property
    def key(self) -> str:
        """The graph as text: equal graphs have equal keys in every process."""
        return ";".join(f"{n.op}{','.join(map(str, n.args))}:{n.dtype}:{n.value!r}" for n in self.nodes) + str(self.captured)

    def renamed(self, names: Mapping[str, str]) -> "Graph":
        """Captured names replaced."""
        named = ("scalar", "load")
        nodes = tuple(replace(n, value=names.get(str(n.value), n.value)) if n.op in named else n for n in self.nodes)
        return Graph(nodes, tuple((names.get(name, name), dtype, rank) for name, dtype, rank in self.captured))

    def lines(self) -> list[str]:
        """One readable line a node, for `headway attention explain`."""
        text = []
        for i, n in enumerate(self.nodes):
            args = ", ".join(f"%{a}" for a in n.args)
            what = {"load": f"{n.value}[{args}]", "const": repr(n.value), "input": f"{n.value}", "scalar": f"captured {n.value}"}
            text.append(f"%{i}: {n.dtype} = {what.get(n.op, f'{n.op}({args})')}")
        return text


class Builder:
    """Interns nodes: an expression written twice is one node. Folds constants and the identities of and, or, not, where."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.captured: dict[str, tuple[str, int]] = {}
        self._known: dict[tuple[object, ...], int] = {}

    def intern(self, op: str, args: tuple[int, ...], dtype: str, value: Number | str | None = None) -> int:
        if op not in ("input", "scalar", "load", "const"):
            folded = self._fold(op, args, dtype)
            if folded is not None:
                return folded
        key = (op, args, dtype, type(value), value)
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append(Node(op, args, dtype, value))
        return self._known[key]

    def const(self, value: Number, dtype: str) -> int:
        return self.intern("const", (), dtype, {"f32": float, "i32": int, "bool": bool}[dtype](value))

    def _fold(self, op: str, args: tuple[int, ...], dtype: str) -> int | None:
        nodes = [self.nodes[a] for a in args]
        if all(n.op == "const" for n in nodes):
            from headway.attention.print_numpy import apply

            try:
                return self.const(apply(op, [n.value for n in nodes], dtype, nodes[0].dtype).item(), dtype)
            except (ArithmeticError, ValueError):
                return None
        if op in ("and", "or") and dtype == "bool":
            for i, n in enumerate(nodes):
                if n.op == "const":
                    return args[1 - i] if bool(n.value) == (op == "and") else args[i]
            return args[0] if args[0] == args[1] else None
        if op == "not" and nodes[0].op == "not":
            return nodes[0].args[0]
        if op == "where" and nodes[0].op == "const":
            return args[1] if nodes[0].value else args[2]
        return None

    def graph(self, result: int) -> Graph:
        """Only what `result` needs, in order."""
        needed: set[int] = set()
        stack = [result]
        while stack:
            i = stack.pop()
            if i not in needed:
                needed.add(i)
                stack += self.nodes[i].args
        order = sorted(needed)
        number = {old: new for new, old in enumerate(order)}
        nodes = tuple(Node(n.op, tuple(number[a] for a in n.args), n.dtype, n.value) for n in (self.nodes[i] for i in order))
        used = {str(n.value) for n in nodes if n.op in ("scalar", "load")}
        return Graph(nodes, tuple((name, *self.captured[name]) for name in sorted(used)))

    def include(self, graph: Graph) -> int:
        """Copy another graph's nodes in; returns its result."""
        for name, dtype, rank in graph.captured:
            self.capture(name, dtype, rank)
        number: list[int] = []
        for n in graph.nodes:
            number.append(self.intern(n.op, tuple(number[a] for a in n.args), n.dtype, n.value))
        return number[-1]

    def capture(self, name: str, dtype: str, rank: int) -> None:
        if self.captured.setdefault(name, (dtype, rank)) != (dtype, rank):
            before = self.captured[name]
            raise VariantError(f"captured {name!r} is used as {before} and as {(dtype, rank)} (dtype, number of axes): use one form")


def combine(op: str, graphs: Sequence[Graph]) -> Graph:
    """`and`, `or` of boolean graphs, or `not` of one."""
    builder = Builder()
    nodes = tuple(builder.include(g) for g in graphs)
    result = nodes[0]
    if op == "not":
        result = builder.intern("not", nodes, "bool")
    for n in nodes[1:]:
        result = builder.intern(op, (result, n), "bool")
    return builder.graph(result)
