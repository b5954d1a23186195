"""First (kernels compile; CPU seconds), cold (objects cached; seconds to the first token), and `headway --help` (CPU seconds)."""

import asyncio
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.rows import Row, finish, header, parser
from benchmarks.servers import Server, headway
from headway.bench.client import Call, Endpoint
from headway.bench.outcome import RequestRow
from headway.bench.processes import headway_command
from headway.core.paths import models_dir


async def _first_token(server: Server) -> float:
    body: dict[str, object] = {"model": "smollm2-135m", "prompt": "Hello", "max_tokens": 1, "stream": True}
    call = Call(Endpoint.of(server.url), "/completions", {"x-slo-class": "background"}, body, RequestRow("start", 0, 0, 1))
    await call.run(60)
    if call.row.outcome != "finished":
        raise SystemExit(f"the first request failed: {call.row.reason}")
    return time.monotonic()


def _start() -> tuple[float, float]:
    """(seconds from the command to the first token, CPU seconds of everything it started)."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with headway() as server:
        seconds = asyncio.run(_first_token(server)) - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _help_cpu_s() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(headway_command("--help"), stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("--repeats", type=int, default=5)
    options = made.parse_args()
    machine = header("startup: from the command to the first token")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    model = models_dir() / "smollm2-135m"
    if not model.is_dir():
        raise SystemExit("smollm2-135m is not here; `headway pull smollm2-135m` fetches it")
    rows = []
    helps = [_help_cpu_s() for _ in range(max(3, options.repeats))]
    rows.append(Row("cli", "headway --help", median(helps) * 1e3, None, "CPU-ms", goal="< 150 ms", met=median(helps) < 0.150))
    with tempfile.TemporaryDirectory() as home:
        # A home of its own: the kernels and laws of this user stay as they are.
        os.environ["HEADWAY_HOME"] = home
        shutil.copytree(model, Path(home) / "cache" / "models" / "smollm2-135m")
        seconds, cpu = _start()
        rows.append(Row("kernels", f"first start ({seconds:.1f} s)", cpu, None, "CPU-s", goal="<= 60 CPU-s", met=cpu <= 60))
        colds = [_start()[0] for _ in range(options.repeats)]
        print(f"  cold starts {min(colds):.2f}-{max(colds):.2f} s")
        rows.append(Row("engine", "cold start to the first token", median(colds), None, "s", goal="<= 5 s", met=median(colds) <= 5))
    return finish(rows, machine, options.json)


if __name__ == "__main__":
    sys.exit(main())
