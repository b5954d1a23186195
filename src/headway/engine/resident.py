"""One model living in an engine: its pages, prefixes and rows. Turns what the scheduler ordered into a batch, and logits into tokens.

Orders are obeyed as far as memory and the program's limits reach; what could not be done is not done, and the caller reports what was.
"""

from dataclasses import dataclass, field

import numpy as np

from headway.core.errors import HeadwayError
from headway.engine.batch import BatchBuilder, BlockTables, Span
from headway.engine.pool import PagePool
from headway.engine.prefix import PrefixCache, root_key
from headway.engine.sampling import BadLogits, Sampler
from headway.engine.sequence import GENERATED, Sequence
from headway.engine.step import Float32, StepProgram
from headway.engine.wire import Output, TokenLogprobs


class ViewMismatch(HeadwayError):
    """Scheduler's view and engine disagree about a sequence: a bug, never a user's mistake."""


@dataclass(slots=True)
class Plan:
    """What one iteration will really do for one model. `adopted`: rows per sequence id that came out of the prefix cache instead."""

    decode: list[Sequence] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    adopted: dict[int, int] = field(default_factory=dict)
    starved: bool = False
    """pages were missing for part of what was ordered"""

    @property
    def kv_read_tokens(self) -> int:
        return sum(len(sequence.tokens) for sequence in self.decode)


