"""A model as the front sees it: tokenizer, chat template and limits. Weights live in the engine and are never touched here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from headway.core.errors import InvalidRequest


class Tokenizer(Protocol):
    """The part of `models.tokenizer.Tokenizer` the front uses."""

    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str, parse_special: bool = False) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def token_bytes(self, id: int) -> bytes: ...


class Template(Protocol):
    """The part of `models.chat.ChatTemplate` the front uses."""

    def encode(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        kwargs: Any = None,
    ) -> list[int]: ...


class Detokenizer(Protocol):
    """Token ids in, text out; holds back bytes that are not yet a whole character."""

    def push(self, id: int) -> str: ...
    def flush(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """`context_tokens` bounds prompt + output; `pool_tokens` is what the KV pool holds; `meta` goes into /v1/models as it is."""

    name: str
    tokenizer: Tokenizer
    template: Template | None
    detokenizer: Callable[[], Detokenizer]
    context_tokens: int
    pool_tokens: int
    created: int = 0
    shows_tools: bool = False
    bos_id: int | None = None
    engine_name: str = ""
    """What the fleet calls it where that differs (a path given to `serve`)."""
    aliases: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    def longest_token_bytes(self) -> int:
        """Bytes of the longest token; a text of B bytes has at least B / this tokens."""
        return max(len(self.tokenizer.token_bytes(id)) for id in range(self.tokenizer.vocab_size))


def find_model(models: dict[str, ServedModel], asked: str) -> ServedModel:
    """The model a client named; with one model loaded no name is needed. Raises InvalidRequest, code `model_not_found`."""
    if asked in models:
        return models[asked]
    for model in models.values():
        if asked in model.aliases:
            return model
    if not asked and len(models) == 1:
        return next(iter(models.values()))
    known = ", ".join(sorted(models))
    raise InvalidRequest(f"model {asked[:80]!r} is not loaded here; loaded: {known}", param="model", code="model_not_found")
