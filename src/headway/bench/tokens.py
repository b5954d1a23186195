"""From the stamped events of a finished stream to token times. Tokens are not chunks.

Counting, best first: the server's cumulative usage in every chunk; else one token for every chunk that carries text, and it says so.
"""

import json
from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenTimes:
    """`token_ns`: one read stamp a token, in order. `first_chunk_tokens`: how many came with the first.

    `counted_by`: "usage" or "chunks". `usage_tokens`: the server's own final count, None if it gave none.
    """

    token_ns: list[int] = field(default_factory=list)
    first_chunk_tokens: int = 0
    counted_by: str = "chunks"
    usage_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str = ""
    done: bool = False
    error: str = ""
    text: str = ""
    server: dict[str, object] = field(default_factory=dict)


def read_stream(events: list[tuple[int, bytes]]) -> TokenTimes:
    """Token times of a chat or completion stream; an error event or unreadable JSON sets `error`."""
    out = TokenTimes()
    pieces: list[str] = []
    counted = 0
    for stamp_ns, payload in events:
        if payload.strip() == b"[DONE]":
            out.done = True
            break
        try:
            chunk = json.loads(payload)
        except ValueError:
            out.error = f"unreadable event: {payload[:80]!r}"
            break
        if not isinstance(chunk, dict):
            out.error = f"unreadable event: {payload[:80]!r}"
            break
        if "error" in chunk:
            out.error = error_text(chunk)
            break
        text = _choice_text(chunk, out)
        usage = chunk.get("usage")
        arrived = 1 if text else 0
        if isinstance(usage, dict):
            _read_usage(usage, out)
            cumulative = usage.get("completion_tokens")
            if isinstance(cumulative, int) and (chunk.get("choices") or out.counted_by == "usage"):
                out.counted_by = "usage"
                arrived = cumulative - counted
        if isinstance(chunk.get("headway"), dict):
            out.server = chunk["headway"]
        if arrived > 0:
            if not out.token_ns:
                out.first_chunk_tokens = arrived
            out.token_ns.extend([stamp_ns] * arrived)
            counted += arrived
        if text:
            pieces.append(text)
    out.text = "".join(pieces)
    return out


def error_text(body: object) -> str:
    """`code: message` of an OpenAI-shaped error body."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return str(body)[:200]
    code = error.get("code") or error.get("type") or "error"
    return f"{code}: {str(error.get('message', ''))[:200]}"


def _choice_text(chunk: dict[str, object], out: TokenTimes) -> str:
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return ""
    choice = choices[0]
    if choice.get("finish_reason"):
        out.finish_reason = str(choice["finish_reason"])
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


def _read_usage(usage: dict[str, object], out: TokenTimes) -> None:
    if isinstance(count := usage.get("completion_tokens"), int):
        out.usage_tokens = count
    if isinstance(prompt := usage.get("prompt_tokens"), int):
        out.prompt_tokens = prompt
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict) and isinstance(cached := details.get("cached_tokens"), int):
        out.cached_tokens = cached
