"""SmolLM2 through our reader, tokenizer and reference, against transformers' numbers for the same weights (golden/, see make_golden.py)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.support import smollm2_path

from headway.kernels import reference
from headway.models import Model, open_model

pytestmark = pytest.mark.model
ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
PROMPTS: dict[str, list[int]] = json.loads((GOLDEN / "prompts.json").read_text())
CASES: dict[str, Any] = json.loads((GOLDEN / "smollm2.json").read_text())["cases"]


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(smollm2_path())


@pytest.fixture(scope="module")
def weights(model: Model) -> dict[str, npt.NDArray[np.float32]]:
    return reference.load_weights(model)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_agrees_with_transformers(model: Model, weights: dict[str, npt.NDArray[np.float32]], case: str) -> None:
    ids, golden = np.array(PROMPTS[case]), CASES[case]
    logits = reference.llama_forward(model.config, weights, ids, np.float32)
    log_probs = reference.log_softmax(logits)
    assert -log_probs[np.arange(len(ids) - 1), ids[1:]].mean() == pytest.approx(golden["loss"], abs=2e-5)
    assert (log_probs.argmax(axis=1) == golden["top1"]).mean() >= 0.99  # near ties may fall either way in float32
    for row in golden["rows"]:
        np.testing.assert_allclose(log_probs[row["position"], row["ids"]], row["log_probs"], atol=5e-4)
        assert np.logaddexp.reduce(logits[row["position"]].astype(np.float64)) == pytest.approx(row["logsumexp"], abs=1e-3)


def test_the_wrong_pairing_of_rope_would_be_seen(model: Model, weights: dict[str, npt.NDArray[np.float32]]) -> None:
    class Wrong:
        rope_pairs = "half"

        def __getattr__(self, name: str) -> Any:
            return getattr(model.config, name)

    ids = np.array(PROMPTS["capital"])
    log_probs = reference.log_softmax(reference.llama_forward(Wrong(), weights, ids, np.float32))  # type: ignore[arg-type]
    assert -log_probs[np.arange(4), ids[1:]].mean() > CASES["capital"]["loss"] + 0.1


def test_known_values_of_the_model() -> None:
    """The figures that two further implementations (llama.cpp, and a float32 one of our own) gave."""
    capital, chat = CASES["capital"]["rows"][4], CASES["chat"]["rows"][0]
    assert capital["ids"][:5] == [7042, 260, 4528, 2250, 1315]
    np.testing.assert_allclose(capital["log_probs"][:5], [-0.2581, -2.7408, -4.3844, -4.6199, -4.6778], atol=2e-4)
    assert chat["ids"][:4] == [504, 60, 15319, 2219]
    np.testing.assert_allclose(chat["log_probs"][:4], [-1.8827, -1.9648, -2.2657, -2.8064], atol=2e-4)
    assert CASES["probe"]["loss"] == pytest.approx(2.9822, abs=1e-4)


def test_the_probe_text_is_the_repositorys_own_licence(model: Model) -> None:
    licence = (ROOT / "LICENSE").read_text()
    probe = re.sub(r"\s+", " ", licence[licence.index('"License" shall mean') :][:1800])
    assert len(probe) == 1637 and model.tokenizer.encode(probe) == PROMPTS["probe"]
