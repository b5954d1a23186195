"""`headway`: earliest deadline first, and no iteration longer than the running promises allow.

1. Decode rows run first. The *pace* is the least of: a running decode's tpot, the time until its next token is due, the router's Pace,
   `IDLE_PACE_NS`. Predicted time x learned 95 % quantile stays within it: a reader sees gaps near tpot, never beyond.
2. The rest of the pace is filled with prefill chunks, earliest due time first, several if they fit. Prompts that can no longer make their
   first due time come after those that can, best effort after them.
3. Decode rows and prompts without a promise run in what is left.
"""

from headway.scheduling.batch_plan import BatchPlan
from headway.scheduling.kernels import IDLE_PACE_NS, TILE_TOKENS
from headway.scheduling.messages import Iteration
from headway.scheduling.view import SequenceView, View

ON_TRACK, LATE, IDLE = 0, 1, 2


def compose(view: View, now_ns: int) -> Iteration:
    plan = BatchPlan(view)
    main: list[SequenceView] = []
    idle: list[SequenceView] = []
    prefills: list[SequenceView] = []
    pace_ns = min(IDLE_PACE_NS, view.pace_ns) if view.pace_ns > 0 else IDLE_PACE_NS
    gap_ns = pace_ns  # the pace without the due times: what a reader's gap may last
    for s in view.sequences.values():
        if s.prompt_left or s.recompute_left:
            prefills.append(s)
        elif s.relegated or s.slo.cls == "background":
            idle.append(s)
        else:
            main.append(s)
            tpot_ns = s.tpot_ns
            if tpot_ns >= 0:
                if tpot_ns < gap_ns:
                    gap_ns = tpot_ns
                if not s.missed:  # `next_due_ns` written out: this loop runs between any two tokens
                    start_ns = s.arrival_ns + s.ttft_ns if s.ttft_ns >= 0 else s.first_ns
                    left_ns = start_ns + s.emitted * tpot_ns - now_ns
                    if left_ns < pace_ns:
                        pace_ns = left_ns
    pace_ns = min(pace_ns, gap_ns)
    plan.add_decodes(main)
    _drop_loose_rows(plan, main, gap_ns, now_ns)
    plan.page_decodes()

    budget_s = pace_ns / 1e9 / view.mixed_margin
    if plan.preempt:
        prefills = [s for s in prefills if s not in plan.preempt]
    ranked = _rank(plan, prefills, gap_ns / 1e9 / view.mixed_margin, now_ns)
    split = next((i for i, (rank, *_) in enumerate(ranked) if rank == IDLE), len(ranked))
    _fill(plan, [s for *_, s in ranked[:split]], budget_s)
    if not plan.work and split:
        _slack_tile(plan, ranked[0][-1], main, gap_ns, now_ns)
    if idle:
        _add_idle_rows(plan, [s for s in idle if s not in plan.preempt], pace_ns / 1e9 / view.decode_margin)
    if split < len(ranked):
        _fill(plan, [s for *_, s in ranked[split:] if s not in plan.preempt], budget_s)
    plan.force_progress()
    return plan.finish(max(pace_ns, 0))


def _drop_loose_rows(plan: BatchPlan, main: list[SequenceView], gap_ns: int, now_ns: int) -> None:
    """When the decode rows alone outlast the tightest reader's gap, rows that can wait an iteration do."""
    limit_s = gap_ns / 1e9 / plan.view.decode_margin
    if plan.seconds() <= limit_s:
        return
    length_ns = int(plan.seconds() * 1e9)
    can_wait = [s for s in main if s.tpot_ns < 0 or (s.tpot_ns > 2 * gap_ns and s.next_due_ns() - now_ns > 3 * length_ns)]
    can_wait.sort(key=lambda s: (-(s.next_due_ns() - now_ns) if s.tpot_ns >= 0 else s.last_ns - now_ns, s.order))
    for s in can_wait:
        if plan.seconds() <= limit_s or len(plan.decode) <= 1:
            return
        if s in plan.decode:
            plan.drop_decode(s)


def _rank(plan: BatchPlan, prefills: list[SequenceView], budget_s: float, now_ns: int) -> list[tuple[int, int, int, SequenceView]]:
    """(rank, due, order, sequence), sorted: on track by due time, then late ones, then best effort."""
    ranked: list[tuple[int, int, int, SequenceView]] = []
    seconds_per_token: dict[str, float] = {}
    for s in prefills:
        due_ns = s.next_due_ns() if s.emitted else s.first_due_ns()
        if s.idle_only:
            rank = IDLE
        elif s.missed or (s.emitted == 0 and s.ttft_ns >= 0 and _too_late(plan, s, budget_s, due_ns - now_ns, seconds_per_token)):
            rank = LATE
        else:
            rank = ON_TRACK
        ranked.append((rank, due_ns, s.order, s))
    ranked.sort(key=lambda row: row[:3])
    return ranked


def _too_late(plan: BatchPlan, s: SequenceView, budget_s: float, left_ns: int, seconds_per_token: dict[str, float]) -> bool:
    """Whether the due time is out of reach even if every coming iteration gave all its prefill time to this prompt."""
    per_token = seconds_per_token.get(s.model)
    if per_token is None:
        cap = plan.view.spec.max_rows
        chunk = plan.largest_chunk(s, budget_s, cap) or TILE_TOKENS
        mp = plan.models[s.model]
        law = plan.view.models[s.model].law
        per_token = law.predict_s(mp.decode_rows, mp.kv_read_tokens, ((chunk, s.context_tokens),), mp.sampled) / chunk
        seconds_per_token[s.model] = per_token
    return s.left * per_token * 1e9 > left_ns


def _fill(plan: BatchPlan, prefills: list[SequenceView], budget_s: float) -> None:
    starts = True
    for s in prefills:
        if plan.rows_left <= 0 or plan.segments_left <= 0:
            return
        if not s.started and not (starts and plan.may_start(s)):
            starts = False  # who waits for pages is not overtaken by a smaller newcomer
            continue
        cap = plan.chunk_cap(s)
        if cap <= 0:
            starts = starts and s.started
            continue
        chunk = plan.largest_chunk(s, budget_s, cap)
        if chunk <= 0:
            return  # the pace is used up
        plan.add_chunk(s, chunk)


def _slack_tile(plan: BatchPlan, s: SequenceView, main: list[SequenceView], gap_ns: int, now_ns: int) -> None:
    """Decodes leave no room for a tile: one tile all the same, if every due time still holds and no gap doubles.

    Without it a prompt would wait for whole answers on a machine whose decode step alone nearly fills the pace.
    """
    cap = min(TILE_TOKENS, plan.chunk_cap(s))
    if cap <= 0 or not (s.started or plan.may_start(s)):
        return
    limit_ns = 2 * gap_ns
    for d in main:
        if d.tpot_ns >= 0 and not d.missed:
            limit_ns = min(limit_ns, d.next_due_ns() - now_ns)
    if plan.largest_chunk(s, limit_ns / 1e9 / plan.view.mixed_margin, cap) == cap:
        plan.add_chunk(s, cap)


def _add_idle_rows(plan: BatchPlan, idle: list[SequenceView], budget_s: float) -> None:
    """Best-effort decode rows, first come first, while the iteration stays within the pace."""
    before = len(plan.decode)
    plan.add_decodes(idle)
    while len(plan.decode) > before and plan.seconds() > budget_s and (plan.work or len(plan.decode) > 1):
        plan.drop_decode(plan.decode[-1])
    if len(plan.decode) > before:
        plan.page_decodes(before)
