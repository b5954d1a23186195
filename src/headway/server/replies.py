"""Bodies of replies and of stream chunks in OpenAI's shapes. Pure; a chunk's constant part is encoded once."""

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from headway.engine.wire import TokenLogprobs
from headway.server.served import Tokenizer

encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request; the tokens of all samples count, the prompt once."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class TokenNote:
    """A token with its log-probability, as a client may see it. `offset`: characters of text before it."""

    id: int
    logprobs: TokenLogprobs | None
    offset: int


def chat_logprobs(tokenizer: Tokenizer, notes: list[TokenNote]) -> dict[str, Any]:
    """`logprobs` of a chat choice. A token that is no whole UTF-8 has its raw bytes and a lossy text."""
    content = []
    for note in notes:
        if note.logprobs is not None:
            entry = _chat_entry(tokenizer, note.id, note.logprobs.logprob)
            entry["top_logprobs"] = [_chat_entry(tokenizer, id, logprob) for id, logprob in note.logprobs.top]
            content.append(entry)
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, notes: list[TokenNote]) -> dict[str, Any]:
    """`logprobs` of a completion choice; the first token of an echoed prompt has null."""
    return {
        "tokens": [_lossy(tokenizer, note.id) for note in notes],
        "token_logprobs": [None if note.logprobs is None else _finite(note.logprobs.logprob) for note in notes],
        "top_logprobs": [
            None if note.logprobs is None else {_lossy(tokenizer, id): _finite(logprob) for id, logprob in note.logprobs.top}
            for note in notes
        ],
        "text_offset": [note.offset for note in notes],
    }


def _chat_entry(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    raw = tokenizer.token_bytes(id)
    return {"token": raw.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(raw)}


def _lossy(tokenizer: Tokenizer, id: int) -> str:
    return tokenizer.token_bytes(id).decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI sends -9999.0 for impossible tokens."""
    return logprob if logprob > -9999.0 else -9999.0


class Chunks(Protocol):
    """Encodes the events of one stream. Each method returns whole `data: ...` events."""

    def opening(self, index: int, usage: Usage) -> bytes: ...
    def delta(self, index: int, text: str, logprobs: dict[str, Any] | None, usage: Usage) -> bytes: ...
    def closing(self, index: int, reason: str, usage: Usage, extras: dict[str, Any] | None) -> bytes: ...
    def last_usage(self, usage: Usage, extras: dict[str, Any] | None) -> bytes: ...


class _Frame:
    """What every chunk of a stream repeats: same id, created, model and object in each (strict clients check)."""

    def __init__(self, object_name: str, id: str, created: int, model: str, include_usage: bool, continuous: bool) -> None:
        head = encode({"id": id, "object": object_name, "created": created, "model": model, "system_fingerprint": None})
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._include_usage = include_usage
        self._continuous = continuous
        self._plain_tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def tail(self, usage: Usage, extras: dict[str, Any] | None) -> bytes:
        if not self._continuous and extras is None:
            return self._plain_tail
        parts: dict[str, Any] = {}
        if self._continuous:
            parts["usage"] = usage.body()
        elif self._include_usage:
            parts["usage"] = None
        if extras is not None:
            parts["headway"] = extras
        return b"]," + encode(parts)[1:] + b"\n\n"

    def last_usage(self, usage: Usage, extras: dict[str, Any] | None) -> bytes:
        parts: dict[str, Any] = {"usage": usage.body()}
        if extras is not None:
            parts["headway"] = extras
        return self._head + b"]," + encode(parts)[1:] + b"\n\n"


class ChatChunks(_Frame):
    """chat.completion.chunk: role, then contents, then one with an empty delta and the reason."""

    def __init__(self, id: str, created: int, model: str, include_usage: bool, continuous: bool) -> None:
        super().__init__("chat.completion.chunk", id, created, model, include_usage, continuous)

    def opening(self, index: int, usage: Usage) -> bytes:
        choice = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' % index
        return self._head + choice + self.tail(usage, None)

    def delta(self, index: int, text: str, logprobs: dict[str, Any] | None, usage: Usage) -> bytes:
        notes = b"null" if logprobs is None else encode(logprobs)
        tail = self._plain_tail if not self._continuous else self.tail(usage, None)
        return b'%b{"index":%d,"delta":{"content":%b},"logprobs":%b,"finish_reason":null}%b' % (
            self._head,
            index,
            encode(text),
            notes,
            tail,
        )

    def closing(self, index: int, reason: str, usage: Usage, extras: dict[str, Any] | None) -> bytes:
        choice = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}' % (index, encode(reason))
        return self._head + choice + self.tail(usage, extras)


class CompletionChunks(_Frame):
    """text_completion chunks; no opening."""

    def __init__(self, id: str, created: int, model: str, include_usage: bool, continuous: bool) -> None:
        super().__init__("text_completion", id, created, model, include_usage, continuous)

    def opening(self, index: int, usage: Usage) -> bytes:
        return b""

    def delta(self, index: int, text: str, logprobs: dict[str, Any] | None, usage: Usage) -> bytes:
        notes = b"null" if logprobs is None else encode(logprobs)
        tail = self._plain_tail if not self._continuous else self.tail(usage, None)
        return b'%b{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null}%b' % (self._head, index, encode(text), notes, tail)

    def closing(self, index: int, reason: str, usage: Usage, extras: dict[str, Any] | None) -> bytes:
        choice = b'{"index":%d,"text":"","logprobs":null,"finish_reason":%b}' % (index, encode(reason))
        return self._head + choice + self.tail(usage, extras)
