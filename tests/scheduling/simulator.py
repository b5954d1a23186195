"""Test double `LawEngine`: an engine whose iterations last what a law says times jitter, and an event loop around router and view.

No model, no sampling: a sequence ends when it has written its true length. Pages are counted exactly (no sharing).
"""

import random
from dataclasses import dataclass, field

from headway.core.law import IterationLaw
from headway.core.slo import Score, Slo, score
from headway.scheduling import iteration, router
from headway.scheduling.messages import (
    Abort,
    Amend,
    Arrive,
    Dispatch,
    EngineSpec,
    EngineUp,
    Event,
    Iteration,
    ModelSpec,
    Relegate,
    Report,
    Result,
    Shed,
    Submit,
    Tick,
)
from headway.scheduling.view import PolicyName

LAPTOP = IterationLaw(c_host_s=0.0004, g_tokens=(0, 1, 2), g_s=(0.0, 0.0061, 0.0061), d1=1.5e-3, d2=5e-7, p1=1.6e-3, p2=5e-9)
FOUR_TIMES = IterationLaw(c_host_s=0.0003, g_tokens=(0, 1, 2), g_s=(0.0, 0.0013, 0.0013), d1=0.375e-3, d2=1.2e-7, p1=0.4e-3, p2=1.2e-9)


def engine_spec(pages: int = 2048, max_rows: int = 512, max_sequences: int = 64, page_tokens: int = 16) -> EngineSpec:
    return EngineSpec(2, 1 << 29, max_rows, max_sequences, (ModelSpec("m", "fast", "bf16", 8192, page_tokens, pages, {"generate": "law"}),))


@dataclass(frozen=True)
class Job:
    id: int
    arrival_ns: int
    app: str
    prompt_tokens: int
    output_tokens: int
    slo: Slo
    max_tokens: int


