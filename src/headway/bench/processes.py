"""Child processes that cannot outlive us: own process group each, ended by id, killed by the kernel if we die first."""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headway.core.errors import HeadwayError

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class LaunchError(HeadwayError):
    """A service did not start; carries the last lines of its log."""


def _leash() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(slots=True)
class Children:
    """Started children, newest last. `stop_all` ends their groups: SIGTERM, then SIGKILL after `grace_s`."""

    running: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(
        self, argv: Sequence[str], *, env: dict[str, str] | None = None, log: Path | None = None, pipes: bool = False
    ) -> asyncio.subprocess.Process:
        """Starts `argv` in its own session. `log` takes stdout and stderr; `pipes` joins stdin and stdout to us instead."""
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context(log.open("ab")) if log is not None else asyncio.subprocess.DEVNULL
            try:
                child = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.PIPE if pipes else asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE if pipes else sink,
                    stderr=sink if log is not None else None,
                    env={**os.environ, **(env or {})},
                    start_new_session=True,
                    preexec_fn=_leash,
                    limit=1 << 24,
                )
            except OSError as error:
                raise LaunchError(f"cannot start {argv[0]!r}: {error.strerror}; check that it is installed and in PATH") from error
        self.running.append(child)
        return child

    async def stop(self, child: asyncio.subprocess.Process, grace_s: float = 10.0) -> None:
        """Ends one child and its group, whatever it started."""
        if child in self.running:
            self.running.remove(child)
        # The group is signalled even when its leader is gone: grandchildren may live on.
        _signal_group(child.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await child.wait()
                while _group_alive(child.pid):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pass
        finally:
            _signal_group(child.pid, signal.SIGKILL)
        await child.wait()

    async def stop_all(self, grace_s: float = 10.0) -> None:
        await asyncio.gather(*(self.stop(child, grace_s) for child in reversed(list(self.running))))


@contextlib.asynccontextmanager
async def children() -> AsyncIterator[Children]:
    """Ends every child on the way out, also when cancelled by Ctrl-C: the clean-up is shielded from a second cancellation."""
    group = Children()
    try:
        yield group
    finally:
        await asyncio.shield(group.stop_all())


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def headway_command(*arguments: str) -> list[str]:
    """The command line of this installation, as argv: never another `headway` that happens to be first in PATH."""
    return [sys.executable, "-m", "headway.cli.main", *arguments]


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _group_alive(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
