"""Every error as a client sees it: status, OpenAI's JSON shape and headers (docs/server.md, "Errors"). Pure."""

import math
from dataclasses import dataclass, field
from typing import Any

from headway.core.errors import EngineDied, HeadwayError, InvalidRequest
from headway.fleet.ticket import EngineBusy, JournalUnavailable, Refused

NO_RETRY = (b"x-should-retry", b"false")


@dataclass(frozen=True, slots=True)
class Problem:
    """An error reply: HTTP status, OpenAI's fields, extra headers and the `headway` object of a refusal."""

    status: int
    type: str
    message: str
    param: str | None = None
    code: str | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    extras: dict[str, Any] | None = None

    def body(self) -> dict[str, Any]:
        error: dict[str, Any] = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        if self.extras is not None:
            error["headway"] = self.extras
        return {"error": error}


class HttpError(HeadwayError):
    """Raised anywhere below a handler to answer with this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def invalid(message: str, param: str | None = None, code: str | None = None) -> Problem:
    """400."""
    return Problem(400, "invalid_request_error", message, param, code)


def unavailable(message: str, code: str) -> Problem:
    """503: nothing wrong with the request; another time it may work."""
    return Problem(503, "unavailable", message, None, code, [(b"retry-after", b"1")])


def full(open_requests: int) -> Problem:
    """429: too many requests are open. The client must not retry by itself, or overload multiplies."""
    message = f"{open_requests} requests are open, which is the limit of this server (--max-open-requests); try again when one has finished"
    return Problem(429, "rate_limit_error", message, None, "queue_full", [(b"retry-after", b"1"), NO_RETRY])


def refused(error: Refused) -> Problem:
    """429 with the nearest promise that could be kept."""
    quote = None
    if error.quote is not None:
        quote = {
            "ttft_ms": round(error.quote.ttft_s * 1e3, 3),
            "tpot_ms": round(error.quote.tpot_s * 1e3, 3),
            "after_s": round(error.quote.after_s, 3),
        }
    seconds = max(1, math.ceil(error.retry_after_s)) if math.isfinite(error.retry_after_s) else 60
    code = "queue_full" if error.reason == "queue_full" else "slo_unattainable"
    headers = [(b"retry-after", str(seconds).encode()), NO_RETRY]
    return Problem(429, "rate_limit_error", str(error), "slo", code, headers, {"reason": error.reason, "quote": quote})


def problem_of(error: HeadwayError) -> Problem | None:
    """The reply for an error raised on purpose, or None when it is an accident (500)."""
    if isinstance(error, HttpError):
        return error.problem
    if isinstance(error, InvalidRequest):
        if error.code == "model_not_found":
            return Problem(404, "not_found_error", str(error), error.param, error.code)
        return invalid(str(error), error.param, error.code)
    if isinstance(error, Refused):
        return refused(error)
    if isinstance(error, EngineDied):
        return unavailable(str(error), "engine_died")
    if isinstance(error, EngineBusy):
        return unavailable(str(error), "engine_busy")
    if isinstance(error, JournalUnavailable):
        return unavailable(str(error), "journal_unavailable")
    return None


def accident(request_id: str) -> Problem:
    """500 without a trace; the log has it under the same id."""
    return Problem(
        500, "server_error", f"the server failed on this request; its log explains it under {request_id}", None, "internal_error"
    )
