"""PagePool: keys and values of all layers in packed 16-token pages, head-major. Who owns which page is the engine's business.

Address of 16-token page p of (layer, kv head): one contiguous run a head, so consecutive page numbers are contiguous memory
(docs/attention.md). A page of the engine is `page_tokens`/16 of these.
"""

import numpy as np

from headway.kernels.cpu.layout import PAGE_TOKENS
from headway.kernels.cpu.memory import Arena, address
from headway.kernels.cpu.rows import page_bytes


class PagePool:
    """`pages` pages of `page_tokens` tokens. Memory is touched here: first touch inside decode steps cost the prototype 1.1 ms a token."""

    def __init__(self, layers: int, kv_heads: int, head_dim: int, pages: int, page_tokens: int) -> None:
        self.kv_heads, self.page_tokens, self.pages = kv_heads, page_tokens, pages
        self.page_bytes = page_bytes(head_dim)
        self.head_bytes = pages * page_tokens // PAGE_TOKENS * self.page_bytes
        self.n_bytes = layers * kv_heads * self.head_bytes
        self._arena = Arena(self.n_bytes + 4096)
        memory = self._arena.take(self.n_bytes, np.uint8, 4096)
        memory.fill(0)
        self._pages = memory.reshape(layers, kv_heads, pages, -1)
        self._address = address(memory)

    def layer_address(self, layer: int) -> int:
        return self._address + layer * self.kv_heads * self.head_bytes

    def copy_page(self, source: int, target: int) -> None:
        """All layers and heads of one page."""
        self._pages[:, :, target] = self._pages[:, :, source]


def bytes_per_page(layers: int, kv_heads: int, head_dim: int, page_tokens: int) -> int:
    """What one page of `page_tokens` tokens takes over all layers."""
    return layers * kv_heads * page_bytes(head_dim) * (page_tokens // PAGE_TOKENS)
