"""The engine: sequences in, tokens out, one `step` an iteration. What runs next is decided by `scheduling.iteration`, never here.

Single-threaded, no clock of its own and no I/O: a process (or a test) calls `submit`, `abort`, `apply` and `step`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from headway.core.errors import ConfigError, InvalidRequest
from headway.core.law import IterationLaw
from headway.core.slo import with_class
from headway.engine import wire
from headway.engine.resident import Plan, Resident, ViewMismatch
from headway.engine.sequence import Sequence, new_sequence
from headway.engine.step import StepProgram
from headway.scheduling import iteration as iteration_rules
from headway.scheduling import messages
from headway.scheduling.messages import Change, EngineSpec, Iteration, ModelSpec, Report, Result
from headway.scheduling.view import PolicyName

Command = messages.Abort | messages.Downgrade | messages.Relegate | messages.Pace | messages.LawUpdate
KIND = "generate"
# Ours: the router is told again when a law predicts 5 % otherwise, looked at every 64 iterations (about a second of decoding).
LAW_NEWS_SHARE = 0.05
LAW_NEWS_ITERATIONS = 64


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model ready to run. `law` predicts its iterations; None leaves the scheduler without one until a LawUpdate arrives."""

    program: StepProgram
    stop_ids: frozenset[int]
    accuracy: str = "fast"
    kv_dtype: str = "bf16"
    law: IterationLaw | None = None
    law_id: str = ""


class Scheduler(Protocol):
    """What the engine needs of `headway.scheduling.iteration`: pure functions over a view."""

    def new_view(self, spec: EngineSpec, policy: PolicyName) -> Any: ...
    def compose(self, view: Any, now_ns: int) -> Iteration: ...
    def apply(self, view: Any, now_ns: int, change: Change) -> None: ...
    def slack_ns(self, view: Any, now_ns: int) -> int: ...


