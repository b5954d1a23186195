"""RunPool: which pages are free, handed out in runs, because contiguous pages of a head read 1.3-1.7x faster (specs/attention.md 6.4).

It counts pages only; whose they are, and prefix sharing, is the engine's business.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headway.core.errors import CapacityError, ConfigError


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """`free_runs`: maximal runs of free pages. `mean_run_pages`: of everything handed out so far, pages / runs."""

    pages: int
    free_pages: int
    peak_used_pages: int
    free_runs: int
    longest_free_run: int
    mean_run_pages: float


class RunPool:
    """Free pages as sorted runs; freed neighbours coalesce."""

    def __init__(self, pages: int) -> None:
        if pages < 1:
            raise ConfigError(f"a pool of {pages} pages cannot hold anything; give it at least 1")
        self.pages = pages
        self._starts = [0]
        self._ends = {0: pages}
        self.free_pages = pages
        self.peak_used_pages = 0
        self._given_pages = 0
        self._given_runs = 0

    def take(self, pages: int, *, after: int | None = None) -> NDArray[np.int32]:
        """`pages` page numbers in as few runs as possible. `after`: a sequence's last page; its continuation is preferred.

        Raises CapacityError, changing nothing, when not that many are free.
        """
        if pages > self.free_pages:
            raise CapacityError(f"{pages} pages wanted, {self.free_pages} of {self.pages} are free", needed=pages, capacity=self.free_pages)
        out: list[int] = []
        if after is not None and pages and after + 1 in self._ends:
            out += self._cut(after + 1, after + 1, min(pages, self._ends[after + 1] - after - 1))
        while len(out) < pages:
            wanted = pages - len(out)
            start = self._fit(wanted)
            n = min(wanted, self._ends[start] - start)
            # the middle of the run: what lies before can go on growing, and so can this
            at = start if n == self._ends[start] - start or wanted > n or start == 0 else start + (self._ends[start] - start - n) // 2
            out += self._cut(start, at, n)
            self._given_runs += 1
        self._given_pages += pages
        self.peak_used_pages = max(self.peak_used_pages, self.pages - self.free_pages)
        return np.array(out, np.int32)

    def _fit(self, pages: int) -> int:
        """The longest run: a growing sequence finds room behind itself. Ties by address, so that histories repeat."""
        return max(self._starts, key=lambda start: (self._ends[start] - start, -start))

    def _cut(self, start: int, at: int, n: int) -> range:
        end = self._ends.pop(start)
        del self._starts[bisect_left(self._starts, start)]
        for a, b in ((start, at), (at + n, end)):
            if a < b:
                insort(self._starts, a)
                self._ends[a] = b
        self.free_pages -= n
        return range(at, at + n)

    def give_back(self, pages: ArrayLike) -> None:
        """Free pages. Raises ConfigError, changing nothing, for a page that is out of range, twice in the list, or free already."""
        numbers = np.unique(np.asarray(pages, np.int64))
        if len(numbers) != np.size(pages) or (len(numbers) and (numbers[0] < 0 or numbers[-1] >= self.pages)):
            raise ConfigError(f"pages to free must be different and within 0..{self.pages - 1}")
        for page in numbers:
            if self._is_free(int(page)):
                raise ConfigError(f"page {page} is free already: it was given back twice")
        if not len(numbers):
            return
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        for run in np.split(numbers, breaks):
            self._join(int(run[0]), int(run[-1]) + 1)
        self.free_pages += len(numbers)

    def _is_free(self, page: int) -> bool:
        i = bisect_left(self._starts, page + 1) - 1
        return i >= 0 and self._ends[self._starts[i]] > page

    def _join(self, start: int, end: int) -> None:
        if end in self._ends:
            del self._starts[bisect_left(self._starts, end)]
            end = self._ends.pop(end)
        i = bisect_left(self._starts, start) - 1
        if i >= 0 and self._ends[self._starts[i]] == start:
            start = self._starts[i]
        else:
            insort(self._starts, start)
        self._ends[start] = end

    @property
    def statistics(self) -> PoolStatistics:
        lengths = [self._ends[s] - s for s in self._starts]
        mean = self._given_pages / self._given_runs if self._given_runs else 0.0
        return PoolStatistics(self.pages, self.free_pages, self.peak_used_pages, len(lengths), max(lengths, default=0), mean)
