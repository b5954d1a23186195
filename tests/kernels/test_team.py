"""Team: every thread meets, threads end, nobody spins on when idle, no allocation in an iteration."""

import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.engine.programs import Built, Span, batch, build
from tests.support import tiny_model

from headway.core.errors import ConfigError
from headway.core.paths import kernels_dir
from headway.kernels.cpu import isa
from headway.kernels.cpu.objects import ObjectCache
from headway.kernels.cpu.team import Team


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    path = tmp_path_factory.mktemp("team") / "m.gguf"
    tiny_model(path, seed=1)
    made = build(path, threads=3)
    yield made
    made.close()


def test_threads_end_with_the_team() -> None:
    before = threading.active_count()
    team = Team(4, ObjectCache(kernels_dir(), isa.select()))
    assert threading.active_count() == before + 3
    assert len(team.native_ids()) == 3
    team.close()
    team.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [0, 257])
def test_a_team_of_impossible_size_is_refused(threads: int) -> None:
    with pytest.raises(ConfigError, match=str(threads)):
        Team(threads, ObjectCache(kernels_dir(), isa.select()))


def test_ten_thousand_barriers(built: Built) -> None:
    for _ in range(10_000):
        built.program.meet()


def test_an_iteration_allocates_nothing(built: Built) -> None:
    made, _ = batch([Span(0, 30, [5], generated=True), Span(1, 0, range(3, 40))], np.arange(64).reshape(2, 32), sampled=[0])
    for _ in range(5):
        built.program.execute(made)
    tracemalloc.start()
    first, _ = tracemalloc.get_traced_memory()
    for _ in range(50):
        built.program.execute(made)
    last, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last - first < 2000  # tracemalloc's own bookkeeping; one float32 row of logits alone would be 1,280 bytes an iteration


def test_idle_threads_sleep(built: Built) -> None:
    """Counts context switches by the kernel's own books: an idle helper wakes for its one-second timeout only."""
    built.program.meet()
    time.sleep(0.05)

    def cpu_ns() -> int:
        return sum(int(Path(f"/proc/self/task/{id_}/schedstat").read_text().split()[0]) for id_ in built.team.native_ids())

    before = cpu_ns()
    time.sleep(0.3)
    assert cpu_ns() - before < 20_000_000
