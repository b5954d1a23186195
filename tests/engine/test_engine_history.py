"""Whatever arrives, is cut, preempted, shared or aborted: every sequence gets exactly the tokens it would get alone."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.doubles import FirstComeScheduler, HistoryProgram, history_logits

from headway.core.slo import Slo
from headway.engine import wire
from headway.engine.engine import Engine, EngineModel
from headway.engine.sampling import Sampler
from headway.fleet.mirror import PrefixMirror
from headway.scheduling.messages import Dispatch, Iteration


def make_engine(program, *, accuracy="exact", max_sequences=8, stop_ids=frozenset(), policy="double"):
    """`policy` "double" = FirstComeScheduler; the others are the real scheduler."""
    model = EngineModel(program, stop_ids, accuracy=accuracy, kv_dtype="f16")
    return Engine(
        "e0",
        {"m": model},
        max_sequences,
        "fcfs" if policy == "double" else policy,
        scheduler=FirstComeScheduler() if policy == "double" else None,
    )


def submit(engine, id, tokens, salt="", model="m", kind="generate", **sampling):
    sampling.setdefault("max_tokens", 8)
    sampling.setdefault("temperature", 0.0)
    engine.submit(
        wire.Submit(id, model, kind, list(tokens), wire.Sampling(**sampling), salt), Dispatch(id, "e0", 0, Slo(1.0, 0.05), arrival_ns=0)
    )


def ticking():
    counter = itertools.count(1, 1_000_000)
    return lambda: next(counter)


def step(engine, clock, got=None, check=True):
    stepped = engine.step(clock(), clock)
    if check:
        engine.check_invariants()
    if stepped is None:
        return None
    for output in stepped[0]:
        if got is not None:
            got.setdefault(output.id, []).append(output)
    return stepped


def run_all(engine, limit=2000):
    got, clock = {}, ticking()
    for _ in range(limit):
        if step(engine, clock, got) is None:
            return got
    raise AssertionError("the engine makes no progress")


def tokens_of(outputs):
    return [token for output in outputs for token in output.token_ids]


def alone(prompt, sampling: wire.Sampling, classes, *, vocab=97, stop_ids=frozenset(), class_sensitive=True):
    """The oracle: no pages, no batches. `classes[i]` = class of row i of the whole history."""
    sampler, tokens, stops = Sampler(vocab), list(prompt), (set() if sampling.ignore_eos else set(stop_ids)) | set(sampling.stop_ids)
    out: list[int] = []
    while len(out) < sampling.max_tokens:
        kinds = [classes(i) if class_sensitive else 0 for i in range(len(tokens))]
        rows = np.array([(t, i, k) for i, (t, k) in enumerate(zip(tokens, kinds))], np.int64)
        logits = history_logits(rows, vocab)
        if len(out) < sampling.min_tokens:
            logits[list(stops)] = -np.inf
        token = sampler.sample(logits, int(logits.argmax()), sampling, len(tokens))
        if token in stops:
            break
        tokens.append(token)
        out.append(token)
    return out


arrival = st.fixed_dictionaries(
    {
        "at": st.integers(0, 12),
        "shared": st.integers(0, 3),
        "shared_tokens": st.integers(0, 90),
        "own": st.lists(st.integers(0, 96), min_size=1, max_size=40),
        "max_tokens": st.integers(1, 24),
        "temperature": st.sampled_from([0.0, 0.8]),
        "abort_after": st.none() | st.integers(0, 20),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(arrival, min_size=1, max_size=9),
    page_tokens=st.sampled_from([16, 32, 64]),
    pool_tokens=st.integers(192, 640),
    chunk=st.sampled_from([1, 7, 16, 40, 64]),
    preempt_every=st.sampled_from([0, 3, 7]),
    accuracy=st.sampled_from(["exact", "fast"]),
    segments=st.sampled_from([4, 16]),
    policy=st.sampled_from(["double", "fcfs", "headway"]),
)
def test_every_sequence_gets_the_tokens_it_would_get_alone(
    arrivals, page_tokens, pool_tokens, chunk, preempt_every, accuracy, segments, policy
):
    fast = accuracy == "fast"
    program = HistoryProgram(page_tokens=page_tokens, pages=pool_tokens // page_tokens, classes=fast, max_segments=segments)
    double = policy == "double"
    engine = make_engine(program, accuracy=accuracy, max_sequences=4, policy=policy)
    if double:
        engine.view.chunk_tokens = chunk
    shared = [np.random.default_rng(k).integers(0, 97, 90).tolist() for k in range(4)]
    prompts, samplings, classes, got, clock = {}, {}, {}, {}, ticking()
    for tick in range(6000):
        for id, a in enumerate(arrivals):
            if a["at"] == tick:
                prompts[id] = shared[a["shared"]][: a["shared_tokens"]] + a["own"]
                samplings[id] = {"max_tokens": a["max_tokens"], "temperature": a["temperature"], "seed": id}
                submit(engine, id, prompts[id], **samplings[id])
            if a["abort_after"] is not None and tick == a["at"] + a["abort_after"]:
                engine.abort(id, "client")
                engine.check_invariants()
        if double and preempt_every and tick % preempt_every == 0:
            engine.view.force_preempt |= set(list(engine.view.sequences)[tick % 3 :: 2]) if tick < 300 else set()
        for id, sequence in engine._residents["m"].sequences.items():
            classes.setdefault(id, {})
            for row in range(sequence.settled):
                kind = sequence.classes[row]
                assert classes[id].setdefault(row, kind) == kind, "a row keeps its class for life"
        if step(engine, clock, got) is None and tick > 40:
            break
    else:
        raise AssertionError("no progress")
    for id in range(len(arrivals)):
        outputs = got[id]
        sampling = wire.Sampling(**samplings[id])
        n = len(prompts[id])
        # Rows adopted from generated text keep that class (only in `fast`); all others follow from their place.
        kinds = classes.get(id, {})
        want = alone(prompts[id], sampling, lambda i, kinds=kinds, n=n: kinds.get(i, int(i >= n)), class_sensitive=fast)
        if outputs[-1].finish == "abort":
            assert tokens_of(outputs) == want[: len(tokens_of(outputs))]
        else:
            assert outputs[-1].finish == "length" and tokens_of(outputs) == want
    assert engine.pages()["m"][0] == 0, "no page is left owned"
    assert not engine._residents["m"].sequences and engine._residents["m"].tables.in_use == 0


def test_a_prefix_hit_saves_rows_and_does_not_change_tokens():
    prompt = np.random.default_rng(5).integers(0, 97, 70).tolist()
    program = HistoryProgram()
    engine = make_engine(program)
    submit(engine, 1, prompt)
    first = run_all(engine)
    rows = program.executed_rows
    submit(engine, 2, prompt)
    second = run_all(engine)
    assert tokens_of(first[1]) == tokens_of(second[2])
    assert first[1][0].cached_tokens == 0 and second[2][0].cached_tokens == 64
    assert program.executed_rows - rows == rows - 64


def test_a_preempted_answer_is_not_continued_on_pages_where_its_text_was_a_prompt():
    """In `fast` a row keeps its class for life: equal tokens that came as somebody's prompt were computed otherwise."""
    prompt = np.random.default_rng(5).integers(0, 97, 16).tolist()
    fast = make_engine(HistoryProgram(), accuracy="fast")
    submit(fast, 1, prompt, max_tokens=24)
    want = tokens_of(run_all(fast)[1])
    engine = make_engine(HistoryProgram(), accuracy="fast")
    submit(engine, 1, prompt + want[:16] + [0])
    run_all(engine)
    submit(engine, 2, prompt, max_tokens=24)
    got, clock = {}, ticking()
    while len(tokens_of(got.get(2, []))) < 20:
        step(engine, clock, got)
    engine.view.force_preempt = {2}
    while step(engine, clock, got) is not None:
        pass
    assert tokens_of(got[2]) == want


