"""Interleaves the contenders case by case, so that what disturbs one disturbs the other; prints ratios with their spread."""

import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from types import TracebackType

from benchmarks.rows import Row, finish, header, parser, peers_python, ratio_row
from headway.core.paths import models_dir

_GOALS = {"prefill 512": 3.0, "decode at 16": 1.5, "decode at 512": 1.5, "decode at 2048": 1.5}
_HERE = Path(__file__).parent


class Contender:
    """One engine in its own process. It answers one question at a time, so the others idle meanwhile."""

    def __init__(self, name: str, argv: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **environment}
        )
        self.version = str(self._line()["version"])

    def ask(self, **question: int | str) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, float]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):  # peers print banners, too
                answer: dict[str, float] = json.loads(line)
                return answer
        raise SystemExit(f"{self.name} ended with status {self._process.wait()}; run its file by hand to see why")

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def cases(threads: int, quick: bool) -> dict[str, dict[str, int | str]]:
    """Name -> question. One thread gets the main cases only."""
    steps = 24 if quick else 64
    prefill = (512,) if quick or threads == 1 else (128, 512, 2048)
    contexts = (16,) if quick or threads == 1 else (16, 512, 2048)
    batches = (4,) if quick else (2, 4, 8) if threads > 1 else ()
    found: dict[str, dict[str, int | str]] = {f"prefill {n}": {"op": "prefill", "tokens": n} for n in prefill}
    found |= {f"decode at {c}": {"op": "decode", "context": c, "tokens": steps, "batch": 1} for c in contexts}
    found |= {f"decode at 16, batch {b}": {"op": "decode", "context": 16, "tokens": steps, "batch": b} for b in batches}
    return found


def measure(model: str, threads: int, accuracy: str, repeats: int, quick: bool) -> list[Row]:
    argv = [sys.executable, str(_HERE / "ours.py"), model, str(threads), accuracy]
    contenders = [Contender("ours", argv, {"PYTHONPATH": os.pathsep.join(sys.path)})]
    python = peers_python()
    if python is not None:
        contenders.append(Contender("cyllama", [str(python), str(_HERE / "peer_cyllama.py"), model, str(threads), "-"], {"PYTHONPATH": ""}))
    questions = cases(threads, quick)
    speeds: dict[tuple[str, str], list[float]] = defaultdict(list)
    cpu: dict[tuple[str, str], list[float]] = defaultdict(list)
    limit: list[float] = []
    shuffle = random.Random(0)
    try:
        for contender in contenders:  # first calls compile, repack or fault pages in
            contender.ask(op="prefill", tokens=64)
        for k in range(repeats):
            for case in shuffle.sample(sorted(questions), len(questions)):
                for contender in contenders if k % 2 == 0 else reversed(contenders):
                    answer = contender.ask(**questions[case])
                    speeds[contender.name, case].append(answer["done"] / answer["seconds"])
                    cpu[contender.name, case].append(answer["cpu_s"] / answer["done"])
                read = contenders[0].ask(op="read")
                limit.append(read["done"] / read["seconds"])
            print(f"  {threads} thread(s): repetition {k + 1} of {repeats} done, load {os.getloadavg()[0]:.2f}", flush=True)
        weights = contenders[0].ask(op="read")["done"]
    finally:
        for contender in contenders:
            contender.__exit__(None, None, None)
    return _rows(questions, speeds, cpu, limit, weights, contenders, threads)


def _rows(
    questions: dict[str, dict[str, int | str]],
    speeds: dict[tuple[str, str], list[float]],
    cpu: dict[tuple[str, str], list[float]],
    limit: list[float],
    weights: float,
    contenders: list[Contender],
    threads: int,
) -> list[Row]:
    reads_per_s = median(limit) / weights
    spread = f"{min(limit) / 1e9:.1f}-{max(limit) / 1e9:.1f}"
    print(f"  read limit {median(limit) / 1e9:.1f} GB/s ({spread}) = {reads_per_s:.0f} tok/s; ours: {contenders[0].version}")
    rows = []
    for case in questions:
        name, ours = f"{case}, {threads}t", speeds["ours", case]
        bound = reads_per_s if case.startswith("decode") and "batch" not in case else None
        goal = _GOALS.get(case) if threads == 2 else None
        if len(contenders) == 1:
            rows.append(Row("engine", name, median(ours), None, "tok/s", limit=bound))
        else:
            words = f">= {goal:g}x" if goal else ""
            row = ratio_row(
                "engine", name, ours, speeds["cyllama", case], "tok/s", peer_version=contenders[1].version, limit=bound, goal=words
            )
            rows.append(row if goal is None or row.ratio is None else _judged(row, row.ratio >= goal))
        spread = f"{min(ours):.0f}-{max(ours):.0f}"
        print(f"    {name:<28} ours {spread:>14} tok/s, {median(cpu['ours', case]) * 1e3:.2f} CPU-ms a token", flush=True)
    if "decode at 16, batch 4" in questions and "decode at 16" in questions:
        single, four = speeds["ours", "decode at 16"], speeds["ours", "decode at 16, batch 4"]
        row = ratio_row("engine", f"batch 4 against batch 1 (both ours), {threads}t", four, single, "tok/s", goal=">= 2x")
        rows.append(_judged(row, row.ratio is not None and row.ratio >= 2.0))
    return rows


def _judged(row: Row, met: bool) -> Row:
    from dataclasses import replace

    return replace(row, met=met)


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("--model", default="", help="a GGUF file (default: the pulled smollm2-135m)")
    made.add_argument("--repeats", type=int, default=7)
    made.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    made.add_argument("--accuracy", choices=("fast", "exact"), default="fast")
    made.add_argument("--quick", action="store_true", help="three cases, short: a look, not a result")
    options = made.parse_args()
    model = options.model or next((str(path) for path in sorted((models_dir() / "smollm2-135m").glob("*.gguf"))), "")
    if not model:
        raise SystemExit("smollm2-135m is not here; `headway pull smollm2-135m` fetches it")
    machine = header(f"engine: {Path(model).name}, accuracy {options.accuracy}, interleaved, medians of {options.repeats}")
    rows = [row for threads in options.threads for row in measure(model, threads, options.accuracy, options.repeats, options.quick)]
    return finish(rows, machine, options.json)


if __name__ == "__main__":
    sys.exit(main())
