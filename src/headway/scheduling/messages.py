"""What the scheduler reads and writes: events and commands of the router, changes of an engine's view, and an iteration.

Plain data, int64 nanoseconds, no clock. An `id` names a sequence; a request with n samples is n sequences.
Schemas are versioned: bump SCHEMA whenever a field changes, so that a journal of another version is refused by name.
"""

from dataclasses import dataclass, field

from headway.core.slo import Slo, SloClass

SCHEMA = "headway.scheduling/1"


# ---- what an engine is -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model loaded in an engine. `laws` maps a kind of work ("generate") to the id of its law."""

    model: str
    accuracy: str
    kv_dtype: str
    context_tokens: int
    page_tokens: int
    pages: int
    laws: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine has; `max_rows` and `max_sequences` bound one iteration."""

    threads: int
    memory_bytes: int
    max_rows: int
    max_sequences: int
    models: tuple[ModelSpec, ...]


@dataclass(frozen=True, slots=True)
class Quote:
    """The nearest promise that could be kept, `after_s` seconds from now."""

    ttft_s: float
    tpot_s: float
    after_s: float


# ---- events: inputs of router.step -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Arrive:
    """A sequence asks to be served; its TTFT counts from the `now_ns` of this event. `cached_tokens` maps engine_id to cached tokens.

    `slo` may be unresolved (`Slo.empty`): the router fills in the class default. A promise equal to its class default counts as *not asked
    for*: it is downgraded where a named one is refused. `samples` > 1 informs only: each sample is an Arrive of its own.
    """

    id: int
    model: str
    kind: str
    prompt_tokens: int
    samples: int
    cached_tokens: dict[str, int]
    slo: Slo
    tenant: str
    max_tokens: int
    lineage: int = 0
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What one iteration of an engine did. `next_ns` is the predicted length of the iteration now starting (0 = idle).

    `seq` counts the reports of this boot from 1. `applied_seq` is the number of router commands aimed at this engine (Dispatch, Abort,
    Relegate, Downgrade of a dispatched id, Pace; counted from 1 in the order `step` returned them, per boot) it had applied when the
    report was made. `emitted` counts tokens sampled (a stop token too), `done` = (id, kind, prefill rows done), `started` = (id, cached
    tokens) of sequences whose first rows ran, `preempted` ids that must prefill prompt + emitted again.
    """

    engine_id: str
    boot: int
    seq: int
    applied_seq: int
    now_ns: int
    iteration: int
    dt_ns: int
    next_ns: int
    slack_ns: int
    emitted: tuple[tuple[int, int], ...]
    done: tuple[tuple[int, str, int], ...]
    started: tuple[tuple[int, int], ...]
    finished: tuple[tuple[int, str], ...]
    failed: tuple[tuple[int, str], ...]
    preempted: tuple[int, ...]
    pages: dict[str, tuple[int, int, int]]
    kv_read_tokens: int


@dataclass(frozen=True, slots=True)
class EngineUp:
    engine_id: str
    boot: int
    spec: EngineSpec


@dataclass(frozen=True, slots=True)
class EngineDown:
    engine_id: str
    boot: int
    why: str


@dataclass(frozen=True, slots=True)
class Cancel:
    id: int
    why: str


@dataclass(frozen=True, slots=True)
class Tick:
    pass


@dataclass(frozen=True, slots=True)
class LawUpdate:
    """A law's parameters as plain JSON-able data (`core.law` reads it). Event of the router and change of a view alike."""

    law_id: str
    params: dict[str, object]


Event = Arrive | Report | EngineUp | EngineDown | Cancel | Tick | LawUpdate


# ---- commands: outputs of router.step ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Dispatch:
    id: int
    engine_id: str
    bin: int
    slo: Slo
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Command of the router and change of a view."""

    id: int
    engine_id: str
    why: str


@dataclass(frozen=True, slots=True)
class Hold:
    id: int
    until_ns: int


@dataclass(frozen=True, slots=True)
class Shed:
    id: int
    reason: str
    quote: Quote | None


@dataclass(frozen=True, slots=True)
class Downgrade:
    id: int
    cls: SloClass


@dataclass(frozen=True, slots=True)
class Relegate:
    id: int


@dataclass(frozen=True, slots=True)
class Pace:
    """Command of the router and change of a view: no iteration of this engine should last longer."""

    engine_id: str
    pace_ns: int


@dataclass(frozen=True, slots=True)
class Claim:
    engine_id: str
    bin: int


@dataclass(frozen=True, slots=True)
class Release:
    engine_id: str


@dataclass(frozen=True, slots=True)
class ScaleUp:
    n: int


@dataclass(frozen=True, slots=True)
class ScaleDown:
    engine_id: str


Command = Dispatch | Abort | Hold | Shed | Downgrade | Relegate | Pace | Claim | Release | ScaleUp | ScaleDown


# ---- changes: the only ways a view changes (iteration.apply) -----------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Submit:
    """A sequence enters an engine. `cached_tokens` (whole pages found in the prefix cache and pinned) need no prefill."""

    id: int
    model: str
    kind: str
    slo: Slo
    arrival_ns: int
    prompt_tokens: int
    cached_tokens: int
    max_tokens: int
    pages_held: int


@dataclass(frozen=True, slots=True)
class Amend:
    """Downgrade or Relegate, arrived at the engine."""

    id: int
    slo: Slo
    relegated: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What an iteration did, as the view must know it.

    `prefilled` counts prompt or recompute rows done per sequence, `emitted` tokens sampled (a stop token too: its row ran), `recompute`
    the rows a preempted sequence must do again (prompt + emitted, less what the prefix cache still holds), `pages_held` the pages of every
    sequence whose number changed, `pages` per model (free, evictable) after the iteration. `dt_ns` is the whole turn of the engine's loop
    (compose to tokens handed over), because that is the gap a reader sees; 0 = bookkeeping only (no law is learned from it).
    """

    iteration: int
    dt_ns: int
    prefilled: tuple[tuple[int, int], ...]
    emitted: tuple[tuple[int, int], ...]
    finished: tuple[int, ...]
    recompute: tuple[tuple[int, int], ...]
    pages_held: tuple[tuple[int, int], ...]
    pages: dict[str, tuple[int, int]]
    adopted: tuple[tuple[int, int], ...] = ()
    """rows that a sequence got from the prefix cache in this iteration instead of computing them: progress, but no work for the law"""


Change = Submit | Abort | Amend | Pace | LawUpdate | Result


# ---- what an engine executes next (iteration.compose) ------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Iteration:
    """`decode`: (id, rows), one token each; `work`: (id, units), prompt or recompute tokens to prefill; `preempt`: ids that
    give their pages back first. `budget_ns` is the length it was cut for, `predicted_ns` what the law expects."""

    decode: tuple[tuple[int, int], ...]
    work: tuple[tuple[int, int], ...]
    preempt: tuple[int, ...]
    budget_ns: int
    predicted_ns: int
