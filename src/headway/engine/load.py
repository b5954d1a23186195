"""From settings to a model ready to run: file, packed weights, team, step program. What `build`, `calibrate` and `LLM` share."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from headway.attention.pages import bytes_per_page
from headway.core.errors import ConfigError
from headway.core.paths import kernels_dir
from headway.engine.frames import EngineSettings
from headway.engine.program import MODE_KV, Accuracy, CpuProgram, KvDtype, Limits
from headway.engine.weights import PackedWeights
from headway.kernels.cpu import isa
from headway.kernels.cpu.objects import ObjectCache
from headway.kernels.cpu.team import Team
from headway.models.architecture import LlamaConfig
from headway.models.model import Model, open_model

Progress = Callable[[str, float], None]
"""Called with what is loading ("weights", "kernels", "law") and the fraction done in [0, 1]."""
MAX_ROWS = 512  # of one iteration; a chunk of this size is what prefill speed needs, more only makes iterations longer
MAX_SEQUENCES = 64  # running at once; the router holds the others


@dataclass(slots=True)
class LoadedModel:
    """A model in memory with its team. `close` ends the threads."""

    model: Model
    team: Team
    program: CpuProgram
    law_key: str

    def close(self) -> None:
        self.program.close()
        self.team.close()


def available_cores() -> int:
    return len(os.sched_getaffinity(0))


def load_model(settings: EngineSettings, progress: Progress = lambda what, fraction: None) -> LoadedModel:
    """Raises ModelError, ConfigError or UnsupportedMachine with a remedy."""
    level = isa.select()
    threads = settings.threads or available_cores()
    if threads > available_cores():
        raise ConfigError(f"threads={threads}: this process may use {available_cores()} cores; more threads would only wait for each other")
    if settings.accuracy != "exact" and settings.accuracy != "fast":
        raise ConfigError(f"accuracy={settings.accuracy!r}: use one of {', '.join(MODE_KV)}")
    accuracy: Accuracy = settings.accuracy
    if settings.kv_dtype not in ("", "f16", "bf16"):
        raise ConfigError(f"kv_dtype={settings.kv_dtype!r}: this engine stores keys and values as f16 or bf16")
    kv_dtype = cast(KvDtype, settings.kv_dtype or MODE_KV[accuracy])
    model = open_model(settings.model)
    limits = _limits(model.config, settings)
    progress("weights", 0.0)
    weights = PackedWeights(model.config, model.file.tensors, workers=threads, progress=lambda done, n: progress("weights", done / n))
    cache = ObjectCache(kernels_dir(), level)
    progress("kernels", 0.0)
    team = Team(threads, cache)
    try:
        program = CpuProgram(
            weights,
            team,
            cache,
            limits,
            accuracy=accuracy,
            kv_dtype=kv_dtype,
            rope_factors=model.rope_freq_factors,
            progress=lambda done, n: progress("kernels", done / n),
        )
    except BaseException:
        team.close()
        raise
    key = "-".join((model.fingerprint, cache.key, accuracy, kv_dtype, str(threads)))
    return LoadedModel(model, team, program, key)


def _limits(config: LlamaConfig, settings: EngineSettings) -> Limits:
    page = settings.page_tokens
    if page % 16:
        raise ConfigError(f"page_tokens={page}: this engine's pages are multiples of 16 tokens")
    per_page = bytes_per_page(config.layers, config.kv_heads, config.head_dim, page)
    pages = settings.kv_memory_bytes // per_page
    if pages < 4:
        raise ConfigError(
            f"kv-memory of {settings.kv_memory_bytes} bytes holds {pages} pages of {per_page} bytes; give at least {4 * per_page}"
        )
    wanted = settings.context_tokens or config.context_tokens
    if wanted > config.context_tokens:
        raise ConfigError(f"context of {wanted} tokens: {config.name} was trained for {config.context_tokens}")
    sequences = min(MAX_SEQUENCES, settings.max_sequences)
    return Limits(
        pages=pages,
        page_tokens=page,
        context_tokens=min(wanted, pages * page),
        max_rows=MAX_ROWS,
        max_segments=2 * sequences,
        max_sampled_rows=sequences,
    )
