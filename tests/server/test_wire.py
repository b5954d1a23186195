"""What strict and rude clients see on the wire: a real server, httpx and raw sockets (docs/server.md)."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.fleet.doubles import Script, ScriptedFleet
from tests.server.scripted import Running, byte_model, serving

from headway.engine.wire import Output
from headway.fleet.ticket import EngineBusy, FleetRequest, JournalUnavailable, Refused
from headway.scheduling.messages import Quote

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
LONG = Script(token_ids=(65,) * 400, gap_s=0.02)
ENDLESS_TEXT = Script(outputs=tuple(Output(0, [65] * 2000) for _ in range(2000)))


def script(request: FleetRequest) -> Script:
    """What happens is chosen by the request's cache salt."""
    quote = Quote(ttft_s=2.5, tpot_s=0.08, after_s=1.0)
    scripts = {
        "refused": Script(refuse=Refused("slo_unattainable", quote, 2.2)),
        "busy": Script(refuse=EngineBusy("16 MiB wait")),
        "journal": Script(refuse=JournalUnavailable("disk full")),
        "dies": Script(token_ids=(65,) * 10, die_after=3),
        "hold": Script(hold=True),
        "long": LONG,
        "flood": ENDLESS_TEXT,
        "late": Script(token_ids=(65, 66), gap_s=0.03),
    }
    return scripts.get(request.cache_salt, Script())


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    models = {"tiny": byte_model(context_tokens=10**7, pool_tokens=10**7)}
    with serving(ScriptedFleet(script), models, max_body_bytes=100_000) as running:
        yield running


def post(server: Running, body: Any, path: str = "/v1/chat/completions", headers: dict[str, str] | None = None) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(server.url + path, content=content, headers=headers or {}, timeout=20)


def events(text: str) -> list[Any]:
    assert text.endswith("\n\n")
    lines = text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def raw_request(server: Running, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def idle(server: Running) -> None:
    server.until(lambda: not server.fleet.open() and server.app.board.open_requests == 0, "everything is freed")
    assert all(counts.open == 0 for counts in server.app.board.classes.values())


def test_stream_shape(server: Running) -> None:
    reply = post(server, CHAT | {"stream": True, "stream_options": {"include_usage": True}, "stop": None})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache" and reply.headers["x-accel-buffering"] == "no"
    *chunks, done = events(reply.text)
    assert done == "[DONE]"
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["id"] and "usage" in chunk for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[1:4]] == ["H", "i", "!"]
    assert chunks[4]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert chunks[5]["choices"] == [] and chunks[5]["usage"]["completion_tokens"] == 3
    assert [chunk["usage"] for chunk in chunks[:5]] == [None] * 5
    assert chunks[5]["headway"]["slo"]["met"] is True and ["headway" in chunk for chunk in chunks[:5]] == [False] * 5


def test_continuous_usage_counts_up(server: Running) -> None:
    reply = post(server, CHAT | {"stream": True, "stream_options": {"continuous_usage_stats": True}})
    counts = [chunk["usage"]["completion_tokens"] for chunk in events(reply.text)[:-1]]
    assert counts == [0, 1, 2, 3, 3]


def test_promise_is_granted_and_scored(server: Running) -> None:
    headers = {"x-slo-ttft-ms": "900", "x-slo-tpot-ms": "0.001", "x-slo-class": "realtime"}
    reply = post(server, CHAT | {"slo": {"ttft_ms": 1}, "cache_salt": "late"}, headers=headers)
    assert (
        reply.headers["x-slo-class"] == "realtime" and reply.headers["x-slo-ttft-ms"] == "1" and reply.headers["x-slo-tpot-ms"] == "0.001"
    )
    outcome = reply.json()["headway"]["slo"]
    assert outcome["met"] is False and outcome["late_tokens"] == 2 and outcome["max_lateness_ms"] > 0


@pytest.mark.parametrize("value", ["0", "-1", "nan", "1e12", "soon"])
def test_absurd_promises_are_refused(server: Running, value: str) -> None:
    reply = post(server, CHAT, headers={"x-slo-ttft-ms": value})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "slo.ttft_ms"


