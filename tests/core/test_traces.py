"""Trace readers: exact times, every unusable row counted, never a made-up value. The public traces where they are at hand."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from headway.core.errors import ConfigError
from headway.core.traces import TraceRow, azure_csv, burstgpt_csv, compress, dejitter, mooncake_jsonl

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109"


def test_azure_times_keep_their_100_ns_digits(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(AZURE)
    assert azure_csv(tmp_path / "t.csv").rows == [TraceRow(0.0, 374, 44), TraceRow(4.3145790, 396, 109)]
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(AZURE.encode()))
    assert azure_csv(tmp_path / "t.csv.gz").rows == azure_csv(tmp_path / "t.csv").rows


def test_unusable_rows_are_counted_and_unsorted_ones_sorted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(AZURE + "\n2023-11-16 18:15:48,7,8\nsoon,1,1\n2023-11-16 18:15:48,0,8\n2023-11-16 18:15:48,8,0\n2023\n")
    trace = azure_csv(tmp_path / "t.csv")
    assert [row.prompt_tokens for row in trace.rows] == [374, 7, 396]
    assert trace.dropped == {"unreadable": 2, "no prompt": 1, "no output": 1}
    assert trace.notes == ["1 rows were out of order"]


def test_burstgpt_failures_are_dropped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45,GPT-4,1087,0,1087,API log\n"
        "118,GPT-4,417,276,693,API log\n"
    )
    trace = burstgpt_csv(tmp_path / "t.csv")
    assert trace.rows == [TraceRow(0.0, 472, 18), TraceRow(113.0, 417, 276)]
    assert trace.dropped == {"no output": 1}


def test_block_hashes_and_their_inferred_size(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 27_482 + n, "input_length": 512 * n + 100, "output_length": 5, "hash_ids": list(range(n + 1))} for n in range(1, 9)
    ]
    rows.append({"timestamp": 1, "input_length": 600, "output_length": 1, "hash_ids": [1, 2, 3]})
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\nnot json\n[]\n")
    trace = mooncake_jsonl(tmp_path / "t.jsonl")
    assert trace.block_tokens == 512
    assert trace.rows[0] == TraceRow(0.0, 600, 1, (1, 2, 3))
    assert trace.rows[1].arrival_s == pytest.approx(27.482)
    assert trace.dropped == {"unreadable": 2}
    assert any(note.startswith("1 of 9 rows") for note in trace.notes)
    assert mooncake_jsonl(tmp_path / "t.jsonl", block_tokens=256).block_tokens == 256


def test_another_format_is_refused_with_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"lacks the columns.*TIMESTAMP"):
        azure_csv(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match="no usable row"):
        mooncake_jsonl(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match="cannot be read"):
        azure_csv(tmp_path / "absent.csv")


def test_scaling_and_dejittering(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Timestamp,Request tokens,Response tokens\n" + "".join(f"{n // 4},1,{n + 1}\n" for n in range(41)))
    trace = burstgpt_csv(tmp_path / "t.csv")
    fast = compress(trace, 8.0)
    assert (len(fast.rows) - 1) / fast.rows[-1].arrival_s == pytest.approx(8.0)
    spread = dejitter(trace, 1.0, seed=1)
    assert [int(row.arrival_s) for row in spread.rows] == [int(row.arrival_s) for row in trace.rows]
    assert len({row.arrival_s for row in spread.rows}) == 41
    assert spread.rows == dejitter(trace, 1.0, seed=1).rows
    with pytest.raises(ConfigError, match="positive"):
        compress(trace, 0)


def test_the_azure_trace_of_2023() -> None:
    root = Path(__file__).resolve().parents[2]
    found = [
        base
        for base in (root / "shared", root.parent / "shared", root.parent.parent / "shared")
        if (base / "data/traces/azure2023_conv.csv").exists()
    ]
    if not found:
        pytest.skip("shared/data/traces (Azure LLM inference trace 2023, CC-BY-4.0) is not beside this repository")
    trace = azure_csv(found[0] / "data/traces/azure2023_conv.csv")
    assert (len(trace.rows), trace.dropped, trace.notes) == (19_366, {}, [])
    gaps = np.diff([row.arrival_s for row in trace.rows])
    assert gaps.std() / gaps.mean() == pytest.approx(1.09, abs=0.01)
    assert np.mean([row.prompt_tokens for row in trace.rows]) == pytest.approx(1155, abs=1)
    assert np.median([row.output_tokens for row in trace.rows]) == 129
