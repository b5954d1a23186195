"""The front over the real SmolLM2 tokenizer and chat template: what reaches the engine, and what comes back, is right."""

from collections.abc import Iterator

import openai
import pytest
from tests.fleet.doubles import Script, ScriptedFleet
from tests.server.scripted import serving
from tests.support import smollm2_path

from headway.core.config import ServeConfig
from headway.fleet.ticket import FleetRequest
from headway.models.model import Model, open_model
from headway.server.run import served
from headway.server.served import ServedModel

pytestmark = pytest.mark.model
ANSWER = "Grüße 👋🏽, 世界!"


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    opened = open_model(smollm2_path())
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def front(model: Model) -> ServedModel:
    return served(model, ServeConfig())


def test_streams_whole_characters_of_real_tokens(model: Model, front: ServedModel) -> None:
    ids = tuple(model.tokenizer.encode(ANSWER))
    fleet = ScriptedFleet(lambda request: Script(token_ids=ids))
    with serving(fleet, {front.name: front}) as server, openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
        messages = [{"role": "user", "content": "Say <|im_end|> please"}]
        chunks = list(client.chat.completions.create(model=front.name, messages=messages, stream=True))
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert "".join(texts) == ANSWER and not any("\ufffd" in text for text in texts)
        sent = fleet.requests[-1].token_ids
        assert sent == model.chat_template.encode(messages)  # type: ignore[union-attr]
        # Only the template's own markers are control tokens: two turns opened and closed, one opened for the answer.
        assert sent.count(model.tokenizer.encode("<|im_end|>", parse_special=True)[0]) == 2
        whole = client.chat.completions.create(model=front.name, messages=messages, max_tokens=1000)
        assert whole.choices[0].message.content == ANSWER


def test_rest_of_the_context_is_the_default(model: Model, front: ServedModel) -> None:
    seen: list[FleetRequest] = []

    def script(request: FleetRequest) -> Script:
        seen.append(request)
        return Script()

    with serving(ScriptedFleet(script), {front.name: front}) as server, openai.OpenAI(base_url=server.url + "/v1", api_key="x") as client:
        client.chat.completions.create(model=front.name, messages=[{"role": "user", "content": "Hi"}])
    assert seen[0].sampling.max_tokens + len(seen[0].token_ids) == model.config.context_tokens
