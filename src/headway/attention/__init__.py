"""Attention over paged keys and values. Must not know: models, scheduling, who owns a page.

Names load on first use: the engine's own step programs import `paged` and `pages` only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.attention.attention import Attention as Attention
    from headway.attention.block_sparse import BlockSparse as BlockSparse
    from headway.attention.graph import VariantError as VariantError
    from headway.attention.kv import PagedKV as PagedKV
    from headway.attention.library import (
        alibi as alibi,
    )
    from headway.attention.library import (
        alibi_slopes as alibi_slopes,
    )
    from headway.attention.library import (
        causal as causal,
    )
    from headway.attention.library import (
        custom as custom,
    )
    from headway.attention.library import (
        dilated as dilated,
    )
    from headway.attention.library import (
        document as document,
    )
    from headway.attention.library import (
        pack_masks as pack_masks,
    )
    from headway.attention.library import (
        prefix as prefix,
    )
    from headway.attention.library import (
        rope as rope,
    )
    from headway.attention.library import (
        sigmoid_attention as sigmoid_attention,
    )
    from headway.attention.library import (
        sink_tokens as sink_tokens,
    )
    from headway.attention.library import (
        soft_cap as soft_cap,
    )
    from headway.attention.library import (
        tree as tree,
    )
    from headway.attention.library import (
        window as window,
    )
    from headway.attention.plan import Plan as Plan
    from headway.attention.plan import PlanCapacityError as PlanCapacityError
    from headway.attention.plan import StalePlanError as StalePlanError
    from headway.attention.pool import RunPool as RunPool
    from headway.attention.price import AttentionLaw as AttentionLaw
    from headway.attention.state import State as State
    from headway.attention.state import merge as merge
    from headway.attention.state import merge_in_place as merge_in_place
    from headway.attention.state import merge_many as merge_many
    from headway.attention.trace import (
        exp as exp,
    )
    from headway.attention.trace import (
        exp2 as exp2,
    )
    from headway.attention.trace import (
        f32 as f32,
    )
    from headway.attention.trace import (
        i32 as i32,
    )
    from headway.attention.trace import (
        log as log,
    )
    from headway.attention.trace import (
        maximum as maximum,
    )
    from headway.attention.trace import (
        minimum as minimum,
    )
    from headway.attention.trace import (
        sigmoid as sigmoid,
    )
    from headway.attention.trace import (
        sqrt as sqrt,
    )
    from headway.attention.trace import (
        tanh as tanh,
    )
    from headway.attention.trace import (
        where as where,
    )
    from headway.attention.variant import Mask as Mask
    from headway.attention.variant import Variant as Variant

_HOMES = {
    "attention": ("Attention",),
    "block_sparse": ("BlockSparse",),
    "graph": ("VariantError",),
    "kv": ("PagedKV",),
    "library": (
        "alibi",
        "alibi_slopes",
        "causal",
        "custom",
        "dilated",
        "document",
        "pack_masks",
        "prefix",
        "rope",
        "sigmoid_attention",
        "sink_tokens",
        "soft_cap",
        "tree",
        "window",
    ),
    "plan": ("Plan", "PlanCapacityError", "StalePlanError"),
    "pool": ("RunPool",),
    "price": ("AttentionLaw",),
    "state": ("State", "merge", "merge_in_place", "merge_many"),
    "trace": ("exp", "exp2", "f32", "i32", "log", "maximum", "minimum", "sigmoid", "sqrt", "tanh", "where"),
    "variant": ("Mask", "Variant"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'headway.attention' has no attribute {name!r}")
    return getattr(import_module(f"headway.attention.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
