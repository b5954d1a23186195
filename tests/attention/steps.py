"""Attention steps for tests of the back end alone: pools with permuted pages and NaN in unused slots, plans written by hand, an oracle.

The planner here is simple on purpose: tiles of `tile_tokens` query tokens, optionally cut every `split` slots, everything PARTIAL or FULL.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headway.attention.cpu import CpuAttention, HeadGeometry, KvAddresses, Strided
from headway.attention.plan import PlanBuffer, PlanCapacity
from headway.kernels.cpu import plan_layout as at
from headway.kernels.cpu.memory import address

Array = NDArray[np.float64]
Visible = Callable[[int, int, int, NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
"""(request, head, row count, q positions [rows, 1], kv positions [1, tokens]) -> bool [rows, tokens]"""

STORE = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "int8": np.int8}


def to_bf16(x: Array) -> NDArray[np.uint16]:
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (x.astype(np.uint32) << 16).view(np.float32)


def store(x: Array, dtype: str) -> tuple[NDArray, NDArray | None, Array]:
    """(stored, scales of the last axis or None, what it stands for in float64)."""
    if dtype == "bf16":
        bits = to_bf16(x)
        return bits, None, from_bf16(bits).astype(np.float64)
    if dtype == "int8":
        scale = (np.abs(x).max(-1) / 127).astype(np.float32)
        q = np.rint(x / scale[..., None]).astype(np.int8)
        return q, scale, q * scale[..., None].astype(np.float64)
    stored = x.astype(STORE[dtype])
    return stored, None, stored.astype(np.float64)


@dataclass
class Step:
    """Requests with `lengths` = (query tokens, keys) over one pool."""

    geometry: HeadGeometry
    lengths: list[tuple[int, int]]
    page_tokens: int
    layout: str = "NHD"  # or HND; "packed" follows from the geometry
    seed: int = 0
    spread: float = 1.0
    q: NDArray = field(init=False)
    want_q: Array = field(init=False)
    k: list[Array] = field(init=False)
    v: list[Array] = field(init=False)

    def __post_init__(self) -> None:
        g, rng, p = self.geometry, np.random.default_rng(self.seed), self.page_tokens
        self.pages = [-(-n // p) for _, n in self.lengths]
        total = sum(self.pages) + 3
        self.numbers = rng.permutation(total)[: sum(self.pages)].astype(np.int32)
        nan = {"f32": np.nan, "f16": np.nan, "bf16": 0xFFFF, "int8": 127}[g.kv_dtype]
        packed = g.layout == "packed"
        self.pool_k = np.full((total, g.kv_heads, g.dims, 16) if packed else (total, p, g.kv_heads, g.dims), nan, STORE[g.kv_dtype])
        self.pool_v = np.full(
            (total, g.kv_heads, 16, g.value_dims) if packed else (total, p, g.kv_heads, g.value_dims), nan, STORE[g.kv_dtype]
        )
        self.scales = np.full((2, total, g.kv_heads, p), np.nan, np.float32)
        if self.layout == "HND" and not packed:
            self.pool_k, self.pool_v = (np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (self.pool_k, self.pool_v))
        n = sum(t for t, _ in self.lengths)
        self.q, _, self.want_q = store(rng.normal(size=(n, g.heads, g.dims)) * self.spread, g.q_dtype)
        self.k, self.v, first = [], [], 0
        for (_, tokens), pages in zip(self.lengths, self.pages, strict=True):
            k, v = rng.normal(size=(tokens, g.kv_heads, g.dims)), rng.normal(size=(tokens, g.kv_heads, g.value_dims))
            (ks, kscale, kwant), (vs, vscale, vwant) = store(k, g.kv_dtype), store(v, g.kv_dtype)
            self.k.append(kwant)
            self.v.append(vwant)
            for t in range(tokens):
                page, slot = self.numbers[first + t // p], t % p
                if packed:
                    self.pool_k[page, :, :, slot], self.pool_v[page, :, slot] = ks[t], vs[t]
                else:
                    self.pool_k[page, slot], self.pool_v[page, slot] = ks[t], vs[t]
                if kscale is not None and vscale is not None:
                    self.scales[0, page, :, slot], self.scales[1, page, :, slot] = kscale[t], vscale[t]
            first += pages

    def kv(self) -> KvAddresses:
        def strided(x: NDArray, page: int, head: int, slot: int) -> Strided:
            s = x.strides
            return Strided(address(x), s[page], s[head], s[slot])

        scales = [strided(x, 0, 1, 2) for x in self.scales] if self.geometry.kv_dtype == "int8" else [None, None]
        if self.geometry.layout == "packed":
            return KvAddresses(strided(self.pool_k, 0, 1, 3), strided(self.pool_v, 0, 1, 2), 16, *scales)
        return KvAddresses(strided(self.pool_k, 0, 2, 1), strided(self.pool_v, 0, 2, 1), self.page_tokens, *scales)

    def plan(self, tile_tokens: int, split: int = 0, kind: int = at.PARTIAL) -> PlanBuffer:
        g = self.geometry
        arrays: dict[str, list[int]] = {name: [] for name in at.ARRAYS}
        arrays["row_page"].append(0)
        arrays["merge_indptr"].append(0)
        slots = token = 0
        for r, ((queries, keys), pages) in enumerate(zip(self.lengths, self.pages, strict=True)):
            arrays["row_page"].append(arrays["row_page"][-1] + pages)
            arrays["row_kv_tokens"].append(keys)
            arrays["page_position"] += [i * self.page_tokens for i in range(pages)]
            arrays["token_position"] += [keys - queries + i for i in range(queries)]
            arrays["token_request"] += [r] * queries
            arrays["token_row"] += list(range(queries))
            cuts = list(range(0, keys, split)) if split and keys else [0]
            for t in range(0, queries, tile_tokens):
                n = min(tile_tokens, queries - t)
                first = len(arrays["range_start"])
                for c in cuts:
                    if keys:
                        arrays["range_start"].append(c)
                        arrays["range_end"].append(min(c + split, keys) if split else keys)
                        arrays["range_kind"].append(kind)
                for h in range(g.kv_heads):
                    parts = []
                    for i, c in enumerate(cuts):
                        parts.append(slots)
                        item = {"row": r, "head": h, "token": token + t, "tokens": n, "start": c, "end": 0, "worker": 0, "flags": 0}
                        item |= {"slot": slots if len(cuts) > 1 else -1, "range": first + i, "ranges": int(keys > 0)}
                        for name, value in item.items():
                            arrays["item_" + name].append(value)
                        slots += n if len(cuts) > 1 else 0
                    if len(cuts) > 1:
                        for i in range(n):
                            arrays["merge_token"].append(token + t + i)
                            arrays["merge_head"].append(h)
                            arrays["merge_part"] += [p + i for p in parts]
                            arrays["merge_indptr"].append(len(arrays["merge_part"]))
            token += queries
        arrays["page"] = list(self.numbers)
        arrays["order"] = list(range(len(arrays["item_row"])))[::-1]
        n = {name: len(a) + 1 for name, a in arrays.items()}
        buffer = PlanBuffer(
            PlanCapacity(n["row_page"], n["token_row"], n["page"], n["order"], n["range_end"], n["merge_token"], n["merge_part"])
        )
        for name, a in arrays.items():
            buffer.array(name)[: len(a)] = a
        header = {at.H_GENERATION: 1, at.H_ITEMS: n["order"] - 1, at.H_MERGES: n["merge_token"] - 1, at.H_GROUP: g.group}
        for word, value in header.items():
            buffer.words[word] = value
        self.part_rows = slots
        return buffer

    def run(self, attention: CpuAttention, plan: PlanBuffer, team: object = None) -> tuple[NDArray, NDArray]:
        g = self.geometry
        out = np.full((len(self.q), g.heads, g.value_dims), 77, STORE[g.out_dtype])
        lse = np.full((len(self.q), g.heads), 77, np.float32)
        strides = [(address(x), x.strides[0], x.strides[1]) for x in (self.q, out, lse)]
        attention.run(plan.address, strides[0], self.kv(), strides[1], strides[2], team=team)  # type: ignore[arg-type]
        return out, lse

    def want(self, visible: Visible | None = None, score: Callable[..., Array] | None = None) -> tuple[Array, Array]:
        """Softmax attention in float64."""
        g = self.geometry
        outs, lses, first = [], [], 0
        for r, (queries, keys) in enumerate(self.lengths):
            q = self.want_q[first : first + queries]
            o, logs = np.zeros((queries, g.heads, g.value_dims)), np.full((queries, g.heads), -np.inf)
            positions, slots = keys - queries + np.arange(queries)[:, None], np.arange(keys)[None]
            for h in range(g.heads):
                s = q[:, h] @ self.k[r][:, h // g.group].T / np.sqrt(g.dims)
                if score is not None:
                    s = score(s, h, positions, slots)
                if visible is not None:
                    s = np.where(visible(r, h, queries, positions, slots), s, -np.inf)
                if keys:
                    top = np.maximum(s.max(1), -1e300)
                    w = np.exp(s - top[:, None])
                    d = w.sum(1)
                    with np.errstate(divide="ignore", invalid="ignore"):
                        o[:, h] = np.where(d[:, None] > 0, (w @ self.v[r][:, h // g.group]) / d[:, None], 0)
                        logs[:, h] = np.where(d > 0, top + np.log(d), -np.inf)
            outs.append(o)
            lses.append(logs)
            first += queries
        return np.concatenate(outs), np.concatenate(lses)


def causal(r: int, h: int, rows: int, q: NDArray[np.int64], kv: NDArray[np.int64]) -> NDArray[np.bool_]:
    return kv <= q