class Resident:
    """`accuracy` "fast" gives prompt and generated rows different arithmetic, so that a recomputed row may only reuse pages whose rows had
    its own classes; in "exact" all rows are alike and classes do not separate pages (docs/engine.md, "Rows and accuracy")."""

    def __init__(self, name: str, program: StepProgram, stop_ids: frozenset[int], accuracy: str, kv_dtype: str, max_sequences: int) -> None:
        self.name = name
        self.program = program
        self.stop_ids = stop_ids
        self.accuracy = accuracy
        self.kv_dtype = kv_dtype
        self.page_tokens = program.page_tokens
        self.max_sequences = min(max_sequences, program.max_sampled_rows, program.max_segments, program.max_rows)
        self.prefix = PrefixCache()
        self.pool = PagePool(program.pages, program.page_tokens, self._forget)
        self.tables = BlockTables(2 * self.max_sequences, -(-program.context_tokens // program.page_tokens))
        self.sequences: dict[int, Sequence] = {}
        self.changed: set[int] = set()
        """ids whose number of pages changed since the caller last cleared it"""
        self._of_prompt = bytearray(program.pages)
        """published pages that lie in some sequence's prompt: those that the front's mirror may know"""
        self._dropped_pages = 0
        self._builder = BatchBuilder(program, self.tables)
        self._sampler = Sampler(program.vocab, program.draw_kernels)
        self._classes_matter = accuracy == "fast"

    # ---- life of a sequence --------------------------------------------------------------------------------------------
    def root(self, salt: str) -> bytes:
        return root_key(self.name, self.accuracy, self.kv_dtype, salt)

    def admit(self, sequence: Sequence) -> None:
        """Takes a sequence in and pins the pages of its prompt that the prefix cache holds."""
        self.sequences[sequence.id] = sequence
        self._adopt(sequence, self.pool.pages)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence; its pages are free or cached at once."""
        self._release(sequence)
        self.changed.discard(sequence.id)
        del self.sequences[sequence.id]

    def unpin_waiting(self) -> list[Sequence]:
        """Takes the pinned prefix from sequences that have not run yet: the last resort when pages are missing. Their pages stay cached."""
        waiting = [sequence for sequence in self.sequences.values() if sequence.pages and not sequence.started]
        for sequence in waiting:
            self._release(sequence)
        return waiting

    def preempt(self, sequence: Sequence) -> int:
        """Gives all pages back; returns the rows to compute again. Rows keep their classes."""
        self._release(sequence)
        return len(sequence.tokens)

    # ---- one iteration -------------------------------------------------------------------------------------------------
    def plan(self, decode: list[Sequence], work: list[tuple[Sequence, int]]) -> Plan:
        """Finds pages for the ordered rows; decodes first. Whoever finds none waits for the next iteration."""
        plan = Plan()
        for sequence in decode[: self.max_sequences]:
            rows = len(sequence.tokens)
            if rows - sequence.computed != 1 or rows == sequence.prompt_tokens:
                raise ViewMismatch(f"sequence {sequence.id} was ordered to decode with {sequence.rows_left} rows left; it needs prefill")
            if rows <= len(sequence.pages) * self.page_tokens or self._cover(sequence, rows):
                plan.decode.append(sequence)
            else:
                plan.starved = True
        work = work[: self.max_sequences - len(plan.decode)]
        ordered = sum(self._pages_missing(sequence, sequence.computed + units) for sequence, units in work)
        spare_pages = self.pool.available_pages - ordered
        plan.starved |= spare_pages < 0
        rows = self.program.max_rows - len(plan.decode)
        segments = self.program.max_segments - len(plan.decode)
        scored = self.program.max_sampled_rows - len(plan.decode) - len(work)
        for sequence, units in work:
            adopted, spent = self._adopt(sequence, spare_pages)
            spare_pages -= spent
            if adopted:
                plan.adopted[sequence.id] = adopted
            span = self._span(sequence, min(units, rows), segments, scored)
            if span is not None:
                plan.spans.append(span)
                rows -= span.rows
                segments -= self._segments(span)
                scored -= span.scored
        return plan

    def execute(self, plan: Plan) -> None:
        if plan.decode or plan.spans:
            self.program.execute(self._builder.build(plan.decode, plan.spans))

    def collect(self, plan: Plan) -> list[Output]:
        """After `execute`: counts the rows as done, publishes full pages, draws tokens. A finished sequence's output says why; it still
        has to be removed."""
        outputs: list[Output] = []
        drawing = len(plan.decode) + sum(span.scored + span.ends for span in plan.spans)
        if not drawing:
            for span in plan.spans:
                self._advance(span.sequence, span.rows)
            return outputs
        logits = self.program.logits[:drawing]
        best: list[int] = logits.argmax(axis=1).tolist()
        page_tokens = self.page_tokens
        for index, sequence in enumerate(plan.decode):
            if (sequence.computed + 1) % page_tokens:
                sequence.computed += 1
                if sequence.computed > sequence.settled:
                    sequence.settled = sequence.computed
            else:  # a page became full
                self._advance(sequence, 1)
            outputs.append(self._draw(sequence, logits[index], best[index]))
        index = len(plan.decode)
        for span in plan.spans:
            ends = span.ends
            self._advance(span.sequence, span.rows)
            failed = None
            if span.scored:
                failed = self._score(span, logits[index : index + span.scored], best[index : index + span.scored])
                index += span.scored
            if failed is not None:
                outputs.append(failed)
            elif ends:
                outputs.append(self._draw(span.sequence, logits[index], best[index]))
            index += ends
        if self._dropped_pages and outputs:
            outputs[0].pages_dropped, self._dropped_pages = self._dropped_pages, 0
        return outputs

    def check_invariants(self) -> None:
        """Raise unless pages, tables and prefix index agree and nobody could write a shared page."""
        self.pool.check(sequence.pages for sequence in self.sequences.values())
        self.prefix.check()
        held = 0
        for sequence in self.sequences.values():
            held += sequence.table >= 0
            if len(sequence.pages) != self._pages_for(sequence.computed) or (sequence.table >= 0) != bool(sequence.pages):
                raise ViewMismatch(f"sequence {sequence.id} holds {len(sequence.pages)} pages for {sequence.computed} rows")
            if sequence.pages and self.tables.array[sequence.table, : len(sequence.pages)].tolist() != sequence.pages:
                raise ViewMismatch(f"the block table of sequence {sequence.id} is not its list of pages")
            if len(sequence.keys) != sequence.computed // self.page_tokens:
                raise ViewMismatch(f"sequence {sequence.id} has {len(sequence.keys)} keys for {sequence.computed} rows")
            for page in sequence.pages[len(sequence.keys) :]:
                if self.pool.refcount(page) != 1 or self.pool.is_published(page):
                    raise ViewMismatch(f"page {page} of sequence {sequence.id} will be written but is shared")
            if len(sequence.classes) != len(sequence.tokens):
                raise ViewMismatch(f"sequence {sequence.id} has {len(sequence.classes)} classes for {len(sequence.tokens)} tokens")
        if held != self.tables.in_use:
            raise ViewMismatch(f"{self.tables.in_use} block tables are open, {held} in use")

    # ---- pages ---------------------------------------------------------------------------------------------------------
    def _forget(self, page: int) -> None:
        """The pool takes a cached page back."""
        self.prefix.forget(page)
        self._dropped_pages += self._of_prompt[page]
        self._of_prompt[page] = 0

    def _pages_for(self, rows: int) -> int:
        return -(-rows // self.page_tokens)

    def _pages_missing(self, sequence: Sequence, rows: int) -> int:
        return max(0, self._pages_for(min(rows, len(sequence.tokens))) - len(sequence.pages))

    def _extend(self, sequence: Sequence, pages: list[int]) -> None:
        if sequence.table < 0:
            sequence.table = self.tables.open()
        held = len(sequence.pages)
        self.tables.array[sequence.table, held : held + len(pages)] = pages
        sequence.pages += pages
        self.changed.add(sequence.id)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        if sequence.pages:
            self.changed.add(sequence.id)
        if sequence.table >= 0:
            self.tables.close(sequence.table)
            sequence.table = -1
        sequence.pages = []
        sequence.keys = []
        sequence.computed = 0

    def _cover(self, sequence: Sequence, rows: int) -> bool:
        """Pages for rows [0, rows), all or nothing."""
        missing = self._pages_for(rows) - len(sequence.pages)
        if missing > 0:
            if missing > self.pool.available_pages:
                return False
            self._extend(sequence, self.pool.allocate(missing, sequence.pages[-1] if sequence.pages else -1))
        return True

    def _adopt(self, sequence: Sequence, spare_pages: int) -> tuple[int, int]:
        """Continues a sequence that stands at a page border with pages of the prefix cache; at least one row is always left to compute.

        A cached page that nobody owns costs one of `spare_pages`. Returns (rows, pages spent).
        """
        page_tokens = self.page_tokens
        limit = min(len(sequence.tokens) - 1, sequence.scored_prompt_rows())
        first, spent = sequence.computed, 0
        if first % page_tokens:
            return 0, 0
        key = sequence.keys[-1] if sequence.keys else sequence.root
        while first + page_tokens <= limit:
            end = first + page_tokens
            own = bytes(sequence.classes[first:end]) if self._classes_matter and first < sequence.settled else None
            entry = self.prefix.find(key, sequence.tokens[first:end].tobytes(), own)
            if entry is None:
                break
            if self.pool.refcount(entry.page) == 0:
                if spent == spare_pages or spare_pages < 0:
                    break
                spent += 1
            self.pool.retain(entry.page)
            self._of_prompt[entry.page] |= end <= sequence.prompt_tokens
            self._extend(sequence, [entry.page])
            key = entry.key
            sequence.keys.append(key)
            if self._classes_matter:
                sequence.classes[first:end] = entry.classes
            if first >= sequence.settled:
                sequence.cached_tokens += page_tokens
            first = end
        rows = first - sequence.computed
        sequence.computed = first
        sequence.settled = max(sequence.settled, first)
        return rows, spent

    def _advance(self, sequence: Sequence, rows: int) -> None:
        """Rows were computed: publish the pages that became full, or swap to the page that already holds the same."""
        sequence.computed += rows
        if sequence.computed > sequence.settled:
            sequence.settled = sequence.computed
        page_tokens = self.page_tokens
        while (len(sequence.keys) + 1) * page_tokens <= sequence.computed:
            index = len(sequence.keys)
            first, end = index * page_tokens, (index + 1) * page_tokens
            classes = bytes(sequence.classes[first:end]) if self._classes_matter else b""
            parent = sequence.keys[-1] if sequence.keys else sequence.root
            page = sequence.pages[index]
            entry = self.prefix.insert(page, parent, sequence.tokens[first:end].tobytes(), classes)
            self._of_prompt[entry.page] |= end <= sequence.prompt_tokens
            if entry.page == page:
                self.pool.publish(page)
            else:
                self.pool.retain(entry.page)
                sequence.pages[index] = entry.page
                self.tables.array[sequence.table, index] = entry.page
                self.pool.release([page])
            sequence.keys.append(entry.key)

    # ---- rows ----------------------------------------------------------------------------------------------------------
    def _span(self, sequence: Sequence, rows: int, segments: int, scored: int) -> Span | None:
        """The rows of this sequence that fit: ordered rows, pages, segments (a class border costs one), wanted logits."""
        first = sequence.computed
        reachable = (len(sequence.pages) + self.pool.available_pages) * self.page_tokens - first
        end = first + min(rows, sequence.rows_left, reachable)
        wanted = 0
        if sequence.prompt_scores is not None and first < sequence.prompt_tokens:
            done = sequence.scored_prompt_rows()
            if first < done:
                end = min(end, done)
            else:
                last = sequence.prompt_tokens - 1
                if end <= last or scored < last - first:
                    end = min(end, first + max(0, scored))
                wanted = min(end, last) - first
        stop = first
        while stop < end and segments > 0:
            stop = sequence.class_run(stop, end)
            segments -= 1
        if stop <= first or not self._cover(sequence, stop):
            return None
        return Span(sequence, first, stop - first, min(wanted, stop - first))

    @staticmethod
    def _segments(span: Span) -> int:
        segments, first, end = 0, span.first, span.first + span.rows
        while first < end:
            first = span.sequence.class_run(first, end)
            segments += 1
        return segments

    # ---- tokens --------------------------------------------------------------------------------------------------------
    def _score(self, span: Span, logits: Float32, best: list[int]) -> Output | None:
        """Log-probabilities of the prompt tokens that follow the span's first `scored` rows."""
        sequence = span.sequence
        scores = sequence.prompt_scores
        if scores is None:
            raise ViewMismatch(f"sequence {sequence.id} was scored but wants no prompt log-probs")
        try:
            for offset in range(span.scored):
                token = sequence.tokens[span.first + offset + 1]
                scores.append(self._sampler.logprobs(logits[offset], best[offset], token, sequence.sampling.logprobs or 0))
        except BadLogits as error:
            return Output(sequence.id, [], finish="error", error=str(error))
        return None

    def _draw(self, sequence: Sequence, row: Float32, best: int) -> Output:
        position = len(sequence.tokens)
        emitted = position - sequence.prompt_tokens
        sampling = sequence.sampling
        if sequence.max_tokens == 0:
            return self._output(sequence, [], finish="length")
        logprobs = None
        try:
            # BadLogits for NaN: argmax finds the first one.
            if sampling.min_tokens > emitted:
                token = self._draw_before_stop(sequence, row)
            else:
                token = self._sampler.sample(row, best, sampling, position)
            if sampling.logprobs is not None:
                logprobs = [self._sampler.logprobs(row, best, token, sampling.logprobs)]
        except BadLogits as error:
            return Output(sequence.id, [], finish="error", error=str(error))
        if token in sequence.stop_ids:
            return self._output(sequence, [], finish="stop", stop_id=token)
        sequence.tokens.append(token)
        sequence.classes.append(GENERATED)
        finish = "length" if emitted + 1 >= sequence.max_tokens else ""
        return self._output(sequence, [token], logprobs, finish)

    def _draw_before_stop(self, sequence: Sequence, row: Float32) -> int:
        """Stop tokens are out of reach until `min_tokens`; the row's raw values are put back for the log-probs."""
        stops = [token for token in sequence.stop_ids if 0 <= token < self.program.vocab]
        raw = row[stops].copy()
        row[stops] = -np.inf
        try:
            return self._sampler.sample(row, int(row.argmax()), sequence.sampling, len(sequence.tokens))
        finally:
            row[stops] = raw

    @staticmethod
    def _output(
        sequence: Sequence, token_ids: list[int], logprobs: list[TokenLogprobs] | None = None, finish: str = "", stop_id: int | None = None
    ) -> Output:
        scores = None
        if sequence.prompt_scores is not None:
            scores, sequence.prompt_scores = sequence.prompt_scores, None
        return Output(sequence.id, token_ids, logprobs, scores, finish, stop_id, sequence.cached_tokens)
