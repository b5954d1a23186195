"""The policies against each other on the demo's mix, with the test double `LawEngine` in place of an engine."""

from itertools import pairwise

import pytest

from headway.core.law import IterationLaw
from headway.core.slo import Slo
from headway.scheduling import learned
from headway.scheduling.iteration import apply, compose, new_view
from headway.scheduling.messages import Result, Submit
from tests.scheduling.simulator import FOUR_TIMES, LAPTOP, Job, demo_mix, engine_spec, simulate

# About 71 % of what the simulated fcfs engine sustains on this mix when all of it waits at the start (0.95 x {1, 2, 0.2} a second).
RATES = {"chat": 0.67, "completion": 1.35, "summary": 0.135}


@pytest.mark.parametrize(("truth", "scale"), [(LAPTOP, 1), (FOUR_TIMES, 4)], ids=["laptop", "four-times"])
def test_headway_keeps_the_demo_promises_that_fcfs_breaks(truth: IterationLaw, scale: int) -> None:
    jobs = demo_mix(7, 60, {app: rate * scale for app, rate in RATES.items()})
    ours, theirs = simulate(jobs, "headway", truth, seed=7), simulate(jobs, "fcfs", truth, seed=7)
    for app in ("chat", "completion"):
        assert ours.share(app) >= 0.95
        assert ours.share(app) >= theirs.share(app) + 0.15
    assert ours.on_time() / ours.end_ns >= theirs.on_time() / theirs.end_ns


@pytest.mark.parametrize("truth", [LAPTOP, FOUR_TIMES], ids=["laptop", "four-times"])
def test_a_long_prompt_freezes_no_stream_and_is_read_nearly_as_fast_as_alone(truth: IterationLaw) -> None:
    """Issue 3, freeze test: gaps <= 55 ms at tpot 50 ms in 19 of 20, TTFT of 2,000 tokens <= 1.3x solo.

    Quiet, as the issue asks: 2 % jitter, no spikes (the other tests have 0.5 % of iterations 1.3x as long).
    """
    prompt = Job(2, 300_000_000, "summary", 2000, 4, Slo(30.0, 0.5, None, "batch"), 8)
    good, ratios = 0, []
    for seed in range(20):
        chat = Job(1, 0, "chat", 40, 390, Slo(1.0, 0.05, None, "interactive"), 400)
        both = simulate([chat, prompt], "headway", truth, seed=seed, spike_share=0.0)
        solo = simulate([prompt], "headway", truth, seed=seed, spike_share=0.0)
        times = both.token_ns[1]
        assert times[0] < prompt.arrival_ns and both.token_ns[2][0] < times[-1], "the stream must run while the prompt is read"
        good += max(b - a for a, b in pairwise(times)) <= 55_000_000
        ratios.append((both.scores[2].ttft_s or 0.0) / (solo.scores[2].ttft_s or 1.0))
    assert good >= 19
    assert sorted(ratios)[10] <= 1.3


def test_fcfs_does_freeze_the_stream() -> None:
    jobs = [
        Job(1, 0, "chat", 40, 200, Slo(1.0, 0.05, None, "interactive"), 400),
        Job(2, 1_000_000_000, "summary", 2000, 4, Slo(30.0, 0.5, None, "batch"), 8),
    ]
    times = simulate(jobs, "fcfs", LAPTOP).token_ns[1]
    assert max(b - a for a, b in pairwise(times)) > 500_000_000


def test_a_short_tight_prompt_passes_a_long_loose_one_in_the_middle() -> None:
    jobs = [
        Job(1, 0, "summary", 2000, 4, Slo(30.0, 0.5, None, "batch"), 8),
        Job(2, 500_000_000, "completion", 32, 4, Slo(0.3, 0.06, None, "realtime"), 8),
    ]
    seen = simulate(jobs, "headway", LAPTOP)
    assert seen.token_ns[2][0] < seen.token_ns[1][0]
    assert seen.scores[2].on_time


def test_overload_sheds_with_a_quote_instead_of_missing_everyone() -> None:
    jobs = demo_mix(3, 40, {app: 2 * rate for app, rate in RATES.items()})
    ours, theirs = simulate(jobs, "headway", LAPTOP), simulate(jobs, "fcfs", LAPTOP)
    refused = [s for s in ours.shed if s.reason == "overload"]
    assert refused and all(s.quote is not None and s.quote.after_s > 0 for s in refused)
    assert not theirs.shed
    assert ours.on_time() > 1.5 * theirs.on_time()


def test_background_work_is_never_shed_and_ends() -> None:
    jobs = demo_mix(5, 20, RATES)
    last = len(jobs)
    jobs += [Job(last + i, i * 1_000_000_000, "background", 300, 20, Slo(cls="background"), 32) for i in range(1, 8)]
    seen = simulate(jobs, "headway", LAPTOP)
    assert not seen.shed
    assert all(len(seen.token_ns[last + i]) == 20 for i in range(1, 8))
    assert seen.share("chat") == 1.0


def test_a_machine_that_becomes_slower_in_the_middle_of_a_prompt_is_believed_after_two_iterations() -> None:
    view = new_view(engine_spec(), "headway", {"law": LAPTOP})
    for _ in range(2000):  # of an engine that has run for a while: quantiles and correction are slow to move
        learned.observe_ratio(view.mixed_ratios, 1.0)
    view.models["m"].correction.p00, view.models["m"].correction.p11 = 1e-9, 3.5e-4
    chat, document = Slo(1.0, 0.05, None, "interactive"), Slo(60.0, 0.5, None, "batch")
    apply(view, 0, Submit(1, "m", "generate", chat, 0, 40, 0, 400, 0))
    now_ns, lengths, slower = 0, [], 1.0
    for n in range(400):
        if n == 20:
            apply(view, now_ns, Submit(2, "m", "generate", document, now_ns, 2000, 0, 4, 0))
        it = compose(view, now_ns)
        rows = dict(it.work)
        if 2 in rows:
            slower = 1.22 if len(lengths) >= 5 else 1.0
            lengths.append(it.predicted_ns * slower)
        dt_ns = round(it.predicted_ns * slower)
        now_ns += dt_ns
        done = [id for id, units in it.work if view.sequences[id].left == units] + [id for id, _ in it.decode]
        finished = tuple(id for id in done if view.sequences[id].emitted + 1 >= view.sequences[id].max_tokens)
        pages = tuple((s.id, -(-(s.context_tokens + rows.get(s.id, 1)) // 16)) for s in view.sequences.values())
        emitted = tuple((id, 1) for id in done)
        apply(view, now_ns, Result(n, dt_ns, it.work, emitted, finished, (), pages, {}))
        if 2 in finished:
            break
    assert len(lengths) > 10
    assert max(lengths[7:-1]) <= 51_000_000, "after two slow iterations the chunks have shrunk"
