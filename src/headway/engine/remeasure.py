"""A quick law that proved wrong, or was measured on a busy machine, is measured again while the engine has nothing to do.

The latter also because a law that is much too slow refuses everything, and then nothing runs that could correct it.
"""

import time

from headway.core.law import IterationLaw
from headway.core.machine import QuietWatch
from headway.engine.calibrate import QUICK, QUICK_BUSY, QUICK_LAW, QUICK_LIMIT_S, QUICK_REPEATS, Measurement, keep_quick
from headway.engine.load import LoadedModel
from headway.engine.pool import PagePool
from headway.scheduling.view import ModelView

AGAIN_FIRST_S, AGAIN_LIMIT_S = 60.0, 3600.0
"""Before the first measurement, then twice as long each time: where others never rest, measuring must not become a load of its own."""
LOOK_S, BEGIN_SHARE = 1.0, 0.25
"""It begins only when others used less than this share of the cores for so long: it must not disturb them, nor learn from them."""
SCRATCH_PAGES = 256


class QuickRemeasure:
    """Belongs to one engine. Laws of `headway calibrate` are left alone: the online correction follows the day's drift, and a quick law
    would be a worse base for it."""

    def __init__(self, loaded: LoadedModel, pool: PagePool) -> None:
        self._loaded = loaded
        self._pool = pool
        self._measurement: Measurement | None = None
        self._look: QuietWatch | None = None
        self._watch = QuietWatch()
        self._wait_s = AGAIN_FIRST_S
        self._not_before_s = time.monotonic() + self._wait_s

    def due_in_s(self, view: ModelView) -> float | None:
        """In how many seconds `take` should be called, if the engine is idle then; None = the law is good, or no page is free."""
        if not self._pool.free_pages:
            return None
        if self._measurement is not None:
            return 0.0
        made_by = view.law.made_by
        doubtful = made_by == QUICK_BUSY or (made_by == QUICK_LAW and view.correction.alarm)
        return max(0.0, self._not_before_s - time.monotonic()) if doubtful else None

    def take(self) -> IterationLaw | None:
        """Times one shape (some 5 to 250 ms); the new law when that was the last. Only between iterations: it uses free pages. Before the
        first it looks, in two calls, whether others rest."""
        if self._measurement is None:
            if not self._others_rest():
                return None
            self._measurement, self._watch = Measurement(self._loaded.program, QUICK, QUICK_REPEATS), QuietWatch()
        scratch = self._pool.allocate(min(SCRATCH_PAGES, self._pool.free_pages))
        try:
            self._measurement.take(scratch)
        finally:
            self._pool.release(scratch)
        if not self._measurement.done(QUICK_LIMIT_S):
            return None
        law = keep_quick(self._loaded, self._measurement.points(), self._watch)
        self._measurement = None
        self._wait_s = min(2 * self._wait_s, AGAIN_LIMIT_S)
        self._not_before_s = time.monotonic() + self._wait_s
        return law

    def _others_rest(self) -> bool:
        now_s = time.monotonic()
        if self._look is None:
            self._look = QuietWatch()
            self._not_before_s = now_s + LOOK_S
            return False
        seen, self._look = self._look.quiet(), None
        if seen.others_share + seen.steal_share < BEGIN_SHARE:
            return True
        self._not_before_s = now_s + AGAIN_FIRST_S
        return False
