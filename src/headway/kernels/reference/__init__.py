"""Slow, obvious versions of every kernel in NumPy: the oracles of tests. They compute in float64 unless a dtype is given."""

from headway.kernels.reference.arithmetic import dequantise_activations, matmul, quantise_activations
from headway.kernels.reference.blocks import attention, rms_norm, rope, silu_gate
from headway.kernels.reference.llama import LlamaShape, llama_forward, load_weights, log_softmax

__all__ = [
    "LlamaShape",
    "attention",
    "dequantise_activations",
    "llama_forward",
    "load_weights",
    "log_softmax",
    "matmul",
    "quantise_activations",
    "rms_norm",
    "rope",
    "silu_gate",
]
