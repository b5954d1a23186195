"""Configuration: one description, the precedence flags > environment > TOML > default, and errors that say what to do."""

import argparse
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.config import ServeConfig, add_flags, from_sources, load_toml, parse_bytes, parse_duration_s, setting, settings_of
from headway.core.errors import ConfigError


def flags(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser, ServeConfig)
    return parser.parse_args(words)


def test_nothing_given_means_the_defaults() -> None:
    config = from_sources(ServeConfig, flags(), {}, {})
    assert config == ServeConfig()
    assert (config.model, config.port, config.kv_memory_bytes, config.journal) == ("smollm2-135m", 8000, 512 << 20, "on")


PORTS = st.one_of(st.none(), st.integers(1, 65535))


@given(flag=PORTS, variable=PORTS, key=PORTS)
def test_flags_beat_environment_beats_toml_beats_default(flag: int | None, variable: int | None, key: int | None) -> None:
    given_words = [] if flag is None else ["--port", str(flag)]
    env = {} if variable is None else {"HEADWAY_PORT": str(variable)}
    toml: dict[str, object] = {} if key is None else {"port": key}
    expected = next((value for value in (flag, variable, key) if value is not None), 8000)
    assert from_sources(ServeConfig, flags(*given_words), env, toml).port == expected


VALUES: dict[str, st.SearchStrategy[object]] = {
    "model": st.sampled_from(["a", "b.gguf"]),
    "host": st.sampled_from(["0.0.0.0", "::1"]),
    "port": st.integers(0, 65535),
    "accuracy": st.sampled_from(["exact", "fast"]),
    "policy": st.sampled_from(["headway", "fcfs"]),
    "threads": st.integers(0, 8),
    "kv_memory_bytes": st.integers(1 << 20, 1 << 40),
    "kv_dtype": st.sampled_from(["f16", "bf16"]),
    "context_tokens": st.integers(0, 1 << 20),
    "page_tokens": st.sampled_from([16, 32, 64]),
    "max_open_requests": st.integers(1, 999),
    "max_body_bytes": st.integers(1024, 1 << 30),
    "api_key": st.sampled_from(["k1", "k2"]),
    "allow_hosts": st.lists(st.sampled_from(["a.test", "b.test"]), min_size=1, max_size=2).map(tuple),
    "cors": st.sampled_from(["http://a.test"]),
    "drain_s": st.integers(0, 100).map(float),
    "journal": st.sampled_from(["on", "off"]),
    "extras": st.booleans(),
    "log_prompts": st.booleans(),
    "chat_template": st.sampled_from(["t.jinja"]),
}


@given(data=st.data())
def test_every_field_can_come_from_every_source(data: st.DataObject) -> None:
    words: list[str] = []
    env: dict[str, str] = {}
    toml: dict[str, object] = {}
    expected: dict[str, object] = {}
    for name, item in settings_of(ServeConfig).items():
        sources = data.draw(st.sets(st.sampled_from(["flag", "env", "toml"])), label=f"sources of {name}")
        drawn = {source: data.draw(VALUES[name], label=f"{name} by {source}") for source in sorted(sources)}
        for source, value in drawn.items():
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            if source == "env":
                env[item.variable] = text
            elif source == "toml":
                toml[item.name] = list(value) if isinstance(value, tuple) else value
            elif item.positional:
                words.insert(0, text)
            elif isinstance(value, bool):
                words.append(item.flag if value else f"--no-{item.name}")
            elif isinstance(value, tuple):
                words += [word for part in value for word in (item.flag, part)]
            else:
                words += [item.flag, text]
        for source in ("toml", "env", "flag"):
            if source in drawn:
                expected[name] = drawn[source]
    assert from_sources(ServeConfig, flags(*words), env, toml) == ServeConfig(**expected)  # type: ignore[arg-type]


def test_every_field_is_described_and_covered_above() -> None:
    names = [field.name for field in dataclasses.fields(ServeConfig)]
    assert set(names) == set(VALUES)
    assert all(item.help for item in settings_of(ServeConfig).values())


def test_the_flags_of_the_issue_exist() -> None:
    config = from_sources(
        ServeConfig,
        flags(
            "m.gguf",
            "--host",
            "::1",
            "--port",
            "1",
            "--accuracy",
            "exact",
            "--policy",
            "fcfs",
            "--threads",
            "2",
            "--kv-memory",
            "1GiB",
            "--api-key",
            "k",
        ),
        {},
        {},
    )
    assert (config.model, config.accuracy, config.kv_memory_bytes, config.api_key) == ("m.gguf", "exact", 1 << 30, "k")
    assert from_sources(ServeConfig, flags("--allow-host", "a", "--allow-host", "b"), {}, {}).allow_hosts == ("a", "b")
    assert from_sources(ServeConfig, flags("--no-extras", "--journal", "off"), {}, {}).extras is False


