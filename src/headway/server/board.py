"""What the front has seen: counts by class and outcome, open requests with their slack, and a minute of history for the dashboard."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from headway.core.slo import CLASSES, Ended, SloClass
from headway.server.sequence import Sequence

HISTORY_S = 120
RATE_S = 5


@dataclass(slots=True)
class ClassCounts:
    """Sequences of one class by how they ended; `on_time + late + unscored` = all that ended."""

    open: int = 0
    on_time: int = 0
    late: int = 0
    unscored: int = 0
    ended: dict[Ended, int] = field(
        default_factory=lambda: {"finished": 0, "shed": 0, "failed": 0, "cancelled_by_us": 0, "cancelled_by_client": 0}
    )


class Board:
    """One a server. Cheap for a token (one addition); everything else is computed when asked."""

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.classes: dict[SloClass, ClassCounts] = {cls: ClassCounts() for cls in CLASSES}
        self.running: dict[Sequence, SloClass] = {}
        self.open_requests = 0
        self.tokens = 0
        self.prompt_tokens = 0
        self.replies: dict[int, int] = {}
        self.refusals: dict[str, int] = {}
        self.history: deque[dict[str, Any]] = deque(maxlen=HISTORY_S)
        self._clock_ns = clock_ns
        self._samples: deque[tuple[int, int]] = deque([(clock_ns(), 0)], maxlen=RATE_S + 1)

    def opened(self, sequence: Sequence) -> None:
        """A sequence was handed to the fleet."""
        cls = sequence.ticket.slo.cls
        self.running[sequence] = cls
        self.classes[cls].open += 1
        self.prompt_tokens += sequence.prompt_tokens

    def closed(self, sequence: Sequence, ended: Ended) -> None:
        """A sequence is over; later calls for it do nothing."""
        cls = self.running.pop(sequence, None)
        if cls is None:
            return
        counts = self.classes[cls]
        counts.open -= 1
        counts.ended[ended] += 1
        on_time = sequence.outcome.on_time if sequence.outcome is not None else (None if cls == "background" else False)
        if on_time is None:
            counts.unscored += 1
        elif on_time:
            counts.on_time += 1
        else:
            counts.late += 1

    def replied(self, status: int, code: str | None) -> None:
        """A reply's status, and its error code if it was one."""
        self.replies[status] = self.replies.get(status, 0) + 1
        if code is not None:
            self.refusals[code] = self.refusals.get(code, 0) + 1

    def tokens_per_s(self) -> float:
        """Over the last RATE_S samples (seconds)."""
        start_ns, before = self._samples[0]
        elapsed_ns = self._clock_ns() - start_ns
        return 0.0 if elapsed_ns <= 0 else (self.tokens - before) * 1e9 / elapsed_ns

    def slack_ms(self) -> dict[str, float]:
        """Per class the time until the most urgent open sequence is due next; negative = it is late."""
        now_ns = self._clock_ns()
        slack: dict[str, float] = {}
        for sequence, cls in self.running.items():
            ticket, stamps = sequence.ticket, sequence.token_ns
            due = ticket.slo.due_ns(ticket.arrival_ns, len(stamps), stamps[0] if stamps else None)
            if due is not None:
                slack[cls] = min(slack.get(cls, float("inf")), round((due - now_ns) / 1e6, 1))
        return slack

    def sample(self, fleet_stats: dict[str, Any]) -> None:
        """Called once a second: one point of history."""
        self._samples.append((self._clock_ns(), self.tokens))
        self.history.append(
            {
                "tokens_per_s": round(self.tokens_per_s(), 1),
                "open": {cls: counts.open for cls, counts in self.classes.items()},
                "slack_ms": self.slack_ms(),
                "queued": fleet_stats.get("queued_requests", 0),
                "kv_used": fleet_stats.get("kv_pages_used", 0),
                "kv_cached": fleet_stats.get("kv_pages_cached", 0),
            }
        )

    def stats(self) -> dict[str, Any]:
        """The front's part of /stats."""
        return {
            "http_open_requests": self.open_requests,
            "tokens_out": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "tokens_per_s": round(self.tokens_per_s(), 2),
            "classes": {
                cls: {
                    "open": counts.open,
                    "on_time": counts.on_time,
                    "late": counts.late,
                    "unscored": counts.unscored,
                    "ended": dict(counts.ended),
                }
                for cls, counts in self.classes.items()
            },
            "slack_by_class_ms": self.slack_ms(),
            "replies": {str(status): count for status, count in sorted(self.replies.items())},
            "errors": dict(sorted(self.refusals.items())),
        }
