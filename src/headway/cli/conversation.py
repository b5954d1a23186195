"""A conversation and its two ways to an answer: over HTTP to a running server, or a model loaded in this process."""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from headway.core.errors import HeadwayError, InvalidRequest
from headway.core.slo import Slo, class_default

Message = dict[str, str]
Clock = Callable[[], int]


class RequestFailed(HeadwayError):
    """The server refused or broke off one answer; the conversation goes on."""


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """What is asked for with every answer; `slo` None = the class default of the server."""

    max_tokens: int = 512
    temperature: float = 0.2
    top_p: float = 0.9
    cls: str = "interactive"


@dataclass(slots=True)
class Pace:
    """When tokens of one answer came, and how early the tightest of them was. Times are monotonic nanoseconds."""

    slo: Slo
    arrival_ns: int
    token_ns: list[int] = field(default_factory=list)
    completion_tokens: int | None = None
    met: bool | None = None
    queue_ms: float | None = None

    @property
    def ttft_s(self) -> float | None:
        return (self.token_ns[0] - self.arrival_ns) / 1e9 if self.token_ns else None

    @property
    def tokens(self) -> int:
        """As the server counted them, else one a piece."""
        return self.completion_tokens or len(self.token_ns)

    @property
    def tokens_per_s(self) -> float | None:
        """Over the time between the first and the last piece; None below two."""
        if len(self.token_ns) < 2 or self.token_ns[-1] == self.token_ns[0]:
            return None
        return (self.tokens - 1) / ((self.token_ns[-1] - self.token_ns[0]) / 1e9)

    @property
    def slack_s(self) -> float | None:
        """Least time between a token and when it was due (negative: the latest was that late); None where nothing was promised."""
        if not self.token_ns:
            return None
        due = [self.slo.due_ns(self.arrival_ns, i, self.token_ns[0]) for i in range(len(self.token_ns))]
        slacks = [due_ns - token_ns for due_ns, token_ns in zip(due, self.token_ns, strict=True) if due_ns is not None]
        return min(slacks) / 1e9 if slacks else None


class Speaker(Protocol):
    """Who answers. `about` is one line for the greeting."""

    about: str

    def answer(self, messages: list[Message], settings: AnswerSettings) -> Iterator[tuple[str, Pace]]:
        """Pieces of text as they come, each with the pace so far. Closing the iterator stops the answer."""
        ...

    def close(self) -> None: ...


class HttpSpeaker:
    """A running server, through its OpenAI API with nothing but the standard library."""

    def __init__(self, url: str, model: str, api_key: str | None = None, clock: Clock = time.monotonic_ns) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise InvalidRequest(f"{url!r} is not a URL that chat can join; give one like http://127.0.0.1:8000")
        self._address = (parts.hostname, parts.port or 80)
        self._model = model
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._clock = clock
        self.about = f"{model or 'the model'} at {url}"

    def answer(self, messages: list[Message], settings: AnswerSettings) -> Iterator[tuple[str, Pace]]:
        """Raises RequestFailed with the server's own words."""
        body = {
            "model": self._model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "slo": {"class": settings.cls},
        }
        with closing(http.client.HTTPConnection(*self._address, timeout=600)) as connection:
            arrival_ns = self._clock()
            try:
                connection.request("POST", "/v1/chat/completions", json.dumps(body), self._headers)
                response = connection.getresponse()
                if response.status != 200:
                    raise RequestFailed(_reason(response.status, response.read()))
                pace = Pace(_granted(response.headers, settings.cls), arrival_ns)
                yield from self._pieces(response, pace)
            except (OSError, http.client.HTTPException) as error:
                raise RequestFailed(f"the connection to {self.about} broke: {error or type(error).__name__}") from error

    def _pieces(self, response: http.client.HTTPResponse, pace: Pace) -> Iterator[tuple[str, Pace]]:
        for event in sse_events(response):
            if "error" in event:
                raise RequestFailed(str(event["error"].get("message", event["error"])))
            _note_outcome(event, pace)
            for choice in event.get("choices", ()):
                text = choice.get("delta", {}).get("content")
                if text:
                    pace.token_ns.append(self._clock())
                    yield text, pace

    def close(self) -> None:
        """Nothing stays open between answers."""


class LocalSpeaker:
    """A model loaded in this process through `headway.LLM`."""

    def __init__(self, name: str, llm: Any, clock: Clock = time.monotonic_ns) -> None:
        self._llm = llm
        self._clock = clock
        self.about = f"{name}, loaded in this process"

    def answer(self, messages: list[Message], settings: AnswerSettings) -> Iterator[tuple[str, Pace]]:
        pace = Pace(class_default(settings.cls), self._clock())  # type: ignore[arg-type]  # argparse has checked the choice
        pieces = self._llm.chat(
            messages, stream=True, max_tokens=settings.max_tokens, temperature=settings.temperature, top_p=settings.top_p
        )
        with closing(pieces):
            for text in pieces:
                pace.token_ns.append(self._clock())
                yield text, pace

    def close(self) -> None:
        self._llm.close()


def sse_events(lines: Any) -> Iterator[dict[str, Any]]:
    """JSON events of a server-sent stream until `[DONE]`; comments (keep-alives) and other fields are skipped."""
    for line in lines:
        if not line.startswith(b"data: "):
            continue
        data = line[len(b"data: ") :].strip()
        if data == b"[DONE]":
            return
        yield json.loads(data)


def _note_outcome(event: dict[str, Any], pace: Pace) -> None:
    """What the last chunks carry beside text: the usage and, from a Headway server, how the promise went (docs/server.md)."""
    usage = event.get("usage")
    if usage:
        pace.completion_tokens = usage.get("completion_tokens")
    outcome = event.get("headway")
    if outcome:
        pace.queue_ms = outcome.get("queue_ms")
        pace.met = outcome.get("slo", {}).get("met")


def _granted(headers: Any, cls: str) -> Slo:
    """The promise that the reply's headers grant; a server that grants none promised nothing."""
    ttft_ms, tpot_ms = headers.get("x-slo-ttft-ms"), headers.get("x-slo-tpot-ms")
    return Slo(
        ttft_s=float(ttft_ms) / 1e3 if ttft_ms else None,
        tpot_s=float(tpot_ms) / 1e3 if tpot_ms else None,
        cls=headers.get("x-slo-class", cls),
    )


def _reason(status: int, body: bytes) -> str:
    try:
        error = json.loads(body)["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {status}: {body[:200].decode(errors='replace')}"
    if status == 401:
        return f"{message} (set HEADWAY_API_KEY)"
    if error.get("code") == "context_length_exceeded":
        return f"{message} (/new starts over)"
    return message
