"""Random histories: nothing is lost, nothing starves, state ends empty, snapshots and replays are exact."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.slo import Slo
from headway.scheduling import router
from headway.scheduling.messages import Arrive, Cancel, EngineDown, EngineUp, Event, Report, Tick
from headway.scheduling.state import RouterState
from headway.scheduling.view import View
from tests.scheduling.simulator import LAPTOP, Job, engine_spec, simulate

slos = st.sampled_from(
    [
        Slo(0.3, 0.06, None, "realtime"),
        Slo(),
        Slo(1.0, 0.05, None, "interactive"),
        Slo(20.0, 0.5, None, "batch"),
        Slo(cls="background"),
        Slo(None, 0.05, None, "interactive"),
        Slo(2.0, None, None, "interactive"),
        Slo(None, None, 9.0, "batch"),
    ]
)


@st.composite
def jobs(draw: st.DrawFn) -> list[Job]:
    made = []
    for i in range(draw(st.integers(1, 14))):
        prompt, output = draw(st.integers(1, 200)), draw(st.integers(1, 60))
        made.append(Job(i + 1, draw(st.integers(0, 2_000_000_000)), "any", prompt, output, draw(slos), draw(st.integers(output, 60))))
    return made


@given(jobs(), st.sampled_from(["fcfs", "headway"]), st.integers(17, 60), st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_every_sequence_ends_and_no_page_or_counter_is_left(work: list[Job], policy: str, pages: int, max_sequences: int) -> None:
    seen = simulate(work, policy, LAPTOP, spec=engine_spec(pages=pages, max_rows=64, max_sequences=max_sequences))  # type: ignore[arg-type]
    shed = {s.id for s in seen.shed}
    for job in work:
        assert len(seen.token_ns[job.id]) == (0 if job.id in shed else job.output_tokens)
    assert not seen.engine.view.sequences and not any(seen.engine.held.values())
    assert not seen.state.requests
    if policy == "fcfs":
        assert not shed


@given(jobs())
@settings(max_examples=20, deadline=None)
def test_replaying_the_events_gives_the_same_commands_from_any_snapshot(work: list[Job]) -> None:
    seen = simulate(work, "headway", LAPTOP, spec=engine_spec(pages=40, max_sequences=4))
    first = seen.state.laws["law"]
    state = router.new_state("headway", 0, laws={"law": first})
    log: list[object] = []
    for now_ns, event in seen.events:
        log.extend(router.step(state, now_ns, event))
        state = RouterState.from_plain(json.loads(json.dumps(state.to_plain())))
    assert log == seen.commands
    assert state.to_plain() == seen.state.to_plain()


def test_a_view_survives_a_snapshot_exactly() -> None:
    seen = simulate([Job(1, 0, "any", 100, 20, Slo(), 30), Job(2, 1, "any", 30, 5, Slo(20.0, 0.5, None, "batch"), 9)], "headway", LAPTOP)
    plain = seen.engine.view.to_plain()
    assert View.from_plain(json.loads(json.dumps(plain))).to_plain() == plain


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events in any order, sensible or not: reports of strangers, repeated boots, cancels of what never came."""
    ids = st.integers(1, 6)
    engines = st.sampled_from(["a", "b"])
    events: list[Event] = []
    for seq in range(1, draw(st.integers(1, 30))):
        kind = draw(st.sampled_from(["arrive", "arrive", "up", "down", "cancel", "tick", "report"]))
        if kind == "arrive":
            events.append(Arrive(draw(ids), "m", "generate", draw(st.integers(1, 3000)), 1, {}, draw(slos), "", draw(st.integers(1, 300))))
        elif kind == "up":
            events.append(EngineUp(draw(engines), draw(st.integers(1, 3)), engine_spec()))
        elif kind == "down":
            events.append(EngineDown(draw(engines), draw(st.integers(1, 3)), "killed"))
        elif kind == "cancel":
            events.append(Cancel(draw(ids), "client"))
        elif kind == "tick":
            events.append(Tick())
        else:
            id_ = draw(ids)
            done = draw(st.sampled_from(["finished", "failed", "emitted", "preempted"]))
            events.append(
                Report(
                    draw(engines), draw(st.integers(1, 3)), seq, 0, 0, seq, 10_000_000, 10_000_000, 0,
                    ((id_, 1),) if done == "emitted" else (), (), (),
                    ((id_, "stop"),) if done == "finished" else (), ((id_, "x"),) if done == "failed" else (),
                    (id_,) if done == "preempted" else (), {}, 0,
                )
            )  # fmt: skip
    return events


@given(histories(), st.sampled_from(["fcfs", "headway"]))
@settings(max_examples=120, deadline=None)
def test_no_history_leaves_a_stuck_counter(events: list[Event], policy: str) -> None:
    state = router.new_state(policy, 0, laws={"law": LAPTOP})  # type: ignore[arg-type]
    for i, event in enumerate(events):
        router.step(state, i * 40_000_000, event)
        assert all(r.engine_id in state.engines for r in state.requests.values() if r.engine_id)
    for engine in list(state.engines.values()):
        router.step(state, 10**10, EngineDown(engine.engine_id, engine.boot, "end"))
    for id_ in list(state.requests):
        router.step(state, 10**10, Cancel(id_, "end"))
    assert not state.requests and not state.engines
