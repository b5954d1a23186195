"""The engine's one loop: drain frames, one iteration, send its outputs and report in one write; idle = poll.

Everything that decides is in `Engine`; this joins it to the channel and hands over its tapes.
"""

import importlib
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from headway.core.errors import ConfigError, HeadwayError, ModelError, UnsupportedMachine
from headway.engine import wire
from headway.engine.channel import EngineSide, PeerGone
from headway.engine.frames import (
    EngineSettings,
    Failure,
    Load,
    Outputs,
    Progress,
    Stepped,
    Stop,
    Usage,
    ViewFrame,
    WantView,
    encode,
    encode_tape,
)
from headway.scheduling.messages import Abort, Dispatch, Downgrade, EngineSpec, EngineUp, LawUpdate, Pace, Relegate, Report

FACTORY = "headway.engine.build:build_engine"
EXIT_FRONT_GONE, EXIT_FAILED = 3, 4
USAGE_S = 1.0
MEASURE_AFTER_S = 1.0
"""Idle for so long, an engine may measure: between the requests of one conversation nobody should wait for that."""
_NO_TAPE = msgspec.Raw(encode([]))

Command = Abort | Downgrade | Relegate | Pace | LawUpdate


class SteppedEngine(Protocol):
    """What this loop needs of `engine.engine.Engine`. Reports say `boot` and `applied_seq` as set here. `tape`, when a list, receives
    (now_ns, change or Iteration) in order."""

    spec: EngineSpec
    boot: int
    applied_seq: int
    tape: list[tuple[int, object]] | None

    def submit(self, submit: wire.Submit, dispatch: Dispatch) -> None: ...
    def abort(self, id: int, why: str) -> None: ...
    def apply(self, command: Command) -> None: ...
    def step(self, now_ns: int, clock: Callable[[], int]) -> tuple[list[wire.Output], Report] | None: ...
    def execute_cpu_s(self) -> float: ...
    def view_plain(self) -> Any: ...
    def law_updates(self) -> list[LawUpdate]: ...
    def law_news(self) -> list[LawUpdate]: ...
    def measure_in_s(self) -> float | None:
        """In how many seconds its law should be measured again, if nothing else is to do then; None = not at all."""
        ...

    def measure_more(self) -> list[LawUpdate]:
        """One piece of that, well under a second; the law, for the router, when that was the last."""
        ...

    def close(self) -> None: ...


Factory = Callable[[EngineSettings, str, Callable[[str, float], None]], SteppedEngine]


