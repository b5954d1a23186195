"""RouterState: what the router knows of engines and requests. Plain data; changed by `router.step` alone; restores bit for bit."""

from dataclasses import dataclass, field
from typing import cast

from headway.core.errors import ConfigError
from headway.core.law import IterationLaw
from headway.core.slo import Slo
from headway.scheduling import learned
from headway.scheduling.kernels import GUESSED_LAW
from headway.scheduling.learned import ForgetfulHistogram
from headway.scheduling.messages import EngineSpec, ModelSpec
from headway.scheduling.view import POLICIES, PROMISE_QUANTILE, PolicyName, slo_from_plain, slo_to_plain, spec_from_plain, spec_to_plain

SCHEMA = "headway.router/1"


@dataclass(slots=True, eq=False)
class RequestState:
    """One sequence between Arrive and its end. `engine_id` "" = held here. `left` = prefill rows to go, by reports so far."""

    id: int
    model: str
    slo: Slo
    asked: bool
    tenant: str
    arrival_ns: int
    prompt_tokens: int
    max_tokens: int
    cached_tokens: dict[str, int]
    ttft_ns: int
    tpot_ns: int
    left: int
    hold_until_ns: int = -1
    engine_id: str = ""
    command_seq: int = 0
    emitted: int = 0
    relegated: bool = False

    @property
    def idle_only(self) -> bool:
        return self.relegated or self.slo.cls == "background"

    @property
    def first_due_ns(self) -> int:
        """Due time of token 0; -1 = none."""
        return self.arrival_ns + self.ttft_ns if self.ttft_ns >= 0 else -1


@dataclass(slots=True, eq=False)
class EngineState:
    """One engine of one boot. `sent` counts commands aimed at it, `applied` how many it had applied at its last report: commands in
    between are in flight, and their requests already count (dead reckoning)."""

    engine_id: str
    boot: int
    spec: EngineSpec
    sent: int = 0
    applied: int = 0
    last_report: int = 0
    iteration: int = -1
    predicted_ns: int = 0
    busy_until_ns: int = 0
    slack_ns: int = 0
    pages: dict[str, list[int]] = field(default_factory=dict)
    ratios: ForgetfulHistogram = field(default_factory=learned.new_ratios)

    def model(self, name: str) -> ModelSpec | None:
        return next((m for m in self.spec.models if m.model == name), None)


@dataclass(slots=True)
class RouterState:
    policy: PolicyName
    seed: int
    max_queue: int
    engines: dict[str, EngineState] = field(default_factory=dict)
    requests: dict[int, RequestState] = field(default_factory=dict)
    laws: dict[str, IterationLaw] = field(default_factory=dict)
    lengths: ForgetfulHistogram = field(default_factory=learned.new_lengths)
    typical_length: int = learned.LENGTH_COLD_TOKENS
    tried_ns: int = -1

    def refresh_length(self) -> None:
        self.typical_length = learned.expected_length(self.lengths, PROMISE_QUANTILE, 1 << 30)

    def expected_length(self, r: RequestState) -> int:
        """Tokens this sequence is expected to reach, at the quantile engines promise memory by."""
        return min(r.max_tokens, max(self.typical_length, r.emitted + 1))

    def law_of(self, engine: EngineState, model: str) -> IterationLaw:
        spec = engine.model(model)
        return self.laws.get(spec.laws.get("generate", ""), GUESSED_LAW) if spec else GUESSED_LAW

    def held(self) -> list[RequestState]:
        """Requests no engine has, earliest first due time first (those without one last, by arrival)."""
        waiting = [r for r in self.requests.values() if not r.engine_id]
        return sorted(waiting, key=lambda r: (r.first_due_ns < 0, r.first_due_ns, r.arrival_ns, r.id))

    def on(self, engine_id: str) -> list[RequestState]:
        return [r for r in self.requests.values() if r.engine_id == engine_id]

    def to_plain(self) -> dict[str, object]:
        """JSON-able; `from_plain` restores it exactly."""
        return {
            "schema": SCHEMA,
            "policy": self.policy,
            "seed": self.seed,
            "max_queue": self.max_queue,
            "engines": [
                [
                    e.engine_id, e.boot, spec_to_plain(e.spec), e.sent, e.applied, e.last_report, e.iteration, e.predicted_ns,
                    e.busy_until_ns, e.slack_ns, {m: list(p) for m, p in e.pages.items()}, e.ratios.to_plain(),
                ]
                for e in self.engines.values()
            ],
            "requests": [
                [
                    r.id, r.model, slo_to_plain(r.slo), r.asked, r.tenant, r.arrival_ns, r.prompt_tokens, r.max_tokens,
                    dict(r.cached_tokens), r.ttft_ns, r.tpot_ns, r.left, r.hold_until_ns, r.engine_id,
                    r.command_seq, r.emitted, r.relegated,
                ]
                for r in self.requests.values()
            ],
            "laws": [[law_id, law.to_params()] for law_id, law in self.laws.items()],
            "lengths": self.lengths.to_plain(),
            "tried_ns": self.tried_ns,
        }  # fmt: skip

    @staticmethod
    def from_plain(plain: dict[str, object]) -> "RouterState":
        """Raises ConfigError for another schema."""
        if plain.get("schema") != SCHEMA:
            raise ConfigError(
                f"router state of schema {plain.get('schema')!r}, this code reads {SCHEMA}: replay with the version that wrote it"
            )
        data = cast("dict[str, list[list[object]]]", plain)
        state = new_state(cast(PolicyName, plain["policy"]), cast(int, plain["seed"]), max_queue=cast(int, plain["max_queue"]))
        for row in data["engines"]:
            values = list(row)
            values[2] = spec_from_plain(values[2])
            values[11] = ForgetfulHistogram.from_plain(cast("list[object]", values[11]))
            engine = EngineState(*values)  # type: ignore[arg-type]
            state.engines[engine.engine_id] = engine
        for row in data["requests"]:
            values = list(row)
            values[2] = slo_from_plain(values[2])
            request = RequestState(*values)  # type: ignore[arg-type]
            state.requests[request.id] = request
        for law_id, params in cast("list[tuple[str, dict[str, object]]]", plain["laws"]):
            state.laws[law_id] = IterationLaw.from_params(params)
        state.lengths = ForgetfulHistogram.from_plain(cast("list[object]", plain["lengths"]))
        state.tried_ns = cast(int, plain["tried_ns"])
        state.refresh_length()
        return state


def new_state(
    policy: PolicyName = "headway", seed: int = 0, *, max_queue: int = 1024, laws: dict[str, IterationLaw] | None = None
) -> RouterState:
    """An empty router. `max_queue` bounds open requests, held and dispatched; `seed` is for policies that draw (none yet)."""
    if policy not in POLICIES:
        raise ConfigError(f"unknown policy {policy!r}; use one of {', '.join(POLICIES)}")
    return RouterState(policy, seed, max_queue, laws=dict(laws or {}))
