"""What one iteration asks of a model: `Batch` in, logits out. The only thing the engine knows about how a model computes.

Must not know: weights, kernels, threads, inside of a KV page.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


@dataclass(slots=True)
class Batch:
    """One iteration of one model; every array is int32 and C-contiguous, and valid until the next batch is built.

    Rows of class "generated" come first, because the class decides how many planes of activations a row gets (docs/kernels.md).
    """

    token_ids: Int32
    """[rows]"""
    positions: Int32
    """[rows], from 0"""
    generated_rows: int
    """rows [0, generated_rows) are of class generated, the others of class prompt"""
    segment_first_row: Int32
    """[segments]; a segment is contiguous rows of one sequence and one class at consecutive positions"""
    segment_rows: Int32
    """[segments]"""
    segment_table: Int32
    """[segments], row of `block_tables`"""
    block_tables: Int32
    """[tables, max_pages_per_sequence], page ids of a sequence; entries beyond its last page are stale"""
    sampled_rows: Int32
    """[m], rows whose logits are wanted, m <= max_sampled_rows; logits come in this order"""


class DrawKernels(Protocol):
    """kernels.cpu.bounds compiled for a vocabulary, columns of SAMPLING_COLUMNS ids; arguments are addresses."""

    def weight_bounds(self, logits: int, parameters: int, sums: int) -> None: ...

    def propose(self, numbers: int, logits: int, parameters: int, sums: int) -> None: ...


class StepProgram(Protocol):
    """A model compiled for fixed limits. `execute` appends K and V of all rows first, then attends up to each row's own position."""

    vocab: int
    context_tokens: int
    page_tokens: int
    pages: int
    max_rows: int
    max_segments: int
    max_sampled_rows: int
    logits: Float32
    """[max_sampled_rows, vocab]; rows 0..m-1 are valid after `execute`. The engine may write into it before the next `execute`."""
    draw_kernels: DrawKernels | None
    """None: sampling does the same with NumPy, bit for bit"""

    def execute(self, batch: Batch) -> None: ...

    def copy_page(self, source: int, target: int) -> None: ...

    def close(self) -> None: ...
