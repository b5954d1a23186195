"""SmolLM2-135M through the step program: golden log-probs, probe loss, divergence from an independent implementation, invariance."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.engine.programs import Built, Span, batch, build, logits_of
from tests.support import smollm2_path

from headway.engine.program import Accuracy
from headway.kernels.reference import llama_forward, load_weights, log_softmax

pytestmark = pytest.mark.model
GOLDEN = [504, 3575, 282, 4649, 314]  # "The capital of France is"
GOLDEN_LOG_PROBS = {
    7042: -0.2581,
    260: -2.7408,
    4528: -4.3844,
    2250: -4.6199,
    1315: -4.6778,
}  # two other implementations
CHAT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198]
CHAT += [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
PROBE_LOSS = 2.9822
# largest error of a golden log-prob, of the probe's loss, mean KL to float32 (docs/engine.md)
BOUNDS: dict[Accuracy, tuple[float, float, float]] = {"exact": (5e-3, 0.002, 1e-4), "fast": (0.05, 0.01, 5e-3)}
TABLE = np.arange(64)[None]


@pytest.fixture(scope="module", params=["exact", "fast"])
def built(request: pytest.FixtureRequest) -> Iterator[Built]:
    made = build(smollm2_path(), accuracy=request.param, pages=64)
    yield made
    made.close()


@pytest.fixture(scope="module")
def probe() -> list[int]:
    ids: list[int] = json.loads((Path(__file__).parents[1] / "models/golden/prompts.json").read_text(encoding="utf-8"))["probe"]
    return ids


@pytest.fixture(scope="module")
def oracle(probe: list[int]) -> np.ndarray:
    from headway.models.model import open_model

    model = open_model(smollm2_path())
    return log_softmax(llama_forward(model.config, load_weights(model), probe, dtype=np.float32))


def test_golden_log_probabilities(built: Built) -> None:
    got = log_softmax(logits_of(built, GOLDEN, [5], TABLE)[-1])
    assert max(abs(got[i] - want) for i, want in GOLDEN_LOG_PROBS.items()) <= BOUNDS[built.program.accuracy][0]


def test_probe_text(built: Built, probe: list[int], oracle: np.ndarray) -> None:
    got = log_softmax(logits_of(built, probe, [len(probe)], TABLE))
    _, loss_bound, divergence_bound = BOUNDS[built.program.accuracy]
    targets = np.array(probe[1:])
    loss = -got[np.arange(len(targets)), targets].mean()
    divergence = (np.exp(oracle) * (oracle - got)).sum(-1)
    same = (oracle.argmax(-1) == got.argmax(-1)).mean()
    print(
        f"{built.program.accuracy}: loss {loss:.4f}, KL mean {divergence.mean():.2e} max {divergence.max():.2e}, same top token {same:.3f}"
    )
    assert abs(loss - PROBE_LOSS) <= loss_bound
    assert divergence.mean() <= divergence_bound
    assert same >= 0.97


def test_the_generated_class_alone(built: Built, probe: list[int], oracle: np.ndarray) -> None:
    """Every row of class generated: two planes in both modes."""
    got = log_softmax(logits_of(built, probe, [len(probe)], TABLE, generated_from=0))
    assert (np.exp(oracle) * (oracle - got)).sum(-1).mean() <= 1e-4


def test_exact_says_paris(built: Built) -> None:
    if built.program.accuracy != "exact":
        pytest.skip("one-plane prompt rows start this answer differently")
    logits_of(built, CHAT, [len(CHAT)], TABLE)
    said: list[int] = []
    last = int(built.program.logits[len(CHAT) - 1].argmax())
    while last != 2 and len(said) < 12:
        said.append(last)
        made, _ = batch([Span(0, len(CHAT) + len(said) - 1, [last], generated=True)], TABLE)
        built.program.execute(made)
        last = int(built.program.logits[0].argmax())
    assert built.model.tokenizer.decode(said) == "The capital of France is Paris."


def test_bits_do_not_depend_on_chunks_or_neighbours(built: Built, probe: list[int]) -> None:
    ids = probe[:200]
    whole = logits_of(built, ids, [200], TABLE, 180)
    assert (logits_of(built, ids, [16, 100, 84], TABLE, 180) == whole).all()
    tables = np.arange(64).reshape(2, 32)
    made, rows = batch([Span(1, 0, probe[:60]), Span(0, 0, ids[:180]), Span(0, 180, ids[180:], generated=True)], tables)
    built.program.execute(made)
    assert (built.program.logits[rows[1]] == whole[:180]).all()
    assert (built.program.logits[rows[2]] == whole[180:]).all()
