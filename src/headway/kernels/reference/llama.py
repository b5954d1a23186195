"""A whole Llama, forward over one sequence, in plain NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from headway.kernels.reference.arithmetic import matmul
from headway.kernels.reference.blocks import attention, rms_norm, rope, silu_gate

Array = npt.NDArray[Any]
Product = Callable[[str, Array, Array], Array]
"""(name of the weight, x [rows, inputs], w [outputs, inputs]) -> [rows, outputs]; lets a test put quantised activations in."""


class LlamaShape(Protocol):
    """What the reference needs of `headway.models.architecture.LlamaConfig`, which lives a floor above."""

    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def rope_base(self) -> float: ...
    @property
    def rope_dim(self) -> int: ...
    @property
    def rope_pairs(self) -> Literal["adjacent", "half"]: ...
    @property
    def norm_eps(self) -> float: ...


class _Tensor(Protocol):
    def dequantise(self) -> npt.NDArray[np.float32]: ...


class _File(Protocol):
    @property
    def tensors(self) -> Mapping[str, _Tensor]: ...


class _Model(Protocol):
    @property
    def file(self) -> _File: ...


def load_weights(model: _Model) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor of an opened model as float32, by its name in the file (0.54 GB for SmolLM2-135M)."""
    return {name: tensor.dequantise() for name, tensor in model.file.tensors.items()}


def llama_forward(
    config: LlamaShape,
    weights: Mapping[str, Array],
    ids: Sequence[int] | Array,
    dtype: npt.DTypeLike = np.float64,
    positions: Sequence[int] | Array | None = None,
    product: Product | None = None,
) -> Array:
    """Logits [len(positions), vocab] after each of `ids` (of all of them if `positions` is None), from an empty cache.

    Weights are rows as in GGUF: (outputs, inputs), heads one after the other. `product` replaces the matrix product.
    """
    multiply: Product = product or (lambda name, x, w: matmul(x, w, dtype))
    tokens = np.asarray(ids, np.int64)
    order = np.arange(len(tokens))
    factors = weights.get("rope_freqs.weight")
    x = weights["token_embd.weight"][tokens].astype(dtype)
    for layer in range(config.layers):

        def linear(name: str, value: Array, layer: int = layer) -> Array:
            full = f"blk.{layer}.{name}.weight"
            return multiply(full, value, weights[full])

        normed = rms_norm(x, weights[f"blk.{layer}.attn_norm.weight"], config.norm_eps, dtype)
        q = linear("attn_q", normed).reshape(-1, config.heads, config.head_dim)
        k = linear("attn_k", normed).reshape(-1, config.kv_heads, config.head_dim)
        v = linear("attn_v", normed).reshape(-1, config.kv_heads, config.head_dim)
        q = rope(q, order, config.rope_base, config.rope_dim, config.rope_pairs, factors, dtype)
        k = rope(k, order, config.rope_base, config.rope_dim, config.rope_pairs, factors, dtype)
        mixed, _ = attention(q, k, v, order, dtype=dtype)
        x = x + linear("attn_output", mixed.reshape(len(tokens), -1))
        normed = rms_norm(x, weights[f"blk.{layer}.ffn_norm.weight"], config.norm_eps, dtype)
        x = x + linear("ffn_down", silu_gate(linear("ffn_gate", normed), linear("ffn_up", normed), dtype))
    last = x if positions is None else x[np.asarray(positions, np.int64)]
    head = "output.weight" if "output.weight" in weights else "token_embd.weight"
    return multiply(head, rms_norm(last, weights["output_norm.weight"], config.norm_eps, dtype), weights[head])


def log_softmax(logits: Array) -> Array:
    """Natural log-probabilities along the last axis, in float64."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
