"""The oracles themselves, against what can be said without them: identities, hand-worked values, invariances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import tiny_model

from headway.kernels import reference as ref
from headway.models import open_model


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]))
def test_two_planes_hold_fifteen_bits_and_one_holds_seven(seed: int, scale: float) -> None:
    x = (random(seed, 3, 96) * scale).astype(np.float32)
    for planes, steps in ((1, 0.5), (2, 0.5 / 256 + 0.5 / 256)):  # the clipped half of the second plane costs one more step
        d, a, b = ref.quantise_activations(x, planes)
        error = np.abs(ref.dequantise_activations(d, a, b) - x)
        assert (error <= np.repeat(d, 32, axis=1) * (steps + 2e-5)).all()
        assert (b is None) == (planes == 1) and np.abs(a.astype(int)).max() == 127


def test_quantising_by_hand() -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, :4] = [127, -1, 2.5, 63.25]
    d, a, b = ref.quantise_activations(x, 2)
    assert d.tolist() == [[1.0, 0.0]]
    assert a[0, :5].tolist() == [127, -1, 2, 63, 0]  # 2.5 goes to the even neighbour
    assert b is not None and b[0, :5].tolist() == [0, 0, 127, 64, 0]  # +128 does not fit in int8
    assert not a[0, 32:].any() and not b[0, 32:].any()


@pytest.mark.parametrize(("x", "planes"), [(np.zeros((1, 33)), 1), (np.zeros(32), 1), (np.zeros((1, 32)), 3)])
def test_quantising_refuses_what_it_is_not_made_for(x: np.ndarray, planes: int) -> None:
    with pytest.raises(ValueError, match=r"shape|planes"):
        ref.quantise_activations(x, planes)


def test_rms_norm_makes_the_mean_square_one() -> None:
    x = random(1, 5, 64) * 30
    np.testing.assert_allclose((ref.rms_norm(x, np.ones(64), 0.0) ** 2).mean(axis=1), 1)
    np.testing.assert_allclose(ref.rms_norm(np.zeros((1, 4)), np.ones(4), 1e-5), 0)


@pytest.mark.parametrize("pairs", ["adjacent", "half"])
def test_rope_keeps_lengths_and_depends_on_distance_only(pairs: str) -> None:
    q, k = random(1, 1, 2, 32), random(2, 1, 2, 32)

    def score(at: int, behind: int) -> np.ndarray:
        turn = lambda x, p: ref.rope(x, np.array([p]), 1e4, 32, pairs)  # noqa: E731
        return (turn(q, at) * turn(k, at - behind)).sum(axis=-1)

    np.testing.assert_allclose(score(7, 5), score(1007, 5), rtol=1e-9)
    assert not np.allclose(score(7, 5), score(7, 4))
    np.testing.assert_allclose(ref.rope(q, np.array([0]), 1e4, 32, pairs), q)


def test_rope_pairings_are_permutations_of_each_other_and_rest_passes() -> None:
    x, positions = random(3, 4, 2, 40), np.arange(4)
    order = np.arange(32).reshape(16, 2).T.ravel()  # even elements, then odd ones
    adjacent = ref.rope(x, positions, 1e4, 32, "adjacent")
    half = ref.rope(np.concatenate([x[..., order], x[..., 32:]], axis=-1), positions, 1e4, 32, "half")
    np.testing.assert_allclose(adjacent[..., :32][..., order], half[..., :32])
    np.testing.assert_array_equal(adjacent[..., 32:], x[..., 32:])
    slow = ref.rope(x, positions, 1e4, 32, "adjacent", freq_factors=np.full(16, 2.0))
    np.testing.assert_allclose(slow[2], adjacent[1] * 0 + ref.rope(x[2:3], np.array([1]), 1e4, 32, "adjacent")[0])


def test_attention_by_hand_and_its_log_sum_exp() -> None:
    q, k, v = random(1, 3, 4, 8), random(2, 6, 2, 8), random(3, 6, 2, 8)
    positions = np.array([0, 3, 5])
    o, lse = ref.attention(q, k, v, positions)
    for row, last in enumerate(positions):
        for head in range(4):
            scores = k[: last + 1, head // 2] @ q[row, head] / np.sqrt(8)
            weights = np.exp(scores)
            np.testing.assert_allclose(o[row, head], weights @ v[: last + 1, head // 2] / weights.sum())
            np.testing.assert_allclose(lse[row, head], np.log(weights.sum()))


def test_attention_over_two_halves_merges_by_log_sum_exp() -> None:
    q, k, v = random(1, 1, 2, 8), random(2, 10, 1, 8), random(3, 10, 1, 8)
    whole, whole_lse = ref.attention(q, k, v, np.array([9]))
    first, first_lse = ref.attention(q, k[:4], v[:4], np.array([3]))
    second, second_lse = ref.attention(q, k[4:], v[4:], np.array([5]))
    merged_lse = np.logaddexp(first_lse, second_lse)
    merged = first * np.exp(first_lse - merged_lse)[..., None] + second * np.exp(second_lse - merged_lse)[..., None]
    np.testing.assert_allclose(merged, whole)
    np.testing.assert_allclose(merged_lse, whole_lse)


def test_silu_gate_at_its_ends() -> None:
    gate = np.array([0.0, 1000.0, -1000.0, 1.0])
    np.testing.assert_allclose(ref.silu_gate(gate, np.full(4, 2.0)), [0, 2000, 0, 2 / (1 + np.exp(-1))], atol=1e-300)


@pytest.mark.parametrize("tied", [True, False])
def test_the_forward_pass_is_causal_and_picks_positions(tmp_path: Path, tied: bool) -> None:
    model = open_model(tiny_model(tmp_path / "m.gguf", seed=5, weight_type="F32", tied_head=tied))
    weights = ref.load_weights(model)
    ids = np.random.default_rng(0).integers(3, 300, 12)
    whole = ref.llama_forward(model.config, weights, ids)
    assert whole.shape == (12, 320) and 1 < whole.std() < 6
    np.testing.assert_allclose(ref.llama_forward(model.config, weights, ids[:7]), whole[:7], rtol=1e-9)
    np.testing.assert_allclose(ref.llama_forward(model.config, weights, ids, positions=[3, 11]), whole[[3, 11]], rtol=1e-9)
    single = ref.llama_forward(model.config, weights, ids, np.float32)
    assert single.dtype == np.float32 and 0 < np.abs(single - whole).max() < 1e-3


def test_a_product_can_be_replaced(tmp_path: Path) -> None:
    model = open_model(tiny_model(tmp_path / "m.gguf", seed=5))
    weights = ref.load_weights(model)
    seen = []

    def quantised(name: str, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        seen.append(name)
        return ref.matmul(ref.dequantise_activations(*ref.quantise_activations(x, 2)), w)

    got = ref.llama_forward(model.config, weights, [5, 6, 7], product=quantised)
    exact = ref.llama_forward(model.config, weights, [5, 6, 7])
    assert len(seen) == 2 * 7 + 1 and 0 < np.abs(got - exact).max() < 0.05


def test_log_softmax_is_a_distribution() -> None:
    log_probs = ref.log_softmax(np.array([[1000.0, 1000.0], [0.0, np.log(3)]]))
    np.testing.assert_allclose(np.exp(log_probs), [[0.5, 0.5], [0.25, 0.75]])
