"""Records one run of a program on a real file system, then mounts every crash state that its device may hold and judges what is there.

Everything happens in a forked process with a private mount namespace: when it ends, by whatever cause, the kernel removes its mounts,
its loop devices detach themselves and its children die with it.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from headway.core.errors import HeadwayError
from headway.crashtest.forkserver import ForkServer
from headway.crashtest.oracle import DEFAULT_TIMEOUT_S, Oracle
from headway.crashtest.realfs.filesystems import FileSystem, file_system, make, require
from headway.crashtest.realfs.isolation import Report, in_own_process
from headway.crashtest.realfs.kernel import Loop, die_with_parent, mount, start_writeback, unmount
from headway.crashtest.realfs.write_log import Epoch, RealState, WriteLog, read_log, states
from headway.crashtest.scratch import scratch_directory
from headway.crashtest.tree import Tree

MOUNT_REFUSED = "the kernel cannot mount the file system"


@dataclass(frozen=True, slots=True)
class RealOptions:
    """`committer_ms`: an unrelated file is written and synced every 0 to 2x so many ms (0: never), which commits metadata without the
    program's delayed data; `stirrer`: sync_file_range on its files at random; `pause_ms`: the program is stopped for 0 to 2x so long at
    random moments, so that both find something to do; `split_bytes` tears device writes (0: whole)."""

    committer_ms: float = 5.0
    stirrer: bool = True
    pause_ms: float = 8.0
    block_bytes: int = 4096
    split_bytes: int = 0
    seed: int = 0
    samples: int = 0
    limit: int = 5000
    timeout_s: float = DEFAULT_TIMEOUT_S
    workload_timeout_s: float = 120.0


@dataclass(slots=True)
class RealFailure:
    """One verdict and how many states gave it; `example` is the first state's control command."""

    verdict: str
    states: int
    example: str
    epoch: int
    acks: tuple[str, ...]


@dataclass(slots=True)
class RealRun:
    """What came out on one file system."""

    system: str
    kernel: str
    states: int = 0
    distinct: int = 0
    writes: int = 0
    epochs: int = 0
    seconds: float = 0.0
    failures: list[RealFailure] = field(default_factory=list)
    output: str = ""

    @property
    def failing_states(self) -> int:
        return sum(failure.states for failure in self.failures)


Setup = Callable[[Path], None]


def run_real(
    system_name: str,
    argv: Sequence[str],
    oracle: Callable[[], Oracle],
    options: RealOptions | None = None,
    *,
    setup: Setup | None = None,
    progress: Report | None = None,
) -> RealRun:
    """Runs `argv` ({dir} is the directory to work in) and checks its crash states on the file system. Raises UnsupportedMachine."""
    require((system_name,))
    chosen = options or RealOptions()
    system = file_system(system_name, block_bytes=chosen.block_bytes)
    return in_own_process(lambda report: _judge(system, argv, oracle, chosen, setup, report), progress)


def observe_real(
    system_name: str, argv: Sequence[str], view: Callable[[Path, tuple[str, ...]], str], options: RealOptions, setup: Setup | None = None
) -> dict[str, int]:
    """Counts what `view(dir, acks)` says over all crash states: the litmus programs' question."""
    require((system_name,))
    system = file_system(system_name, block_bytes=options.block_bytes)

    def body(report: Report) -> dict[str, int]:
        counts: dict[str, int] = {}
        with _Session(system, options) as session:
            recorded = session.record(argv, setup)
            for state in session.states(recorded):
                with session.shown(state) as directory:
                    seen = MOUNT_REFUSED if directory is None else view(directory, state.acks)
                counts[seen] = counts.get(seen, 0) + 1
        return counts

    return in_own_process(body, None)


