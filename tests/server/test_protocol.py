"""What requests are accepted, and that every refusal names its field."""

from typing import Any

import pytest

from headway.core.errors import InvalidRequest
from headway.server.protocol import read_chat, read_completion

MESSAGES = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.1), ("temperature", "hot"), ("temperature", float("nan")), ("temperature", True), ("top_p", -0.1), ("top_k", 1.5),
        ("min_p", 2), ("n", 0), ("n", 17), ("seed", 2**63), ("stop", [""]), ("stop", ["a"] * 17), ("stop", 5), ("stop_token_ids", ["a"]),
        ("max_tokens", 0), ("max_completion_tokens", -1), ("stream", "yes"), ("stream_options", {"include_usage": True}), ("logprobs", 3),
        ("top_logprobs", 21), ("top_logprobs", 2), ("response_format", {"type": "json_object"}), ("presence_penalty", 0.5),
        ("logit_bias", {"5": 3}), ("tool_choice", "required"), ("functions", [{}]), ("slo", [1]), ("priority", 3), ("user", 5),
        ("ignore_eos", 1), ("cache_salt", "x" * 600), ("modalities", ["audio"]), ("repetition_penalty", 1.1),
    ],
)  # fmt: skip
def test_refusals_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_chat(MESSAGES | {field: value})
    assert caught.value.param == field and field in str(caught.value)


@pytest.mark.parametrize(
    "field", ["stop", "temperature", "response_format", "tools", "logprobs", "n", "max_tokens", "stream_options", "slo", "seed"]
)
def test_null_is_absent(field: str) -> None:
    assert read_chat(MESSAGES | {field: None}) == read_chat(MESSAGES)


def test_neutral_values_pass_and_unknown_names_are_reported() -> None:
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"}, "store": False}
    assert read_chat(MESSAGES | neutral | {"sparkle": 1}).ignored == ("sparkle",)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {}), ("logit_bias", {"50256": 0, "7": 0.0}), ("presence_penalty", 0), ("frequency_penalty", 0.0), ("n", 1),
        ("repetition_penalty", 1.0), ("repeat_penalty", 1), ("stop", []), ("tools", []), ("tool_choice", "none"), ("tool_choice", "auto"),
        ("functions", []), ("function_call", "none"), ("modalities", ["text"]), ("store", False), ("metadata", {}), ("top_logprobs", 0),
        ("logprobs", False), ("service_tier", "auto"), ("parallel_tool_calls", True), ("stream_options", {"include_usage": False}),
        ("stream_options", {}), ("use_beam_search", False), ("skip_special_tokens", True), ("bad_words", []), ("response_format", None),
    ],
)  # fmt: skip
def test_a_neutral_value_changes_nothing(field: str, value: object) -> None:
    assert read_chat(MESSAGES | {field: value}) == read_chat(MESSAGES)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"50256": -100}), ("presence_penalty", 0.5), ("repeat_penalty", 1.2), ("response_format", {"type": "json_object"}),
        ("guided_choice", ["a", "b"]), ("grammar", "root ::= x"), ("modalities", ["audio"]), ("store", True), ("use_beam_search", True),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_with_its_value(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_chat(MESSAGES | {field: value})
    assert caught.value.param == field and f"'{field}' is not supported" in str(caught.value) and str(value) in str(caught.value)


def test_neutral_values_of_completions_pass_too() -> None:
    neutral = {"best_of": 1, "suffix": "", "echo": False, "logprobs": False, "logit_bias": {"3": 0}, "n": 1}
    assert read_completion({"prompt": "a"} | neutral) == read_completion({"prompt": "a"})


def test_max_completion_tokens_wins() -> None:
    assert read_chat(MESSAGES | {"max_tokens": 5, "max_completion_tokens": 7}).max_tokens == 7
    assert read_chat(MESSAGES).max_tokens is None
    assert read_completion({"prompt": "a"}).max_tokens == 16


def test_messages_are_flattened_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = read_chat(
        {"messages": [{"role": "developer", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}
    )
    assert asked.messages[0] == {"role": "system", "content": "ab"}
    assert asked.messages[1] == {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"), ("Hi", "messages"), ([5], "messages.0"), ([{"role": "wizard", "content": ""}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"), ([{"role": "assistant", "content": None}], "messages.0.content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages.0.content.0"),
    ],
)  # fmt: skip
def test_bad_messages(messages: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_chat({"messages": messages})
    assert caught.value.param == param


@pytest.mark.parametrize("prompt", [None, "", [], [[]], [1, "a"], [True], {"a": 1}, 5, [["a"]]])
def test_prompts(prompt: Any) -> None:
    if prompt == "":
        assert read_completion({"prompt": ""}).prompts == [""]
        return
    with pytest.raises(InvalidRequest) as caught:
        read_completion({"prompt": prompt})
    assert caught.value.param == "prompt"


def test_completion_particulars() -> None:
    assert read_completion({"prompt": [1, 2]}).prompts == [[1, 2]]
    assert read_completion({"prompt": "a", "echo": True, "max_tokens": 0}).max_tokens == 0
    for body, param in (
        ({"max_tokens": 0}, "max_tokens"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            read_completion({"prompt": "a"} | body)
        assert caught.value.param == param
