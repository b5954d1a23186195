"""What the router predicts: when a prompt's first token would come on an engine, and whether everybody's promises would still hold.

PolyServe's admission tests (arXiv 2507.17769), kept apart, for an engine that reads prompts earliest deadline first.
"""

from dataclasses import dataclass

from headway.scheduling import learned
from headway.scheduling.kernels import HOPELESS, IDLE_PACE_NS, clip_margin, pages_for, sustained_prefill, whole_life_margin
from headway.scheduling.messages import Quote
from headway.scheduling.state import EngineState, RequestState, RouterState

QUOTE_STEPS_S = (1.0, 5.0, 30.0)


@dataclass(frozen=True, slots=True)
class Forecast:
    """`ttft_s` from now for the request asked about; `pace_s` of a decode-only iteration with everybody decoding; the tests apart."""

    engine_id: str
    ttft_s: float
    pace_s: float
    first: bool
    steady: bool
    others: bool
    memory: bool

    @property
    def keeps_all(self) -> bool:
        return self.first and self.steady and self.others and self.memory


def never_fits(state: RouterState, request: RequestState) -> bool:
    """True when engines have the model but none has the pages for prompt + max_tokens."""
    specs = [m for e in state.engines.values() if (m := e.model(request.model)) is not None]
    return bool(specs) and all(pages_for(request.prompt_tokens + request.max_tokens, m.page_tokens) > m.pages for m in specs)


def margin(engine: EngineState) -> float:
    return clip_margin(learned.ratio_quantile(engine.ratios, 0.95))


def idle_forecast_s(state: RouterState, engine: EngineState, request: RequestState) -> tuple[float, float]:
    """(time to first token, decode pace) on this engine were it idle: what no scheduling can beat."""
    law = state.law_of(engine, request.model)
    left = max(1, request.prompt_tokens - request.cached_tokens.get(engine.engine_id, 0))
    cached = request.prompt_tokens - left
    _, seconds, iterations = sustained_prefill(law, IDLE_PACE_NS / 1e9, 0, 0, cached, left, engine.spec.max_rows)
    pace_s = law.predict_s(1, request.prompt_tokens, (), 1)
    q95 = margin(engine)
    return seconds * whole_life_margin(q95, iterations), pace_s * whole_life_margin(q95, request.max_tokens)


def admissible(state: RouterState, engine: EngineState, request: RequestState, ttft_ns: int, tpot_ns: int) -> bool:
    """Whether an idle engine could keep this promise."""
    ttft_s, pace_s = idle_forecast_s(state, engine, request)
    return (ttft_ns < 0 or ttft_s * 1e9 <= ttft_ns) and (tpot_ns < 0 or pace_s * 1e9 <= tpot_ns)


def worth_a_try(state: RouterState, engine: EngineState, request: RequestState) -> bool:
    """An idle engine, and a promise that a law wrong by less than `HOPELESS` would allow."""
    if state.on(engine.engine_id) or not has_memory(state, engine, request):
        return False
    ttft_s, pace_s = idle_forecast_s(state, engine, request)
    ttft_ok = request.ttft_ns < 0 or ttft_s * 1e9 <= HOPELESS * request.ttft_ns
    return ttft_ok and (request.tpot_ns < 0 or pace_s * 1e9 <= HOPELESS * request.tpot_ns)


def forecast(state: RouterState, engine: EngineState, request: RequestState, now_ns: int) -> Forecast:
    """Reads the backlog prompt by prompt in due-time order, decodes joining as prompts end and leaving as answers do."""
    residents = [r for r in state.on(engine.engine_id) if not r.idle_only and r.id != request.id]
    first, ttft_s = _first_token(state, engine, residents, request, now_ns)
    ours = first.pop(request.id)
    broken = [id_ for id_, kept in first.items() if not kept]
    if broken:  # whose promise is lost anyway is no reason to refuse
        without, _ = _first_token(state, engine, residents, None, now_ns)
        broken = [id_ for id_ in broken if without.get(id_, False)]
    law = state.law_of(engine, request.model)
    everybody = [*residents, request]
    kv = sum(r.prompt_tokens + r.emitted for r in everybody)
    pace_s = law.predict_s(len(everybody), kv, (), len(everybody)) * whole_life_margin(margin(engine), 64)
    tightest_ns = min((r.tpot_ns for r in everybody if r.tpot_ns >= 0), default=-1)
    return Forecast(
        engine_id=engine.engine_id,
        ttft_s=ttft_s,
        pace_s=pace_s,
        first=ours,
        steady=tightest_ns < 0 or pace_s * 1e9 <= tightest_ns,
        others=not broken,
        memory=has_memory(state, engine, request),
    )


