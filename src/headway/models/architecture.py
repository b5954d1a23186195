"""What the model in a GGUF file is: its sizes and conventions, checked against its tensors.

Knows the Llama family (`general.architecture` "llama": Llama 1-3, SmolLM2, Mistral). Anything else is an error that names what was found
and what is known, never a guess: a wrong convention does not crash, it only makes the text bad.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headway.core.errors import ModelError
from headway.models.gguf import GgufTensor

RopePairs = Literal["adjacent", "half"]

ARCHITECTURES = ("llama",)
_GLOBAL_TENSORS = ("token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight")
_LAYER_TENSORS = (
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
)
_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(.+)")
MAX_LAYERS = 10_000
MAX_SIZE = 1 << 30  # of any dimension or context: far above every model, small enough for 32-bit positions


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes and conventions of one Llama-family model.

    `rope_pairs` says which elements of a head rotate together: "adjacent" (2j, 2j+1), as GGUF converters leave Llama weights, or "half"
    (j, j + rope_dim/2). `tied_head`: the LM head is the embedding matrix. `context_tokens`: longest sequence the model was trained for.
    """

    name: str
    layers: int
    width: int
    ffn_width: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens: int
    vocab: int
    rope_base: float
    rope_dim: int
    rope_pairs: RopePairs
    norm_eps: float
    tied_head: bool


class _Keys:
    """Typed access to the metadata of one architecture."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata, self.prefix = metadata, architecture + "."

    def whole(self, key: str, default: int | None = None, limit: int = MAX_SIZE) -> int:
        value = self.metadata.get(self.prefix + key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise ModelError(f"{self.prefix}{key} is {value!r}; expected a whole number from 1 to {limit}. The model file is incomplete.")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(self.prefix + key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise ModelError(f"{self.prefix}{key} is {value!r}; expected a positive number. The model file is incomplete.")
        return float(value)


def from_metadata(metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor]) -> LlamaConfig:
    """Reads and checks the configuration; `ModelError` for an unknown architecture, an unknown or missing tensor or a wrong shape."""
    found = metadata.get("general.architecture")
    if found not in ARCHITECTURES:
        raise ModelError(f"the architecture {found!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    keys = _Keys(metadata, found)
    _refuse_variants(metadata, found)
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(_unknown_message([], ["token_embd.weight"]))
    heads, width = keys.whole("attention.head_count"), keys.whole("embedding_length")
    head_dim = keys.whole("attention.key_length", default=width // heads)
    if keys.whole("attention.value_length", default=head_dim) != head_dim:
        raise ModelError("attention.value_length differs from attention.key_length; heads of unequal sizes are not supported")
    kv_heads = keys.whole("attention.head_count_kv", default=heads)
    rope_dim = keys.whole("rope.dimension_count", default=head_dim)
    if heads % kv_heads:
        raise ModelError(f"{heads} query heads cannot be shared among {kv_heads} KV heads: no whole number each")
    if rope_dim % 2 or rope_dim > head_dim:
        raise ModelError(f"rope.dimension_count {rope_dim} is not an even number up to the head size {head_dim}")
    name = metadata.get("general.name", found)
    config = LlamaConfig(
        name=name if isinstance(name, str) else found,
        layers=keys.whole("block_count", limit=MAX_LAYERS),
        width=width,
        ffn_width=keys.whole("feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context_tokens=keys.whole("context_length"),
        vocab=embedding.shape[0],
        rope_base=keys.real("rope.freq_base", default=10_000.0),
        rope_dim=rope_dim,
        rope_pairs="adjacent",
        norm_eps=keys.real("attention.layer_norm_rms_epsilon"),
        tied_head="output.weight" not in tensors,
    )
    _check_tensors(config, tensors)
    vocabulary = metadata.get("tokenizer.ggml.tokens")
    if isinstance(vocabulary, list) and len(vocabulary) != config.vocab:
        raise ModelError(f"the vocabulary has {len(vocabulary)} tokens but token_embd.weight has {config.vocab} rows")
    return config


def rope_freq_factors(tensors: Mapping[str, GgufTensor]) -> npt.NDArray[np.float32] | None:
    """float32 [rope_dim/2] by which the angle frequencies are divided (Llama 3.1's scaling), or None where the file has none."""
    tensor = tensors.get("rope_freqs.weight")
    return None if tensor is None else tensor.dequantise()


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the model must have, by name; a matrix is (outputs, inputs)."""
    query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer = {
        "attn_norm.weight": (config.width,),
        "attn_q.weight": (query, config.width),
        "attn_k.weight": (key_value, config.width),
        "attn_v.weight": (key_value, config.width),
        "attn_output.weight": (config.width, query),
        "ffn_norm.weight": (config.width,),
        "ffn_gate.weight": (config.ffn_width, config.width),
        "ffn_up.weight": (config.ffn_width, config.width),
        "ffn_down.weight": (config.width, config.ffn_width),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab, config.width), "output_norm.weight": (config.width,)}
    if not config.tied_head:
        shapes["output.weight"] = (config.vocab, config.width)
    for index in range(config.layers):
        shapes.update({f"blk.{index}.{name}": shape for name, shape in layer.items()})
    return shapes


def _refuse_variants(metadata: Mapping[str, Any], architecture: str) -> None:
    """Members of the family that share the name but compute something else."""
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(f"rope.scaling.type {scaling!r} is not supported; supported: none, and frequency factors in rope_freqs.weight")
    if metadata.get(f"{architecture}.expert_count", 0):
        raise ModelError(f"{metadata[f'{architecture}.expert_count']} experts: mixtures of experts are not supported; use a dense model")
    window, context = metadata.get(f"{architecture}.attention.sliding_window", 0), metadata.get(f"{architecture}.context_length", 0)
    if isinstance(window, int) and isinstance(context, int) and 0 < window < context:
        raise ModelError(f"attention.sliding_window {window} below the context of {context} is not supported for {architecture}")
    if metadata.get("split.count", 1) > 1:
        raise ModelError(f"the file is one of {metadata['split.count']} parts; merge them first (gguf-split --merge)")


def _check_tensors(config: LlamaConfig, tensors: Mapping[str, GgufTensor]) -> None:
    expected = expected_shapes(config)
    unknown = [name for name in tensors if name not in expected and name != "rope_freqs.weight"]
    missing = [name for name in expected if name not in tensors]
    if unknown or missing:
        raise ModelError(_unknown_message(unknown, missing))
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ModelError(f"the tensor {name!r} has the shape {tensors[name].shape}, expected {shape} (outputs, inputs)")
    factors = tensors.get("rope_freqs.weight")
    if factors is not None and (factors.shape != (config.rope_dim // 2,) or factors.type_name != "F32"):
        raise ModelError(f"rope_freqs.weight is {factors.type_name} {factors.shape}, expected F32 ({config.rope_dim // 2},)")
    for name, tensor in tensors.items():
        if len(tensor.shape) == 1 and tensor.type_name != "F32":
            raise ModelError(f"the vector {name!r} is {tensor.type_name}; vectors must be F32")


def _unknown_message(unknown: list[str], missing: list[str]) -> str:
    kinds = sorted({_LAYER.sub(r"blk.N.\2", name) for name in unknown})
    absent = sorted({_LAYER.sub(r"blk.N.\2", name) for name in missing})
    known = ", ".join(_GLOBAL_TENSORS + tuple(f"blk.N.{name}" for name in _LAYER_TENSORS))
    return f"not a plain Llama: unknown tensors [{', '.join(kinds[:10])}], missing tensors [{', '.join(absent[:10])}]; known: {known}"
