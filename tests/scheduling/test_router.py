"""The ladder, one scenario each."""

from headway.core.slo import Slo
from headway.scheduling import router
from headway.scheduling.messages import (
    Abort,
    Arrive,
    Cancel,
    Command,
    Dispatch,
    Downgrade,
    EngineDown,
    EngineUp,
    Hold,
    Relegate,
    Report,
    Shed,
    Tick,
)
from headway.scheduling.state import RouterState
from tests.scheduling.simulator import LAPTOP, engine_spec


def ready(policy: str = "headway", pages: int = 2048) -> RouterState:
    state = router.new_state(policy, 0, laws={"law": LAPTOP})  # type: ignore[arg-type]
    router.step(state, 0, EngineUp("e", 1, engine_spec(pages=pages)))
    return state


def arrive(state: RouterState, id_: int, prompt: int, slo: Slo, now_ns: int = 0, max_tokens: int = 16) -> list[Command]:
    return router.step(state, now_ns, Arrive(id_, "m", "generate", prompt, 1, {}, slo, "", max_tokens))


def test_what_can_be_kept_is_dispatched_with_its_promise() -> None:
    assert arrive(ready(), 1, 50, Slo(0.5, 0.05), now_ns=5) == [Dispatch(1, "e", 0, Slo(0.5, 0.05), 5)]


def test_a_named_promise_no_idle_engine_could_keep_is_shed_at_once_with_one_that_can() -> None:
    (shed,) = arrive(ready(), 1, 2000, Slo(0.5, 0.05))
    assert isinstance(shed, Shed) and shed.reason == "inadmissible" and shed.quote is not None
    again = arrive(ready(), 2, 2000, Slo(shed.quote.ttft_s * 1.01, shed.quote.tpot_s))
    assert isinstance(again[0], Dispatch)


def test_a_law_that_refuses_everything_is_put_to_the_test_now_and_then() -> None:
    state = ready()
    slo = Slo(0.5, 0.05)  # a 600-token prompt takes about a second by the law: refused, unless nothing else runs and it is time for a try
    assert isinstance(arrive(state, 1, 600, slo)[0], Dispatch)
    router.step(state, 1, Cancel(1, "test"))
    assert isinstance(arrive(state, 2, 600, slo, now_ns=2)[0], Shed)
    assert isinstance(arrive(state, 3, 600, slo, now_ns=6_000_000_000)[0], Dispatch)
    assert isinstance(arrive(state, 4, 600, slo, now_ns=20_000_000_000)[0], Shed)  # not idle


def test_a_default_promise_that_cannot_be_kept_is_downgraded_not_refused() -> None:
    commands = arrive(ready(), 1, 2000, Slo())
    assert commands[0] == Downgrade(1, "batch")
    assert isinstance(commands[1], Dispatch) and commands[1].slo.cls == "batch"


def test_busy_engine_holds_then_sheds_interactive_and_relegates_batch() -> None:
    state = ready()
    arrive(state, 1, 2000, Slo(4.0, 0.5, None, "batch"))  # 3.5 s of reading, due in 4
    assert isinstance(arrive(state, 2, 600, Slo(1.5, 0.05))[0], Hold)
    assert isinstance(arrive(state, 3, 600, Slo(5.0, 0.4, None, "batch"), now_ns=1)[0], Dispatch | Hold)
    assert [type(c) for c in router.step(state, 800_000_000, Tick()) if c.id == 2] == [Shed]  # type: ignore[union-attr]
    assert isinstance(arrive(state, 4, 1900, Slo(3.9, 0.4, None, "batch"), now_ns=900_000_000)[0], Hold)
    late = [type(c) for c in router.step(state, 3_000_000_000, Tick()) if c.id == 4]  # type: ignore[union-attr]
    assert late == [Dispatch, Relegate]


def test_memory_that_never_fits_is_shed_under_both_policies() -> None:
    for policy in ("fcfs", "headway"):
        (shed,) = arrive(ready(policy, pages=10), 1, 200, Slo(cls="background"))
        assert isinstance(shed, Shed) and shed.reason == "memory"


def test_pages_promised_to_others_and_places_taken_hold_a_request_back() -> None:
    loose = Slo(30.0, 0.5, None, "batch")
    state = ready(pages=100)  # 1,600 tokens
    assert isinstance(arrive(state, 1, 800, loose, max_tokens=400)[0], Dispatch)
    assert isinstance(arrive(state, 2, 800, loose, max_tokens=400)[0], Hold)
    assert isinstance(arrive(state, 3, 100, loose, max_tokens=100)[0], Dispatch)
    assert Dispatch(2, "e", 0, loose, 0) in router.step(state, 1, Cancel(1, "test"))
    state = router.new_state("headway", 0, laws={"law": LAPTOP})
    router.step(state, 0, EngineUp("e", 1, engine_spec(max_sequences=1)))
    assert isinstance(arrive(state, 1, 10, loose)[0], Dispatch)
    assert isinstance(arrive(state, 2, 10, loose)[0], Hold)


def test_fcfs_sheds_nothing_else_and_background_is_never_shed() -> None:
    state = ready("fcfs")
    assert all(isinstance(arrive(state, i, 2000, Slo(0.1, 0.001))[0], Dispatch) for i in range(50))
    state = ready()
    assert all(not isinstance(c, Shed) for i in range(100) for c in arrive(state, i, 2000, Slo(cls="background")))


def test_without_an_engine_requests_wait_and_a_dead_engines_are_forgotten() -> None:
    state = router.new_state("headway", 0, laws={"law": LAPTOP})
    assert isinstance(arrive(state, 1, 50, Slo(1.0, 0.05))[0], Hold)
    assert isinstance(router.step(state, 1, EngineUp("e", 1, engine_spec()))[0], Dispatch)
    router.step(state, 2, EngineDown("e", 7, "another boot"))
    assert 1 in state.requests
    router.step(state, 3, EngineDown("e", 1, "killed"))
    assert not state.requests and not state.engines


def test_cancel_aborts_what_was_dispatched_and_counts_the_command() -> None:
    state = ready()
    arrive(state, 1, 50, Slo(1.0, 0.05))
    assert router.step(state, 1, Cancel(1, "client gone")) == [Abort(1, "e", "client gone")]
    assert state.engines["e"].sent == 2 and not state.requests


def test_a_report_counts_once_and_only_from_the_boot_that_runs() -> None:
    state = ready()
    arrive(state, 1, 50, Slo(1.0, 0.05))

    def report(boot: int, seq: int) -> None:
        router.step(state, 1, Report("e", boot, seq, 1, 1, 1, 1, 1, 0, ((1, 1),), (), (), (), (), (), {}, 0))

    report(1, 1)
    report(1, 1)
    report(2, 2)
    assert state.requests[1].emitted == 1
    report(1, 2)
    assert state.requests[1].emitted == 2
