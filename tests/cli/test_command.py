"""The command as its users meet it, in child processes: help, errors in one line, exit codes, and no traceback unless asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headway.cli.commands import COMMANDS
from headway.cli.machine import isa_level

ROOT = Path(__file__).resolve().parent.parent.parent


def headway(*argv: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headway.cli.main", *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_names_every_command_and_shows_examples() -> None:
    page = headway("--help")
    assert page.returncode == 0
    assert all(f"  {name} " in page.stdout and command.summary in page.stdout for name, command in COMMANDS.items())
    assert "headway serve" in page.stdout.split("Start here:")[1]
    assert headway().stdout == page.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    page = headway(name, "--help")
    assert page.returncode == 0, page.stderr
    assert page.stdout.startswith(f"usage: headway {name}")
    assert name == "version" or "examples:\n" in page.stdout


def test_a_mistyped_command_is_told_the_nearest_one() -> None:
    answer = headway("sevre")
    assert answer.returncode == 2
    assert answer.stderr == "headway: there is no command 'sevre'; did you mean `headway serve`?\n"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("serve", "--port", "99999"), ("--port", "65535")),
        (("serve", "--accuracy", "sloppy"), ("--accuracy", "exact")),
        (("serve", "--kv-memory", "lots"), ("--kv-memory", "512MiB")),
        (("serve", "--colour", "red"), ("--colour", "headway serve --help")),
        (("pull", "no-such-model"), ("no-such-model",)),
        (("models", "inspect", "no-such-model"), ("no-such-model",)),
        (("models", "inspect", "./missing.gguf"), ("missing.gguf",)),
        (("replay", "no-such-journal"), ("no-such-journal",)),
        (("chat", "--url", "ftp://x", "--once", "hi"), ("ftp://x",)),
    ],
)
def test_a_wrong_value_costs_one_line_that_names_it(argv: tuple[str, ...], named: tuple[str, ...]) -> None:
    answer = headway(*argv)
    assert answer.returncode == 2
    assert answer.stderr.startswith("headway: ")
    assert answer.stderr.count("\n") == 1
    assert all(word in answer.stderr for word in named)


def test_a_setting_from_the_environment_is_named_by_its_variable() -> None:
    answer = headway("serve", HEADWAY_THREADS="many")
    assert answer.returncode == 2
    assert "HEADWAY_THREADS" in answer.stderr


def test_debugging_shows_the_traceback_before_the_line() -> None:
    answer = headway("replay", "no-such-journal", HEADWAY_DEBUG="1")
    assert answer.returncode == 2
    assert answer.stderr.startswith("Traceback")
    assert answer.stderr.splitlines()[-1].startswith("headway: ")


def test_a_closed_pipe_is_no_error() -> None:
    child = subprocess.run(
        f"{sys.executable} -m headway.cli.main --help | head -c 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in child.stderr


def test_an_interrupt_ends_with_130_and_without_a_traceback() -> None:
    code = "import headway.cli.main as m\ndef stop(argv): raise KeyboardInterrupt\nm._dispatch = stop\nraise SystemExit(m.main(['serve']))"
    child = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=60
    )
    assert child.returncode == 130
    assert child.stderr.strip() == ""


def test_a_missing_extra_names_the_package_and_the_remedy() -> None:
    code = "import sys; sys.modules['tokenizers'] = None\nfrom headway.cli import main as m\n"
    code += "import types; sys.modules['headway.cli.version'] = fake = types.ModuleType('v')\n"
    code += "def run(argv):\n import tokenizers\nfake.run = run\n"
    code += "from headway.cli.commands import Command, COMMANDS; COMMANDS['version'] = Command('', 'headway.cli.version', 'serve')\n"
    child = subprocess.run(
        [sys.executable, "-c", code + "raise SystemExit(m.main(['version']))"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 2
    assert "pip install 'headway[serve]'" in child.stderr


def test_doctor_reports_one_line_for_each_thing_and_does_not_fail() -> None:
    answer = headway("doctor")
    assert answer.returncode in (0, 1)
    assert answer.stderr == ""
    found = [line for line in answer.stdout.splitlines() if line[:2] in ("+ ", "- ")]
    assert {"isa", "memory", "disk", "strace", "gpu"} <= {line[2:].split()[0] for line in found}
    assert "serve a model" in answer.stdout.splitlines()[-1] or "cannot serve" in answer.stdout.splitlines()[-1]


def test_models_lists_what_can_be_pulled() -> None:
    answer = headway("models")
    assert answer.returncode == 0, answer.stderr
    assert "smollm2-135m" in answer.stdout
    assert "Apache-2.0" in answer.stdout


@pytest.mark.model
def test_inspecting_a_model_shows_its_shape() -> None:
    answer = headway("models", "inspect", "smollm2-135m")
    assert answer.returncode == 0, answer.stderr
    assert "8192" in answer.stdout


def test_calibrate_is_refused_beside_a_running_server(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        state = tmp_path / "state" / "serve" / str(port)
        state.mkdir(parents=True)
        (state / "server.json").write_text(f'{{"pid": {os.getpid()}, "url": "http://127.0.0.1:{port}", "model": "m"}}')
        answer = headway("calibrate", HEADWAY_HOME=str(tmp_path))
    assert answer.returncode == 2
    assert f"pid {os.getpid()}" in answer.stderr


def test_doctor_names_the_level_that_the_kernels_take_and_heeds_the_variable() -> None:
    from headway.kernels.cpu.isa import select

    def isa_line(**env: str) -> str:
        return next(line for line in headway("doctor", **env).stdout.splitlines() if line[2:].startswith("isa "))

    assert select().name in isa_line(HEADWAY_ISA="")
    assert isa_line(HEADWAY_ISA="portable16").startswith("+") and "portable16" in isa_line(HEADWAY_ISA="portable16")
    unknown = isa_line(HEADWAY_ISA="sse2")
    assert unknown.startswith("-") and "HEADWAY_ISA=sse2 is not one of" in unknown


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("avx2 fma f16c", "avx2"),
        ("avx2 fma f16c avx_vnni", "avxvnni"),
        ("avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni", "avx512vnni"),
        ("avx2 fma", None),
        ("sse4_2", None),
    ],
)
def test_without_llvm_the_level_is_read_from_the_cpu_flags(flags: str, level: str | None) -> None:
    assert isa_level(frozenset(flags.split())) == level
