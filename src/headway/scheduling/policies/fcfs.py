"""First come, first served: what engines do by default. Decodes first, a fixed 512-token budget, prompts in arrival order.

Promises play no part; the baseline every claim is measured against (chunked prefill as in Sarathi-Serve, arXiv 2403.02310).
"""

from headway.scheduling.batch_plan import BatchPlan
from headway.scheduling.messages import Iteration
from headway.scheduling.view import View

TOKEN_BUDGET = 512


def compose(view: View, now_ns: int) -> Iteration:
    plan = BatchPlan(view)
    plan.add_decodes([s for s in view.sequences.values() if s.left == 0])
    plan.page_decodes()
    tokens_left = TOKEN_BUDGET - len(plan.decode)
    preempted = {s.id for s in plan.preempt}
    for s in view.sequences.values():  # dicts keep the order of submission, and so does a restored view
        if s.left == 0 or s.id in preempted:
            continue
        if tokens_left <= 0 or not plan.may_start(s):
            break
        chunk = min(plan.chunk_cap(s), tokens_left)
        if chunk <= 0:
            break
        plan.add_chunk(s, chunk)
        tokens_left -= chunk
    plan.force_progress()
    return plan.finish(0)
