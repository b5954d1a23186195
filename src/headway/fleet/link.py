"""One engine process as its front sees it: spawn, handshake, loading, frames of this boot, watchdog, death and restart.

Policy (docs/fleet.md): no report for max(5 s, 10 x budget) with work in flight = SIGKILL; restart after 1, 2, 4 s; three deaths in
60 s = unhealthy. Everything runs on the event loop; the child is watched through its pidfd.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from headway.core.errors import ConfigError, EngineDied, HeadwayError, ModelError, UnsupportedMachine
from headway.engine import wire
from headway.engine.channel import FrontSide, pair
from headway.engine.frames import EngineSettings, Failure, Load, Progress, Stop
from headway.engine.process import ONE_THREAD
from headway.scheduling.messages import EngineUp

WATCHDOG_S = 5.0
WATCHDOG_BUDGETS = 10.0
RESTART_AFTER_S = (1.0, 2.0, 4.0)
DEATHS, DEATH_WINDOW_S = 3, 60.0
LOAD_LIMIT_S = 600.0
"""A first start compiles kernels (60 CPU-s); a loading engine that says nothing for this long is dead."""
_ERRORS: dict[str, type[HeadwayError]] = {cls.__name__: cls for cls in (ConfigError, ModelError, UnsupportedMachine)}


class EngineLink:
    """Keeps one engine running. `on_message(message)` gets frames of the current boot; `on_down(boot, why)` a death, once a boot."""

    def __init__(
        self,
        engine_id: str,
        settings: EngineSettings,
        *,
        record: bool,
        on_message: Callable[[Any], None],
        on_down: Callable[[int, str], None],
        on_progress: Callable[[str, float], None] | None,
        factory: str = "",
    ) -> None:
        self.engine_id = engine_id
        self.settings = settings
        self.boot = 0
        self.up = False
        self.unhealthy = ""
        self.restarts = 0
        self.first_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._record = record
        self._factory = factory
        self._on_message, self._on_down, self._on_progress = on_message, on_down, on_progress
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: FrontSide | None = None
        self._pidfd = -1
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self._why = ""
        self._final: HeadwayError | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._row = 0
        self._spawned_s = 0.0
        self._alive_s = 0.0
        self._budget_s = 0.0
        self._stopping = False

    # ---- life ------------------------------------------------------------------------------------------------------------
    def spawn(self) -> None:
        """Starts a process for the next boot."""
        self.boot += 1
        self._restart = None
        self._why, self._final = "", None
        front, engine = pair()
        with engine:
            arguments = [
                sys.executable,
                "-P",
                "-m",
                "headway.engine.process",
                str(engine.fileno()),
                self.engine_id,
                str(self.boot),
                str(os.getpid()),
            ]
            if self._factory:
                arguments.append(self._factory)
            # -P and the front's own path: the working directory must not shadow a module.
            environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            try:
                self._process = subprocess.Popen(arguments, pass_fds=(engine.fileno(),), stdin=subprocess.DEVNULL, env=environment)
            except OSError as error:
                front.close()
                self._loop.call_soon(self._died, f"could not be started: {error}")
                return
        boot = self.boot
        self._channel = FrontSide(front, self._loop, lambda _, message: self._receive(boot, message), self._channel_gone)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._exited)
        self._spawned_s = self._alive_s = time.monotonic()
        self._channel.send(Load(self.settings, self._record))

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def busy(self) -> bool:
        return self._channel is not None and self._channel.busy

    def send(self, *messages: object) -> None:
        if self._channel is not None:
            self._channel.send(*messages)

    async def stop(self, seconds: float = 2.0) -> None:
        """Ends the process: Stop, then SIGKILL. Returns when it has been reaped."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
        if not self.first_up.done():
            self.first_up.cancel()
        self.send(Stop())
        deadline = time.monotonic() + seconds
        while self._process is not None and self._process.poll() is None:
            if time.monotonic() > deadline:
                self._process.kill()
            await asyncio.sleep(0.01)
        self._close()

    # ---- watchdog ----------------------------------------------------------------------------------------------------------
    def reported(self, next_ns: int) -> None:
        """A report came; the iteration now starting should last `next_ns`."""
        self._alive_s = time.monotonic()
        self._budget_s = next_ns / 1e9

    def work_began(self) -> None:
        """The first request in flight: the clock starts now, not at the last report."""
        self._alive_s = time.monotonic()

    def check(self, in_flight: bool) -> None:
        """Called about once a second. Kills an engine that has stopped answering."""
        if self._process is None or self._stopping or self._why:
            return
        silent_s = time.monotonic() - self._alive_s
        if not self.up:
            if silent_s > LOAD_LIMIT_S:
                self.kill(f"no sign of life for {silent_s:.0f} s while loading")
        elif in_flight and silent_s > (limit_s := max(WATCHDOG_S, WATCHDOG_BUDGETS * self._budget_s)):
            self.kill(f"no report for {silent_s:.1f} s (limit {limit_s:.1f} s) with work in flight")

    def kill(self, why: str) -> None:
        """SIGKILL; `on_down` follows when the process is gone."""
        if self._process is not None:
            self._why = self._why or why
            self._process.kill()

    # ---- events of the loop ------------------------------------------------------------------------------------------------
    def _receive(self, boot: int, message: Any) -> None:
        if boot != self.boot:
            return
        kind = type(message)
        if kind is wire.Hello:
            self._greet(message)
        elif kind is Progress:
            self._alive_s = time.monotonic()
            if self._on_progress is not None:
                self._on_progress(message.what, message.fraction)
        elif kind is Failure:
            self._why = f"{message.error}: {message.message}"
            if not message.retry:
                self._final = _ERRORS.get(message.error, EngineDied)(message.message)
        else:
            if kind is EngineUp:
                self.up = True
                self._alive_s = time.monotonic()
                if not self.first_up.done():
                    self.first_up.set_result(None)
            self._on_message(message)

    def _greet(self, hello: wire.Hello) -> None:
        expected = (wire.SCHEMA, self.engine_id, self.boot, self.pid)
        got = (hello.schema, hello.engine_id, hello.boot, hello.pid)
        if got != expected:
            self._final = EngineDied(f"handshake: expected {expected}, got {got}; front and engine are of different versions")
            self.kill(str(self._final))

    def _channel_gone(self, why: str) -> None:
        """The channel broke: the process is dead or must be. The death itself is taken up when it has been reaped."""
        self._channel = None
        self.up = False
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # one that exits by itself has its exit status already; SIGKILL does not change it
        ended = any(word in why for word in ("closed by the other side", "Connection reset", "Broken pipe"))
        if not ended:  # else its exit status says more
            self._why = self._why or why

    def _exited(self) -> None:
        process = self._process
        if process is None or process.poll() is None:
            return
        if self._channel is not None:
            self._channel.read_now()  # last words; at end of file this closes the channel
        code = process.returncode
        self._died(self._why or (f"ended by signal {-code}" if code < 0 else f"exited with status {code}"))

    def _died(self, why: str) -> None:
        boot = self.boot
        lived_s = time.monotonic() - self._spawned_s
        self._close()
        if self._stopping:
            return
        now_s = time.monotonic()
        self._deaths.append(now_s)
        recent = sum(now_s - death < DEATH_WINDOW_S for death in self._deaths)
        self._row = self._row + 1 if lived_s < DEATH_WINDOW_S else 1
        if self._final is not None or recent >= DEATHS:
            times = "" if self._final is not None else f"{recent} deaths in {DEATH_WINDOW_S:.0f} s, last: "
            self.unhealthy = f"engine {self.engine_id} is down: {times}{why}"
            if not self.first_up.done():
                self.first_up.set_exception(self._final or EngineDied(self.unhealthy))
        else:
            self.restarts += 1
            self._restart = self._loop.call_later(RESTART_AFTER_S[min(self._row, len(RESTART_AFTER_S)) - 1], self.spawn)
        self._on_down(boot, why)

    def _close(self) -> None:
        self.up = False
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._process is not None:
            self._process.wait()  # it is gone: reaps without waiting
            self._process = None
