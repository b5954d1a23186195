"""Call stacks, native and Python mixed, from a library preloaded into the traced program (stacks.c), built on demand.

The tracer stays the witness of what happened; a call that bypasses libc, or a static program, has no stack. Without a C compiler
(cc, gcc, or the `ziglang` wheel) there are none, and update behaviours are told apart by the shapes of operations alone.
"""

import hashlib
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from headway.core.durable import make_dirs, publish
from headway.core.paths import home_cache
from headway.crashtest.operations import Frame, Operation, TraceError

FOLDER_VARIABLE = "HEADWAY_CRASH_STACKS"
PRELOAD_VARIABLE = "HEADWAY_CRASH_PRELOAD"  # what the ptrace tracer turns into LD_PRELOAD for the program
WAIT_VARIABLE = "HEADWAY_CRASH_STACKS_WAIT"
_SOURCE = Path(__file__).with_name("stacks.c")
_COMPILERS = (["cc"], ["gcc"], [sys.executable, "-m", "ziglang", "cc"])


def library() -> Path | None:
    """The built library, from the cache if its source has not changed; None without a compiler that works. Raises TraceError."""
    source = _SOURCE.read_bytes()
    built = home_cache() / "crashtest" / f"stacks-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if built.exists():
        return built
    compiler = next((one for one in _COMPILERS if _works(one)), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="headway-stacks-") as scratch:
        made = Path(scratch) / "stacks.so"
        done = subprocess.run(
            [*compiler, "-O2", "-shared", "-fPIC", "-o", str(made), str(_SOURCE), "-ldl"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise TraceError(f"{' '.join(compiler)} cannot build {_SOURCE.name}: {done.stderr[-500:]}; trace without stacks")
        make_dirs(built.parent)
        publish(built, made.read_bytes(), durable=False, mode=0o755)
    return built


def _works(compiler: Sequence[str]) -> bool:
    """Being in PATH proves nothing."""
    try:
        return subprocess.run([*compiler, "--version"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def attach(operations: Sequence[Operation], folder: Path) -> list[Operation]:
    """The operations with the stacks from the logs in `folder`.

    Both list a thread's calls in order; each operation takes the next entry with its kind, descriptor, result and file name.
    """
    entries = _read(folder)
    last: dict[int, int] = {}  # thread: entry taken last
    found = []
    for operation in operations:
        fd = operation.fd2 if operation.kind in ("open", "creat") else operation.fd
        kind = "open" if operation.kind == "creat" else operation.kind
        name = operation.paths[-1].rstrip("/").rpartition("/")[2] if operation.paths else ""
        places = entries.get((operation.tid, kind, -1 if fd is None else fd, operation.result, name), [])
        after = bisect_right(places, last.get(operation.tid, -1), key=lambda entry: entry[0])
        if after < len(places):
            last[operation.tid], stack = places[after]
            operation = replace(operation, stack=stack)
        found.append(operation)
    return found


_Entries = dict[tuple[int, str, int, int, str], list[tuple[int, tuple[Frame, ...]]]]


def _read(folder: Path) -> _Entries:
    """(thread, kind, descriptor, result, file name) to the places in that thread's order, with stacks."""
    entries: _Entries = {}
    stacks: dict[bytes, tuple[Frame, ...]] = {}
    count: dict[int, int] = {}
    for log in sorted(folder.iterdir()):
        with log.open("rb") as file:
            used = int.from_bytes(file.read(8), "little")
            text = file.read(max(0, min(used, log.stat().st_size) - 8))
        for line in text.split(b"\n"):
            head, _, frames = line.partition(b"\x1e")
            words = head.split(b" ", 4)
            if len(words) != 5:
                continue  # the last line of a full log
            if frames not in stacks:
                stacks[frames] = tuple(_frame(one) for one in frames.split(b"\x1e")) if frames else ()
            tid = int(words[0])
            place = count.get(tid, 0)
            count[tid] = place + 1
            key = (tid, words[1].decode(), int(words[2]), int(words[3]), words[4].decode("utf-8", "surrogateescape"))
            entries.setdefault(key, []).append((place, stacks[frames]))
    return entries


def _frame(raw: bytes) -> Frame:
    function, file, line, address = raw.decode("utf-8", "replace").split("\x1f")
    return Frame(function, file, int(line), int(address, 16))
