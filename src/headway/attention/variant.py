"""What may differ between attentions: masks and variants, written as small Python functions and combined (specs: FlashInfer's hooks).

A hook's parameters are the inputs it reads; any other parameter is *captured*: given by name at `run`, or at `plan` where structure depends
on it. A parameter's default value is its default. Captured values are arguments, never constants, so a new window needs no new code.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from headway.attention.graph import Builder, Graph, VariantError, combine
from headway.attention.trace import trace

Function = Callable[..., Any]
CapturedValues = Mapping[str, Any]

_INDICES = {"b": "i32", "h": "i32", "kv_head": "i32", "q": "i32", "row": "i32", "kv": "i32"}
_ELEMENT = {"x": "f32", "partner": "f32", "d": "i32", "dim": "i32", "pos": "i32", "head": "i32"}
INPUTS = {
    "score": {"score": "f32", **_INDICES},
    "mask": _INDICES,
    "query": _ELEMENT,
    "key": _ELEMENT,
    "value": _ELEMENT,
    "output": {"o": "f32", "m": "f32", "d": "f32", "b": "i32", "row": "i32", "h": "i32"},
}
HOOKS = tuple(INPUTS)


def default_dtype(value: Any) -> str:
    """Captured dtype of a value: bytes and booleans u8, integers i32, everything else f32."""
    kind = np.asarray(value).dtype
    return "u8" if kind in (np.uint8, np.bool_) else "i32" if kind.kind in "iu" else "f32"


def _traced(function: Function, hook: str, dtypes: Mapping[str, str]) -> tuple[Graph, dict[str, Any]]:
    defaults = {
        p.name: p.default
        for p in inspect.signature(function).parameters.values()
        if p.default is not p.empty and p.name not in INPUTS[hook]
    }
    graph = trace(
        function, INPUTS[hook], "bool" if hook == "mask" else "f32", {n: default_dtype(v) for n, v in defaults.items()} | dict(dtypes)
    )
    return graph, {name: defaults[name] for name, _, _ in graph.captured if name in defaults}


def _same(x: Any, y: Any) -> bool:
    return x is y or np.array_equal(np.asarray(x), np.asarray(y))


def _apart(graph: Graph, defaults: Mapping[str, Any], taken: Mapping[str, Any], names: set[str]) -> tuple[Graph, dict[str, Any]]:
    """Rename captured defaults that clash with other values of the same name: `window(4) | window(8)` reads two scalars."""
    fresh: dict[str, str] = {}
    for name in defaults:
        if name in names and not (name in taken and _same(taken[name], defaults[name])):
            n = 2
            while f"{name}_{n}" in names or f"{name}_{n}" in defaults or f"{name}_{n}" in fresh.values():
                n += 1
            fresh[name] = f"{name}_{n}"
    return graph.renamed(fresh), {fresh.get(name, name): value for name, value in defaults.items()}


class Mask:
    """Which (q, kv) pairs are visible. Combine with `&`, `|`, `~`. A decorator too: `@Mask` over `f(q, kv, ...) -> bool`."""

    def __init__(
        self, function: Function | Graph, defaults: CapturedValues | None = None, *, dtypes: Mapping[str, str] | None = None
    ) -> None:
        if isinstance(function, Graph):
            self.graph, self.defaults = function, dict(defaults or {})
        else:
            self.graph, self.defaults = _traced(function, "mask", dtypes or {})

    def _with(self, op: str, other: "Mask") -> "Mask":
        if not isinstance(other, Mask):
            return NotImplemented
        names = {name for name, _, _ in self.graph.captured}
        graph, defaults = _apart(other.graph, other.defaults, self.defaults, names)
        return Mask(combine(op, (self.graph, graph)), self.defaults | defaults)

    def __and__(self, other: "Mask") -> "Mask":
        return self._with("and", other)

    def __or__(self, other: "Mask") -> "Mask":
        return self._with("or", other)

    def __invert__(self) -> "Mask":
        return Mask(combine("not", (self.graph,)), self.defaults)


class Variant:
    """Hooks of one attention, traced. Each may be a function, a Graph or None; `@Variant` over a score function makes one of it.

    score(score, ...)         score is q.k * sm_scale
    mask(q, kv, ...)          a Mask, or a function
    query/key/value(x, ...)   element d of a row at position pos; `partner` is the element it is rotated with (`pairs`)
    output(o, m, d, ...)      o is the weighted sum before division by d; m the maximum score (natural log domain); default o / d
    softmax=False             O = sum of score(...) * v, no LSE
    sink=True                 captured `sink` f32[heads]: logits of one virtual key without a value
    pairs                     "half" (d with d + dim/2) or "adjacent" (2i with 2i + 1)
    """

    def __init__(
        self,
        score: Function | Graph | None = None,
        mask: "Mask | Function | None" = None,
        query: Function | Graph | None = None,
        key: Function | Graph | None = None,
        value: Function | Graph | None = None,
        output: Function | Graph | None = None,
        *,
        softmax: bool = True,
        sink: bool = False,
        pairs: str = "half",
        defaults: CapturedValues | None = None,
        dtypes: Mapping[str, str] | None = None,
    ) -> None:
        self.softmax, self.sink, self.pairs = softmax, sink, pairs
        if pairs not in ("half", "adjacent"):
            raise VariantError(f"pairs={pairs!r}: elements are rotated in pairs 'half' or 'adjacent'")
        if sink and not softmax:
            raise VariantError("sink=True with softmax=False: a sink is a term of the softmax's denominator, which is not computed")
        self.defaults: dict[str, Any] = dict(defaults or {})
        self.hooks: dict[str, Graph] = {}
        functions = {"score": score, "query": query, "key": key, "value": value, "output": output}
        for hook, function in functions.items():
            if function is not None:
                self._add(hook, *((function, {}) if isinstance(function, Graph) else _traced(function, hook, dtypes or {})))
        if mask is not None:
            m = mask if isinstance(mask, Mask) else Mask(mask, dtypes=dtypes)
            self._add("mask", m.graph, m.defaults)

    def _add(self, hook: str, graph: Graph, defaults: CapturedValues) -> None:
        graph, fresh = _apart(graph, defaults, self.defaults, {name for name, _, _ in self.captured} | set(self.defaults))
        self.hooks[hook] = graph
        self.defaults |= fresh
        self.captured  # noqa: B018  (raises when a name is used in two forms)

    @property
    def captured(self) -> tuple[tuple[str, str, int], ...]:
        """(name, dtype, rank) of everything captured, by name: the order of the kernels' argument table."""
        found: dict[str, tuple[str, int]] = {"sink": ("f32", 1)} if self.sink else {}
        for graph in self.hooks.values():
            for name, dtype, rank in graph.captured:
                if found.setdefault(name, (dtype, rank)) != (dtype, rank):
                    raise VariantError(f"captured {name!r} is {found[name]} in one hook and {(dtype, rank)} in another: rename one")
        return tuple((name, *found[name]) for name in sorted(found))

    @property
    def key(self) -> str:
        """Text that is equal for equal code; names of captured values count, their values do not."""
        return "|".join(f"{h}={self.hooks[h].key}" for h in HOOKS if h in self.hooks) + f"|{self.softmax}{self.sink}{self.pairs}"

    def with_mask(self, mask: Mask) -> "Variant":
        """This variant under one more mask."""
        other = Variant(softmax=self.softmax, sink=self.sink, pairs=self.pairs, defaults=self.defaults)
        other.hooks = {h: g for h, g in self.hooks.items() if h != "mask"}
        if "mask" in self.hooks:
            mine = {n: self.defaults[n] for n, _, _ in self.hooks["mask"].captured if n in self.defaults}
            mask = Mask(self.hooks["mask"], mine) & mask
        other._add("mask", mask.graph, mask.defaults)
        return other

    def then(self, later: "Variant") -> "Variant":
        """This variant's score, then `later`'s score function of it: `alibi(heads).then(soft_cap(30.0))`."""
        if "score" not in later.hooks or "score" not in self.hooks:
            raise VariantError("then() joins two variants that both have a score")
        wanted = {n: later.defaults[n] for n, _, _ in later.hooks["score"].captured if n in later.defaults}
        graph, defaults = _apart(later.hooks["score"], wanted, self.defaults, {n for n, _, _ in self.captured})
        builder = Builder()
        number = [builder.include(self.hooks["score"])]
        inner = number.pop()
        for name, dtype, rank in graph.captured:
            builder.capture(name, dtype, rank)
        for n in graph.nodes:
            if n.op == "input" and n.value == "score":
                number.append(inner)
            else:
                number.append(builder.intern(n.op, tuple(number[a] for a in n.args), n.dtype, n.value))
        out = Variant(softmax=self.softmax, sink=self.sink, pairs=self.pairs, defaults=self.defaults | defaults)
        out.hooks = self.hooks | {"score": builder.graph(number[-1])}
        return out

    def values(self, given: CapturedValues | None = None) -> dict[str, Any]:
        """Every captured value as int, float or contiguous array of its dtype: `given` over the defaults. Raises VariantError."""
        given = given or {}
        names = {name for name, _, _ in self.captured}
        unknown = sorted(set(given) - names)
        if unknown:
            raise VariantError(
                f"captured {', '.join(unknown)} is not read by this variant, which reads {', '.join(sorted(names)) or 'nothing'}"
            )
        out: dict[str, Any] = {}
        for name, dtype, rank in self.captured:
            value = given.get(name, self.defaults.get(name))
            if value is None:
                raise VariantError(f"captured {name!r} ({dtype}, {rank} axes) is missing: run(..., captured={{{name!r}: ...}})")
            array = np.ascontiguousarray(np.asarray(value), {"f32": np.float32, "i32": np.int32, "u8": np.uint8, "bool": np.uint8}[dtype])
            if np.ndim(value) != rank or (rank and not array.size):
                raise VariantError(f"captured {name!r} has shape {np.shape(value)}; this variant reads it with {rank} axes, none empty")
            out[name] = array if rank else array.reshape(())[()]
        return out
