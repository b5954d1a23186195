"""The sampling kernel draws from the filtered distribution; the oracle sorts the whole vocabulary in float64."""

import numpy as np
import pytest
from tests.kernels.conftest import Bench

from headway.kernels.cpu import sampling as at
from headway.kernels.cpu.memory import address


def sample(
    bench: Bench, row: np.ndarray, draws: int, *, temperature: float = 1.0, k: int = 0, p: float = 1.0, min_p: float = 0.0, seed: int = 3
):  # type: ignore[no-untyped-def]
    """(tokens, rounds) of `draws` draws at offsets 0, 1, ..."""
    block, scratch = np.zeros(at.WORDS, np.int64), np.zeros(at.SampleRow.scratch_bytes(bench.isa.lanes, len(row)), np.uint8)
    block[[at.LOGITS, at.VOCAB, at.TOP_K, at.SEED, at.SCRATCH]] = address(row), len(row), k or len(row), seed, address(scratch)
    block[at.SCALE] = np.float32(1.4426950408889634 / temperature).view(np.int32)
    block[at.TOP_P], block[at.MIN_P] = np.float64(p).view(np.int64), np.float32(min_p).view(np.int32)
    kernel, tokens, rounds = bench(at.SampleRow()), [], []
    for i in range(draws):
        block[at.OFFSET] = i
        kernel(address(block))
        tokens.append(int(block[at.TOKEN]))
        rounds.append(int(block[at.ROUNDS]))
    return np.array(tokens), np.array(rounds)


def oracle(row: np.ndarray, temperature: float = 1.0, k: int = 0, p: float = 1.0, min_p: float = 0.0) -> np.ndarray:
    x = row.astype(np.float64) / temperature
    order = np.argsort(-x, kind="stable")[: k or None]
    w = np.exp(x[order] - x.max())
    order = order[: int(np.searchsorted(np.cumsum(w) / w.sum(), p)) + 1]
    w = np.where(w[: len(order)] >= min_p, w[: len(order)], 0)
    full = np.zeros(len(row))
    full[order] = w / w.sum()
    return full


@pytest.mark.parametrize("vocab", [5, 1024, 3001])
@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize(
    "filters", [{}, {"k": 3}, {"p": 0.6}, {"min_p": 0.2}, {"p": 0.05}, {"p": 0.9, "min_p": 0.5}, {"k": 40, "p": 0.8, "min_p": 0.01}]
)
def test_draws_follow_the_oracle(bench: Bench, vocab: int, spread: float, filters: dict[str, float]) -> None:
    row = (np.random.default_rng(vocab).normal(size=vocab) * spread).astype(np.float32)
    if filters.get("k", 0) > vocab:
        filters = {**filters, "k": 0}
    n = 1500
    tokens, rounds = sample(bench, row, n, temperature=0.7, **filters)  # type: ignore[arg-type]
    want = oracle(row, 0.7, **filters)  # type: ignore[arg-type]
    counts = np.bincount(tokens, minlength=vocab)
    assert counts[want == 0].sum() <= n * 0.002  # at most the border of the nucleus may differ by rounding
    # Chi-square over 12 classes of equal probability; 40 is beyond the 0.9999 quantile of 11 degrees of freedom.
    classes = np.minimum((np.cumsum(want) * 12).astype(int), 11)
    expected, got = np.bincount(classes, want, 12) * n, np.bincount(classes, counts, 12)
    used = expected > 5
    assert (((got - expected) ** 2)[used] / expected[used]).sum() < 40
    assert rounds.max() <= 40


def test_equal_seeds_and_offsets_draw_equal_tokens_and_others_do_not(bench: Bench) -> None:
    row = np.zeros(1000, np.float32)
    first, again = sample(bench, row, 50)[0], sample(bench, row, 50)[0]
    other = sample(bench, row, 50, seed=4)[0]
    assert (first == again).all() and (first != other).sum() > 40 and len(set(first)) > 40


def test_equal_weights_are_kept_together(bench: Bench) -> None:
    row = np.array([0.0, 1.0, 1.0, 1.0, -5.0], np.float32)
    assert set(sample(bench, row, 200, k=1)[0]) == {1, 2, 3}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_give_no_token(bench: Bench, bad: float) -> None:
    row = np.zeros(100, np.float32)
    row[77] = bad
    assert sample(bench, row, 1)[0][0] == -1
    assert sample(bench, np.full(9, -np.inf, np.float32), 1)[0][0] == -1


def test_a_vocabulary_beside_unreadable_memory_is_enough(bench: Bench) -> None:
    """Nothing beyond the last logit is read: what follows would win."""
    row = np.full(64, 100.0, np.float32)
    row[:21] = 0
    assert sample(bench, row[:21], 50)[0].max() < 21
