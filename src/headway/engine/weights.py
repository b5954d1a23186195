"""A Llama model's matrices packed for the kernels, in one huge-page arena. Repacked from the file's blocks, never dequantised.

Knows which matrices run as one product: q, k and v one below the other, gate and up interleaved strip by strip.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.core.errors import ModelError
from headway.kernels.cpu.memory import Arena, address
from headway.kernels.cpu.pack import pack, padded_rows
from headway.kernels.cpu.products import QUANTISED, Kind, strip_bytes
from headway.models.architecture import LlamaConfig
from headway.models.blocks import dequantise
from headway.models.gguf import GgufTensor

KINDS: dict[int, Kind] = {0: "f32", 1: "f16", 3: "q4_1", 8: "q8_0", 30: "bf16"}  # ggml type numbers
TYPE_NAMES = "F32, F16, BF16, Q4_1, Q8_0"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Matrix:
    """One product's packed weights. `outputs` counts real rows of each part, in order; `address` is where its first strip lies."""

    kind: Kind
    inputs: int
    outputs: tuple[int, ...]
    padded: int
    address: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Layer:
    """`qkv` is one product, or three where the file mixes types (then in the order q, k, v)."""

    attention_norm: NDArray[np.float32]
    qkv: tuple[Matrix, ...]
    output: Matrix
    ffn_norm: NDArray[np.float32]
    gate_up: Matrix
    down: Matrix


class PackedWeights:
    """All of a model's weights in kernel layout. `n_bytes` is the arena's size."""

    def __init__(self, config: LlamaConfig, tensors: dict[str, GgufTensor], *, workers: int = 2, progress: Progress | None = None) -> None:
        _check(config)
        self.config = config
        jobs: list[tuple[NDArray[np.uint8], Callable[[], NDArray[np.uint8]]]] = []
        self._arena = Arena(_packed_bytes(config, tensors))
        self.n_bytes = self._arena.n_bytes

        def matrix(names: Sequence[str], interleave: bool = False) -> Matrix:
            parts = [tensors[n] for n in names]
            kind, inputs = _kind(parts[0]), parts[0].shape[-1]
            outputs = tuple(t.shape[0] for t in parts)
            padded = sum(padded_rows(n) for n in outputs) if interleave else padded_rows(sum(outputs))
            target = self._arena.take(padded // 16 * strip_bytes(kind, inputs))

            def build() -> NDArray[np.uint8]:
                if interleave:
                    return np.stack([pack(kind, t.data, inputs) for t in parts], axis=1)
                rows = parts[0].data if len(parts) == 1 else np.concatenate([t.data for t in parts])
                return pack(kind, rows, inputs)

            jobs.append((target, build))
            return Matrix(kind, inputs, outputs, padded, address(target), target.nbytes)

        def vector(name: str) -> NDArray[np.float32]:
            t = tensors[name]
            values: NDArray[np.float32] = self._arena.take(4 * t.shape[-1], np.float32)
            values[:] = dequantise(t.ggml_type, t.data, t.shape[-1]).ravel()
            return values

        layers = []
        for i in range(config.layers):
            prefix = f"blk.{i}."
            qkv = [prefix + f"attn_{n}.weight" for n in "qkv"]
            same = len({tensors[n].ggml_type for n in qkv}) == 1
            layers.append(
                Layer(
                    vector(prefix + "attn_norm.weight"),
                    (matrix(qkv),) if same else tuple(matrix([n]) for n in qkv),
                    matrix([prefix + "attn_output.weight"]),
                    vector(prefix + "ffn_norm.weight"),
                    matrix([prefix + "ffn_gate.weight", prefix + "ffn_up.weight"], interleave=True),
                    matrix([prefix + "ffn_down.weight"]),
                )
            )
        self.layers = tuple(layers)
        self.output_norm = vector("output_norm.weight")
        self.embedding = matrix(["token_embd.weight"])
        self.head = self.embedding if config.tied_head else matrix(["output.weight"])
        self._fill(jobs, workers, progress)

    @staticmethod
    def _fill(jobs: list[tuple[NDArray[np.uint8], Callable[[], NDArray[np.uint8]]]], workers: int, progress: Progress | None) -> None:
        def one(job: tuple[NDArray[np.uint8], Callable[[], NDArray[np.uint8]]]) -> None:
            target, build = job
            target[:] = build().reshape(-1)

        with ThreadPoolExecutor(max(1, workers)) as pool:  # NumPy copies without the GIL
            for done, _ in enumerate(pool.map(one, jobs), 1):
                if progress:
                    progress(done, len(jobs))


def _kind(tensor: GgufTensor) -> Kind:
    if tensor.ggml_type not in KINDS:
        raise ModelError(
            f"tensor {tensor.name} has ggml type {tensor.ggml_type}, for which there is no kernel yet; this engine runs {TYPE_NAMES}"
        )
    return KINDS[tensor.ggml_type]


def _check(config: LlamaConfig) -> None:
    for name, value in (("embedding length", config.width), ("feed-forward length", config.ffn_width)):
        if value % 32:
            raise ModelError(f"{config.name}: {name} {value} is not a multiple of 32, which the kernels need")
    if config.head_dim % 16 or config.rope_dim % 16:
        raise ModelError(
            f"{config.name}: head size {config.head_dim} (rotated {config.rope_dim}) is not a multiple of 16, which the kernels need"
        )


def _packed_bytes(config: LlamaConfig, tensors: dict[str, GgufTensor]) -> int:
    total = 1 << 16
    for t in tensors.values():
        inputs = t.shape[-1]
        if len(t.shape) == 1:
            total += 4 * inputs + 64
            continue
        kind = _kind(t)
        if kind in QUANTISED and inputs % 32:
            raise ModelError(f"tensor {t.name} has rows of {inputs} elements, not a multiple of the block of 32")
        total += (padded_rows(t.shape[0]) + 32) // 16 * strip_bytes(kind, inputs) + 64
    for i in range(config.layers):
        gate, up = (tensors[f"blk.{i}.ffn_{n}.weight"] for n in ("gate", "up"))
        if gate.ggml_type != up.ggml_type:
            raise ModelError(f"layer {i}: gate is type {gate.ggml_type} and up is type {up.ggml_type}; one product needs one type")
    return total
