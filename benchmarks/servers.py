"""Servers under test: `headway serve` and llama.cpp's server, each on a free port in its own process group; and what /proc says of them."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import peers_python
from headway.bench.processes import free_port, headway_command

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LLAMA = """
import sys, time, xllamacpp as x
p = x.CommonParams()
p.model.path, p.port, p.n_ctx, p.n_parallel = sys.argv[1], int(sys.argv[2]), 16384, 4
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[3])
s = x.Server(p)
while True: time.sleep(3600)
"""


@dataclass(slots=True)
class Server:
    """A running server. `url` ends in /v1; `pids` are the front's and the engines' process ids."""

    url: str
    port: int
    pid: int
    name: str

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + path, timeout=10) as reply:
            return json.load(reply)

    @property
    def pids(self) -> list[int]:
        return [self.pid, *(self.get("/stats").get("engine_pids", []) if self.name == "headway" else [])]


@contextmanager
def headway(policy: str = "headway", *flags: str) -> Iterator[Server]:
    """`headway serve` of the pulled model with its journal on."""
    port = free_port()
    with _running("headway", headway_command("serve", "smollm2-135m", "--port", str(port), "--policy", policy, *flags), port) as server:
        yield server


@contextmanager
def llama(model: str, threads: int) -> Iterator[Server | None]:
    """llama.cpp's server through xllamacpp in the peers' environment; None when it is not installed there."""
    python = peers_python()
    if python is None or subprocess.run([str(python), "-c", "import xllamacpp"], capture_output=True, check=False).returncode != 0:
        print("llama.cpp's server is left out: xllamacpp is not in the peers' environment")
        yield None
        return
    port = free_port()
    with _running("llama.cpp", [str(python), "-c", _LLAMA, model, str(port), str(threads)], port) as server:
        yield server


@contextmanager
def _running(name: str, argv: list[str], port: int, ready_s: float = 180.0) -> Iterator[Server]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path) if name == "headway" else ""}
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True)
    try:
        limit = time.monotonic() + ready_s
        while not _healthy(port):
            if process.poll() is not None or time.monotonic() > limit:
                raise SystemExit(f"{name} did not become ready ({' '.join(argv[:6])} ...); run it by hand to see why")
            time.sleep(0.01)
        yield Server(f"http://127.0.0.1:{port}/v1", port, process.pid, name)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def cpu_s(pid: int) -> float:
    """utime + stime of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def run_and_wait_ns(pid: int) -> dict[int, tuple[int, int]]:
    """{thread: (ns on a core, ns ready but waiting for one)} from schedstat."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            ran, waited = (task / "schedstat").read_text().split()[:2]
        except OSError:  # the thread has ended
            continue
        found[int(task.name)] = (int(ran), int(waited))
    return found


def reports(port: int) -> Iterator[Any]:
    """The engine's Reports in the journal of the server on `port`, oldest first (its times are CLOCK_MONOTONIC ns of this machine)."""
    from headway.core.durable import read_records
    from headway.core.paths import serve_dir
    from headway.fleet.journal_records import EventRecord, read_event, unpack
    from headway.scheduling.messages import Report

    for _, payload in read_records(serve_dir(port) / "journal", after=0):
        record = unpack(payload)
        if isinstance(record, EventRecord):
            event = read_event(record)
            if isinstance(event, Report):
                yield event
