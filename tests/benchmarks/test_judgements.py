"""How each benchmark turns what it saw into rows and verdicts, on tiny inputs made by hand; the engine's also runs, on a tiny model."""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import benchmarks.engine.__main__ as engine
import benchmarks.freeze.__main__ as freeze
import benchmarks.overhead.__main__ as overhead
import benchmarks.promises.__main__ as promises
import pytest
from benchmarks.rows import Row
from tests.support import tiny_model

from headway.bench.outcome import Outcome, Outcomes, RequestRow
from headway.bench.workflow import parse
from headway.scheduling.messages import Report

MS = 1_000_000


def by_case(rows: list[Row]) -> dict[str, Row]:
    return {row.case: row for row in rows}


# ---- engine ------------------------------------------------------------------------------------------------------------
def test_the_engine_benchmark_runs_and_writes_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(tmp_path / "tiny.gguf", seed=3, width=256, ffn=768)  # smaller ones have no whole chunk to read
    monkeypatch.setenv("PEERS", str(tmp_path / "none"))
    out = tmp_path / "rows.json"
    arguments = ["--model", str(model), "--repeats", "1", "--threads", "1", "--quick", "--json", str(out)]
    monkeypatch.setattr("sys.argv", ["benchmarks.engine", *arguments])
    engine.main()  # its status is that of a goal no tiny model is about
    rows = {row["case"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {"prefill 512, 1t", "decode at 16, 1t", "decode at 16, batch 4, 1t", "batch 4 against batch 1 (both ours), 1t"}
    assert all(row["ours"] > 0 and row["room"] == "engine" for row in rows.values())
    assert rows["decode at 16, 1t"]["limit"] > 0 and rows["prefill 512, 1t"]["limit"] is None
    assert "read limit" in capsys.readouterr().out


class Named:
    """Test double of a contender that has answered already."""

    def __init__(self, version: str) -> None:
        self.version = version


def test_goals_hold_for_two_threads_and_by_the_ratio() -> None:
    questions = engine.cases(2, quick=True)
    speeds = {("ours", case): [200.0, 210.0, 220.0] for case in questions} | {("cyllama", case): [100.0] * 3 for case in questions}
    speeds["ours", "decode at 16, batch 4"] = [500.0, 510.0, 520.0]
    cpu = {("ours", case): [0.01] for case in questions}
    contenders: Any = [Named("fast"), Named("cyllama 1")]
    rows = by_case(engine._rows(questions, speeds, cpu, [2e10], 1e8, contenders, 2))
    assert (rows["prefill 512, 2t"].ratio, rows["prefill 512, 2t"].met) == (2.1, False)  # the goal is 3
    assert rows["decode at 16, 2t"].met is True and rows["decode at 16, 2t"].limit == 200.0
    assert rows["decode at 16, batch 4, 2t"].met is None and rows["decode at 16, batch 4, 2t"].peer_version == "cyllama 1"
    four = rows["batch 4 against batch 1 (both ours), 2t"]
    assert four.ratio == pytest.approx(510 / 210) and four.met is True
    alone = by_case(engine._rows(questions, speeds, cpu, [2e10], 1e8, contenders, 1))
    assert alone["prefill 512, 1t"].met is None


# ---- freeze ------------------------------------------------------------------------------------------------------------
def frozen(gap_s: float, queued_s: float = 0.0, ttft_s: float = 1.2) -> freeze.Freeze:
    return freeze.Freeze([(0.01, 0.0), (gap_s, queued_s)], ttft_s, 1.0, (0, 1))


def test_freeze_judges_gaps_less_what_was_waited_for_a_core() -> None:
    kept = [frozen(0.05) for _ in range(19)] + [frozen(0.09, 0.04)]
    rows = freeze.judge(kept, [0.05] * 19 + [0.07], True)
    assert [row.met for row in rows] == [True, True, True]
    assert rows[0].ours == pytest.approx(70) and rows[1].ours == pytest.approx(90) and rows[2].ours == pytest.approx(1.2)
    assert [row.met for row in freeze.judge(kept, [0.05] * 18 + [0.056] * 2, True)] == [False, True, True]
    assert freeze.judge([*kept[:-1], frozen(0.09, 0.02)], [0.05] * 20, True)[1].met is False
    assert freeze.judge([frozen(0.05, ttft_s=1.31)] * 20, [0.05] * 20, True)[2].met is False
    assert {row.met for row in freeze.judge(kept, [0.05] * 20, False)} == {None}


def test_a_repetition_whose_stream_has_no_reports_is_not_a_good_one() -> None:
    assert freeze.judge([frozen(0.05)] * 20, [0.05] * 19 + [None], True)[0].met is False


def test_waiting_is_taken_between_the_samples_around_an_interval() -> None:
    samples = [(0, 0), (20 * MS, 1 * MS), (40 * MS, 5 * MS), (60 * MS, 9 * MS)]
    assert freeze.queued_s(samples, 25 * MS, 35 * MS) == pytest.approx(0.004)
    assert freeze.queued_s(samples, 5 * MS, 59 * MS) == pytest.approx(0.009)


def report(at_ms: int, emitted: tuple[tuple[int, int], ...]) -> Report:
    return Report("engine-0", 1, 1, 0, (at_ms - 1) * MS, 1, MS, 0, 0, emitted, (), (), (), (), (), {}, 0)


def test_the_stream_is_who_emitted_most_and_its_gaps_reach_over_the_windows_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [report(at, ((7, 1),)) for at in (10, 20, 30, 75, 80, 90)] + [report(78, ((8, 1),))]
    monkeypatch.setattr(freeze, "reports", lambda port: iter(told))
    gaps = freeze.engine_gaps_s(0, [(15 * MS, 35 * MS), (35 * MS, 81 * MS), (200 * MS, 300 * MS)])
    assert gaps == [pytest.approx(0.045), pytest.approx(0.045), None]


# ---- promises ----------------------------------------------------------------------------------------------------------
def outcomes(kept: int, missed: int) -> Outcomes:
    """Every app with so many promises kept (all tokens at once) and refused."""
    rows = []
    for app in ("chat", "completion", "summary"):
        for index in range(kept + missed):
            outcome: Outcome = "finished" if index < kept else "refused"
            tokens = [MS] * 8 if index < kept else []
            rows.append(RequestRow(app, index, 0, 8, sent_ns=1, end_ns=MS, outcome=outcome, token_ns=tokens, first_chunk_tokens=1))
    return Outcomes(0, 24_000 * MS, rows)


def test_promises_judges_the_share_the_paired_difference_and_the_rate() -> None:
    workflow = parse(files("headway.bench").joinpath("demo.yaml").read_bytes())
    pairs = [promises.Pair(fcfs=outcomes(14, 6), ours=outcomes(20, 0)) for _ in range(2)]
    rows = by_case(promises.judge(workflow, pairs, True))
    assert {row.met for row in rows.values()} == {True}
    kept = rows["interactive promises kept (40/40)"]
    assert (kept.ours, kept.peer) == (100.0, pytest.approx(70.0))
    assert rows["completion: paired difference"].ours == pytest.approx(30.0)
    assert rows["on-time requests per second, all"].ratio == pytest.approx(20 / 14)
    close = by_case(promises.judge(workflow, [promises.Pair(outcomes(18, 2), outcomes(19, 1))] * 2, True))
    assert close["interactive promises kept (38/40)"].met is True and close["interactive: paired difference"].met is False
    worse = promises.judge(workflow, [promises.Pair(outcomes(20, 0), outcomes(14, 6))], True)
    assert {row.met for row in worse} == {False}
    assert {row.met for row in promises.judge(workflow, pairs, False)} == {None}


# ---- overhead ----------------------------------------------------------------------------------------------------------
class Idle:
    """Test double of a server: its CPU counters move only by what the test's streams cost."""

    pid = 1
    pids = (1, 2)

    def __init__(self) -> None:
        self.used: dict[int, float] = {1: 5.0, 2: 7.0}
        self.inside_s = 3.0

    def get(self, path: str) -> dict[str, float]:
        return {"execute_cpu_s": self.inside_s}


def test_overhead_is_front_and_engine_less_the_step_call(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Idle()

    async def streams(_: Any) -> int:
        server.used = {1: 5.5, 2: 9.0}
        server.inside_s = 4.8
        return 1000

    monkeypatch.setattr(overhead, "_streams", streams)
    monkeypatch.setattr(overhead, "cpu_s", lambda pid: server.used[pid])
    assert overhead._once(server) == (1000, pytest.approx(0.5), pytest.approx(2.0), pytest.approx(1.8))  # type: ignore[arg-type]


@pytest.fixture(params=[0.2, 0.4])
def judged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[float, int, dict[str, Any]]]:
    """(ms a token, exit status, the row) of an overhead run whose repetitions are given."""
    from contextlib import nullcontext

    from benchmarks.quiet import Repetitions

    cost_ms: float = request.param
    runs = [(1000, 0.1, 0.5, 0.5), (1000, cost_ms, 1.0, 1.0)]

    async def streams(_: Any) -> int:
        return 1

    monkeypatch.setattr(overhead, "headway", lambda: nullcontext(Idle()))
    monkeypatch.setattr(overhead, "_streams", streams)
    monkeypatch.setattr(overhead, "repeat", lambda *_, **__: Repetitions(kept=runs))
    monkeypatch.setattr("sys.argv", ["benchmarks.overhead", "--json", str(tmp_path / "out.json")])
    status = overhead.main()
    yield cost_ms, status, json.loads((tmp_path / "out.json").read_text())["rows"][0]


def test_the_worst_repetition_is_judged(judged: tuple[float, int, dict[str, Any]]) -> None:
    cost_ms, status, row = judged
    assert row["ours"] == pytest.approx(cost_ms) and row["met"] is (cost_ms < 0.3) and status == (cost_ms >= 0.3)