@pytest.mark.parametrize(
    ("words", "env", "toml", "parts"),
    [
        (["--port", "http"], {}, {}, ["--port", "'http'", "digits"]),
        (["--port", "70000"], {}, {}, ["--port", "70000", "0 to 65535"]),
        ([], {"HEADWAY_ACCURACY": "quick"}, {}, ["HEADWAY_ACCURACY", "'quick'", "exact, fast"]),
        ([], {"HEADWAY_KV_MEMORY": "much"}, {}, ["HEADWAY_KV_MEMORY", "'much'", "512MiB"]),
        ([], {}, {"port": "x"}, ["'port'", "'x'", "digits"]),
        ([], {}, {"port": True}, ["'port'", "True", "int"]),
        ([], {}, {"port": [1]}, ["'port'", "[1]", "int"]),
        ([], {}, {"prot": 1}, ["'prot'", "did you mean 'port'"]),
        ([], {}, {"kv-memory": 1 << 20, "kv_memory_bytes": 1 << 20}, ["kv-memory", "kv_memory_bytes", "keep one"]),
        ([], {}, {"allow-host": 3}, ["'allow-host'", "3", "list"]),
        ([], {}, {"allow-host": [3]}, ["'allow-host'", "3", "str"]),
        ([], {}, {"drain": float("nan")}, ["'drain'", "nan", "0 to 86400"]),
        ([], {}, {"page-tokens": 24}, ["page_tokens", "24", "16"]),
        (["--kv-memory", "1"], {}, {}, ["--kv-memory", "1", "at least"]),
    ],
)
def test_errors_name_source_value_and_remedy(words: list[str], env: dict[str, str], toml: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_sources(ServeConfig, flags(*words), env, toml)
    for part in parts:
        assert part in str(caught.value)


def test_an_object_built_by_hand_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"ServeConfig\.port"):
        ServeConfig(port=-1)
    with pytest.raises(ConfigError, match="policy"):
        ServeConfig(policy="lifo")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="model"):
        ServeConfig(model="")


def test_a_key_never_shows() -> None:
    assert "hunter2" not in repr(ServeConfig(api_key="hunter2"))
    with pytest.raises(ConfigError) as caught:
        from_sources(ServeConfig, None, {}, {"api-key": [12345]})
    assert "12345" not in str(caught.value)


def test_an_empty_variable_is_unset() -> None:
    assert from_sources(ServeConfig, None, {"HEADWAY_API_KEY": "", "HEADWAY_PORT": ""}, None) == ServeConfig()


def test_toml_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    good = tmp_path / "good.toml"
    good.write_text('[serve]\nport = 9\nkv-memory = "1GiB"\ndrain = 5\nallow-host = ["a"]\nextras = false\n')
    config = from_sources(ServeConfig, None, {}, load_toml(good, "serve"))
    assert (config.port, config.kv_memory_bytes, config.drain_s, config.allow_hosts, config.extras) == (9, 1 << 30, 5.0, ("a",), False)
    assert load_toml(good, "bench") == {}
    bad = tmp_path / "bad.toml"
    bad.write_text("port = = 3")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load_toml(bad, "serve")
    with pytest.raises(ConfigError, match="absent"):
        load_toml(tmp_path / "absent.toml", "serve")
    bad.write_text("serve = 3")
    with pytest.raises(ConfigError, match="table"):
        load_toml(bad, "serve")


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("1k", 1000), ("1KiB", 1024), ("512MiB", 512 << 20), ("1.5g", 1_500_000_000), (" 2 GB ", 2 * 10**9)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1XB", "nan", "inf", "1e400", "9EB", "١"])
def test_bad_sizes(text: str) -> None:
    if text == "١":  # float() reads other scripts' digits; that is harmless
        assert parse_bytes(text) == 1
        return
    with pytest.raises(ConfigError, match="size"):
        parse_bytes(text)


@pytest.mark.parametrize(("text", "seconds"), [("30", 30.0), ("250ms", 0.25), ("1.5s", 1.5), ("2min", 120.0), ("1h", 3600.0)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "soon", "nan", "inf"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="duration"):
        parse_duration_s(text)


def test_another_class_works_too() -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Small:
        depth: int = setting(1, "how deep, in %", minimum=1)

    parser = argparse.ArgumentParser()
    add_flags(parser, Small)
    assert "how deep, in %" in parser.format_help()
    assert from_sources(Small, parser.parse_args(["--depth", "3"]), {}, {}).depth == 3
