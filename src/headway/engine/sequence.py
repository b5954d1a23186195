"""One sequence inside an engine: its tokens, the class of every row, its pages, and how far it has come."""

from array import array
from dataclasses import dataclass, field

from headway.core.slo import Slo
from headway.engine.wire import Sampling, TokenLogprobs

PROMPT, GENERATED = 0, 1


@dataclass(slots=True, eq=False)
class Sequence:
    """Rows [0, computed) have K and V in `pages`. Decoding: computed == len(tokens) - 1, the last token's row is still to do.

    `classes[i]` is the class row i was computed with and keeps for life, also when its page came from another sequence (a new prompt may
    hold text that a model generated) and when it is recomputed after preemption. Rows from `settled` on have never been computed.
    """

    id: int
    model: str
    kind: str
    sampling: Sampling
    prompt_tokens: int
    max_tokens: int
    """effective: the request's, less what context and pool cannot hold"""
    stop_ids: frozenset[int]
    root: bytes
    tokens: "array[int]"
    classes: bytearray
    computed: int = 0
    settled: int = 0
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    """identity of each published page, a prefix of `pages`"""
    table: int = -1
    """row of the block tables, -1 while it holds none"""
    cached_tokens: int = 0
    """prompt tokens that came from the prefix cache before the first own row"""
    started: bool = False
    prompt_scores: list[TokenLogprobs | None] | None = None
    slo: Slo = field(default_factory=Slo)
    relegated: bool = False

    @property
    def emitted(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def rows_left(self) -> int:
        """Rows to compute before the next token can be drawn."""
        return len(self.tokens) - self.computed

    def scored_prompt_rows(self) -> int:
        """Rows [0, n) whose logits nobody needs any more; everything unless prompt log-probs are still being collected."""
        if self.prompt_scores is None or len(self.prompt_scores) == self.prompt_tokens:
            return len(self.tokens)
        return len(self.prompt_scores) - 1

    def class_run(self, first: int, limit: int) -> int:
        """End of the run of equal classes that starts at row `first`, at most `limit`."""
        other = GENERATED if self.classes[first] == PROMPT else PROMPT
        end = self.classes.find(other, first, limit)
        return limit if end < 0 else end


def new_sequence(
    *, id: int, model: str, kind: str, sampling: Sampling, token_ids: list[int], max_tokens: int, stop_ids: frozenset[int], root: bytes
) -> Sequence:
    return Sequence(
        id=id,
        model=model,
        kind=kind,
        sampling=sampling,
        prompt_tokens=len(token_ids),
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        root=root,
        tokens=array("i", token_ids),
        classes=bytearray(len(token_ids)),
        prompt_scores=[None] if sampling.prompt_logprobs else None,
    )
