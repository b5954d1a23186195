"""What every benchmark shares: a row's fields, ratios and their interval, table, JSON and exit status, and what counts as quiet."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import quiet
from benchmarks.quiet import repeat
from benchmarks.rows import Row, finish, header, peers_python, ratio_row
from benchmarks.servers import cpu_s, run_and_wait_ns

from headway.core.machine import Quiet

FIELDS = {"room", "case", "ours", "peer", "peer_version", "unit", "ratio", "ratio_low", "ratio_high", "limit", "goal", "met"}  # DESIGN.md 1
ROWS = [
    Row("engine", "decode at 16", 264.0, 112.0, "tok/s", "llama.cpp", 2.36, 1.87, 2.42, goal=">= 1.5x", met=True),
    Row("cli", "headway --help", None, None, "CPU-ms"),
]


def test_a_ratio_is_that_of_the_medians_inside_an_interval_over_pairs() -> None:
    steady = ratio_row("engine", "a", [30.0, 10.0, 20.0], [15.0, 5.0, 10.0], "tok/s", goal="x")
    assert (steady.ours, steady.peer, steady.ratio, steady.ratio_low, steady.ratio_high, steady.goal) == (20.0, 10.0, 2.0, 2.0, 2.0, "x")
    jitter = ratio_row("engine", "a", [20.0, 30.0, 25.0, 22.0], [10.0] * 4, "tok/s")
    assert jitter.ratio_low is not None and jitter.ratio is not None and jitter.ratio_high is not None
    assert 2.0 <= jitter.ratio_low <= jitter.ratio == 2.35 <= jitter.ratio_high <= 3.0


def test_the_json_has_the_rows_and_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = header("a title")
    assert finish(ROWS, machine, tmp_path / "out.json") == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert [set(row) for row in written["rows"]] == [FIELDS, FIELDS]
    assert written["rows"][0]["ratio_low"] == 1.87 and written["rows"][1]["ours"] is None
    assert {"cpu", "cores", "isa", "python", "versions", "load_before", "load_after"} <= set(written["machine"])
    shown = capsys.readouterr().out
    assert shown.startswith("a title\n")
    (line,) = [line for line in shown.splitlines() if line.startswith("decode at 16")]
    assert line.split() == ["decode", "at", "16", "264", "112", "tok/s", "2.36", "1.87-2.42", ">=", "1.5x", "met"]


@pytest.mark.parametrize(("met", "status", "word"), [(True, 0, "met"), (False, 1, "NOT met"), (None, 0, "")])
def test_a_missed_goal_is_the_exit_status(met: bool | None, status: int, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert finish([Row("engine", "case", 1.0, None, "s", goal="<= 5 s", met=met)], {}, None) == status
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"<= 5 s {word}")


def test_peers_that_are_not_installed_are_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PEERS", str(tmp_path))
    assert peers_python() is None
    assert "make peers" in capsys.readouterr().err


class Watch:
    """Test double of QuietWatch: says for each look what the test wrote down."""

    looks: Iterator[float]

    def __init__(self, roots: list[int]) -> None: ...

    def restart(self) -> None: ...

    def quiet(self) -> Quiet:
        return Quiet(1.0, next(Watch.looks), 0.0)


def looks(monkeypatch: pytest.MonkeyPatch, shares: list[float]) -> None:
    """`shares`: what others use before and during each repetition."""
    monkeypatch.setattr(quiet, "QuietWatch", Watch)
    Watch.looks = iter(shares)


def test_only_quiet_repetitions_count(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    looks(monkeypatch, [0.0, 0.0, 0.2, 0.0, 0.0, 0.3, 0.01, 0.02])
    done = repeat(2, lambda k: k, before_s=0)
    assert (done.kept, done.noisy, done.void, done.measurable) == ([0, 3], [1, 2], 2, True)
    assert capsys.readouterr().out.count("is void") == 2


def test_after_three_times_as_many_attempts_the_line_is_not_measurable(monkeypatch: pytest.MonkeyPatch) -> None:
    looks(monkeypatch, [0.0, 0.0] + [0.5] * 10)
    done = repeat(2, lambda k: k, before_s=0)
    assert (done.kept, done.void, done.measurable) == ([0], 5, False)


def test_a_trial_keeps_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    looks(monkeypatch, [0.5] * 4)
    assert repeat(2, lambda k: k, any_noise=True).kept == [0, 1]


def test_proc_says_what_a_process_used() -> None:
    import os

    assert cpu_s(os.getpid()) > 0
    threads = run_and_wait_ns(os.getpid())
    assert os.getpid() in threads and all(ran >= 0 and waited >= 0 for ran, waited in threads.values())
