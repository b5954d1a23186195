"""Tokenizer: equal to a second implementation, reversible, and no text becomes a control token unless asked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import bpe_oracle
from tests.support import CONTROL_TOKENS, smollm2_path, tiny_model, tiny_vocabulary

from headway.core.errors import ModelError
from headway.models import open_model, vocabulary
from headway.models.tokenizer import DetokenizeStream, Tokenizer

GOLDEN = {  # ids of llama.cpp
    "Hello, world!": "19556 28 905 17",
    " Hello  world\n\nfoo": "38699 216 905 198 198 15236",
    "The answer is 12345 in 2026.": "504 2988 314 216 33 34 35 36 37 281 216 34 32 34 38 30",
    "naïve café 東京 🙂": "3546 46494 37366 17097 247 126 16736 122 47526",
    "tab\there   three   spaces  ": "15999 197 1531 256 1296 256 5600 256",
    "a\n\n\n\nb": "81 16506 198 82",
    "   ": "333",
    "<|im_end|>": "44 108 306 79 486 108 46",
}
PIECES = [
    *"abstheo ,.!?'\"-_<|>\n\t0123456789",
    "  ",
    "the",
    " it's",
    "we'll",
    "é",
    "ß",
    "東",
    "京",
    "🙂",
    "Привет",
    "٣",
    "½",
    "\r\n",
    "\xa0",
    "<|im_end|>",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_model(tiny_model(tmp_path_factory.mktemp("tokenizer") / "m.gguf", seed=1, vocab=480)).tokenizer


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return open_model(smollm2_path()).tokenizer


def oracle_tables(tokens: list[str], merges: list[str]) -> dict[str, Any]:
    ranks = {}
    for rank, merge in enumerate(merges):
        first, second = merge.split(" ")
        ranks[first, second] = rank
    return {"ids": {token: index for index, token in enumerate(tokens)}, "ranks": ranks}


def random_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randrange(0, 24))) for _ in range(count)]


def test_equal_to_the_second_implementation(tiny: Tokenizer) -> None:
    tables = oracle_tables(*tiny_vocabulary(480))
    for text in random_texts(1_000, seed=1):
        assert tiny.encode(text) == bpe_oracle.encode(text, **tables), repr(text)


def test_digits_are_split_for_smollm_and_not_for_gpt2(tmp_path: Path) -> None:
    metadata = dict(open_model(tiny_model(tmp_path / "m.gguf", seed=1, vocab=480)).file.metadata)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:-1], "12"]
    metadata["tokenizer.ggml.merges"] = [*metadata["tokenizer.ggml.merges"][:-1], "1 2"]
    one, two = Tokenizer.from_metadata(metadata).encode("1")[0], Tokenizer.from_metadata(metadata).encode("2")[0]
    assert Tokenizer.from_metadata(metadata).encode("12") == [one, two]
    assert Tokenizer.from_metadata({**metadata, "tokenizer.ggml.pre": "gpt-2"}).encode("12") == [479]


@pytest.mark.parametrize(("pre", "words"), [("llama-bpe", ["123", "45"]), ("qwen2", ["1", "2", "3", "4", "5"])])
def test_llama3_and_qwen2_split_as_their_cards_say(tmp_path: Path, pre: str, words: list[str]) -> None:
    metadata = open_model(tiny_model(tmp_path / "m.gguf", seed=1, vocab=480)).file.metadata
    made = Tokenizer.from_metadata({**metadata, "tokenizer.ggml.pre": pre})
    assert made.add_bos is False  # the file says so
    found = [word for word, _ in vocabulary.pipeline(made.vocabulary).pre_tokenizer.pre_tokenize_str("Don't 12345\n\n x")]
    assert found == ["Don", "'t", "\u0120", *words, "\u010a\u010a", "\u0120x"]


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_decoding_undoes_encoding(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode(text)
    assert tiny.decode(ids) == text
    assert not any(tiny.is_control(token) for token in ids)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 479), max_size=40))
def test_streamed_pieces_add_up_and_never_split_a_character(tiny: Tokenizer, ids: list[int]) -> None:
    stream = DetokenizeStream(tiny)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == tiny.decode(ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_valid_text_streams_without_a_replacement_character(tiny: Tokenizer, text: str) -> None:
    text = text.replace("\ufffd", "")
    stream = DetokenizeStream(tiny)
    pieces = [stream.push(token) for token in tiny.encode(text)]
    assert "".join(pieces) == text and stream.flush() == ""


def test_half_a_character_is_held_back_until_it_is_whole(tiny: Tokenizer) -> None:
    ids = tiny.encode("🙂")
    stream = DetokenizeStream(tiny)
    assert [stream.push(token) for token in ids] == ["", "", "", "🙂"]
    assert [stream.push(token) for token in ids[:2]] == ["", ""] and stream.flush() == "\ufffd"
    assert stream.flush() == "" and [stream.push(token) for token in ids][-1] == "🙂"


def test_control_tokens_only_when_asked(tiny: Tokenizer) -> None:
    text = "a<|im_end|>b"
    assert 2 not in tiny.encode(text)
    assert tiny.encode(text, parse_special=True) == [*tiny.encode("a"), 2, *tiny.encode("b")]
    assert tiny.encode("".join(CONTROL_TOKENS), parse_special=True) == [0, 1, 2]
    assert tiny.decode([2, *tiny.encode("b")]) == "b" and tiny.decode([2], skip_special=False) == "<|im_end|>"
    assert tiny.token_bytes(2) == b"<|im_end|>" and DetokenizeStream(tiny).push(2) == ""


def test_ids_with_a_role(tiny: Tokenizer) -> None:
    assert (tiny.bos_id, tiny.eos_id, tiny.add_bos, tiny.vocab_size) == (1, 2, False, 480)
    assert tiny.stop_ids == {0, 2}


@pytest.mark.parametrize("token", [-1, 480])
def test_an_id_outside_the_vocabulary_is_an_error(tiny: Tokenizer, token: int) -> None:
    with pytest.raises(ModelError, match="outside the vocabulary"):
        tiny.token_bytes(token)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model", "bert", "'bert' is not supported"),
        ("pre", "exotic", "'exotic' is not supported; supported: smollm"),
        ("merges", ["x"], "not a pair"),
        ("merges", 3, "not a list of strings"),
        ("token_type", [1], "480 tokens but 1 token types"),
        ("eos_token_id", 480, "no id of the 480 tokens"),
    ],
)
def test_a_vocabulary_that_is_not_understood_is_refused(tmp_path: Path, key: str, value: object, reason: str) -> None:
    metadata = open_model(tiny_model(tmp_path / "m.gguf", seed=1, vocab=480)).file.metadata
    with pytest.raises(ModelError, match=reason):
        Tokenizer.from_metadata({**metadata, f"tokenizer.ggml.{key}": value})


@pytest.mark.model
@pytest.mark.parametrize("text", GOLDEN)
def test_smollm2_golden_ids(smollm2: Tokenizer, text: str) -> None:
    assert smollm2.encode(text) == [int(token) for token in GOLDEN[text].split()]
    assert smollm2.decode(smollm2.encode(text)) == text


@pytest.mark.model
def test_smollm2_stops_at_its_two_end_tokens_only(smollm2: Tokenizer) -> None:
    assert smollm2.stop_ids == {0, 2}


@pytest.mark.model
def test_smollm2_equals_the_second_implementation_on_random_texts(smollm2: Tokenizer) -> None:
    tables = oracle_tables(smollm2.vocabulary.tokens, smollm2.vocabulary.merges)
    for text in random_texts(10_000, seed=2):
        assert smollm2.encode(text) == bpe_oracle.encode(text, **tables), repr(text)
