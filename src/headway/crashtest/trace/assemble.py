"""Decoded system calls of all threads become the operations of a Trace: processes, working directories, scope, markers, order.

Scope: the root directory, whatever is later renamed or linked into it, and the sources of copies into it.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from headway.crashtest import linux_abi as abi
from headway.crashtest.operations import Operation, TraceError
from headway.crashtest.trace.calls import Call
from headway.crashtest.trace.translate import Draft, Process, Unreadable, operation_of, translate
from headway.crashtest.tree import OUTSIDE, Directory, File, Tree

# Calls whose effect others see before they return: a child runs, the number of a closed descriptor is given out again.
EARLY = frozenset({"clone", "clone3", "fork", "vfork", "close"})
FORKS = frozenset({"clone", "clone3", "fork", "vfork"})
MAX_SOURCE_BYTES = 256 << 20  # of a file outside of the root that was copied into it
_MARKER = re.compile(rb"(begin|ack) (.*)")
_ASYNCHRONOUS = {"io_uring_enter": "io_uring", "io_submit": "Linux AIO"}


class Assembly:
    """What `assemble` found: operations with indices, files outside of the root that matter, and what the tracer could not see."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.unseen: list[str] = []
        self.sources: dict[str, bytes] = {}

    def initial(self, tree: Tree) -> Tree:
        """The tree before the run together with the outside files that were read from during the run."""
        if not self.sources:
            return tree
        nodes = dict(tree.nodes)
        entries: dict[str, int] = {}
        for path, data in self.sources.items():
            entries[path] = max(nodes) + 1
            nodes[entries[path]] = File(data)
        return Tree({**nodes, OUTSIDE: Directory(entries)})


def assemble(
    calls: Iterable[Call],
    root: str,
    cwd: str,
    *,
    marker_path: str | None = None,
    stdout_markers: bool = True,
) -> Assembly:
    """Operations under `root` (absolute, without links) of a program that started in `cwd`.

    Lines `begin X` and `ack X` written to the file `marker_path`, or with `stdout_markers` to descriptor 1, become markers.
    """
    ordered = sorted(calls, key=lambda call: call.seq_enter if call.name in EARLY else call.seq_exit)
    processes = _Processes(ordered, cwd)
    assembly = Assembly()
    drafts: list[tuple[Draft, Call, Process]] = []
    for call in ordered:
        process = processes.of(call)
        if call.name in _ASYNCHRONOUS:
            sentence = (
                f"the program uses {_ASYNCHRONOUS[call.name]}, whose requests no system call tracer sees: use `headway crashtest realfs`"
            )
            if sentence not in assembly.unseen:
                assembly.unseen.append(sentence)
            continue
        try:
            draft = translate(call, process)
        except Unreadable as problem:
            assembly.unseen.append(f"{call.name} of thread {call.tid} (event {call.seq_exit}) cannot be read: {problem}")
            continue
        except LookupError as problem:
            raise TraceError(f"{call.name} (event {call.seq_exit}) has too few arguments: {problem}") from problem
        if draft is not None:
            drafts.append((draft, call, process))
    scope = _Scope(root, (draft for draft, _, _ in drafts))
    markers = _Markers(marker_path, stdout_markers, scope)
    found: list[Operation] = []
    for draft, call, process in drafts:
        found.extend(markers.of(draft, call, process))
        if not scope.includes(draft):
            continue
        if not draft.known:
            assembly.unseen.append(f"{call.name} on {' '.join(draft.paths)} (event {call.seq_exit}): its content is not in the trace")
        found.append(operation_of(draft, call, process))
    found.sort(key=lambda operation: operation.seq_enter if operation.kind in ("fork", "close") else operation.seq_exit)
    assembly.operations = [replace(operation, index=index) for index, operation in enumerate(found)]
    for path in sorted(scope.sources - scope.created):
        _read_source(path, assembly)
    return assembly


def _read_source(path: str, assembly: Assembly) -> None:
    try:
        if Path(path).is_file() and Path(path).stat().st_size <= MAX_SOURCE_BYTES:
            assembly.sources[path] = Path(path).read_bytes()
    except OSError:
        return  # the replay says that the copied content is unknown


class _Processes:
    """Which thread belongs to which process, and where each process works."""

    def __init__(self, ordered: Sequence[Call], cwd: str) -> None:
        self._group: dict[int, int] = {}
        self._where: dict[int, Process] = {}
        self._cwd = cwd
        for call in ordered:
            if call.name in FORKS and call.result:
                draft = translate(call, Process(0, cwd))
                group = self._group.get(call.tid, call.tid)
                self._group[call.result] = group if draft is not None and draft.flags & abi.CLONE_THREAD else call.result

    def of(self, call: Call) -> Process:
        process = self._process(self._group.get(call.tid, call.tid))
        if call.name in FORKS:
            child = self._group.get(call.result, call.result)
            if child != process.pid:
                self._where[child] = Process(child, process.cwd)
        elif call.name == "chdir":
            target = call.arguments[0]
            if isinstance(target, bytes):
                process.cwd = os.path.normpath(os.path.join(process.cwd, os.fsdecode(target)))  # noqa: PTH118
        elif call.name == "fchdir":
            path = getattr(call.arguments[0], "path", None)
            process.cwd = path or process.cwd
        return process

    def _process(self, pid: int) -> Process:
        if pid not in self._where:
            self._where[pid] = Process(pid, self._cwd)
        return self._where[pid]


