"""`headway chat` against a scripted server (a named test double) and as a loop over given streams."""

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from headway.cli.chat import Chat, describe_pace
from headway.cli.conversation import AnswerSettings, HttpSpeaker, Message, Pace, RequestFailed, sse_events
from headway.core.slo import Slo

ROOT = Path(__file__).resolve().parent.parent.parent


class ScriptedServer(BaseHTTPRequestHandler):
    """Test double of `headway serve`: streams two words and the outcome; refuses the word "refuse" with a 429."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["messages"][-1]["content"] == "refuse":
            reply = json.dumps({"error": {"message": "the promise cannot be kept", "code": "slo_unattainable"}}).encode()
            self.send_response(429)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)
            return
        self.send_response(200)
        self.send_header("x-slo-ttft-ms", "60000")
        self.send_header("x-slo-tpot-ms", "1000")
        self.end_headers()
        events = [
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"delta": {"content": "Hello"}}]},
            {"choices": [{"delta": {"content": " there"}}]},
            {"choices": [{"delta": {}, "finish_reason": "stop"}], "headway": {"slo": {"met": True}, "queue_ms": 1.5}},
            {"choices": [], "usage": {"completion_tokens": 3}},
        ]
        for event in events:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.write(b": keep-alive\n\ndata: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedServer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def chat_command(*argv: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headway.cli.main", "chat", *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_one_question_over_http(url: str) -> None:
    answer = chat_command("--url", url, "--once", "hi")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "Hello there\n"
    assert answer.stderr.startswith("3 tokens")
    assert "slack" in answer.stderr
    assert "promise kept" in answer.stderr


def test_chat_joins_the_server_that_runs_here(url: str, tmp_path: Path) -> None:
    state = tmp_path / "state" / "serve" / "1"
    state.mkdir(parents=True)
    (state / "server.json").write_text(json.dumps({"pid": os.getpid(), "url": url, "model": "m"}))
    assert chat_command("--once", "hi", HEADWAY_HOME=str(tmp_path)).stdout == "Hello there\n"


def test_a_refused_question_says_so_and_the_conversation_goes_on(url: str) -> None:
    answer = chat_command("--url", url, stdin="refuse\nhi\n/quit\nnever read\n")
    assert answer.returncode == 0
    assert answer.stdout == "Hello there\n"
    assert "the promise cannot be kept" in answer.stderr


class Scripted:
    """Test double of a Speaker: remembers what it was asked; "stop" is interrupted after one piece, "fail" breaks."""

    about = "a script"

    def __init__(self) -> None:
        self.asked: list[list[Message]] = []
        self.closed = 0

    def answer(self, messages: list[Message], settings: AnswerSettings) -> Iterator[tuple[str, Pace]]:
        self.asked.append(messages)
        pace = Pace(Slo(ttft_s=1.0), 0, [1])
        try:
            yield "one", pace
            if messages[-1]["content"] == "stop":
                raise KeyboardInterrupt
            if messages[-1]["content"] == "fail":
                raise RequestFailed("broke")
            yield " two", pace
        finally:
            self.closed += 1

    def close(self) -> None: ...


def talk(*lines: str) -> tuple[Scripted, str, str]:
    speaker, out, notes = Scripted(), io.StringIO(), io.StringIO()
    assert Chat(speaker, AnswerSettings(), [], io.StringIO("\n".join(lines) + "\n"), out, notes).talk() == 0
    return speaker, out.getvalue(), notes.getvalue()


def test_an_interrupt_stops_the_answer_only_and_what_came_is_remembered() -> None:
    speaker, out, notes = talk("stop", "next")
    assert out == "one\none two\n"
    assert "stopped" in notes
    assert speaker.closed == 2
    assert [message["content"] for message in speaker.asked[1]] == ["stop", "one", "next"]


def test_a_failed_answer_is_taken_back() -> None:
    speaker, _, notes = talk("fail", "next")
    assert "broke" in notes
    assert [message["content"] for message in speaker.asked[1]] == ["next"]


def test_new_keeps_the_instructions_and_forgets_the_rest() -> None:
    speaker, _, _ = talk("/system Be brief.", "a", "/new", "b\\", "c")
    assert [message["content"] for message in speaker.asked[1]] == ["Be brief.", "b\nc"]


def test_slack_is_that_of_the_tightest_token() -> None:
    pace = Pace(Slo(ttft_s=1.0, tpot_s=0.1), 0, [500_000_000, 1_090_000_000, 1_150_000_000])
    assert pace.slack_s == pytest.approx(0.01)
    assert "promise kept" in describe_pace(pace)
    pace.token_ns[2] = 1_300_000_000
    assert "late by 0.10 s" in describe_pace(pace)


def test_events_end_at_done_and_skip_comments() -> None:
    assert list(sse_events([b": ping\n", b'data: {"a": 1}\n', b"\n", b"data: [DONE]\n", b'data: {"b": 2}\n'])) == [{"a": 1}]


def test_only_http_urls_can_be_joined() -> None:
    with pytest.raises(Exception, match="ftp"):
        HttpSpeaker("ftp://x", "")
