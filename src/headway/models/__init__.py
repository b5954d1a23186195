"""Model files: what they hold, how text becomes tokens, where they come from. Importing this room is cheap; its parts load when used."""

from typing import TYPE_CHECKING, Any

__all__ = ["Model", "open_model"]

if TYPE_CHECKING:
    from headway.models.model import Model, open_model


def __getattr__(name: str) -> Any:
    if name in __all__:
        from headway.models import model

        return getattr(model, name)
    raise AttributeError(f"module 'headway.models' has no attribute {name!r}")