class _Scope:
    """Which drafts matter: those about paths in the root or that get into it."""

    def __init__(self, root: str, drafts: Iterable[Draft]) -> None:
        self._root = root.rstrip("/") or "/"
        self._prefix = self._root.rstrip("/") + "/"
        self._wanted: set[str] = set()
        self._real: dict[str, str] = {}
        self.created: set[str] = set()
        self.sources: set[str] = set()
        self._reading_fds: set[int] = set()
        self._mapped: list[tuple[int, int]] = []
        listed = list(drafts)
        for draft in listed:
            if draft.kind != "symlink":
                draft.paths = tuple(self._plain(path) for path in draft.paths)
            else:
                draft.paths = (draft.paths[0], self._plain(draft.paths[1]))
            if draft.kind == "open" and len(draft.paths) == 2:
                given, kernel = draft.paths
                draft.paths = (kernel,) if self._in_root(kernel) and not self._in_root(given) else (given,)
        for draft in reversed(listed):
            if draft.kind in ("rename", "link"):
                old, new = draft.paths
                if self.inside(new) and not self.inside(old):
                    self._wanted.add(old)
                elif draft.kind == "link" and self.inside(old) and not self.inside(new):
                    self._wanted.add(new)
            elif draft.kind == "copy_range":
                source, target = draft.paths
                if source.startswith("/") and self.inside(target) and not self.inside(source):
                    self.sources.add(source)
                    self._wanted.add(source)
        for draft in listed:
            if draft.kind == "open" and draft.flags & (abi.O_CREAT | abi.O_TRUNC) and draft.paths[0] in self._wanted:
                self.created.add(draft.paths[0])

    def inside(self, path: str) -> bool:
        """Whether a path matters."""
        if self._in_root(path) or path in self._wanted:
            return True
        return any(path.startswith(wanted + "/") for wanted in self._wanted) if self._wanted else False

    def includes(self, draft: Draft) -> bool:
        """Whether a draft matters; called in order, because what a descriptor or address stands for changes."""
        kind = draft.kind
        if kind in ("fork", "exec", "exit", "sync", "close_range"):
            return True
        if kind == "setfd":
            return draft.fd in self._reading_fds
        if kind == "read":
            return draft.fd in self._reading_fds
        if kind in ("munmap", "msync", "mremap"):
            touches = any(
                start < draft.address + max(draft.length, draft.offset or 0) and draft.address < end for start, end in self._mapped
            )
            if touches and kind == "mremap" and draft.result is not None:
                self._mapped.append((draft.result, draft.result + draft.length))
            return touches
        if kind == "symlink":
            return self.inside(draft.paths[1])
        if not any(self.inside(path) for path in draft.paths):
            return False
        if kind in ("open", "dup") and draft.fd2 is not None:
            self._reading_fds.add(draft.fd2)
        elif kind == "mmap":
            self._mapped.append((draft.address, draft.address + draft.length))
        return True

    def _in_root(self, path: str) -> bool:
        return path.startswith(self._prefix) or path == self._root

    def _plain(self, path: str) -> str:
        """The path with links in its directory part resolved, where it does not visibly lie in the root."""
        if not path.startswith("/") or self._in_root(path):
            return path
        directory, _, name = path.rpartition("/")
        if directory not in self._real:
            self._real[directory] = os.path.realpath(directory or "/")
        return f"{self._real[directory].rstrip('/')}/{name}" if name not in ("", ".", "..") else os.path.realpath(path)


class _Markers:
    """Finds marker lines in what is written to the marker file and to standard output."""

    def __init__(self, path: str | None, stdout: bool, scope: _Scope) -> None:
        self._path = path
        self._stdout = stdout
        self._scope = scope
        self._rest: dict[tuple[int, int], bytes] = {}

    def of(self, draft: Draft, call: Call, process: Process) -> list[Operation]:
        if draft.kind not in ("write", "pwrite") or not draft.payload or draft.fd is None:
            return []
        to_file = self._path is not None and self._path in draft.paths
        to_stdout = self._stdout and draft.fd == 1 and not any(self._scope.inside(path) for path in draft.paths)
        if not to_file and not to_stdout:
            return []
        key = (process.pid, draft.fd)
        *lines, rest = (self._rest.get(key, b"") + draft.payload).split(b"\n")
        self._rest[key] = rest[:4096]
        found = []
        for line in lines:
            marker = _MARKER.fullmatch(line)
            if marker:
                kind, text = marker[1].decode(), marker[2].decode("utf-8", "replace")
                found.append(Operation(-1, call.seq_enter, call.seq_exit, process.pid, call.tid, kind, marker=text))
        return found
