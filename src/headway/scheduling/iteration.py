"""`compose` decides what an engine runs next; `apply` is the only thing that changes its view. Pure: the caller brings the time."""

from headway.core.errors import CapacityError, HeadwayError
from headway.core.law import IterationLaw, OnlineCorrection
from headway.core.slo import resolve
from headway.scheduling import learned
from headway.scheduling.kernels import RECENT_DOWN, RECENT_UP
from headway.scheduling.messages import Abort, Amend, Change, Iteration, LawUpdate, Pace, Result, Submit
from headway.scheduling.policies import fcfs, headway
from headway.scheduling.view import SequenceView, View, new_view, plan

__all__ = ["apply", "compose", "new_view", "slack_ns"]

_COMPOSE = {"fcfs": fcfs.compose, "headway": headway.compose}


def compose(view: View, now_ns: int) -> Iteration:
    """The next iteration; empty (no decode, work or preempt) only when no sequence is left. Does not change the view."""
    return _COMPOSE[view.policy](view, now_ns)


def slack_ns(view: View, now_ns: int) -> int:
    """Least time until a due time among sequences that can still keep their promise; 0 when nothing is due."""
    dues = [due for s in view.sequences.values() if not (s.missed or s.idle_only) and (due := s.next_due_ns()) >= 0]
    return min(dues) - now_ns if dues else 0


def apply(view: View, now_ns: int, change: Change) -> None:
    """Apply one change. Changes that name a sequence that is gone are ignored: an Abort may cross with a finish.

    Raises CapacityError for a Submit that could never fit the pages, HeadwayError for one whose id or model cannot be used.
    """
    if isinstance(change, Result):
        _apply_result(view, now_ns, change)
    elif isinstance(change, Submit):
        _apply_submit(view, change)
    elif isinstance(change, Abort):
        view.sequences.pop(change.id, None)
    elif isinstance(change, Amend):
        sequence = view.sequences.get(change.id)
        if sequence is not None:
            sequence.slo = resolve(change.slo)
            sequence.ttft_ns, sequence.tpot_ns = plan(sequence.slo, sequence.max_tokens)
            sequence.relegated = change.relegated
    elif isinstance(change, Pace):
        view.pace_ns = change.pace_ns
    elif isinstance(change, LawUpdate):
        _apply_law(view, change)


def _apply_submit(view: View, change: Submit) -> None:
    if change.id in view.sequences:
        raise HeadwayError(f"sequence {change.id} is already in this engine: submit it under another id")
    if change.model not in view.models:
        raise HeadwayError(f"model {change.model!r} is not loaded in this engine, which has {', '.join(view.models)}")
    mv = view.models[change.model]
    needed = -(-(change.prompt_tokens + change.max_tokens) // mv.spec.page_tokens)
    if needed > mv.spec.pages:
        raise CapacityError(
            f"sequence {change.id} may need {needed} KV pages, the pool has {mv.spec.pages}: ask for fewer tokens or raise --kv-memory",
            needed=needed,
            capacity=mv.spec.pages,
        )
    slo = resolve(change.slo)
    ttft_ns, tpot_ns = plan(slo, change.max_tokens)
    view.sequences[change.id] = SequenceView(
        id=change.id,
        model=change.model,
        kind=change.kind,
        slo=slo,
        order=view.submitted,
        arrival_ns=change.arrival_ns,
        prompt_tokens=change.prompt_tokens,
        max_tokens=change.max_tokens,
        ttft_ns=ttft_ns,
        tpot_ns=tpot_ns,
        # At least the last prompt row must run: its logits give the first token.
        prompt_left=max(1, change.prompt_tokens - change.cached_tokens),
        pages_held=change.pages_held,
    )
    view.submitted += 1
    mv.reported_pages = max(0, mv.reported_pages - change.pages_held)


def _apply_law(view: View, change: LawUpdate) -> None:
    law = IterationLaw.from_params(change.params)
    for mv in view.models.values():
        if change.law_id in mv.spec.laws.values():
            mv.law = law
            mv.correction = OnlineCorrection.of(law)
            view.decode_ratios = learned.new_ratios(law.residual)
            view.mixed_ratios = learned.new_ratios(law.residual)
            view.recent_ratio = 1.0
    view.refresh_margins()


def _apply_result(view: View, now_ns: int, result: Result) -> None:
    _learn(view, result)
    sequences = view.sequences
    for id_, rows in (*result.adopted, *result.prefilled):
        s = sequences.get(id_)
        if s is not None:
            s.started = True
            from_recompute = min(rows, s.recompute_left)
            s.recompute_left -= from_recompute
            s.prompt_left = max(0, s.prompt_left - (rows - from_recompute))
    for id_, tokens in result.emitted:
        s = sequences.get(id_)
        if s is None or tokens <= 0:
            continue
        due_ns = s.next_due_ns()
        if s.first_ns < 0:
            s.first_ns = now_ns
        s.emitted += tokens
        s.last_ns = now_ns
        if due_ns >= 0 and now_ns > due_ns and not s.idle_only:
            s.missed = True
    for id_, rows in result.recompute:
        s = sequences.get(id_)
        if s is not None:
            s.prompt_left, s.recompute_left = 0, max(1, rows)
    for id_, pages in result.pages_held:
        s = sequences.get(id_)
        if s is not None:
            s.pages_held = pages
    for id_ in result.finished:
        s = sequences.pop(id_, None)
        if s is not None and s.emitted:
            learned.observe_length(view.lengths, s.emitted)
            view.refresh_length()
    for model, (free, evictable) in result.pages.items():
        if model in view.models:
            view.models[model].reported_pages = free + evictable


def _learn(view: View, result: Result) -> None:
    """Compare the iteration's time with its law; must run before the result changes the sequences it describes."""
    if result.dt_ns <= 0:
        return
    chunks: dict[str, list[tuple[int, int]]] = {}
    decode: dict[str, tuple[int, int]] = {}
    sampled: dict[str, int] = {}
    for id_, rows in result.prefilled:
        s = view.sequences.get(id_)
        if s is not None:
            chunks.setdefault(s.model, []).append((rows, s.context_tokens))
    for id_, _ in result.emitted:
        s = view.sequences.get(id_)
        if s is not None:
            sampled[s.model] = sampled.get(s.model, 0) + 1
            if s.left == 0:
                rows, kv = decode.get(s.model, (0, 0))
                decode[s.model] = (rows + 1, kv + s.context_tokens + 1)
    busy = sorted({*chunks, *sampled})
    if not busy or len(busy) > 1:
        return  # With several models in one iteration the time cannot be told apart.
    mv = view.models[busy[0]]
    rows, kv = decode.get(busy[0], (0, 0))
    bare_s = mv.law.bare_s(rows, kv, chunks.get(busy[0], ()), sampled.get(busy[0], 0))
    actual_s = result.dt_ns / 1e9
    ratio = actual_s / max(mv.law.c_host_s + mv.law.s * bare_s, 1e-9)
    learned.observe_ratio(view.mixed_ratios if chunks else view.decode_ratios, ratio)
    if chunks:
        step = RECENT_UP if ratio > view.recent_ratio else RECENT_DOWN
        view.recent_ratio += step * (min(ratio, 2.0) - view.recent_ratio)
    mv.correction.observe(bare_s, actual_s)
    mv.law = mv.correction.corrected(mv.law)
    view.refresh_margins()
