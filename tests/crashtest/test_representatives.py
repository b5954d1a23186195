"""Representatives: every kind of bug that the exhaustive walk finds, from a number of states that does not grow with the program."""

import pytest

from headway.crashtest.behaviours import Labels, call_site, parts_at, pattern
from headway.crashtest.crash_states import Coverage, Strategy, explore
from headway.crashtest.history import History
from headway.crashtest.models import MODELS
from headway.crashtest.operations import Frame
from tests.crashtest import programs
from tests.crashtest.programs import CORRECT, PLANTED, Oracle
from tests.crashtest.recorder import Recorder


def failures(trace: object, oracle: Oracle, model: str, strategy: Strategy, limit: int | None = None) -> tuple[set[str], Coverage]:
    exploration = explore(trace, model, strategy=strategy, limit=limit)  # type: ignore[arg-type]
    found = {verdict for state in exploration if (verdict := oracle(state)) is not None}
    return found, exploration.coverage


@pytest.mark.parametrize("model", ["ext4", "posix", "xfs"])
@pytest.mark.parametrize("name", PLANTED)
def test_every_kind_of_failure_is_kept(name: str, model: str) -> None:
    program, oracle = PLANTED[name]
    everything, _ = failures(program(6), oracle, model, "exhaustive")
    representative, _ = failures(program(6), oracle, model, "representative")
    # ext4 writes a file's content before a rename onto an existing one, and commits both with the directory's sync
    assert bool(everything) == ((name, model) != ("no fsync of the file", "ext4"))
    assert representative == everything


@pytest.mark.parametrize("name", CORRECT)
@pytest.mark.parametrize("model", ["ext4", "ext4-wb", "xfs", "btrfs", "posix"])
def test_correct_programs_are_clean(name: str, model: str) -> None:
    program, oracle = CORRECT[name]
    for strategy in ("representative", "exhaustive"):
        found, coverage = failures(program(4), oracle, model, strategy)
        assert found == set()
        assert coverage.complete


@pytest.mark.parametrize("name", [*PLANTED, *CORRECT])
def test_the_number_of_states_does_not_grow_with_repetition(name: str) -> None:
    program, oracle = {**PLANTED, **CORRECT}[name]
    _, some = failures(program(10), oracle, "ext4", "representative")
    _, many = failures(program(40), oracle, "ext4", "representative")
    assert many.crash_points > 3 * some.crash_points
    assert many.distinct <= 2 * some.distinct
    assert len(many.classes_tested) == many.classes


def test_at_most_a_tenth_of_the_exhaustive_states_are_tested() -> None:
    _, all_ = failures(programs.saved(40, sync=False), programs.saved_is_old_or_new, "ext4", "exhaustive", limit=2000)
    _, few = failures(programs.saved(40, sync=False), programs.saved_is_old_or_new, "ext4", "representative")
    assert few.distinct * 10 <= all_.distinct


def test_a_bug_across_a_log_switch_needs_no_luck() -> None:
    trace = programs.journal(40, sync_at_switch=False)
    assert failures(trace, programs.journal_is_a_prefix, "ext4", "representative")[0] == {"hole"}
    assert failures(trace, programs.journal_is_a_prefix, "ext4", "fsync-reorder")[0] == set()  # it takes older tails as durable
    assert failures(trace, programs.journal_is_a_prefix, "ext4", "prefix")[0] == set()


def test_a_bug_between_synced_steps_needs_the_points_between_them() -> None:
    found, _ = failures(programs.header_in_place(20), programs.header_counts_what_is_there, "ext4", "representative")
    assert found == {"header counts a record that is not there"}


def test_names_lose_what_differs_from_run_to_run() -> None:
    assert pattern("000012.log") == pattern("000345.log") == "#.log"
    assert pattern("MANIFEST-000004") == "MANIFEST-#"
    assert pattern("tmpab12cd_9") == "tmp#"
    assert pattern("deadbeef01.val") == "#.val"
    assert pattern("a3f1c9d2-1111-2222-3333-444455556666.json") == "#.json"
    assert pattern("x.db-journal") == "x.db-journal"


def test_call_sites_ignore_addresses_and_library_frames() -> None:
    one = (Frame("write", "", -1, 0x10), Frame("put", "db.c", 7, 0x20), Frame("main", "m.c", 1, 0x30))
    rebuilt = (Frame("__write", "", -1, 0x11), Frame("put", "db.c", 7, 0x99), Frame("main", "m.c", 1, 0x98))
    assert call_site(one) == call_site(rebuilt) == (("put", "db.c", 7), ("main", "m.c", 1))


def test_call_sites_tell_operations_apart() -> None:
    r = Recorder({"f": b"o" * 9000})
    fd = r.open("f", 1)
    for line in (1, 2):
        r.stack = (Frame("put", "db.c", line, 0),)
        r.write(fd, b"n" * 10, offset=0)
    history = History.of(r.trace(), MODELS["posix"])
    labels = Labels(history)
    assert labels.of[0] != labels.of[1]


def test_the_key_of_a_part_does_not_depend_on_whose_turn_came_first() -> None:
    def keys(order: str) -> list[str]:
        r = Recorder({"1.log": b"o" * 100, "x.db": b"o" * 100})
        fds = {"a": r.open("1.log", 1), "b": r.open("x.db", 1)}
        for who in order:
            r.write(fds[who], b"new", offset=0)
        history = History.of(r.trace(), MODELS["ext4"])
        return sorted(part.key for part in parts_at(history, Labels(history), len(history.micros) - 1))

    assert keys("aabb") == keys("abab") == keys("bbaa")
    assert keys("aab") != keys("abb")


def test_content_of_a_file_whose_removal_is_durable_makes_no_difference() -> None:
    r = Recorder()
    fd = r.open("old.log")
    r.write(fd, b"tail")
    r.unlink("old.log")
    r.fsync_directory()
    history = History.of(r.trace(), MODELS["ext4"])
    last = len(history.micros) - 1
    assert history.pending_at(last).bit_count() == 2  # data and size
    assert history.open_at(last) == 0
