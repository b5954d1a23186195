"""Our step program in its own process: one JSON question a line on stdin, one answer a line. Usage: ours.py MODEL THREADS ACCURACY."""

import json
import sys
import time

import numpy as np

from headway.engine.frames import EngineSettings
from headway.engine.load import load_model
from headway.engine.program import CpuProgram
from headway.engine.step import Batch

_KV_BYTES = 1 << 30


def _batch(program: CpuProgram, rng: np.random.Generator, sequences: int, rows: int, past: int, generated: bool) -> Batch:
    """`rows` new tokens of each of `sequences` sequences that already hold `past`."""
    pages = -(-(past + rows) // program.page_tokens)
    tables = np.arange(sequences * pages, dtype=np.int32).reshape(sequences, pages)
    total = sequences * rows
    first = np.arange(0, total, rows, dtype=np.int32)
    return Batch(
        rng.integers(0, program.vocab, total).astype(np.int32),
        np.tile(np.arange(past, past + rows, dtype=np.int32), sequences),
        total if generated else 0,
        first,
        np.full(sequences, rows, np.int32),
        np.arange(sequences, dtype=np.int32),
        tables,
        first + np.int32(rows - 1),
    )


def _prefill(program: CpuProgram, rng: np.random.Generator, tokens: int) -> None:
    for past in range(0, tokens, program.max_rows):
        rows = min(program.max_rows, tokens - past)
        batch = _batch(program, rng, 1, rows, past, generated=False)
        if past + rows < tokens:
            batch.sampled_rows = np.empty(0, np.int32)
        program.execute(batch)


def answer(program: CpuProgram, rng: np.random.Generator, ask: dict[str, int | str]) -> tuple[int, float]:
    """(tokens or bytes done, seconds)."""
    if ask["op"] == "read":
        begin = time.perf_counter()
        return program.read_weights(), time.perf_counter() - begin
    if ask["op"] == "prefill":
        begin = time.perf_counter()
        _prefill(program, rng, int(ask["tokens"]))
        return int(ask["tokens"]), time.perf_counter() - begin
    context, steps, sequences = int(ask["context"]), int(ask["tokens"]), int(ask["batch"])
    # The pages need not be filled: reading them costs the same whatever they hold.
    batches = [_batch(program, rng, sequences, 1, context + step, generated=True) for step in range(steps)]
    begin = time.perf_counter()
    for batch in batches:
        program.execute(batch)
        program.logits[:sequences].argmax(axis=1)  # greedy sampling is part of a token
    return steps * sequences, time.perf_counter() - begin


def main() -> None:
    model, threads, accuracy = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    settings = EngineSettings(model=model, threads=threads, accuracy=accuracy, kv_memory_bytes=_KV_BYTES)
    loaded = load_model(settings)
    rng = np.random.default_rng()
    kv = f"{loaded.program.accuracy}, KV {loaded.program.kv_dtype}, {loaded.program.isa.name}"
    print(json.dumps({"ready": True, "version": kv}), flush=True)
    for line in sys.stdin:
        cpu = time.process_time()
        done, seconds = answer(loaded.program, rng, json.loads(line))
        print(json.dumps({"done": done, "seconds": seconds, "cpu_s": time.process_time() - cpu}), flush=True)
    loaded.close()


if __name__ == "__main__":
    main()
