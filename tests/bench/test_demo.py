"""The demo from end to end against the named double, and that nothing of it stays behind."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from headway.bench import pauses
from headway.bench.demo import Options, disturbance, play, rates_in_words, sentence, unsupported
from headway.bench.outcome import Outcomes, RequestRow

_ROOT = Path(__file__).resolve().parents[2]
_DOUBLE = """
import json, runpy, sys
sys.argv = ["mock", sys.argv[1], json.dumps({"ttft_ms": 150, "itl_ms": 8 if sys.argv[2] == "headway" else 25})]
runpy.run_path("tests/bench/mock_server.py", run_name="__main__")
"""


def _options(folder: Path, **changes: object) -> Options:
    double = folder / "double.py"
    double.write_text(_DOUBLE)
    serve = f"{shlex.quote(sys.executable)} {shlex.quote(str(double))} {{port}} {{policy}}"
    plain = {"saturating_s": 1.0, "part_s": (1.5, 2.0), "chat_at_least": 10, "serve": serve}
    return Options(folder / "out", 3, **{**plain, **changes})  # type: ignore[arg-type]


class _Outside(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_the_demo_runs_and_its_report_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(_ROOT)
    monkeypatch.setenv("PYTHONPATH", f"{_ROOT / 'src'}:{_ROOT}")
    assert play(_options(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "your chat paused at most" in shown
    assert shown.index("paused at most") < shown.index("95 %") < shown.index("report  ") < shown.index("next:")
    page = (tmp_path / "out" / "report.html").read_text()
    reader = _Outside()
    reader.feed(page)
    assert reader.found == [] and "script" not in reader.tags and "url(" not in page
    assert reader.tags.count("svg") >= 6
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for arm in ("fcfs", "headway"):
        assert report["arms"][arm]["classes"]["interactive"]["scheduled"] >= 10
        assert report["arms"][arm]["all"]["failed"] == 0
    events = [(tmp_path / "out" / f"events-{arm}-0.jsonl").read_text().splitlines() for arm in ("fcfs", "headway")]
    arrivals = [sorted((row["app"], row["index"], row["wanted_tokens"]) for row in map(json.loads, lines)) for lines in events]
    assert arrivals[0] == arrivals[1]  # both policies got the same requests


def test_a_server_that_does_not_start_is_said_with_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = f"{sys.executable} -c 'raise SystemExit(\"no model here\")'"
    assert play(_options(tmp_path, serve=broken)) == 1
    assert "no model here" in capsys.readouterr().err


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    options = _options(tmp_path)
    # a test run started in the background inherits "ignore SIGINT", which a terminal's Ctrl-C would not meet
    heed = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = heed + "from headway.bench.demo import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}", "DEMO_MARK": str(tmp_path)}
    argv = [sys.executable, "-c", program, "-o", str(options.output), "--serve", options.serve]
    demo = subprocess.Popen(
        argv, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert demo.stdout is not None
    while "what this machine can do" not in demo.stdout.readline():
        assert demo.poll() is None
    while len(_marked(tmp_path)) < 6:  # itself, two servers, three workers
        assert demo.poll() is None
        time.sleep(0.05)
    os.kill(demo.pid, signal.SIGINT)
    _, error = demo.communicate(timeout=30)
    assert demo.returncode == 130 and "interrupted" in error and "Traceback" not in error
    assert _marked(tmp_path) == []


def _marked(folder: Path) -> list[int]:
    """Processes started by this test: they inherit its mark."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"DEMO_MARK={folder}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:  # ended meanwhile, or not ours
            continue
    return found


def _stream(app: str, index: int, scheduled_ms: int, tokens_ms: list[int]) -> RequestRow:
    tokens = [at * 1_000_000 for at in tokens_ms]
    return RequestRow(app, index, scheduled_ms * 1_000_000, len(tokens), end_ns=tokens[-1], outcome="finished", token_ns=tokens)


def test_the_sentence_speaks_of_pauses_beside_a_document_only() -> None:
    chat = _stream("chat", 0, 0, [10, 900, 1000, 1040, 1080, 1500, 4000])
    document = _stream("summary", 0, 950, [1100, 1200])
    run = Outcomes(0, 10**10, [chat, document])
    found = pauses.find(run.requests, "chat", "summary")
    assert [pause.gap_ns for pause in found] == [420_000_000]  # 1080 -> 1500; 900 before and 2,500 after it do not count
    assert "at most 420 ms" in sentence({"headway": [run], "fcfs": [run]})
    assert "says nothing" in sentence({"headway": [run], "fcfs": [Outcomes(0, 1, [chat])]})


def test_the_picture_shows_the_same_document_in_every_lane() -> None:
    slow = Outcomes(0, 10**10, [_stream("chat", 0, 0, [10, 1000, 3000]), _stream("summary", 0, 950, [2000])])
    quick = Outcomes(0, 10**10, [_stream("chat", 0, 0, [10, 1000, 1040, 1080]), _stream("summary", 0, 950, [1070])])
    lanes = pauses.lanes({"fcfs": [slow], "headway": [quick]}, "chat", "summary")
    assert [lane.longest.gap_ns // 1_000_000 for lane in lanes if lane.longest] == [2000, 990]
    assert len({lane.length_ns for lane in lanes}) == 1
    assert all(len(line) == 40 for lane in lanes for line in pauses.as_text(lane, 40))


def test_this_machine_is_supported_or_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert "riscv64" in unsupported() and "\n" not in unsupported()


def test_a_disturbed_run_says_so() -> None:
    assert disturbance([0.01, 0.02, 0.0, 0.04]) == []
    (note,) = disturbance([0.01, 0.74, 0.0, 0.04])
    assert "74%" in note and "run it again" in note


def test_rates_say_their_true_share_and_why_one_is_not_what_was_aimed_at() -> None:
    exact = rates_in_words({"chat": 0.75}, {"chat": 0.75}, 20.0, 62)
    assert "chat 0.75/s (75%)" in exact and "off" not in exact
    raised = rates_in_words({"chat": 1.5, "summary": 0.05}, {"chat": 1.1, "summary": 0.745}, 20.0, 62)
    assert "chat 1.50/s (110%), summary 0.05/s (74%)" in raised and "(chat: off 75%" in raised and "62 chats" in raised
