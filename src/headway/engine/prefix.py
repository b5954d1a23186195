"""Which full KV pages hold which tokens: a tree of pages keyed by a hash chain, verified by comparing the tokens themselves.

A page's identity is its parent's identity, its tokens and its rows' classes, under a root of (model, accuracy, KV dtype, salt).
Only the index lives here; owners and LRU order are the pool's (docs/engine.md, "Pages, prefixes, preemption").
"""

from dataclasses import dataclass
from hashlib import blake2b

from headway.core.errors import HeadwayError


class PrefixCorrupt(HeadwayError):
    """The prefix index contradicts itself: a bug, never a user's mistake."""


@dataclass(frozen=True, slots=True)
class CachedPage:
    """`tokens`: int32 little endian, a full page; `classes`: a byte a row (0 prompt, 1 generated), empty where classes do not matter."""

    page: int
    key: bytes
    parent: bytes
    tokens: bytes
    classes: bytes


def root_key(model: str, accuracy: str, kv_dtype: str, salt: str) -> bytes:
    """Start of a chain. `salt` separates tenants: equal prompts under different salts never share a page."""
    digest = blake2b(digest_size=16, person=b"headway/root")
    for part in (model, accuracy, kv_dtype, salt):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


def page_key(parent: bytes, tokens: bytes, classes: bytes) -> bytes:
    """Identity of a page's content, 16 bytes."""
    return blake2b(parent + tokens + classes, digest_size=16, person=b"headway/page").digest()


class PrefixCache:
    """Index of published pages. A page's parent is indexed for as long as the page is: owners hold whole prefixes and eviction goes
    from the end of a prefix, so a walk from the root reaches everything."""

    def __init__(self) -> None:
        self._children: dict[tuple[bytes, bytes], list[CachedPage]] = {}
        self._by_page: dict[int, CachedPage] = {}
        self.hit_pages = 0
        self.missed_pages = 0

    def __len__(self) -> int:
        return len(self._by_page)

    def find(self, parent: bytes, tokens: bytes, classes: bytes | None) -> CachedPage | None:
        """The page that continues `parent` with exactly `tokens`; with `classes` given, only one computed with the same row classes
        (a recomputed row keeps its class); with None, any (a new prompt may reuse text that a model wrote)."""
        for entry in self._children.get((parent, tokens), ()):
            if classes is None or entry.classes == classes:
                self.hit_pages += 1
                return entry
        self.missed_pages += 1
        return None

    def insert(self, page: int, parent: bytes, tokens: bytes, classes: bytes) -> CachedPage:
        """Index `page`, or return the entry that already holds this content (then `page` stays private to its owner)."""
        variants = self._children.setdefault((parent, tokens), [])
        for entry in variants:
            if entry.classes == classes:
                return entry
        entry = CachedPage(page, page_key(parent, tokens, classes), parent, tokens, classes)
        variants.append(entry)
        self._by_page[page] = entry
        return entry

    def forget(self, page: int) -> None:
        """The pool took this page back."""
        entry = self._by_page.pop(page)
        siblings = self._children[(entry.parent, entry.tokens)]
        siblings.remove(entry)
        if not siblings:
            del self._children[(entry.parent, entry.tokens)]

    def check(self) -> None:
        """Raise PrefixCorrupt unless every entry's key is right and both indices agree. For tests: O(pages)."""
        listed = [entry for variants in self._children.values() for entry in variants]
        if len(listed) != len(self._by_page):
            raise PrefixCorrupt(f"{len(listed)} entries in the tree, {len(self._by_page)} by page")
        for entry in listed:
            if self._by_page.get(entry.page) is not entry:
                raise PrefixCorrupt(f"page {entry.page} is listed under other content")
            if entry.key != page_key(entry.parent, entry.tokens, entry.classes):
                raise PrefixCorrupt(f"page {entry.page} has a wrong key")
