"""The client counts tokens right whatever the server's habits, keeps what happened, and never retries."""

import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.bench.client import Call, Endpoint
from headway.bench.http1 import BadResponse, ResponseReader
from headway.bench.outcome import RequestRow
from headway.bench.tokens import read_stream
from tests.bench.mock_server import Behaviour, MockServer


async def _one(behaviour: Behaviour, *, tokens: int = 6, chat: bool = True, timeout_s: float = 10.0) -> RequestRow:
    async with MockServer(behaviour) as url:
        scheduled_ns = time.monotonic_ns()
        body: dict[str, object] = {"model": "mock", "max_tokens": tokens, "stream": True}
        path = "/chat/completions" if chat else "/completions"
        call = Call(Endpoint.of(url), path, {"x-slo-class": "interactive"}, body, RequestRow("a", 0, scheduled_ns, tokens))
        await call.run(timeout_s)
        return call.row


@pytest.mark.parametrize("usage", ["continuous", "final", "none"])
@pytest.mark.parametrize("habit", [{}, {"role_chunk": False}, {"keep_alive": True}, {"crlf": True}, {"split_writes": True}])
@pytest.mark.parametrize("chat", [True, False])
async def test_every_token_is_counted_once(usage: str, habit: dict[str, bool], chat: bool) -> None:
    row = await _one(Behaviour(usage=usage, **habit), chat=chat)  # type: ignore[arg-type]
    assert (row.outcome, row.reason, len(row.token_ns)) == ("finished", "", 6)
    assert row.counted_by == ("usage" if usage == "continuous" else "chunks")
    assert row.scheduled_ns <= row.sent_ns <= row.headers_ns <= row.token_ns[0] <= row.token_ns[-1] <= row.end_ns
    assert row.token_ns == sorted(row.token_ns)


async def test_a_chunk_of_several_tokens_counts_its_tokens_when_the_server_says_how_many() -> None:
    row = await _one(Behaviour(tokens_per_chunk=4), tokens=10)
    assert len(row.token_ns) == 10
    assert row.first_chunk_tokens == 4
    assert len(set(row.token_ns)) <= 3  # three reads brought them


async def test_a_refusal_keeps_its_quote_and_is_not_retried() -> None:
    behaviour = Behaviour(refuse=1)
    row = await _one(behaviour)
    assert (row.outcome, row.status, behaviour.seen) == ("refused", 429, 1)
    assert row.quote is not None and row.quote["ttft_s"] == 9.0
    assert "slo_unattainable" in row.reason


@pytest.mark.parametrize("fault", [{"die": 1}, {"error_event": 1}])
async def test_a_cut_or_broken_stream_is_failed_and_keeps_its_tokens(fault: dict[str, int]) -> None:
    row = await _one(Behaviour(**fault))  # type: ignore[arg-type]
    assert row.outcome == "failed"
    assert len(row.token_ns) == 2
    assert row.reason


async def test_a_server_that_never_ends_fails_by_time_out_with_what_is_known() -> None:
    row = await _one(Behaviour(never_end=1), timeout_s=0.2)
    assert row.outcome == "failed" and "0.2 s" in row.reason and len(row.token_ns) == 2


async def test_nobody_listening_is_failed() -> None:
    call = Call(Endpoint("127.0.0.1", 1), "/completions", {}, {}, RequestRow("a", 0, 0, 1))
    await call.run(1.0)
    assert call.row.outcome == "failed" and call.row.status == 0


_CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5\r\ndata:\r\n9\r\n {"a":1}\n\r\n1\r\n\n\r\n12;x=y\r\n: hi\n\ndata: two\n\n\n\r\n0\r\n\r\n'
)


@given(st.lists(st.integers(1, len(_CHUNKED) - 1), max_size=12))
def test_events_do_not_depend_on_how_the_bytes_are_cut(cuts: list[int]) -> None:
    reader = ResponseReader()
    edges = [0, *sorted(set(cuts)), len(_CHUNKED)]
    for stamp, (start, end) in enumerate(itertools.pairwise(edges), start=1):
        reader.feed(stamp, _CHUNKED[start:end])
    assert [payload for _, payload in reader.events] == [b'{"a":1}', b"two"]
    assert reader.complete and reader.status == 200


def test_an_event_is_stamped_with_the_read_that_completed_it() -> None:
    reader = ResponseReader()
    reader.feed(1, b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: a\n")
    reader.feed(2, b"\ndata: b\n\n")
    assert reader.events == [(2, b"a"), (2, b"b")]
    assert reader.headers_ns == 1


def test_something_else_than_http_is_named() -> None:
    with pytest.raises(BadResponse, match="SSH"):
        ResponseReader().feed(1, b"SSH-2.0-x\r\n\r\n")


def test_unreadable_events_are_an_error_not_a_crash() -> None:
    assert read_stream([(1, b"{")]).error
    assert read_stream([(1, b"[1]")]).error
    assert read_stream([(1, json.dumps({"choices": [None], "usage": 3}).encode())]).token_ns == []
