"""build_engine: what the engine process runs after its handshake. Loads the model, finds or measures its law, makes the Engine."""

from typing import get_args

from headway.core.errors import ConfigError
from headway.engine.calibrate import law_for
from headway.engine.engine import Engine, EngineModel
from headway.engine.frames import EngineSettings
from headway.engine.load import MAX_SEQUENCES, LoadedModel, Progress, load_model
from headway.engine.remeasure import QuickRemeasure
from headway.scheduling.messages import LawUpdate
from headway.scheduling.view import PolicyName


class LoadedEngine(Engine):
    """An Engine that owns its model's threads."""

    def __init__(self, engine_id: str, settings: EngineSettings, loaded: LoadedModel, progress: Progress) -> None:
        self._loaded = loaded
        program, model = loaded.program, loaded.model
        policy = next((name for name in get_args(PolicyName) if name == settings.policy), None)
        if policy is None:
            raise ConfigError(f"policy={settings.policy!r}: use headway or fcfs")
        law = law_for(loaded, progress)
        entry = EngineModel(program, model.stop_ids, program.accuracy, program.kv_dtype, law, f"{settings.model}/generate")
        super().__init__(
            engine_id,
            {settings.model: entry},
            min(MAX_SEQUENCES, settings.max_sequences),
            policy,
            threads=loaded.team.n_threads,
            memory_bytes=settings.kv_memory_bytes,
        )
        self._name = settings.model
        self._remeasure = QuickRemeasure(loaded, self._residents[settings.model].pool)

    def measure_in_s(self) -> float | None:
        return self._remeasure.due_in_s(self.view.models[self._name])

    def measure_more(self) -> list[LawUpdate]:
        law = self._remeasure.take()
        if law is None:
            return []
        update = LawUpdate(f"{self._name}/generate", law.to_params())
        self.apply(update)
        return [update]

    @property
    def loaded(self) -> LoadedModel:
        return self._loaded

    def execute_cpu_s(self) -> float:
        return self._loaded.team.cpu_s()

    def close(self) -> None:
        super().close()
        self._loaded.close()


def build_engine(settings: EngineSettings, engine_id: str, progress: Progress) -> LoadedEngine:
    loaded = load_model(settings, progress)
    try:
        return LoadedEngine(engine_id, settings, loaded, progress)
    except BaseException:
        loaded.close()
        raise
