"""Plan: one attention step decided once (who computes what, where partial results go, in which order they merge), shared by all layers.

Everything a back end reads is in one int32 buffer of fixed capacity (kernels/cpu/plan_layout.py), so a copy to a device is one memcpy and
captured addresses stay valid. A plan names query tokens (rows of q), kv heads, and *slots*: the i-th kept token of a table row.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.core.errors import CapacityError, HeadwayError
from headway.kernels.cpu import plan_layout as at

IntArray = NDArray[np.int32]


class StalePlanError(HeadwayError):
    """A plan was run with other shapes than it was made for, or after its buffer had been planned again."""


class PlanCapacityError(CapacityError):
    """A step needs more than the plan's fixed arrays hold; `which` names the array's kind."""

    def __init__(self, which: str, needed: int, capacity: int) -> None:
        super().__init__(
            f"the plan needs {needed} {which} and has room for {capacity}: build the Attention with larger max_requests, max_q_tokens, "
            f"max_pages or `capacity`, or plan fewer requests at once",
            needed=needed,
            capacity=capacity,
        )
        self.which = which


@dataclass(frozen=True, slots=True)
class PlanCapacity:
    """How many of each record a plan's buffer holds. `partial_rows`: (query token, kv head) states that split items write."""

    rows: int
    tokens: int
    pages: int
    items: int
    ranges: int
    merges: int
    partial_rows: int

    def lengths(self) -> dict[str, int]:
        """Words of each array of plan_layout.ARRAYS."""
        per = {"item": self.items, "orde": self.items, "rang": self.ranges, "merg": self.merges, "row_": self.rows, "toke": self.tokens}
        lengths = {name: per.get(name[:4], self.pages) for name in at.ARRAYS}
        lengths["merge_indptr"] += 1
        lengths["merge_part"] = self.partial_rows
        lengths["row_page"] += 1
        return lengths


class PlanBuffer:
    """The int32 words of one plan after another. `address` never changes; `array(name)` is a view over the whole capacity."""

    def __init__(self, capacity: PlanCapacity) -> None:
        self.capacity = capacity
        self.offsets: dict[str, int] = {}
        end = at.HEADER_WORDS
        for name, length in capacity.lengths().items():
            self.offsets[name] = end
            end += -(-length // 16) * 16
        store = np.zeros(end + 16, np.int32)
        skip = (-store.ctypes.data % 64) // 4
        self.words: IntArray = store[skip : skip + end]
        self.address = int(self.words.ctypes.data)
        self.words[at.H_MAGIC] = at.MAGIC
        self.words[at.OFFSETS : at.OFFSETS + len(at.ARRAYS)] = list(self.offsets.values())

    def array(self, name: str) -> IntArray:
        start = self.offsets[name]
        return self.words[start : start + self.capacity.lengths()[name]]


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of work, for pictures and tests; times come from the law that planned it."""

    row: int
    head: int
    token: int
    tokens: int
    start: int
    end: int
    slot: int
    worker: int


@dataclass(frozen=True)
class Plan:
    """A view of a PlanBuffer as of one `plan()` call.

    `tokens`: rows of q it was made for. `kept_tokens`: (query tile, slot) pairs' slots over all items of all kv heads. `kv_bytes`, `flops`:
    of all items. `predicted_s`: makespan over the workers by the law; `predicted_p95_s`: times the law's 95 % residual.
    """

    buffer: PlanBuffer
    generation: int
    tokens: int
    page_tokens: int
    kv_bytes: int
    flops: int
    predicted_s: float
    predicted_p95_s: float

    @property
    def address(self) -> int:
        return self.buffer.address

    def count(self, header: int) -> int:
        """A header word, such as plan_layout.H_ITEMS."""
        return int(self.buffer.words[header])

    def array(self, name: str) -> IntArray:
        """The used part of an array."""
        used = {
            "item": at.H_ITEMS,
            "orde": at.H_ITEMS,
            "rang": at.H_RANGES,
            "merg": at.H_MERGES,
            "row_": at.H_ROWS,
            "page": at.H_PAGES,
            "toke": at.H_TOKENS,
        }[name[:4]]
        n = self.count(at.H_MERGE_PARTS if name == "merge_part" else used) + (name in ("merge_indptr", "row_page"))
        return self.buffer.array(name)[:n]

    @cached_property
    def items(self) -> list[Item]:
        """Items in execution order."""
        columns = ("row", "head", "token", "tokens", "start", "end", "slot", "worker")
        table: Any = np.stack([self.array("item_" + c) for c in columns], 1)[self.array("order")]
        return [Item(*map(int, row)) for row in table]

    def check(self, tokens: int, page_tokens: int, pages: int) -> None:
        """Raise StalePlanError unless this plan is the buffer's newest and was made for these shapes."""
        words = self.buffer.words
        if words[at.H_GENERATION] != self.generation:
            raise StalePlanError(
                f"plan {self.generation} was overwritten by plan {int(words[at.H_GENERATION])} of the same buffer: run the newest plan, or "
                f"give each plan its own buffer (plan(..., into=attention.buffer()))"
            )
        if tokens != self.tokens or page_tokens != self.page_tokens:
            raise StalePlanError(
                f"planned for {self.tokens} query tokens over {self.page_tokens}-token pages, not {tokens} over {page_tokens}: plan again"
            )
        if words[at.H_MAX_PAGE] >= pages:
            raise StalePlanError(f"the plan reads page {int(words[at.H_MAX_PAGE])} and the pool has {pages}: plan with this pool's table")
