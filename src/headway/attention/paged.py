"""PagedAttention: the two operations of a step program that touch keys and values, for one head geometry.

`append` rotates queries in place and writes rotated keys and values to their pages; `attend` reads pages through block tables. Which rows
attend to what is laid out natively at the start of an iteration (kernels.cpu.control.lay_out_items): tiles of TILE_TOKENS prompt tokens,
or one split of SPLIT_TOKENS keys each of a single row with a long context.
"""

import math
from dataclasses import dataclass

from headway.attention.pages import PagePool
from headway.core.errors import ConfigError
from headway.kernels.cpu import layout as at
from headway.kernels.cpu.attend import Attend, ClearStates, FinishState, FoldState, rows_at_once, scratch_bytes, state_bytes
from headway.kernels.cpu.compile import Kernel
from headway.kernels.cpu.emit import LOG2E
from headway.kernels.cpu.isa import Isa
from headway.kernels.cpu.rows import Append, Pairs, RotateQueries

Words = dict[int, int]
Kernels = dict[int, Kernel]


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Query and kv heads of a layer and how they are rotated."""

    heads: int
    kv_heads: int
    head_dim: int
    rope_dim: int
    rope_pairs: Pairs

    @property
    def group(self) -> int:
        """Query heads that share a kv head: they are computed together, so that keys and values are read once."""
        return self.heads // self.kv_heads


class PagedAttention:
    """Operation words and kernels of one head geometry on one ISA. `qkv_bytes`: distance of rows in the buffer of q, k and v."""

    def __init__(self, shape: HeadShape, isa: Isa, kv_dtype: str, qkv_bytes: int) -> None:
        if shape.heads % shape.kv_heads:
            raise ConfigError(f"{shape.heads} query heads do not divide evenly over {shape.kv_heads} kv heads")
        if shape.rope_pairs == "half" and (shape.rope_dim // 2) % isa.lanes:
            raise ConfigError(
                f"rope_dim {shape.rope_dim} with half-split pairs is not a multiple of {2 * isa.lanes}, which {isa.name} kernels need"
            )
        self.shape, self.isa, self.kv_dtype, self.qkv_bytes = shape, isa, kv_dtype, qkv_bytes
        self.groups = _head_groups(shape.group, rows_at_once(isa))
        self.tokens = max(1, rows_at_once(isa) // shape.group)
        self.state_bytes = state_bytes(isa, shape.head_dim)
        self.tile_states_bytes = 2 * at.TILE_TOKENS * shape.group * self.state_bytes
        self.scratch_bytes = 64 + scratch_bytes(isa, max(rows_at_once(isa), shape.group))

    def partials(self, max_segments: int, context_tokens: int) -> tuple[int, int]:
        """(slots, bytes of a slot) for the partial states of split rows."""
        parts = context_tokens // at.SPLIT_TOKENS + 1
        return max_segments * parts * self.shape.kv_heads, self.shape.group * self.state_bytes

    def append(self, pool: PagePool, layer: int, qkv: int, offsets: tuple[int, int], angles: int) -> tuple[Words, Kernels]:
        """`offsets`: bytes of keys and values in a qkv row. `angles`: table of [position][2 * rope_dim] float32."""
        s = self.shape
        words = {
            at.Q_QKV: qkv,
            at.Q_ROW_BYTES: self.qkv_bytes,
            at.Q_ANGLES: angles,
            at.Q_ANGLE_BYTES: 8 * s.rope_dim,
            at.Q_KV_HEADS: s.kv_heads,
            at.Q_KEYS: offsets[0],
            at.Q_VALUES: offsets[1],
            at.Q_HEAD_BYTES: 4 * s.head_dim,
            at.Q_POOL: pool.layer_address(layer),
            at.Q_HEAD_POOL_BYTES: pool.head_bytes,
            at.Q_PAGE_BYTES: pool.page_bytes,
        }
        scale = LOG2E / math.sqrt(s.head_dim)  # scores come out in the log2 domain
        return words, {
            at.Q_ROTATE: RotateQueries(s.heads, s.head_dim, s.rope_dim, s.rope_pairs, scale),
            at.Q_APPEND: Append(s.head_dim, s.rope_dim, s.rope_pairs, self.kv_dtype),
        }

    def attend(self, pool: PagePool, layer: int, qkv: int, out: int, out_bytes: int, partials: int) -> tuple[Words, Kernels]:
        s = self.shape
        words = {
            at.A_QUERIES: qkv,
            at.A_ROW_BYTES: self.qkv_bytes,
            at.A_POOL: pool.layer_address(layer),
            at.A_HEAD_POOL_BYTES: pool.head_bytes,
            at.A_PAGE_BYTES: pool.page_bytes,
            at.A_KV_HEADS: s.kv_heads,
            at.A_GROUP_HEADS: s.group,
            at.A_HEAD_BYTES: 4 * s.head_dim,
            at.A_OUT: out,
            at.A_OUT_BYTES: out_bytes,
            at.A_TOKENS: self.tokens,
            at.A_HEAD_GROUPS: len(self.groups),
            at.A_STATE_BYTES: self.state_bytes,
            at.A_PARTIALS: partials,
        }
        kernels: Kernels = {at.A_CLEAR: ClearStates(s.head_dim), at.A_FOLD: FoldState(s.head_dim), at.A_FINISH: FinishState(s.head_dim)}
        for i, heads in enumerate(self.groups):
            words[at.A_KERNELS + 3 * i] = heads
            for j, n in enumerate((self.tokens, 1)):
                kernels[at.A_KERNELS + 3 * i + 1 + j] = Attend(s.head_dim, n, heads, self.qkv_bytes, self.kv_dtype)
        return words, kernels


def _head_groups(group: int, most: int) -> list[int]:
    """Query heads of one kv head in pieces of at most `most`, as even as can be."""
    pieces = -(-group // most)
    if pieces > at.MAX_HEAD_GROUPS:
        raise ConfigError(f"{group} query heads share a kv head; this kernel handles up to {at.MAX_HEAD_GROUPS * most}")
    return [group // pieces + (i < group % pieces) for i in range(pieces)]
