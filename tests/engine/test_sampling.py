"""The sampler draws from the distribution that docs/engine.md defines; the oracle sorts the whole vocabulary in float64."""

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.engine.sampling import BadLogits, Sampler, uniform
from headway.engine.wire import Sampling
from headway.kernels.cpu import isa
from headway.kernels.cpu.bounds import Propose, WeightBounds
from headway.kernels.cpu.compile import compile_kernel
from headway.kernels.cpu.objects import Linked


class Compiled:
    """step.DrawKernels for one ISA level, not through a program."""

    def __init__(self, level, vocab):
        columns = min(1024, vocab)
        kernels = WeightBounds(columns, vocab // columns), Propose(columns, vocab)
        self._linked = Linked([compile_kernel(kernel, level) for kernel in kernels])
        self.weight_bounds, self.propose = (
            ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * kernel.arguments)(self._linked.address(kernel.symbol)) for kernel in kernels
        )


def oracle(row, sampling):
    """float64 [vocab] probabilities: temperature, top-k, top-p, min-p, in this order, by a full stable sort."""
    x = row.astype(np.float64) / sampling.temperature
    order = np.argsort(-x, kind="stable")
    if 0 < sampling.top_k < len(row):
        order = order[: sampling.top_k]
    p = np.exp(x[order] - x.max())
    p /= p.sum()
    if sampling.top_p < 1:
        order = order[: int(np.searchsorted(np.cumsum(p), sampling.top_p)) + 1]
        p = p[: len(order)]
    p = np.where(p >= sampling.min_p * p[0], p, 0)
    full = np.zeros(len(row))
    full[order] = p / p.sum()
    return full


def draws(row, sampling, n):
    sampler = Sampler(len(row))
    best = int(row.argmax())
    return np.bincount([sampler.sample(row, best, sampling, i) for i in range(n)], minlength=len(row))


@pytest.mark.parametrize("vocab", [5, 1024, 3000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize(
    "kind",
    [
        *({}, {"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_p": 0.05}, {"top_p": 0.9, "min_p": 0.5}),
        *({"top_k": 40, "top_p": 0.8, "min_p": 0.01}, {"top_k": 900}),
    ],
)
def test_draws_follow_the_oracle(vocab, spread, kind):
    row = (np.random.default_rng(vocab).normal(size=vocab) * spread).astype(np.float32)
    sampling = Sampling(1, temperature=0.7, seed=3, **kind)
    n = 3000
    counts, p = draws(row, sampling, n), oracle(row, sampling)
    # At most the border of the nucleus may differ by rounding.
    assert counts[p == 0].sum() <= n * 0.002
    # Chi-square over 12 classes of equal probability; 40 is beyond the 0.9999 quantile of 11 degrees of freedom.
    classes = np.minimum((np.cumsum(p) * 12).astype(int), 11)
    want, got = np.bincount(classes, p, 12) * n, np.bincount(classes, counts, 12)
    used = want > 5
    assert (((got - want) ** 2)[used] / want[used]).sum() < 40


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 3000), st.integers(1, 3000), st.integers(1, 40), st.integers(0, 9))
def test_top_ids_are_those_of_a_stable_sort_also_on_ties(vocab, k, levels, seed):
    row = np.random.default_rng(seed).integers(0, levels, vocab).astype(np.float32)
    assert Sampler(vocab).top_ids(row, k).tolist() == np.argsort(-row, kind="stable")[:k].tolist()


def test_the_nucleus_is_the_smallest_set_with_the_mass_and_holds_the_crossing_token():
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    for top_p, ids in ((0.4, {0}), (0.6, {0, 1}), (0.81, {0, 1, 2}), (0.999, {0, 1, 2, 3})):
        counts = draws(row, Sampling(1, temperature=1.0, top_p=top_p), 400)
        assert set(np.flatnonzero(counts)) == ids


@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0, 60.0])
@pytest.mark.parametrize("temperature", [0.01, 0.7, 30.0])
def test_a_bound_is_never_below_its_weight_and_at_most_6_3_percent_above(spread, temperature):
    row = (np.random.default_rng(1).normal(size=3000) * spread + 40).astype(np.float32)
    row[7] = -np.inf
    sampler, peak, scale = Sampler(len(row)), float(row.max()), 1 / temperature
    sampler._bound_sums(row, peak, scale)
    weights, bounds, sums = np.exp((row.astype(np.float64) - peak) * scale), sampler._bounds(row).astype(np.float64), sampler._sums
    assert bounds[7] == 0 and (bounds[weights < 2.0**-127] == 0).all()
    kept = weights > 2.0**-125
    assert (bounds * (1 + 2.0**-10) >= weights)[kept].all() and (bounds <= 1.063 * weights)[kept].all()
    assert sums.sum() == pytest.approx(bounds.sum(), rel=1e-5)


