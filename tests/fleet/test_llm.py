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