class EngineLoop:
    """Joins one channel and one engine. Submit and Dispatch of a sequence may arrive in either order."""

    def __init__(self, channel: EngineSide, engine: SteppedEngine, engine_id: str, boot: int, *, record: bool) -> None:
        self._channel = channel
        self._engine = engine
        self._engine_id = engine_id
        self._boot = boot
        self._record = record
        self._submits: dict[int, wire.Submit] = {}
        self._dispatches: dict[int, Dispatch] = {}
        self._view_wanted = False
        self._usage_due_s: float | None = None
        self._idle_since_s: float | None = None
        engine.boot = boot
        engine.tape = [] if record else None

    def run(self) -> None:
        """Until Stop. Raises PeerGone when the front is gone."""
        channel, engine = self._channel, self._engine
        channel.send(*engine.law_updates(), EngineUp(self._engine_id, self._boot, engine.spec))  # the router wants the law first
        if self._record:
            self._send_view()
        while True:
            for number, message in channel.drain():
                if type(message) is Stop:
                    return
                self._take(number, message)
            if channel.paused():
                channel.wait(1.0)
                continue
            stepped = engine.step(time.monotonic_ns(), time.monotonic_ns)
            if stepped is not None:
                self._send(*stepped)
            if self._view_wanted:
                self._view_wanted = False
                self._send_view()
            self._tell_usage(stepped is not None)
            if stepped is None:
                self._rest()
            else:
                self._idle_since_s = None

    def _rest(self) -> None:
        """Sleeps until something arrives, or measures a piece of a law when it is time for that."""
        measure_in_s = self._engine.measure_in_s()
        if measure_in_s is None:
            self._channel.wait(None)
            return
        now_s = time.monotonic()
        if self._idle_since_s is None:
            self._idle_since_s = now_s
        left_s = max(measure_in_s, self._idle_since_s + MEASURE_AFTER_S - now_s)
        if left_s > 0:
            self._channel.wait(left_s)
        else:
            self._channel.send(*self._engine.measure_more())

    def _take(self, number: int, message: Any) -> None:
        kind = type(message)
        if kind is wire.Submit:
            dispatch = self._dispatches.pop(message.id, None)
            if dispatch is None:
                self._submits[message.id] = message
            else:
                self._engine.submit(message, dispatch)
            return
        self._engine.applied_seq = number
        if kind is Dispatch:
            submit = self._submits.pop(message.id, None)
            if submit is None:
                self._dispatches[message.id] = message
            else:
                self._engine.submit(submit, message)
        elif kind is Abort:
            if self._submits.pop(message.id, None) is None and self._dispatches.pop(message.id, None) is None:
                self._engine.abort(message.id, message.why)
        elif kind is WantView:
            self._view_wanted = self._record
        else:
            self._engine.apply(message)

    def _take_tape(self) -> msgspec.Raw:
        tape = self._engine.tape
        if not tape:
            return _NO_TAPE
        raw = msgspec.Raw(encode_tape(tape))
        tape.clear()
        return raw

    def _send(self, outputs: list[wire.Output], report: Report) -> None:
        stepped = Stepped(msgspec.Raw(encode(report)), self._take_tape())
        news = self._engine.law_news()
        if outputs:
            self._channel.send(Outputs(outputs), stepped, *news)
        else:
            self._channel.send(stepped, *news)

    def _tell_usage(self, worked: bool) -> None:
        """About once in USAGE_S while there is work, and before the engine falls idle."""
        due_s = self._usage_due_s
        if due_s is None:
            if worked:
                self._usage_due_s = time.monotonic() + USAGE_S
        elif not worked or time.monotonic() >= due_s:
            self._usage_due_s = None
            self._channel.send(Usage(self._engine.execute_cpu_s()))

    def _send_view(self) -> None:
        """What the tape holds by now happened before this view, so the pair starts a new tape."""
        self._take_tape()
        self._channel.send(ViewFrame(self._engine_id, self._boot, msgspec.Raw(encode(self._engine.view_plain()))))


def _factory(dotted: str) -> Factory:
    module, _, name = dotted.partition(":")
    factory: Factory = getattr(importlib.import_module(module), name)
    return factory


def _await_load(channel: EngineSide) -> Load:
    while True:
        for _, message in channel.drain():
            if type(message) is Load:
                return message
            if type(message) is Stop:
                raise PeerGone("stopped before loading")
        channel.wait(None)


def serve(sock: socket.socket, engine_id: str, boot: int, factory: str = FACTORY) -> int:
    """Handshake, load, loop. The exit status says why it ended; the front has been told in a Failure frame where it could be."""
    channel = EngineSide(sock)
    try:
        channel.send(wire.Hello(wire.SCHEMA, engine_id, boot, os.getpid()))
        load = _await_load(channel)
        engine = _factory(factory)(load.settings, engine_id, lambda what, fraction: channel.send(Progress(what, fraction)))
        try:
            EngineLoop(channel, engine, engine_id, boot, record=load.record).run()
        finally:
            engine.close()
        return 0
    except PeerGone:
        return EXIT_FRONT_GONE
    except Exception as error:
        retry = not isinstance(error, (ConfigError, ModelError, UnsupportedMachine))
        try:
            channel.send(Failure(type(error).__name__, str(error), retry))
        except PeerGone:
            return EXIT_FRONT_GONE
        if isinstance(error, HeadwayError):
            return EXIT_FAILED
        raise
    finally:
        channel.close()
