"""The oracle: attention of every query token over the kept tokens of its table rows, by definition and in float64. Knows no plan.

It reads tables and pools like any back end, then hands dense arrays of one head to kernels/reference/attention_items.py.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.attention.block_sparse import BlockSparse
from headway.attention.kv import PagedKV
from headway.attention.print_numpy import evaluate
from headway.attention.variant import Variant
from headway.kernels.reference.attention_items import Hook, attend

F64 = NDArray[np.float64]


def rows_of_tokens(qo_indptr: NDArray[np.int32], table: BlockSparse, kv_head: int) -> list[list[int]]:
    """The table rows that serve each query token of one kv head, in row order."""
    served: list[list[int]] = [[] for _ in range(int(qo_indptr[-1]))]
    for row in range(table.rows):
        if table.row_head[row] not in (-1, kv_head):
            continue
        b = int(table.row_request[row])
        end = int(qo_indptr[b + table.row_requests[row]])
        first = int(qo_indptr[b] + table.row_start[row])
        count = int(table.row_tokens[row])
        for token in range(first, end if count < 0 else min(end, first + count)):
            served[token].append(row)
    return served


def partners(x: F64, pairs: str) -> F64:
    """Each element's rotation partner."""
    n = x.shape[-1]
    order = (np.arange(n) + n // 2) % n if pairs == "half" else np.arange(n) ^ 1
    return x[..., order]


def transform(x: F64, variant: Variant, hook: str, positions: NDArray[Any], head: int, captured: Mapping[str, Any]) -> F64:
    """A query, key or value hook over rows [n, D]."""
    if hook not in variant.hooks:
        return x
    inputs = {
        "x": x,
        "partner": partners(x, variant.pairs),
        "d": np.arange(x.shape[1])[None, :],
        "dim": x.shape[1],
        "pos": positions[:, None],
        "head": head,
    }
    return np.broadcast_to(evaluate(variant.hooks[hook], inputs, captured), x.shape)


def reference(
    q: F64,
    kv: PagedKV,
    qo_indptr: NDArray[np.int32],
    table: BlockSparse,
    variant: Variant | None = None,
    captured: Mapping[str, Any] | None = None,
    *,
    sm_scale: float | None = None,
) -> tuple[F64, F64]:
    """q [tokens, heads, D_qk] as float64 -> (o [tokens, heads, D_vo], natural-log lse [tokens, heads]; NaN without softmax)."""
    v = variant or Variant()
    values = v.values(captured)
    n, heads, dims = q.shape
    scale = dims**-0.5 if sm_scale is None else sm_scale
    o, lse = np.zeros((n, heads, kv.head_dim_vo)), np.zeros((n, heads))
    request = np.repeat(np.arange(table.requests), np.diff(qo_indptr))
    row = np.arange(n) - qo_indptr[request]
    position = table.sequence_tokens[request] - np.diff(qo_indptr)[request] + row
    hooks: dict[str, Hook] = {}
    for name, graph in v.hooks.items():
        hooks[name] = lambda inputs, graph=graph: evaluate(graph, inputs, values)  # type: ignore[misc]
    group = heads // kv.kv_heads
    for kv_head in range(kv.kv_heads):
        served = rows_of_tokens(qo_indptr, table, kv_head)
        for (b, rows), run in groupby(range(n), key=lambda t: (int(request[t]), tuple(served[t]))):
            tokens = np.array(list(run))
            pages, offsets, positions = _kept(table, rows)
            keys, vals = kv.read(pages, offsets, kv_head)
            keys = transform(keys, v, "key", positions, kv_head, values)
            vals = transform(vals, v, "value", positions, kv_head, values)
            for h in range(kv_head * group, (kv_head + 1) * group):
                queries = transform(q[tokens, h].astype(np.float64), v, "query", position[tokens], h, values)
                indices = {
                    "b": b,
                    "h": h,
                    "kv_head": kv_head,
                    "q": position[tokens][:, None],
                    "row": row[tokens][:, None],
                    "kv": positions[None, :],
                }
                sink = float(values["sink"][h]) if v.sink else None
                o[tokens, h], lse[tokens, h] = attend(queries, keys, vals, scale, indices, hooks, softmax=v.softmax, sink=sink)
    return o, lse


def _kept(table: BlockSparse, rows: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    pages, offsets, positions = [], [], []
    for row in rows:
        slots = np.arange(table.row_kv_tokens[row])
        pages.append(table.page[table.row_page[row] + slots // table.page_tokens])
        offsets.append(slots % table.page_tokens)
        positions.append(table.positions(row))
    none = np.zeros(0, np.int64)
    return np.concatenate([*pages, none]).astype(np.int64), np.concatenate([*offsets, none]), np.concatenate([*positions, none])