class Engine:
    """Executes what `scheduling.iteration` composes over resident models.

    Changes of the view (submissions, aborts, amendments) are applied at the start of the next `step`, with that step's time, so that a
    journal of steps can replay them; pages are freed at once. `tape`, when a list, receives (now_ns, change or Iteration) in order.
    """

    def __init__(
        self,
        engine_id: str,
        models: dict[str, EngineModel],
        max_sequences: int,
        policy: PolicyName,
        *,
        threads: int = 1,
        memory_bytes: int = 0,
        scheduler: Scheduler | None = None,
    ) -> None:
        if not models or max_sequences < 1:
            raise ConfigError(f"an engine needs a model and room for a sequence, not {len(models)} models and {max_sequences} sequences")
        self.engine_id = engine_id
        self.tape: list[tuple[int, object]] | None = None
        self.iterations = 0
        self.boot = 0
        self.applied_seq = 0
        """both as every report says them; whoever joins the engine to a channel sets them"""
        self._models = models
        self._residents = {
            name: Resident(name, model.program, model.stop_ids, model.accuracy, model.kv_dtype, max_sequences)
            for name, model in models.items()
        }
        residents = self._residents.values()
        self.spec = EngineSpec(
            threads=threads,
            memory_bytes=memory_bytes,
            max_rows=min(resident.program.max_rows for resident in residents),
            max_sequences=min(resident.max_sequences for resident in residents),
            models=tuple(self._model_spec(name) for name in models),
        )
        self._scheduler: Scheduler = scheduler if scheduler is not None else cast(Scheduler, iteration_rules)
        self.view = self._scheduler.new_view(self.spec, policy)
        self._where: dict[int, Resident] = {}
        self._changes: list[Change] = list(self.law_updates())
        self._outputs: list[wire.Output] = []
        self._failed: list[tuple[int, str]] = []
        self._finished: list[tuple[int, str]] = []
        self._seq = 0
        self._told: dict[str, tuple[float, float]] = {}
        self._told_at = 0

    # ---- commands ------------------------------------------------------------------------------------------------------
    def submit(self, submit: wire.Submit, dispatch: messages.Dispatch) -> None:
        """Takes a sequence in. What cannot be served becomes an Output with finish "error" of the next step, never an exception."""
        try:
            sequence, resident = self._accept(submit, dispatch)
        except InvalidRequest as error:
            self._outputs.append(wire.Output(submit.id, [], finish="error", error=str(error)))
            self._failed.append((submit.id, "invalid_request"))
            return
        resident.admit(sequence)
        resident.changed.discard(sequence.id)
        self._where[sequence.id] = resident
        self._changes.append(
            messages.Submit(
                id=sequence.id,
                model=submit.model,
                kind=submit.kind,
                slo=dispatch.slo,
                arrival_ns=dispatch.arrival_ns,
                prompt_tokens=sequence.prompt_tokens,
                cached_tokens=sequence.computed,
                max_tokens=sequence.max_tokens,
                pages_held=len(sequence.pages),
            )
        )

    def abort(self, id: int, why: str) -> None:
        """Ends a sequence and frees its pages now; unknown ids have ended already and are ignored."""
        resident = self._where.pop(id, None)
        if resident is None:
            return
        sequence = resident.sequences[id]
        resident.remove(sequence)
        self._changes.append(messages.Abort(id, self.engine_id, why))
        self._outputs.append(wire.Output(id, [], finish="abort", cached_tokens=sequence.cached_tokens))
        self._finished.append((id, "abort"))

    def apply(self, command: Command) -> None:
        """A command of the router other than Dispatch. Commands for sequences that have ended are ignored."""
        match command:
            case messages.Abort():
                self.abort(command.id, command.why)
            case messages.Downgrade() | messages.Relegate():
                resident = self._where.get(command.id)
                if resident is not None:
                    sequence = resident.sequences[command.id]
                    if isinstance(command, messages.Downgrade):
                        sequence.slo = with_class(sequence.slo, command.cls)
                    else:
                        sequence.relegated = True
                    self._changes.append(messages.Amend(command.id, sequence.slo, sequence.relegated))
            case messages.Pace() | messages.LawUpdate():
                self._changes.append(command)

    # ---- one iteration -------------------------------------------------------------------------------------------------
    def step(self, now_ns: int, clock: Callable[[], int]) -> tuple[list[wire.Output], Report] | None:
        """Composes and executes one iteration. None = nothing to do and nothing to tell. `clock` gives monotonic nanoseconds."""
        started_ns = clock()
        for change in self._changes:
            self._apply(now_ns, change)
        self._changes.clear()
        iteration = self._scheduler.compose(self.view, now_ns)
        if not (iteration.decode or iteration.work or iteration.preempt):
            if not self._outputs:
                return None
            return self._take_outputs(), self._report(now_ns, 0, iteration, [], None, 0)
        if self.tape is not None:
            self.tape.append((now_ns, iteration))
        recompute = [(id, self._resident(id).preempt(self._resident(id).sequences[id])) for id in iteration.preempt]
        plans = self._plan(iteration)
        outputs: list[wire.Output] = []
        for resident, plan in plans:
            resident.execute(plan)
            outputs += resident.collect(plan)
        dt_ns = clock() - started_ns
        self.iterations += 1
        result, started = self._settle(plans, outputs, recompute, dt_ns)
        self._apply(now_ns + dt_ns, result)
        self._outputs += outputs
        kv_read_tokens = sum(plan.kv_read_tokens for _, plan in plans)
        return self._take_outputs(), self._report(now_ns, dt_ns, iteration, started, result, kv_read_tokens)

    def law_updates(self) -> list[messages.LawUpdate]:
        """The laws this engine starts with, for its own view and for the router."""
        return [
            messages.LawUpdate(spec.laws[KIND], law.to_params())
            for spec in self.spec.models
            if (law := self._models[spec.model].law) is not None
        ]

    def law_news(self) -> list[messages.LawUpdate]:
        """Laws whose online correction has moved since the router was last told, for the router alone: it places and refuses by what it
        was told, and one measured on a busy machine would refuse for ever what the engine keeps with ease."""
        if self.iterations - self._told_at < LAW_NEWS_ITERATIONS:
            return []
        self._told_at = self.iterations
        news = []
        for spec in self.spec.models:
            law: IterationLaw = self.view.models[spec.model].law
            now = _samples(law)
            fitted = self._models[spec.model].law
            told = self._told.get(spec.model, _samples(fitted) if fitted is not None else (0.0, 0.0))
            if any(abs(a - b) > LAW_NEWS_SHARE * b for a, b in zip(now, told, strict=True)):
                self._told[spec.model] = now
                news.append(messages.LawUpdate(spec.laws[KIND], law.to_params()))
        return news

    def execute_cpu_s(self) -> float:
        """CPU seconds of all threads inside the programs' `execute` so far; 0 when nobody counts them: who owns the threads does."""
        return 0.0

    def view_plain(self) -> Any:
        """The view as plain JSON-able data."""
        return self.view.to_plain()

    def check_invariants(self) -> None:
        """Raise unless every page, table and index entry is accounted for. O(pages), for tests."""
        for resident in self._residents.values():
            resident.check_invariants()
        live = {id for resident in self._residents.values() for id in resident.sequences}
        if live != set(self._where):
            raise ViewMismatch(f"sequences {sorted(live ^ set(self._where))} are known to only one of engine and model")

    def pages(self) -> dict[str, tuple[int, int, int]]:
        """Per model: pages used, cached, total."""
        return {name: (r.pool.used_pages, r.pool.cached_pages, r.pool.pages) for name, r in self._residents.items()}

    def close(self) -> None:
        for resident in self._residents.values():
            resident.program.close()

    # ---- inside --------------------------------------------------------------------------------------------------------
    def _model_spec(self, name: str) -> ModelSpec:
        model, program = self._models[name], self._models[name].program
        return ModelSpec(
            model=name,
            accuracy=model.accuracy,
            kv_dtype=model.kv_dtype,
            context_tokens=program.context_tokens,
            page_tokens=program.page_tokens,
            pages=program.pages,
            laws={KIND: model.law_id or f"{name}/{KIND}"},
        )

    def _accept(self, submit: wire.Submit, dispatch: messages.Dispatch) -> tuple[Sequence, Resident]:
        resident = self._residents.get(submit.model)
        if resident is None:
            names = ", ".join(self._residents)
            raise InvalidRequest(f"model {submit.model!r} is not loaded here; loaded: {names}", param="model", code="model_not_found")
        if submit.kind != KIND:
            raise InvalidRequest(f"model {submit.model!r} cannot do {submit.kind!r}, only {KIND!r}", param="kind")
        if submit.id in self._where:
            raise InvalidRequest(f"sequence id {submit.id} is already running", param="id")
        program, prompt = resident.program, submit.token_ids
        if not prompt:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        if min(prompt) < 0 or max(prompt) >= program.vocab:
            raise InvalidRequest(f"a token id lies outside 0..{program.vocab - 1}", param="prompt")
        room = min(program.context_tokens, program.pages * program.page_tokens) - len(prompt)
        if room < min(1, submit.sampling.max_tokens):
            raise InvalidRequest(
                f"the prompt has {len(prompt)} tokens; model context is {program.context_tokens} and the KV pool holds "
                f"{program.pages * program.page_tokens}: shorten it or start with more --kv-memory",
                param="prompt",
                code="context_length_exceeded",
            )
        sampling = submit.sampling
        stop_ids = frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else resident.stop_ids)
        sequence = new_sequence(
            id=submit.id,
            model=submit.model,
            kind=submit.kind,
            sampling=sampling,
            token_ids=prompt,
            max_tokens=min(sampling.max_tokens, room),
            stop_ids=stop_ids,
            root=resident.root(submit.cache_salt),
        )
        sequence.slo = dispatch.slo
        return sequence, resident

    def _resident(self, id: int) -> Resident:
        try:
            return self._where[id]
        except KeyError:
            raise ViewMismatch(f"the scheduler ordered sequence {id}, which is not here") from None

    def _apply(self, now_ns: int, change: Change) -> None:
        if self.tape is not None:
            self.tape.append((now_ns, change))
        self._scheduler.apply(self.view, now_ns, change)

    def _plan(self, iteration: Iteration) -> list[tuple[Resident, Plan]]:
        plans = []
        for resident in self._residents.values():
            own = resident.sequences
            decode = [own[id] for id, _ in iteration.decode if id in own]
            work = [(own[id], units) for id, units in iteration.work if id in own]
            if decode or work:
                plans.append((resident, resident.plan(decode, work)))
        return plans

    def _settle(
        self,
        plans: list[tuple[Resident, Plan]],
        outputs: list[wire.Output],
        recompute: list[tuple[int, int]],
        dt_ns: int,
    ) -> tuple[Result, list[tuple[int, int]]]:
        """Books what the iteration did; returns it for the view, and (id, cached tokens) of sequences that ran for the first time."""
        started: list[tuple[int, int]] = []
        prefilled: dict[int, int] = {}
        adopted: dict[int, int] = {}
        for resident, plan in plans:
            adopted.update(plan.adopted)
            for span in plan.spans:
                sequence = span.sequence
                prefilled[sequence.id] = span.rows
                if not sequence.started:
                    sequence.started = True
                    started.append((sequence.id, sequence.cached_tokens))
            if plan.starved:
                recompute += [(sequence.id, len(sequence.tokens)) for sequence in resident.unpin_waiting()]
        emitted: list[tuple[int, int]] = []
        finished: list[int] = []
        for output in outputs:
            if output.token_ids:
                emitted.append((output.id, len(output.token_ids)))
            resident = self._where[output.id]
            sequence = resident.sequences[output.id]
            if output.finish:
                finished.append(output.id)
                if output.finish == "error":
                    self._failed.append((output.id, output.error))
                else:
                    self._finished.append((output.id, output.finish))
                resident.remove(sequence)
                del self._where[output.id]
        held: list[tuple[int, int]] = []
        for resident in self._residents.values():
            if resident.changed:
                held += [(id, len(resident.sequences[id].pages)) for id in sorted(resident.changed)]
                resident.changed.clear()
        result = Result(
            iteration=self.iterations,
            dt_ns=dt_ns,
            prefilled=tuple(prefilled.items()),
            emitted=tuple(emitted),
            finished=tuple(finished),
            recompute=tuple(recompute),
            pages_held=tuple(held),
            adopted=tuple(adopted.items()),
            pages={name: (r.pool.free_pages, r.pool.cached_pages) for name, r in self._residents.items()},
        )
        return result, started

    def _take_outputs(self) -> list[wire.Output]:
        outputs, self._outputs = self._outputs, []
        return outputs

    def _report(
        self,
        now_ns: int,
        dt_ns: int,
        iteration: Iteration,
        started: list[tuple[int, int]],
        result: Result | None,
        kv_read_tokens: int,
    ) -> Report:
        self._seq += 1
        # The router compares the next report's time with this, and counts on it for when a newcomer's turn comes: 15-50 us.
        following = self._scheduler.compose(self.view, now_ns + dt_ns) if self._where else None
        finished, self._finished = self._finished, []
        failed, self._failed = self._failed, []
        return Report(
            engine_id=self.engine_id,
            boot=self.boot,
            seq=self._seq,
            applied_seq=self.applied_seq,
            now_ns=now_ns,
            iteration=self.iterations,
            dt_ns=dt_ns,
            next_ns=following.predicted_ns if following is not None else 0,
            slack_ns=self._scheduler.slack_ns(self.view, now_ns + dt_ns),
            emitted=result.emitted if result else (),
            done=tuple((id, KIND, rows) for id, rows in result.prefilled) if result else (),
            started=tuple(started),
            finished=tuple(finished),
            failed=tuple(failed),
            preempted=iteration.preempt,
            pages=self.pages(),
            kv_read_tokens=kv_read_tokens,
        )


def _samples(law: IterationLaw) -> tuple[float, float]:
    """What a law says of a token and of a chunk of a prompt, seconds: two numbers to see it move by."""
    return law.predict_s(1, 512, (), 1), law.predict_s(0, 0, ((64, 0),), 1)
