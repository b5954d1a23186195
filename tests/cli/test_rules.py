"""What a command decides before and after the room behind it works, called in this process."""

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from headway.cli import main as cli
from headway.cli import replay, servers
from headway.cli.commands import COMMANDS, SINGLE_THREADED, Command
from headway.core.errors import UnsupportedMachine


@pytest.mark.parametrize(("difference", "status"), [("", 0), ("event 7: Shed, not Dispatch", 1)])
def test_replay_says_by_its_status_whether_anything_differs(
    difference: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = SimpleNamespace(events=9, commands=8, iterations=7, first_difference=difference)
    monkeypatch.setattr("headway.fleet.replay.replay", lambda path: result)
    assert replay.run([str(tmp_path)]) == status
    said = capsys.readouterr()
    assert ("bit for bit" in said.out) is (status == 0) and difference in said.err


def publish(home: Path, port: int, pid: int, at_s: float, url: str = "") -> None:
    card = home / "state" / "serve" / str(port) / "server.json"
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps({"pid": pid, "url": url or f"http://127.0.0.1:{port}", "model": f"m{port}"}))
    os.utime(card, (at_s, at_s))


def test_a_server_counts_while_its_process_lives_and_its_port_accepts_newest_first(headway_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        older, newer, silent = (s.getsockname()[1] for s in (one, two, closed))
        publish(headway_home, older, os.getpid(), 1000)
        publish(headway_home, newer, os.getpid(), 2000)
        publish(headway_home, silent, os.getpid(), 3000)
        publish(headway_home, 1, 2**22 + 1, 4000, url=f"http://127.0.0.1:{newer}")  # no such process: above the kernel's largest pid
        torn = headway_home / "state" / "serve" / "2" / "server.json"
        torn.parent.mkdir()
        torn.write_text('{"pid": 12')
        assert [server.model for server in servers.live_servers()] == [f"m{newer}", f"m{older}"]


@pytest.fixture
def computing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command `compute` that the tables call computing; the list holds what it saw in OMP_NUM_THREADS."""
    seen: list[str] = []
    monkeypatch.setattr("headway.cli.version.run", lambda argv: seen.append(os.environ.get("OMP_NUM_THREADS", "")) or 0)
    monkeypatch.setitem(COMMANDS, "compute", Command("", "headway.cli.version", "serve", computes=True))
    for name in SINGLE_THREADED:
        monkeypatch.setenv(name, "8")
    return seen


def test_a_command_that_computes_keeps_the_libraries_to_one_thread(computing: list[str]) -> None:
    assert cli.main(["compute"]) == 0
    assert computing == ["1"] and all(os.environ[name] == value for name, value in SINGLE_THREADED.items())


def test_a_command_that_computes_is_refused_in_one_line_on_a_machine_without_kernels(
    computing: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported() -> None:
        raise UnsupportedMachine("not supported yet")

    monkeypatch.setattr("headway.cli.machine.require_supported", unsupported)
    assert cli.main(["compute"]) == 2
    assert not computing and capsys.readouterr().err == "headway: not supported yet\n"


def test_another_platform_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.cli.machine import require_supported

    require_supported()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(UnsupportedMachine, match="aarch64"):
        require_supported()