def has_memory(state: RouterState, engine: EngineState, request: RequestState) -> bool:
    """Whether a sequence slot and the pages promised to everybody here leave room for this one."""
    spec = engine.model(request.model)
    if spec is None:
        return False
    there = state.on(engine.engine_id)
    if len(there) >= engine.spec.max_sequences:
        return False
    promised = 0
    for r in [*(r for r in there if r.model == request.model), request]:
        length = state.expected_length(r)
        promised += pages_for(r.prompt_tokens + length, spec.page_tokens)
    return promised <= spec.pages or len(there) == 0


def _first_token(
    state: RouterState, engine: EngineState, residents: list[RequestState], request: RequestState | None, now_ns: int
) -> tuple[dict[int, bool], float]:
    """For each prompt not yet read: whether its first token would be in time. And seconds from now to `request`'s."""
    q95 = margin(engine)
    jobs = [r for r in residents if r.left > 0]
    if request is not None:
        jobs.append(request)
    jobs.sort(key=lambda r: (r.first_due_ns < 0, r.first_due_ns, r.arrival_ns, r.id))
    t_ns = float(max(now_ns, engine.busy_until_ns))
    # (expected end, kv, tpot) of decoding sequences; the pace they have shown is unknown here, so their own tpot or the idle pace.
    decoding: list[tuple[float, int, int]] = []
    for r in residents:
        if r.left <= 0:
            rest = state.expected_length(r) - r.emitted
            decoding.append((t_ns + rest * _pace_ns(r), r.prompt_tokens + r.emitted, r.tpot_ns))
    kept: dict[int, bool] = {}
    ours_s = 0.0
    for r in jobs:
        law = state.law_of(engine, r.model)
        decoding = [d for d in decoding if d[0] > t_ns]
        tightest = min((d[2] for d in decoding if d[2] >= 0), default=IDLE_PACE_NS)
        budget_s = min(tightest, IDLE_PACE_NS) / 1e9 / q95
        left = r.left if r.engine_id else max(1, r.prompt_tokens - r.cached_tokens.get(engine.engine_id, 0))
        kv = sum(d[1] for d in decoding)
        done = max(0, r.prompt_tokens + r.emitted - left)
        _, seconds, iterations = sustained_prefill(law, budget_s, len(decoding), kv, done, left, engine.spec.max_rows)
        t_ns += seconds * whole_life_margin(q95, iterations) * 1e9
        kept[r.id] = r.emitted > 0 or r.first_due_ns < 0 or t_ns <= r.first_due_ns
        if request is not None and r.id == request.id:
            ours_s = (t_ns - now_ns) / 1e9
        rest = state.expected_length(r) - r.emitted
        decoding.append((t_ns + rest * _pace_ns(r), r.prompt_tokens, r.tpot_ns))
    return kept, ours_s


def _pace_ns(r: RequestState) -> int:
    return min(r.tpot_ns, IDLE_PACE_NS) if r.tpot_ns >= 0 else IDLE_PACE_NS


def quote(state: RouterState, engine: EngineState, request: RequestState, now_ns: int) -> Quote:
    """The nearest promise that could be kept here: the asked one a little later if an idle engine can keep it, else a looser one now.

    Times use the learned 95 % quantile, lengths their 80 % quantile; how often such a quote holds was not measured.
    """
    seen = forecast(state, engine, request, now_ns)
    idle_ttft_s, idle_pace_s = idle_forecast_s(state, engine, request)
    asked_ttft_s = request.ttft_ns / 1e9 if request.ttft_ns >= 0 else idle_ttft_s
    asked_tpot_s = request.tpot_ns / 1e9 if request.tpot_ns >= 0 else idle_pace_s
    if idle_ttft_s <= asked_ttft_s and idle_pace_s <= asked_tpot_s:
        wait_s = max(0.0, seen.ttft_s - asked_ttft_s)
        after_s = next((step for step in QUOTE_STEPS_S if wait_s <= step), QUOTE_STEPS_S[-1])
        return Quote(asked_ttft_s, asked_tpot_s, after_s)
    return Quote(max(seen.ttft_s, asked_ttft_s), max(seen.pace_s, asked_tpot_s), 0.0)
