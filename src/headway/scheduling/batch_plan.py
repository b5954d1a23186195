"""An iteration under construction: rows, pages and predicted time so far.

The bookkeeping both policies share; it has no preferences of its own.
"""

from dataclasses import dataclass, field

from headway.core.law import max_chunk
from headway.scheduling.kernels import TILE_TOKENS, ceil_ns, pages_for
from headway.scheduling.messages import Iteration
from headway.scheduling.view import SequenceView, View


@dataclass(slots=True)
class ModelPlan:
    """What one model runs in the iteration: counts for its law and the pages still free."""

    free_pages: int
    decode_rows: int = 0
    kv_read_tokens: int = 0
    chunks: list[tuple[int, int]] = field(default_factory=list)
    chunk_tokens: int = 0
    sampled: int = 0
    seconds: float = 0.0


class BatchPlan:
    """Collects decodes, chunks and preemptions, and knows what they cost."""

    __slots__ = ("decode", "models", "preempt", "promised", "rows_left", "segments_left", "sequences_started", "view", "work")

    def __init__(self, view: View) -> None:
        self.view = view
        self.decode: list[SequenceView] = []
        self.work: list[tuple[SequenceView, int]] = []
        self.preempt: list[SequenceView] = []
        self.rows_left = view.spec.max_rows
        self.segments_left = view.spec.max_sequences
        held = dict.fromkeys(view.models, 0)
        started = 0
        for s in view.sequences.values():
            held[s.model] += s.pages_held
            started += s.started
        self.sequences_started = started
        self.promised: dict[str, int] = {}
        self.models = {name: ModelPlan(max(mv.spec.pages - held[name], mv.reported_pages, 0)) for name, mv in view.models.items()}

    # ---- time ----
    def _refresh(self, model: str) -> None:
        mp = self.models[model]
        law = self.view.models[model].law
        mp.seconds = law.predict_s(mp.decode_rows, mp.kv_read_tokens, mp.chunks, mp.sampled) if mp.sampled or mp.chunks else 0.0

    def seconds(self, without: str = "") -> float:
        """Predicted length: the laws of all models add, the host's part counts once (the largest)."""
        host = total = 0.0
        for name, mp in self.models.items():
            if name != without and mp.seconds:
                c_host = self.view.models[name].law.c_host_s
                total += mp.seconds - c_host
                host = max(host, c_host)
        return total + host

    # ---- decode rows ----
    def add_decodes(self, sequences: list[SequenceView]) -> None:
        """Take these decode rows (as many as rows and segments allow, in the given order), without looking at pages."""
        taken = sequences[: max(0, min(self.rows_left, self.segments_left))]
        touched: dict[str, list[int]] = {}
        for s in taken:
            tokens = s.prompt_tokens + s.emitted
            if s.model in touched:
                touched[s.model].append(tokens)
            else:
                touched[s.model] = [tokens]
        for model, kv in touched.items():
            mp = self.models[model]
            mp.decode_rows += len(kv)
            mp.sampled += len(kv)
            mp.kv_read_tokens += sum(kv)
        self.decode.extend(taken)
        self.rows_left -= len(taken)
        self.segments_left -= len(taken)
        for model in touched:
            self._refresh(model)

    def drop_decode(self, s: SequenceView) -> None:
        mp = self.models[s.model]
        mp.decode_rows -= 1
        mp.kv_read_tokens -= s.prompt_tokens + s.emitted
        mp.sampled -= 1
        self.decode.remove(s)
        self.rows_left += 1
        self.segments_left += 1
        self._refresh(s.model)

    def page_decodes(self, first: int = 0) -> None:
        """Give decode rows from `first` on the page they may need; when pages run out, the lowest in `seniority` gives all its own back.

        The order is fixed for life (but for one demotion), so the most senior sequence is never preempted and always ends: no livelock.
        """
        needy: dict[str, list[SequenceView]] = {}
        page_tokens = {name: mv.spec.page_tokens for name, mv in self.view.models.items()}
        for s in self.decode[first:] if first else self.decode:
            if s.prompt_tokens + s.emitted > s.pages_held * page_tokens[s.model]:
                needy.setdefault(s.model, []).append(s)
        for model, rows in needy.items():
            mp = self.models[model]
            if len(rows) <= mp.free_pages:
                mp.free_pages -= len(rows)
                continue
            granted = 0
            for s in sorted(rows, key=seniority):
                if s in self.preempt:
                    continue
                while mp.free_pages <= granted and self._preempt_below(s, granted):
                    pass
                if mp.free_pages > granted:
                    granted += 1
                elif s in self.decode:
                    self.drop_decode(s)
            mp.free_pages -= granted

    def _preempt_below(self, beneficiary: SequenceView, granted: int) -> bool:
        """Preempt the most junior holder of pages of this model, if it is junior to the beneficiary; refreshes the free pages."""
        holders = [s for s in self.view.sequences.values() if s.model == beneficiary.model and s.pages_held and s not in self.preempt]
        victim = max(holders, key=seniority, default=None)
        if victim is None or seniority(victim) < seniority(beneficiary):
            return False
        if victim in self.decode:
            self.drop_decode(victim)
        self.preempt.append(victim)
        if victim is beneficiary:
            return False
        mp = self.models[beneficiary.model]
        mp.free_pages = max(mp.free_pages, self.view.free_pages(beneficiary.model, [s.id for s in self.preempt]))
        return True

    # ---- prefill chunks ----
    def may_start(self, s: SequenceView) -> bool:
        """A new sequence starts when a place is free and its promise of pages fits beside those already given; the first one always."""
        if s.started:
            return True
        if self.sequences_started >= self.view.spec.max_sequences:
            return False
        pages = self.view.models[s.model].spec.pages
        if s.model not in self.promised:
            self.promised[s.model] = sum(
                self.view.promised_pages(o) for o in self.view.sequences.values() if o.started and o.model == s.model
            )
        promised = self.promised[s.model]
        return promised == 0 or promised + self.view.promised_pages(s) <= pages

    def chunk_cap(self, s: SequenceView) -> int:
        """Rows this sequence could prefill now, by rows, segments and pages."""
        if self.segments_left <= 0:
            return 0
        page_tokens = self.view.models[s.model].spec.page_tokens
        by_pages = (s.pages_held + self.models[s.model].free_pages) * page_tokens - s.context_tokens
        return max(0, min(s.left, self.rows_left, by_pages))

    def largest_chunk(self, s: SequenceView, budget_s: float, cap: int) -> int:
        """Largest chunk that keeps the whole iteration within `budget_s` (kernel tiles, or all of `cap`)."""
        mp = self.models[s.model]
        law = self.view.models[s.model].law
        others = self.seconds(without=s.model)
        sampled = mp.sampled + (1 if cap == s.left else 0)
        return max_chunk(law, budget_s - others, mp.decode_rows, mp.kv_read_tokens, s.context_tokens, cap, TILE_TOKENS, mp.chunks, sampled)

    def add_chunk(self, s: SequenceView, tokens: int) -> None:
        mp = self.models[s.model]
        mp.chunks.append((tokens, s.context_tokens))
        mp.chunk_tokens += tokens
        mp.sampled += tokens == s.left
        needed = pages_for(s.context_tokens + tokens, self.view.models[s.model].spec.page_tokens) - s.pages_held
        mp.free_pages -= max(0, needed)
        self.work.append((s, tokens))
        self.rows_left -= tokens
        self.segments_left -= 1
        if not s.started:
            self.sequences_started += 1
            if s.model in self.promised:
                self.promised[s.model] += self.view.promised_pages(s)
        self._refresh(s.model)

    def force_progress(self) -> None:
        """Nothing could be placed although sequences wait: the most senior one gets a tile, others give their pages back if need be."""
        if self.decode or self.work or not self.view.sequences:
            return
        s = min(self.view.sequences.values(), key=seniority)
        mp = self.models[s.model]
        page_tokens = self.view.models[s.model].spec.page_tokens
        wanted = min(TILE_TOKENS, s.left) if s.left else 1
        needed = pages_for(s.context_tokens + wanted, page_tokens) - s.pages_held
        while mp.free_pages < needed and self._preempt_below(s, 0):
            pass
        if s.left:
            self.add_chunk(s, max(1, min(wanted, self.chunk_cap(s))))
        else:
            self.add_decodes([s])

    def finish(self, budget_ns: int) -> Iteration:
        return Iteration(
            decode=tuple((s.id, 1) for s in self.decode),
            work=tuple((s.id, tokens) for s, tokens in self.work),
            preempt=tuple(s.id for s in self.preempt),
            budget_ns=budget_ns,
            predicted_ns=ceil_ns(self.seconds()),
        )


def seniority(s: SequenceView) -> tuple[bool, int]:
    """Smaller = keeps its pages longer: promises before best effort, then who came first."""
    return (s.idle_only, s.order)
