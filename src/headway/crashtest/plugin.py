"""`@crash_test`: a pytest test that traces a workload and checks every chosen crash state with the function it returns.

@crash_test(model="ext4", budget_s=20)
def test_journal(env):
    env.run(workload)                       # a module-level function of one argument (the directory), or a command
    return lambda dir, acks: invariant(dir, acks)
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headway.core.errors import ConfigError
from headway.crashtest.check import CheckOptions, Run, check
from headway.crashtest.crash_states import Strategy
from headway.crashtest.operations import Trace
from headway.crashtest.oracle import CallableOracle
from headway.crashtest.report import text
from headway.crashtest.scratch import scratch_directory
from headway.crashtest.trace.record import Backend, record

Workload = Callable[[Path], object]
Oracle = Callable[..., object]


@dataclass(slots=True)
class CrashEnvironment:
    """What a test gets: `dir` is empty, `run` traces one workload in it."""

    dir: Path
    backend: Backend = "auto"
    traces: list[Trace] = field(default_factory=list)

    def run(self, workload: Workload | Sequence[str]) -> None:
        """Runs a function in a fresh interpreter, or a command in which {dir} is replaced. Raises ConfigError, TraceError."""
        if self.traces:
            raise ConfigError("env.run was called twice: a crash test traces one run; put both parts into one workload")
        words = _interpreter(workload) if callable(workload) else list(workload)
        trace = record([word.replace("{dir}", str(self.dir)) for word in words], self.dir, backend=self.backend)
        self.traces.append(trace)


def _interpreter(workload: Workload) -> list[str]:
    file, name = inspect.getsourcefile(workload), workload.__qualname__
    if file is None or not name.isidentifier():
        raise ConfigError(f"{name} cannot be run in another process: give a function at the top of a module, or a command")
    start = (
        f"import importlib.util, pathlib, sys; sys.path[:0] = {sys.path!r}; "
        f"spec = importlib.util.spec_from_file_location('workload', {file!r}); module = importlib.util.module_from_spec(spec); "
        f"spec.loader.exec_module(module); module.{name}(pathlib.Path(sys.argv[1]))"
    )
    return [sys.executable, "-c", start, "{dir}"]


def crash_test(
    *,
    model: str = "ext4",
    budget_s: float | None = 20.0,
    strategy: Strategy = "representative",
    limit: int | None = None,
    seed: int = 0,
    ignore: Sequence[str] = (),
    backend: Backend = "auto",
) -> Callable[[Callable[[CrashEnvironment], Oracle]], Callable[[], None]]:
    """The test fails on a bug, on an unfaithful trace, and when the budget ended before every chosen state was tested."""

    def decorate(test: Callable[[CrashEnvironment], Oracle]) -> Callable[[], None]:
        def run() -> None:
            import shutil

            scratch = scratch_directory("test")
            try:
                environment = CrashEnvironment(scratch / "root", backend)
                oracle = test(environment)
                if not environment.traces or not callable(oracle):
                    raise ConfigError(f"{test.__qualname__} must call env.run(...) and return its check (dir[, acks[, begun]])")
                options = CheckOptions(strategy, budget_s, limit=limit, seed=seed, ignore=tuple(ignore))
                result = check(environment.traces[0], lambda: CallableOracle(oracle), model, options)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            if result.exit_code:
                raise CrashTestFailed(result)

        run.__name__, run.__doc__, run.__module__, run.__qualname__ = test.__name__, test.__doc__, test.__module__, test.__qualname__
        return run

    return decorate


class CrashTestFailed(AssertionError):
    """Carries the run; its text is the report."""

    def __init__(self, run: Run) -> None:
        lines = [text([run])]
        for finding in run.findings[:3]:
            lines += ["", finding.title, *finding.lines]
        super().__init__("\n".join(lines))
        self.run = run
