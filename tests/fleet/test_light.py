"""The front stays light: no compiler libraries in it, one loop thread and one journal thread; the engine process has one thread a core."""

import os
import subprocess
import sys
from pathlib import Path

from headway.engine.process import ONE_THREAD

ROOT = Path(__file__).parents[2]
COUNT = """
import asyncio, os, sys, tempfile
from pathlib import Path
from tests.fleet.support import fleet_of, request, tokens_of

async def main():
    with tempfile.TemporaryDirectory() as directory:
        async with fleet_of(Path(directory)) as fleet:
            await tokens_of(fleet.submit(request()))
            engine, = fleet.stats()["engine_pids"]
            environment = Path(f"/proc/{engine}/environ").read_bytes().split(b"\\0")
            print(len(os.listdir("/proc/self/task")), len(os.listdir(f"/proc/{engine}/task")))
            print(*(f"{name}={value}".encode() in environment for name, value in %r.items()))
            print(*sorted({"numba", "llvmlite", "torch", "fastapi"} & set(sys.modules)))

asyncio.run(main())
"""


def test_threads_modules_and_environment_of_both_processes():
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", COUNT % ONE_THREAD]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    tasks, exported, modules = ran.stdout.splitlines()
    assert tasks == "2 1"  # loop and journal; the double has no team
    assert set(exported.split()) == {"True"}
    assert modules == ""
