"""Recipes of known programs: a workload with markers and the check of what it must keep. `headway crashtest targets` lists them."""

from headway.crashtest.targets.target import Target

__all__ = ["Target"]