@pytest.mark.parametrize("levels", [0, 30])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_a_token_is_in_the_nucleus_when_those_before_it_have_less_than_the_mass(top_p, levels):
    row = (np.random.default_rng(2).normal(size=2000) * 2).astype(np.float32)
    if levels:  # many equal logits: the lower id comes first
        row = np.round(row * levels / 8).astype(np.float32)
    sampler, peak, scale = Sampler(len(row)), float(row.max()), 1 / 0.8
    sampler._bound_sums(row, peak, scale)
    bound = float(sampler._sums.sum(dtype=np.float64))
    found = [sampler._in_nucleus(row, peak, scale, bound, top_p, token) for token in range(len(row))]
    wanted = oracle(row, Sampling(1, temperature=0.8, top_p=top_p)) > 0
    assert np.count_nonzero(found != wanted) <= 1  # the border, by float32 rounding of the total


def test_greedy_is_the_lowest_id_among_equals():
    row = np.array([1, 5, 5, 2], np.float32)
    assert Sampler(4).sample(row, int(row.argmax()), Sampling(1, temperature=0.0), 0) == 1


def test_a_draw_depends_only_on_seed_sample_and_position():
    assert uniform(1, 0, 5) == uniform(1, 0, 5)
    seen = {uniform(seed, sample, position) for seed in (-1, 0, 1, 2**63) for sample in range(4) for position in range(50)}
    assert len(seen) == 800 and min(seen) >= 0 and max(seen) < 1
    assert abs(np.mean(list(seen)) - 0.5) < 0.05


def test_logprobs_are_raw_and_best_first():
    row = (np.random.default_rng(0).normal(size=3000) * 4).astype(np.float32)
    want = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    got = Sampler(3000).logprobs(row, int(row.argmax()), 17, 5)
    assert got.logprob == pytest.approx(want[17], abs=1e-5)
    assert [i for i, _ in got.top] == np.argsort(-want)[:5].tolist()
    assert [p for _, p in got.top] == pytest.approx(np.sort(want)[::-1][:5].tolist(), abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_an_error(bad):
    row = np.zeros(8, np.float32)
    row[3] = bad
    with pytest.raises(BadLogits, match="broke down"):
        Sampler(8).sample(row, int(row.argmax()), Sampling(1, temperature=1.0), 0)


@pytest.mark.parametrize("kind", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_banned_tokens_are_never_drawn(kind):
    row = np.zeros(2000, np.float32)
    row[::2] = -np.inf
    assert not draws(row, Sampling(1, temperature=2.0, **kind), 300)[::2].any()


@pytest.mark.parametrize("level", [level for level in isa.LEVELS if isa.host_supports(level)], ids=lambda level: level.name)
@pytest.mark.parametrize(
    ("vocab", "spread", "temperature"), [(1024, 1.0, 0.7), (5000, 6.0, 1.0), (2048, 300.0, 0.01), (2048, 40.0, 0.5), (49152, 3.0, 1.3)]
)
def test_the_compiled_draw_is_that_of_numpy_bit_for_bit(vocab, spread, temperature, level):
    row = (np.random.default_rng(vocab).normal(size=vocab) * spread).astype(np.float32)
    plain, compiled = Sampler(vocab), Sampler(vocab, Compiled(level, vocab))
    peak = float(row.max())
    for sampler in (plain, compiled):
        sampler._bound_sums(row, peak, 1 / temperature)
    assert (plain._sums == compiled._sums).all()
    for u in (0.0, 1e-9, 0.1, 0.5, 0.999, 1 - 2.0**-53):
        assert plain._propose(row, u) == compiled._propose(row, u)
    sampling = Sampling(1, temperature=temperature, seed=5)
    best = int(row.argmax())
    assert [plain.sample(row, best, sampling, i) for i in range(50)] == [compiled.sample(row, best, sampling, i) for i in range(50)]
