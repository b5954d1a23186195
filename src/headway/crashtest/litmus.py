"""Small programs whose outcomes after a crash tell what a file system promises: specs/crashtest.md 5.2, measured on this kernel.

An outcome that was not seen is no proof that it cannot happen. `model_outcomes` lists what a persistence model allows, so that an outcome
which a shipped model forbids is found.
"""

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headway.crashtest.markers import ack

K4 = 4096
Pause = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Litmus:
    """`setup` is durable before the crash; `program` calls `pause` between its operations; `view` names what a recovery finds."""

    name: str
    title: str
    program: Callable[[Path, Pause], None]
    view: Callable[[Path], str]
    setup: Callable[[Path], None] | None = None
    after_return: bool = False
    """Only crashes after the program's last call returned count."""


def _write(path: Path, data: bytes, offset: int = 0, flags: int = 0, *, sync: bool = False) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)
    os.pwrite(fd, data, offset)
    if sync:
        os.fsync(fd)
    os.close(fd)


def _state(path: Path, old: bytes, new: bytes) -> str:
    if not path.exists():
        return "absent"
    raw = path.read_bytes()
    if raw == new:
        return "new"
    if raw == old and old:
        return "old"
    if not raw:
        return "empty"
    return "zeros" if len(raw) == len(new) and not raw[len(old) :].strip(b"\0") and raw.startswith(old) else "mixed"


OLD, NEW = b"o" * K4, b"n" * K4


def _rename_new(d: Path, pause: Pause) -> None:
    _write(d / "tmp", NEW)
    pause()
    (d / "tmp").rename(d / "file")
    pause()


def _rename_over_synced(d: Path, pause: Pause) -> None:
    _write(d / "tmp", NEW, sync=True)
    pause()
    (d / "tmp").rename(d / "file")
    ack("renamed")
    pause()


def _truncate_rewrite(d: Path, pause: Pause) -> None:
    fd = os.open(d / "file", os.O_WRONLY | os.O_TRUNC)
    pause()
    os.write(fd, NEW)
    os.close(fd)
    pause()


def _two_files(d: Path, pause: Pause) -> None:
    _write(d / "a", NEW)
    pause()
    _write(d / "b", NEW)
    pause()


def _two_blocks(d: Path, pause: Pause) -> None:
    _write(d / "file", NEW)
    pause()
    _write(d / "file", NEW, 2 * K4)
    pause()


def _rename_unlink(d: Path, pause: Pause) -> None:
    (d / "a").rename(d / "c")
    pause()
    (d / "b").unlink()
    pause()


def _other_create(d: Path, pause: Pause) -> None:
    _write(d / "a", NEW)
    pause()
    _write(d / "b", NEW, sync=True)
    ack("b")
    pause()


def _log_switch(d: Path, pause: Pause) -> None:
    _write(d / "a", NEW, K4)
    pause()
    _write(d / "b", NEW, sync=True)
    ack("b")
    pause()


def _fallocate(d: Path, pause: Pause) -> None:
    fd = os.open(d / "file", os.O_RDWR | os.O_CREAT, 0o644)
    os.posix_fallocate(fd, 0, K4)
    pause()
    os.pwrite(fd, NEW, 0)
    os.close(fd)
    pause()


def _fsync_new(d: Path, pause: Pause) -> None:
    _write(d / "file", NEW, sync=True)
    ack("synced")
    pause()


def _appending(size: int, offset: int) -> Callable[[Path, Pause], None]:
    def program(d: Path, pause: Pause) -> None:
        _write(d / "file", b"n" * size, offset)
        pause()

    return program


def _create(d: Path, pause: Pause) -> None:
    fd = os.open(d / "file", os.O_RDWR | os.O_CREAT, 0o644)
    pause()
    os.pwrite(fd, NEW, 0)
    os.close(fd)
    pause()


def _rename_over(d: Path, pause: Pause) -> None:
    _rename_new(d, pause)


def _pair(old: bytes, new: bytes) -> Callable[[Path], str]:
    return lambda d: f"a {_state(d / 'a', old, new)}, b {_state(d / 'b', old, new)}"


def _blocks(d: Path) -> str:
    raw = (d / "file").read_bytes()
    return f"block 0 {'new' if raw[:K4] == NEW else 'old'}, block 2 {'new' if raw[2 * K4 : 3 * K4] == NEW else 'old'}"


def _renamed_unlinked(d: Path) -> str:
    renamed, unlinked = (d / "c").exists(), not (d / "b").exists()
    return "out of order" if unlinked and not renamed else "in order"


def _tail(d: Path) -> str:
    return f"a's tail {'kept' if (d / 'a').read_bytes() == OLD + NEW else 'lost'}"


def _new_a(d: Path) -> str:
    return f"a {_state(d / 'a', b'', NEW)}"


