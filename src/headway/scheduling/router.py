"""`step`: one event in, commands out. Placement, admission and the overload ladder; everything it knows is in `RouterState`.

The ladder (docs/scheduling.md, "Routing"; after PolyServe, arXiv 2507.17769). A promise an idle engine could not keep is shed at once with
a quote, or downgraded to the next class if the client had not asked for it. One that could be kept, but not now: held above the engine for
`HOLD_SHARE` of its time to first token, while others may finish early; then shed (realtime, interactive), relegated (batch) or downgraded
(not asked for). `background` is shed only when the queue is full. Under `fcfs` nothing is shed but what can never fit.
"""

from headway.core.law import IterationLaw
from headway.core.slo import class_default, looser, resolve
from headway.scheduling import admission, learned
from headway.scheduling.kernels import IDLE_PACE_NS, TRY_EVERY_NS
from headway.scheduling.messages import (
    Abort,
    Arrive,
    Cancel,
    Command,
    Dispatch,
    Downgrade,
    EngineDown,
    EngineUp,
    Event,
    Hold,
    LawUpdate,
    Relegate,
    Report,
    Shed,
)
from headway.scheduling.state import EngineState, RequestState, RouterState, new_state
from headway.scheduling.view import plan

__all__ = ["new_state", "step"]

# Share of its time to first token a request may spend held before its client hears a refusal. Ours.
HOLD_SHARE = 0.5
# After each report the heads of the queue are forecast anew until this many stay held: a forecast costs up to 1 ms with 64 open requests,
# and who comes later can hardly be placed when these cannot. Those whose time to be held is over are always looked at.
RETRY_HEADS = 4


def step(state: RouterState, now_ns: int, event: Event) -> list[Command]:
    """Apply one event. Unknown ids, frames of another boot and repeated reports are ignored, never an error."""
    commands: list[Command] = []
    if isinstance(event, Arrive):
        _arrive(state, now_ns, event, commands)
        return commands
    if isinstance(event, Report):
        if not _report(state, now_ns, event):
            return commands
    elif isinstance(event, EngineUp):
        _engine_up(state, event)
    elif isinstance(event, EngineDown):
        _engine_down(state, event)
    elif isinstance(event, Cancel):
        _cancel(state, event, commands)
    elif isinstance(event, LawUpdate):
        state.laws[event.law_id] = IterationLaw.from_params(event.params)
    _retry(state, now_ns, commands)
    return commands


# ---- events --------------------------------------------------------------------------------------------------------------
def _arrive(state: RouterState, now_ns: int, event: Arrive, commands: list[Command]) -> None:
    if event.id in state.requests:
        commands.append(Shed(event.id, "duplicate_id", None))
        return
    slo = resolve(event.slo)
    ttft_ns, tpot_ns = plan(slo, event.max_tokens)
    request = RequestState(
        id=event.id,
        model=event.model,
        slo=slo,
        asked=slo != class_default(slo.cls),
        tenant=event.tenant,
        arrival_ns=now_ns,
        prompt_tokens=event.prompt_tokens,
        max_tokens=event.max_tokens,
        cached_tokens=dict(event.cached_tokens),
        ttft_ns=ttft_ns,
        tpot_ns=tpot_ns,
        left=event.prompt_tokens,
    )
    if len(state.requests) >= state.max_queue:
        commands.append(Shed(event.id, "queue_full", None))
        return
    state.requests[event.id] = request
    _place(state, now_ns, request, commands)
    if event.id in state.requests and not request.engine_id:
        commands.append(Hold(event.id, request.hold_until_ns))


