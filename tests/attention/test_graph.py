"""Variants: what tracing accepts and refuses, and that every printer computes the same function."""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.attention import library, print_llvm
from headway.attention.graph import Graph, VariantError
from headway.attention.print_numpy import evaluate
from headway.attention.trace import exp, exp2, f32, i32, log, maximum, minimum, sigmoid, sqrt, tanh, trace, where
from headway.attention.variant import INPUTS, Mask, Variant
from headway.kernels.cpu import isa
from headway.kernels.cpu.compile import compile_kernel
from headway.kernels.cpu.emit import I32, Kit, Value
from headway.kernels.cpu.objects import Linked

LEVELS = [level for level in isa.LEVELS if isa.host_supports(level)]
WORDS = 16  # lanes a call computes: one vector of 16 or two of 8


@dataclass(frozen=True, slots=True)
class HookKernel:
    """A hook over WORDS keys: (scores f32, indices i32[b, h, kv_head, q, row, kv0], captured table, out f32)."""

    variant: Variant
    hook: str

    arguments = 4

    @property
    def symbol(self) -> str:
        return "hook"

    def emit(self, k: Kit, scores: Value, indices: Value, table: Value, out: Value) -> None:
        from llvmlite import ir

        run = print_llvm.hooks(self.variant.hooks, self.variant.captured)[self.hook]
        names = ("b", "h", "kv_head", "q", "row", "kv")
        values = {name: k.load(indices, I32, 4 * i) for i, name in enumerate(names)}
        first = values["kv"]
        for start in range(0, WORDS, k.lanes):
            lanes = ir.Constant(k.i, list(range(start, start + k.lanes)))
            values["kv"] = k.b.add(k.splat(first), lanes)
            values["score"] = k.load(scores, k.f, 4 * start)
            result = run(k, values, table)
            if not isinstance(result.type, ir.VectorType):
                result = k.splat(result)
            if self.variant.hooks[self.hook].dtype == "bool":
                result = k.b.uitofp(result, k.f)
            k.store(result, out, 4 * start)


def captured_table(v: Variant, values: dict[str, Any]) -> tuple[np.ndarray, list[Any]]:
    table = np.zeros((max(len(v.captured), 1), 4), np.int64)
    for i, (name, dtype, rank) in enumerate(v.captured):
        if rank:
            table[i, 0] = values[name].ctypes.data
            table[i, 1 : 1 + rank] = values[name].shape
        else:
            table[i : i + 1].view(np.float32 if dtype == "f32" else np.int32)[0, 0] = values[name]
    return table, list(values.values())


def llvm(v: Variant, hook: str, level: isa.Isa) -> Callable[..., np.ndarray]:
    linked = Linked([compile_kernel(HookKernel(v, hook), level)])
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(linked.address("hook"))

    def run(scores: np.ndarray, indices: list[int], captured: dict[str, Any]) -> np.ndarray:
        table, _keep = captured_table(v, v.values(captured))
        out = np.zeros(WORDS, np.float32)
        where_ = np.array(indices, np.int32)
        call(scores.ctypes.data, where_.ctypes.data, table.ctypes.data, out.ctypes.data)
        assert linked
        return out

    return run


def numpy(v: Variant, hook: str, scores: np.ndarray, indices: list[int], captured: dict[str, Any]) -> np.ndarray:
    b, h, kv_head, q, row, kv0 = indices
    inputs = {"score": scores, "b": b, "h": h, "kv_head": kv_head, "q": q, "row": row, "kv": kv0 + np.arange(WORDS)}
    return np.broadcast_to(evaluate(v.hooks[hook], inputs, v.values(captured)), WORDS)


IDS = np.array([[0, 0, 1, 1, 1, 2, 2, 2, 2, 3], [5, 5, 5, 5, 6, 6, 6, 7, 7, 7]], np.int32)
MATRIX = np.random.default_rng(3).random((5, 40)) < 0.5