def test_another_salt_shares_nothing():
    prompt = [*list(range(64)), 1]
    engine = make_engine(HistoryProgram())
    submit(engine, 1, prompt, salt="alice")
    run_all(engine)
    submit(engine, 2, prompt, salt="bob")
    assert run_all(engine)[2][0].cached_tokens == 0


def test_samples_of_one_prompt_end_up_on_the_same_pages():
    prompt = [*list(range(64)), 1]
    engine = make_engine(HistoryProgram(pages=64))
    for id in range(4):
        submit(engine, id, prompt, max_tokens=40, temperature=1.0, sample_index=id)
    clock = ticking()
    for _ in range(9):
        step(engine, clock)
    pages = [s.pages[:4] for s in engine._residents["m"].sequences.values() if s.computed >= 64]
    assert len(pages) >= 2 and all(p == pages[0] for p in pages)


def test_logits_are_asked_only_for_rows_that_are_sampled():
    program = HistoryProgram()
    engine = make_engine(program)
    submit(engine, 1, list(range(90)), max_tokens=3)
    run_all(engine)
    assert program.executed_rows == 92 and program.executed_sampled == 3


def test_a_stop_token_ends_the_sequence_and_is_not_in_the_output():
    prompt = [3, 1, 4, 1, 5]
    free = tokens_of(run_with(prompt, max_tokens=8)[1])
    at = next(i for i in range(1, 8) if free[i] not in free[:i])
    stopped = run_with(prompt, stop_ids=frozenset([free[at]]), max_tokens=8)[1]
    assert tokens_of(stopped) == free[:at] and stopped[-1].finish == "stop" and stopped[-1].stop_id == free[at]
    assert tokens_of(run_with(prompt, stop_ids=frozenset([free[at]]), max_tokens=8, ignore_eos=True)[1]) == free
    own = run_with(prompt, max_tokens=8, sampling_stop=(free[at],), ignore_eos=True)[1]
    assert tokens_of(own) == free[:at]


