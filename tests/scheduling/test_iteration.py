"""`apply` and `compose` one rule at a time, on views made by hand."""

import pytest

from headway.core.slo import Slo
from headway.scheduling import iteration
from headway.scheduling.kernels import clip_margin
from headway.scheduling.messages import Result, Submit
from headway.scheduling.view import PolicyName, View
from tests.scheduling.simulator import LAPTOP, engine_spec

MS = 1_000_000
CHAT = Slo(0.5, 0.05, None, "interactive")


def new_view(policy: PolicyName = "headway", **sizes: int) -> View:
    return iteration.new_view(engine_spec(**sizes), policy, {"law": LAPTOP})


def submit(view: View, id_: int, prompt: int, slo: Slo = CHAT, max_tokens: int = 64, arrival_ns: int = 0) -> None:
    iteration.apply(view, arrival_ns, Submit(id_, "m", "generate", slo, arrival_ns, prompt, 0, max_tokens, 0))


def ran(
    view: View, now_ns: int, *, dt_ns: int = 0, prefilled: tuple[tuple[int, int], ...] = (), emitted: tuple[int, ...] = (), pages: int = 0
) -> None:
    """An iteration ended: rows prefilled, one token each of `emitted`, which now hold `pages`."""
    held = tuple((id_, pages) for id_ in emitted) if pages else ()
    iteration.apply(view, now_ns, Result(1, dt_ns, prefilled, tuple((id_, 1) for id_ in emitted), (), (), held, {"m": (2048, 0)}))


def decoding(view: View, id_: int, slo: Slo, at_ns: int = 0) -> None:
    """A sequence of 16 prompt tokens that emitted its first token at `at_ns`."""
    submit(view, id_, 16, slo)
    ran(view, at_ns, prefilled=((id_, 16),), emitted=(id_,), pages=2)


def test_a_late_token_is_a_missed_promise_and_no_longer_anybodys_slack() -> None:
    view = new_view()
    decoding(view, 1, CHAT, at_ns=500 * MS)
    assert not view.sequences[1].missed and iteration.slack_ns(view, 500 * MS) == 50 * MS
    ran(view, 551 * MS, emitted=(1,))
    assert view.sequences[1].missed and iteration.slack_ns(view, 551 * MS) == 0
    decoding(view, 2, Slo(9.0, 0.5, None, "batch"), at_ns=600 * MS)
    assert iteration.slack_ns(view, 600 * MS) == 9_500 * MS - 600 * MS


def test_a_prompt_that_is_late_already_lets_one_that_is_not_go_first() -> None:
    view = new_view()
    submit(view, 1, 2000, Slo(0.5, 0.05))  # 3.5 s of reading
    submit(view, 2, 400, Slo(2.0, 0.05))
    assert iteration.compose(view, 0).work[0][0] == 2


@pytest.mark.parametrize("factor", [0.6, 2.0])
def test_the_law_follows_what_iterations_really_take(factor: float) -> None:
    view = new_view()
    decoding(view, 1, CHAT)
    predicted_s = LAPTOP.predict_s(1, 20, (), 1)
    for i in range(200):
        ran(view, i * 20 * MS, dt_ns=round(factor * predicted_s * 1e9), emitted=(1,))
    learned_s = view.models["m"].law.predict_s(1, 20, (), 1)
    assert learned_s == pytest.approx(factor * predicted_s, rel=0.1)


def test_a_prompt_gets_a_tile_beside_decodes_that_fill_the_pace_while_nobody_is_late_by_it() -> None:
    tight = Slo(0.5, 0.018, None, "interactive")  # a decode takes 8 ms, with a tile of 8 tokens 21
    ahead = new_view()
    decoding(ahead, 1, tight, at_ns=100 * MS)  # its next token is due 400 ms from now
    submit(ahead, 2, 200, Slo(20.0, 0.5, None, "batch"))
    assert iteration.compose(ahead, 100 * MS).work == ((2, 8),)
    due = new_view()
    decoding(due, 1, tight, at_ns=500 * MS)  # due in 18 ms
    submit(due, 2, 200, Slo(20.0, 0.5, None, "batch"))
    composed = iteration.compose(due, 500 * MS)
    assert composed.decode == ((1, 1),) and composed.work == ()


def test_fcfs_gives_512_tokens_an_iteration_decodes_included() -> None:
    view = new_view("fcfs", max_rows=4096)
    decoding(view, 1, CHAT)
    submit(view, 2, 300)
    submit(view, 3, 2000)
    composed = iteration.compose(view, 0)
    assert composed.decode == ((1, 1),) and composed.work == ((2, 300), (3, 211))


@pytest.mark.parametrize("policy", ["fcfs", "headway"])
def test_when_pages_run_out_the_last_to_come_gives_its_own_back(policy: PolicyName) -> None:
    view = new_view(policy, pages=4)
    for id_ in (5, 3):  # who came first is senior, whatever the number
        submit(view, id_, 32, max_tokens=16)
        iteration.apply(view, 0, Result(1, 0, ((id_, 32),), ((id_, 1),), (), (), ((id_, 2),), {"m": (0, 0)}))
    composed = iteration.compose(view, 0)
    assert composed.preempt == (3,) and composed.decode == ((5, 1),)


def test_best_effort_gives_its_pages_back_before_a_promise_does() -> None:
    view = new_view(pages=4)
    for id_, slo in ((1, Slo(cls="background")), (2, CHAT)):
        submit(view, id_, 32, slo, max_tokens=16)
        iteration.apply(view, 0, Result(1, 0, ((id_, 32),), ((id_, 1),), (), (), ((id_, 2),), {"m": (0, 0)}))
    composed = iteration.compose(view, 0)
    assert composed.preempt == (1,) and composed.decode == ((2, 1),)


def test_rows_that_can_wait_do_when_all_of_them_would_outlast_the_tightest_reader() -> None:
    view = new_view()
    for id_ in range(2, 14):
        decoding(view, id_, Slo(30.0, 0.5, None, "batch"))
    decoding(view, 1, Slo(0.5, 0.020, None, "interactive"))  # all 13 rows together take 27 ms
    composed = iteration.compose(view, 0)
    rows = [id_ for id_, _ in composed.decode]
    assert 1 in rows and 1 < len(rows) < 13 and composed.predicted_ns <= 20 * MS


def test_a_learned_margin_is_trusted_inside_bounds() -> None:
    assert [clip_margin(ratio) for ratio in (0.1, 0.9, 1.2, 7.0)] == [0.5, 0.9, 1.2, 1.6]


@pytest.mark.parametrize("policy", ["fcfs", "headway"])
def test_a_prompt_starts_only_when_the_pages_it_may_need_fit_beside_those_promised(policy: PolicyName) -> None:
    view = new_view(policy, pages=10)
    for id_ in (1, 2):
        submit(view, id_, 16, max_tokens=80)  # 6 pages each with its answer
    submit(view, 3, 16, max_tokens=16)
    assert [id_ for id_, _ in iteration.compose(view, 0).work] == [1]  # 3 would fit, but does not overtake 2
