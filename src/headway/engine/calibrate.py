"""Measure what an iteration costs on this machine and fit its law (specs/scheduling.md 3.2).

`headway calibrate` measures 40 points, `--quick` and a server that finds no law measure 8. Laws are kept under state/laws, one file
for each (model, kernels, CPU, accuracy, KV dtype, threads).
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from headway.core.config import ServeConfig
from headway.core.durable import make_dirs, publish
from headway.core.errors import ConfigError
from headway.core.law import IterationLaw, LawPoint, fit
from headway.core.machine import machine_fingerprint
from headway.core.paths import laws_dir
from headway.engine.frames import EngineSettings
from headway.engine.load import LoadedModel, Progress, load_model
from headway.engine.program import CpuProgram
from headway.engine.step import Batch, Int32

Shape = tuple[int, int, int, int]
"""Decode rows, context of each, tokens of one prefill chunk, its prefix."""
QUICK: tuple[Shape, ...] = (
    (1, 64, 0, 0),
    (1, 2048, 0, 0),
    (8, 256, 0, 0),
    (0, 0, 16, 0),
    (0, 0, 64, 0),
    (0, 0, 256, 0),
    (0, 0, 128, 1024),
    (4, 256, 64, 0),
)
FULL: tuple[Shape, ...] = (
    *((b, c, 0, 0) for b, c in ((1, 16), (1, 512), (1, 2048), (1, 4096), (2, 128), (2, 1024), (3, 256), (4, 128), (4, 1024))),
    *((b, c, 0, 0) for b, c in ((6, 256), (8, 128), (8, 1024), (12, 256), (16, 128), (16, 512), (32, 256), (48, 128))),
    *((0, 0, c, p) for c, p in ((8, 0), (16, 0), (32, 0), (64, 0), (128, 0), (256, 0), (512, 0))),
    *((0, 0, c, p) for c, p in ((16, 1024), (64, 1024), (128, 2048), (256, 1024), (512, 2048), (64, 4096))),
    *((1, 128, 16, 0), (1, 512, 64, 512), (2, 256, 128, 0), (4, 256, 32, 1024), (4, 128, 256, 0), (8, 256, 16, 0), (8, 256, 64, 1024)),
    *((16, 256, 32, 0), (16, 128, 128, 512), (32, 128, 64, 0)),
)
REPEATS = 5
QUICK_REPEATS = 3
QUICK_LIMIT_S = 2.5  # a server's cold start has 5 s for everything


def _batch(program: CpuProgram, shape: Shape, seed: int) -> Batch:
    """An iteration of this shape; sequences read whatever their pages hold, which costs the same as anything else."""
    rows, context, chunk, prefix = shape
    rng = np.random.default_rng(seed)
    sequences = rows + (1 if chunk else 0)
    per_sequence = max(1, -(-max(context + 1, prefix + chunk) // program.page_tokens))
    tables = (np.arange(sequences * per_sequence) % program.pages).astype(np.int32).reshape(sequences, per_sequence)
    positions = [*([context] * rows), *range(prefix, prefix + chunk)]
    first, lengths = list(range(rows)), [1] * rows
    if chunk:
        first.append(rows)
        lengths.append(chunk)
    sampled = list(range(rows)) + ([rows + chunk - 1] if chunk else [])

    def array(values: Sequence[int]) -> Int32:
        return np.ascontiguousarray(values, np.int32)

    ids = rng.integers(0, program.vocab, rows + chunk).astype(np.int32)
    return Batch(ids, array(positions), rows, array(first), array(lengths), array(range(sequences)), tables, array(sampled))


def _fits(program: CpuProgram, shape: Shape) -> bool:
    rows, context, chunk, prefix = shape
    longest = max(context + 1 if rows else 0, prefix + chunk)
    return rows + chunk <= program.max_rows and rows < program.max_sampled_rows and longest <= program.context_tokens


def measure(
    program: CpuProgram,
    shapes: Sequence[Shape],
    repeats: int,
    *,
    limit_s: float = 120.0,
    progress: Callable[[float], None] = lambda fraction: None,
    seed: int = 0,
) -> list[LawPoint]:
    """Median seconds of each shape, in random order within each round, after one untimed pass. Stops repeating (never before the first
    round is whole) when `limit_s` is used up."""
    usable = [s for s in shapes if _fits(program, s)]
    if len(usable) < 4:
        raise ConfigError(
            f"only {len(usable)} of {len(shapes)} calibration shapes fit a context of {program.context_tokens}; give more kv-memory"
        )
    batches = [_batch(program, s, seed + i) for i, s in enumerate(usable)]
    times: list[list[float]] = [[] for _ in usable]
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    program.execute(batches[0])
    done = 0
    for round_ in range(repeats):
        for i in rng.permutation(len(usable)):
            if round_ and time.perf_counter() - start > limit_s:
                break
            t0 = time.perf_counter()
            program.execute(batches[i])
            times[i].append(time.perf_counter() - t0)
            done += 1
            progress(done / (repeats * len(usable)))
    return [
        LawPoint(rows, rows * (context + 1), chunk, prefix, rows + (1 if chunk else 0), statistics.median(t))
        for (rows, context, chunk, prefix), t in zip(usable, times, strict=True)
    ]


def _file_name(loaded: LoadedModel) -> str:
    return f"{loaded.law_key}.json"


def fitted(loaded: LoadedModel, points: Sequence[LawPoint], made_by: str) -> IterationLaw:
    program = loaded.program
    dtype = f"{program.accuracy}/{program.kv_dtype}"
    device = str(machine_fingerprint().get("cpu", ""))
    return fit(
        points, model=loaded.model.name, device=device, dtype=dtype, engine=f"{program.isa.name} x{loaded.team.n_threads}", made_by=made_by
    )


def save(loaded: LoadedModel, law: IterationLaw) -> None:
    make_dirs(laws_dir())
    publish(laws_dir() / _file_name(loaded), json.dumps(json.loads(law.to_json()), indent=1).encode())


def saved_law(loaded: LoadedModel) -> IterationLaw | None:
    try:
        return IterationLaw.from_json((laws_dir() / _file_name(loaded)).read_text(encoding="utf-8"))
    except (OSError, ValueError, ConfigError):
        return None  # none yet, or of another version: measure again


def law_for(loaded: LoadedModel, progress: Progress) -> IterationLaw:
    """The saved law, or a quick one measured now (and saved, so that the next start need not)."""
    law = saved_law(loaded)
    if law is None:
        points = measure(loaded.program, QUICK, QUICK_REPEATS, limit_s=QUICK_LIMIT_S, progress=lambda fraction: progress("law", fraction))
        law = fitted(loaded, points, "quick")
        save(loaded, law)
    return law


def calibrate(config: ServeConfig, *, quick: bool = False, progress: Callable[[str], None] = print) -> IterationLaw:
    """What `headway calibrate` runs: measure, fit, save, and say how good the fit is."""
    settings = EngineSettings(
        model=config.model,
        accuracy=config.accuracy,
        threads=config.threads,
        kv_memory_bytes=config.kv_memory_bytes,
        kv_dtype=config.kv_dtype,
    )
    told = ""

    def loading(what: str, fraction: float) -> None:
        nonlocal told
        if what != told:
            told = what
            progress(f"loading {what} ...")

    loaded = load_model(settings, loading)
    try:
        shapes = QUICK if quick else FULL
        progress(f"measuring {len(shapes)} shapes of iteration on {loaded.team.n_threads} threads ({loaded.program.isa.name}) ...")
        points = measure(loaded.program, shapes, REPEATS, limit_s=25.0 if quick else 110.0)
        law = fitted(loaded, points, "quick" if quick else "calibrate")
        save(loaded, law)
    finally:
        loaded.close()
    q = law.quality
    progress(
        f"law of {config.model} ({law.dtype}, {law.engine}): {q.n} points, mean error {q.mape:.1%}, bias {q.bias:+.1%}, worst {q.worst:.0%}"
    )
    one, prompt = law.predict_s(1, 512, [], 1), law.predict_s(0, 0, [(512, 0)], 1)
    progress(f"  a token at context 512: {one * 1e3:.1f} ms; a 512-token prompt: {prompt * 1e3:.0f} ms")
    if q.mape > 0.10:
        progress("  the error is above 10 %: the machine was busy; it is used with its own margins, run it again on a quiet machine")
    return law
