"""Runs one generation: sequences to the fleet, tokens to the client as a stream or one reply, ends recorded before the last byte.

Knows tickets, not the router. Every way out leaves no sequence open: each is finished, refused, failed or cancelled exactly once.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from typing import Any, Literal

from headway.core.errors import HeadwayError
from headway.core.slo import Ended, Score, Slo
from headway.core.stops import StopMatcher
from headway.engine.wire import Sampling, TokenLogprobs
from headway.fleet.ticket import FleetRequest
from headway.server.board import Board
from headway.server.errors import HttpError, Problem, problem_of
from headway.server.exchange import ClientGone, Exchange, SlowReader
from headway.server.promise import granted_headers
from headway.server.protocol import Asked
from headway.server.replies import ChatChunks, Chunks, CompletionChunks, TokenNote, Usage, chat_logprobs, completion_logprobs
from headway.server.sequence import Piece, Sequence
from headway.server.served import ServedModel

KEEP_ALIVE_S = 15.0  # proxies commonly close what was silent for 30 or 60 s
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked request, ready to run. `max_tokens[i]` belongs to `prompts[i]`; 0 = echo only."""

    kind: Literal["chat", "completion"]
    asked: Asked
    model: ServedModel
    prompts: list[list[int]]
    max_tokens: list[int]
    slo: Slo
    seed: int
    echo_texts: list[str] | None = None
    extras: bool = True
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class Generation:
    """One request of a client while it runs."""

    def __init__(self, plan: Plan, fleet: Any, board: Board, exchange: Exchange) -> None:
        self.plan = plan
        self.fleet = fleet
        self.board = board
        self.exchange = exchange
        self.sequences: list[Sequence] = []
        self.created = int(time.time())
        self.id = ("chatcmpl-" if plan.kind == "chat" else "cmpl-") + secrets.token_hex(12)
        self._last_write_ns = 0
        self._opened: set[int] = set()

    async def run(self) -> None:
        """Answers the exchange. Raises HeadwayError only while nothing has been sent."""
        self._submit()
        self.exchange.watch(self._client_gone)
        try:
            if self.plan.asked.stream:
                await self._stream()
            else:
                await self._collect()
        except ClientGone:
            await self._finish_all("cancelled_by_client")
        except SlowReader as error:
            await self._finish_all("cancelled_by_us")
            await self.exchange.reply_problem(Problem(408, "timeout_error", str(error), None, "slow_reader"))
        except HeadwayError as error:
            await self._finish_all("failed")
            if not self.exchange.streaming:
                raise
            problem = problem_of(error)
            if problem is None:
                raise
            self.board.replied(problem.status, problem.code)
            await self.exchange.reply_problem(problem)
        finally:
            self.exchange.unwatch()
            # A bug or a cancelled task must not leave pages pinned.
            for sequence in self.sequences:
                if sequence.ended is None:
                    sequence.ticket.cancel("front_failed")
                    self.board.closed(sequence, "failed")

    # ---- before the first token ----------------------------------------------------------------------------------------
    def _submit(self) -> None:
        plan, asked = self.plan, self.plan.asked
        for p, (token_ids, max_tokens) in enumerate(zip(plan.prompts, plan.max_tokens, strict=True)):
            for sample in range(asked.n):
                sampling = Sampling(
                    max_tokens=max(max_tokens, 1),
                    temperature=asked.temperature,
                    top_k=asked.top_k,
                    top_p=asked.top_p,
                    min_p=asked.min_p,
                    seed=plan.seed,
                    sample_index=sample,
                    stop_ids=asked.stop_token_ids,
                    ignore_eos=asked.ignore_eos,
                    min_tokens=min(asked.min_tokens, max(max_tokens, 1)),
                    logprobs=asked.logprobs,
                    prompt_logprobs=plan.echo_texts is not None and asked.logprobs is not None,
                )
                request = FleetRequest(
                    plan.model.engine_name or plan.model.name,
                    token_ids,
                    sampling,
                    plan.slo,
                    asked.user,
                    asked.cache_salt,
                    "generate",
                    asked.user,
                )
                ticket = self.fleet.submit(request)
                matcher = StopMatcher(asked.stop) if asked.stop else None
                index = p * asked.n + sample
                sequence = Sequence(
                    index,
                    ticket,
                    len(token_ids),
                    plan.model.detokenizer(),
                    matcher,
                    asked.logprobs is not None,
                    count_tokens=max_tokens > 0,
                )
                self.sequences.append(sequence)
                self.board.opened(sequence)

    def _client_gone(self) -> None:
        for sequence in self.sequences:
            sequence.ticket.cancel("client_gone")

    async def _dispatched(self) -> None:
        """Waits until engines have every sequence. Raises what `Ticket.dispatched` raises, with the others cancelled."""
        tasks = [asyncio.ensure_future(self._dispatch(sequence)) for sequence in self.sequences]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        if self.exchange.gone:
            raise ClientGone("the client left")

    async def _dispatch(self, sequence: Sequence) -> None:
        try:
            await sequence.ticket.dispatched()
        except HeadwayError as error:
            # The fleet has recorded it already; here it only leaves the board.
            refused = problem_of(error)
            sequence.ended = "shed" if refused is not None and refused.status == 429 else "failed"
            self.board.closed(sequence, sequence.ended)
            raise
        sequence.dispatched_ns = time.monotonic_ns()

    # ---- streaming -----------------------------------------------------------------------------------------------------
    async def _stream(self) -> None:
        plan = self.plan
        maker = ChatChunks if plan.kind == "chat" else CompletionChunks
        chunks: Chunks = maker(self.id, self.created, plan.model.name, plan.asked.include_usage, plan.asked.continuous_usage)
        dispatch = asyncio.ensure_future(self._dispatched())
        await asyncio.wait((dispatch,), timeout=KEEP_ALIVE_S)
        held = not dispatch.done()
        if not held:
            dispatch.result()
        await self.exchange.start_events([*granted_headers(self.sequences[0].ticket.slo), *plan.headers])
        self._last_write_ns = 0 if held else time.monotonic_ns()
        keeper = asyncio.ensure_future(self._keep_alive())
        try:
            await dispatch
            if len(self.sequences) == 1:
                await self._pump(self.sequences[0], chunks)
            else:
                await _all(self._pump(sequence, chunks) for sequence in self.sequences)
            if plan.asked.include_usage:
                await self._write(chunks.last_usage(self._usage(), self._extras()))
            await self._write(DONE)
        finally:
            keeper.cancel()
            dispatch.cancel()
        await self.exchange.end_events()

    async def _keep_alive(self) -> None:
        while True:
            silent_s = (time.monotonic_ns() - self._last_write_ns) / 1e9
            if silent_s >= KEEP_ALIVE_S:
                await self._write(KEEP_ALIVE)
                silent_s = 0.0
            await asyncio.sleep(KEEP_ALIVE_S - silent_s)

    async def _write(self, events: bytes) -> None:
        await self.exchange.write(events)
        self._last_write_ns = time.monotonic_ns()

    async def _pump(self, sequence: Sequence, chunks: Chunks) -> None:
        """Tokens of one sequence, as they come, to the socket."""
        exchange, index = self.exchange, sequence.index
        head = chunks.opening(index, self._usage())
        if self.plan.echo_texts is not None:
            head += self._echo_chunk(sequence, chunks)
        async for output in sequence.ticket:
            pieces = sequence.take(output)
            for piece in pieces:
                events = chunks.delta(index, piece.text, self._piece_logprobs(piece), self._usage_if_continuous())
                await exchange.write(head + events if head else events)
                head = b""
                sequence.sent(piece.tokens)
                self.board.tokens += piece.tokens
            if pieces:
                self._last_write_ns = sequence.token_ns[-1] if sequence.token_ns else self._last_write_ns
            if sequence.reason or sequence.error:
                break
        self._check_end(sequence)
        await self._finish(sequence, "finished")
        last = not self.plan.asked.include_usage and all(other.ended for other in self.sequences)
        extras = self._extras() if last else None
        await self._write(head + chunks.closing(index, sequence.reason, self._usage(), extras))

    def _echo_chunk(self, sequence: Sequence, chunks: Chunks) -> bytes:
        echo = self._echo_of(sequence)
        return chunks.delta(sequence.index, echo, None, self._usage()) if echo else b""

    def _piece_logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.plan.asked.logprobs is None:
            return None
        form = chat_logprobs if self.plan.kind == "chat" else completion_logprobs
        return form(self.plan.model.tokenizer, piece.notes)

    def _usage_if_continuous(self) -> Usage:
        return self._usage() if self.plan.asked.continuous_usage else _NO_USAGE

    # ---- one reply -----------------------------------------------------------------------------------------------------
    async def _collect(self) -> None:
        plan = self.plan
        await self._dispatched()
        gathered = [self._gather(sequence) for sequence in self.sequences]
        results = [await gathered[0]] if len(gathered) == 1 else await _all(gathered)
        choices = [self._choice(sequence, pieces) for sequence, pieces in zip(self.sequences, results, strict=True)]
        body: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion" if plan.kind == "chat" else "text_completion",
            "created": self.created,
            "model": plan.model.name,
            "system_fingerprint": None,
            "choices": choices,
            "usage": self._usage().body(),
        }
        extras = self._extras()
        if extras is not None:
            body["headway"] = extras
        await self.exchange.reply_json(body, headers=[*granted_headers(self.sequences[0].ticket.slo), *plan.headers])

    async def _gather(self, sequence: Sequence) -> list[Piece]:
        pieces: list[Piece] = []
        async for output in sequence.ticket:
            new = sequence.take(output)
            pieces += new
            # Not streamed: a token is out when it arrives here.
            sequence.sent(sequence.completion_tokens - len(sequence.token_ns))
            self.board.tokens += sum(piece.tokens for piece in new)
            if sequence.reason or sequence.error:
                break
        self._check_end(sequence)
        await self._finish(sequence, "finished")
        return pieces

    def _choice(self, sequence: Sequence, pieces: list[Piece]) -> dict[str, Any]:
        plan = self.plan
        text = "".join(piece.text for piece in pieces)
        notes = [note for piece in pieces for note in piece.notes]
        wanted = plan.asked.logprobs is not None
        tokenizer = plan.model.tokenizer
        if plan.kind == "chat":
            message = {"role": "assistant", "content": text, "refusal": None}
            logprobs = chat_logprobs(tokenizer, notes) if wanted else None
            return {"index": sequence.index, "message": message, "logprobs": logprobs, "finish_reason": sequence.reason}
        if plan.echo_texts is not None:
            echo = self._echo_of(sequence)
            if wanted:
                notes = self._echo_notes(sequence) + [TokenNote(note.id, note.logprobs, note.offset + len(echo)) for note in notes]
            text = echo + text
        logprobs = completion_logprobs(tokenizer, notes) if wanted else None
        return {"text": text, "index": sequence.index, "logprobs": logprobs, "finish_reason": sequence.reason}

    def _echo_of(self, sequence: Sequence) -> str:
        return "" if self.plan.echo_texts is None else self.plan.echo_texts[sequence.index // self.plan.asked.n]

    def _echo_notes(self, sequence: Sequence) -> list[TokenNote]:
        detokenizer = self.plan.model.detokenizer()
        known: Ordered[TokenLogprobs | None] = sequence.prompt_logprobs or ()
        notes: list[TokenNote] = []
        offset = 0
        for i, id in enumerate(self.plan.prompts[sequence.index // self.plan.asked.n]):
            notes.append(TokenNote(id, known[i] if i < len(known) else None, offset))
            offset += len(detokenizer.push(id))
        return notes

    # ---- ends ----------------------------------------------------------------------------------------------------------
    def _check_end(self, sequence: Sequence) -> None:
        if self.exchange.gone:
            raise ClientGone("the client left")
        if not self.plan.max_tokens[sequence.index // self.plan.asked.n]:
            sequence.reason = "length"
        if not sequence.reason:
            why = sequence.error or sequence.ticket.cancelled or "its stream ended early"
            raise HttpError(Problem(500, "server_error", f"the engine gave this request up: {why}", None, "generation_failed"))

    async def _finish(self, sequence: Sequence, ended: Ended) -> None:
        if sequence.ended is None:
            await sequence.finish(ended)
            self.board.closed(sequence, ended)

    async def _finish_all(self, ended: Ended) -> None:
        self.exchange.unwatch()
        for sequence in self.sequences:
            await self._finish(sequence, ended)

    def _usage(self) -> Usage:
        first_of_prompt = self.sequences[:: self.plan.asked.n]
        return Usage(
            sum(sequence.prompt_tokens for sequence in first_of_prompt),
            sum(sequence.completion_tokens for sequence in self.sequences),
            sum(sequence.cached_tokens for sequence in first_of_prompt),
        )

    def _extras(self) -> dict[str, Any] | None:
        """The `headway` object (docs/server.md, "Promises"): every sample must have kept its promise."""
        if not self.plan.extras:
            return None
        outcomes = [sequence.outcome for sequence in self.sequences if sequence.outcome is not None]
        first = self.sequences[0]
        ttft = [outcome.ttft_s for outcome in outcomes if outcome.ttft_s is not None]
        tpot = [outcome.tpot_s for outcome in outcomes if outcome.tpot_s is not None]
        return {
            "slo": {
                "met": _all_met(outcomes),
                "ttft_ms": round(max(ttft) * 1e3, 3) if ttft else None,
                "tpot_ms": round(max(tpot) * 1e3, 3) if tpot else None,
                "late_tokens": sum(outcome.late_tokens for outcome in outcomes),
                "max_lateness_ms": round(max((outcome.max_lateness_ns for outcome in outcomes), default=0) / 1e6, 3),
                "class": first.ticket.slo.cls,
            },
            "queue_ms": round((first.dispatched_ns - first.ticket.arrival_ns) / 1e6, 3),
            "prefill_ms": round((first.first_output_ns - first.dispatched_ns) / 1e6, 3) if first.first_output_ns else None,
            "cached_tokens": self._usage().cached_tokens,
            "seed": self.plan.seed,
        }


_NO_USAGE = Usage(0, 0, 0)


def _all_met(outcomes: list[Score]) -> bool | None:
    scored = [outcome.on_time for outcome in outcomes if outcome.on_time is not None]
    return all(scored) if scored else None


async def _all(coroutines: Any) -> list[Any]:
    """Runs all; the first failure cancels the others and is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
