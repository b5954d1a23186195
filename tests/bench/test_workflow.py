"""A workflow file means exactly what it says: nothing unknown, nothing twice, nothing guessed."""

from importlib.resources import files

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from headway.bench import workflow
from headway.core.errors import ConfigError

_GOOD = """
schema: cbx/1
name: two
seed: 7
run: {warmup: 1s, max: 10s}
services:
  llm: {url: "http://127.0.0.1:8000/v1", model: m}
apps:
  chat: {kind: chat, service: llm, load: {arrival: poisson, rate: 30/m}, output: {tokens: [4, 8]}, slo: {ttft: 500ms, tpot: 50ms}}
  docs: {kind: completion, service: llm, load: {closed: 2, think: 100ms}, output: {tokens: 4, ignore_eos: true}, class: batch}
"""


def test_a_good_file_is_read_with_its_units() -> None:
    read = workflow.parse(_GOOD)
    assert read.apps["chat"].load.rate_per_s == 0.5
    assert read.apps["chat"].slo.ttft_s == 0.5
    assert read.apps["docs"].load.closed == 2
    assert read.apps["docs"].slo.cls == "batch"


def test_what_is_written_is_read_back_equal() -> None:
    for text in (_GOOD, files("headway.bench").joinpath("demo.yaml").read_text()):
        read = workflow.parse(text)
        assert workflow.parse(workflow.dump(read)) == read


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("warmup: 1s", "warmpu: 1s"), "warmup"),
        (("rate: 30/m", "rat: 30/m"), "'rate'"),
        (("rate: 30/m", "rate: 30"), "0.5/s"),
        (("max: 10s", "max: 10"), "250ms"),
        (("seed: 7", "seed: 7\nseed: 8"), "twice"),
        (("seed: 7", "seed: -7"), "-7"),
        (("kind: chat", "kind: chatt"), "did you mean 'chat'"),
        (("service: llm, load: {arrival", "service: lml, load: {arrival"), "'llm'"),
        (("class: batch", "class: batsh"), "batch"),
        (("closed: 2", "closed: 2, rate: 1/s"), "closed loop"),
        (("cbx/1", "cbx/9"), "cbx/1"),
        (("name: two", "name: two\ngates: []"), "does not have it yet"),
        (("ttft: 500ms", "ttft: 0"), "above 0"),
        (("ttft: 500ms", "chunk: 500ms"), "unknown key 'chunk'"),
        (("[4, 8]", "[8, 4]"), "wrong way"),
        (("[4, 8]", "0"), "0"),
        (("http://127", "https://127"), "http://"),
        (("model: m", "model: m, launch: {cmd: x}"), "either"),
        (("name: two", "name: &a two\nseed2: *a"), "aliases"),
        (("name: two", "name: [two"), "YAML"),
    ],
)
def test_a_mistake_is_an_error_that_helps(change: tuple[str, str], says: str) -> None:
    assert change[0] in _GOOD
    with pytest.raises(ConfigError) as caught:
        workflow.parse(_GOOD.replace(*change, 1))
    assert says in str(caught.value)


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["schema", "run", "apps", "services", "load", "x"]), inner),
    max_leaves=8,
)


@given(_PLAIN)
def test_any_other_content_is_a_config_error_and_nothing_else(plain: object) -> None:
    with pytest.raises(ConfigError):
        workflow.parse(yaml.safe_dump(plain))


@given(st.text(max_size=60))
def test_any_text_is_a_config_error_and_nothing_else(text: str) -> None:
    with pytest.raises(ConfigError):
        workflow.parse(text)
