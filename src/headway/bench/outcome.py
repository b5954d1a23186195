"""What became of one scheduled request: the row that the client writes and that the score, the report and the picture read."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["finished", "refused", "failed", "unfinished"]


@dataclass(slots=True)
class Outcomes:
    """Rows of one measured run; stamps are CLOCK_MONOTONIC ns of this machine, `start_ns` the moment the schedule began."""

    start_ns: int
    end_ns: int
    requests: "list[RequestRow]"
    client_cpu_s: dict[str, float] = field(default_factory=dict)
    client_wait_ns: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class RequestRow:
    """One request. A stamp of 0 means it never happened. `token_ns`: the read stamp of each token.

    refused: 429 or 503. failed: any other error, a time-out, a cut connection. unfinished: still running when the run ended.
    """

    app: str
    index: int
    scheduled_ns: int
    wanted_tokens: int
    sent_ns: int = 0
    headers_ns: int = 0
    end_ns: int = 0
    status: int = 0
    outcome: Outcome = "unfinished"
    reason: str = ""
    token_ns: list[int] = field(default_factory=list)
    first_chunk_tokens: int = 0
    counted_by: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    usage_tokens: int | None = None
    finish_reason: str = ""
    text: str = ""
    quote: dict[str, Any] | None = None
    server: dict[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """JSON-able dict; `from_plain` reads it back."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "RequestRow":
        return cls(**plain)

    @property
    def longest_gap_ns(self) -> int:
        """Longest time between two reads that brought tokens; 0 with fewer than two."""
        return max((b - a for a, b in zip(self.token_ns, self.token_ns[1:])), default=0)

    @property
    def ttft_ns(self) -> int | None:
        """Scheduled arrival to first token: intended time is primary."""
        return self.token_ns[0] - self.scheduled_ns if self.token_ns else None

    @property
    def tpot_ns(self) -> float | None:
        """(t_last - t_first)/(n - k_first), k_first = tokens of the first chunk; None if all came at once."""
        rest = len(self.token_ns) - self.first_chunk_tokens
        return (self.token_ns[-1] - self.token_ns[0]) / rest if rest > 0 else None
