"""What the scheduler learns while it runs: quantiles of actual/predicted time and of output lengths, in forgetful histograms.

Integer bins of a fixed grid and plain floats, so that a snapshot restores them bit for bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from headway.core.law import Residual

# Ours: rolling over 2,000 iterations, some 20 s of decoding. The grid: ratios 0.5 to 2 in steps of 1.4 %.
RATIO_HALF_LIFE = 2000.0
RATIO_BINS = 100
RATIO_LOW = 0.5
_RATIO_STEP = math.log(4.0) / RATIO_BINS
# The fit's own residuals count as this many iterations: soon outvoted by what is seen.
PRIOR_ITERATIONS = 40.0

# Ours: half-life 500 completions, 256 tokens before any was seen; 8 bins an octave.
LENGTH_HALF_LIFE = 500.0
LENGTH_BINS = 128
LENGTH_COLD_TOKENS = 256


@dataclass(slots=True)
class ForgetfulHistogram:
    """Counts with exponential forgetting. New counts weigh ever more instead of old ones less: O(1) an observation."""

    counts: list[float]
    growth: float
    weight: float = 1.0
    total: float = 0.0

    def observe(self, bin_index: int, times: float = 1.0) -> None:
        self.counts[bin_index] += self.weight * times
        self.total += self.weight * times
        self.weight *= self.growth
        if self.weight > 1e12:
            self.counts = [c / self.weight for c in self.counts]
            self.total /= self.weight
            self.weight = 1.0

    def bin_at(self, q: float) -> int:
        """Smallest bin with at least a share `q` of the counts at or below it; -1 when nothing was seen."""
        if self.total <= 0:
            return -1
        target = q * self.total
        seen = 0.0
        last = 0
        for i, count in enumerate(self.counts):
            if count:
                seen += count
                last = i
                if seen >= target:
                    return i
        return last

    def to_plain(self) -> list[object]:
        return [list(self.counts), self.growth, self.weight, self.total]

    @staticmethod
    def from_plain(plain: Sequence[object]) -> "ForgetfulHistogram":
        counts, growth, weight, total = cast("tuple[list[float], float, float, float]", tuple(plain))
        return ForgetfulHistogram([float(c) for c in counts], growth, weight, float(total))


def new_ratios(residual: Residual | None = None) -> ForgetfulHistogram:
    """Histogram of actual/predicted, opened with a fit's residual quantiles."""
    ratios = ForgetfulHistogram([0.0] * RATIO_BINS, 0.5 ** (-1.0 / RATIO_HALF_LIFE))
    r = residual or Residual(0.95, 1.0, 1.05)
    for ratio, share in ((r.q05, 0.05), (r.q50, 0.875), (r.q95, 0.075)):
        ratios.counts[_ratio_bin(ratio)] += share * PRIOR_ITERATIONS
        ratios.total += share * PRIOR_ITERATIONS
    return ratios


def _ratio_bin(ratio: float) -> int:
    if ratio <= RATIO_LOW:
        return 0
    return min(int(math.log(ratio / RATIO_LOW) / _RATIO_STEP), RATIO_BINS - 1)


def observe_ratio(ratios: ForgetfulHistogram, ratio: float) -> None:
    ratios.observe(_ratio_bin(ratio))


def ratio_quantile(ratios: ForgetfulHistogram, q: float) -> float:
    """Middle of the bin that holds the quantile (1.0 before anything is known)."""
    index = ratios.bin_at(q)
    return 1.0 if index < 0 else RATIO_LOW * math.exp((index + 0.5) * _RATIO_STEP)


def new_lengths() -> ForgetfulHistogram:
    """Histogram of output lengths of finished sequences, in tokens."""
    return ForgetfulHistogram([0.0] * LENGTH_BINS, 0.5 ** (-1.0 / LENGTH_HALF_LIFE))


def observe_length(lengths: ForgetfulHistogram, tokens: int) -> None:
    lengths.observe(min(int(8 * math.log2(max(tokens, 1))), LENGTH_BINS - 1))


def expected_length(lengths: ForgetfulHistogram, q: float, max_tokens: int, emitted: int = 0) -> int:
    """Tokens a sequence is expected to reach at quantile `q`: at least one more than it has, at most `max_tokens`."""
    index = lengths.bin_at(q)
    learned = LENGTH_COLD_TOKENS if index < 0 else math.ceil(2.0 ** ((index + 1) / 8))
    return min(max_tokens, max(learned, emitted + 1))