def _report(state: RouterState, now_ns: int, event: Report) -> bool:
    engine = state.engines.get(event.engine_id)
    if engine is None or engine.boot != event.boot or event.seq <= engine.last_report:
        return False
    if engine.predicted_ns > 0 and event.dt_ns > 0 and event.iteration == engine.iteration + 1:
        learned.observe_ratio(engine.ratios, event.dt_ns / engine.predicted_ns)
    engine.last_report = event.seq
    engine.applied = max(engine.applied, event.applied_seq)
    engine.iteration = event.iteration
    engine.predicted_ns = event.next_ns
    engine.busy_until_ns = now_ns + event.next_ns
    engine.slack_ns = event.slack_ns
    engine.pages = {model: list(pages) for model, pages in event.pages.items()}
    here = state.requests
    for id_, cached in event.started:
        if (r := _on_engine(here, id_, event.engine_id)) is not None:
            r.left = max(1, r.prompt_tokens - cached)
    for id_, _, units in event.done:
        if (r := _on_engine(here, id_, event.engine_id)) is not None:
            r.left = max(0, r.left - units)
    for id_, tokens in event.emitted:
        if (r := _on_engine(here, id_, event.engine_id)) is not None and tokens > 0:
            r.emitted += tokens
            r.left = 0
    for id_ in event.preempted:
        if (r := _on_engine(here, id_, event.engine_id)) is not None:
            r.left = r.prompt_tokens + r.emitted
    for id_, _ in event.finished:
        if (r := _on_engine(here, id_, event.engine_id)) is not None:
            if r.emitted:
                learned.observe_length(state.lengths, r.emitted)
                state.refresh_length()
            del here[id_]
    for id_, _ in event.failed:
        if _on_engine(here, id_, event.engine_id) is not None:
            del here[id_]
    return True


def _on_engine(requests: dict[int, RequestState], id_: int, engine_id: str) -> RequestState | None:
    request = requests.get(id_)
    return request if request is not None and request.engine_id == engine_id else None


def _engine_up(state: RouterState, event: EngineUp) -> None:
    known = state.engines.get(event.engine_id)
    if known is not None and known.boot >= event.boot:
        return
    if known is not None:  # a new boot without a word of the old one's end: its work is gone all the same
        _drop_engine(state, event.engine_id)
    engine = EngineState(event.engine_id, event.boot, event.spec)
    state.engines[event.engine_id] = engine
    if event.spec.models:
        engine.ratios = learned.new_ratios(state.law_of(engine, event.spec.models[0].model).residual)


def _engine_down(state: RouterState, event: EngineDown) -> None:
    known = state.engines.get(event.engine_id)
    if known is not None and known.boot == event.boot:
        _drop_engine(state, event.engine_id)


def _drop_engine(state: RouterState, engine_id: str) -> None:
    """Its dispatched requests fail with it (the fleet tells their clients); held ones stay."""
    del state.engines[engine_id]
    for request in state.on(engine_id):
        del state.requests[request.id]


def _cancel(state: RouterState, event: Cancel, commands: list[Command]) -> None:
    request = state.requests.pop(event.id, None)
    if request is not None and request.engine_id:
        _aim(state, request.engine_id)
        commands.append(Abort(event.id, request.engine_id, event.why))


# ---- placement -----------------------------------------------------------------------------------------------------------
def _retry(state: RouterState, now_ns: int, commands: list[Command]) -> None:
    stayed = 0
    for request in state.held():
        if stayed < RETRY_HEADS or 0 <= request.hold_until_ns <= now_ns:
            _place(state, now_ns, request, commands)
            stayed += request.id in state.requests and not request.engine_id


def _place(state: RouterState, now_ns: int, request: RequestState, commands: list[Command]) -> None:
    """Dispatch, shed, or leave held (then `hold_until_ns` says until when)."""
    if admission.never_fits(state, request):
        _shed(state, request, "memory", commands)
        return
    engines = [state.engines[name] for name in sorted(state.engines) if state.engines[name].model(request.model) is not None]
    if not engines:
        if state.engines:
            _shed(state, request, "unknown_model", commands)
        elif state.policy == "headway" and request.first_due_ns >= 0 and now_ns > request.first_due_ns and not request.idle_only:
            _shed(state, request, "no_engine", commands)
        else:
            request.hold_until_ns = max(request.first_due_ns, -1)
        return
    if state.policy == "fcfs":
        best = min(engines, key=lambda e: (_backlog_tokens(state, e), e.engine_id))
        _dispatch(state, request, best, commands)
        return
    _place_by_promise(state, now_ns, request, engines, commands)


