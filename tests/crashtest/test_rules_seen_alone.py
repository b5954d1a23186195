"""Single rules of models, collapsing and grouping, each on the smallest trace that shows it."""

from headway.crashtest import dag
from headway.crashtest.behaviours import MAX_STEPS, Labels, parts_at
from headway.crashtest.history import History
from headway.crashtest.models import MODELS
from headway.crashtest.models.variants import variants
from headway.crashtest.operations import Frame
from headway.crashtest.pathfinder import Faithful, pm
from headway.crashtest.pathfinder.grouping import represents
from headway.crashtest.pathfinder.inference import Behaviour
from headway.crashtest.representatives import choose, states
from tests.crashtest import programs
from tests.crashtest.recorder import Recorder


def _history(recorder: Recorder, model: str = "ext4") -> History:
    return History.of(recorder.trace(), MODELS[model])


def test_writes_to_one_page_keep_their_order_and_those_to_two_do_not() -> None:
    r = Recorder({"f": b"o" * 8192})
    fd = r.open("f", 1)
    for offset in (0, 200, 4096):
        r.write(fd, b"new", offset=offset)
    assert _history(r).preds == [0, 0b1, 0]
    assert _history(r, "posix").preds == [0, 0, 0]


def test_a_block_allocated_after_a_cut_is_never_there_before_it() -> None:
    r = Recorder({"f": b"o" * 12288})
    fd = r.open("f", 1)
    r.truncate(fd, 0)
    r.write(fd, b"n", offset=8192)
    r.write(fd, b"n", offset=0)
    history = _history(r)
    cut = next(place for place, micro in enumerate(history.micros) if micro.kind == "trunc")
    last = max(place for place, micro in enumerate(history.micros) if micro.kind == "data")
    assert history.ancestors[last] >> cut & 1


def test_only_what_extends_a_file_may_hold_a_fill() -> None:
    r = Recorder({"f": b"o" * 100})
    r.write(r.open("f", 1), b"new", offset=0)
    (micro,) = _history(r).micros
    assert not [one for one in variants(MODELS["apm"], 0, micro) if "instead" in one.name]
    r = Recorder({"f": b""})
    r.write(r.open("f", 1), b"new")
    micro = next(one for one in _history(r).micros if one.kind == "data")
    assert len([one for one in variants(MODELS["apm"], 0, micro) if "instead" in one.name]) == 2


def test_older_objects_that_look_alike_are_lost_or_kept_together() -> None:
    r = Recorder({f"{name}.log": b"o" * 100 for name in range(6)})
    for name in range(6):
        r.write(r.open(f"{name}.log", 1), b"n", offset=0)
    history = _history(r)
    parts = parts_at(history, Labels(history), len(history.micros) - 1)
    assert sorted(part.places.bit_count() for part in parts) == [1, 5]


def test_a_long_pending_history_keeps_its_newest_steps() -> None:
    r = Recorder({"f": b"o" * 4096})
    fd = r.open("f", 1)
    for number in range(40):
        r.stack = (Frame("step", "app.c", number, 0),)
        r.write(fd, b"n", offset=number)
    history = _history(r)
    (part,) = parts_at(history, Labels(history), len(history.micros) - 1)
    assert len(part.groups) <= MAX_STEPS
    assert part.places == history.changes


def test_classes_pairs_and_contexts_each_give_states() -> None:
    history = History.of(programs.journal(40, sync_at_switch=False), MODELS["ext4"])
    chosen = choose(history)
    listed = list(states(history, chosen, cap=64, seed=0, torn=True))
    assert len([one for one in listed if one.origin == "pair"]) == len(chosen.pairs) > 0
    assert len([one for one in listed if one.origin == "context"]) == 2 * len(chosen.contexts)
    after, part = next(iter(chosen.pairs.values()))
    assert any(one.origin == "pair" and one.after == after and not one.kept & part.places for one in listed)


def test_every_part_is_also_tested_with_the_others_lost() -> None:
    r = Recorder({"a.log": b"o", "b.db": b"o"})
    for name in ("a.log", "b.db"):
        r.write(r.open(name, 1), b"n", offset=0)
    history = _history(r)
    chosen = choose(history)
    kept = {one.kept for one in states(history, chosen, cap=64, seed=0, torn=False) if one.origin.startswith("class")}
    assert kept == set(dag.ideals(history.ancestors, history.changes))


def _stack(line: int) -> tuple[Frame, ...]:
    return (Frame("put", "db.c", line, line),)


def test_pathfinder_wants_equal_call_sites_and_equal_edges() -> None:
    r = Recorder({"f": b"o" * 9000, "g": b"o" * 9000})
    f, g = r.open("f", 1), r.open("g", 1)
    for fd, lines, offsets in ((f, (1, 2), (0, 0)), (g, (1, 2), (0, 0)), (g, (1, 2), (0, 8192)), (f, (1, 3), (4096, 4096))):
        for line, offset in zip(lines, offsets):
            r.stack = _stack(line)
            r.write(fd, b"n", offset=offset)
    plan = Faithful(r.trace()).plan
    ordered, same, unordered, elsewhere = (Behaviour("put", (i, i + 1)) for i in range(2, 10, 2))
    assert represents(plan.events, plan.predecessors, ordered, same)
    assert not represents(plan.events, plan.predecessors, ordered, unordered)
    assert not represents(plan.events, plan.predecessors, ordered, elsewhere)


def test_memory_behaviours_are_cut_where_only_a_path_leads_on() -> None:
    before, preds = [0, 0b1, 0b11], [0, 0b1, 0b10]
    assert pm._cut_by_order([0, 2], preds, before, 64) == [[0], [2]]
    assert pm._cut_by_order([0, 1, 2], preds, before, 64) == [[0, 1, 2]]
    assert pm._cut_by_order([0, 70], [0] * 71, [0] * 71, 64) == [[0], [70]]
