"""The configuration read from metadata, and everything that is refused instead of guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import smollm2_path, tiny_model

from headway.core.errors import ModelError
from headway.models import architecture, open_model
from headway.models.gguf import GgufFile


@pytest.fixture
def file(tmp_path: Path) -> GgufFile:
    return GgufFile(tiny_model(tmp_path / "m.gguf", seed=1))


def test_sizes_and_defaults(file: GgufFile) -> None:
    config = architecture.from_metadata(file.metadata, file.tensors)
    assert (config.layers, config.width, config.ffn_width, config.heads, config.kv_heads, config.head_dim) == (2, 64, 128, 4, 2, 32)
    assert config.vocab == 320 and config.rope_pairs == "adjacent" and config.tied_head and config.rope_dim == 32
    bare = {key: value for key, value in file.metadata.items() if key not in ("llama.rope.freq_base", "llama.rope.dimension_count")}
    assert architecture.from_metadata(bare, file.tensors) == config


def test_an_untied_head_and_frequency_factors(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 16, dtype=np.float32)
    model = open_model(tiny_model(tmp_path / "m.gguf", seed=1, tied_head=False, rope_freqs=factors))
    assert not model.config.tied_head
    np.testing.assert_array_equal(model.rope_freq_factors, factors)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "mamba"}, "'mamba' is not supported; supported: llama"),
    "count": ({"llama.block_count": 0}, "block_count is 0"),
    "type": ({"llama.attention.head_count": "4"}, "head_count is '4'"),
    "missing": ({"llama.feed_forward_length": None}, "feed_forward_length is None"),
    "heads": ({"llama.attention.head_count_kv": 3}, "cannot be shared"),
    "rope": ({"llama.rope.dimension_count": 34}, "rope.dimension_count 34"),
    "eps": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
    "scaling": ({"llama.rope.scaling.type": "yarn"}, "'yarn' is not supported"),
    "experts": ({"llama.expert_count": 8}, "8 experts"),
    "window": ({"llama.attention.sliding_window": 64}, "sliding_window 64"),
    "split": ({"split.count": 2}, "one of 2 parts"),
    "layers": ({"llama.block_count": 3}, r"missing tensors \[blk.N.attn_k.weight"),
    "width": ({"llama.feed_forward_length": 96}, "has the shape"),
    "vocabulary": ({"tokenizer.ggml.tokens": ["a"]}, "vocabulary has 1 tokens"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused(file: GgufFile, what: str) -> None:
    change, reason = REFUSED[what]
    with pytest.raises(ModelError, match=reason):
        architecture.from_metadata({**file.metadata, **change}, file.tensors)


def test_an_unknown_tensor_is_named_beside_the_known(file: GgufFile) -> None:
    with pytest.raises(ModelError, match=r"unknown tensors \[blk.N.attn_q.bias\].*known: token_embd.weight"):
        architecture.from_metadata(file.metadata, {**file.tensors, "blk.0.attn_q.bias": file.tensors["blk.0.attn_norm.weight"]})


@pytest.mark.model
def test_smollm2() -> None:
    config = open_model(smollm2_path()).config
    assert (config.layers, config.width, config.ffn_width, config.heads, config.kv_heads, config.head_dim) == (30, 576, 1536, 9, 3, 64)
    assert (config.vocab, config.context_tokens, config.rope_base, config.tied_head) == (49152, 8192, 1e5, True)