@pytest.mark.parametrize("stream", [False, True])
def test_a_shed_carries_the_quote_and_forbids_retries(server: Running, stream: bool) -> None:
    reply = post(server, CHAT | {"cache_salt": "refused", "stream": stream})
    assert reply.status_code == 429 and reply.headers["retry-after"] == "3" and reply.headers["x-should-retry"] == "false"
    error = reply.json()["error"]
    assert error["type"] == "rate_limit_error" and error["code"] == "slo_unattainable"
    assert error["headway"]["quote"] == {"ttft_ms": 2500.0, "tpot_ms": 80.0, "after_s": 1.0}
    idle(server)


@pytest.mark.parametrize(("salt", "code"), [("busy", "engine_busy"), ("journal", "journal_unavailable")])
def test_unavailable(server: Running, salt: str, code: str) -> None:
    reply = post(server, CHAT | {"cache_salt": salt})
    assert reply.status_code == 503 and reply.json()["error"]["code"] == code


def test_a_dead_engine_is_told_mid_stream_and_in_whole_replies(server: Running) -> None:
    streamed = events(post(server, CHAT | {"cache_salt": "dies", "stream": True}).text)
    assert streamed[-1]["error"]["code"] == "engine_died"
    whole = post(server, CHAT | {"cache_salt": "dies"})
    assert whole.status_code == 503 and whole.json()["error"]["code"] == "engine_died"
    assert [finish[1] for finish in server.fleet.finishes[-2:]] == ["failed", "failed"]
    idle(server)


@pytest.mark.parametrize("body", [CHAT | {"stream": True}, CHAT, CHAT | {"stream": True, "n": 3}, CHAT | {"n": 3}])
@pytest.mark.parametrize("salt", ["long", "hold"])
def test_a_client_that_leaves_frees_everything(server: Running, body: dict[str, Any], salt: str) -> None:
    before = len(server.fleet.finishes)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(raw_request(server, body | {"cache_salt": salt}))
        server.until(lambda: len(server.fleet.open()) == body.get("n", 1), "the request is open")
    idle(server)
    ended = server.fleet.finishes[before:]
    assert [finish[1] for finish in ended] == ["cancelled_by_client"] * body.get("n", 1)


def test_a_slow_reader_is_cut_off_with_an_error(server: Running) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(raw_request(server, CHAT | {"cache_salt": "flood", "stream": True}))
        server.until(lambda: any(why == "cancelled_by_us" for _, why in server.fleet.cancels), "the slow reader is cancelled")
        idle(server)
        received = bytearray()
        client.settimeout(10)
        while not received.endswith(b"0\r\n\r\n"):
            received += client.recv(1 << 20)
    assert b'"code":"slow_reader"' in received and b"[DONE]" not in received
    assert len(received) < 3 * 1024 * 1024


def test_64_streams_at_once(server: Running) -> None:
    results: list[str] = []

    def ask() -> None:
        results.append(post(server, CHAT | {"stream": True, "slo": {"class": "background"}}).text)

    threads = [threading.Thread(target=ask) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 64 and all(events(text)[-1] == "[DONE]" for text in results)
    idle(server)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a":1}x',
        b"\xff\xfe",
        b'{"messages":"\xff"}',
        b'{"x":' + b"[" * 64 + b"]" * 64 + b',"messages":[{"role":"user","content":"65 levels"}]}',
        b"[" * 50_000,
    ],
)
def test_malformed_bodies(server: Running, body: bytes) -> None:
    reply = post(server, body)
    assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"
    idle(server)


def test_brackets_in_text_are_no_depth(server: Running) -> None:
    assert post(server, {"messages": [{"role": "user", "content": "[{" * 200}]}).status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_too_large_bodies(server: Running, declared: bool) -> None:
    body = b" " * 10_000_000
    content: Any = body if declared else iter([body[:5_000_000], body[5_000_000:]])
    reply = httpx.post(server.url + "/v1/chat/completions", content=content, timeout=20)
    assert reply.status_code == 413 and "100000" in reply.json()["error"]["message"]