def _place_by_promise(state: RouterState, now_ns: int, request: RequestState, engines: list[EngineState], commands: list[Command]) -> None:
    while not request.idle_only and not any(admission.admissible(state, e, request, request.ttft_ns, request.tpot_ns) for e in engines):
        if request.asked:
            idle = next((e for e in engines if admission.worth_a_try(state, e, request)), None)
            if idle is not None and (state.tried_ns < 0 or now_ns - state.tried_ns >= TRY_EVERY_NS):
                state.tried_ns = now_ns
                _dispatch(state, request, idle, commands)
            else:
                _shed(state, request, "inadmissible", commands, engines, now_ns)
            return
        _downgrade(request, commands)
    if request.idle_only:
        roomy = [e for e in engines if admission.has_memory(state, e, request)]
        if roomy:
            _dispatch(state, request, min(roomy, key=lambda e: (_backlog_tokens(state, e), e.engine_id)), commands)
        else:
            request.hold_until_ns = -1
        return
    seen = [admission.forecast(state, e, request, now_ns) for e in engines]
    keeping = [f for f in seen if f.keeps_all]
    if keeping:
        best = min(keeping, key=lambda f: (f.ttft_s, f.engine_id))
        _dispatch(state, request, state.engines[best.engine_id], commands)
        return
    if request.hold_until_ns < 0:
        patience_ns = int(HOLD_SHARE * request.ttft_ns) if request.ttft_ns >= 0 else IDLE_PACE_NS
        request.hold_until_ns = request.arrival_ns + patience_ns
    if now_ns < request.hold_until_ns:
        return
    if not request.asked:
        _downgrade(request, commands)
        _place_by_promise(state, now_ns, request, engines, commands)
    elif request.slo.cls == "batch":
        request.relegated = True
        _place_by_promise(state, now_ns, request, engines, commands)
    else:
        _shed(state, request, "overload", commands, engines, now_ns)


def _backlog_tokens(state: RouterState, engine: EngineState) -> int:
    return sum(r.left + 1 for r in state.on(engine.engine_id))


def _aim(state: RouterState, engine_id: str) -> int:
    """Number of the command about to be sent to this engine."""
    engine = state.engines[engine_id]
    engine.sent += 1
    return engine.sent


def _dispatch(state: RouterState, request: RequestState, engine: EngineState, commands: list[Command]) -> None:
    request.engine_id = engine.engine_id
    request.command_seq = _aim(state, engine.engine_id)
    request.left = max(1, request.prompt_tokens - request.cached_tokens.get(engine.engine_id, 0))
    commands.append(Dispatch(request.id, engine.engine_id, 0, request.slo, request.arrival_ns))
    if request.relegated:
        _aim(state, engine.engine_id)
        commands.append(Relegate(request.id))


def _downgrade(request: RequestState, commands: list[Command]) -> None:
    """The default promise of the next looser class; only for promises nobody asked for."""
    slo = looser(request.slo) or class_default("background")
    request.slo = slo
    request.ttft_ns, request.tpot_ns = plan(slo, request.max_tokens)
    request.hold_until_ns = -1
    commands.append(Downgrade(request.id, slo.cls))


def _shed(
    state: RouterState,
    request: RequestState,
    reason: str,
    commands: list[Command],
    engines: list[EngineState] | None = None,
    now_ns: int = 0,
) -> None:
    quote = None
    if engines:
        offers = [admission.quote(state, e, request, now_ns) for e in engines]
        quote = min(offers, key=lambda q: (q.after_s, q.ttft_s, q.tpot_s))
    del state.requests[request.id]
    commands.append(Shed(request.id, reason, quote))