def _file(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda d: _write(d / name, content, sync=True)


def _both(content: bytes) -> Callable[[Path], None]:
    def setup(d: Path) -> None:
        _write(d / "a", content, sync=True)
        _write(d / "b", content, sync=True)

    return setup


def _of_file(old: bytes, new: bytes) -> Callable[[Path], str]:
    return lambda d: _state(d / "file", old, new)


LITMUS = {
    one.name: one
    for one in (
        Litmus("create-write", "create and write", _create, _of_file(b"", NEW)),
        Litmus(
            "append-8k", "append 8 KiB after 4 KiB", _appending(2 * K4, K4), _of_file(OLD, OLD + b"n" * 2 * K4), _file("file", OLD)
        ),
        Litmus(
            "append-same-block",
            "append 100 B after 100 B",
            _appending(100, 100),
            _of_file(b"o" * 100, b"o" * 100 + b"n" * 100),
            _file("file", b"o" * 100),
        ),
        Litmus("rename-new", "rename to a new name", _rename_new, _of_file(b"", NEW)),
        Litmus("rename-over", "rename over an existing file", _rename_over, _of_file(OLD, NEW), _file("file", OLD)),
        Litmus("truncate-rewrite", "O_TRUNC and rewrite", _truncate_rewrite, _of_file(OLD, NEW), _file("file", OLD)),
        Litmus("fsync-new", "fsync of a new file, returned: its name", _fsync_new, _of_file(b"", NEW), after_return=True),
        Litmus(
            "rename-over-synced",
            "fsync, rename over, no fsync of the directory, returned",
            _rename_over_synced,
            _of_file(OLD, NEW),
            _file("file", OLD),
            after_return=True,
        ),
        Litmus("two-files", "overwrite file a, then b", _two_files, _pair(OLD, NEW), _both(OLD)),
        Litmus("two-blocks", "overwrite block 0, then block 2", _two_blocks, _blocks, _file("file", OLD * 3)),
        Litmus("rename-unlink", "rename, then unlink of another", _rename_unlink, _renamed_unlinked, _both(OLD)),
        Litmus("other-create", "create a, create and fsync b, returned: a", _other_create, _new_a, after_return=True),
        Litmus("log-switch", "append to log a, create and fsync b, returned", _log_switch, _tail, _file("a", OLD), after_return=True),
        Litmus("fallocate", "fallocate, then write", _fallocate, _of_file(b"", NEW)),
    )
}  # fmt: skip


def run_program(name: str, seed: int, directory: Path, *, slow: bool) -> None:
    """The program with random company between its operations: nothing, a commit of an unrelated file, write-back of its own files."""
    from headway.crashtest.realfs.kernel import start_writeback

    chooser = random.Random(seed)

    def pause() -> None:
        for _ in range(chooser.randint(1, 3)):
            choice = chooser.randrange(3)
            if choice == 1:
                _write(directory.parent / "unrelated", chooser.randbytes(16), sync=True)
            elif choice == 2:
                for file in directory.iterdir():
                    fd = os.open(file, os.O_RDONLY)
                    start_writeback(fd)
                    os.close(fd)
        if slow and chooser.random() < 0.5:  # btrfs commits by its timer
            time.sleep(1.2)

    LITMUS[name].program(directory, pause)


def measure(
    systems: Sequence[str], *, seeds: int = 2, only: Sequence[str] = (), say: Callable[[str], None] = print
) -> dict[str, dict[str, dict[str, int]]]:
    """Counts of outcomes by program and file system. Raises UnsupportedMachine with everything that is missing."""
    from headway.crashtest.realfs.filesystems import require
    from headway.crashtest.realfs.session import RealOptions, observe_real

    require(tuple(systems))
    options = RealOptions(committer_ms=0, stirrer=False, pause_ms=0)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for name, litmus in LITMUS.items():
        if only and name not in only:
            continue
        counts[name] = {}
        for system in systems:
            total: dict[str, int] = {}

            def view(directory: Path, acks: tuple[str, ...], litmus: Litmus = litmus) -> str:
                return "" if litmus.after_return and not acks else litmus.view(directory)

            for seed in range(seeds):
                argv = [sys.executable, "-c", _START, name, str(seed), "{dir}", "slow" if system == "btrfs" else "fast"]
                for outcome, states in observe_real(system, argv, view, options, litmus.setup).items():
                    if outcome:
                        total[outcome] = total.get(outcome, 0) + states
            counts[name][system] = total
            say(f"{name} on {system}: {_counts(total)}")
    return counts


_ROOT = str(Path(__file__).resolve().parents[2])
_START = (
    f"import pathlib, sys; sys.path.insert(0, {_ROOT!r}); from headway.crashtest.litmus import run_program; "
    "run_program(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]), slow=sys.argv[4] == 'slow')"
)


def model_outcomes(name: str, model: str) -> set[str]:
    """Every outcome that a persistence model allows for a program (without company), over all its crash states."""
    from headway.crashtest.crash_states import explore
    from headway.crashtest.trace.record import record

    litmus = LITMUS[name]
    start = (
        f"import pathlib, sys; sys.path.insert(0, {_ROOT!r}); from headway.crashtest.litmus import LITMUS; "
        f"LITMUS[{name!r}].program(pathlib.Path(sys.argv[1]), lambda: None)"
    )
    found = set()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        if litmus.setup is not None:
            litmus.setup(root)
        trace = record([sys.executable, "-c", start, str(root)], root)
        for number, state in enumerate(explore(trace, model, strategy="exhaustive", cap=None)):
            if litmus.after_return and not state.acks:
                continue
            image = Path(scratch) / str(number)
            state.tree.write(image)
            found.add(litmus.view(image))
    return found


def table(counts: dict[str, dict[str, dict[str, int]]], systems: Sequence[str]) -> str:
    """Markdown: one row a program."""
    lines = [f"| program | {' | '.join(systems)} |", f"|---|{'---|' * len(systems)}"]
    lines += [f"| {LITMUS[name].title} | {' | '.join(_counts(row[system]) for system in systems)} |" for name, row in counts.items()]
    return "\n".join(lines)


def _counts(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{outcome} {states}" for outcome, states in sorted(outcomes.items(), key=lambda one: -one[1])) or "no state"
