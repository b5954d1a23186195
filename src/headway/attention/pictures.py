"""Text pictures for `headway attention`: a mask's tiles, a plan over its workers, and what a variant compiled to."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from headway.attention import library
from headway.attention.attention import Attention
from headway.attention.block_sparse import BlockSparse
from headway.attention.intervals import Classifier
from headway.attention.planner import compiled
from headway.attention.variant import Mask, Variant
from headway.core.errors import ConfigError
from headway.kernels.cpu import plan_layout as at

_TILE = {"empty": "·", "partial": "▒", "full": "█"}
COLUMNS = 64


def load(text: str) -> Variant:
    """A variant from `FILE.py:NAME` (the file is run) or from an expression over the library's names."""
    path, _, name = text.rpartition(":")
    if path.endswith(".py"):
        scope: dict[str, Any] = {"__name__": "headway_variant", "__file__": path}
        exec(compile(Path(path).read_text(), path, "exec"), scope)
        if name not in scope:
            raise ConfigError(f"{path} has no {name!r}; it has {', '.join(n for n in scope if not n.startswith('_'))}")
        found = scope[name]
    else:
        names = {n: getattr(library, n) for n in dir(library) if not n.startswith("_")}
        try:
            found = eval(text, {"__builtins__": {}}, names)
        except (SyntaxError, NameError, TypeError) as error:
            raise ConfigError(f"{text!r} is neither FILE.py:NAME nor an expression of the library: {error}") from None
    if isinstance(found, Mask):
        return Variant(mask=found)
    if isinstance(found, Variant):
        return found
    if callable(found):
        return Variant(score=found)
    raise ConfigError(f"{text!r} is a {type(found).__name__}; a variant, mask or score function is needed")


def tiles(variant: Variant, tokens: int = 2048, tile: int = 64) -> list[str]:
    """The mask over tokens x tokens, a character a tile: empty, partly visible, full."""
    graph = variant.hooks["mask"]
    known = {n: variant.defaults[n] for n, _, _ in graph.captured if n in variant.defaults}
    c = Classifier(graph, known, compiled().classify)
    cells = np.full((tokens // tile, tokens // tile), _TILE["empty"])
    share = 0.0
    for q0, q1, k0, k1, verdict in c.tiles(tokens, tokens, tile):
        cells[q0 // tile : q1 // tile, k0 // tile : k1 // tile] = _TILE[verdict]
        share += (q1 - q0) * (k1 - k0)
    head = f"mask over {tokens} x {tokens} in tiles of {tile}: {_TILE['full']} full, {_TILE['partial']} partial, {_TILE['empty']} skipped; "
    return [f"{head}{100 * share / tokens**2:.1f} % is computed", *("".join(row) for row in cells)]


def _assembly_line(kernel: Any, isa: Any) -> str:
    from headway.kernels.cpu.compile import assembly

    text = assembly(kernel, isa)
    code = [line.strip() for line in text.splitlines() if line.startswith("\t") and not line.strip().startswith(".")]
    fma = sum(line.startswith("vfmadd") for line in code)
    wide = "zmm" if any("zmm" in line for line in code) else "ymm"
    stack = sum(bool(re.search(r"\(%rsp\)|\[rsp", line)) and wide in line for line in code)
    calls = sum(line.startswith("call") for line in code)
    return f"  {kernel.symbol}: {len(code)} instructions, {fma} fma, {stack} of {wide} with the stack, {calls} calls"


def explain(text: str, heads: int, kv_heads: int, head_dim: int, q_dtype: str, kv_dtype: str, packed: bool) -> list[str]:
    """Graphs, captured values, tiles and the kernels of one variant."""
    variant = load(text)
    out = []
    for hook, graph in variant.hooks.items():
        out += [f"{hook}:", *("  " + line for line in graph.lines())]
    if variant.captured:
        out.append("captured: " + ", ".join(f"{name} {dtype}{'[]' * rank}" for name, dtype, rank in variant.captured))
    out.append(f"softmax: {'yes' if variant.softmax else 'no'}{', with a sink' if variant.sink else ''}")
    if "mask" in variant.hooks:
        out += ["", *tiles(variant)]
    layout = "packed" if packed else "rows"
    a = Attention(
        heads, kv_heads, head_dim, q_dtype=q_dtype, kv_dtype=kv_dtype, layout=layout, variant=variant, max_q_tokens=64, max_pages=64
    )
    assert a.cpu is not None  # backend "auto" is the cpu
    fresh = a.cpu.objects.compiled
    out += ["", f"kernels for {heads}/{kv_heads} heads of {head_dim}, {a.cpu.isa.name}; {fresh} compiled now, the others were cached:"]
    return out + [_assembly_line(kernel, a.cpu.isa) for kernel in a.cpu.kernels]


def gantt(
    lengths: list[int], queries: int, workers: int, heads: int, kv_heads: int, head_dim: int, kv_dtype: str, split: int | None
) -> list[str]:
    """A causal plan as one line a worker; a letter is a request, one column the same time everywhere."""
    pages = [-(-n // 16) for n in lengths]
    indptr = np.concatenate([[0], np.cumsum(pages)]).astype(np.int32)
    table = BlockSparse.from_lengths(indptr, np.arange(indptr[-1], dtype=np.int32), np.array(lengths, np.int32), 16)
    a = Attention(
        heads,
        kv_heads,
        head_dim,
        kv_dtype=kv_dtype,
        mask=library.causal,
        max_requests=len(lengths),
        max_q_tokens=queries * len(lengths),
        max_pages=max(int(indptr[-1]), 1),
        workers=workers,
        backend="reference",
    )
    plan = a.plan((np.arange(len(lengths) + 1) * queries).astype(np.int32), table, split)
    law, group = a.law, heads // kv_heads
    loads = np.zeros(workers)
    bars: list[list[tuple[int, float]]] = [[] for _ in range(workers)]
    for item in plan.items:
        cost = law.item_s + (item.end - item.start) * (law.token_s + law.pair_s * item.tokens * group)
        loads[item.worker] += cost
        bars[item.worker].append((item.row, cost))
    longest = max(float(loads.max()), 1e-12)
    out = [
        f"{len(plan.items)} items of {len(lengths)} requests, {plan.count(at.H_MERGES)} merges; "
        f"{plan.kv_bytes / 1e6:.1f} MB of keys and values, {plan.flops / 1e6:.0f} MFLOP",
        f"predicted {plan.predicted_s * 1e3:.3f} ms (p95 {plan.predicted_p95_s * 1e3:.3f} ms) by the {law.made_by} law; "
        f"makespan {longest / (loads.sum() / workers):.3f} of ideal",
    ]
    for worker, bar in enumerate(bars[:32]):
        line, at_s = "", 0.0
        for row, cost in bar:
            at_s += cost
            line += chr(ord("A") + row % 26) * (round(at_s / longest * COLUMNS) - len(line))
        out.append(f"{worker:>4} |{line:<{COLUMNS}}|")
    return out + (["     ..."] if workers > 32 else [])
