"""A mask graph as interval code: which rectangles of (q, kv) are empty, full or partly visible, without visiting their elements.

The code is data for one compiled interpreter (kernels/cpu/intervals_loop.py), so a new mask needs no compiling to be planned. Unknown
operations and captured buffers whose values are not given yield *partial*: structure is never dropped by mistake.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headway.attention.graph import Graph, VariantError
from headway.kernels.cpu import plan_words as w

Verdict = Literal["empty", "partial", "full"]
VERDICTS: tuple[Verdict, ...] = ("empty", "partial", "full", "partial")
_KINDS = {"f32": 1, "i32": 2, "bool": 0}


@dataclass(frozen=True, slots=True)
class IntervalCode:
    """`code` int64 [n, 5], `values` float64 [n, 2] and `buffers` int64 [captured buffers, 6] as plan_words.py says; `keep` owns tables."""

    code: NDArray[np.int64]
    values: NDArray[np.float64]
    buffers: NDArray[np.int64]
    scalars: tuple[tuple[int, str], ...]
    names: tuple[str, ...]
    keep: dict[str, Any]

    def bind(self, captured: Mapping[str, Any]) -> None:
        """Fill in captured values. A scalar or buffer that is missing stays unknown."""
        for row, name in self.scalars:
            known = name in captured
            self.values[row] = (captured[name], captured[name]) if known else (-np.inf, np.inf)
        for i, name in enumerate(self.names):
            self.buffers[i, 4] = 0
            if name in captured:
                array = np.asarray(captured[name])
                table = block_table(array)
                self.keep[name] = table
                sizes = (*array.shape, 1)[:2]
                self.buffers[i] = (table.ctypes.data, sizes[0], sizes[1], w.BUFFER_BLOCK, 1, 0)


def block_table(array: NDArray[Any]) -> NDArray[np.float64]:
    """Minimum and maximum of each BUFFER_BLOCK elements in memory order: float64 [blocks, 2]."""
    flat = np.ascontiguousarray(array).ravel()
    starts = np.arange(0, len(flat), w.BUFFER_BLOCK)
    table = np.empty((len(starts), 2))
    np.minimum.reduceat(flat, starts, out=table[:, 0])
    np.maximum.reduceat(flat, starts, out=table[:, 1])
    return table


def compile_intervals(graph: Graph) -> IntervalCode:
    """Interval code of a boolean graph."""
    if len(graph.nodes) > w.MAX_CODE:
        raise VariantError(f"a mask of {len(graph.nodes)} operations is too long for the planner, which takes {w.MAX_CODE}: simplify it")
    code = np.zeros((len(graph.nodes), w.CODE_WORDS), np.int64)
    values = np.zeros((len(graph.nodes), 2))
    scalars = []
    names = tuple(name for name, _, rank in graph.captured if rank)
    for i, n in enumerate(graph.nodes):
        operation, args = n.op, list(n.args)
        if n.op == "input":
            args = [w.INPUT_NAMES.index(str(n.value))]
        elif n.op in ("const", "scalar"):
            operation = "value"
            if n.op == "const":
                values[i] = float(n.value)  # type: ignore[arg-type]
            else:
                scalars.append((i, str(n.value)))
        elif n.op == "load":
            operation = f"load{len(args)}"
            args = [*[*args, 0][:2], names.index(str(n.value))]
        elif n.op == "cast":
            operation = "trunc" if n.dtype == "i32" and graph.nodes[n.args[0]].dtype == "f32" else "copy"
        elif (n.op in ("and", "or") and n.dtype == "i32") or n.op not in w.OPERATION:
            operation, args = "unknown", []
        code[i, 0] = w.OPERATION[operation]
        code[i, 1 : 1 + len(args)] = args
        code[i, 4] = _KINDS[n.dtype]
    return IntervalCode(code, values, np.zeros((max(len(names), 1), w.TABLE_WORDS), np.int64), tuple(scalars), names, {})


class Classifier:
    """One mask on rectangles, by the planner's own compiled code: `Classifier(mask.graph, captured, entry)`."""

    def __init__(self, graph: Graph, captured: Mapping[str, Any], entry: Callable[[int, int, int], int]) -> None:
        self.code = compile_intervals(graph)
        self.code.bind(captured)
        self._entry = entry
        self._words = np.zeros(w.PARAMETER_WORDS, np.int64)
        self._words[[w.W_CODE, w.W_CODE_LENGTH]] = self.code.code.ctypes.data, len(self.code.code)
        self._words[[w.W_VALUES, w.W_BUFFERS]] = self.code.values.ctypes.data, self.code.buffers.ctypes.data
        self._registers = np.zeros(3 * w.MAX_CODE)
        self._inputs = np.zeros((6, 2))

    def classify(self, q: tuple[int, int], kv: tuple[int, int], **others: tuple[int, int]) -> Verdict:
        """Of inclusive ranges of q and kv; `others`: b, h, kv_head, row, each (0, 0) unless given."""
        self._inputs[:2] = q, kv
        for i, name in enumerate(w.INPUT_NAMES[2:], 2):
            self._inputs[i] = others.get(name, (0, 0))
        return VERDICTS[self._entry(self._words.ctypes.data, self._registers.ctypes.data, self._inputs.ctypes.data)]

    def tiles(self, q_tokens: int, kv_tokens: int, tile: int) -> Iterator[tuple[int, int, int, int, Verdict]]:
        """(q0, q1, k0, k1, verdict) of the visible part as a quad-tree down to `tile`; ends are exclusive. `row` is q here."""
        stack = [(0, q_tokens, 0, kv_tokens)]
        while stack:
            q0, q1, k0, k1 = stack.pop()
            verdict = self.classify((q0, q1 - 1), (k0, k1 - 1), row=(q0, q1 - 1))
            if verdict == "empty":
                continue
            if verdict == "full" or (q1 - q0 <= tile and k1 - k0 <= tile):
                yield q0, q1, k0, k1, verdict
                continue
            q_cuts, k_cuts = _halves(q0, q1, tile), _halves(k0, k1, tile)
            stack += [(a, b, c, d) for a, b in reversed(q_cuts) for c, d in reversed(k_cuts)]


def _halves(start: int, end: int, tile: int) -> list[tuple[int, int]]:
    blocks = -(-(end - start) // tile)
    if blocks < 2:
        return [(start, end)]
    middle = start + blocks // 2 * tile
    return [(start, middle), (middle, end)]
