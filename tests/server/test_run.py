"""The front as a process: start lines, server.json, a busy port, and shutting down without losing an answer."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from headway.server.run import law_text

REPOSITORY = Path(__file__).parents[2]


class Process:
    """One `serve_scripted` process."""

    def __init__(self, home: Path, port: int = 0, drain_s: float = 20) -> None:
        environment = os.environ | {"HEADWAY_HOME": str(home), "PYTHONPATH": f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"}
        command = [sys.executable, "-m", "tests.server.serve_scripted", str(port), str(drain_s)]
        self.child = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.url = ""

    def wait_started(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.lines.append(line)
            if "curl" in line:
                break
        found = re.search(r"http://127.0.0.1:\d+", self.lines[0])
        assert found is not None
        self.url = found.group()

    def end(self) -> tuple[int, str]:
        _, errors = self.child.communicate(timeout=20)
        return self.child.returncode, errors


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    process.wait_started()
    yield process
    if process.child.poll() is None:
        process.child.kill()
        process.child.communicate()


def stream(url: str, then: int, child: int, times: int = 1) -> str:
    text = ""
    with httpx.stream("POST", url + "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "stream": True}) as reply:
        for piece in reply.iter_text():
            if not text:
                os.kill(child, then)
            text += piece
    return text


def test_start_lines_and_card(process: Process, tmp_path: Path) -> None:
    port = int(process.url.rpartition(":")[2])
    card_path = tmp_path / "state" / "serve" / str(port) / "server.json"
    assert json.loads(card_path.read_bytes()) == {"pid": process.child.pid, "url": process.url, "model": "tiny"}
    assert all(word in "".join(process.lines) for word in ("tiny", "accuracy fast", "law", "memory", "curl "))
    process.child.send_signal(signal.SIGTERM)
    assert process.end()[0] == 0 and not card_path.exists()


def test_a_busy_port_names_its_owner_and_the_remedy(process: Process, tmp_path: Path) -> None:
    port = int(process.url.rpartition(":")[2])
    status, errors = Process(tmp_path, port).end()
    assert status == 1 and f"headway serve tiny (pid {process.child.pid}" in errors and f"--port {port + 1}" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_streams_finish(process: Process, number: int) -> None:
    text = stream(process.url, number, process.child.pid)
    assert text.count('"content":"A"') == 200 and text.endswith("data: [DONE]\n\n")
    status, errors = process.end()
    assert status == 0 and "finishing 1 requests" in errors


def test_after_the_drain_time_streams_get_an_error(tmp_path: Path) -> None:
    process = Process(tmp_path, drain_s=0.2)
    process.wait_started()
    text = stream(process.url, signal.SIGTERM, process.child.pid)
    assert '"code":"engine_died"' in text and "[DONE]" not in text
    assert process.end()[0] == 0


def test_the_front_imports_no_compiler() -> None:
    heavy = "{'numba', 'llvmlite', 'torch', 'fastapi', 'pydantic'}"
    code = f"import sys, headway.server.run, headway.server.app; print(sorted({heavy} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_streams_need_no_router() -> None:
    code = "import sys, headway.server.stream; print('headway.scheduling.router' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_second_signal_stops_at_once(process: Process) -> None:
    text = ""
    with httpx.stream(
        "POST", process.url + "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "stream": True}
    ) as reply:
        for piece in reply.iter_text():
            if text.count("data:") in (0, 10):
                process.child.send_signal(signal.SIGINT)
            text += piece
    assert '"code":"engine_died"' in text and text.count('"content":"A"') < 200
    assert process.end()[0] == 0


@pytest.mark.parametrize(
    ("made_by", "words"),
    [
        ("quick", ["quick", "7%", "headway calibrate"]),
        ("quick, machine busy", ["busy"]),
        ("calibrate", ["calibrated", "7%"]),
        ("", ["none yet"]),
    ],
)
def test_the_start_lines_say_how_the_law_was_made(made_by: str, words: list[str]) -> None:
    laws = {"tiny/generate": {"made_by": made_by, "fit": {"mape": 0.07}}} if made_by else {}
    assert all(word in law_text({"law": laws}) for word in words)
