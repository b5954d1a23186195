"""`headway serve` with the real model, as its users start it, and the official OpenAI client: no double between client and weights."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.conftest import TEST_MODEL

pytestmark = pytest.mark.model
ROOT = Path(__file__).parents[2]
PARIS: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
EXACT: Any = {"model": TEST_MODEL, "messages": PARIS, "temperature": 0, "max_tokens": 20}
COUNT: Any = {"model": TEST_MODEL, "prompt": "1, 2, 3, 4,", "temperature": 0}
BACKGROUND = {"x-slo-class": "background"}  # no due times: a busy machine sheds none of these requests


@dataclass(slots=True)
class Server:
    """A running `headway serve`."""

    process: subprocess.Popen[str]
    url: str

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(self.url + "/stats", timeout=20).json()
        return found

    def until_idle(self) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while True:
            stats = self.stats()
            if stats["open_requests"] == 0 and stats["kv_pages_used"] == 0:
                return stats
            if time.monotonic() > deadline:
                raise TimeoutError(f"not idle after 30 s: {stats}")
            time.sleep(0.02)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=60, default_headers=BACKGROUND)


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "headway.cli.main", *argv]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    argv = command("serve", TEST_MODEL, "--port", "0", "--accuracy", "exact", "--kv-memory", "256MiB")
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    first = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", first)
    assert found is not None, first + process.stderr.read()
    yield Server(process, found.group())
    if process.poll() is None:
        process.kill()
        process.communicate()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


def test_a_chat_answers_and_accounts_for_itself(client: openai.OpenAI, server: Server) -> None:
    reply = client.chat.completions.create(**EXACT)
    assert reply.choices[0].message.content == ANSWER and reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None and reply.usage.prompt_tokens > 20 and 7 <= reply.usage.completion_tokens <= 8
    assert reply.model_extra is not None and reply.model_extra["headway"]["slo"]["class"] == "background"
    assert server.until_idle()["replies"]["200"] >= 1


def test_streamed_pieces_add_up_to_the_same_answer(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**EXACT, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == ANSWER and len(pieces) >= 7
    assert chunks[-1].usage is not None and 7 <= chunks[-1].usage.completion_tokens <= 8


def test_async_streams_beside_each_other_get_what_they_get_alone(server: Server) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, default_headers=BACKGROUND) as client:

            async def stream() -> str:
                return "".join(
                    [chunk.choices[0].delta.content or "" async for chunk in await client.chat.completions.create(**EXACT, stream=True)]
                )

            return list(await asyncio.gather(*(stream() for _ in range(6))))

    assert asyncio.run(ask()) == [ANSWER] * 6


def test_text_and_token_ids_complete_alike_with_logprobs(client: openai.OpenAI, server: Server) -> None:
    ids = httpx.post(server.url + "/tokenize", json={"prompt": COUNT["prompt"]}, timeout=20).json()["tokens"]
    text = client.completions.create(**COUNT, max_tokens=6, logprobs=2)
    same = client.completions.create(**COUNT | {"prompt": ids}, max_tokens=6)
    assert text.choices[0].text == same.choices[0].text and text.choices[0].text.startswith(" 5, 6")
    logprobs = text.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None and len(logprobs.token_logprobs) == 6
    assert all(value is not None and value <= 0 for value in logprobs.token_logprobs)


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**EXACT, stop=[" is Paris"])
    assert reply.choices[0].message.content == "The capital of France" and reply.choices[0].finish_reason == "stop"


def test_a_seed_repeats_a_draw(client: openai.OpenAI) -> None:
    draws = [client.completions.create(**COUNT | {"temperature": 1.5}, seed=seed, max_tokens=12).choices[0].text for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def test_closing_a_stream_frees_its_pages(client: openai.OpenAI, server: Server) -> None:
    before = server.until_idle()["tokens_total"]
    with client.completions.create(**COUNT, max_tokens=3000, stream=True, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
        assert server.stats()["kv_pages_used"] > 0
    assert server.until_idle()["tokens_total"] - before < 2500


async def test_cancelling_a_task_mid_stream_frees_its_pages(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, default_headers=BACKGROUND) as client:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in await client.completions.create(**COUNT, max_tokens=3000, stream=True, extra_body={"ignore_eos": True}):
                begun.set()

        task = asyncio.create_task(read())
        while not begun.is_set():
            assert not task.done(), await task
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(server.until_idle)


def test_errors_are_the_clients_own_classes(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=PARIS)
    with pytest.raises(openai.BadRequestError, match="8192"):
        client.completions.create(model=TEST_MODEL, prompt=[5] * 9000)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**EXACT | {"temperature": -1})
    assert caught.value.param == "temperature"
    impossible = {"x-slo-ttft-ms": "0.001", "x-slo-class": "interactive"}
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**EXACT, extra_headers=impossible)
    assert refused.value.code == "slo_unattainable"
    assert server.until_idle()["healthy"] is True


def test_a_stream_outlives_the_signal_to_stop_and_the_journal_replays(server: Server) -> None:
    """Last: it ends the server."""
    port = server.url.rpartition(":")[2]
    with server.client() as client:
        text = ""
        for chunk in client.completions.create(**COUNT, max_tokens=60, stream=True, extra_body={"ignore_eos": True}):
            if not text:
                server.process.send_signal(signal.SIGTERM)
            text += chunk.choices[0].text
    assert text.startswith(" 5, 6, 7") and len(text) > 40
    _, errors = server.process.communicate(timeout=60)
    assert server.process.returncode == 0, errors
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    journal = Path(os.environ["HEADWAY_HOME"]) / "state" / "serve" / port
    replayed = subprocess.run(command("replay", str(journal)), env=environment, capture_output=True, text=True, timeout=120)
    assert replayed.returncode == 0 and "bit for bit" in replayed.stdout, replayed.stdout + replayed.stderr
