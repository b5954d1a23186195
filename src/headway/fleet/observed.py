"""What the front has seen of its engines, for people and dashboards. Nothing decides by it: that is the router's, over its own state."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from headway.scheduling.messages import EngineSpec, EngineUp, LawUpdate, Report


@dataclass(slots=True)
class Observed:
    """Filled by the fleet as frames arrive."""

    specs: dict[str, EngineSpec] = field(default_factory=dict)
    laws: dict[str, dict[str, object]] = field(default_factory=dict)
    report: Report | None = None
    pages: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """model -> used, cached, total"""
    pace_ns: int = 0
    tokens_total: int = 0
    execute_cpu_s: dict[str, float] = field(default_factory=dict)

    def engine_up(self, message: EngineUp) -> None:
        self.execute_cpu_s[message.engine_id] = 0.0
        self.specs[message.engine_id] = message.spec
        self._all_free(message.spec)

    def engine_down(self, engine_id: str) -> None:
        if engine_id in self.specs:
            self._all_free(self.specs[engine_id])

    def _all_free(self, spec: EngineSpec) -> None:
        for model in spec.models:
            self.pages[model.model] = (0, 0, model.pages)

    def law(self, message: LawUpdate) -> None:
        self.laws[message.law_id] = message.params

    def reported(self, report: Report) -> None:
        self.report = report
        self.pages.update(report.pages)

    def stats(self) -> dict[str, Any]:
        """`kv_pages_used` are held by requests, `kv_pages_cached` free but still known; `execute_cpu_s` is CPU inside the step program, all
        threads, since the engine started: a second old at most, exact when idle."""
        report = self.report
        return {
            "kv_pages_total": sum(total for _, _, total in self.pages.values()),
            "kv_pages_used": sum(used for used, _, _ in self.pages.values()),
            "kv_pages_cached": sum(cached for _, cached, _ in self.pages.values()),
            "law": self.laws,
            "law_made_by": {law_id: str(law.get("made_by", "")) for law_id, law in self.laws.items()},
            "slack_ms": None if report is None else report.slack_ns / 1e6,
            "iteration_ms": None if report is None else report.dt_ns / 1e6,
            "pace_ms": self.pace_ns / 1e6 if self.pace_ns else None,
            "iterations": 0 if report is None else report.iteration,
            "tokens_total": self.tokens_total,
            "execute_cpu_s": sum(self.execute_cpu_s.values()),
        }

    def models(self) -> list[dict[str, Any]]:
        """One dict a model: model, accuracy, kv_dtype, context_tokens, page_tokens, pages, laws (kind -> law id)."""
        return [msgspec.to_builtins(spec) for engine in self.specs.values() for spec in engine.models]