def _judge(
    system: FileSystem,
    argv: Sequence[str],
    oracle: Callable[[], Oracle],
    options: RealOptions,
    setup: Setup | None,
    report: Report,
) -> RealRun:
    run = RealRun(system.name, os.uname().release)
    failures: dict[str, RealFailure] = {}
    seen: dict[tuple[bytes, tuple[str, ...], tuple[str, ...]], str | None] = {}
    with _Session(system, options) as session, ForkServer(oracle, timeout_s=options.timeout_s) as checker:
        recorded = session.record(argv, setup)
        run.epochs, run.output = len(recorded.epochs), recorded.output
        run.writes = sum(epoch.stop - epoch.first for epoch in recorded.epochs)
        began = time.monotonic()
        chosen = list(islice(session.states(recorded), options.limit))
        for state in chosen:
            run.states += 1
            report(run.states, len(chosen))
            with session.shown(state) as directory:
                tree = None if directory is None else Tree.read(directory)
            if tree is None:
                verdict: str | None = MOUNT_REFUSED
            else:
                key = (tree.digest(), state.acks, state.begun)
                if key not in seen:
                    seen[key] = session.check(checker, tree, state)
                verdict = seen[key]
            if verdict is not None:
                failure = failures.setdefault(verdict, RealFailure(verdict, 0, state.command(), state.epoch, state.acks))
                failure.states += 1
        run.seconds = time.monotonic() - began
    run.distinct = len(seen)
    run.failures = sorted(failures.values(), key=lambda failure: -failure.states)
    return run


@dataclass(frozen=True, slots=True)
class _Recorded:
    log: WriteLog
    epochs: tuple[Epoch, ...]
    output: str


