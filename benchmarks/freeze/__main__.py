"""The freeze test: a stream with `tpot_ms` 50 runs, a 2,000-token prompt arrives; the longest gap, engine side and client side.

Client side: socket reads, with what front, engine and client threads spent waiting for a core in that window (schedstat). Engine side: the
journal's Reports. llama.cpp's server does the same in the same run.
"""

import asyncio
import bisect
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.quiet import repeat
from benchmarks.rows import Row, finish, header, parser
from benchmarks.servers import Server, headway, llama, reports, run_and_wait_ns
from headway.bench import prompts
from headway.bench.client import Call, Endpoint
from headway.bench.outcome import RequestRow
from headway.core.paths import models_dir

_STREAM_TOKENS = 400
_PROMPT_TOKENS = 2000
_ENGINE_LIMIT_S, _CLIENT_LIMIT_S, _TTFT_LIMIT = 0.055, 0.060, 1.3


@dataclass(slots=True)
class Freeze:
    """One repetition. Seconds. `gaps`: every client-side gap in the window, with what front, engine and client threads together waited
    for a core during it."""

    gaps: list[tuple[float, float]]
    ttft_s: float
    solo_ttft_s: float
    window_ns: tuple[int, int]
    problem: str = ""

    @property
    def client_gap_s(self) -> float:
        return max((gap for gap, _ in self.gaps), default=0.0)

    @property
    def excess_s(self) -> float:
        """The longest gap less its own time in run queues."""
        return max((gap - queued for gap, queued in self.gaps), default=0.0)


def _call(server: Server, model: str, prompt: str, tokens: int, slo: dict[str, str]) -> Call:
    body: dict[str, object] = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    row = RequestRow("freeze", 0, time.monotonic_ns(), tokens)
    return Call(Endpoint.of(server.url), "/completions", slo, body, row)


async def _watch_queues(pids: Sequence[int], samples: list[tuple[int, int]]) -> None:
    """Every 20 ms (time, ns waited so far by all threads of `pids`); costs about 1 % of a core."""
    while True:
        samples.append((time.monotonic_ns(), sum(waited for pid in pids for _, waited in run_and_wait_ns(pid).values())))
        await asyncio.sleep(0.02)


def queued_s(samples: Sequence[tuple[int, int]], begin_ns: int, end_ns: int) -> float:
    """What was waited between the last sample before and the first after: at most 40 ms more than the interval itself."""
    times = [at for at, _ in samples]
    first = max(bisect.bisect_right(times, begin_ns) - 1, 0)
    last = min(bisect.bisect_left(times, end_ns), len(samples) - 1)
    return (samples[last][1] - samples[first][1]) / 1e9


async def once(server: Server, model: str, k: int) -> Freeze:
    """Solo document first, then the stream with a fresh document in its middle."""
    batch = {"x-slo-class": "batch", "x-slo-ttft-ms": "60000", "x-slo-tpot-ms": "500"}
    solo = _call(server, model, prompts.text("builtin:documents", _draw(k, 0), _PROMPT_TOKENS), 4, batch)
    await solo.run(120)
    promise = {"x-slo-class": "interactive", "x-slo-ttft-ms": "2000", "x-slo-tpot-ms": "50"}
    stream = _call(server, model, prompts.text("builtin:questions", _draw(k, 1)), _STREAM_TOKENS, promise)
    running = asyncio.create_task(stream.run(120))
    while stream.tokens_so_far < 40 and not running.done():
        await asyncio.sleep(0.005)
    pids = [*server.pids, os.getpid()]
    samples: list[tuple[int, int]] = []
    watch = asyncio.create_task(_watch_queues(pids, samples))
    await asyncio.sleep(0.05)
    document = _call(server, model, prompts.text("builtin:documents", _draw(k, 2), _PROMPT_TOKENS), 4, batch)
    await document.run(120)
    await asyncio.sleep(0.05)
    watch.cancel()
    await running
    for row in (solo.row, stream.row, document.row):
        if row.outcome != "finished":
            return Freeze([], 0.0, 0.0, (0, 0), f"{row.outcome}: {row.reason}")
    begin, end = document.row.scheduled_ns, document.row.token_ns[0]
    if stream.row.token_ns[-1] < begin:
        return Freeze([], 0.0, 0.0, (0, 0), f"the stream of {_STREAM_TOKENS} tokens ended before the document came")
    pairs = [(before, after) for before, after in itertools.pairwise(stream.row.token_ns) if after > begin and before < end]
    gaps = [((after - before) / 1e9, queued_s(samples, before, after)) for before, after in pairs]
    waits = (document.row.ttft_ns or 0) / 1e9, (solo.row.ttft_ns or 0) / 1e9
    return Freeze(gaps, *waits, (begin, end))


