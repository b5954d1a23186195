"""Persistence models as data, and the order, forcing and tearing rules they choose from."""

from headway.crashtest.models.model import PersistenceModel, builtin, load

MODELS: dict[str, PersistenceModel] = builtin()

__all__ = ["MODELS", "PersistenceModel", "builtin", "load"]