@dataclass
class LawEngine:
    """Test double of the engine: executes iterations exactly as composed, refuses (AssertionError) what an engine could not do."""

    policy: PolicyName
    truth: IterationLaw
    spec: EngineSpec
    jitter: random.Random
    believed: IterationLaw | None = None
    spike_share: float = 0.005
    lengths: dict[int, int] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.view = iteration.new_view(self.spec, self.policy, {"law": self.believed or self.truth})
        self.iterations = 0
        self.gaps_ns: dict[int, list[int]] = {}

    def run(self, now_ns: int, it: Iteration) -> Result:
        model = self.spec.models[0]
        sequences = self.view.sequences
        assert len(it.decode) + len(it.work) <= self.spec.max_sequences
        assert len(it.decode) + sum(n for _, n in it.work) <= self.spec.max_rows
        assert len({i for i, _ in it.decode} | {i for i, _ in it.work}) == len(it.decode) + len(it.work), (
            "a sequence twice in one iteration"
        )
        recompute: list[tuple[int, int]] = []
        for id_ in it.preempt:
            self.held[id_] = 0
            s = sequences[id_]
            recompute.append((id_, s.prompt_tokens + s.emitted))
        chunks = [(n, sequences[i].context_tokens) for i, n in it.work]
        kv = 0
        emitted: list[tuple[int, int]] = []
        finished: list[int] = []
        for id_, _ in it.decode:
            s = sequences[id_]
            assert s.left == 0 and id_ not in it.preempt
            kv += s.context_tokens + 1
            self._grow(id_, s.context_tokens + 1)
            emitted.append((id_, 1))
        for id_, n in it.work:
            s = sequences[id_]
            assert 0 < n <= s.left and id_ not in it.preempt
            self._grow(id_, s.context_tokens + n)
            if n == s.left:
                emitted.append((id_, 1))
        for id_, _ in emitted:
            if sequences[id_].emitted + 1 >= self.lengths[id_]:
                finished.append(id_)
                self.held.pop(id_)
        seconds = self.truth.predict_s(len(it.decode), kv, chunks, len(emitted))
        seconds *= max(0.9, self.jitter.gauss(1.0, 0.02)) * (1.3 if self.jitter.random() < self.spike_share else 1.0)
        self.iterations += 1
        free = model.pages - sum(self.held.values())
        assert free >= 0, "more pages used than there are"
        changed = tuple(
            (i, self.held[i]) for i in sorted({i for i, _ in it.decode} | {i for i, _ in it.work} | set(it.preempt)) if i in self.held
        )
        return Result(
            self.iterations, round(seconds * 1e9), it.work, tuple(emitted), tuple(finished), tuple(recompute), changed, {"m": (free, 0)}
        )

    def _grow(self, id_: int, tokens: int) -> None:
        self.held[id_] = max(self.held.get(id_, 0), -(-tokens // self.spec.models[0].page_tokens))


@dataclass
class Outcome:
    scores: dict[int, Score]
    jobs: dict[int, Job]
    token_ns: dict[int, list[int]]
    shed: list[Shed]
    events: list[tuple[int, Event]]
    commands: list[object]
    state: router.RouterState
    engine: LawEngine
    end_ns: int

    def share(self, app: str) -> float:
        picked = [self.scores[i].on_time for i, j in self.jobs.items() if j.app == app]
        return sum(bool(x) for x in picked) / len(picked)

    def on_time(self) -> int:
        return sum(bool(s.on_time) for s in self.scores.values())


def simulate(
    jobs: list[Job],
    policy: PolicyName,
    truth: IterationLaw,
    *,
    spec: EngineSpec | None = None,
    seed: int = 0,
    margin: float = 1.05,
    spike_share: float = 0.005,
) -> Outcome:
    """Open loop: jobs arrive when they say; runs until everything has ended."""
    spec = spec or engine_spec()
    believed = IterationLaw.from_params(truth.to_params() | {"residual": {"q05": 0.97, "q50": 1.0, "q95": margin}})
    engine = LawEngine(policy, truth, spec, random.Random(seed), believed, spike_share)
    state = router.new_state(policy, seed, laws={"law": believed})
    by_id = {j.id: j for j in jobs}
    engine.lengths = {j.id: j.output_tokens for j in jobs}
    token_ns: dict[int, list[int]] = {j.id: [] for j in jobs}
    ended: dict[int, tuple[str, int]] = {}
    shed: list[Shed] = []
    events: list[tuple[int, Event]] = []
    log: list[object] = []
    applied = 0

    def feed(now_ns: int, event: Event) -> None:
        nonlocal applied
        events.append((now_ns, event))
        commands = router.step(state, now_ns, event)
        log.extend(commands)
        for c in commands:
            if isinstance(c, Dispatch):
                j = by_id[c.id]
                iteration.apply(
                    engine.view, now_ns, Submit(c.id, "m", "generate", c.slo, c.arrival_ns, j.prompt_tokens, 0, j.max_tokens, 0)
                )
                applied += 1
            elif isinstance(c, Relegate):
                iteration.apply(engine.view, now_ns, Amend(c.id, state.requests[c.id].slo, True))
                applied += 1
            elif isinstance(c, Abort):
                iteration.apply(engine.view, now_ns, c)
                applied += 1
            elif isinstance(c, Shed):
                shed.append(c)
                ended[c.id] = ("shed", now_ns)

    feed(0, EngineUp("e", 1, spec))
    waiting = sorted(jobs, key=lambda j: (j.arrival_ns, j.id))
    now_ns, seq, at = 0, 0, 0
    while at < len(waiting) or state.requests:
        while at < len(waiting) and waiting[at].arrival_ns <= now_ns:
            j = waiting[at]
            feed(j.arrival_ns, Arrive(j.id, "m", "generate", j.prompt_tokens, 1, {}, j.slo, "", j.max_tokens))
            at += 1
        it = iteration.compose(engine.view, now_ns)
        if not (it.decode or it.work or it.preempt):
            assert not engine.view.sequences, "idle although sequences wait"
            if at < len(waiting):
                now_ns = max(now_ns, waiting[at].arrival_ns)
            elif state.requests:
                now_ns += 50_000_000
                feed(now_ns, Tick())
            continue
        result = engine.run(now_ns, it)
        start_ns, now_ns = now_ns, now_ns + result.dt_ns
        # Arrivals in the middle of the iteration reach the router at their own time and the engine before its next iteration.
        while at < len(waiting) and waiting[at].arrival_ns <= now_ns:
            j = waiting[at]
            feed(max(start_ns, j.arrival_ns), Arrive(j.id, "m", "generate", j.prompt_tokens, 1, {}, j.slo, "", j.max_tokens))
            at += 1
        started = tuple((i, 0) for i, _ in it.work if i in engine.view.sequences and not engine.view.sequences[i].started)
        iteration.apply(engine.view, now_ns, result)
        for id_, _ in result.emitted:
            token_ns[id_].append(now_ns)
        for id_ in result.finished:
            ended[id_] = ("finished", now_ns)
        following = iteration.compose(engine.view, now_ns)
        seq += 1
        feed(
            now_ns,
            Report(
                "e", 1, seq, applied, now_ns, result.iteration, result.dt_ns, following.predicted_ns,
                iteration.slack_ns(engine.view, now_ns),
                result.emitted, tuple((i, "prefill", n) for i, n in it.work), started, tuple((i, "length") for i in result.finished), (),
                it.preempt, {"m": (0, 0, 0)}, 0,
            ),
        )  # fmt: skip
    scores = {j.id: score(j.slo, j.arrival_ns, token_ns[j.id], ended[j.id][0], ended[j.id][1]) for j in jobs}  # type: ignore[arg-type]
    return Outcome(scores, by_id, token_ns, shed, events, log, state, engine, now_ns)


def demo_mix(seed: int, seconds: float, rates: dict[str, float]) -> list[Job]:
    """The demo's three apps: interactive chat, completion (tight, short) and a summariser (long, loose), Poisson at `rates` a second."""
    rng = random.Random(seed)
    jobs: list[Job] = []
    for app in ("chat", "completion", "summary"):
        t = 0.0
        while rates.get(app):
            t += rng.expovariate(rates[app])
            if t >= seconds:
                break
            if app == "chat":
                shape = (rng.randint(40, 120), rng.randint(30, 90), Slo(rng.choice((0.6, 0.8, 1.0)), 0.05, None, "interactive"), 128)
            elif app == "completion":
                shape = (rng.randint(24, 64), rng.randint(12, 16), Slo(0.3, 0.06, None, "realtime"), 16)
            else:
                shape = (rng.randint(1800, 2000), rng.randint(40, 80), Slo(15.0, 0.5, None, "batch"), 96)
            jobs.append(Job(0, round(t * 1e9), app, *shape))
    jobs.sort(key=lambda j: j.arrival_ns)
    return [Job(i + 1, j.arrival_ns, j.app, j.prompt_tokens, j.output_tokens, j.slo, j.max_tokens) for i, j in enumerate(jobs)]
