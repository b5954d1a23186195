"""From logits to a token: temperature, top-k, top-p, min-p, draw (docs/engine.md, "Sampling"); greedy is argmax, lowest id on ties.

No sort of the vocabulary: a k-th largest value is bounded from below by the k-th largest of group maxima (each group has an element at
least that large), so only the few logits above the bound are ever sorted. No exponentials of the vocabulary either (190 us for 49,152
without AVX-512): draws come from a cheap upper bound of the weights and are accepted with the ratio of weight to bound, which gives exactly
the wanted distribution (von Neumann 1951). Weights below 2^-126 of the largest count as 0.
"""

import math
import struct
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from headway.core.errors import HeadwayError
from headway.engine.step import DrawKernels, Float32
from headway.engine.wire import Sampling, TokenLogprobs
from headway.kernels.cpu import layout as at

_GROUPS = at.SAMPLING_COLUMNS
_QUICK_NUCLEUS = 128
_BINS_PER_NAT = 32
_U64 = (1 << 64) - 1
_KEY = struct.Struct("<QQQ")
_DRAW = struct.Struct("<QQ")
_LOG2_E = 1.4426950408889634
_FRACTION = 1 << 23
"""float32 bits per power of two"""
_MARGIN = 1.0 + 2.0**-10  # float32 rounding inside a bound is below 2^-15
_BOUND_RATIO = 1.0615 * _MARGIN
"""a bound is at most this many times its weight: max of (1 + f) / 2^f is 1.06148"""
_ATTEMPTS = 8


class BadLogits(HeadwayError):
    """The model produced NaN or only infinities for this row."""


def uniform(seed: int, sample_index: int, position: int) -> float:
    """In [0, 1), 53 bits; depends on nothing but its arguments, so a seeded token is the same in any batch, chunking or replay.

    A hash as counter-based generator (the idea of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
    """
    digest = blake2b(_KEY.pack(seed & _U64, sample_index & _U64, position & _U64), digest_size=8, person=b"headway/draw")
    return (int.from_bytes(digest.digest(), "little") >> 11) * 2.0**-53


def uniforms(seed: int, sample_index: int, position: int, attempt: int) -> tuple[float, float]:
    """Two independent numbers like `uniform`'s for one attempt of a draw by rejection."""
    key = _KEY.pack(seed & _U64, sample_index & _U64, position & _U64)
    digest = blake2b(key, digest_size=16, person=b"headway/reject", salt=attempt.to_bytes(8, "little")).digest()
    first, second = _DRAW.unpack(digest)
    return (first >> 11) * 2.0**-53, (second >> 11) * 2.0**-53


