"""From logits to a token: temperature, top-k, top-p, min-p, draw (specs/engine.md 4.3); greedy is argmax, lowest id on ties.

float32 logits, float64 sums, no sort of the vocabulary: a k-th largest value is bounded from below by the k-th largest of group maxima
(each group has an element at least that large), so only the few logits above the bound are ever sorted.
"""

import struct
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from headway.core.errors import HeadwayError
from headway.engine.step import Float32
from headway.engine.wire import Sampling, TokenLogprobs

_GROUPS = 1024
_QUICK_NUCLEUS = 128
_BINS_PER_NAT = 32
_U64 = (1 << 64) - 1
_KEY = struct.Struct("<QQQ")


class BadLogits(HeadwayError):
    """The model produced NaN or only infinities for this row."""


def uniform(seed: int, sample_index: int, position: int) -> float:
    """In [0, 1), 53 bits; depends on nothing but its arguments, so a seeded token is the same in any batch, chunking or replay.

    A hash as counter-based generator (the idea of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
    """
    digest = blake2b(_KEY.pack(seed & _U64, sample_index & _U64, position & _U64), digest_size=8, person=b"headway/draw")
    return (int.from_bytes(digest.digest(), "little") >> 11) * 2.0**-53


class Sampler:
    """Scratch for one vocabulary; rows are float32 [vocab], contiguous, and are not changed."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._groups = min(_GROUPS, vocab)
        self._grouped = vocab // self._groups * self._groups
        self._weights: Float32 = np.zeros(vocab, np.float32)
        self._mask: NDArray[np.bool_] = np.zeros(vocab, np.bool_)
        self._bins: NDArray[np.intp] = np.zeros(vocab, np.intp)

    def sample(self, row: Float32, best: int, sampling: Sampling, position: int) -> int:
        """The token at `position` (that of the token being drawn). `best` is the row's argmax. Raises BadLogits."""
        peak = float(row[best])
        if not np.isfinite(peak):
            raise BadLogits(f"the largest logit is {peak}: the model's arithmetic broke down; try --accuracy exact")
        if sampling.temperature == 0:
            return best
        u = uniform(sampling.seed, sampling.sample_index, position)
        scale = 1.0 / sampling.temperature
        if 0 < sampling.top_k < self._vocab:
            ids = self.top_ids(row, sampling.top_k)
            weights = np.exp((row[ids].astype(np.float64) - peak) * scale)
            kept = _nucleus(weights, sampling.top_p * float(weights.sum())) if sampling.top_p < 1.0 else len(ids)
            return self._draw(ids[:kept], weights[:kept], sampling.min_p, u)
        if sampling.top_p < 1.0:
            return self._draw_nucleus(row, peak, scale, sampling, u)
        if sampling.min_p > 0.0:
            # Weights are relative to the largest, so the bound is known before any exponential is taken.
            np.greater_equal(row, np.float32(peak + np.log(sampling.min_p) / scale - 1e-3), out=self._mask)
            ids = self._mask.nonzero()[0]
            weights = np.exp((row[ids].astype(np.float64) - peak) * scale)
            return self._draw(ids, weights, sampling.min_p, u)
        self._exponentials(row, peak, scale)
        return self._draw_any(u)

    def logprobs(self, row: Float32, best: int, token: int, top: int) -> TokenLogprobs:
        """Raw natural log-probabilities (before temperature and filters) of `token` and the `top` best."""
        peak = float(row[best])
        if not np.isfinite(peak):
            raise BadLogits(f"the largest logit is {peak}: the model's arithmetic broke down; try --accuracy exact")
        self._exponentials(row, peak, 1.0)
        log_total = peak + float(np.log(self._column_sums().sum()))
        ids = self.top_ids(row, top) if top else ()
        return TokenLogprobs(float(row[token]) - log_total, [(int(i), float(row[i]) - log_total) for i in ids])

    def top_ids(self, row: Float32, k: int) -> NDArray[np.intp]:
        """The k ids of largest logits, best first, lowest id first among equals."""
        k = min(k, self._vocab)
        if k <= self._groups // 2:
            maxima = row[: self._grouped].reshape(-1, self._groups).max(axis=0)
            bound = np.partition(maxima, self._groups - k)[self._groups - k]
            np.greater_equal(row, bound, out=self._mask)
            ids = self._mask.nonzero()[0]
        else:
            ids = np.arange(self._vocab)
        return ids[np.argsort(-row[ids], kind="stable")[:k]]

    def _exponentials(self, row: Float32, peak: float, scale: float) -> None:
        weights = self._weights
        np.subtract(row, np.float32(peak), out=weights)
        if scale != 1.0:
            np.multiply(weights, np.float32(scale), out=weights)
        np.exp(weights, out=weights)

    def _column_sums(self) -> NDArray[np.float64]:
        """float64 sums of the weights over ids equal modulo `groups`; the ragged end of the vocabulary joins the first columns."""
        sums: NDArray[np.float64] = np.add.reduce(self._weights[: self._grouped].reshape(-1, self._groups), axis=0, dtype=np.float64)
        rest = self._vocab - self._grouped
        if rest:
            sums[:rest] += self._weights[self._grouped :]
        return sums

    def _draw_any(self, u: float) -> int:
        """Draw from all weights: first a column, then inside it. The order of ids does not matter to the distribution, only to be fixed."""
        cumulative = self._column_sums().cumsum()
        target = u * float(cumulative[-1])
        column = min(int(cumulative.searchsorted(target, side="right")), len(cumulative) - 1)
        start = float(cumulative[column - 1]) if column else 0.0
        members = self._weights[column :: self._groups].astype(np.float64).cumsum()
        inside = int(members.searchsorted(target - start, side="right"))
        if inside >= len(members):
            inside = int(self._weights[column :: self._groups].argmax())
        return column + inside * self._groups

    def _draw(self, ids: NDArray[np.intp], weights: NDArray[np.float64], min_p: float, u: float) -> int:
        """Draw among candidates whose weights are relative to the most likely token's."""
        if min_p > 0.0:
            weights = np.where(weights >= min_p, weights, 0.0)
        cumulative = weights.cumsum()
        index = int(cumulative.searchsorted(u * float(cumulative[-1]), side="right"))
        if index >= len(ids):
            index = int(weights.nonzero()[0][-1])
        return int(ids[index])

    def _draw_nucleus(self, row: Float32, peak: float, scale: float, sampling: Sampling, u: float) -> int:
        self._exponentials(row, peak, scale)
        columns = self._column_sums()
        wanted = sampling.top_p * float(columns.sum())
        ids = self.top_ids(row, min(_QUICK_NUCLEUS, self._groups // 2))
        weights = self._weights[ids].astype(np.float64)
        if float(weights.sum()) >= wanted:
            kept = _nucleus(weights, wanted)
            return self._draw(ids[:kept], weights[:kept], sampling.min_p, u)
        return self._draw_wide_nucleus(row, peak, scale, wanted, sampling.min_p, u)

    def _draw_wide_nucleus(self, row: Float32, peak: float, scale: float, wanted: float, min_p: float, u: float) -> int:
        """A flat distribution: a histogram over log-weights finds the bin where the mass is reached, and only that bin is sorted."""
        bins = self._bins
        last = _BINS_PER_NAT * 64
        depth = (np.float32(peak) - row) * np.float32(scale * _BINS_PER_NAT)
        np.copyto(bins, np.minimum(depth, np.float32(last)), casting="unsafe")
        mass = np.bincount(bins, weights=self._weights, minlength=last + 1).cumsum()
        crossing = min(int(mass.searchsorted(wanted, side="left")), last)
        before = float(mass[crossing - 1]) if crossing else 0.0
        ids = (bins == crossing).nonzero()[0]
        ids = ids[np.argsort(-row[ids], kind="stable")]
        kept = ids[: _nucleus(self._weights[ids].astype(np.float64), wanted - before)]
        ids = np.concatenate([(bins < crossing).nonzero()[0], kept])
        return self._draw(ids, self._weights[ids].astype(np.float64), min_p, u)


def _nucleus(weights: NDArray[np.float64], wanted: float) -> int:
    """How many of the descending weights are the smallest set with at least `wanted` mass, the crossing one included."""
    return min(int(weights.cumsum().searchsorted(wanted, side="left")) + 1, len(weights))
