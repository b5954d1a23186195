"""View: everything `iteration.compose` knows about one engine. Plain data; changed by `iteration.apply` alone; restores bit for bit."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, cast

from headway.core.errors import ConfigError
from headway.core.law import IterationLaw, OnlineCorrection, Residual
from headway.core.slo import Slo, SloClass, class_default, to_ns
from headway.scheduling import learned
from headway.scheduling.kernels import GUESSED_LAW, clip_margin, pages_for
from headway.scheduling.learned import ForgetfulHistogram
from headway.scheduling.messages import EngineSpec, ModelSpec

SCHEMA = "headway.view/2"
PolicyName = Literal["fcfs", "headway"]
# Of the distribution of output lengths (learned.py); the quantile is ours. Wrong promises cost a preemption, not an error.
PROMISE_QUANTILE = 0.8
# The freeze test allows 55 ms at a 50 ms pace, over the ~80 iterations of a long prompt: the 95 % quantile alone would let four of them
# stick out. The tail may cost at most a sixth of the pace.
TAIL_STRETCH = 1.1
TAIL_MARGIN_HIGH = 1.2
POLICIES: tuple[PolicyName, ...] = ("fcfs", "headway")


@dataclass(slots=True, eq=False)
class SequenceView:
    """One sequence. `ttft_ns`/`tpot_ns` are the plan (-1 = nothing due): an `e2e_s` promise is split in halves, half to read the
    prompt and half to write `max_tokens`. `missed`: some due time has passed unmet; from then on only its pace counts."""

    id: int
    model: str
    kind: str
    slo: Slo
    order: int
    arrival_ns: int
    prompt_tokens: int
    max_tokens: int
    ttft_ns: int
    tpot_ns: int
    prompt_left: int
    recompute_left: int = 0
    emitted: int = 0
    pages_held: int = 0
    started: bool = False
    relegated: bool = False
    missed: bool = False
    first_ns: int = -1
    last_ns: int = -1

    @property
    def left(self) -> int:
        """Rows to prefill before the next token can be sampled; 0 = decoding."""
        return self.prompt_left + self.recompute_left

    @property
    def context_tokens(self) -> int:
        """Tokens whose K/V are in the cache: of a decoding sequence all but its last sampled token."""
        left = self.prompt_left + self.recompute_left
        return self.prompt_tokens + self.emitted - (left or 1)

    @property
    def idle_only(self) -> bool:
        """Runs in what others leave."""
        return self.relegated or self.slo.cls == "background"

    def first_due_ns(self) -> int:
        """Due time of token 0, for ordering also when none is promised (class default, `batch` for background)."""
        if self.ttft_ns >= 0:
            return self.arrival_ns + self.ttft_ns
        cls: SloClass = "batch" if self.slo.cls == "background" else self.slo.cls
        return self.arrival_ns + to_ns(class_default(cls).ttft_s or 0.0)

    def next_due_ns(self) -> int:
        """When the next token is due; -1 = never. After a miss the pace restarts at the last token."""
        if self.emitted == 0:
            return self.arrival_ns + self.ttft_ns if self.ttft_ns >= 0 else -1
        if self.tpot_ns < 0:
            return -1
        if self.missed:
            return self.last_ns + self.tpot_ns
        start = self.arrival_ns + self.ttft_ns if self.ttft_ns >= 0 else self.first_ns
        return start + self.emitted * self.tpot_ns


def plan(slo: Slo, max_tokens: int) -> tuple[int, int]:
    """(ttft_ns, tpot_ns) the scheduler works to; -1 = nothing due."""
    if slo.cls == "background":
        return -1, -1
    ttft_ns = -1 if slo.ttft_s is None else to_ns(slo.ttft_s)
    tpot_ns = -1 if slo.tpot_s is None else to_ns(slo.tpot_s)
    if slo.e2e_s is not None:
        half_ns = to_ns(slo.e2e_s) // 2
        ttft_ns = half_ns if ttft_ns < 0 else min(ttft_ns, half_ns)
        pace_ns = half_ns // max(max_tokens, 1)
        tpot_ns = pace_ns if tpot_ns < 0 else min(tpot_ns, pace_ns)
    return ttft_ns, tpot_ns


@dataclass(slots=True)
class ModelView:
    """One model of the engine. `law` already carries the online correction; `reported_pages` = free + evictable after the last
    iteration less what was pinned since."""

    spec: ModelSpec
    law: IterationLaw
    correction: OnlineCorrection
    reported_pages: int


@dataclass(slots=True)
class View:
    policy: PolicyName
    spec: EngineSpec
    models: dict[str, ModelView]
    sequences: dict[int, SequenceView]
    pace_ns: int = 0
    submitted: int = 0
    decode_ratios: ForgetfulHistogram = field(default_factory=learned.new_ratios)
    mixed_ratios: ForgetfulHistogram = field(default_factory=learned.new_ratios)
    lengths: ForgetfulHistogram = field(default_factory=learned.new_lengths)
    recent_ratio: float = 1.0
    """actual / predicted of the last mixed iterations, quick to rise"""
    decode_margin: float = 1.05
    mixed_margin: float = 1.05
    typical_length: int = learned.LENGTH_COLD_TOKENS

    def free_pages(self, model: str, without: Iterable[int] = ()) -> int:
        """A lower bound of the pages that can be had, were the sequences `without` gone: shared pages are counted once too often on
        one side of the maximum and trusted from the last report on the other."""
        mv = self.models[model]
        gone = set(without)
        held = sum(s.pages_held for s in self.sequences.values() if s.model == model and s.id not in gone)
        return max(mv.spec.pages - held, mv.reported_pages, 0)

    def kv_pages(self, sequence: SequenceView, tokens: int) -> int:
        return pages_for(tokens, self.models[sequence.model].spec.page_tokens)

    def promised_pages(self, s: SequenceView) -> int:
        """Pages a sequence is promised when it starts: its prompt and `PROMISE_QUANTILE` of output lengths, or what it holds."""
        length = min(s.max_tokens, max(self.typical_length, s.emitted + 1))
        return max(s.pages_held, self.kv_pages(s, s.prompt_tokens + length))

    def refresh_length(self) -> None:
        self.typical_length = learned.expected_length(self.lengths, PROMISE_QUANTILE, 1 << 30)

    def refresh_margins(self) -> None:
        """Budget / margin is what compose predicts up to: 95 % of iterations end within the pace, 99.5 % within 1.1 x (`TAIL_STRETCH`);
        `recent_ratio` believes a machine that has just become slower before the quantiles know."""
        self.decode_margin = clip_margin(learned.ratio_quantile(self.decode_ratios, 0.95))
        tail = min(learned.ratio_quantile(self.mixed_ratios, 0.995) / TAIL_STRETCH, TAIL_MARGIN_HIGH)
        self.mixed_margin = clip_margin(max(learned.ratio_quantile(self.mixed_ratios, 0.95), tail, self.recent_ratio))

    def to_plain(self) -> dict[str, object]:
        """JSON-able; `from_plain` restores it exactly."""
        return {
            "schema": SCHEMA,
            "policy": self.policy,
            "spec": spec_to_plain(self.spec),
            "models": [[name, mv.law.to_params(), mv.correction.to_plain(), mv.reported_pages] for name, mv in self.models.items()],
            "sequences": [_sequence_to_plain(s) for s in self.sequences.values()],
            "pace_ns": self.pace_ns,
            "submitted": self.submitted,
            "learned": [self.decode_ratios.to_plain(), self.mixed_ratios.to_plain(), self.lengths.to_plain()],
            "recent_ratio": self.recent_ratio,
        }

    @staticmethod
    def from_plain(plain: dict[str, object]) -> "View":
        """Raises ConfigError for another schema."""
        if plain.get("schema") != SCHEMA:
            raise ConfigError(f"view of schema {plain.get('schema')!r}, this code reads {SCHEMA}: replay with the version that wrote it")
        data = cast("dict[str, list[object]]", plain)
        spec = spec_from_plain(plain["spec"])
        by_name = {m.model: m for m in spec.models}
        models: dict[str, ModelView] = {}
        for row in data["models"]:
            name, law, correction, reported = cast("tuple[str, dict[str, object], list[float], int]", row)
            models[name] = ModelView(by_name[name], IterationLaw.from_params(law), OnlineCorrection.from_plain(correction), reported)
        decode, mixed, lengths = cast("list[list[object]]", data["learned"])
        sequences = [_sequence_from_plain(row) for row in data["sequences"]]
        view = View(
            policy=cast(PolicyName, plain["policy"]),
            spec=spec,
            models=models,
            sequences={s.id: s for s in sequences},
            pace_ns=cast(int, plain["pace_ns"]),
            submitted=cast(int, plain["submitted"]),
            decode_ratios=ForgetfulHistogram.from_plain(decode),
            mixed_ratios=ForgetfulHistogram.from_plain(mixed),
            lengths=ForgetfulHistogram.from_plain(lengths),
            recent_ratio=cast(float, plain["recent_ratio"]),
        )
        view.refresh_margins()
        view.refresh_length()
        return view


def new_view(spec: EngineSpec, policy: PolicyName = "headway", laws: dict[str, IterationLaw] | None = None) -> View:
    """The view of an engine that has just started. `laws` by law id; a law may also come later as a LawUpdate."""
    if policy not in POLICIES:
        raise ConfigError(f"unknown policy {policy!r}; use one of {', '.join(POLICIES)}")
    models: dict[str, ModelView] = {}
    residual: Residual | None = None
    for m in spec.models:
        law = (laws or {}).get(m.laws.get("generate", ""), GUESSED_LAW)
        residual = residual or (None if law is GUESSED_LAW else law.residual)
        models[m.model] = ModelView(m, law, OnlineCorrection.of(law), m.pages)
    view = View(policy, spec, models, {}, decode_ratios=learned.new_ratios(residual), mixed_ratios=learned.new_ratios(residual))
    view.refresh_margins()
    return view


def spec_to_plain(spec: EngineSpec) -> list[object]:
    models = [[m.model, m.accuracy, m.kv_dtype, m.context_tokens, m.page_tokens, m.pages, dict(m.laws)] for m in spec.models]
    return [spec.threads, spec.memory_bytes, spec.max_rows, spec.max_sequences, models]


def spec_from_plain(plain: object) -> EngineSpec:
    threads, memory_bytes, max_rows, max_sequences, models = cast("tuple[int, int, int, int, list[list[object]]]", plain)
    specs = (ModelSpec(*cast("tuple[str, str, str, int, int, int, dict[str, str]]", tuple(m))) for m in models)
    return EngineSpec(threads, memory_bytes, max_rows, max_sequences, tuple(specs))


def slo_to_plain(slo: Slo) -> list[object]:
    return [slo.ttft_s, slo.tpot_s, slo.e2e_s, slo.cls]


def slo_from_plain(plain: object) -> Slo:
    return Slo(*cast("tuple[float | None, float | None, float | None, SloClass]", plain))


def _sequence_to_plain(s: SequenceView) -> list[object]:
    return [
        s.id, s.model, s.kind, slo_to_plain(s.slo), s.order, s.arrival_ns, s.prompt_tokens, s.max_tokens, s.ttft_ns, s.tpot_ns,
        s.prompt_left, s.recompute_left, s.emitted, s.pages_held, s.started, s.relegated, s.missed, s.first_ns, s.last_ns,
    ]  # fmt: skip


def _sequence_from_plain(plain: object) -> SequenceView:
    values = list(cast("list[object]", plain))
    values[3] = slo_from_plain(values[3])
    return SequenceView(*values)  # type: ignore[arg-type]
