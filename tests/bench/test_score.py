"""Attainment counts everything that was scheduled; what is not known is an interval, never a guess."""

import pytest

from headway.bench import workflow
from headway.bench.outcome import Outcome, Outcomes, RequestRow
from headway.bench.score import summarise

_MS = 1_000_000
_WORKFLOW = workflow.parse("""
schema: cbx/1
run: {max: 10s}
services: {llm: {url: "http://127.0.0.1:1/v1"}}
apps:
  chat: {kind: chat, service: llm, load: {rate: 1/s}, output: {tokens: 3}, slo: {ttft: 100ms, tpot: 10ms}}
  bulk: {kind: chat, service: llm, load: {rate: 1/s}, output: {tokens: 3}, class: background}
""")


def _row(index: int, outcome: Outcome, tokens_ms: list[int], end_ms: int, app: str = "chat") -> RequestRow:
    tokens = [at * _MS for at in tokens_ms]
    return RequestRow(app, index, 0, 3, sent_ns=1, end_ns=end_ms * _MS, outcome=outcome, token_ns=tokens, first_chunk_tokens=1)


def _summary(*rows: RequestRow) -> dict[str, object]:
    return summarise(_WORKFLOW, [Outcomes(0, 10**10, list(rows))])["classes"]["interactive"]  # type: ignore[no-any-return]


def test_on_time_means_every_token() -> None:
    kept = _row(0, "finished", [90, 110, 120], 121)
    late_last = _row(1, "finished", [10, 20, 121], 122)
    summary = _summary(kept, late_last)
    assert (summary["met"], summary["scheduled"]) == (1, 2)
    assert summary["goodput_per_s"] == 0.1


@pytest.mark.parametrize("outcome", ["refused", "failed"])
def test_refused_and_failed_are_missed_however_early_they_came(outcome: Outcome) -> None:
    summary = _summary(_row(0, outcome, [], 5), _row(1, "finished", [1, 2, 3], 4))
    assert (summary["met"], summary["scheduled"], summary["undetermined"], summary[outcome]) == (1, 2, 0, 1)
    assert summary["attainment"] == 0.5


def test_unfinished_is_missed_once_a_due_time_has_passed_and_open_before() -> None:
    overdue, early = _row(0, "unfinished", [], 101), _row(1, "unfinished", [90], 95)
    summary = _summary(overdue, early, _row(2, "finished", [1, 2, 3], 4))
    assert (summary["met"], summary["undetermined"], summary["unfinished"]) == (1, 1, 2)
    low, high = summary["low"], summary["high"]
    assert isinstance(low, float) and isinstance(high, float) and low < 1 / 3 and high > 2 / 3


def test_background_is_never_scored_but_counted() -> None:
    plain = summarise(_WORKFLOW, [Outcomes(0, 10**10, [_row(0, "finished", [1, 2, 3], 4, app="bulk")])])
    assert plain["classes"]["background"]["attainment"] is None
    assert plain["apps"]["bulk"]["scheduled"] == 1


def test_no_percentile_where_the_sample_is_too_small() -> None:
    few = _summary(*(_row(k, "finished", [k + 1, k + 2, k + 3], k + 4) for k in range(58)))
    enough = _summary(*(_row(k, "finished", [k + 1, k + 2, k + 3], k + 4) for k in range(59)))
    assert few["ttft"]["p95"]["value"] is None and "59" in few["ttft"]["p95"]["reason"]  # type: ignore[index]
    assert enough["ttft"]["p95"]["value"] is not None  # type: ignore[index]
    assert enough["ttft"]["p99"]["value"] is None  # type: ignore[index]


def test_latency_counts_from_the_scheduled_time() -> None:
    row = _row(0, "finished", [50, 60, 70], 71)
    row.sent_ns = 45 * _MS
    assert row.ttft_ns == 50 * _MS
    assert row.tpot_ns == 10 * _MS


def test_a_first_chunk_of_several_tokens_is_left_out_of_the_pace() -> None:
    row = _row(0, "finished", [50, 50, 50, 60, 70], 71)
    row.first_chunk_tokens = 3
    assert row.tpot_ns == 10 * _MS
