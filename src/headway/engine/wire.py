"""Frames between front and engine. Three families, each numbered: control (commands), reports (events), data.

Data (`Submit`, `Output`) is never journaled and never reaches the router. Light: standard library only, so the front imports it freely.
"""

from dataclasses import dataclass, field

SCHEMA = "headway.wire/1"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one sequence's tokens are drawn (docs/engine.md, "Sampling"). temperature 0 = greedy, lowest id on ties.

    `logprobs`: None = none, k >= 0 = the chosen token's raw log-probability and those of the k best.
    `prompt_logprobs` asks the same for every prompt token (completions with echo).
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    sample_index: int = 0
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Submit:
    """A sequence's data; follows or precedes its Dispatch, which carries the Slo. `stop_ids` of the model are the engine's own."""

    id: int
    model: str
    kind: str
    token_ids: list[int]
    sampling: Sampling
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Raw (before temperature) natural log-probability of a token and the best alternatives as (id, logprob), best first."""

    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(slots=True)
class Output:
    """Tokens sampled for one sequence in one iteration, in order. Not frozen: there is one a token, and that would make it three times as
    dear. `finish`: "" while running, else stop | length | abort | error.

    `pages_dropped`: pages of prompts that the prefix cache forgot since this model's last outputs (said with whichever comes first).
    `stop_id` says which stop token ended it (it is not in `token_ids`). `prompt_logprobs` arrives once, with the first token
    (its first entry is None).
    """

    id: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish: str = ""
    stop_id: int | None = None
    cached_tokens: int = 0
    pages_dropped: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of an engine: front and engine must agree on `schema`; frames of an old boot are dropped."""

    schema: str
    engine_id: str
    boot: int
    pid: int
