"""One sequence of a request on its way to the client: token ids in, pieces of text out, with the stamps its promise is scored by."""

import time
from dataclasses import dataclass, field

from headway.core.slo import Ended, Score, score
from headway.core.stops import StopMatcher
from headway.engine.wire import Output, TokenLogprobs
from headway.fleet.ticket import Ticket
from headway.server.replies import TokenNote
from headway.server.served import Detokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that goes out in one chunk, and how many tokens go out with it."""

    text: str
    tokens: int
    notes: list[TokenNote]


@dataclass(slots=True, eq=False)
class Sequence:
    """`reason` stays "" while it runs, then is OpenAI's finish_reason. `token_ns[i]`: when token i was handed to the socket."""

    index: int
    ticket: Ticket
    prompt_tokens: int
    detokenizer: Detokenizer
    matcher: StopMatcher | None
    wants_logprobs: bool
    count_tokens: bool = True
    reason: str = ""
    error: str = ""
    completion_tokens: int = 0
    cached_tokens: int = 0
    dispatched_ns: int = 0
    first_output_ns: int = 0
    token_ns: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    ended: Ended | None = None
    outcome: Score | None = None
    _characters: int = 0
    _waiting: int = 0
    _notes: list[TokenNote] = field(default_factory=list)

    def take(self, output: Output) -> list[Piece]:
        """What an output adds, one piece a token unless characters or a possible stop string are held back."""
        if not self.first_output_ns:
            self.first_output_ns = time.monotonic_ns()
            self.cached_tokens = output.cached_tokens
            self.prompt_logprobs = output.prompt_logprobs
        pieces: list[Piece] = []
        if self.count_tokens:
            for i, id in enumerate(output.token_ids):
                self.completion_tokens += 1
                self._waiting += 1
                if self.wants_logprobs:
                    self._notes.append(TokenNote(id, output.logprobs[i] if output.logprobs else None, self._characters))
                text = self.detokenizer.push(id)
                self._characters += len(text)
                if self.matcher is not None:
                    text = self.matcher.push(text)
                    if self.matcher.stopped:
                        self.reason = "stop"
                        self._add(pieces, text)
                        return pieces
                if text:
                    self._add(pieces, text)
        if output.finish:
            self._end(pieces, output)
        return pieces

    def _end(self, pieces: list[Piece], output: Output) -> None:
        if output.finish not in ("stop", "length"):
            self.error = output.error or output.finish
            return
        text = self.detokenizer.flush()
        if self.matcher is not None:
            text = self.matcher.push(text)
            if not self.matcher.stopped:
                text += self.matcher.flush()
        self.reason = "stop" if self.matcher is not None and self.matcher.stopped else output.finish
        if text or self._notes:
            self._add(pieces, text)

    def _add(self, pieces: list[Piece], text: str) -> None:
        pieces.append(Piece(text, self._waiting, self._notes))
        self._waiting = 0
        self._notes = []

    def sent(self, tokens: int) -> None:
        """Stamps tokens that have just been handed to the socket."""
        now_ns = time.monotonic_ns()
        for _ in range(tokens):
            self.token_ns.append(now_ns)

    async def finish(self, ended: Ended) -> None:
        """Scores the promise and records the end; returns when that is durable. Only the first call counts."""
        if self.ended is not None:
            return
        self.ended = ended
        if ended == "finished" and self._waiting:
            # Tokens without text (a special token, a character cut short) are out with the end of the stream.
            self.sent(self._waiting)
            self._waiting = 0
        ticket = self.ticket
        if ticket.state != "ended":
            ticket.cancel("stop_string" if ended == "finished" else ended)
        self.outcome = score(ticket.slo, ticket.arrival_ns, self.token_ns, ended, time.monotonic_ns())
        await ticket.finish(ended, self.outcome)