class Sampler:
    """Scratch for one vocabulary; rows are float32 [vocab], contiguous, and are not changed."""

    def __init__(self, vocab: int, kernels: DrawKernels | None = None) -> None:
        self._vocab = vocab
        self._kernels = kernels
        self._groups = min(_GROUPS, vocab)
        self._grouped = vocab // self._groups * self._groups
        self._weights: Float32 = np.zeros(vocab, np.float32)
        self._mask: NDArray[np.bool_] = np.zeros(vocab, np.bool_)
        self._sums: Float32 = np.zeros(self._groups, np.float32)
        self._parameters: Float32 = np.zeros(2, np.float32)
        self._numbers: NDArray[np.float64] = np.zeros(6, np.float64)
        self._token = self._numbers.view(np.int64)[1:2]
        self._parameters_at, self._numbers_at, self._sums_at = (
            int(array.ctypes.data) for array in (self._parameters, self._numbers, self._sums)
        )
        self._bins: NDArray[np.intp] = np.zeros(vocab, np.intp)

    def sample(self, row: Float32, best: int, sampling: Sampling, position: int) -> int:
        """The token at `position` (that of the token being drawn). `best` is the row's argmax. Raises BadLogits."""
        peak = float(row[best])
        if not math.isfinite(peak):
            raise BadLogits(f"the largest logit is {peak}: the model's arithmetic broke down; try --accuracy exact")
        if sampling.temperature == 0:
            return best
        scale = 1.0 / sampling.temperature
        if 0 < sampling.top_k < self._vocab:
            u = uniform(sampling.seed, sampling.sample_index, position)
            ids = self.top_ids(row, sampling.top_k)
            weights = np.exp((row[ids].astype(np.float64) - peak) * scale)
            kept = _nucleus(weights, sampling.top_p * float(weights.sum())) if sampling.top_p < 1.0 else len(ids)
            return self._draw(ids[:kept], weights[:kept], sampling.min_p, u)
        if sampling.min_p > 0.0 and sampling.top_p >= 1.0:
            u = uniform(sampling.seed, sampling.sample_index, position)
            # Weights are relative to the largest, so the bound is known before any exponential is taken.
            np.greater_equal(row, np.float32(peak + np.log(sampling.min_p) / scale - 1e-3), out=self._mask)
            ids = self._mask.nonzero()[0]
            weights = np.exp((row[ids].astype(np.float64) - peak) * scale)
            return self._draw(ids, weights, sampling.min_p, u)
        return self._draw_any(row, peak, scale, sampling, position)

    def logprobs(self, row: Float32, best: int, token: int, top: int) -> TokenLogprobs:
        """Raw natural log-probabilities (before temperature and filters) of `token` and the `top` best."""
        peak = float(row[best])
        if not math.isfinite(peak):
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

    def _bound_sums(self, row: Float32, peak: float, scale: float) -> None:
        """`_sums` of the upper bounds of all weights exp(scale * (row - peak)), over ids equal modulo `groups` (the ragged end of the
        vocabulary joins the first columns).

        The bits of 1 + f as a float32's fraction are a straight line over each power of two, at most 6.2 % above 2^f (the idea of
        Schraudolph, "A fast, compact approximation of the exponential function", 1999).
        """
        self._parameters[:] = peak, min(scale * _LOG2_E * _FRACTION, 1e38)
        if self._kernels is not None:
            self._kernels.weight_bounds(row.ctypes.data, self._parameters_at, self._sums_at)
        else:
            np.add.reduce(self._bounds(row[: self._grouped]).reshape(-1, self._groups), axis=0, out=self._sums)
        rest = self._vocab - self._grouped
        if rest:
            self._sums[:rest] += self._bounds(row[self._grouped :])

    def _bounds(self, logits: Float32) -> Float32:
        """Bounds of some logits, for the peak and scale of the last `_bound_sums`."""
        peak, factor = self._parameters
        exponents = (logits - peak) * factor + np.float32(127 * _FRACTION)
        bounds: Float32 = np.maximum(exponents, np.float32(0.0), out=exponents).astype(np.int32).view(np.float32)
        return bounds

    def _draw_any(self, row: Float32, peak: float, scale: float, sampling: Sampling, position: int) -> int:
        """Temperature, and top-p and min-p if asked for: propose from the bounds (first a column, then inside it), accept the share of the
        weight in the bound, reject what top-p and min-p leave out. The order of ids does not matter to the distribution, only to be fixed.
        """
        seed, sample_index, top_p = sampling.seed, sampling.sample_index, sampling.top_p
        self._bound_sums(row, peak, scale)
        for attempt in range(_ATTEMPTS):
            u, v = uniforms(seed, sample_index, position, attempt)
            token, bound, proposed, mass, total = self._propose(row, u)
            weight = math.exp((float(row[token]) - peak) * scale)
            # The token was proposed with bound / mass * proposed: dividing by that takes the rounding of the sums out again.
            if v * _MARGIN * bound * proposed >= weight * mass or weight < sampling.min_p:
                continue
            if top_p >= 1.0 or self._in_nucleus(row, peak, scale, total, top_p, token):
                return token
        u = uniform(seed, sample_index, position)
        return self._draw_nucleus(row, peak, scale, sampling, u)

    def _propose(self, row: Float32, u: float) -> tuple[int, float, float, float, float]:
        """(id, its bound, its column's sum as proposed, in float64, the sum of all columns); `kernels.cpu.bounds.Propose` says how."""
        if self._kernels is not None:
            self._numbers[0] = u
            self._kernels.propose(self._numbers_at, row.ctypes.data, self._parameters_at, self._sums_at)
            _, _, bound, proposed, mass, total = self._numbers.tolist()
            return int(self._token[0]), bound, proposed, mass, total
        cumulative = self._sums.astype(np.float64).cumsum()
        total = float(cumulative[-1])
        target = u * total
        column = min(int(cumulative.searchsorted(target, side="right")), len(cumulative) - 1)
        start = float(cumulative[column - 1]) if column else 0.0
        proposed = float(cumulative[column]) - start  # of the column: float32 sums
        bounds = self._bounds(row[column :: self._groups])
        members = bounds.astype(np.float64).cumsum()
        mass = float(members[-1])
        inside = min(int(members.searchsorted((target - start) / proposed * mass, side="right")), len(members) - 1)
        token = column + inside * self._groups
        return token, float(bounds[inside]), proposed, mass, total

    def _in_nucleus(self, row: Float32, peak: float, scale: float, bound: float, top_p: float, token: int) -> bool:
        """Whether the tokens before this one, by logit and then id, have less than `top_p` of the mass. `bound`: the sum of the bounds."""
        value = row[token]
        np.greater_equal(row, value, out=self._mask)
        ids = self._mask.nonzero()[0]
        logits = row[ids]
        logits = logits[(logits > value) | (ids < token)]
        before = float(np.exp((logits.astype(np.float64) - peak) * scale).sum())
        rest = bound - float(self._bounds(logits).sum(dtype=np.float64))
        if before < top_p * (before + rest / _BOUND_RATIO):
            return True
        if before >= top_p * (before + rest * _MARGIN):
            return False
        self._exponentials(row, peak, scale)
        return before < top_p * float(self._column_sums().sum())

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
