"""transformers + torch on the weights of our GGUF file: the independent implementation that SmolLM2 is compared with.

Runs in the peers' environment (torch is no dependency of Headway), from the root of the repository, with PYTHONPATH=src:. :
    python -m tests.models.transformers_oracle FILE.gguf PROMPTS.json OUT.npz
PROMPTS.json is {name: token ids}; OUT.npz gets {name: log-probabilities [positions, vocabulary] float32}. The file is read and dequantised
by `headway.models.gguf`; everything after that (RoPE, attention, norms) is transformers' own code. The Q and K rows go back from GGUF's
adjacent pairs to Hugging Face's halves, so that a wrong pairing on either side shows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headway.models.gguf import GgufFile

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def load(path: Path) -> Callable[[Sequence[int]], Any]:
    """A function from token ids to logits [positions, vocabulary] (a torch tensor, float64), for the Llama in the GGUF file `path`."""
    import torch
    import transformers

    torch.set_num_threads(1)
    file = GgufFile(path)
    keys = file.metadata
    heads, kv_heads = keys["llama.attention.head_count"], keys["llama.attention.head_count_kv"]
    config = transformers.LlamaConfig(
        vocab_size=keys["llama.vocab_size"],
        hidden_size=keys["llama.embedding_length"],
        intermediate_size=keys["llama.feed_forward_length"],
        num_hidden_layers=keys["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=keys["llama.context_length"],
        rms_norm_eps=keys["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=keys["llama.rope.freq_base"],
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).float().eval()
    state = {
        "model.embed_tokens.weight": file.tensors["token_embd.weight"].dequantise(),
        "lm_head.weight": file.tensors["token_embd.weight"].dequantise(),
        "model.norm.weight": file.tensors["output_norm.weight"].dequantise(),
    }
    for layer in range(config.num_hidden_layers):
        for theirs, ours in _NAMES.items():
            w = file.tensors[f"blk.{layer}.{ours}.weight"].dequantise()
            if ours in ("attn_q", "attn_k"):
                count = heads if ours == "attn_q" else kv_heads
                w = w.reshape(count, w.shape[0] // count // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
            state[f"model.layers.{layer}.{theirs}.weight"] = w
    model.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in state.items()}, strict=True)
    base = model.config.to_dict().get("rope_parameters", {"rope_theta": model.config.to_dict().get("rope_theta")})["rope_theta"]
    if base != keys["llama.rope.freq_base"]:
        raise SystemExit(f"transformers did not take the RoPE base: it has {base}")

    def logits(ids: Sequence[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([list(ids)])).logits[0].double()

    return logits


def main() -> int:
    import torch

    model, prompts, out = (Path(argument) for argument in sys.argv[1:])
    logits = load(model)
    scores = {name: torch.log_softmax(logits(ids), dim=-1).float().numpy() for name, ids in json.loads(prompts.read_text()).items()}
    np.savez(out, **scores)
    return 0


if __name__ == "__main__":
    sys.exit(main())
