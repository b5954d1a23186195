"""Crash-consistency testing of any program by representative crash states, after Pathfinder (arXiv 2503.01390)."""

from headway.crashtest.markers import ack, begin

__all__ = ["ack", "begin"]
