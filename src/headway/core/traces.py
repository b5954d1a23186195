"""Reads public traces of LLM requests: lengths and times only. Every row that cannot be used is dropped and counted.

Formats: Azure LLM inference trace CSV (2023, CC-BY-4.0), block-hash JSON Lines (Mooncake), BurstGPT CSV; also gzipped.
Arrivals count from the first row, sorted. SLOs, users and prefixes that a trace lacks are never made up here.
"""

import csv
import gzip
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from headway.core.arrivals import generator
from headway.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request. Equal `hash_ids` at a position mean an equal prompt prefix up to the end of that block."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class Trace:
    """Rows sorted by arrival; `dropped` counts unusable rows by reason, `notes` says what else was found."""

    rows: list[TraceRow]
    dropped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    block_tokens: int = 0


def _text(path: str | Path) -> io.StringIO:
    try:
        raw = Path(path).read_bytes()
        return io.StringIO((gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig"), newline="")
    except (OSError, EOFError, UnicodeDecodeError) as problem:
        raise ConfigError(f"trace {path} cannot be read ({problem}); give an existing text or gzip file") from None


def _finish(path: str | Path, timed: Iterable[tuple[int, TraceRow]], dropped: Counter[str]) -> Trace:
    """From (ns, row without its time) in file order."""
    rows = list(timed)
    if not rows:
        raise ConfigError(f"trace {path} has no usable row (dropped: {dict(dropped)}); is it of this format?")
    unsorted = sum(later[0] < earlier[0] for earlier, later in itertools.pairwise(rows))
    rows.sort(key=lambda item: item[0])
    first_ns = rows[0][0]
    placed = [TraceRow((ns - first_ns) / 1e9, row.prompt_tokens, row.output_tokens, row.hash_ids) for ns, row in rows]
    return Trace(placed, dict(dropped), [f"{unsorted} rows were out of order"] if unsorted else [])


def _table(path: str | Path, columns: tuple[str, ...], read: Callable[[dict[str, str]], tuple[int, TraceRow] | str]) -> Trace:
    reader = csv.DictReader(_text(path))
    missing = [column for column in columns if column not in (reader.fieldnames or [])]
    if missing:
        raise ConfigError(f"trace {path} lacks the columns {missing}, it has {reader.fieldnames}; is it of this format?")
    dropped: Counter[str] = Counter()
    rows: list[tuple[int, TraceRow]] = []
    for line in reader:
        try:
            found = read(line)
        except (ValueError, TypeError, OverflowError):
            found = "unreadable"
        if isinstance(found, str):
            dropped[found] += 1
        else:
            rows.append(found)
    return _finish(path, rows, dropped)


def _lengths(prompt: str, output: str) -> tuple[int, int] | str:
    prompt_tokens, output_tokens = int(float(prompt)), int(float(output))
    if prompt_tokens <= 0:
        return "no prompt"
    return "no output" if output_tokens <= 0 else (prompt_tokens, output_tokens)


def _stamp_ns(text: str) -> int:
    # 100 ns digits: datetime would cut them to microseconds.
    whole, _, fraction = text.strip().partition(".")
    if not (fraction == "" or fraction.isdecimal()) or len(fraction) > 9:
        raise ValueError(text)
    return int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def azure_csv(path: str | Path) -> Trace:
    """`TIMESTAMP,ContextTokens,GeneratedTokens` with timestamps like `2023-11-16 18:15:46.6805900`. Raises ConfigError."""

    def read(line: dict[str, str]) -> tuple[int, TraceRow] | str:
        lengths = _lengths(line["ContextTokens"], line["GeneratedTokens"])
        return lengths if isinstance(lengths, str) else (_stamp_ns(line["TIMESTAMP"]), TraceRow(0.0, *lengths))

    return _table(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), read)


def burstgpt_csv(path: str | Path) -> Trace:
    """`Timestamp` (s), `Request tokens`, `Response tokens` (0 = the request failed: dropped and counted). Raises ConfigError."""

    def read(line: dict[str, str]) -> tuple[int, TraceRow] | str:
        lengths = _lengths(line["Request tokens"], line["Response tokens"])
        return lengths if isinstance(lengths, str) else (round(float(line["Timestamp"]) * 1e9), TraceRow(0.0, *lengths))

    return _table(path, ("Timestamp", "Request tokens", "Response tokens"), read)


def mooncake_jsonl(path: str | Path, *, block_tokens: int = 0) -> Trace:
    """`timestamp` (ms), `input_length`, `output_length`, `hash_ids` (one a KV block of the prompt).

    The file does not say its block size: without `block_tokens` it is the power of two nearest to the median of length / blocks.
    """
    dropped: Counter[str] = Counter()
    rows: list[tuple[int, TraceRow]] = []
    for line in _text(path):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            lengths = _lengths(found["input_length"], found["output_length"])
            if isinstance(lengths, str):
                dropped[lengths] += 1
            else:
                hash_ids = tuple(int(item) for item in found.get("hash_ids", ()))
                rows.append((round(float(found["timestamp"]) * 1e6), TraceRow(0.0, *lengths, hash_ids)))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            dropped["unreadable"] += 1
    trace = _finish(path, rows, dropped)
    hashed = [row for row in trace.rows if row.hash_ids]
    if hashed:
        sizes = [row.prompt_tokens / len(row.hash_ids) for row in hashed]
        trace.block_tokens = block_tokens or 1 << max(0, round(float(np.log2(np.median(sizes)))))
        disagree = sum(len(row.hash_ids) != -(-row.prompt_tokens // trace.block_tokens) for row in hashed)
        if disagree:
            trace.notes.append(f"{disagree} of {len(hashed)} rows do not have the blocks that {trace.block_tokens} tokens each give")
    return trace


def compress(trace: Trace, rate_per_s: float) -> Trace:
    """The trace at another mean rate by scaling time, which keeps the gaps' coefficient of variation."""
    span_s = trace.rows[-1].arrival_s
    if not rate_per_s > 0 or span_s == 0:
        raise ConfigError(f"a trace of {span_s} s cannot be scaled to {rate_per_s} requests a second; both must be positive")
    scale = (len(trace.rows) - 1) / span_s / rate_per_s
    rows = [TraceRow(row.arrival_s * scale, row.prompt_tokens, row.output_tokens, row.hash_ids) for row in trace.rows]
    return Trace(rows, dict(trace.dropped), [*trace.notes, f"time scaled by {scale:.6g}"], trace.block_tokens)


def dejitter(trace: Trace, quantum_s: float, *, seed: int) -> Trace:
    """Spreads timestamps that were rounded down to multiples of `quantum_s` uniformly over it."""
    shifts = generator(seed, "dejitter").random(len(trace.rows)) * quantum_s
    rows = [
        TraceRow(row.arrival_s + float(shift), row.prompt_tokens, row.output_tokens, row.hash_ids) for row, shift in zip(trace.rows, shifts)
    ]
    rows.sort(key=lambda row: row.arrival_s)
    return Trace(rows, dict(trace.dropped), [*trace.notes, f"timestamps spread over {quantum_s} s"], trace.block_tokens)
