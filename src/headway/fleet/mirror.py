"""What the front believes an engine's prefix cache holds, so that an Arrive can say how many prompt tokens need no prefill.

A belief, not the truth: the engine answers with `started`. Chains of 64-bit hashes of full pages; nothing here is stored or sent.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable

from headway.engine.wire import Output
from headway.scheduling.messages import EngineSpec


class PrefixMirror:
    """LRU set of page chains of one engine and model; at most `capacity_pages`."""

    def __init__(self, page_tokens: int, capacity_pages: int) -> None:
        self._page_tokens = page_tokens
        self._capacity_pages = capacity_pages
        self._pages: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def chain(self, token_ids: list[int], cache_salt: str) -> tuple[int, ...]:
        """One hash a full page, each covering everything before it. Python salts `hash` per process: useless outside, and meant so."""
        data = array("i", token_ids).tobytes()
        step = self._page_tokens * 4
        link = hash(cache_salt)
        links: list[int] = []
        for start in range(0, len(data) - step + 1, step):
            link = hash((link, data[start : start + step]))
            links.append(link)
        return tuple(links)

    def cached_tokens(self, chain: tuple[int, ...], prompt_tokens: int) -> int:
        """Tokens of the longest known prefix; at least one prompt token is always computed."""
        known = 0
        for link in chain:
            if link not in self._pages:
                break
            known += 1
        return min(known * self._page_tokens, max(0, prompt_tokens - 1) // self._page_tokens * self._page_tokens)

    def admit(self, chain: tuple[int, ...]) -> None:
        """The engine has computed these pages. The head of a chain is touched last: a chain is dropped from its tail."""
        for link in reversed(chain):
            self._pages[link] = None
            self._pages.move_to_end(link)
        self.drop(len(self._pages) - self._capacity_pages)

    def drop(self, pages: int) -> None:
        """The engine dropped this many pages; it drops least recently used ones, so we do."""
        for _ in range(min(pages, len(self._pages))):
            self._pages.popitem(last=False)


class Mirrors:
    """The mirrors of all engines and models, and the chains of requests whose prompt has not been computed yet."""

    def __init__(self) -> None:
        self._mirrors: dict[tuple[str, str], PrefixMirror] = {}
        self._chains: dict[int, tuple[int, ...]] = {}

    @property
    def waiting(self) -> int:
        """Requests whose first output has not come."""
        return len(self._chains)

    def engine_up(self, engine_id: str, spec: EngineSpec) -> None:
        """A fresh engine holds nothing."""
        for model in spec.models:
            self._mirrors[engine_id, model.model] = PrefixMirror(model.page_tokens, model.pages)

    def cached_tokens(self, id: int, model: str, token_ids: list[int], cache_salt: str, engine_ids: Iterable[str]) -> dict[str, int]:
        """For an Arrive: prompt tokens that each engine is believed to hold."""
        cached: dict[str, int] = {}
        for engine_id in engine_ids:
            mirror = self._mirrors.get((engine_id, model))
            if mirror is not None:
                chain = self._chains.get(id) or mirror.chain(token_ids, cache_salt)
                self._chains[id] = chain
                cached[engine_id] = mirror.cached_tokens(chain, len(token_ids))
        return cached

    def learn(self, engine_id: str, model: str, output: Output) -> None:
        """The first tokens of a request prove that its prompt has been computed."""
        chain = self._chains.pop(output.id, None)
        if chain is not None or output.pages_dropped:
            mirror = self._mirrors[engine_id, model]
            mirror.drop(output.pages_dropped)
            if chain is not None and output.token_ids:
                mirror.admit(chain)

    def forget(self, id: int) -> None:
        self._chains.pop(id, None)