class _Session:
    """The device and its mounts. Everything lives in one scratch directory in memory."""

    def __init__(self, system: FileSystem, options: RealOptions) -> None:
        self.system = system
        self.options = options

    def __enter__(self) -> "_Session":
        self.scratch = scratch_directory("realfs")
        for name in ("device", "mount", "check"):
            (self.scratch / name).mkdir()
        self.mount_point = self.scratch / "mount"
        self.work = self.mount_point / "work"
        self.log = self.scratch / "log"
        base = self.scratch / "base.img"
        make(self.system, base)
        self.log.touch()
        package_root = str(Path(__file__).resolve().parents[3])
        self.server = subprocess.Popen(
            [sys.executable, "-m", "headway.crashtest.realfs.device", str(self.scratch / "device"), str(base), str(self.log)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([package_root, os.environ.get("PYTHONPATH", "")])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.disk = self.scratch / "device" / "disk.img"
        deadline = time.monotonic() + 20
        while not self.disk.exists():
            if self.server.poll() is not None or time.monotonic() > deadline:
                said = self.server.communicate()[0].decode(errors="replace") if self.server.poll() is not None else "no answer in 20 s"
                shutil.rmtree(self.scratch, ignore_errors=True)
                raise HeadwayError(f"the FUSE device did not start: {said.strip()[-300:]}")
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        for directory in (self.mount_point, self.scratch / "device"):
            with contextlib.suppress(OSError):
                unmount(directory, detach=True)
        try:
            self.server.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.communicate()
        shutil.rmtree(self.scratch, ignore_errors=True)

    # ---- recording --------------------------------------------------------------------------------------------------------
    def record(self, argv: Sequence[str], setup: Setup | None) -> _Recorded:
        self._mount()
        self.work.mkdir()
        if setup is not None:
            setup(self.work)
        os.sync()  # what the set-up wrote is no part of the question
        start = self.log.stat().st_size
        stop = threading.Event()
        markers = os.open(self.scratch / "device" / "markers", os.O_WRONLY | os.O_CLOEXEC)
        threads: list[threading.Thread] = []
        if self.options.committer_ms > 0:
            threads.append(threading.Thread(target=self._commit, args=(stop,)))
        if self.options.stirrer:
            threads.append(threading.Thread(target=self._stir, args=(stop,)))
        child = subprocess.Popen(
            [word.replace("{dir}", str(self.work)) for word in argv],
            env=os.environ | {"HEADWAY_CRASH_FD": str(markers), "HEADWAY_CRASH_DIR": str(self.work)},
            pass_fds=(markers,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        os.close(markers)
        if self.options.pause_ms > 0:
            threads.append(threading.Thread(target=self._pause, args=(stop, child.pid)))
        for thread in threads:
            thread.start()
        try:
            output = child.communicate(timeout=self.options.workload_timeout_s)[0].decode(errors="replace")
        except subprocess.TimeoutExpired as problem:
            raise HeadwayError(f"the workload did not end within {self.options.workload_timeout_s:g} s; give it more time") from problem
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            end = self.log.stat().st_size
            stop.set()
            for thread in threads:
                thread.join()
        if child.returncode != 0:
            raise HeadwayError(f"the workload ended with status {child.returncode}: {output.strip()[-400:]}")
        unmount(self.mount_point)
        log = read_log(self.log, end)
        during = tuple(epoch for epoch in log.epochs if epoch.end > start)
        return _Recorded(log, during, output)

    def states(self, recorded: _Recorded) -> Iterator[RealState]:
        """The crash states of the workload's own epochs."""
        options = self.options
        return states(recorded.log, recorded.epochs, split_bytes=options.split_bytes, seed=options.seed, samples=options.samples)

    def _commit(self, stop: threading.Event) -> None:
        chooser = random.Random(self.options.seed)
        if not self._begun(stop):
            return
        fd = os.open(self.mount_point / "unrelated", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        while not stop.wait(chooser.random() * self.options.committer_ms / 500):
            os.pwrite(fd, chooser.randbytes(16), 0)
            os.fsync(fd)
        os.close(fd)

    def _stir(self, stop: threading.Event) -> None:
        chooser = random.Random(self.options.seed + 1)
        while not stop.wait(chooser.random() * 0.01):
            files = [file for file in self.work.rglob("*") if file.is_file() and not file.is_symlink()]
            if files:
                with contextlib.suppress(OSError):
                    fd = os.open(chooser.choice(files), os.O_RDONLY | os.O_CLOEXEC)
                    start_writeback(fd)
                    os.close(fd)

    def _begun(self, stop: threading.Event) -> bool:
        """Waits until the program has made its first file: starting an interpreter is not worth a crash state."""
        while not stop.wait(0.0005):
            if any(self.work.iterdir()):
                return True
        return False

    def _pause(self, stop: threading.Event, group: int) -> None:
        """Slices of under a millisecond between pauses. Until the program has made its first file the pauses are short.

        btrfs commits by its timer (commit=1): now and then a pause is longer than that."""
        chooser = random.Random(self.options.seed + 2)
        begun = False
        with contextlib.suppress(ProcessLookupError):
            while not stop.wait(chooser.random() * 0.0006):
                os.killpg(group, signal.SIGSTOP)
                begun = begun or any(self.work.iterdir())
                long = begun and self.system.name == "btrfs" and chooser.random() < 0.02
                stop.wait(1.3 if long else chooser.random() * self.options.pause_ms / 500 if begun else 0.0002)
                os.killpg(group, signal.SIGCONT)

    # ---- replaying --------------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def shown(self, state: RealState) -> Iterator[Path | None]:
        """The program's directory after the kernel recovered the state; None when it cannot be mounted."""
        fd = os.open(self.scratch / "device" / "control", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, state.command().encode())
        os.close(fd)
        try:
            self._mount()
        except OSError:
            yield None
            return
        try:
            yield self.work
        finally:
            unmount(self.mount_point)

    def check(self, checker: ForkServer, tree: Tree, state: RealState) -> str | None:
        directory = Path(tempfile.mkdtemp(dir=self.scratch / "check"))
        try:
            tree.write(directory)
            return checker.check(directory, state.acks, state.begun)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _mount(self) -> None:
        loop = Loop(self.disk)
        try:
            mount(loop.path, self.mount_point, self.system.name, self.system.options)
        finally:
            loop.close()
