"""Attention by its definition in float64: one dense score matrix a request and head, masks by brute force, empty rows explicit.

The only judge of attention kernels. Hooks are callables over NumPy arrays, so that this file knows no graph.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Hook = Callable[[Mapping[str, Any]], Array]
F64 = NDArray[np.float64]


def attend(
    q: F64, k: F64, v: F64, scale: float, indices: Mapping[str, Any], hooks: Mapping[str, Hook], *, softmax: bool, sink: float | None
) -> tuple[F64, F64]:
    """One head: q [rows, D_qk], k [keys, D_qk], v [keys, D_vo] -> (o [rows, D_vo], lse [rows]).

    `indices`: b, h, kv_head scalars or [rows, 1]; q, row [rows, 1]; kv [1, keys]. lse is NaN without softmax.
    """
    scores = (q @ k.T) * scale
    shape = scores.shape
    if "score" in hooks:
        scores = np.broadcast_to(hooks["score"]({**indices, "score": scores}), shape)
    seen = np.broadcast_to(hooks["mask"](indices), shape) if "mask" in hooks else np.ones(shape, np.bool_)
    if not softmax:
        return np.where(seen, scores, 0.0) @ v, np.full(len(q), np.nan)
    scores = np.where(seen, scores, -np.inf)
    m = scores.max(1, initial=-np.inf if sink is None else sink)
    safe = np.where(np.isneginf(m), 0.0, m)
    p = np.exp(scores - safe[:, None])
    d = p.sum(1) + (0.0 if sink is None else np.exp(sink - safe))
    with np.errstate(divide="ignore"):
        lse = np.where(d == 0, -np.inf, safe + np.log(d))
    o = p @ v
    if "output" in hooks:
        rows = {name: np.reshape(np.broadcast_to(indices[name], (len(q), 1)), (len(q), 1)) for name in ("b", "row", "h")}
        return np.broadcast_to(hooks["output"]({**rows, "o": o, "m": safe[:, None], "d": d[:, None]}), o.shape), lse
    return o / np.where(d == 0, 1.0, d)[:, None], lse
