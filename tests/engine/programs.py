"""Real CpuPrograms over tiny random models and SmolLM2, and batches by hand: what the tests of the step program share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headway.core.paths import kernels_dir
from headway.engine.program import Accuracy, CpuProgram, KvDtype, Limits
from headway.engine.step import Batch
from headway.engine.weights import PackedWeights
from headway.kernels.cpu import isa
from headway.kernels.cpu.objects import ObjectCache
from headway.kernels.cpu.team import Team
from headway.models.model import Model, open_model


@dataclass(slots=True)
class Built:
    """A program with everything it stands on. `tables`: one block table a sequence, pages permuted."""

    model: Model
    program: CpuProgram
    team: Team

    def close(self) -> None:
        self.team.close()
        self.model.close()


def build(
    path: Path,
    *,
    accuracy: Accuracy = "exact",
    threads: int = 2,
    pages: int = 64,
    page_tokens: int = 16,
    level: isa.Isa | None = None,
    kv_dtype: KvDtype | None = None,
    max_rows: int = 512,
    max_sampled_rows: int = 512,
    context_tokens: int | None = None,
) -> Built:
    model = open_model(path)
    weights = PackedWeights(model.config, model.file.tensors)
    cache = ObjectCache(kernels_dir(), level or isa.select())
    team = Team(threads, cache)
    limits = Limits(
        pages=pages,
        page_tokens=page_tokens,
        context_tokens=context_tokens or min(model.config.context_tokens, pages * page_tokens),
        max_rows=max_rows,
        max_segments=64,
        max_sampled_rows=max_sampled_rows,
    )
    program = CpuProgram(weights, team, cache, limits, accuracy=accuracy, kv_dtype=kv_dtype, rope_factors=model.rope_freq_factors)
    return Built(model, program, team)


def int32(values: object) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one sequence in one iteration: `ids` from position `start`, class generated or prompt."""

    sequence: int
    start: int
    ids: Sequence[int]
    generated: bool = False


def batch(spans: Sequence[Span], tables: np.ndarray, sampled: Sequence[int] | None = None) -> tuple[Batch, list[list[int]]]:
    """A batch (generated spans first) and, for each span as given, the numbers of its rows. Without `sampled` every row is sampled."""
    order = sorted(range(len(spans)), key=lambda i: not spans[i].generated)
    ids: list[int] = []
    positions: list[int] = []
    first, lengths, table = [], [], []
    rows: list[list[int]] = [[] for _ in spans]
    for i in order:
        s = spans[i]
        first.append(len(ids))
        lengths.append(len(s.ids))
        table.append(s.sequence)
        rows[i] = list(range(len(ids), len(ids) + len(s.ids)))
        ids += list(s.ids)
        positions += range(s.start, s.start + len(s.ids))
    generated = sum(len(s.ids) for s in spans if s.generated)
    wanted = range(len(ids)) if sampled is None else sampled
    made = Batch(int32(ids), int32(positions), generated, int32(first), int32(lengths), int32(table), int32(tables), int32(list(wanted)))
    return made, rows


def logits_of(built: Built, ids: Sequence[int], chunks: Sequence[int], table: np.ndarray, generated_from: int | None = None) -> np.ndarray:
    """Logits of every position of one sequence alone, prefilled in chunks of these sizes; rows from `generated_from` on are generated."""
    out = []
    start = 0
    for size in chunks:
        part = ids[start : start + size]
        border = len(ids) if generated_from is None else generated_from
        spans = [Span(0, start, part[: max(0, border - start)])] if start < border else []
        if start + len(part) > border:
            at = max(start, border)
            spans.append(Span(0, at, ids[at : start + len(part)], generated=True))
        made, rows = batch(spans, table)
        built.program.execute(made)
        for span_rows in rows:
            out.append(built.program.logits[span_rows].copy())
        start += size
    return np.concatenate(out)
