"""A model's chat template: messages to token ids, such that nothing a user typed becomes a control token.

Three measures. Only control tokens that the template's source spells out (or builds out of a role) are ever parsed. Every character of a
user's text that could begin one of them is followed by a marker, a private-use character found nowhere in the request, so that the
rendered text holds a whole control token only where the template wrote it. After splitting at control tokens the marker is removed and
the rest is encoded as plain text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headway.core.errors import InvalidRequest
from headway.models.tokenizer import Tokenizer, split_pattern

if TYPE_CHECKING:
    from headway.models.sandbox import Sandbox

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MARKERS = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))  # the private-use areas of Unicode
MAX_DEPTH = 64
BRACKETS = "<|>[]/"

Message = Mapping[str, Any]


class ChatTemplate:
    """Renders conversations with one Jinja template; raises `ModelError` if the template does not compile."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        from headway.models.sandbox import Sandbox

        self.source, self._tokenizer = source, tokenizer
        self._sandbox: Sandbox = Sandbox(source)
        names = tokenizer.vocabulary.tokens
        self._bos = "" if tokenizer.bos_id is None else names[tokenizer.bos_id]
        self._eos = "" if tokenizer.eos_id is None else names[tokenizer.eos_id]
        self._control = _spelled_by(source, tokenizer.vocabulary.control, (self._bos, self._eos))
        self._split = split_pattern(self._control)
        # A template that cuts or joins text can make two characters neighbours that were not: then every first character is marked.
        joins = any(word in source for word in ("replace", "join", "reverse", "format"))
        self._seconds: dict[str, set[str] | None] = {}
        for token in self._control:
            self._seconds.setdefault(token[0], None if joins else set())
            seconds = self._seconds[token[0]]
            if seconds is not None:
                seconds.add(token[1])

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of the conversation; raises `InvalidRequest` if the messages do not fit the template."""
        marker = self._marker(messages, tools, kwargs)
        text = self._render(messages, tools, add_generation_prompt, kwargs, marker)
        ids: list[int] = []
        for piece in self._split.split(text) if self._split else [text]:
            control = self._control.get(piece)
            if control is not None:
                ids.append(control)
            elif piece:
                ids += self._tokenizer.encode(piece.replace(marker, ""))
        return ids

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text, for people; encode it with `encode`, never by parsing this text."""
        marker = self._marker(messages, tools, kwargs)
        return self._render(messages, tools, add_generation_prompt, kwargs, marker).replace(marker, "")

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, add_prompt: bool, kwargs: Mapping[str, Any] | None, marker: str
    ) -> str:
        plain = [_plain_message(index, message) for index, message in enumerate(messages)]
        if not plain:
            raise InvalidRequest("messages is empty; send at least one message", param="messages")
        marked = [{**self._defuse(message, marker), "role": message["role"]} for message in plain]
        variables = dict(self._defuse(dict(kwargs or {}), marker))
        variables |= {
            "messages": marked,
            "tools": self._defuse(list(tools), marker) if tools else None,
            "documents": variables.get("documents"),
            "add_generation_prompt": add_prompt,
            "bos_token": self._bos,
            "eos_token": self._eos,
        }
        return self._sandbox.render(variables)

    def _marker(self, *values: Any) -> str:
        used = set(self.source).union(*(set(text) for text in _texts(values)))
        for area in MARKERS:
            for code in area:
                if chr(code) not in used:
                    return chr(code)
        raise InvalidRequest("the messages use every private-use character of Unicode; remove some", param="messages")

    def _defuse(self, value: Any, marker: str) -> Any:
        """A copy of a JSON value in which no string holds, begins or ends a control token."""
        if isinstance(value, str):
            return self._defuse_text(value, marker)
        if isinstance(value, Mapping):
            return {self._defuse_text(str(key), marker): self._defuse(item, marker) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._defuse(item, marker) for item in value]
        return value

    def _defuse_text(self, text: str, marker: str) -> str:
        for first, seconds in self._seconds.items():
            if first not in text:
                continue
            if seconds is None:
                text = text.replace(first, first + marker)
            else:
                for second in seconds:
                    text = text.replace(first + second, first + marker + second)
                if text.endswith(first):
                    text += marker
        if any(_continues(token, text) for token in self._control):
            text = marker + text
        return text


def _continues(token: str, text: str) -> bool:
    """True if `text` could go on where the template wrote the beginning of `token` ("<" then "|im_end|>").

    Of words only the token's own name counts: templates compare words ('function', 'text'), and a marker would make them unequal.
    """
    if text.isidentifier():
        return text == token.strip(BRACKETS) and text not in ROLES
    return any(token[at] == text[:1] and (text.startswith(token[at:]) or token[at:].startswith(text)) for at in range(1, len(token)))


def _spelled_by(source: str, control: Mapping[str, int], variables: tuple[str, str]) -> dict[str, int]:
    """The control tokens that a template can write: spelled in its source, passed as a variable, or built around a role (`<|user|>`)."""
    return {
        token: index
        for token, index in control.items()
        if len(token) > 1 and (token in source or token in variables or token.strip(BRACKETS) in ROLES)
    }


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"the messages nest deeper than {MAX_DEPTH} levels; flatten them", param="messages")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, depth + 1)


def _plain_message(index: int, message: Message) -> dict[str, Any]:
    """One message with its content as text, its role checked and the arguments of its tool calls parsed."""
    where = f"messages[{index}]"
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"{where}.role is {role!r}; use one of {', '.join(ROLES)}", param=f"{where}.role")
    plain = {key: value for key, value in message.items() if value is not None}
    plain["content"] = _flatten(message.get("content"), where)
    calls = plain.get("tool_calls")
    if isinstance(calls, list):
        plain["tool_calls"] = [_parse_arguments(call) for call in calls]
    return plain


def _flatten(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InvalidRequest(f"{where}.content is a {type(content).__name__}; send text or a list of parts", param=f"{where}.content")
    pieces = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InvalidRequest(f"{where}.content has a part of type {kind!r}; this model reads text only", param=f"{where}.content")
        pieces.append(text)
    return "\n".join(pieces)


def _parse_arguments(call: Any) -> Any:
    """OpenAI sends a call's arguments as JSON text, templates expect an object; text that is no JSON stays as it is."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
