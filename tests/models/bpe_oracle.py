"""Byte-level BPE with SmolLM2's pre-tokenizer in plain Python: a second implementation that shares nothing with `tokenizers`."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

from tests.support import byte_alphabet

CONTRACTIONS = ("'re", "'ve", "'ll", "'s", "'t", "'m", "'d")


def encode(text: str, ids: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    """Ids of `text`; `ranks` gives the order of a merge."""
    alphabet = byte_alphabet()
    found = []
    for run in split_digits(text):
        for word in split_words(run):
            parts = [alphabet[byte] for byte in word.encode()]
            while len(parts) > 1:
                pairs = [(ranks.get((a, b), len(ranks)), at) for at, (a, b) in enumerate(pairwise(parts))]
                rank, at = min(pairs)
                if rank == len(ranks):
                    break
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            found += [ids[part] for part in parts]
    return found


def split_digits(text: str) -> list[str]:
    """Every numeric character on its own, what is between them whole."""
    runs = [""]
    for character in text:
        if unicodedata.category(character).startswith("N"):
            runs += [character, ""]
        else:
            runs[-1] += character
    return [run for run in runs if run]


def kind(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace() and character not in "\x1c\x1d\x1e\x1f":
        return "space"
    return {"L": "letter", "N": "number"}.get(category[0], "other")


def split_words(run: str) -> list[str]:
    """GPT-2's pattern, read left to right: contraction; optional space and a run of one kind; spaces but the last; spaces."""
    words, at = [], 0
    while at < len(run):
        contraction = next((text for text in CONTRACTIONS if run.startswith(text, at)), None)
        start = at + 1 if run[at] == " " and at + 1 < len(run) and kind(run[at + 1]) != "space" else at
        if contraction:
            end = at + len(contraction)
        elif kind(run[start]) != "space":
            end = start
            while end < len(run) and kind(run[end]) == kind(run[start]):
                end += 1
        else:
            end = at
            while end < len(run) and kind(run[end]) == "space":
                end += 1
            if end < len(run) and end - at > 1:
                end -= 1
        words.append(run[at:end])
        at = end
    return words
