"""Every state that an explorer hands out is one the model allows, once; caps, limits and budgets are kept and reported."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import ConfigError
from headway.crashtest import dag
from headway.crashtest.crash_states import STRATEGIES, Strategy, explore
from headway.crashtest.history import History
from headway.crashtest.models import MODELS
from headway.crashtest.models.variants import variants
from headway.crashtest.operations import Trace
from tests.crashtest import programs
from tests.crashtest.recorder import Recorder

NAMES = ("a", "b", "d/c")


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    r = Recorder({"a": b"old" * 40, "d": None})
    open_files: list[int] = []
    existing = {"a"}
    for number in range(draw(st.integers(1, 9))):
        step = draw(st.sampled_from(["open", "write", "write", "pwrite", "fsync", "rename", "unlink", "truncate", "directory", "marker"]))
        if step == "open" or (step in ("write", "pwrite", "fsync", "truncate") and not open_files):
            name = draw(st.sampled_from(NAMES))
            open_files.append(r.open(name))
            existing.add(name)
        elif step == "write":
            r.write(draw(st.sampled_from(open_files)), b"%d" % number * draw(st.integers(1, 5000)))
        elif step == "pwrite":
            r.write(draw(st.sampled_from(open_files)), b"%d" % number * 50, offset=draw(st.integers(0, 5000)))
        elif step == "fsync":
            r.fsync(draw(st.sampled_from(open_files)))
        elif step == "truncate":
            r.truncate(draw(st.sampled_from(open_files)), draw(st.integers(0, 60)))
        elif step == "directory":
            r.fsync_directory(draw(st.sampled_from(["", "d"])))
        elif step == "marker":
            r.begin(str(number))
            r.ack(str(number))
        elif existing:
            old = draw(st.sampled_from(sorted(existing)))
            existing.discard(old)
            if step == "unlink":
                r.unlink(old)
            else:
                new = draw(st.sampled_from([name for name in NAMES if name != old]))
                r.rename(old, new)
                existing.add(new)
    return r.trace()


@settings(max_examples=25)
@given(traces(), st.sampled_from(sorted(MODELS)), st.sampled_from([one for one in STRATEGIES if one != "fsync-reorder"]))
def test_every_state_is_allowed_by_the_model(trace: Trace, model: str, strategy: Strategy) -> None:
    exploration = explore(trace, model, strategy=strategy, limit=60)
    history = exploration.history
    for state in exploration:
        after = state.point.after
        torn = 0 if not state.variant else history.changes  # a torn write stands without what depends on it being whole
        assert torn or history.allows(after, state.kept | history.moot_after[after])


@settings(max_examples=25)
@given(traces(), st.sampled_from(sorted(MODELS)))
def test_exhaustive_without_a_cap_lists_exactly_the_images_of_the_down_closed_sets(trace: Trace, model: str) -> None:
    history = History.of(trace, MODELS[model], whole_writes=True)
    expected = set()
    for after in range(len(history.micros)):
        if dag.count_ideals(history.ancestors, history.pending_at(after), limit=500) > 500:
            return
        begun, acks = history.markers[after]
        for ideal in dag.ideals(history.ancestors, history.pending_at(after)):
            expected.add((history.tree(history.durable_after[after] | ideal).digest(), len(begun), len(acks)))
    seen = [(s.digest, len(s.begun), len(s.acks)) for s in explore(history, strategy="exhaustive", cap=None, whole_writes=True)]
    assert len(seen) == len(set(seen))
    assert set(seen) == expected


@settings(max_examples=25)
@given(traces())
def test_a_stricter_model_allows_no_image_that_a_looser_one_forbids(trace: Trace) -> None:
    def images(model: str) -> set[tuple[bytes, int, int]]:
        return {
            (s.digest, len(s.begun), len(s.acks))
            for s in explore(trace, model, strategy="exhaustive", cap=None, limit=400, whole_writes=True)
        }

    strict, loose = images("ext4"), images("ext4-wb")
    assert len(loose) >= 400 or strict <= loose


def test_nothing_completed_is_lost_once_everything_was_synced() -> None:
    r = Recorder()
    r.publish("f", b"data")
    r.ack("f")
    states = [state for state in explore(r.trace(), "ext4", strategy="exhaustive") if state.acks]
    assert [state.tree.files() for state in states] == [{"f": b"data"}]


def test_a_write_that_had_not_returned_when_the_sync_began_is_not_forced() -> None:
    r = Recorder({"f": b""})
    fd = r.open("f", 1)
    r.write(fd, b"late")
    r.fsync(fd)
    early = r.trace()
    assert {state.tree.files()["f"] for state in explore(early, "ext4", strategy="exhaustive") if state.point.after == 2} == set()
    from dataclasses import replace

    write, sync = early.operations[1], early.operations[2]
    early.operations[1:] = [replace(write, seq_enter=2, seq_exit=5), replace(sync, seq_enter=4, seq_exit=6)]
    history = History.of(early, MODELS["ext4"])
    assert history.durable_after[-1] == 0


def test_the_limit_is_kept_and_reported() -> None:
    exploration = explore(programs.rewritten(10), "ext4", strategy="exhaustive", limit=7)
    assert len(list(exploration)) == 7
    assert exploration.coverage.limit_hit
    assert not exploration.coverage.complete
    everything = explore(programs.saved(1), "ext4", strategy="exhaustive", limit=1000)
    assert len(list(everything)) < 1000
    assert everything.coverage.complete


def test_the_budget_ends_an_exploration_and_is_reported() -> None:
    now = iter(range(1000))
    exploration = explore(programs.saved(5), "ext4", strategy="exhaustive", budget_s=6.0, clock=lambda: float(next(now)))
    assert len(list(exploration)) <= 6
    assert exploration.coverage.budget_hit


def test_a_point_with_too_many_sets_is_sampled_and_reported() -> None:
    r = Recorder({str(name): b"old" for name in range(8)})
    for name in range(8):
        r.write(r.open(str(name), 1), b"new")
    full = explore(r.trace(), "ext4", strategy="exhaustive", cap=None)
    assert len(list(full)) == 2**8
    assert not full.coverage.capped_points
    sampled = explore(r.trace(), "ext4", strategy="exhaustive", cap=20)
    assert len(list(sampled)) < 2**8
    assert sampled.coverage.capped_points


def test_unknown_names_are_refused_with_what_is_known() -> None:
    with pytest.raises(ConfigError, match="ext4"):
        explore(programs.saved(1), "ext9")
    with pytest.raises(ConfigError, match="representative"):
        explore(programs.saved(1), strategy="clever")  # type: ignore[arg-type]


def test_random_states_are_reproducible_by_their_seed() -> None:
    def kept(seed: int) -> list[int]:
        return [state.kept for state in explore(programs.rewritten(4), strategy="random", seed=seed, limit=20)]

    assert kept(1) == kept(1)
    assert kept(1) != kept(2)


def test_writes_tear_where_the_model_says() -> None:
    r = Recorder({"f": b"o" * 12288})
    r.write(r.open("f", 1), b"n" * 12288, offset=0)
    trace = r.trace()

    def new_bytes(model: str) -> Counter[int]:
        return Counter(state.tree.files()["f"].count(b"n") for state in explore(trace, model, strategy="exhaustive"))

    assert set(new_bytes("ext4")) == {0, 4096, 8192, 12288}
    assert set(new_bytes("ext4-1k")) == {0, 1024, 11264, 12288}
    assert set(new_bytes("prefix")) == {0, 12288}


def test_a_fill_stands_for_data_that_was_never_written() -> None:
    r = Recorder()
    r.write(r.open("f"), b"data")
    files = [state.tree.files().get("f") for state in explore(r.trace(), "apm", strategy="exhaustive", whole_writes=False)]
    assert bytes(4) in files
    micro = next(micro for micro in History.of(r.trace(), MODELS["apm"]).micros if micro.kind == "data")
    assert not list(variants(MODELS["prefix"], micro.index, micro))
