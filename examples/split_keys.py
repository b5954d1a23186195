"""One attention over keys that two processes hold: each answers for its half, the caller merges the states.

Worth it only where the keys do not fit one machine: a token costs heads * (head_dim + 1) * 4 bytes of answer a layer.
Run: python examples/split_keys.py
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np

from headway.attention import Attention, BlockSparse, PagedKV, State, causal, merge

HEADS, KV_HEADS, DIM, TOKENS, PAGE = 8, 2, 64, 1000, 16


def keys_and_values(start: int, end: int) -> PagedKV:
    """Tokens start..end-1, the same numbers in every process."""
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, TOKENS, KV_HEADS, DIM), np.float32)
    kv = PagedKV.allocate(-(-(end - start) // PAGE), PAGE, KV_HEADS, DIM)
    slots = np.arange(end - start)
    kv.write(slots // PAGE, slots % PAGE, k[start:end], v[start:end])
    return kv


def attend(q: np.ndarray, start: int, end: int) -> State:
    """The state of the queries over tokens start..end-1; start is a multiple of PAGE."""
    kv = keys_and_values(start, end)
    pages = np.arange(kv.pages, dtype=np.int32)
    table = BlockSparse.from_lengths([0, kv.pages], pages, [end - start], PAGE).with_sequence_tokens([TOKENS])
    table = replace(table, page_position=start + PAGE * pages)
    attention = Attention(HEADS, KV_HEADS, DIM, mask=causal)
    o, lse = attention.run(attention.plan([0, len(q)], table), q, kv)
    assert lse is not None  # there is a softmax
    return State(o, lse)


def main() -> None:
    q = np.random.default_rng(1).standard_normal((4, HEADS, DIM), np.float32)
    with ProcessPoolExecutor(2) as pool:
        halves = list(pool.map(attend, (q, q), (0, 512), (512, TOKENS)))
    together = merge(*halves)
    whole = attend(q, 0, TOKENS)
    print(f"largest difference: {np.abs(together.o - whole.o).max():.1e}")


if __name__ == "__main__":
    main()
