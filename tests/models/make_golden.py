"""Writes golden/smollm2.json: log-probabilities of SmolLM2 by transformers + torch from the same weights, the independent oracle.

Run where torch and transformers are installed (they are no dependency of Headway), from the root of the repository:
    HEADWAY_TEST_MODEL=FILE.gguf PYTHONPATH=src:. python -m tests.models.make_golden
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.models.transformers_oracle import load
from tests.support import smollm2_path

from headway.models.gguf import GgufFile

HERE = Path(__file__).parent / "golden"
TOP = 20
CASES = {  # name -> positions whose distribution is kept
    "capital": [0, 1, 2, 3, 4],
    "chat": [36],
    "probe": [0, 1, 7, 31, 63, 64, 100, 127, 128, 200, 255, 256, 300, 326],
}


def main() -> int:
    import torch
    import transformers

    file = smollm2_path()
    logits_of = load(file)
    prompts = json.loads((HERE / "prompts.json").read_text())
    cases = {}
    for name, positions in CASES.items():
        ids = prompts[name]
        logits = logits_of(ids)
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
    made_with = {"torch": torch.__version__, "transformers": transformers.__version__, "model": GgufFile(file).metadata["general.name"]}
    (HERE / "smollm2.json").write_text(json.dumps({"made_with": made_with, "cases": cases}, separators=(",", ":")) + "\n")
    print({name: case["loss"] for name, case in cases.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
