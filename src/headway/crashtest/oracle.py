"""Who says whether a recovered directory is fine: a program, a Python callable, or the differential oracle that needs no checker.

An oracle never sees how a state was made; it gets a directory that it may change, the acknowledged and the begun operations.
Signals and timeouts are failures: LMDB without sync answers a crash state with SIGBUS (specs/crashtest.md 5.6).
"""

import importlib
import inspect
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from headway.core.errors import ConfigError

Verdict: TypeAlias = str | None
"""None = consistent; text = what is wrong, in one line."""
Check: TypeAlias = Callable[[Path, Sequence[str], Sequence[str]], Verdict]
DEFAULT_TIMEOUT_S = 30.0


class Oracle(Protocol):
    """Judges one recovered directory. `acks` and `begun` are marker texts in order of time; `begun` includes acknowledged ones."""

    def check(self, directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class ProgramOracle:
    """Runs `command` ({dir} and {acks} are replaced; HEADWAY_CRASH_DIR, HEADWAY_CRASH_ACKS name the same): exit 0 = fine."""

    command: str
    timeout_s: float = DEFAULT_TIMEOUT_S

    def check(self, directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
        markers = directory.parent / f"{directory.name}.acks"
        _write_markers(markers, acks, begun)
        argv = [word.replace("{dir}", str(directory)).replace("{acks}", str(markers)) for word in shlex.split(self.command)]
        environment = os.environ | {"HEADWAY_CRASH_DIR": str(directory), "HEADWAY_CRASH_ACKS": str(markers)}
        try:
            child = subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as problem:
            raise ConfigError(f"the checker {argv[0]!r} cannot be run ({problem.strerror}): give a program that exists") from problem
        try:
            output, _ = child.communicate(timeout=self.timeout_s)
        except subprocess.TimeoutExpired:
            return f"the checker did not answer within {self.timeout_s:g} s"
        finally:
            _end_group(child.pid)
            child.communicate()
            markers.unlink(missing_ok=True)
        return _verdict_of_exit(child.returncode, output.decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class CallableOracle:
    """Wraps `function(dir, acks)` or `function(dir, acks, begun)`; what it raises is its verdict. Meant to run inside a fork server."""

    function: Callable[..., object]

    def check(self, directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
        arguments = (directory, acks, begun)[: _arity(self.function)]
        try:
            answer = self.function(*arguments)
        except Exception as problem:  # the recovery program's own failure is exactly what is looked for
            return f"{type(problem).__name__}: {problem}"
        if answer is None or answer is True:
            return None
        return "the check returned False" if answer is False else str(answer)


def _arity(function: Callable[..., object]) -> int:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return 3
    taken = sum(parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters)
    if taken not in (1, 2, 3):
        raise ConfigError(f"an oracle takes (dir), (dir, acks) or (dir, acks, begun); {function!r} takes {taken} arguments")
    return taken


def load_callable(name: str) -> Callable[..., object]:
    """The object `module:function` names; the module may lie in the current directory. Raises ConfigError with what is missing."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"an oracle is named module:function, not {name!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as problem:
        raise ConfigError(f"the oracle {name!r} cannot be loaded: {problem}") from problem
    if not callable(found):
        raise ConfigError(f"the oracle {name!r} is a {type(found).__name__}, not a function")
    return found


def _write_markers(path: Path, acks: Sequence[str], begun: Sequence[str]) -> None:
    lines = [f"begin {text}" for text in begun] + [f"ack {text}" for text in acks]
    path.write_text("".join(f"{line}\n" for line in lines))


def _verdict_of_exit(status: int, output: str) -> Verdict:
    if status == 0:
        return None
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")
    what = signal_name(-status) if status < 0 else f"exit {status}"
    return f"the checker ended with {what}{f': {last[:300]}' if last else ''}"


def signal_name(number: int) -> str:
    """`SIGBUS` for 7; unknown numbers as they are."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end_group(pid: int) -> None:
    """A checker's own children must not outlive it; its group is its pid (start_new_session)."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