def run_with(prompt, *, stop_ids=frozenset(), sampling_stop=(), **sampling):
    engine = make_engine(HistoryProgram(), stop_ids=stop_ids)
    submit(engine, 1, prompt, stop_ids=sampling_stop, **sampling)
    return run_all(engine)


def test_min_tokens_bans_the_stop_token_until_then():
    prompt = [3, 1, 4, 1, 5]
    free = tokens_of(run_with(prompt, max_tokens=8)[1])
    kept = run_with(prompt, stop_ids=frozenset(free), max_tokens=6, min_tokens=4)[1]
    assert len(tokens_of(kept)) >= 4 and not set(tokens_of(kept)[:4]) & set(free)


def test_logprobs_are_raw_where_stop_tokens_are_banned():
    prompt = [3, 1, 4, 1, 5]
    (best,) = run_with(prompt, max_tokens=1, logprobs=1)[1][0].logprobs[0].top
    outputs = run_with(prompt, stop_ids=frozenset([best[0]]), max_tokens=2, min_tokens=2, logprobs=1)[1]
    assert outputs[0].token_ids[0] != best[0] and outputs[0].logprobs[0].top == [best]


def test_prompt_logprobs_come_once_in_chunks_no_longer_than_the_sampled_rows():
    prompt = np.random.default_rng(1).integers(0, 97, 45).tolist()
    program = HistoryProgram(max_sampled_rows=8)
    engine = make_engine(program)
    submit(engine, 1, prompt)
    run_all(engine)
    submit(engine, 2, prompt, logprobs=2, prompt_logprobs=True, max_tokens=2)
    outputs = run_all(engine)[2]
    scores = outputs[0].prompt_logprobs
    assert outputs[0].cached_tokens == 0 and outputs[1].prompt_logprobs is None
    assert scores[0] is None and len(scores) == len(prompt)
    rows = np.array([(t, i, 0) for i, t in enumerate(prompt)], np.int64)
    for i in range(1, len(prompt)):
        logits = history_logits(np.concatenate([rows[:i, :2], np.zeros((i, 1), np.int64)], axis=1), 97).astype(np.float64)
        logp = logits - np.log(np.exp(logits).sum())
        assert scores[i].logprob == pytest.approx(logp[prompt[i]], abs=1e-5)
        assert [t for t, _ in scores[i].top] == np.argsort(-logp)[:2].tolist()
    assert outputs[0].logprobs[0].top[0][0] == outputs[0].token_ids[0]


def test_echo_without_new_tokens_scores_the_prompt_and_ends():
    outputs = run_with([5, 6, 7], max_tokens=0, logprobs=0, prompt_logprobs=True)[1]
    assert len(outputs) == 1 and outputs[0].finish == "length" and not outputs[0].token_ids and len(outputs[0].prompt_logprobs) == 3


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model": "x"}, "not loaded"),
        ({"tokens": []}, "no tokens"),
        ({"tokens": [97]}, "0..96"),
        ({"tokens": [-1]}, "0..96"),
        ({"tokens": [1] * 256}, "context is 256"),
        ({"kind": "embed"}, "only 'generate'"),
    ],
)
def test_what_cannot_be_served_is_an_error_output(change, part):
    engine = make_engine(HistoryProgram())
    submit(engine, 7, change.pop("tokens", [1, 2]), **change)
    outputs, report = step(engine, ticking())
    assert outputs[0].finish == "error" and part in outputs[0].error
    assert report.failed == ((7, "invalid_request"),)
    assert step(engine, ticking()) is None


