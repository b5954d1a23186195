"""BlockSparse: which kept tokens each query attends to, as rows of page numbers over one pool: every KV format in the same arrays.

A *table row* serves some query tokens of one request (or of several that share a prefix) for one kv head or all. Its slot i is token
i % page_tokens of page[row_page[r] + i // page_tokens]; positions in the sequence ascend along a row (arXiv 2501.01005, section 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headway.core.errors import ConfigError

Int = NDArray[np.int32]


def _int32(x: ArrayLike, name: str) -> Int:
    """An int32 array as it is. Wider integers are refused: other engines misread them in silence."""
    array = np.asarray(x)
    if isinstance(x, np.ndarray) and array.dtype != np.int32:
        raise TypeError(f"{name} is {array.dtype}; index arrays are int32: convert it with .astype(np.int32)")
    return np.ascontiguousarray(array, np.int32)


def _check_indptr(indptr: Int, name: str) -> None:
    if indptr.ndim != 1 or len(indptr) < 1 or indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise ConfigError(f"{name} must start at 0 and never fall")


@dataclass(frozen=True, slots=True)
class BlockSparse:
    """Table rows as int32 arrays; build one with the `from_` constructors.

    `row_page` [rows + 1], `page` [entries]; `page_position` [entries] or None: entry i of a row is at position i * page_tokens.
    `row_kv_tokens`: kept slots. `row_request`, `row_requests`: first request and how many share the row. `row_start`, `row_tokens`: query
    tokens served, counted from the first request's first; row_tokens = -1 is all of them. `row_head`: kv head or -1.
    `sequence_tokens` [requests]: length of each sequence with its query tokens, which fixes the queries' positions.
    `overlapping`: a query token may be served by several rows, whose states are merged in row order.
    """

    page_tokens: int
    row_page: Int
    page: Int
    page_position: Int | None
    row_kv_tokens: Int
    row_request: Int
    row_requests: Int
    row_start: Int
    row_tokens: Int
    row_head: Int
    sequence_tokens: Int
    overlapping: bool = False

    def __post_init__(self) -> None:
        _check_indptr(self.row_page, "row_page")
        if self.page_tokens < 1:
            raise ConfigError(f"page_tokens={self.page_tokens} must be at least 1")
        room = np.diff(self.row_page).astype(np.int64) * self.page_tokens
        if self.row_page[-1] != len(self.page):
            raise ConfigError(f"indptr ends at {self.row_page[-1]} and there are {len(self.page)} page numbers")
        if (self.row_kv_tokens < 0).any() or (self.row_kv_tokens > room).any():
            row = int(np.flatnonzero((self.row_kv_tokens < 0) | (self.row_kv_tokens > room))[0])
            raise ConfigError(f"row {row} keeps {self.row_kv_tokens[row]} tokens in pages that hold {room[row]}")
        if len(self.page) and self.page.min() < 0:
            raise ConfigError(f"page number {self.page.min()} is negative")

    @property
    def rows(self) -> int:
        return len(self.row_kv_tokens)

    @property
    def requests(self) -> int:
        return len(self.sequence_tokens)

    def positions(self, row: int) -> Int:
        """Sequence position of each slot of a row."""
        slots = np.arange(self.row_kv_tokens[row], dtype=np.int32)
        if self.page_position is None:
            return slots
        at = self.page_position[self.row_page[row] : self.row_page[row + 1]]
        return np.asarray(at[slots // self.page_tokens] + slots % self.page_tokens, np.int32)

    # ---- one row a request
    @staticmethod
    def from_lengths(indptr: ArrayLike, indices: ArrayLike, kv_tokens: ArrayLike, page_tokens: int) -> "BlockSparse":
        """A page table in CSR form with each request's length in tokens."""
        row_page, lengths = _int32(indptr, "indptr"), _int32(kv_tokens, "kv_tokens")
        n = len(lengths)
        if len(row_page) != n + 1:
            raise ConfigError(f"indptr has {len(row_page)} entries for {n} requests; it needs {n + 1}")
        zero, one, every = np.zeros(n, np.int32), np.ones(n, np.int32), np.full(n, -1, np.int32)
        return BlockSparse(
            page_tokens, row_page, _int32(indices, "indices"), None, lengths, np.arange(n, dtype=np.int32), one, zero, every, every, lengths
        )

    @staticmethod
    def from_pages(indptr: ArrayLike, indices: ArrayLike, last_page_len: ArrayLike, page_tokens: int) -> "BlockSparse":
        """A page table in CSR form; `last_page_len` [requests] in 1..page_tokens, 0 for an empty request."""
        row_page, last = _int32(indptr, "indptr"), _int32(last_page_len, "last_page_len")
        if len(row_page) != len(last) + 1:
            raise ConfigError(f"indptr has {len(row_page)} entries for {len(last)} requests; it needs {len(last) + 1}")
        n_pages = np.diff(row_page)
        if ((last < 1) & (n_pages > 0)).any() or (last > page_tokens).any() or ((last != 0) & (n_pages == 0)).any():
            raise ConfigError(f"last_page_len={last.tolist()} must be in 1..{page_tokens}, and 0 exactly for requests without pages")
        lengths = np.maximum(n_pages - 1, 0) * page_tokens + last
        return BlockSparse.from_lengths(row_page, indices, lengths.astype(np.int32), page_tokens)

    @staticmethod
    def from_block_tables(block_tables: ArrayLike, seq_lens: ArrayLike, page_tokens: int) -> "BlockSparse":
        """A padded page table [requests, max_pages] and lengths; what lies behind a request's last page is not read."""
        tables, lengths = _int32(block_tables, "block_tables"), _int32(seq_lens, "seq_lens")
        if tables.ndim != 2 or len(tables) != len(lengths):
            raise ConfigError(f"block_tables {tables.shape} and seq_lens {lengths.shape} do not belong together")
        n_pages = -(-lengths // page_tokens)
        if (n_pages > tables.shape[1]).any():
            raise ConfigError(f"a request of {lengths.max()} tokens needs more than the {tables.shape[1]} pages of its table row")
        indptr = np.concatenate([[0], np.cumsum(n_pages)]).astype(np.int32)
        used = np.arange(tables.shape[1])[None, :] < n_pages[:, None]
        return BlockSparse.from_lengths(indptr, tables[used], lengths, page_tokens)

    @staticmethod
    def ragged(kv_indptr: ArrayLike, page_tokens: int | None = None) -> "BlockSparse":
        """Ragged rows [tokens, heads, D] without a page table: view them with `PagedKV.ragged(k, v, table.page_tokens)`.

        `page_tokens`: by default the largest of 16, 8, 4, 2, 1 that divides every boundary.
        """
        indptr = _int32(kv_indptr, "kv_indptr")
        _check_indptr(indptr, "kv_indptr")
        p = page_tokens or next(p for p in (16, 8, 4, 2, 1) if not (indptr % p).any())
        if (indptr % p).any():
            raise ConfigError(f"a request does not begin at a multiple of {p} tokens: leave page_tokens out")
        pages = np.arange(indptr[-1] // p, dtype=np.int32)
        return BlockSparse.from_lengths((indptr // p).astype(np.int32), pages, np.diff(indptr).astype(np.int32), p)

    # ---- several rows a request
    @staticmethod
    def from_bsr(indptr: ArrayLike, indices: ArrayLike, q_tokens: int, kv_tokens: int, r: int, c: int) -> "BlockSparse":
        """One sequence: `q_tokens` queries over `kv_tokens` dense keys in blocks of r x c; indices ascend inside a block row."""
        row_page, page = _int32(indptr, "indptr"), _int32(indices, "indices")
        rows = -(-q_tokens // r)
        if len(row_page) != rows + 1:
            raise ConfigError(f"indptr has {len(row_page)} entries; {q_tokens} queries in blocks of {r} need {rows + 1}")
        if len(page) and (page.max() * c >= kv_tokens or page.min() < 0):
            raise ConfigError(f"indices out of bound: block {page.max()} of {c} keys, {kv_tokens} keys")
        kept = np.zeros(rows, np.int32)
        for row in range(rows):
            blocks = page[row_page[row] : row_page[row + 1]]
            if (np.diff(blocks) <= 0).any():
                raise ConfigError(f"indices of block row {row} do not ascend")
            kept[row] = len(blocks) * c - (max(0, (int(blocks[-1]) + 1) * c - kv_tokens) if len(blocks) else 0)
        starts = np.arange(rows, dtype=np.int32) * r
        sizes = np.minimum(r, q_tokens - starts).astype(np.int32)
        zero, one = np.zeros(rows, np.int32), np.ones(rows, np.int32)
        length = np.array([kv_tokens], np.int32)
        positions = (page * c).astype(np.int32)
        return BlockSparse(c, row_page, page, positions, kept, zero, one, starts, sizes, np.full(rows, -1, np.int32), length)

    @staticmethod
    def from_mask(blocks: NDArray[np.bool_], q_tokens: int, kv_tokens: int, r: int, c: int) -> "BlockSparse":
        """`from_bsr` of a bool matrix [query blocks, key blocks]."""
        if blocks.shape != (-(-q_tokens // r), -(-kv_tokens // c)):
            raise ConfigError(f"a block mask of {blocks.shape} does not cover {q_tokens} x {kv_tokens} in blocks of {r} x {c}")
        indptr = np.concatenate([[0], np.cumsum(blocks.sum(1))]).astype(np.int32)
        return BlockSparse.from_bsr(indptr, np.nonzero(blocks)[1].astype(np.int32), q_tokens, kv_tokens, r, c)

    @staticmethod
    def from_topk(table: "BlockSparse", indices: ArrayLike, block: int) -> "BlockSparse":
        """Each kv head's chosen blocks of `block` tokens: indices [requests, kv_heads or 1, k] of logical blocks, -1 = none.

        `block` divides the table's page_tokens; with a smaller block run over `kv.with_page_tokens(block)`. One row a request and head.
        """
        chosen = _int32(indices, "indices")
        ratio, rest = divmod(table.page_tokens, block)
        if rest or table.rows != table.requests or chosen.ndim != 3 or len(chosen) != table.requests:
            raise ConfigError(
                f"top-k blocks of {block} and shape {chosen.shape} do not fit {table.requests} requests of {table.page_tokens}"
            )
        n, heads, _ = chosen.shape
        pages: list[Int] = []
        positions: list[Int] = []
        kept = []
        for b in range(n):
            length = int(table.row_kv_tokens[b])
            mine = table.page[table.row_page[b] : table.row_page[b + 1]]
            for h in range(heads):
                logical = np.unique(chosen[b, h][chosen[b, h] >= 0])
                if len(logical) and logical[-1] * block >= length:
                    raise ConfigError(f"request {b} has {length} tokens; block {logical[-1]} of {block} lies behind them")
                pages.append((mine[logical // ratio] * ratio + logical % ratio).astype(np.int32))
                positions.append((logical * block).astype(np.int32))
                kept.append(len(logical) * block - (max(0, (int(logical[-1]) + 1) * block - length) if len(logical) else 0))
        rows = n * heads
        request = np.repeat(np.arange(n, dtype=np.int32), heads)
        head = np.tile(np.arange(heads, dtype=np.int32), n) if heads > 1 else np.full(rows, -1, np.int32)
        indptr = np.concatenate([[0], np.cumsum([len(p) for p in pages])]).astype(np.int32)
        return BlockSparse(
            block,
            indptr,
            np.concatenate(pages) if pages else np.zeros(0, np.int32),
            np.concatenate(positions) if positions else np.zeros(0, np.int32),
            np.array(kept, np.int32),
            request,
            np.ones(rows, np.int32),
            np.zeros(rows, np.int32),
            np.full(rows, -1, np.int32),
            head,
            table.sequence_tokens,
        )

    # ---- shared prefixes
    @staticmethod
    def levels(tables: Sequence["BlockSparse"], groups: Sequence[ArrayLike]) -> "BlockSparse":
        """Tables over one pool, outermost shared prefix first, the requests' own suffixes last; their states are merged.

        groups[l] [rows of level l + 1]: row i of level l serves requests groups[l][i] .. groups[l][i+1]-1. The last level has one row a
        request and needs no group. Each level's keys follow those of the levels before it.
        """
        if not tables or len(groups) != len(tables) - 1:
            raise ConfigError(f"{len(tables)} levels need {len(tables) - 1} groups, got {len(groups)}")
        n, p = tables[-1].requests, tables[-1].page_tokens
        before = np.zeros(n, np.int32)
        parts: dict[str, list[Any]] = {name: [] for name in ("pages", "page", "position", "kept", "request", "requests")}
        for level, table in enumerate(tables):
            bounds = _int32(groups[level], "groups") if level < len(groups) else np.arange(n + 1, dtype=np.int32)
            _check_indptr(bounds, "groups")
            if len(bounds) != table.rows + 1 or bounds[-1] != n or table.page_tokens != p or table.rows != table.requests:
                raise ConfigError(
                    f"level {level}: {table.rows} rows of {table.page_tokens}-token pages, groups {bounds.tolist()}, {n} requests"
                )
            for row in range(table.rows):
                a, b = int(bounds[row]), int(bounds[row + 1])
                if a == b:
                    continue
                if (before[a:b] != before[a]).any():
                    raise ConfigError(f"level {level}, row {row}: requests {a}..{b - 1} have prefixes of different lengths")
                pages = table.page[table.row_page[row] : table.row_page[row + 1]]
                parts["pages"].append(len(pages))
                parts["page"].append(pages)
                parts["position"].append(before[a] + p * np.arange(len(pages), dtype=np.int32))
                parts["kept"].append(table.row_kv_tokens[row])
                parts["request"].append(a)
                parts["requests"].append(b - a)
                before[a:b] += table.row_kv_tokens[row]
        rows = len(parts["kept"])
        every = np.full(rows, -1, np.int32)

        def joined(name: str) -> Int:
            return np.concatenate([*parts[name], np.zeros(0, np.int32)]).astype(np.int32)

        return BlockSparse(
            p,
            np.concatenate([[0], np.cumsum(parts["pages"])]).astype(np.int32),
            joined("page"),
            joined("position"),
            np.array(parts["kept"], np.int32),
            np.array(parts["request"], np.int32),
            np.array(parts["requests"], np.int32),
            np.zeros(rows, np.int32),
            every,
            every,
            before,
            overlapping=len(tables) > 1,
        )

    def with_sequence_tokens(self, tokens: ArrayLike) -> "BlockSparse":
        """The same rows where sequences are longer than the keys kept here, for example on one of several machines."""
        return replace(self, sequence_tokens=_int32(tokens, "tokens"))
