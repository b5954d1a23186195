"""Due times, defaults, parsing, and the one scorer."""

import math

import pytest

from headway.core.errors import InvalidRequest
from headway.core.slo import Slo, class_default, from_request, resolve, score

MS = 1_000_000


def test_due_times_follow_the_parts_given() -> None:
    assert Slo(1.0, 0.05).due_ns(7, 3) == 7 + 1_150 * MS
    assert Slo(None, 0.05).due_ns(7, 0) is None
    assert Slo(None, 0.05).due_ns(7, 2, first_ns=100) == 100 + 100 * MS
    assert Slo(1.0, None).due_ns(7, 1) is None
    assert Slo(1.0, 0.05, cls="background").due_ns(7, 0) is None


def test_a_late_token_that_is_caught_up_is_still_late_and_an_early_bank_is_kept() -> None:
    slo = Slo(0.1, 0.05)
    assert score(slo, 0, [100 * MS, 150 * MS, 199 * MS], "finished", 199 * MS).on_time is True
    banked = score(slo, 0, [10 * MS, 140 * MS], "finished", 140 * MS)  # a 130 ms gap, every due time met
    assert banked.on_time is True and banked.tpot_s == pytest.approx(0.13)
    late = score(slo, 0, [100 * MS, 151 * MS, 160 * MS], "finished", 160 * MS)
    assert (late.on_time, late.late_tokens, late.first_late, late.max_lateness_ns) == (False, 1, 1, MS)


def test_e2e_is_due_for_the_last_token() -> None:
    assert score(Slo(e2e_s=0.2), 0, [1, 200 * MS], "finished", 200 * MS).on_time is True
    assert score(Slo(e2e_s=0.2), 0, [1, 201 * MS], "finished", 201 * MS).first_late == 1


@pytest.mark.parametrize("ended", ["shed", "failed", "cancelled_by_us"])
def test_what_we_ended_is_missed(ended: str) -> None:
    assert score(Slo(1.0, 0.05), 0, [], ended, 1).on_time is False  # type: ignore[arg-type]


def test_a_client_that_leaves_is_scored_only_when_a_due_time_had_passed() -> None:
    assert score(Slo(1.0, 0.05), 0, [], "cancelled_by_client", 999 * MS).on_time is None
    assert score(Slo(1.0, 0.05), 0, [], "cancelled_by_client", 1001 * MS).on_time is False
    assert score(Slo(1.0, 0.05), 0, [10 * MS], "cancelled_by_client", 1051 * MS).on_time is False


def test_background_is_not_scored_and_an_empty_answer_is_judged_by_its_end() -> None:
    assert score(class_default("background"), 0, [], "shed", 1).on_time is None
    assert score(Slo(1.0, 0.05), 0, [], "finished", 10 * MS).on_time is True
    assert score(Slo(1.0, 0.05), 0, [], "finished", 1001 * MS).on_time is False


def test_defaults_fill_only_what_is_empty() -> None:
    assert resolve(None) == class_default("interactive") == resolve(Slo())
    assert resolve(Slo(ttft_s=2.0)).tpot_s is None
    assert resolve(Slo(1.0, 1.0, cls="background")) == Slo(cls="background")


def test_body_wins_over_headers_part_by_part() -> None:
    slo = from_request(
        {"ttft_ms": 200}, {"x-slo-ttft-ms": "900", "x-slo-tpot-ms": "40", "x-llm-d-slo-tpot-ms": "99", "x-slo-class": "realtime"}
    )
    assert slo == Slo(0.2, 0.04, None, "realtime")


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 1e12, 10**400, "fast", True, [1], 1e-9])
def test_absurd_promises_are_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        from_request({"ttft_ms": value})
    assert caught.value.param == "slo.ttft_ms"
