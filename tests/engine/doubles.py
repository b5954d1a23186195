"""Named test doubles: `HistoryProgram` for a model, `FirstComeScheduler` for scheduling.iteration.

HistoryProgram keeps token, position and class of every row in "KV pages" and reads them back through the block table; the logits of a row
are a hash of all it reads. Any mistake in paging, prefix reuse, preemption or row order therefore changes the tokens.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from headway.engine.step import Batch
from headway.scheduling.messages import Abort, EngineSpec, Iteration, Result, Submit

POISON = -7


class HistoryProgram:
    draw_kernels = None

    def __init__(
        self, *, vocab=97, context_tokens=256, page_tokens=16, pages=32, max_rows=64, max_segments=16, max_sampled_rows=8, classes=True
    ):
        self.vocab, self.context_tokens, self.page_tokens, self.pages = vocab, context_tokens, page_tokens, pages
        self.max_rows, self.max_segments, self.max_sampled_rows = max_rows, max_segments, max_sampled_rows
        self.logits = np.full((max_sampled_rows, vocab), np.nan, np.float32)
        self.classes = classes
        self.executed_rows = 0
        self.executed_sampled = 0
        # (token, position, class) of each slot
        self.kv = np.full((pages, page_tokens, 3), POISON, np.int64)

    def execute(self, batch: Batch) -> None:
        rows = len(batch.token_ids)
        for array in (
            batch.token_ids,
            batch.positions,
            batch.segment_first_row,
            batch.segment_rows,
            batch.segment_table,
            batch.sampled_rows,
        ):
            assert array.dtype == np.int32 and array.flags.c_contiguous
        assert rows <= self.max_rows and len(batch.segment_rows) <= self.max_segments and len(batch.sampled_rows) <= self.max_sampled_rows
        assert batch.segment_rows.sum() == rows
        owner = np.full(rows, -1)
        expected = 0
        for first, count, table in zip(batch.segment_first_row, batch.segment_rows, batch.segment_table):
            assert first == expected and count > 0
            assert first >= batch.generated_rows or first + count <= batch.generated_rows, "a segment has one class"
            expected = first + count
            for row in range(first, first + count):
                position = int(batch.positions[row])
                assert position == batch.positions[first] + row - first
                page = batch.block_tables[table, position // self.page_tokens]
                is_generated = int(row < batch.generated_rows) if self.classes else 0
                self.kv[page, position % self.page_tokens] = (batch.token_ids[row], position, is_generated)
                owner[row] = table
        self.executed_rows += rows
        self.executed_sampled += len(batch.sampled_rows)
        self.logits[:] = np.nan
        for index, row in enumerate(batch.sampled_rows):
            position = int(batch.positions[row])
            table = batch.block_tables[owner[row]]
            read = np.concatenate([self.kv[page] for page in table[: position // self.page_tokens + 1]])[: position + 1]
            self.logits[index] = history_logits(read, self.vocab)

    def copy_page(self, source: int, target: int) -> None:
        self.kv[target] = self.kv[source]

    def close(self) -> None:
        pass


def history_logits(rows, vocab: int):
    """Deterministic pseudo-random logits of a history int64 [n, 3]."""
    digest = _fold(rows)
    generator = np.random.Generator(np.random.PCG64(digest))
    return (generator.normal(size=vocab) * 2).astype(np.float32)


def _fold(rows) -> int:
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(rows, np.int64).tobytes(), digest_size=8).digest(), "little")


@dataclass
class _Seen:
    id: int
    left: int
    pages: int
    emitted: int = 0
    context: int = 0


@dataclass
class FirstComeView:
    spec: EngineSpec
    free: dict[str, int]
    model_of: dict[int, str] = field(default_factory=dict)
    sequences: dict[int, _Seen] = field(default_factory=dict)
    force_preempt: set[int] = field(default_factory=set)
    chunk_tokens: int = 32

    def to_plain(self):
        return {"ids": sorted(self.sequences)}


class FirstComeScheduler:
    """Decodes first, then chunks in arrival order; preempts the youngest when pages run out. `chunk_tokens` may change between steps."""

    def new_view(self, spec, policy):
        return FirstComeView(spec, {m.model: m.pages for m in spec.models})

    def compose(self, view: FirstComeView, now_ns: int) -> Iteration:
        order = list(view.sequences.values())
        preempt = [s.id for s in order if s.id in view.force_preempt and s.pages]
        free = dict(view.free)
        for id in preempt:
            free[view.model_of[id]] += view.sequences[id].pages
        page_tokens = {m.model: m.page_tokens for m in view.spec.models}
        decode, work = [], []
        running = [s for s in order if s.left == 0 and s.id not in preempt]
        while running:
            need = dict.fromkeys(free, 0)
            for s in running:
                need[view.model_of[s.id]] += s.context % page_tokens[view.model_of[s.id]] == 0
            short = [m for m in free if need[m] > free[m]]
            if not short:
                break
            holders = [s for s in order if s.pages and s.id not in preempt and view.model_of[s.id] in short]
            victim = holders[-1]
            preempt.append(victim.id)
            free[view.model_of[victim.id]] += victim.pages
            running = [s for s in running if s is not victim]
        for s in running[: view.spec.max_sequences]:
            decode.append((s.id, 1))
            free[view.model_of[s.id]] -= s.context % page_tokens[view.model_of[s.id]] == 0
        budget = min(view.chunk_tokens, view.spec.max_rows - len(decode))
        waiting = [s for s in order if s.left and s.id not in preempt]
        for s in waiting:
            if budget <= 0 or len(decode) + len(work) >= view.spec.max_sequences:
                break
            model = view.model_of[s.id]
            units = min(budget, s.left, (s.pages + free[model]) * page_tokens[model] - s.context)
            if units <= 0:
                if not decode and not work and not preempt:
                    others = [o for o in order if o.pages and o is not s and view.model_of[o.id] == model]
                    preempt += [o.id for o in others[-1:]]
                break
            free[model] -= max(0, -(-(s.context + units) // page_tokens[model]) - s.pages)
            work.append((s.id, units))
            budget -= units
        view.force_preempt.clear()
        return Iteration(tuple(decode), tuple(work), tuple(preempt), 0, 1000)

    def apply(self, view: FirstComeView, now_ns: int, change) -> None:
        if isinstance(change, Submit):
            view.sequences[change.id] = _Seen(
                change.id, change.prompt_tokens - change.cached_tokens, change.pages_held, 0, change.cached_tokens
            )
            view.model_of[change.id] = change.model
        elif isinstance(change, Abort):
            view.sequences.pop(change.id, None)
        elif isinstance(change, Result):
            for id, rows in (*change.adopted, *change.prefilled):
                view.sequences[id].left -= rows
                view.sequences[id].context += rows
            for id, n in change.emitted:
                s = view.sequences[id]
                if s.emitted and id not in dict(change.prefilled):
                    s.context += n
                s.emitted += n
            for id, rows in change.recompute:
                view.sequences[id].left, view.sequences[id].context = rows, 0
            for id, pages in change.pages_held:
                view.sequences[id].pages = pages
            for id in change.finished:
                del view.sequences[id]
            for model, (free, cached) in change.pages.items():
                view.free[model] = free + cached

    def slack_ns(self, view, now_ns: int) -> int:
        return 0
