"""Measure what an iteration costs on this machine and fit its law (docs/engine.md, "Laws").

`headway calibrate` measures 40 points, `--quick` and a server that finds no law measure 10. Laws are kept under state/laws, one file
for each (model, kernels, CPU, accuracy, KV dtype, threads); a quick one only when nobody else was using the machine meanwhile.
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
from headway.core.machine import QuietWatch, machine_fingerprint
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
    (2, 256, 0, 0),
    (8, 256, 0, 0),
    (16, 256, 0, 0),
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
QUICK_LAW, QUICK_BUSY, CALIBRATED = "quick", "quick, machine busy", "calibrate"
"""What `IterationLaw.made_by` says of a law measured here; QUICK_BUSY: others were using the cores meanwhile."""


def _batch(program: CpuProgram, shape: Shape, seed: int, pages: Sequence[int]) -> Batch:
    """An iteration of this shape; sequences read whatever `pages` hold, which costs the same as anything else, and write to them."""
    rows, context, chunk, prefix = shape
    rng = np.random.default_rng(seed)
    sequences = rows + (1 if chunk else 0)
    per_sequence = max(1, -(-max(context + 1, prefix + chunk) // program.page_tokens))
    tables = np.resize(np.asarray(pages, np.int32), (sequences, per_sequence))
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


class Measurement:
    """Times of shapes, taken one at a time, in random order within each round; the first is preceded by an untimed pass."""

    def __init__(self, program: CpuProgram, shapes: Sequence[Shape], repeats: int, seed: int = 0) -> None:
        """Shapes that do not fit the program are left out. Raises ConfigError when fewer than 4 are left."""
        self.shapes = [s for s in shapes if _fits(program, s)]
        if len(self.shapes) < 4:
            raise ConfigError(
                f"{len(self.shapes)} of {len(shapes)} calibration shapes fit a context of {program.context_tokens}; give more kv-memory"
            )
        self._program = program
        self._seed = seed
        self._times: list[list[float]] = [[] for _ in self.shapes]
        rng = np.random.default_rng(seed)
        self._turns = [int(i) for _ in range(repeats) for i in rng.permutation(len(self.shapes))]
        self._taken = 0
        self._spent_s = 0.0

    @property
    def fraction(self) -> float:
        return self._taken / len(self._turns)

    def done(self, limit_s: float) -> bool:
        """Whether all repetitions are taken, or `limit_s` of running is used up and every shape was measured at least once."""
        return self._taken == len(self._turns) or (self._taken >= len(self.shapes) and self._spent_s > limit_s)

    def take(self, pages: Sequence[int]) -> None:
        """Times one more shape. `pages`: KV pages that nobody needs; their content is lost."""
        i = self._turns[self._taken]
        batch = _batch(self._program, self.shapes[i], self._seed + i, pages)
        if not self._taken:
            self._program.execute(batch)
        t0 = time.perf_counter()
        self._program.execute(batch)
        seconds = time.perf_counter() - t0
        self._times[i].append(seconds)
        self._spent_s += seconds
        self._taken += 1

    def points(self) -> list[LawPoint]:
        return [
            LawPoint(rows, rows * (context + 1), chunk, prefix, rows + (1 if chunk else 0), statistics.median(times))
            for (rows, context, chunk, prefix), times in zip(self.shapes, self._times, strict=True)
        ]


def measure(
    program: CpuProgram,
    shapes: Sequence[Shape],
    repeats: int,
    *,
    limit_s: float = 120.0,
    progress: Callable[[float], None] = lambda fraction: None,
    seed: int = 0,
) -> list[LawPoint]:
    """Median seconds of each shape. Overwrites all KV pages. Stops repeating (never before the first round is whole) when `limit_s` is
    used up."""
    measurement = Measurement(program, shapes, repeats, seed)
    while not measurement.done(limit_s):
        measurement.take(range(program.pages))
        progress(measurement.fraction)
    return measurement.points()


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
    """The saved law, or a quick one measured now. It is saved, so that the next start need not, unless the machine was busy meanwhile:
    such a law is right for this hour at best."""
    law = saved_law(loaded)
    if law is None:
        watch = QuietWatch()
        points = measure(loaded.program, QUICK, QUICK_REPEATS, limit_s=QUICK_LIMIT_S, progress=lambda fraction: progress("law", fraction))
        law = keep_quick(loaded, points, watch)
    return law


def keep_quick(loaded: LoadedModel, points: Sequence[LawPoint], watch: QuietWatch) -> IterationLaw:
    """The quick law of these points; saved if the machine was quiet since `watch` began."""
    quiet = watch.quiet().is_quiet
    law = fitted(loaded, points, QUICK_LAW if quiet else QUICK_BUSY)
    if quiet:
        save(loaded, law)
    return law


def calibrate(config: ServeConfig, *, quick: bool = False, progress: Callable[[str], None] = print) -> IterationLaw:
    """What `headway calibrate` runs: measure, fit, save, and say how good the fit is.

    A quick law never replaces a calibrated one, and is not saved when others were using the machine.
    """
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
        known = saved_law(loaded) if quick else None
        if known is not None and known.made_by == CALIBRATED:
            progress(
                f"the calibrated law of {config.model} stays (mean error {known.quality.mape:.1%}); without --quick it is measured again"
            )
            return known
        shapes = QUICK if quick else FULL
        progress(f"measuring {len(shapes)} shapes of iteration on {loaded.team.n_threads} threads ({loaded.program.isa.name}) ...")
        watch = QuietWatch()
        points = measure(loaded.program, shapes, REPEATS, limit_s=25.0 if quick else 110.0)
        window = watch.quiet()
        if quick:
            law = keep_quick(loaded, points, watch)
        else:
            law = fitted(loaded, points, CALIBRATED)
            save(loaded, law)
        if not window.is_quiet:
            kept = "not kept, a server measures anew when it starts" if quick else "kept; measure again on a quiet machine"
            progress(f"others used {window.others_share + window.steal_share:.0%} of the cores meanwhile: the law is {kept}")
    finally:
        loaded.close()
    q = law.quality
    progress(
        f"law of {config.model} ({law.dtype}, {law.engine}): {q.n} points, mean error {q.mape:.1%}, bias {q.bias:+.1%}, worst {q.worst:.0%}"
    )
    one, prompt = law.predict_s(1, 512, [], 1), law.predict_s(0, 0, [(512, 0)], 1)
    progress(f"  a token at context 512: {one * 1e3:.1f} ms; a 512-token prompt: {prompt * 1e3:.0f} ms")
    if q.mape > 0.10 and law.made_by != QUICK_BUSY:
        progress("  the error is above 10 %: times varied; the law is used with its own margins, run it again on a quiet machine")
    return law
