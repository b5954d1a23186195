"""What `LLM` is called with, checked: sampling arguments, stop strings and prompts. Every complaint names the argument and its value."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from headway.core import fields
from headway.core.errors import InvalidRequest
from headway.engine.wire import Sampling

DEFAULT_MAX_TOKENS = 512
KNOWN = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "stop_ids", "ignore_eos", "min_tokens")
_MOST_TOKENS = 2**31 - 1


def read_sampling(given: Mapping[str, Any]) -> tuple[Sampling, tuple[str, ...]]:
    """The sampling and the stop strings. Without `seed` every call draws differently. Raises InvalidRequest."""
    for name in given:
        if name not in KNOWN:
            raise InvalidRequest(f"there is no sampling argument {name!r}; known: {', '.join(KNOWN)}", param=name)
    seed = fields.integer(given, "seed", None, -(2**63), 2**63 - 1)
    sampling = Sampling(
        max_tokens=fields.integer(given, "max_tokens", DEFAULT_MAX_TOKENS, 1, _MOST_TOKENS) or DEFAULT_MAX_TOKENS,
        temperature=fields.number(given, "temperature", 1.0, 0.0, 2.0),
        top_k=max(fields.integer(given, "top_k", 0, -1, _MOST_TOKENS) or 0, 0),
        top_p=fields.number(given, "top_p", 1.0, 0.0, 1.0),
        min_p=fields.number(given, "min_p", 0.0, 0.0, 1.0),
        seed=secrets.randbits(63) if seed is None else seed % 2**64,
        stop_ids=_stop_ids(given.get("stop_ids")),
        ignore_eos=fields.boolean(given, "ignore_eos"),
        min_tokens=fields.integer(given, "min_tokens", 0, 0, _MOST_TOKENS) or 0,
    )
    return sampling, _stops(given.get("stop"))


def is_one_prompt(prompt: object) -> bool:
    """Whether this is a text or token ids, not a list of prompts."""
    return isinstance(prompt, str) or _is_ids(prompt)


def check_prompts(prompts: object) -> list[str | list[int]]:
    """A list of texts and token ids. Raises InvalidRequest for anything else."""
    rule = "a text, a list of token ids, or a list of either"
    if not isinstance(prompts, list | tuple):
        raise InvalidRequest(f"the prompt must be {rule}; got {fields.shown(prompts)}", param="prompt")
    for one in prompts:
        if not is_one_prompt(one):
            raise InvalidRequest(f"the prompt must be {rule}; its item {fields.shown(one)} is neither", param="prompt")
    return [one if isinstance(one, str) else list(one) for one in prompts]


def check_messages(messages: object) -> Sequence[Mapping[str, Any]]:
    """A conversation in OpenAI's form. Raises InvalidRequest for anything else."""
    if not isinstance(messages, list | tuple) or not all(isinstance(message, Mapping) for message in messages):
        form = '[{"role": "user", "content": "Hello"}]'
        raise InvalidRequest(f"messages must be a list like {form}; got {fields.shown(messages)}", param="messages")
    return messages


def _is_ids(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(type(item) is int for item in value)


def _stop_ids(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple | set | frozenset) or not all(type(item) is int and item >= 0 for item in value):
        raise InvalidRequest(f"'stop_ids' must be a list of token ids; got {fields.shown(value)}", param="stop_ids")
    return tuple(value)


def _stops(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) and stop for stop in stops):
        raise InvalidRequest(f"'stop' must be a text or a list of texts, none of them empty; got {fields.shown(value)}", param="stop")
    return tuple(stops)
