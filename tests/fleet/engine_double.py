"""TEST DOUBLE of a model in a real engine process: the real Engine and scheduler over `ScriptedProgram`, which counts instead of computing.

A token is (last token + 1) % 90. Prompt tokens that matter: KILL makes the process kill itself, HANG makes it sleep for ever. Pass
`FACTORY` to LocalFleet.start.
"""

import os
import signal
import time
from collections.abc import Callable

import numpy as np

from headway.core.errors import ModelError
from headway.engine.engine import Engine, EngineModel
from headway.engine.frames import EngineSettings
from headway.engine.step import Batch
from headway.scheduling.messages import LawUpdate

FACTORY = "tests.fleet.engine_double:build"
VOCAB, KILL, HANG = 100, 98, 99
STEP_S = "HEADWAY_TEST_STEP_S"


class ScriptedProgram:
    vocab, context_tokens, page_tokens, pages = VOCAB, 1024, 16, 512
    max_rows, max_segments, max_sampled_rows = 256, 128, 64
    draw_kernels = None

    def __init__(self, step_s: float) -> None:
        self.logits = np.zeros((self.max_sampled_rows, VOCAB), np.float32)
        self.step_s = step_s

    def execute(self, batch: Batch) -> None:
        if KILL in batch.token_ids:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANG in batch.token_ids:
            time.sleep(1e6)
        if self.step_s:
            time.sleep(self.step_s)
        self.logits[:] = 0.0
        for i, row in enumerate(batch.sampled_rows):
            self.logits[i, (batch.token_ids[row] + 1) % 90] = 9.0

    def copy_page(self, source: int, target: int) -> None:
        pass

    def close(self) -> None:
        pass


class ScriptedEngine(Engine):
    def execute_cpu_s(self) -> float:
        """A millisecond an iteration, so that a test can tell what arrived."""
        return self.iterations / 1e3

    def measure_in_s(self) -> float | None:
        """A scripted program has no law to measure."""
        return None

    def measure_more(self) -> list[LawUpdate]:
        return []


def build(settings: EngineSettings, engine_id: str, progress: Callable[[str, float], None]) -> Engine:
    progress("weights", 1.0)
    if settings.model == "broken":
        raise ModelError("model 'broken' cannot be read (scripted)")
    if settings.model == "dying":
        os.kill(os.getpid(), signal.SIGKILL)
    program = ScriptedProgram(float(os.environ.get(STEP_S, "0")))
    return ScriptedEngine(engine_id, {settings.model: EngineModel(program, frozenset({95}))}, 64, settings.policy)