def everything(score: Any, *, b: Any, h: Any, q: Any, row: Any, kv: Any, table: Any, a: Any = 1.5, n: Any = 3) -> Any:
    x = where((kv % n == 0) | ~(kv // n > 2), exp(minimum(score, 3.0)), log(abs(score) + a)) - sqrt(maximum(score, 0.0))
    y = f32(i32(score * 7.5) - (q >> 1)) + sigmoid(score) * exp2(-abs(score)) / (1 + h)
    return x + y + tanh(score / 9) - (kv - q) // -2 + (score % a) + score // a + table[b, kv - 4] * table[row, 1]


def gemma(score: Any, *, h: Any, q: Any, kv: Any, slopes: Any, cap: Any = 30.0) -> Any:
    return cap * tanh((score + slopes[h] * (kv - q)) / cap)


SCORES = {
    "gemma": (
        Variant(lambda score, *, h, q, kv, slopes, cap=30.0: cap * tanh((score + slopes[h] * (kv - q)) / cap)),
        {"slopes": [0.5, 0.1]},
    ),
    "soft cap": (library.soft_cap(20.0), {}),
    "alibi": (library.alibi(12), {}),
    "alibi then cap": (library.alibi(12).then(library.soft_cap(5.0)), {}),
    "sigmoid": (library.sigmoid_attention(-1.0), {}),
    "everything": (Variant(everything), {"table": np.arange(12.0).reshape(3, 4)}),
}
MASKS = {
    "causal": library.causal,
    "window": library.causal & library.window(5),
    "two windows": library.window(20) & ~library.window(3),
    "sinks": library.causal & (library.window(4) | library.sink_tokens(2)),
    "prefix": library.causal | library.prefix(7),
    "document": library.document(IDS),
    "one document": library.document(IDS[0]),
    "dilated": library.dilated(3),
    "tree": library.tree([-1, 0, 0, 2, 1]),
    "custom": library.pack_masks([MATRIX, ~MATRIX]),
}


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("name", SCORES)
def test_llvm_scores_equal_numpy(name: str, level: isa.Isa) -> None:
    v, captured = SCORES[name]
    run = llvm(v, "score", level)
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = (rng.standard_normal(WORDS) * rng.choice([0.01, 1, 30])).astype(np.float32)
        indices = [int(rng.integers(2)), int(rng.integers(2)), 0, int(rng.integers(40)), int(rng.integers(5)), int(rng.integers(30))]
        want = numpy(v, "score", scores, indices, captured)
        if name == "everything":  # floor and truncation jump: compare away from the jumps only
            near = np.minimum(np.abs(scores / 1.5 - np.rint(scores / 1.5)), np.abs(scores * 7.5 - np.rint(scores * 7.5))) < 1e-4
            want = np.where(near, np.nan, want)
        got = run(scores, indices, captured)
        ok = np.isnan(want) | (np.abs(got - want) <= 2e-6 * np.maximum(np.abs(want), 8))
        assert ok.all(), (got, want)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("name", MASKS)
def test_llvm_masks_equal_numpy(name: str, level: isa.Isa) -> None:
    v = Variant(mask=MASKS[name])
    run = llvm(v, "mask", level)
    scores = np.zeros(WORDS, np.float32)
    for b, q, kv0 in [(0, 0, 0), (1, 3, 0), (1, 20, 16), (0, 39, 32), (1, 9, 5)]:
        indices = [b, 0, 0, q, q % 5, kv0]
        assert (run(scores, indices, {}) == numpy(v, "mask", scores, indices, {})).all()


def test_masks_mean_what_they_say() -> None:
    q, kv = np.arange(12)[:, None], np.arange(12)[None, :]

    def dense(m: Mask) -> np.ndarray:
        return np.broadcast_to(evaluate(m.graph, {"q": q, "kv": kv, "row": q, "b": 0}, Variant(mask=m).values()), (12, 12))

    assert (dense(library.causal) == np.tri(12, dtype=bool)).all()
    assert (dense(library.causal & library.window(3)).sum(1) == np.minimum(np.arange(12) + 1, 4)).all()
    both = library.causal & (library.window(1) | library.sink_tokens(2))
    assert dense(both)[8].nonzero()[0].tolist() == [0, 1, 7, 8]
    assert dense(library.dilated(3) & library.causal)[7].nonzero()[0].tolist() == [1, 4, 7]
    # draft tokens of a request with a prefix of 7: rows 0.. of the tree at positions 7..
    m = library.tree([-1, 0, 0, 2])
    sees = evaluate(m.graph, {"q": 7 + np.arange(4)[:, None], "row": np.arange(4)[:, None], "kv": np.arange(11)}, m.defaults)
    assert sees[:, :7].all()
    assert sees[:, 7:].astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


def test_equal_captured_names_with_other_values_stay_apart() -> None:
    both = library.window(20) & ~library.window(3)
    assert sorted(both.defaults.values()) == [3, 20]
    assert len((library.window(3) | library.window(3)).defaults) == 1


def test_alibi_slopes_of_a_power_of_two_and_of_the_rest() -> None:
    assert library.alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert np.allclose(library.alibi_slopes(12)[8:], [2.0 ** (-0.5 * (2 * j + 1)) for j in range(4)])


def test_an_expression_written_twice_is_one_node_and_constants_fold() -> None:
    g = trace(lambda score, q, kv: where(kv - q > 2 + 3, score, score) + (kv - q) * (4.0 - 2), INPUTS["score"], "f32")
    assert sum(n.op == "sub" for n in g.nodes) == 1
    assert {n.value for n in g.nodes if n.op == "const"} == {5, 2.0}
    assert trace(lambda q, kv: (kv <= q) & True, INPUTS["mask"], "bool") == library.causal.graph


def branch(score: Any, *, q: Any, kv: Any) -> Any:
    return score if kv <= q else 0.0


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "branch": (branch, "use where"),
    "chained comparison": (lambda score, q, kv: where(0 <= kv <= q, score, 0.0), "use where"),
    "numpy": (lambda score: np.exp(score), r"numpy\.exp cannot be traced"),
    "math": (lambda score: math.exp(score), "not math"),
    "method": (lambda score: score.clip(0, 1), "no attribute 'clip'"),
    "three axes": (lambda score, t, q: t[q, q, q], "one or two axes"),
    "array in the closure": (lambda score: score * [1.0, 2.0], "through `captured`"),
    "sum of bools": (lambda score, q, kv: score + (q > kv), "use where"),
    "bool result": (lambda score, q, kv: q > kv, "returns bool"),
    "star": (lambda score, *rest: score, "name every input"),
    "two forms": (lambda score, q, t: score * t + t[q], "use one form"),
    "loop over a value": (lambda score: sum(score), "Python number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_refused_with_a_remedy(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(VariantError, match=message):
        Variant(function)


def test_a_refusal_names_the_users_line() -> None:
    with pytest.raises(VariantError, match=rf"test_graph.py:{branch.__code__.co_firstlineno + 1}"):
        Variant(branch)


def test_captured_values_are_checked_before_use() -> None:
    v, _ = SCORES["gemma"]
    with pytest.raises(VariantError, match=r"'slopes'.*missing"):
        v.values()
    with pytest.raises(VariantError, match="shape"):
        v.values({"slopes": 3.0})
    with pytest.raises(VariantError, match="temperature is not read"):
        v.values({"slopes": [1.0], "temperature": 2})


def test_keys_are_equal_for_equal_code_and_do_not_name_values() -> None:
    assert Variant(mask=library.window(5)).key == Variant(mask=library.window(9)).key
    assert Variant(mask=library.window(5)).key != Variant(mask=library.prefix(5)).key


@Mask
def random_mask(q: Any, kv: Any) -> Any:
    return (q * 3 - kv) % 5 < 3


@given(st.lists(st.sampled_from([*MASKS.values(), random_mask]), min_size=2, max_size=4), st.integers(0, 7))
def test_combining_graphs_is_combining_their_values(masks: list[Mask], how: int) -> None:
    q, kv = np.arange(30)[:, None], np.arange(30)[None, :]

    def dense(m: Mask) -> np.ndarray:
        return np.broadcast_to(evaluate(m.graph, {"q": q, "kv": kv, "row": q % 5, "b": q % 2}, m.defaults), (30, 30))

    combined, want = masks[0], dense(masks[0])
    for i, m in enumerate(masks[1:]):
        if how >> i & 1:
            combined, want = combined & ~m, want & ~dense(m)
        else:
            combined, want = combined | m, want | dense(m)
    assert (dense(combined) == want).all()
    assert isinstance(combined.graph, Graph)
