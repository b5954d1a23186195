"""Puts crash images before oracles: images are written to memory, several fork servers judge at once, equal questions are asked once."""

import os
import select
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from headway.crashtest.forkserver import ForkServer
from headway.crashtest.oracle import DEFAULT_TIMEOUT_S, Oracle, Verdict
from headway.crashtest.scratch import scratch_directory
from headway.crashtest.tree import Tree

Tag = TypeVar("Tag")


class Judges(Generic[Tag]):
    """`submit(tag, tree, ...)` hands a state to a free server and returns what finished meanwhile; `drain` waits for the rest.

    `load()` makes the oracle, in each server process. Verdicts do not depend on which server gave them.
    """

    def __init__(self, load: Callable[[], Oracle], *, workers: int = 0, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        count = workers or max(1, len(os.sched_getaffinity(0)))
        self._scratch = scratch_directory("check")
        self._servers: list[ForkServer] = []
        self._busy: dict[ForkServer, tuple[Tag, Path]] = {}
        self._number = 0
        self._answers: dict[tuple[bytes, tuple[str, ...], tuple[str, ...]], Verdict] = {}
        try:
            for _ in range(count):
                self._servers.append(ForkServer(load, timeout_s=timeout_s))
        except BaseException:
            self.close()
            raise

    def submit(self, tag: Tag, tree: Tree, acks: Sequence[str], begun: Sequence[str]) -> list[tuple[Tag, Verdict]]:
        """Waits for a free server if there is none."""
        done = self._collect(wait=len(self._busy) == len(self._servers))
        server = next(server for server in self._servers if server not in self._busy)
        self._number += 1
        directory = self._scratch / str(self._number)
        tree.write(directory)
        self._busy[server] = (tag, directory)
        server.submit(directory, acks, begun)
        return done

    def drain(self) -> Iterator[tuple[Tag, Verdict]]:
        while self._busy:
            yield from self._collect(wait=True)

    def ask(self, tag: Tag, tree: Tree, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
        """One state, now; remembers answers by image and markers."""
        key = (tree.digest(), tuple(acks), tuple(begun))
        if key not in self._answers:
            self.submit(tag, tree, acks, begun)
            ((_, self._answers[key]),) = self.drain()
        return self._answers[key]

    def _collect(self, *, wait: bool) -> list[tuple[Tag, Verdict]]:
        if not self._busy:
            return []
        ready, _, _ = select.select(list(self._busy), [], [], None if wait else 0)
        done = []
        for server in ready:
            verdict = server.result()
            tag, directory = self._busy.pop(server)
            shutil.rmtree(directory, ignore_errors=True)
            done.append((tag, verdict))
        return done

    def close(self) -> None:
        """Ends the servers and removes every image."""
        for server in self._servers:
            server.close()
        self._servers = []
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
