"""`LLM` in process and the engine process over the same real (random, tiny) model: the same tokens, nothing left behind."""

import pytest

from headway.core.config import ServeConfig
from headway.core.errors import EngineDied, InvalidRequest, ModelError
from headway.engine.wire import Sampling
from headway.fleet.llm import LLM
from headway.fleet.local import LocalFleet
from headway.fleet.replay import replay
from headway.fleet.ticket import FleetRequest
from tests.fleet.support import LOOSE, tokens_of
from tests.support import tiny_model

GREEDY = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
KV_BYTES = 4 << 20


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_model(path, seed=1)
    return str(path)


@pytest.fixture(scope="module")
def llm(model_path):
    with LLM(model_path, accuracy="exact", threads=1, kv_memory_bytes=KV_BYTES) as loaded:
        yield loaded


def test_pieces_of_a_stream_add_up_to_the_answer(llm):
    messages = [{"role": "user", "content": "tell me"}]
    whole = llm.chat(messages, **GREEDY)
    assert whole and "".join(llm.chat(messages, stream=True, **GREEDY)) == whole


def test_prompts_together_answer_as_prompts_alone(llm):
    prompts = ["the rain", "is not", "in these lands " * 10]
    assert llm.generate(prompts, **GREEDY) == [llm.generate(prompt, **GREEDY) for prompt in prompts]


def test_a_seed_repeats_a_draw(llm):
    draw = {"temperature": 1.0, "max_tokens": 12, "ignore_eos": True}
    assert llm.generate("the", seed=5, **draw) == llm.generate("the", seed=5, **draw) != llm.generate("the", seed=6, **draw)


def test_leaving_a_stream_early_frees_its_pages(llm):
    stream = llm.generate("the rain", stream=True, temperature=0.0, max_tokens=100, ignore_eos=True)
    next(stream)
    stream.close()
    llm.generate("on", **GREEDY)
    llm._engine.check_invariants()
    assert all(used == 0 for used, _, _ in llm._engine.pages().values())


def test_an_answer_ends_before_a_stop_string(llm):
    whole = llm.generate("the rain", **GREEDY)
    stop = whole[3:5]
    before = whole[: whole.index(stop)]
    assert llm.generate("the rain", stop=stop, **GREEDY) == before
    assert "".join(llm.generate("the rain", stream=True, stop=["never, never", stop], **GREEDY)) == before
    assert llm.generate(["the rain", "is not"], stop=stop, **GREEDY) == [before, llm.generate("is not", **GREEDY).partition(stop)[0]]
    llm._engine.check_invariants()
    assert all(used == 0 for used, _, _ in llm._engine.pages().values())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"temperature": "hot"}, ["temperature", "'hot'", "between 0 and 2"]),
        ({"temperature": float("nan")}, ["temperature", "nan"]),
        ({"max_tokens": 0}, ["max_tokens", "0", "between 1"]),
        ({"max_tokens": "3"}, ["max_tokens", "'3'"]),
        ({"top_p": 2}, ["top_p", "2"]),
        ({"seed": "a"}, ["seed", "'a'"]),
        ({"stop": ""}, ["stop", "''"]),
        ({"stop": [3]}, ["stop", "[3]"]),
        ({"stop_ids": 5}, ["stop_ids", "5"]),
        ({"min_tokens": -1}, ["min_tokens", "-1"]),
        ({"logprobs": 2}, ["logprobs", "known: max_tokens"]),
    ],
)
def test_a_sampling_argument_that_cannot_be_is_named_with_its_value(llm, given, words):
    with pytest.raises(InvalidRequest) as caught:
        llm.generate("the", **given)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("prompt", [None, 5, b"bytes", [1, "a"], ["a", 3], [[1], []], [True]])
def test_a_prompt_that_is_none_says_what_one_is(llm, prompt):
    with pytest.raises(InvalidRequest, match="a text, a list of token ids"):
        llm.generate(prompt)


@pytest.mark.parametrize("messages", [None, "hi", ["hi"], {"role": "user"}])
def test_messages_that_are_none_say_how_they_look(llm, messages):
    with pytest.raises(InvalidRequest, match="messages must be a list like"):
        llm.chat(messages)


def test_errors_say_what_was_wrong(llm, model_path):
    with pytest.raises(InvalidRequest, match="temprature"):
        llm.generate("a", temprature=1.0)
    with pytest.raises(InvalidRequest, match="context"):
        llm.generate([5] * 100_000, **GREEDY)
    with pytest.raises(InvalidRequest, match="one prompt"):
        llm.generate(["a", "b"], stream=True)
    with pytest.raises(ModelError):
        LLM("no-such-model")
    assert llm.generate("the", **GREEDY)  # and none of it hurt


def test_a_closed_llm_says_so(model_path):
    llm = LLM(model_path, threads=1, kv_memory_bytes=KV_BYTES)
    llm.close()
    llm.close()
    with pytest.raises(EngineDied, match="closed"):
        llm.generate("a")


async def test_the_engine_process_gives_the_same_tokens_and_its_journal_replays(tmp_path, llm, model_path):
    config = ServeConfig(model=model_path, accuracy="exact", threads=1, kv_memory_bytes=KV_BYTES)
    fleet = await LocalFleet.start(config, directory=tmp_path)
    try:
        for text in ("the rain", "is not", "in these lands " * 10):
            ids = llm._model.tokenizer.encode(text)
            sampling = Sampling(12, temperature=0.0, ignore_eos=True)
            tokens, finish = await tokens_of(fleet.submit(FleetRequest(model_path, ids, sampling, LOOSE)))
            assert finish == "length" and llm._model.tokenizer.decode(tokens) == llm.generate(text, **GREEDY)
        assert fleet.stats()["law"]
    finally:
        await fleet.stop()
    result = replay(tmp_path)
    assert result.identical and result.iterations >= 36
