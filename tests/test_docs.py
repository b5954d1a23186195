"""Documentation that stays true: every room has a page, links lead somewhere, Python compiles, and commands have the flags they show."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from headway.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
ROOMS = sorted(path.parent.name for path in (ROOT / "src" / "headway").glob("*/__init__.py"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_page_that_the_architecture_names(room: str) -> None:
    assert (ROOT / "docs" / f"{room}.md").is_file()
    assert f"]({room}.md)" in (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in target]
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_pages_and_examples_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


def test_examples_compile_and_say_what_they_show() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path.name


def test_commands_in_pages_exist_with_the_flags_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    from headway.cli.main import main

    shown = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("headway ")]
    assert shown
    helps: dict[str, str] = {}
    for line in shown:
        words = shlex.split(line, comments=True)[1:]
        if words[0].startswith("-"):
            continue
        assert words[0] in COMMANDS, line
        if words[0] not in helps:
            with pytest.raises(SystemExit):
                main([words[0], "--help"])
            helps[words[0]] = capsys.readouterr().out
        assert all(word in helps[words[0]] for word in words if word.startswith("--")), line


def test_workflows_that_pages_run_exist_and_are_valid() -> None:
    from headway.bench import schedule, workflow

    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    files = {word for line in lines if line.startswith("headway bench run") for word in shlex.split(line) if word.endswith(".yaml")}
    assert files
    for file in files:
        assert schedule.build(workflow.load_file(ROOT / file))


def test_the_example_of_core_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(ROOT / "docs" / "core.md", "python")
    exec(compile(block, "docs/core.md", "exec"), {})
    assert capsys.readouterr().out == "False 1\n"
