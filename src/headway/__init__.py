"""Headway: one engine for a machine's GenAI work that knows every request's deadlines.

`from headway import LLM` gives the library without a server; everything else lives in the rooms (docs/architecture.md).
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LLM", "__version__"]

if TYPE_CHECKING:
    from headway.fleet.llm import LLM


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from headway.fleet.llm import LLM

        return LLM
    raise AttributeError(f"module 'headway' has no attribute {name!r}")
