"""SmolLM2 beside transformers + torch on the same weights: what `exact` and `fast` may differ by (DESIGN.md section 5, issue 3)."""

import json
import os
import subprocess
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from tests.engine.programs import build, logits_of
from tests.support import smollm2_path

from headway.engine.program import Accuracy
from headway.kernels.reference import log_softmax
from headway.models.model import open_model

pytestmark = [pytest.mark.peer, pytest.mark.model]
ROOT = Path(__file__).parents[2]
POSITIONS = 256
PASSAGES = {"emma.txt": 9000, "pride-and-prejudice.txt": 21000}  # where each begins, in characters; public domain (SOURCES.md)
BOUNDS: dict[Accuracy, tuple[float, float]] = {
    "exact": (1e-4, 0.97),
    "fast": (5e-3, 0.97),
}  # mean KL in nats, share of equal top tokens
CHUNKS = [96, 100, 60]  # as a prompt arrives: in pieces


@pytest.fixture(scope="module")
def prompts() -> dict[str, list[int]]:
    model = open_model(smollm2_path())
    data = files("headway.bench").joinpath("data")
    texts = {name: data.joinpath(name).read_text(encoding="utf-8")[at : at + 8 * POSITIONS] for name, at in PASSAGES.items()}
    ids = {name: model.tokenizer.encode(text)[:POSITIONS] for name, text in texts.items()}
    model.close()
    assert all(len(one) == POSITIONS for one in ids.values())
    return ids


@pytest.fixture(scope="module")
def theirs(prompts: dict[str, list[int]], peers_torch: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("oracle")
    asked, answered = folder / "prompts.json", folder / "log_probs.npz"
    asked.write_text(json.dumps(prompts))
    command = [str(peers_torch), "-m", "tests.models.transformers_oracle", str(smollm2_path()), str(asked), str(answered)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    with np.load(answered) as scores:
        return {name: scores[name] for name in prompts}


@pytest.mark.parametrize("accuracy", BOUNDS)
@pytest.mark.parametrize("rows", ["prompt", "generated"])
def test_the_distribution_after_every_token(
    accuracy: Accuracy, rows: str, prompts: dict[str, list[int]], theirs: dict[str, np.ndarray]
) -> None:
    built = build(smollm2_path(), accuracy=accuracy, pages=64)
    border = None if rows == "prompt" else 0
    ours = {name: log_softmax(logits_of(built, ids, CHUNKS, np.arange(64)[None], border)) for name, ids in prompts.items()}
    built.close()
    p, q = (np.concatenate([side[name] for name in prompts]).astype(np.float64) for side in (theirs, ours))
    divergence, same = (np.exp(p) * (p - q)).sum(-1), (p.argmax(-1) == q.argmax(-1)).mean()
    print(f"{accuracy}, {rows} rows: KL mean {divergence.mean():.2e} max {divergence.max():.2e}, same top token {same:.3f} of {len(p)}")
    assert len(p) == POSITIONS * len(PASSAGES)
    assert divergence.mean() <= BOUNDS[accuracy][0]
    assert same >= BOUNDS[accuracy][1]
