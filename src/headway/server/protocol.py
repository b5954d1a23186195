"""What a client may ask for: chat and completion requests as plain data, read and checked from JSON (docs/server.md, "Requests").

Null means absent. A field of OpenAI's schema that is not supported is refused unless it is at its neutral value; a name nobody
knows is ignored and reported to the caller for the log.
"""

from dataclasses import dataclass, field
from typing import Any

from headway.core import fields
from headway.core.errors import InvalidRequest
from headway.core.fields import Object, expect

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
MAX_SAMPLES = 16
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TOKENS = 2**31 - 1
MAX_PROMPTS = 128

# name -> values that change nothing and are therefore accepted
NEUTRAL: dict[str, tuple[object, ...]] = {
    "repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"], []),
    "prediction": (),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
    "priority": (0,),
    "include_stop_str_in_output": (False,),
    # names of other servers (vLLM, llama.cpp) that would change the text if they were ignored
    "repeat_penalty": (1,),
    "length_penalty": (1,),
    "typical_p": (1,),
    "mirostat": (0,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "truncate_prompt_tokens": (),
    "bad_words": ([],),
    "grammar": ("",),
    "json_schema": ({},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}
_COMMON = {
    "model", "max_tokens", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "n",
    "ignore_eos", "min_tokens", "logprobs", "user", "cache_salt", "slo", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
}  # fmt: skip
_CHAT = _COMMON | {
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template_kwargs",
}
_COMPLETION = _COMMON | {"prompt", "echo", "best_of"}
_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(slots=True)
class Asked:
    """What chat and completions have in common. `logprobs`: None = none, k = the k best too. `max_tokens` None = rest of the context."""

    model: str
    slo: dict[str, Any]
    max_tokens: int | None
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    user: str = ""
    cache_salt: str = ""
    ignored: tuple[str, ...] = ()


@dataclass(slots=True)
class ChatAsked(Asked):
    """POST /v1/chat/completions. Message contents are flattened to text; role developer has become system."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    warning: str = ""


@dataclass(slots=True)
class CompletionAsked(Asked):
    """POST /v1/completions. Each prompt is text or token ids."""

    prompts: list[str | list[int]] = field(default_factory=list)
    echo: bool = False


def read_chat(body: Object) -> ChatAsked:
    """Checks a chat request. Raises InvalidRequest naming the field."""
    ignored = _refuse_unsupported(body, _CHAT)
    maximum = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    wanted = fields.boolean(body, "logprobs")
    top = fields.integer(body, "top_logprobs", None, 0, 20)
    if top is not None and top > 0 and not wanted:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
    tools, warning = _read_tools(body)
    return ChatAsked(
        **_common(body),
        max_tokens=fields.integer(body, maximum, None, 1, MAX_TOKENS),
        logprobs=(top or 0) if wanted else None,
        ignored=ignored,
        messages=_read_messages(body.get("messages")),
        tools=tools,
        template_kwargs=fields.mapping(body, "chat_template_kwargs"),
        warning=warning,
    )


def read_completion(body: Object) -> CompletionAsked:
    """Checks a completion request. Raises InvalidRequest naming the field."""
    ignored = _refuse_unsupported(body, _COMPLETION)
    common = _common(body)
    echo = fields.boolean(body, "echo")
    best_of = fields.integer(body, "best_of", None, 1, MAX_SAMPLES)
    expect(best_of in (None, common["n"]), "best_of", best_of, f"equal to 'n' ({common['n']})")
    if body.get("logprobs") is True:
        raise InvalidRequest("'logprobs' must be an integer between 0 and 5 here; true belongs to chat completions", param="logprobs")
    logprobs = None if body.get("logprobs") is False else fields.integer(body, "logprobs", None, 0, 5)
    return CompletionAsked(
        **common,
        max_tokens=fields.integer(body, "max_tokens", DEFAULT_COMPLETION_TOKENS, 0 if echo else 1, MAX_TOKENS),
        logprobs=logprobs,
        ignored=ignored,
        prompts=_read_prompts(body.get("prompt")),
        echo=echo,
    )


def _refuse_unsupported(body: Object, known: set[str]) -> tuple[str, ...]:
    ignored = []
    for name, value in body.items():
        if value is None or name in known:
            continue
        if name not in NEUTRAL:
            ignored.append(name[:64])
        elif not _is_neutral(name, value):
            neutral = " or ".join(fields.shown(item) for item in NEUTRAL[name]) or "null"
            raise InvalidRequest(
                f"'{name}' is not supported by this server: leave it out or send {neutral}; got {fields.shown(value)}", param=name
            )
    return tuple(ignored)


def _is_neutral(name: str, value: object) -> bool:
    if name == "logit_bias" and isinstance(value, dict):
        return all(bias == 0 for bias in value.values())
    return value in NEUTRAL[name]


def _common(body: Object) -> dict[str, Any]:
    stream = fields.boolean(body, "stream")
    options = fields.mapping(body, "stream_options")
    if any(options.values()) and not stream:
        raise InvalidRequest(f"'stream_options' needs 'stream': true; got {fields.shown(options)}", param="stream_options")
    fields.no_others(options, "stream_options", ("include_usage", "continuous_usage_stats", "include_obfuscation"))
    return {
        "model": fields.text(body, "model"),
        "slo": fields.mapping(body, "slo"),
        "n": fields.integer(body, "n", 1, 1, MAX_SAMPLES),
        "stream": stream,
        "include_usage": fields.boolean(options, "include_usage"),
        "continuous_usage": fields.boolean(options, "continuous_usage_stats"),
        "temperature": fields.number(body, "temperature", 1.0, 0.0, 2.0),
        "top_p": fields.number(body, "top_p", 1.0, 0.0, 1.0),
        "top_k": max(fields.integer(body, "top_k", 0, -1, MAX_TOKENS) or 0, 0),
        "min_p": fields.number(body, "min_p", 0.0, 0.0, 1.0),
        "seed": fields.integer(body, "seed", None, -(2**63), 2**63 - 1),
        "stop": _read_stop(body.get("stop")),
        "stop_token_ids": _read_stop_ids(body.get("stop_token_ids")),
        "ignore_eos": fields.boolean(body, "ignore_eos"),
        "min_tokens": fields.integer(body, "min_tokens", 0, 0, MAX_TOKENS),
        "user": fields.text(body, "user", limit=512),
        "cache_salt": fields.text(body, "cache_salt", limit=512),
    }


def _read_stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    rule = f"a string or a list of at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters"
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise InvalidRequest(f"'stop' must be {rule}; got {fields.shown(value)}", param="stop")
    for stop in stops:
        expect(isinstance(stop, str) and 1 <= len(stop) <= MAX_STOP_CHARACTERS, "stop", value, rule)
    return tuple(stops)


def _read_stop_ids(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not fields.is_token_ids(value) or len(value) > MAX_STOPS or any(not 0 <= id < 2**31 for id in value):
        raise InvalidRequest(
            f"'stop_token_ids' must be a list of at most {MAX_STOPS} token ids; got {fields.shown(value)}", param="stop_token_ids"
        )
    return tuple(value)


def _read_prompts(value: object) -> list[str | list[int]]:
    rule = "a string, a list of strings, a list of token ids or a list of such lists, none of them empty"
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"'prompt' must be {rule}; got {fields.shown(value)}", param="prompt")
    if fields.is_token_ids(value):
        return [value]
    expect(len(value) <= MAX_PROMPTS, "prompt", f"{len(value)} prompts", f"at most {MAX_PROMPTS} prompts")
    for item in value:
        expect(isinstance(item, str) or (fields.is_token_ids(item) and bool(item)), "prompt", item, rule)
    return value


def _read_messages(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"'messages' must be a list of at least one message; got {fields.shown(value)}", param="messages")
    return [_read_message(item, f"messages.{i}") for i, item in enumerate(value)]


def _read_message(item: object, param: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InvalidRequest(f"'{param}' must be an object with 'role' and 'content'; got {fields.shown(item)}", param=param)
    role = item.get("role")
    expect(role in _ROLES, f"{param}.role", role, f"one of {', '.join(_ROLES)}")
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    calls = item.get("tool_calls")
    if role == "assistant" and calls is not None:
        expect(isinstance(calls, list) and all(isinstance(call, dict) for call in calls), f"{param}.tool_calls", calls, "a list of objects")
        if calls:
            message["tool_calls"] = calls
    if role == "tool":
        message["tool_call_id"] = fields.text(item, "tool_call_id")
    if item.get("name") is not None:
        message["name"] = fields.text(item, "name", limit=64)
    message["content"] = _flatten(item.get("content"), f"{param}.content", optional="tool_calls" in message)
    return message


def _flatten(content: object, param: str, optional: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if not isinstance(content, list):
        raise InvalidRequest(f"'{param}' must be a string or a list of text parts; got {fields.shown(content)}", param=param)
    pieces = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise InvalidRequest(
                f"'{param}.{i}' must be a part of type 'text'; parts of type {fields.shown(kind)} are not supported", param=f"{param}.{i}"
            )
        pieces.append(fields.text(part, "text", limit=2**31))
    return "".join(pieces)


def _read_tools(body: Object) -> tuple[list[dict[str, Any]] | None, str]:
    """Tools go to the template; their calls are not parsed out of the text yet, so nothing may insist on one."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    fields.boolean(body, "parallel_tool_calls", True)
    if choice not in (None, "none", "auto"):
        raise InvalidRequest(
            f"'tool_choice' must be 'none' or 'auto': this server cannot force a tool call; got {fields.shown(choice)}", param="tool_choice"
        )
    if tools is None or tools == []:
        return None, ""
    expect(isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools), "tools", tools, "a list of objects")
    if choice == "none":
        return None, ""
    return list(tools), "tool calls are returned as plain text"
