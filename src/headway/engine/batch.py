"""An iteration's rows of one model, laid out as a `Batch` in preallocated arrays.

Block tables are kept, not rebuilt: each sequence with pages owns one row of the table for as long as it holds them, and an iteration only
writes what grew.
"""

from dataclasses import dataclass

import numpy as np

from headway.core.errors import CapacityError
from headway.engine.sequence import GENERATED, Sequence
from headway.engine.step import Batch, Int32, StepProgram


@dataclass(slots=True)
class Span:
    """Rows [first, first + rows) of a sequence, any classes. `scored`: the logits of the first `scored` rows are wanted (prompt log-probs);
    the last row's logits are wanted when it ends the sequence, to draw the next token."""

    sequence: Sequence
    first: int
    rows: int
    scored: int = 0

    @property
    def ends(self) -> bool:
        return self.first + self.rows == len(self.sequence.tokens)


class BlockTables:
    """Rows of page ids, int32 [tables, max_pages_per_sequence]; grows by doubling, so that its address rarely changes."""

    def __init__(self, tables: int, pages_per_sequence: int) -> None:
        self.array: Int32 = np.zeros((max(1, tables), pages_per_sequence), np.int32)
        self._unused = list(range(len(self.array) - 1, -1, -1))

    @property
    def in_use(self) -> int:
        return len(self.array) - len(self._unused)

    def open(self) -> int:
        if not self._unused:
            rows = len(self.array)
            grown = np.zeros((2 * rows, self.array.shape[1]), np.int32)
            grown[:rows] = self.array
            self.array = grown
            self._unused = list(range(2 * rows - 1, rows - 1, -1))
        return self._unused.pop()

    def close(self, table: int) -> None:
        self._unused.append(table)


class BatchBuilder:
    """Builds one batch at a time. Raises CapacityError when asked for more than the program's limits; callers plan within them."""

    def __init__(self, program: StepProgram, tables: BlockTables) -> None:
        self._tables = tables
        self._max_rows = program.max_rows
        self._max_segments = program.max_segments
        self._max_sampled = program.max_sampled_rows
        self._token_ids: Int32 = np.zeros(program.max_rows, np.int32)
        self._positions: Int32 = np.zeros(program.max_rows, np.int32)
        self._first_row: Int32 = np.zeros(program.max_segments, np.int32)
        self._rows: Int32 = np.zeros(program.max_segments, np.int32)
        self._table: Int32 = np.zeros(program.max_segments, np.int32)
        self._sampled: Int32 = np.zeros(program.max_sampled_rows, np.int32)
        self._every_position: Int32 = np.arange(program.context_tokens, dtype=np.int32)

    def build(self, decode: list[Sequence], spans: list[Span]) -> Batch:
        """Decode rows first, then recomputed generated rows, then prompt rows. Logits come in the order: one per `decode`, then per span
        its scored rows in order and, if it ends its sequence, its last row."""
        decoding = len(decode)
        parts: list[tuple[Span, int, int]] = []
        prompt_parts: list[tuple[Span, int, int]] = []
        rows = decoding
        for span in spans:
            sequence, first, end = span.sequence, span.first, span.first + span.rows
            while first < end:
                stop = sequence.class_run(first, end)
                (parts if sequence.classes[first] == GENERATED else prompt_parts).append((span, first, stop))
                rows += stop - first
                first = stop
        generated_parts = len(parts)
        parts += prompt_parts
        segments = decoding + len(parts)
        self._check(rows, self._max_rows, "rows")
        self._check(segments, self._max_segments, "segments")

        token_ids, positions = self._token_ids, self._positions
        if decoding:
            token_ids[:decoding] = [sequence.tokens[-1] for sequence in decode]
            positions[:decoding] = [len(sequence.tokens) - 1 for sequence in decode]
            self._first_row[:decoding] = self._every_position[:decoding]
            self._rows[:decoding] = 1
            self._table[:decoding] = [sequence.table for sequence in decode]
        row, segment, generated_rows = decoding, decoding, decoding
        row_of: dict[int, list[tuple[int, int, int]]] = {}
        for index, (span, first, end) in enumerate(parts):
            count = end - first
            token_ids[row : row + count] = np.frombuffer(span.sequence.tokens[first:end], np.int32)
            positions[row : row + count] = self._every_position[first:end]
            self._first_row[segment] = row
            self._rows[segment] = count
            self._table[segment] = span.sequence.table
            row_of.setdefault(id(span), []).append((first, end, row))
            row += count
            segment += 1
            if index < generated_parts:
                generated_rows = row
        sampled = self._sampled_rows(decoding, spans, row_of)
        return Batch(
            token_ids=token_ids[:rows],
            positions=positions[:rows],
            generated_rows=generated_rows,
            segment_first_row=self._first_row[:segments],
            segment_rows=self._rows[:segments],
            segment_table=self._table[:segments],
            block_tables=self._tables.array,
            sampled_rows=self._sampled[:sampled],
        )

    def _sampled_rows(self, decoding: int, spans: list[Span], row_of: dict[int, list[tuple[int, int, int]]]) -> int:
        wanted: list[int] = []
        for span in spans:
            if span.scored or span.ends:
                located = [row + offset for first, end, row in sorted(row_of[id(span)]) for offset in range(end - first)]
                wanted += located[: span.scored]
                if span.ends:
                    wanted.append(located[-1])
        sampled = decoding + len(wanted)
        self._check(sampled, self._max_sampled, "sampled rows")
        self._sampled[:decoding] = self._every_position[:decoding]
        self._sampled[decoding:sampled] = wanted
        return sampled

    @staticmethod
    def _check(needed: int, capacity: int, what: str) -> None:
        if needed > capacity:
            raise CapacityError(f"an iteration of {needed} {what} exceeds the program's {capacity}", needed=needed, capacity=capacity)
