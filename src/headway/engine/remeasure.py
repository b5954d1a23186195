"""A quick law that proved wrong is measured again while the engine has nothing to do, one shape at a time."""

import time

from headway.core.law import IterationLaw
from headway.core.machine import QuietWatch
from headway.engine.calibrate import QUICK, QUICK_LAW, QUICK_REPEATS, Measurement, fitted, save
from headway.engine.load import LoadedModel
from headway.engine.pool import PagePool
from headway.scheduling.view import ModelView

AGAIN_AFTER_S = 60.0
"""Between two measurements: on a machine whose load comes and goes every law is wrong now and then."""
SCRATCH_PAGES = 256


class QuickRemeasure:
    """Belongs to one engine. Laws of `headway calibrate` are left alone: the online correction follows the day's drift, and a quick law
    would be a worse base for it."""

    def __init__(self, loaded: LoadedModel, pool: PagePool) -> None:
        self._loaded = loaded
        self._pool = pool
        self._measurement: Measurement | None = None
        self._watch: QuietWatch | None = None
        self._not_before_s = 0.0

    def wanted(self, view: ModelView) -> bool:
        """Whether `take` should be called in the engine's next idle moment."""
        if self._measurement is not None:
            return True
        return (
            view.law.made_by == QUICK_LAW and view.correction.alarm and time.monotonic() >= self._not_before_s and self._pool.free_pages > 0
        )

    def take(self) -> IterationLaw | None:
        """Times one shape (some 5 to 250 ms); the new law when that was the last. Only between iterations: it uses free pages."""
        if self._measurement is None:
            self._measurement, self._watch = Measurement(self._loaded.program, QUICK, QUICK_REPEATS), QuietWatch()
        scratch = self._pool.allocate(min(SCRATCH_PAGES, self._pool.free_pages))
        try:
            if scratch:
                self._measurement.take(scratch)
        finally:
            self._pool.release(scratch)
        if self._measurement.fraction < 1.0:
            return None
        law = fitted(self._loaded, self._measurement.points(), QUICK_LAW)
        if self._watch is not None and self._watch.quiet().is_quiet:
            save(self._loaded, law)
        self._measurement = None
        self._not_before_s = time.monotonic() + AGAIN_AFTER_S
        return law
