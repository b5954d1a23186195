"""What tests of several rooms share: a writer of tiny random GGUF models, and the way to the one real model.

The writer follows the container's specification on its own (it shares no code with `headway.models.gguf`), so that reader and writer
cannot agree on a mistake; the tests of the models room also read its files with the `gguf` package.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Ids 0, 1 and 2 of every tiny model, as in SmolLM2."""

TYPE_NUMBERS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "BF16": 30}
_K_BLOCKS = {"Q4_K": (144, 0), "Q5_K": (176, 0), "Q6_K": (210, 208)}


def smollm2_path() -> Path:
    """The real model: HEADWAY_TEST_MODEL if set, else the pulled one; skips the test where there is neither."""
    named = os.environ.get("HEADWAY_TEST_MODEL")
    if named:
        return Path(named)
    from headway.core.errors import HeadwayError
    from headway.models import hub

    try:
        return hub.path_of("smollm2-135m")
    except HeadwayError as error:
        import pytest  # here, so that make_golden runs where pytest is not installed

        pytest.skip(f"needs the SmolLM2 file: {error} (or set HEADWAY_TEST_MODEL)")


def tiny_model(
    path: str | Path,
    *,
    seed: int,
    layers: int = 2,
    width: int = 64,
    ffn: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    vocab: int = 320,
    weight_type: str = "Q4_1",
    head_type: str | None = None,
    tied_head: bool = True,
    rope_dim: int | None = None,
    rope_base: float = 10_000.0,
    rope_freqs: npt.NDArray[np.float32] | None = None,
    context_tokens: int = 1024,
    chat_template: str | None = CHATML,
) -> Path:
    """Writes a Llama of random weights with a byte-level tokenizer (ids 0-2 control, 256 bytes, then merges) and ChatML; returns `path`.

    Same arguments, same bytes. `head_type` is the type of token_embd (and of output where the head is not tied), `weight_type` of the
    other matrices; any type of `TYPE_NUMBERS` whose block divides the row.
    """
    rng = np.random.default_rng([seed, 0x4757])
    head_type = head_type or weight_type
    tokens, merges = tiny_vocabulary(vocab)
    tensors: list[tuple[str, str, npt.NDArray[np.float32]]] = []

    def matrix(name: str, rows: int, columns: int, kind: str, deviation: float) -> None:
        tensors.append((name, kind, rng.standard_normal((rows, columns), np.float32) * np.float32(deviation)))

    def norm(name: str) -> None:
        tensors.append((name, "F32", (1 + 0.1 * rng.standard_normal(width, np.float32)).astype(np.float32)))

    matrix("token_embd.weight", vocab, width, head_type, 2.5 / np.sqrt(width))  # logits with a deviation near 2.5: neither flat nor certain
    for index in range(layers):
        norm(f"blk.{index}.attn_norm.weight")
        matrix(f"blk.{index}.attn_q.weight", heads * head_dim, width, weight_type, 1.5 / np.sqrt(width))
        matrix(f"blk.{index}.attn_k.weight", kv_heads * head_dim, width, weight_type, 1.5 / np.sqrt(width))
        matrix(f"blk.{index}.attn_v.weight", kv_heads * head_dim, width, weight_type, 1 / np.sqrt(width))
        matrix(f"blk.{index}.attn_output.weight", width, heads * head_dim, weight_type, 0.7 / np.sqrt(heads * head_dim))
        norm(f"blk.{index}.ffn_norm.weight")
        matrix(f"blk.{index}.ffn_gate.weight", ffn, width, weight_type, 1 / np.sqrt(width))
        matrix(f"blk.{index}.ffn_up.weight", ffn, width, weight_type, 1 / np.sqrt(width))
        matrix(f"blk.{index}.ffn_down.weight", width, ffn, weight_type, 0.7 / np.sqrt(ffn))
    norm("output_norm.weight")
    if not tied_head:
        matrix("output.weight", vocab, width, head_type, 2.5 / np.sqrt(width))
    if rope_freqs is not None:
        tensors.append(("rope_freqs.weight", "F32", np.asarray(rope_freqs, np.float32)))
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": f"tiny {seed}",
        "llama.block_count": layers,
        "llama.context_length": context_tokens,
        "llama.embedding_length": width,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.key_length": head_dim,
        "llama.attention.value_length": head_dim,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": rope_base,
        "llama.rope.dimension_count": rope_dim or head_dim,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3] * len(CONTROL_TOKENS) + [1] * (vocab - len(CONTROL_TOKENS)), np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = chat_template
    encoded = [(name, TYPE_NUMBERS[kind], values.shape, encode(kind, values, rng)) for name, kind, values in tensors]
    where = Path(path)
    where.write_bytes(gguf_bytes(metadata, encoded))
    return where


