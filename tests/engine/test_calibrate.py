"""Laws: what is kept of a measurement, and when one is made again."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.engine.doubles import POISON, HistoryProgram

from headway.core.config import ServeConfig
from headway.core.law import IterationLaw, OnlineCorrection
from headway.core.machine import Quiet
from headway.core.paths import laws_dir
from headway.engine import calibrate, loop, remeasure
from headway.engine.frames import Stop
from headway.engine.pool import PagePool


@pytest.fixture
def loaded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A LoadedModel as far as measuring looks at it, in a home of its own."""
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    program: Any = HistoryProgram(context_tokens=4096, pages=300, max_rows=512, max_segments=128, max_sampled_rows=64)
    program.accuracy, program.kv_dtype, program.isa = "fast", "bf16", SimpleNamespace(name="avx2")
    team = SimpleNamespace(n_threads=2)
    return SimpleNamespace(model=SimpleNamespace(name="tiny"), program=program, team=team, law_key="tiny-key", close=lambda: None)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """others[0] = share of the cores that other processes use while something is measured."""
    share = [0.0]

    class Watch:
        def quiet(self) -> Quiet:
            return Quiet(1.0, share[0], 0.0)

    for module in (calibrate, remeasure):
        monkeypatch.setattr(module, "QuietWatch", Watch)
    return share


def test_the_quick_grid_sees_decode_batches_of_two_and_sixteen_rows(loaded: Any) -> None:
    points = calibrate.measure(loaded.program, calibrate.QUICK, 1)
    assert {1, 2, 8, 16} <= {p.decode_rows for p in points if not p.chunk_tokens}


def test_a_measurement_out_of_time_ends_once_every_shape_was_seen(loaded: Any) -> None:
    assert len(calibrate.measure(loaded.program, calibrate.QUICK, 50, limit_s=0.0)) == len(calibrate.QUICK)
    measurement = calibrate.Measurement(loaded.program, calibrate.QUICK, 50)
    while not measurement.done(0.0):
        measurement.take(range(300))
    assert measurement.fraction == 1 / 50


def test_a_quick_law_is_kept_only_when_it_was_measured_on_a_quiet_machine(loaded: Any, others: list[float]) -> None:
    others[0] = 0.3
    law = calibrate.law_for(loaded, lambda what, fraction: None)
    assert law.made_by == "quick, machine busy"
    assert calibrate.saved_law(loaded) is None

    others[0] = 0.0
    law = calibrate.law_for(loaded, lambda what, fraction: None)
    assert law.made_by == "quick"
    assert calibrate.saved_law(loaded) == law
    assert calibrate.law_for(loaded, lambda what, fraction: pytest.fail("measured again")) == law


def test_calibrate_quick_says_that_a_law_of_a_busy_machine_is_not_kept_and_never_replaces_a_calibrated_one(
    loaded: Any, others: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "load_model", lambda settings, progress: loaded)
    said: list[str] = []
    others[0] = 0.3
    calibrate.calibrate(ServeConfig(), quick=True, progress=said.append)
    assert any("30% of the cores" in line and "not kept" in line for line in said)
    assert not list(laws_dir().glob("*.json"))

    best = dataclasses.replace(calibrate.fitted(loaded, calibrate.measure(loaded.program, calibrate.QUICK, 1), "calibrate"), d1=0.125)
    calibrate.save(loaded, best)
    others[0] = 0.0
    assert calibrate.calibrate(ServeConfig(), quick=True, progress=said.append) == best
    assert calibrate.saved_law(loaded) == best and "stays" in said[-1]


def _view(law: IterationLaw, wrong: bool) -> Any:
    correction = OnlineCorrection.of(law)
    if wrong:
        correction.s = 0.5 * law.s
    return SimpleNamespace(law=law, correction=correction)


@pytest.mark.parametrize(
    ("made_by", "wrong", "again"),
    [
        ("quick", False, False),
        ("quick", True, True),
        ("quick, machine busy", False, True),
        ("calibrate", True, False),
    ],
)
def test_a_law_is_measured_again_when_it_is_quick_and_doubtful(loaded: Any, made_by: str, wrong: bool, again: bool) -> None:
    pool = PagePool(loaded.program.pages, 16, lambda page: None)
    law = IterationLaw(d1=1e-3, p1=1e-3, made_by=made_by)
    due_in_s = remeasure.QuickRemeasure(loaded, pool).due_in_s(_view(law, wrong))
    assert (due_in_s is not None) == again


def test_measuring_again_leaves_pages_in_use_alone_and_waits_twice_as_long_for_the_next_time(loaded: Any, others: list[float]) -> None:
    pool = PagePool(loaded.program.pages, 16, lambda page: None)
    mine = pool.allocate(20)
    quick = IterationLaw(d1=1e-3, p1=1e-3, made_by="quick")
    again = remeasure.QuickRemeasure(loaded, pool)
    first_wait_s = again.due_in_s(_view(quick, wrong=True))
    assert again.take() is None and again.due_in_s(_view(quick, wrong=True)), "it looks for a second first"
    others[0] = 0.4
    assert again.take() is None and again.due_in_s(_view(quick, wrong=False)) is None, "others work: another time"
    others[0] = 0.0
    assert again.take() is None
    law = again.take()
    assert again.due_in_s(_view(quick, wrong=False)) == 0.0, "what was begun is brought to its end"
    while law is None:
        free = pool.free_pages
        law = again.take()
        assert pool.free_pages == free
    assert law.made_by == "quick" and law != quick
    assert calibrate.saved_law(loaded) == law
    assert np.all(loaded.program.kv[mine] == POISON)
    second_wait_s = again.due_in_s(_view(quick, wrong=True))
    assert first_wait_s and second_wait_s and second_wait_s > 1.5 * first_wait_s


def test_an_idle_engine_measures_in_pieces_and_a_message_is_heard_between_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MEASURE_AFTER_S", 0.0)
    done: list[str] = []
    sent: list[object] = []

    class Channel:
        def drain(self) -> list[tuple[int, object]]:
            done.append("listen")
            return [(1, Stop())] if "wait" in done else []

        def paused(self) -> bool:
            return False

        def wait(self, timeout_s: float | None) -> None:
            done.append("wait" if timeout_s is None else "doze")

        def send(self, *messages: object) -> None:
            sent.extend(messages)

    class Engine:
        spec, boot, applied_seq, tape = None, 0, 0, None
        pieces = 3

        def law_updates(self) -> list[object]:
            return []

        def step(self, now_ns: int, clock: object) -> None:
            return None

        def measure_in_s(self) -> float | None:
            return 0.0 if self.pieces else None

        def measure_more(self) -> list[str]:
            self.pieces -= 1
            done.append("measure")
            return [] if self.pieces else ["law"]

    channel: Any = Channel()
    engine: Any = Engine()
    loop.EngineLoop(channel, engine, "engine-0", 1, record=False).run()
    assert done == ["listen", "measure", "listen", "measure", "listen", "measure", "listen", "wait", "listen"]
    assert sent[1:] == ["law"]
