"""Text to token ids and back, also as a stream.

Control tokens are made only where the caller asks for it (`parse_special`, the chat template's own text); text typed by users goes
through byte-level BPE whatever it says. Nothing here knows models beyond the vocabulary.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from typing import Any

from headway.core.errors import InvalidRequest, ModelError
from headway.models import vocabulary as vocabularies
from headway.models.vocabulary import CONTROL, USER_DEFINED, Vocabulary

_ALPHABET = vocabularies.byte_alphabet()


class Tokenizer:
    """Encodes and decodes with one vocabulary; safe to use from several threads.

    `bos_id`, `eos_id`: ids or None. `add_bos`: the model was trained with BOS in front of plain text (the caller adds it; `encode`
    never does). `stop_ids`: the ids that end a generation.
    """

    __slots__ = ("_bytes", "_control", "_pipeline", "add_bos", "bos_id", "eos_id", "stop_ids", "vocab_size", "vocabulary")

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.vocab_size = len(vocabulary.tokens)
        self.bos_id, self.eos_id, self.add_bos = vocabulary.bos_id, vocabulary.eos_id, vocabulary.add_bos
        self.stop_ids = vocabulary.stop_ids
        self._bytes: dict[int, bytes] = {}
        self._control = split_pattern(vocabulary.control)
        self._pipeline = vocabularies.pipeline(vocabulary)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Builds the tokenizer that the metadata of a GGUF file describes."""
        return cls(vocabularies.from_metadata(metadata))

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Ids of `text`, without BOS. With `parse_special`, the texts of control tokens become those tokens: only for trusted text."""
        if not parse_special or self._control is None:
            return self._plain(text)
        ids: list[int] = []
        for piece in self._control.split(text):
            control = self.vocabulary.control.get(piece)
            if control is not None:
                ids.append(control)
            elif piece:
                ids += self._plain(piece)
        return ids

    def _plain(self, text: str) -> list[int]:
        try:
            found: list[int] = self._pipeline.encode(text, add_special_tokens=False).ids
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the text has a lone surrogate at character {error.start}; send valid Unicode", param="prompt") from error
        return found

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD. Control tokens are left out unless `skip_special` is false."""
        return b"".join(b"" if skip_special and self.is_control(token) else self.token_bytes(token) for token in ids).decode(
            errors="replace"
        )

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; of a control token, its name."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._lookup(token)
        return found

    def is_control(self, token: int) -> bool:
        """True for tokens that structure a conversation and are never shown."""
        return 0 <= token < self.vocab_size and self.vocabulary.types[token] == CONTROL

    def _lookup(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            raise ModelError(f"the token id {token} is outside the vocabulary of {self.vocab_size}")
        text = self.vocabulary.tokens[token]
        if self.vocabulary.types[token] in (CONTROL, USER_DEFINED):
            return text.encode()
        try:
            return bytes(_ALPHABET[character] for character in text)
        except KeyError:  # not written in the byte alphabet: the text itself
            return text.encode()


class DetokenizeStream:
    """Turns a stream of ids into pieces of text that never split a character.

    The pieces, with `flush`'s at the end, add up to `Tokenizer.decode` of all ids. A character whose bytes are not complete is held
    back; U+FFFD appears only for bytes that no further byte can repair.
    """

    __slots__ = ("_decoder", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, possibly empty."""
        if self._tokenizer.is_control(token):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What was held back, as U+FFFD; the stream can then be used again."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def split_pattern(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern whose `split` keeps the given texts as pieces of their own, longest first; None if there are none."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
