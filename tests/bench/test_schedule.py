"""The schedule is a function of the workflow and its seed, and of nothing else."""

import hashlib
from dataclasses import replace
from importlib.resources import files

import pytest

from headway.bench import prompts, schedule, workflow
from headway.bench.workflow import Load, Workflow
from headway.core.errors import ConfigError


def _demo() -> Workflow:
    return workflow.parse(files("headway.bench").joinpath("demo.yaml").read_bytes())


def test_same_seed_same_bytes_on_every_platform() -> None:
    digest = hashlib.sha256(schedule.to_jsonl(schedule.build(_demo()))).hexdigest()
    assert digest == hashlib.sha256(schedule.to_jsonl(schedule.build(_demo()))).hexdigest()
    assert digest == "e04e8d37e1a7f9404c29d7ba1ae25a40e005783bc4325d68998a8d351f16242e"


def test_another_seed_is_another_schedule() -> None:
    assert schedule.build(_demo()) != schedule.build(replace(_demo(), seed=21))


def test_an_app_more_leaves_the_others_as_they_were() -> None:
    demo = _demo()
    fewer = replace(demo, apps={name: app for name, app in demo.apps.items() if name != "summary"})
    assert [row for row in schedule.build(demo) if row.app != "summary"] == schedule.build(fewer)


def test_requests_are_exactly_as_many_as_asked_and_inside_the_run() -> None:
    rows = [row for row in schedule.build(_demo()) if row.app == "chat"]
    assert len(rows) == _demo().apps["chat"].load.requests
    assert all(0 <= row.scheduled_ns < 24e9 for row in rows)
    assert {row.output_tokens for row in rows} <= set(range(20, 33))
    assert len({row.output_tokens for row in rows}) > 5


@pytest.mark.parametrize("arrival", ["poisson", "constant"])
def test_rates_without_a_number_of_requests_fill_the_run(arrival: str) -> None:
    demo = _demo()
    chat = replace(demo.apps["chat"], load=Load(arrival, rate_per_s=20.0))  # type: ignore[arg-type]
    rows = schedule.build(replace(demo, apps={"chat": chat}))
    assert len(rows) == pytest.approx(20 * 24, abs=4 * (20 * 24) ** 0.5)
    assert [row.scheduled_ns for row in rows] == sorted(row.scheduled_ns for row in rows)


def test_a_schedule_without_a_request_is_refused() -> None:
    demo = _demo()
    rare = replace(demo.apps["chat"], load=Load("poisson", rate_per_s=1e-9))
    with pytest.raises(ConfigError, match="no request"):
        schedule.build(replace(demo, apps={"chat": rare}))


@pytest.mark.parametrize("source", prompts.sources())
def test_prompts_are_distinct_from_their_first_words_on_and_as_long_as_asked(source: str) -> None:
    rows = schedule.build(_demo())
    texts = [prompts.text(source, row.draw, 300) for row in rows]
    assert len({text[:24] for text in texts}) == len(texts)
    assert texts == [prompts.text(source, row.draw, 300) for row in rows]
    assert all(300 * 3.2 < len(text) < 300 * 4.8 for text in texts)


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(ConfigError, match="builtin:documents"):
        prompts.text("builtin:novels", 1)
