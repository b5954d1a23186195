"""Writes golden/smollm2.json: log-probabilities of SmolLM2 by transformers + torch from the same weights, the independent oracle.

Run where torch and transformers are installed (they are no dependency of Headway), from the root of the repository:
    HEADWAY_TEST_MODEL=FILE.gguf PYTHONPATH=src:. python -m tests.models.make_golden
The file is read with `headway.models.gguf` and dequantised; everything after that (RoPE, attention, norms) is transformers' own code. The
Q and K rows go back from GGUF's adjacent pairs to Hugging Face's halves, so that a wrong pairing on either side shows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from tests.support import smollm2_path

from headway.models.gguf import GgufFile

HERE = Path(__file__).parent / "golden"
TOP = 20
CASES = {  # name -> positions whose distribution is kept
    "capital": [0, 1, 2, 3, 4],
    "chat": [36],
    "probe": [0, 1, 7, 31, 63, 64, 100, 127, 128, 200, 255, 256, 300, 326],
}
NAMES = {
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


def main() -> int:
    import torch
    import transformers

    torch.set_num_threads(1)
    file = GgufFile(smollm2_path())
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
        for theirs, ours in NAMES.items():
            w = file.tensors[f"blk.{layer}.{ours}.weight"].dequantise()
            if ours in ("attn_q", "attn_k"):
                count = heads if ours == "attn_q" else kv_heads
                w = w.reshape(count, w.shape[0] // count // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
            state[f"model.layers.{layer}.{theirs}.weight"] = w
    model.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in state.items()}, strict=True)
    base = model.config.to_dict().get("rope_parameters", {"rope_theta": model.config.to_dict().get("rope_theta")})["rope_theta"]
    if base != keys["llama.rope.freq_base"]:
        raise SystemExit(f"transformers did not take the RoPE base: it has {base}")
    prompts = json.loads((HERE / "prompts.json").read_text())
    cases = {}
    for name, positions in CASES.items():
        ids = prompts[name]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        scores = torch.log_softmax(logits, dim=-1)
        rows = []
        for position in positions:
            top = torch.topk(scores[position], TOP)
            rows.append(
                {
                    "position": position,
                    "logsumexp": round(float(torch.logsumexp(logits[position], dim=-1)), 6),
                    "ids": top.indices.tolist(),
                    "log_probs": [round(value, 6) for value in top.values.tolist()],
                }
            )
        targets = torch.tensor(ids[1:])
        loss = -scores[:-1].gather(1, targets[:, None]).mean().item()
        cases[name] = {"loss": round(loss, 6), "top1": scores.argmax(dim=-1).tolist(), "rows": rows}
    made_with = {"torch": torch.__version__, "transformers": transformers.__version__, "model": keys["general.name"]}
    (HERE / "smollm2.json").write_text(json.dumps({"made_with": made_with, "cases": cases}, separators=(",", ":")) + "\n")
    print({name: case["loss"] for name, case in cases.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
