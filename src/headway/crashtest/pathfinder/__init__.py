"""Pathfinder as its authors published it: behaviours from call stacks, groups by induced subgraphs, windows, crash states; POSIX and PM."""

from headway.crashtest.pathfinder.faithful import Faithful

__all__ = ["Faithful"]