def tiny_vocabulary(vocab: int) -> tuple[list[str], list[str]]:
    """(tokens, merges): control tokens, the 256 bytes in GPT-2's printable alphabet, then pairs of letters up to `vocab`."""
    alphabet = byte_alphabet()
    tokens = [*CONTROL_TOKENS, *alphabet]
    if vocab < len(tokens):
        raise ValueError(f"a tiny vocabulary needs at least {len(tokens)} tokens, got {vocab}")
    letters = "etaoinshrdlu"
    space = alphabet[32]
    pairs = [f"{space} {b}" for b in letters] + [f"{a} {b}" for a in letters for b in letters]
    pairs += [f"{a}{b} {c}" for a in letters for b in letters for c in letters]
    merges = pairs[: vocab - len(tokens)]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += [f"<unused{index}>" for index in range(vocab - len(tokens))]
    return tokens, merges


def byte_alphabet() -> list[str]:
    """GPT-2's printable character of each byte: itself where it prints in Latin-1, else the next one from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def gguf_bytes(
    metadata: dict[str, Any], tensors: list[tuple[str, int, tuple[int, ...], bytes]], alignment: int = 32, version: int = 3
) -> bytes:
    """A GGUF file of `metadata` and `tensors` (name, ggml type, row-major shape, data)."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _string(key) + _value(value)
    offset = 0
    for name, kind, shape, data in tensors:
        out += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)) + struct.pack("<IQ", kind, offset)
        offset += -(-len(data) // alignment) * alignment
    for _, _, _, data in tensors:
        out += bytes(-len(out) % alignment) + data
    return bytes(out)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, np.ndarray):
        kinds = {"int32": 5, "float32": 6, "uint8": 0, "uint32": 4}
        return struct.pack("<IIQ", 9, kinds[value.dtype.name], len(value)) + value.tobytes()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_string(item) for item in value)
    if isinstance(value, list):  # arrays of arrays
        return struct.pack("<IIQ", 9, 9, len(value)) + b"".join(_value(item)[4:] for item in value)
    raise TypeError(f"no GGUF type for {type(value)}")


def encode(kind: str, values: npt.NDArray[np.float32], rng: np.random.Generator) -> bytes:
    """`values` in the block format `kind`; K-quants get random blocks of the same spread (their quantiser is not worth having here)."""
    if kind == "F32":
        return values.astype("<f4").tobytes()
    if kind == "F16":
        return values.astype("<f2").tobytes()
    if kind == "BF16":
        bits = values.astype("<f4").view("<u4")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    if kind in _K_BLOCKS:
        return _random_k_blocks(kind, values, rng)
    blocks = values.reshape(-1, 32)
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    if kind == "Q8_0":
        scale = (largest / 127).astype("<f2")
        return _pack(scale, _quantise(blocks, scale, 0, -127, 127).astype(np.int8).view(np.uint8))
    bits = 4 if kind.startswith("Q4") else 5
    top = (1 << bits) - 1
    if kind.endswith("_1"):
        scale, minimum = ((high - low) / top).astype("<f2"), low.astype("<f2")
        quants = _quantise(blocks - minimum.astype(np.float32), scale, 0, 0, top).astype(np.uint8)
        head = np.concatenate([scale.view(np.uint8), minimum.view(np.uint8)], axis=1)
    else:
        middle = 1 << (bits - 1)
        scale = (largest / (middle - 1)).astype("<f2")
        quants = _quantise(blocks, scale, middle, 0, top).astype(np.uint8)
        head = scale.view(np.uint8)
    if bits == 5:
        head = np.concatenate([head, np.packbits(quants >> 4, axis=1, bitorder="little")], axis=1)
    low_bits = quants & 15
    return np.concatenate([head, low_bits[:, :16] | low_bits[:, 16:] << 4], axis=1).tobytes()


def _quantise(values: npt.NDArray[np.float32], scale: npt.NDArray[Any], offset: int, low: int, high: int) -> npt.NDArray[np.float32]:
    step = scale.astype(np.float32)
    return np.clip(np.rint(np.divide(values, step, out=np.zeros_like(values), where=step != 0)) + offset, low, high)


def _pack(scale: npt.NDArray[Any], quants: npt.NDArray[np.uint8]) -> bytes:
    return np.concatenate([scale.view(np.uint8), quants], axis=1).tobytes()


def _random_k_blocks(kind: str, values: npt.NDArray[np.float32], rng: np.random.Generator) -> bytes:
    size, scale_at = _K_BLOCKS[kind]
    count = values.size // 256
    blocks = rng.integers(0, 256, (count, size), np.uint8)
    spread = float(values.std())
    divisor = 74 * 18.5 if kind == "Q6_K" else 30 * 8 if kind == "Q4_K" else 30 * 16
    blocks[:, scale_at : scale_at + 2] = np.array([spread / divisor], "<f2").view(np.uint8)
    if kind != "Q6_K":
        blocks[:, 2:4] = np.array([spread / divisor * (7.5 if kind == "Q4_K" else 15.5)], "<f2").view(np.uint8)
    return blocks.tobytes()