def test_bad_http_is_answered_in_json(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"hello\r\n\r\n")
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400") and json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_unknown_paths_and_methods(server: Running) -> None:
    missing = httpx.get(server.url + "/v1/nothing")
    assert missing.status_code == 404 and missing.json()["error"]["type"] == "not_found_error"
    wrong = httpx.get(server.url + "/v1/chat/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST" and "error" in wrong.json()
    assert httpx.head(server.url + "/health").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
def test_a_foreign_host_name_is_refused(server: Running, host: str) -> None:
    reply = httpx.get(server.url + "/v1/models", headers={"host": host})
    assert reply.status_code == 403 and reply.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_a_foreign_origin_is_refused(server: Running, origin: str) -> None:
    reply = post(server, CHAT, headers={"origin": origin})
    assert reply.status_code == 403 and reply.json()["error"]["code"] == "origin_not_allowed"
    assert post(server, CHAT, headers={"origin": server.url}).status_code == 200


def test_cors_key_and_open_request_limit() -> None:
    settings: dict[str, Any] = {"cors": "https://app.example", "api_key": "s3cret", "max_open_requests": 1}
    with serving(ScriptedFleet(script), **settings) as server:
        origin = {"origin": "https://app.example"}
        preflight = httpx.options(server.url + "/v1/chat/completions", headers=origin | {"access-control-request-headers": "x-a"})
        assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == "https://app.example"
        refused = httpx.get(server.url + "/v1/models", headers=origin)
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        for path in ("/", "/metrics", "/stats"):
            challenge = httpx.get(server.url + path)
            assert challenge.status_code == 401 and challenge.headers["www-authenticate"].startswith("Basic")
            assert httpx.get(server.url + path, auth=("anyone", "s3cret")).status_code == 200
            assert httpx.get(server.url + path, auth=("anyone", "wrong")).status_code == 401
        assert httpx.get(server.url + "/health").status_code == httpx.get(server.url + "/version").status_code == 200
        bearer = {"authorization": "Bearer s3cret"}
        with httpx.stream("POST", server.url + "/v1/chat/completions", json=CHAT | {"cache_salt": "long", "stream": True}, headers=bearer):
            full = post(server, CHAT, headers=bearer)
        assert full.status_code == 429 and full.json()["error"]["code"] == "queue_full" and full.headers["x-should-retry"] == "false"
        idle(server)


def test_health_says_loading_draining_and_unhealthy() -> None:
    fleet = ScriptedFleet(script)
    with serving(fleet) as server:
        server.call(setattr, server.app, "fleet", None)
        assert httpx.get(server.url + "/health").status_code == 503 and post(server, CHAT).json()["error"]["code"] == "loading"
        assert httpx.get(server.url + "/stats").json()["healthy"] is False
        server.call(setattr, server.app, "fleet", fleet)
        fleet.unhealthy = "three deaths in 60 s"
        assert httpx.get(server.url + "/health").json()["reason"] == "three deaths in 60 s" and post(server, CHAT).status_code == 503
        fleet.unhealthy = ""
        server.call(setattr, server.app, "draining", True)
        assert post(server, CHAT).json()["error"]["code"] == "draining"


def test_stats_and_metrics_count(server: Running) -> None:
    before = httpx.get(server.url + "/stats").json()
    post(server, CHAT)
    after = httpx.get(server.url + "/stats").json()
    assert after["tokens_out"] - before["tokens_out"] == 3
    assert after["classes"]["interactive"]["on_time"] - before["classes"]["interactive"]["on_time"] == 1
    wanted = {"kv_pages_total", "kv_pages_used", "kv_pages_cached", "open_requests", "queued_requests", "engine_pids", "accuracy", "policy"}
    assert wanted <= after.keys()
    text = httpx.get(server.url + "/metrics").text
    assert f"headway_generated_tokens_total {float(after['tokens_out'])}" in text and 'headway_promises_total{class="interactive"' in text


def test_tokenize_and_back(server: Running) -> None:
    reply = post(server, {"content": "hé", "add_special": True}, "/tokenize").json()
    assert reply["tokens"] == [256, 104, 195, 169]
    assert post(server, {"tokens": [104, 195, 169]}, "/detokenize").json() == {"content": "hé"}
    assert post(server, {"tokens": [999]}, "/detokenize").json()["error"]["param"] == "tokens"


def test_a_long_context_is_refused_with_the_three_numbers() -> None:
    with serving(ScriptedFleet(script)) as server:
        reply = post(server, {"prompt": "a" * 500, "max_tokens": 13}, "/v1/completions").json()["error"]
        assert reply["code"] == "context_length_exceeded" and all(number in reply["message"] for number in ("500", "513", "512"))
        assert post(server, {"prompt": "a" * 500, "max_tokens": 12}, "/v1/completions").status_code == 200
        assert post(server, {"prompt": "a" * 50_000}, "/v1/completions").json()["error"]["code"] == "context_length_exceeded"


def test_a_held_stream_gets_its_status_and_comments(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.server.stream.KEEP_ALIVE_S", 0.05)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(10)
        client.sendall(raw_request(server, CHAT | {"cache_salt": "hold", "stream": True}))
        received = b""
        while b": keep-alive\n\n" not in received:
            received += client.recv(65536)
        assert received.startswith(b"HTTP/1.1 200")
        ticket = server.fleet.open()[0]
        server.call(ticket.fail, Refused("slo_unattainable", None, 1.0))
        while b"0\r\n\r\n" not in received:
            received += client.recv(65536)
    assert b'"code":"slo_unattainable"' in received
    idle(server)


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_while_tokens_come_leaves_nothing_running(server: Running, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("headway.server.sequence.Sequence.take", broken)
    reply = post(server, CHAT | {"cache_salt": "long", "stream": stream})
    error = events(reply.text)[-1]["error"] if stream else reply.json()["error"]
    assert reply.status_code == (200 if stream else 500)
    assert error["type"] == "server_error" and "a bug" not in error["message"]
    idle(server)
    assert server.fleet.cancels[-1][1] == "front_failed"


def test_a_body_that_does_not_come_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.server.exchange.BODY_TIMEOUT_S", 0.05)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(raw_request(server, CHAT)[:-5])
        assert client.recv(65536).startswith(b"HTTP/1.1 408 ")
    idle(server)


def test_a_reset_connection_frees_everything(server: Running) -> None:
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(raw_request(server, CHAT | {"cache_salt": "long", "stream": True}))
    time.sleep(0.05)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    idle(server)


def _connected(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def _read_all(client: socket.socket) -> bytes:
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_client_that_shuts_down_its_side_gets_its_reply(server: Running, stream: bool, version: str) -> None:
    request = raw_request(server, CHAT | {"cache_salt": "late", "stream": stream}).replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    with _connected(server) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        reply = _read_all(client)
    probes, found, body = reply.partition(b"HTTP/1.1 200 OK\r\n")
    assert found and probes.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") == b""
    assert not probes or version == "1.1"
    assert body.count(b'"content"') >= 2 and b"[DONE]" in body if stream else b'"content":"AB"' in body
    idle(server)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_closes_everything_is_cancelled_before_its_reply_could_be_sent(server: Running, stream: bool) -> None:
    before = len(server.fleet.cancels)
    with _connected(server) as client:
        client.sendall(raw_request(server, CHAT | {"cache_salt": "hold", "stream": stream}))
        server.until(lambda: bool(server.fleet.open()), "the request has arrived")
    server.until(lambda: len(server.fleet.cancels) > before, "it is cancelled")
    idle(server)


def test_half_a_request_and_the_end_of_it_frees_everything(server: Running) -> None:
    with _connected(server) as client:
        client.sendall(raw_request(server, CHAT)[:-5])
        client.shutdown(socket.SHUT_WR)
        assert not client.recv(100)
    idle(server)