def test_a_broken_row_fails_its_sequence_only():
    class Broken(HistoryProgram):
        def execute(self, batch):
            super().execute(batch)
            if len(batch.sampled_rows) == 2:
                self.logits[0, 5] = np.nan

    engine = make_engine(Broken())
    submit(engine, 1, [1, 2, 3])
    submit(engine, 2, [4, 5])
    got = run_all(engine)
    assert got[1][-1].finish == "error" and "broke down" in got[1][-1].error
    assert got[2][-1].finish == "length" and len(tokens_of(got[2])) == 8


def test_length_ends_at_context_or_pool():
    engine = make_engine(HistoryProgram(context_tokens=64, pages=3))
    submit(engine, 1, [1] * 40, max_tokens=1000)
    assert len(tokens_of(run_all(engine)[1])) == 8


def test_abort_frees_pages_at_once_and_reports():
    engine = make_engine(HistoryProgram())
    submit(engine, 1, list(range(50)))
    clock = ticking()
    step(engine, clock)
    assert engine.pages()["m"][0] > 0
    engine.abort(1, "client_gone")
    assert engine.pages()["m"][0] == 0
    engine.abort(1, "again")
    outputs, report = step(engine, clock)
    assert [o.finish for o in outputs] == ["abort"] and report.finished == ((1, "abort"),)
    assert step(engine, clock) is None


def test_two_models_take_turns_in_one_iteration():
    programs = {name: HistoryProgram(vocab=vocab) for name, vocab in (("m", 97), ("n", 31))}
    models = {name: EngineModel(program, frozenset(), "exact", "f16") for name, program in programs.items()}
    engine = Engine("e0", models, 4, "fcfs", scheduler=FirstComeScheduler())
    submit(engine, 1, [1, 2, 3])
    submit(engine, 2, [1, 2, 3], model="n")
    outputs, report = step(engine, ticking())
    assert {o.id for o in outputs} == {1, 2} and report.pages.keys() == {"m", "n"}


def test_the_tape_replays_to_the_same_iterations():
    engine = make_engine(HistoryProgram(pages=8))
    engine.tape = []
    for id in range(5):
        submit(engine, id, list(range(id, id + 30)), max_tokens=20)
    run_all(engine)
    scheduler = FirstComeScheduler()
    view = scheduler.new_view(engine.spec, "fcfs")
    for now_ns, entry in engine.tape:
        if type(entry).__name__ == "Iteration":
            assert scheduler.compose(view, now_ns) == entry
        else:
            scheduler.apply(view, now_ns, entry)


def test_a_report_predicts_the_iteration_that_follows():
    engine, clock = make_engine(HistoryProgram(), policy="headway"), ticking()
    engine.tape = []
    submit(engine, 1, range(40), max_tokens=4)
    told = []
    while (stepped := step(engine, clock)) is not None:
        told.append(stepped[1].next_ns)
    composed = [item.predicted_ns for _, item in engine.tape if isinstance(item, Iteration)]
    assert len(set(composed)) > 1 and told[-1] == 0
    assert [abs(a - b) <= 0.5 * b for a, b in zip(told, composed[1:])] == [True] * (len(composed) - 1)


def test_the_fronts_mirror_believes_what_the_prefix_cache_still_holds():
    """Dropped pages are told, those that only ever held generated text are not: the mirror knows prompts."""
    engine = make_engine(HistoryProgram(pages=16))
    mirror = PrefixMirror(16, 16)
    prompts = [np.random.default_rng(k).integers(0, 97, 70).tolist() for k in range(4)]
    dropped = 0
    for id, prompt in enumerate(prompts):
        submit(engine, id, prompt, max_tokens=40, temperature=0.0)
        for output in run_all(engine)[id]:
            dropped += output.pages_dropped
            mirror.drop(output.pages_dropped)
        mirror.admit(mirror.chain(prompt, ""))
    assert dropped > 0
    for id, prompt in reversed(list(enumerate(prompts))):
        held = engine._residents["m"].prefix
        key, pages = engine._residents["m"].root(""), 0
        while (entry := held.find(key, np.array(prompt[16 * pages : 16 * pages + 16], np.int32).tobytes(), None)) is not None:
            key, pages = entry.key, pages + 1
        assert mirror.cached_tokens(mirror.chain(prompt, ""), len(prompt)) == 16 * min(pages, 4), id
