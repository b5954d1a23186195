"""torch on one thread, over contiguous keys and values: answers questions on stdin with CPU seconds a call. Run by __main__."""

import json
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
made: dict[str, Callable[[], object]] = {}
POOL_BYTES = 320 << 20


def decode(peer: str, dtype: str, batch: int, tokens: int) -> Callable[[], object]:
    shape = (batch, 8, tokens, 128)
    copies = max(1, POOL_BYTES // (2 * batch * 8 * tokens * 128 * TYPES[dtype].itemsize))
    pools = [(torch.full(shape, 0.01, dtype=TYPES[dtype]), torch.full(shape, 0.01, dtype=TYPES[dtype])) for _ in range(copies)]
    q = torch.randn(batch, 32, 1, 128).to(TYPES[dtype])
    grouped = q.reshape(batch, 8, 4, 128)
    turn = iter(range(1 << 30))
    if peer == "sdpa":
        return lambda: nn.scaled_dot_product_attention(grouped, *pools[next(turn) % copies])  # the group as query tokens: its fastest form
    flex = torch.compile(flex_attention, dynamic=False)
    return lambda: flex(q, *pools[next(turn) % copies], enable_gqa=True)


def prefill(peer: str, dtype: str, tokens: int) -> Callable[[], object]:
    q = torch.full((1, 32, tokens, 128), 0.1, dtype=TYPES[dtype])
    k, v = (torch.full((1, 8, tokens, 128), 0.01, dtype=TYPES[dtype]) for _ in range(2))
    if peer == "sdpa":
        wide = [x.repeat_interleave(4, 1) for x in (k, v)]  # outside the measurement: its fastest form
        return lambda: nn.scaled_dot_product_attention(q, *wide, is_causal=True)
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, tokens, tokens, device="cpu")
    flex = torch.compile(flex_attention, dynamic=False)
    return lambda: flex(q, k, v, block_mask=mask, enable_gqa=True)


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps({"version": "torch " + torch.__version__}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        repeat = question.pop("repeat")
        name = json.dumps(question)
        with torch.no_grad():
            if name not in made:
                made.clear()  # one case's memory at a time
                make = {"decode": decode, "prefill": prefill}[question.pop("case")]
                made[name] = make(**question)
                made[name]()
            times = []
            for _ in range(repeat):
                before = time.thread_time_ns()
                made[name]()
                times.append((time.thread_time_ns() - before) / 1e9)
        print(json.dumps({"seconds": times}), flush=True)


main()
