"""Oracles: every way in which a check can end is a verdict, and none of them harms the process that asked."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from headway.core.errors import ConfigError
from headway.crashtest.forkserver import CheckerDied, ForkServer
from headway.crashtest.histories import acked_durable, no_duplicates, nothing_invented, old_or_new, prefix_of_history
from headway.crashtest.oracle import CallableOracle, ProgramOracle, load_callable

PYTHON = sys.executable


def server(check: Callable[..., object], timeout_s: float = 20.0) -> ForkServer:
    return ForkServer(lambda: CallableOracle(check), timeout_s=timeout_s)


def raises(directory: Path) -> None:
    raise ValueError("bad magic")


def dies(directory: Path) -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def leaves(directory: Path) -> None:
    os._exit(3)


def hangs(directory: Path) -> None:
    time.sleep(60)


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (lambda directory: None, None),
        (lambda directory: True, None),
        (lambda directory: False, "the check returned False"),
        (lambda directory: "a hole", "a hole"),
        (raises, "ValueError: bad magic"),
        (dies, "the check was ended by SIGBUS"),
        (leaves, "the check ended without a verdict (exit 3)"),
    ],
)
def test_a_fork_server_turns_every_end_into_a_verdict(check: Callable[..., object], said: str | None, tmp_path: Path) -> None:
    with server(check) as judge:
        assert judge.check(tmp_path, [], []) == said
        assert judge.check(tmp_path, [], []) == said  # and it goes on


def test_a_check_that_hangs_has_failed_and_is_gone(tmp_path: Path) -> None:
    with server(hangs, timeout_s=0.3) as judge:
        assert judge.check(tmp_path, [], []) == "the check did not answer within 0.3 s"
        assert judge.check(tmp_path, [], []) == "the check did not answer within 0.3 s"


def test_a_check_gets_the_directory_and_the_markers_it_asks_for(tmp_path: Path) -> None:
    with server(lambda directory, acks, begun: f"{directory.name} {acks} {begun}") as judge:
        assert judge.check(tmp_path / "x", ["1"], ["1", "2"]) == "x ['1'] ['1', '2']"
    with server(lambda directory, acks: f"{acks}") as judge:
        assert judge.check(tmp_path, ["7"], []) == "['7']"


def test_what_one_check_changes_in_memory_the_next_does_not_see(tmp_path: Path) -> None:
    calls: list[int] = []

    def counting(directory: Path) -> str | None:
        calls.append(1)
        return None if len(calls) == 1 else "seen before"

    with server(counting) as judge:
        assert [judge.check(tmp_path, [], []) for _ in range(3)] == [None] * 3


def test_an_oracle_that_cannot_be_loaded_says_why() -> None:
    def load() -> CallableOracle:
        raise ImportError("no module named leveldb")

    with pytest.raises(CheckerDied, match="no module named leveldb"):
        ForkServer(load)


def test_no_server_outlives_its_owner(tmp_path: Path) -> None:
    judges = [server(lambda directory: None) for _ in range(3)]
    pids = [judge.pid for judge in judges]
    for judge in judges:  # later servers hold copies of the earlier ones' sockets
        judge.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit(0)", None),
        ("import sys; print('row 3 lost'); sys.exit(1)", "the checker ended with exit 1: row 3 lost"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the checker ended with SIGSEGV"),
        ("import time; time.sleep(60)", "the checker did not answer within 1 s"),
    ],
)
def test_a_program_judges_by_its_exit(program: str, said: str | None, tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text(program)
    (tmp_path / "state").mkdir()
    oracle = ProgramOracle(f"{PYTHON} {script}", timeout_s=1.0 if "sleep" in program else 20.0)
    assert oracle.check(tmp_path / "state", [], []) == said


def test_a_program_finds_directory_and_markers(tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text("import os, sys; print(open(os.environ['HEADWAY_CRASH_ACKS']).read().split(chr(10)), sys.argv[1]); sys.exit(1)")
    state = tmp_path / "state"
    state.mkdir()
    verdict = ProgramOracle(f"{PYTHON} {script} {{dir}}").check(state, ["a"], ["a", "b"])
    assert verdict is not None and "['begin a', 'begin b', 'ack a', '']" in verdict and str(state) in verdict
    assert list(tmp_path.glob("*.acks")) == []


@pytest.mark.parametrize(("name", "named"), [("nocolon", "module:function"), ("no_such_module:f", "no_such_module"), ("os:sep", "str")])
def test_a_wrong_name_of_an_oracle_is_explained(name: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_callable(name)


@pytest.mark.parametrize(
    ("found", "acks", "begun", "wrong"),
    [
        ([1, 2, 3], ["1", "2"], ["1", "2", "3"], None),
        ([1, 2], ["1"], ["1", "2", "3"], None),
        ([], [], [], None),
        ([1], ["1", "2"], ["1", "2"], "acknowledged data lost"),
        ([1, 3], [], ["1", "2", "3"], "hole"),
        ([1, 2, 3], [], ["1", "2"], "nobody wrote"),
        ([2, 1], [], ["1", "2"], "hole"),
    ],
)
def test_a_history_is_a_prefix_between_acknowledged_and_begun(
    found: Sequence[int], acks: list[str], begun: list[str], wrong: str | None
) -> None:
    verdict = prefix_of_history(found, acks, begun)
    assert verdict is None if wrong is None else verdict is not None and wrong in verdict


def test_a_replaced_value_is_the_acknowledged_one_or_a_later_one() -> None:
    assert old_or_new("2", ["1", "2"], ["1", "2", "3"]) is None
    assert old_or_new("3", ["1", "2"], ["1", "2", "3"]) is None
    assert old_or_new("1", ["1", "2"], ["1", "2", "3"]) is not None
    assert old_or_new(None, [], ["1"]) is None
    assert old_or_new(None, ["1"], ["1"]) is not None


def test_lists_of_operations() -> None:
    assert acked_durable(["a", "b"], ["a"]) is None
    assert acked_durable(["b"], ["a"]) == "acknowledged data lost: a"
    assert nothing_invented(["c"], ["a"]) == "data that nobody wrote: c"
    assert no_duplicates([1, 2, 1]) == "applied twice: 1"
