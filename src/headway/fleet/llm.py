"""`LLM`: a model in this process, without server, journal or event loop: `LLM("smollm2-135m").chat([...])`.

One caller at a time; several prompts given together share every iteration.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from headway.core.config import ServeConfig
from headway.core.errors import EngineDied, InvalidRequest, ModelError
from headway.core.slo import class_default
from headway.core.stops import StopMatcher
from headway.engine import wire
from headway.engine.frames import EngineSettings
from headway.fleet.arguments import check_messages, check_prompts, is_one_prompt, read_sampling
from headway.scheduling.messages import Dispatch

if TYPE_CHECKING:
    from headway.models.tokenizer import Tokenizer

Message = Mapping[str, Any]
Prompt = str | Sequence[int]


class LLM:
    """A loaded model. Close it, or use it as a context manager, to end its threads and free its memory.

    Sampling arguments of `chat` and `generate`: max_tokens (512), temperature (1.0; 0 = always the likeliest token), top_k, top_p, min_p,
    seed, stop (a text or several; the answer ends before the first that appears), stop_ids, ignore_eos, min_tokens. Raises InvalidRequest
    naming the argument (also for a prompt that does not fit), ModelError, ConfigError.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        *,
        accuracy: Literal["exact", "fast"] = "fast",
        threads: int = 0,
        kv_memory_bytes: int = 512 << 20,
        kv_dtype: str = "",
        context_tokens: int = 0,
        max_sequences: int = 64,
        on_progress: Callable[[str, float], None] = lambda what, fraction: None,
    ) -> None:
        """Loads the model (`headway pull` it first). 0 and "" choose: all cores, the mode's KV type, the model's context."""
        from headway.engine.build import build_engine  # compiles and loads kernels: not before somebody wants a model
        from headway.models.model import open_model

        ServeConfig(model=model, accuracy=accuracy, threads=threads, kv_memory_bytes=kv_memory_bytes, kv_dtype=kv_dtype)  # same checks
        self.model = model
        self._model = open_model(model)
        # First come, first served: one caller promises nothing to anybody and wants the largest chunks.
        self._engine = build_engine(
            EngineSettings(model, accuracy, "fcfs", threads, kv_memory_bytes, kv_dtype, context_tokens, 16, max_sequences),
            "in-process",
            on_progress,
        )
        self._next_id = 1
        self._closed = False

    # ---- what people call ------------------------------------------------------------------------------------------------
    @overload
    def chat(self, messages: Sequence[Message], *, stream: Literal[False] = False, **sampling: Any) -> str: ...
    @overload
    def chat(self, messages: Sequence[Message], *, stream: Literal[True], **sampling: Any) -> Iterator[str]: ...
    @overload
    def chat(self, messages: Sequence[Message], *, stream: bool, **sampling: Any) -> str | Iterator[str]: ...
    def chat(self, messages: Sequence[Message], *, stream: bool = False, **sampling: Any) -> str | Iterator[str]:
        """The assistant's next turn; with `stream` pieces of text as they are sampled (closing the iterator stops the work)."""
        template = self._model.chat_template
        if template is None:
            raise ModelError(f"{self.model} has no chat template; use generate() with a text")
        pieces = self._stream(template.encode(check_messages(messages)), sampling)
        return pieces if stream else "".join(pieces)

    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[False] = False, **sampling: Any) -> str: ...
    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[True], **sampling: Any) -> Iterator[str]: ...
    @overload
    def generate(self, prompt: list[str] | list[list[int]], **sampling: Any) -> list[str]: ...
    def generate(self, prompt: Any, *, stream: bool = False, **sampling: Any) -> Any:
        """Continues a text or token ids; a list of prompts is run together and answered as a list, in order."""
        if is_one_prompt(prompt):
            pieces = self._stream(self._ids(prompt), sampling)
            return pieces if stream else "".join(pieces)
        if stream:
            raise InvalidRequest("stream=True takes one prompt, not a list; call generate once for each", param="stream")
        return self._together([self._ids(one) for one in check_prompts(prompt)], sampling)

    def close(self) -> None:
        """Ends the threads. Idempotent."""
        if not self._closed:
            self._closed = True
            self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- inside ----------------------------------------------------------------------------------------------------------
    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._model.tokenizer.encode(prompt)
        return list(prompt)

    def _submit(self, token_ids: list[int], sampling: wire.Sampling) -> int:
        if self._closed:
            raise EngineDied(f"this LLM({self.model!r}) was closed; make a new one")
        id, self._next_id = self._next_id, self._next_id + 1
        slo = class_default("background")
        self._engine.submit(
            wire.Submit(id, self.model, "generate", token_ids, sampling), Dispatch(id, "in-process", 0, slo, time.monotonic_ns())
        )
        return id

    def _outputs(self, ids: set[int]) -> Iterator[wire.Output]:
        """Steps until all `ids` have ended or were taken out by `_stop`. What is left when the caller goes away is aborted."""
        try:
            while ids:
                stepped = self._engine.step(time.monotonic_ns(), time.monotonic_ns)
                if stepped is None:
                    raise EngineDied(f"sequences {sorted(ids)} wait but nothing can run; please report this")
                for output in stepped[0]:
                    if output.id not in ids:
                        continue
                    if output.finish == "error":
                        ids.discard(output.id)
                        raise InvalidRequest(output.error)
                    if output.finish:
                        ids.discard(output.id)
                    yield output
        finally:
            for id in ids:
                self._engine.abort(id, "cancelled")

    def _stop(self, id: int, ids: set[int]) -> None:
        """A stop string appeared: later tokens are neither made nor seen."""
        if id in ids:
            ids.discard(id)
            self._engine.abort(id, "stop")

    def _stream(self, token_ids: list[int], given: dict[str, Any]) -> Iterator[str]:
        sampling, stops = read_sampling(given)
        id = self._submit(token_ids, sampling)  # at the call, not at the first piece: errors come early
        return self._pieces(id, stops)

    def _pieces(self, id: int, stops: tuple[str, ...]) -> Iterator[str]:
        text, ids = _Text(self._model.tokenizer, stops), {id}
        for output in self._outputs(ids):
            piece = text.take(output.token_ids)
            if piece:
                yield piece
            if text.stopped:
                self._stop(id, ids)
        rest = text.rest()
        if rest:
            yield rest

    def _together(self, prompts: list[list[int]], given: dict[str, Any]) -> list[str]:
        sampling, stops = read_sampling(given)
        texts = {self._submit(prompt, sampling): _Text(self._model.tokenizer, stops) for prompt in prompts}
        answers = dict.fromkeys(texts, "")
        ids = set(texts)
        for output in self._outputs(ids):
            answers[output.id] += texts[output.id].take(output.token_ids)
            if texts[output.id].stopped:
                self._stop(output.id, ids)
        return [answer + texts[id].rest() for id, answer in answers.items()]


class _Text:
    """The text of one answer as its tokens come: whole characters, nothing from a stop string on."""

    __slots__ = ("_detokenize", "_matcher")

    def __init__(self, tokenizer: "Tokenizer", stops: tuple[str, ...]) -> None:
        from headway.models.tokenizer import DetokenizeStream

        self._detokenize = DetokenizeStream(tokenizer)
        self._matcher = StopMatcher(stops)

    @property
    def stopped(self) -> bool:
        return self._matcher.stopped

    def take(self, token_ids: Sequence[int]) -> str:
        return self._matcher.push("".join(self._detokenize.push(token) for token in token_ids))

    def rest(self) -> str:
        return self._matcher.push(self._detokenize.flush()) + self._matcher.flush()
