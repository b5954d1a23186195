"""A GGUF file's vocabulary as plain data, and the `tokenizers` pipeline it calls for.

Knows byte-level BPE (`tokenizer.ggml.model` "gpt2") with the pre-tokenizers below; another one is an error, not a guess, because a wrong
split silently gives wrong ids. Control tokens stay out of the BPE vocabulary: no text can merge into one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headway.core.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Token types of the GGUF specification that are treated apart; 1 is normal, 5 unused, 6 a byte."""

# Regular expressions as published with the models (tokenizer.json of Llama 3 and Qwen2).
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
PRE_TOKENIZERS = ("smollm", "gpt-2", "llama-bpe", "qwen2")
END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<eos>")
"""Control tokens that end a generation whatever the metadata says. Not fill-in-the-middle tokens such as `<reponame>`."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens with their types and the ids that have a role. `control` maps the text of a control token to its id."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    control: dict[str, int]
    user_defined: dict[str, int]
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    stop_ids: frozenset[int]


def from_metadata(metadata: Mapping[str, Any]) -> Vocabulary:
    """Reads and checks the `tokenizer.ggml.*` keys; raises `ModelError` for a kind of tokenizer that is not known."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise ModelError(f"the tokenizer model {kind!r} is not supported; supported: gpt2 (byte-level BPE)")
    if pre not in PRE_TOKENIZERS:
        raise ModelError(f"the pre-tokenizer {pre!r} is not supported; supported: {', '.join(PRE_TOKENIZERS)}")
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    if not _strings(tokens) or not _strings(merges):
        raise ModelError("tokenizer.ggml.tokens or tokenizer.ggml.merges is not a list of strings; the model file is incomplete")
    assert isinstance(tokens, list) and isinstance(merges, list)  # what _strings has just established
    types = [int(kind) for kind in metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))]
    if len(types) != len(tokens):
        raise ModelError(f"{len(tokens)} tokens but {len(types)} token types; the model file is damaged")
    control = {token: index for index, (token, kind) in enumerate(zip(tokens, types)) if kind == CONTROL and token}
    user_defined = {token: index for index, (token, kind) in enumerate(zip(tokens, types)) if kind == USER_DEFINED and token}
    roles = {role: _token_id(metadata, role, len(tokens)) for role in ("bos", "eos", "eot", "eom")}
    stops = {roles["eos"], roles["eot"], roles["eom"], *(control.get(name) for name in END_TOKENS)}
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe")
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=merges,
        pre=pre,
        control=control,
        user_defined=user_defined,
        bos_id=roles["bos"],
        eos_id=roles["eos"],
        add_bos=bool(add_bos) and roles["bos"] is not None,
        stop_ids=frozenset(stop for stop in stops if stop is not None),
    )


def pipeline(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The `tokenizers` object for text without control tokens.

    Built from the metadata every time: for the 49,152 tokens of SmolLM2 this takes 0.08 CPU-s, loading a serialised copy 0.13-0.15.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    apart = (UNKNOWN, CONTROL, USER_DEFINED)
    table = {token: index for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types)) if kind not in apart}
    merges = []
    for merge in vocabulary.merges:
        first, space, second = merge.partition(" ")
        if not space:
            raise ModelError(f"the merge {merge!r} is not a pair; the model file is damaged")
        if first + second in table:
            merges.append((first, second))
    whole_words = vocabulary.pre == "llama-bpe"  # Llama 3 takes a word that is a token as it is, before any merge
    try:
        made = Tokenizer(models.BPE(vocab=table, merges=merges, ignore_merges=whole_words))
    except Exception as error:  # the package raises bare Exceptions for merges outside the vocabulary
        raise ModelError(f"the merges do not fit the vocabulary: {error}; the model file is damaged") from error
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=vocabulary.pre in ("smollm", "gpt-2"))
    if vocabulary.pre == "smollm":
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    elif vocabulary.pre == "gpt-2":
        made.pre_tokenizer = byte_level
    else:
        split = pre_tokenizers.Split(Regex(_LLAMA3 if vocabulary.pre == "llama-bpe" else _QWEN2), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if vocabulary.user_defined:
        made.add_tokens([AddedToken(token, normalized=False) for token in vocabulary.user_defined])
    return made


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character -> byte (its `bytes_to_unicode`): Latin-1 characters that print stand for themselves."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    alphabet, spare = {}, 256
    for byte in range(256):
        if byte in printable:
            alphabet[chr(byte)] = byte
        else:
            alphabet[chr(spare)] = byte
            spare += 1
    return alphabet


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _token_id(metadata: Mapping[str, Any], role: str, count: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{role}_token_id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise ModelError(f"tokenizer.ggml.{role}_token_id is {value!r}, no id of the {count} tokens; the model file is damaged")
    return value