def _shown(run: Freeze) -> Freeze:
    """Printed at once: who stops a long measurement keeps what it has."""
    if not run.problem:
        client = f"client gap {run.client_gap_s * 1e3:5.0f} ms ({run.excess_s * 1e3:.0f} without run queues)"
        print(f"  {client}; TTFT {run.ttft_s:.2f} s (solo {run.solo_ttft_s:.2f})", flush=True)
    return run


def engine_gaps_s(port: int, windows: Sequence[tuple[int, int]]) -> list[float | None]:
    """Longest engine-side gap of the stream in each window, from the Reports: the sequence that emitted most there is the stream."""
    emitted: list[tuple[int, int]] = []
    for report in reports(port):
        emitted += [(report.now_ns + report.dt_ns, id) for id, n in report.emitted if n]
    found: list[float | None] = []
    for begin, end in windows:
        inside = Counter(id for at, id in emitted if begin <= at <= end)
        if not inside:
            found.append(None)
            continue
        stream = inside.most_common(1)[0][0]
        times = [at for at, id in emitted if id == stream]
        gaps = [after - before for before, after in itertools.pairwise(times) if after > begin and before < end]
        found.append(max(gaps) / 1e9 if gaps else None)
    return found


def _draw(k: int, place: int) -> int:
    return int.from_bytes(os.urandom(8), "big") ^ (k << 8) ^ place  # never a prompt the prefix cache has seen


def judge(kept: Sequence[Freeze], engine: Sequence[float | None], measurable: bool) -> list[Row]:
    """The issue's three conditions."""
    longest = [gap for gap in engine if gap is not None]
    good = sum(gap <= _ENGINE_LIMIT_S for gap in longest)
    needed = len(kept) - max(1, len(kept) // 20)
    over = [run for run in kept if run.excess_s > _CLIENT_LIMIT_S]
    ratio = median(run.ttft_s for run in kept) / median(run.solo_ttft_s for run in kept)

    def verdict(value: bool) -> bool | None:
        return value if measurable else None

    worst = max(longest) * 1e3 if longest else None
    words = f"<= 55 ms in {needed} of {len(kept)} (is {good})"
    met = verdict(good >= needed and len(longest) == len(kept))
    rows = [Row("engine", "engine-side gap, longest", worst, None, "ms", goal=words, met=met)]
    words = f"none above 60 ms + run queue (are {len(over)})"
    client = max(run.client_gap_s for run in kept) * 1e3
    rows.append(Row("engine", "client-side gap, longest", client, None, "ms", goal=words, met=verdict(not over)))
    rows.append(Row("engine", "document's TTFT against solo", ratio, None, "x", goal="<= 1.3x", met=verdict(ratio <= _TTFT_LIMIT)))
    return rows


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("--repeats", type=int, default=20)
    made.add_argument("--peer-repeats", type=int, default=3)
    made.add_argument("--any-noise", action="store_true", help="do not wait for a quiet machine: a trial, no goal is judged")
    options = made.parse_args()
    machine = header(f"freeze: a stream with tpot_ms 50, then a {_PROMPT_TOKENS}-token prompt; {options.repeats} quiet repetitions")
    rows: list[Row] = []
    with headway() as server:
        done = repeat(options.repeats, lambda k: _shown(asyncio.run(once(server, "smollm2-135m", k))), any_noise=options.any_noise)
        port = server.port
    runs = done.kept or done.noisy
    kept = [run for run in runs if not run.problem]
    for problem in sorted({run.problem for run in runs if run.problem}):
        print(f"  repetition failed: {problem}")
    if kept:
        engine = engine_gaps_s(port, [run.window_ns for run in kept])
        rows += judge(kept, engine, done.measurable and not options.any_noise and len(kept) == len(runs))
        print("  engine-side gaps, ms: " + " ".join("-" if gap is None else f"{gap * 1e3:.0f}" for gap in engine))
    model = next((str(path) for path in sorted((models_dir() / "smollm2-135m").glob("*.gguf"))), "")
    with llama(model, len(os.sched_getaffinity(0))) as peer:
        if peer is not None:
            theirs = [asyncio.run(once(peer, Path(model).name, k)) for k in range(options.peer_repeats)]
            whole = [run for run in theirs if not run.problem]
            if whole:
                gap = max(run.client_gap_s for run in whole) * 1e3
                rows.append(Row("engine", "client-side gap of llama.cpp's server", None, gap, "ms", "xllamacpp"))
            else:
                print(f"  llama.cpp's server: {theirs[0].problem if theirs else 'not run'}")
    machine["void repetitions"] = done.void
    return finish(rows, machine, options.json)


if __name__ == "__main__":
    sys.exit(main())
