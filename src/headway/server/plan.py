"""From a checked request to a plan: prompt tokens, room in context and KV pool, the promise. Refused here or never."""

import asyncio
import secrets

from headway.core.errors import InvalidRequest
from headway.core.slo import Slo
from headway.server.protocol import Asked, ChatAsked, CompletionAsked
from headway.server.served import ServedModel
from headway.server.stream import Plan

# Above this, tokenising takes milliseconds that every running stream would feel; it moves to a thread (the tokenizer drops the GIL).
THREAD_CHARACTERS = 16 * 1024


async def plan_chat(asked: ChatAsked, model: ServedModel, slo: Slo, extras: bool) -> Plan:
    """Renders and tokenises the conversation. Raises InvalidRequest."""
    template = model.template
    if template is None:
        raise InvalidRequest(
            f"model {model.name} has no chat template: use /v1/completions, or start the server with --chat-template FILE", param="messages"
        )
    size = sum(len(message["content"]) for message in asked.messages)
    _refuse_hopeless(model, size, "messages")
    shows_tools = model.shows_tools and asked.tools is not None
    tools = asked.tools if shows_tools else None
    arguments = (asked.messages, tools, True, asked.template_kwargs or None)
    if size > THREAD_CHARACTERS:
        token_ids = await asyncio.to_thread(template.encode, *arguments)
    else:
        token_ids = template.encode(*arguments)
    warning = asked.warning
    if asked.tools is not None and not shows_tools:
        warning = f"the chat template of {model.name} does not know tools: they were left out"
    headers = [(b"x-headway-warning", warning.encode("ascii", "replace"))] if warning else []
    return _plan("chat", asked, model, [token_ids], slo, extras, "messages", None, headers)


async def plan_completion(asked: CompletionAsked, model: ServedModel, slo: Slo, extras: bool) -> Plan:
    """Tokenises the prompts. Raises InvalidRequest."""
    prompts: list[list[int]] = []
    echoes: list[str] = []
    for prompt in asked.prompts:
        if isinstance(prompt, str):
            _refuse_hopeless(model, len(prompt), "prompt")
            encode = model.tokenizer.encode
            token_ids = await asyncio.to_thread(encode, prompt) if len(prompt) > THREAD_CHARACTERS else encode(prompt)
            if not token_ids and model.bos_id is not None:
                token_ids = [model.bos_id]
        else:
            token_ids = check_ids(prompt, model, "prompt")
        prompts.append(token_ids)
        if asked.echo:
            echoes.append(prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt))
    return _plan("completion", asked, model, prompts, slo, extras, "prompt", echoes if asked.echo else None, [])


def check_ids(ids: list[int], model: ServedModel, param: str) -> list[int]:
    """The same ids; raises InvalidRequest when one is not in the vocabulary."""
    for id in ids:
        if not 0 <= id < model.tokenizer.vocab_size:
            hint = "ids of another tokenizer? send text instead"
            raise InvalidRequest(
                f"'{param}' has token id {id}, but {model.name} has ids 0 to {model.tokenizer.vocab_size - 1}; {hint}", param=param
            )
    return ids


def _refuse_hopeless(model: ServedModel, characters: int, param: str) -> None:
    """A text far over the context is refused before time is spent on tokenising it."""
    if characters > THREAD_CHARACTERS:
        least = characters // model.longest_token_bytes()
        room = min(model.context_tokens, model.pool_tokens)
        if least > room:
            message = (
                f"the prompt has {characters} characters, which are at least {least} tokens; the context of {model.name} is {room} tokens"
            )
            raise InvalidRequest(message, param=param, code="context_length_exceeded")


def _plan(
    kind: str,
    asked: Asked,
    model: ServedModel,
    prompts: list[list[int]],
    slo: Slo,
    extras: bool,
    param: str,
    echoes: list[str] | None,
    headers: list[tuple[bytes, bytes]],
) -> Plan:
    for stop_id in asked.stop_token_ids:
        check_ids([stop_id], model, "stop_token_ids")
    room = min(model.context_tokens, model.pool_tokens)
    limits = [_max_tokens(asked, model, len(prompt), room, param) for prompt in prompts]
    samples_tokens = asked.n * sum(limits)
    if samples_tokens > model.pool_tokens and asked.max_tokens is not None and asked.n * len(prompts) > 1:
        message = (
            f"{asked.n} samples of {len(prompts)} prompts with 'max_tokens' {asked.max_tokens} are {samples_tokens} tokens; "
            f"the KV pool holds {model.pool_tokens}: ask for fewer or shorter ones"
        )
        raise InvalidRequest(message, param="n" if asked.n > 1 else "max_tokens")
    seed = secrets.randbits(63) if asked.seed is None else asked.seed % 2**64
    return Plan("chat" if kind == "chat" else "completion", asked, model, prompts, limits, slo, seed, echoes, extras, headers)


def _max_tokens(asked: Asked, model: ServedModel, prompt_tokens: int, room: int, param: str) -> int:
    if prompt_tokens == 0:
        raise InvalidRequest(f"'{param}' has no tokens: send at least one", param=param)
    wanted = asked.max_tokens
    if wanted is None:
        if prompt_tokens < room:
            return room - prompt_tokens
        wanted = 1
    if prompt_tokens + wanted > room:
        message = (
            f"the prompt has {prompt_tokens} tokens and up to {wanted} more are asked for, {prompt_tokens + wanted} together; "
            f"the context of {model.name} is {room} tokens: shorten the prompt or lower max_tokens"
        )
        raise InvalidRequest(message, param=param if prompt_tokens >= room else "max_tokens", code="context_length_exceeded")
    return wanted
