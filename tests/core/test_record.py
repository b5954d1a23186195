"""Telemetry records survive their file format, and damage is named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import ConfigError
from headway.core.record import JsonlWriter, Record, read_jsonl

RECORDS = st.builds(
    Record,
    t_ns=st.integers(0, 2**62),
    kind=st.text(max_size=8),
    request_id=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    units=st.one_of(st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False)),
    attrs=st.dictionaries(
        st.text(max_size=4), st.one_of(st.integers(), st.text(max_size=4), st.none(), st.lists(st.booleans())), max_size=3
    ),
)


@given(records=st.lists(RECORDS, max_size=5))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> None:
    path = tmp_path_factory.mktemp("r") / "records.jsonl"
    half = len(records) // 2
    for part in (records[:half], records[half:]):
        with JsonlWriter(path) as writer:
            for record in part:
                writer.write(record)
    assert list(read_jsonl(path)) == records


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with JsonlWriter(tmp_path / "r") as writer, pytest.raises(ConfigError, match="'step' cannot be written"):
        writer.write(Record(0, "step", units=float("nan")))
    assert list(read_jsonl(tmp_path / "r")) == []


def test_a_half_line_of_a_killed_writer_is_left_out(tmp_path: Path) -> None:
    with JsonlWriter(tmp_path / "r") as writer:
        writer.write(Record(1, "a"))
        writer.write(Record(2, "b"))
    (tmp_path / "r").write_bytes((tmp_path / "r").read_bytes()[:-5])
    assert [record.t_ns for record in read_jsonl(tmp_path / "r")] == [1]


@pytest.mark.parametrize("line", ["{", "[]", '{"t_ns": 1}', '{"t_ns": 1, "kind": "x", "other": 2}'])
def test_damage_in_the_middle_names_the_line(tmp_path: Path, line: str) -> None:
    with JsonlWriter(tmp_path / "r"):
        pass
    with (tmp_path / "r").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        list(read_jsonl(tmp_path / "r"))


def test_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "r").write_text('{"schema": "other/3"}\n')
    with pytest.raises(ConfigError, match="'other/3'"):
        list(read_jsonl(tmp_path / "r"))
