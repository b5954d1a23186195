"""The scalar arithmetic of every policy: plain functions of numbers and a law, nothing else."""

import math

from headway.core.law import IterationLaw, max_chunk

# One kernel tile: the smallest prefill chunk.
TILE_TOKENS = 8
# Longest iteration when no running decode sets the pace. A request that arrives in the middle of it waits at most this long: a fifth of
# the tightest time to first token in use (0.3 s); the fixed cost of an iteration (about 5 ms on a laptop-class core) stays under a tenth.
IDLE_PACE_NS = 60_000_000
# The learned margin is trusted inside these bounds. Below 1 it says that the law was measured on a busier machine: 95 % of iterations were
# faster; above 1.6 little work would be done at all.
MARGIN_LOW, MARGIN_HIGH = 0.5, 1.6
# The last mixed iterations set a floor under the margin: a machine that has just become slower is believed at once (half of what was seen),
# one that has become faster slowly. A shared host's clock moves by 1.2-1.4 x within a second (measured), which quantiles over 2,000
# iterations notice after a minute.
RECENT_UP, RECENT_DOWN = 0.5, 0.1
# What is refused is never measured: so that a law measured on a busy machine cannot refuse for ever, an idle engine tries a promise that
# the law calls inadmissible this often, unless it looks hopeless even at a third of the predicted time.
TRY_EVERY_NS = 5_000_000_000
HOPELESS = 3.0

# Used only until a law is known: a slow laptop, so that the first iterations are short.
GUESSED_LAW = IterationLaw(c_host_s=0.005, d1=1e-3, d2=1e-7, p1=1e-3, made_by="guess")


def ceil_ns(seconds: float) -> int:
    """The one place where a predicted time becomes integer nanoseconds."""
    return math.ceil(seconds * 1e9)


def pages_for(tokens: int, page_tokens: int) -> int:
    return -(-tokens // page_tokens)


def clip_margin(ratio: float) -> float:
    return min(max(ratio, MARGIN_LOW), MARGIN_HIGH)


def sustained_prefill(
    law: IterationLaw, budget_s: float, decode_rows: int, kv_read_tokens: int, prefix_tokens: int, left_tokens: int, cap_tokens: int
) -> tuple[int, float, int]:
    """How a prompt is read when each iteration may last `budget_s`: (tokens an iteration, seconds in all, iterations).

    Evaluated in the middle of the prompt. When not even a tile fits, tiles are what it gets all the same (compose's slack rule).
    """
    middle = prefix_tokens + left_tokens // 2
    cap = max(1, min(left_tokens, cap_tokens))
    chunk = max_chunk(law, budget_s, decode_rows, kv_read_tokens, middle, cap, TILE_TOKENS, sampled_rows=decode_rows)
    chunk = chunk or min(TILE_TOKENS, cap)
    whole, rest = divmod(left_tokens, chunk)
    seconds = whole * law.predict_s(decode_rows, kv_read_tokens, ((chunk, middle),), decode_rows) if whole else 0.0
    if rest:
        seconds += law.predict_s(decode_rows, kv_read_tokens, ((rest, prefix_tokens + left_tokens - rest),), decode_rows)
    return chunk, seconds, whole + (1 if rest else 0)


def whole_life_margin(q95: float, iterations: int) -> float:
    """Margin of a sum of `iterations` jittery times: the spread of a mean shrinks with the root (at most of 64)."""
    return 1.0 + (max(q95, 1.0) - 1.0) / math.sqrt(min(max(iterations, 1), 64))
