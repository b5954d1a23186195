"""`headway attention`: what it shows of variants and plans, and what it refuses."""

from pathlib import Path

import pytest

from headway.cli.main import main

FILE = """
from headway.attention import Mask, Variant, causal, tanh

@Variant
def odd(score, *, q, kv, cap=17.0):
    return cap * tanh(score / cap) + 0.01 * (kv - q)

near = Variant(odd.hooks["score"], causal & Mask(lambda q, kv, reach=100: q - kv < reach), defaults=odd.defaults)
"""


def test_explain_shows_graph_tiles_and_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    assert main(["attention", "explain", f"{tmp_path}/mine.py:near", "--heads", "4/2", "--head-dim", "32"]) == 0
    out = capsys.readouterr().out
    assert "tanh(" in out
    assert "captured: cap f32, reach i32" in out
    picture = [line for line in out.splitlines() if line and set(line) <= set("█▒·")]
    assert len(picture) == 32
    assert [line[i] for i, line in enumerate(picture)] == ["▒"] * 32
    assert picture[20][10] == picture[10][20] == "·"
    assert "fma" in out


def test_an_expression_of_the_library_is_a_variant_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attention", "explain", "alibi(4).then(soft_cap(20))", "--heads", "4/2", "--head-dim", "32"]) == 0
    assert "slopes[" in capsys.readouterr().out


def test_plan_draws_each_worker(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attention", "plan", "--lengths", "900,300,300,16", "--workers", "3", "--heads", "8/2", "--head-dim", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "makespan" in lines[1]
    assert [line[:5].strip() for line in lines[2:]] == ["0", "1", "2"]
    assert {letter for line in lines[2:] for letter in line if letter.isalpha()} <= set("ABCD")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "causall"], "neither FILE.py:NAME nor an expression"),
        (["explain", "causal", "--heads", "9"], "write query heads/kv heads"),
        (["plan", "--heads", "9/2"], "do not divide evenly"),
    ],
)
def test_mistakes_get_one_line_with_a_remedy(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attention", *words]) == 2
    assert message in capsys.readouterr().err
