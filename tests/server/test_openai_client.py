"""The official OpenAI client works: sync, async, streaming and not (issue 3, "Robust")."""

import asyncio
from collections.abc import Iterator

import openai
import pytest
from tests.fleet.doubles import Script, ScriptedFleet
from tests.server.scripted import Running, serving

from headway.engine.wire import Output, TokenLogprobs
from headway.fleet.ticket import FleetRequest

HELLO = [{"role": "user", "content": "Hi"}]


def script(request: FleetRequest) -> Script:
    """Answers "Grüße, world"; with log-probabilities when they are asked for."""
    ids = tuple("Grüße, world".encode())
    if request.sampling.logprobs is None:
        return Script(token_ids=ids)
    known = [TokenLogprobs(-0.5, [(id, -0.5), (65, -2.0)][: request.sampling.logprobs]) for id in ids]
    prompt = [None, *[TokenLogprobs(-1.0, []) for _ in request.token_ids[1:]]] if request.sampling.prompt_logprobs else None
    outputs = [Output(0, [id], [note], prompt if i == 0 else None) for i, (id, note) in enumerate(zip(ids, known, strict=True))]
    return Script(outputs=tuple(outputs))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(ScriptedFleet(script)) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HELLO)
    assert reply.choices[0].message.content == "Grüße, world"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None and reply.usage.completion_tokens == 14 and reply.usage.prompt_tokens == len(b"user: Hi\nassistant:")
    assert reply.model_extra is not None and reply.model_extra["headway"]["slo"]["met"] is True


def test_chat_streamed(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}))
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Grüße, world"
    assert [chunk.choices == [] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 14


def test_chat_async(server: Running) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:

            async def stream() -> str:
                text = ""
                async for chunk in await client.chat.completions.create(model="", messages=HELLO, stream=True):
                    text += chunk.choices[0].delta.content or ""
                return text

            return list(await asyncio.gather(*(stream() for _ in range(8))))

    assert asyncio.run(ask()) == ["Grüße, world"] * 8


def test_completions_with_echo_and_logprobs(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt="ab", echo=True, logprobs=1, max_tokens=2)
    choice = reply.choices[0]
    assert choice.text == "abGr" and choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["a", "b", "G", "r"]
    assert choice.logprobs.token_logprobs == [None, -1.0, -0.5, -0.5]
    assert choice.logprobs.text_offset == [0, 1, 2, 3]


def test_completions_echo_only_scores_the_prompt(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt="ab", echo=True, logprobs=1, max_tokens=0)
    assert reply.choices[0].text == "ab" and reply.choices[0].finish_reason == "length"
    assert reply.usage is not None and reply.usage.completion_tokens == 0
    assert reply.choices[0].logprobs is not None and reply.choices[0].logprobs.token_logprobs == [None, -1.0]


def test_completions_of_several_prompts_as_token_ids(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt=[[97], [98, 99]], n=2, max_tokens=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.usage is not None and (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 12)


def test_chat_logprobs_give_raw_bytes_of_half_characters(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, top_logprobs=2)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 14
    assert logprobs.content[2].bytes == [0xC3] and logprobs.content[2].token == "\ufffd"
    assert [entry.logprob for entry in logprobs.content[0].top_logprobs] == [-0.5, -2.0]


def test_samples_interleave_by_index(client: openai.OpenAI) -> None:
    texts = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(model="tiny", messages=HELLO, stream=True, n=3):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert set(texts.values()) == {"Grüße, world"}


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "headway"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


def test_stop_string_truncates_and_aborts(client: openai.OpenAI, server: Running) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HELLO, stop=["e, w", "zzz"])
    assert reply.choices[0].message.content == "Grüß" and reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None and reply.usage.completion_tokens == 10
    assert server.fleet.cancels[-1][1] == "stop_string" and server.fleet.finishes[-1][1] == "finished"


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=3)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=HELLO)
