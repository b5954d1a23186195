"""Reads and writes the text traces of Pathfinder's own tracer (github.com/efeslab/Pathfinder), one event a line.

`index,tid,OP,arguments...;frame;frame;...;` with frames `function,file,line,0xaddress`, innermost first; markers have no frames and no `;`.
Payloads are base64. Paths are not escaped, so one that holds a comma, a semicolon or a line break cannot be written.
"""

import base64
import binascii
import os
from collections.abc import Callable
from pathlib import Path

from headway.crashtest import linux_abi as abi
from headway.crashtest.operations import Frame, Operation, Trace, TraceError
from headway.crashtest.tree import Tree

PID = 1  # the format knows threads only


def read(path: str | Path, *, root: str | None = None) -> Trace:
    """A trace from a file. `root` is the traced directory, by default the deepest one that holds every path.

    The tree before the run is taken as empty; the one after it is unknown. Raises TraceError naming the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as problem:
        raise TraceError(f"{path} cannot be read: {problem}") from problem
    return parse(text, root=root)


def parse(text: str, *, root: str | None = None) -> Trace:
    """`read` for text at hand."""
    reader = _Reader()
    operations = []
    for index, line in enumerate(text.splitlines()):
        try:
            operations.append(reader.operation(index, line))
        except (ValueError, IndexError, KeyError) as problem:
            raise TraceError(f"Pathfinder trace, line {index + 1}: {problem} in {line[:100]!r}; is it a tracer.log?") from problem
    if not operations:
        raise TraceError("the Pathfinder trace has no line; give the tracer.log of a run")
    unseen = ("payloads were not recorded",) if reader.without_payload else ()
    return Trace(root.rstrip("/") if root else _common(operations), operations, Tree(), None, "pathfinder", unseen)


def _common(operations: list[Operation]) -> str:
    paths = [path for operation in operations for path in operation.paths]
    if not paths:
        raise TraceError("the Pathfinder trace names no file; give its directory with --root-dir")
    if len(set(paths)) == 1:
        return os.path.dirname(paths[0])  # noqa: PTH120
    return os.path.commonpath(paths)


class _Positions:
    """Positions by descriptor and sizes by path: what LSEEK and O_APPEND need."""

    def __init__(self) -> None:
        self.size_bytes: dict[str, int] = {}
        self.position: dict[int, int] = {}
        self._append: set[int] = set()

    def opened(self, fd: int, path: str, flags: int) -> int:
        """Size after the open where O_APPEND asks for it, else -1, as the format has it."""
        if flags & abi.O_TRUNC:
            self.size_bytes[path] = 0
        self.position[fd] = 0
        self._append.discard(fd)
        if flags & abi.O_APPEND:
            self._append.add(fd)
            return self.size_bytes.setdefault(path, 0)
        return -1

    def wrote(self, fd: int, path: str, offset: int | None, length: int) -> None:
        start = self.position.get(fd, 0) if offset is None else offset
        if fd in self._append:
            start = self.size_bytes.get(path, 0)
        if offset is None:
            self.position[fd] = start + length
        self.size_bytes[path] = max(self.size_bytes.get(path, 0), start + length)

    def sought(self, fd: int, path: str, offset: int, whence: int) -> int:
        base = {0: 0, 1: self.position.get(fd, 0), 2: self.size_bytes.get(path, 0)}.get(whence, 0)
        self.position[fd] = base + offset
        return base + offset


class _Reader:
    def __init__(self) -> None:
        self.without_payload = False
        self._positions = _Positions()
        self._mapped: dict[str, list[tuple[int, int, int]]] = {}  # path: (address, length, offset in the file)

    def operation(self, index: int, line: str) -> Operation:
        event, *frames = line.split(";")
        if frames:
            if frames[-1]:
                raise ValueError("the line does not end with ;")
            frames.pop()
        fields = event.split(",")
        int(fields[0])  # a number, but not trusted: after exec it may jump
        tid, name, arguments = int(fields[1]), fields[2], fields[3:]
        if name not in _ARGUMENTS:
            raise ValueError(f"unknown event {name}")
        wanted = _ARGUMENTS[name]
        if wanted is not None and len(arguments) != wanted:
            raise ValueError(f"{name} has {wanted} arguments, here are {len(arguments)} (a comma in a path cannot be read)")
        return self._make(index, tid, name, arguments, tuple(_frame(one) for one in frames))

    def _make(self, index: int, tid: int, name: str, arguments: list[str], stack: tuple[Frame, ...]) -> Operation:
        def operation(
            kind: str,
            paths: tuple[str, ...] = (),
            fd: int | None = None,
            fd2: int | None = None,
            flags: int = 0,
            mode: int = 0,
            offset: int | None = None,
            length: int = 0,
            payload: bytes | None = None,
            result: int = 0,
            marker: str | None = None,
            address: int = 0,
        ) -> Operation:
            return Operation(
                index,
                2 * index,
                2 * index + 1,
                PID,
                tid,
                kind,
                paths,
                fd,
                fd2,
                flags,
                mode,
                offset,
                length,
                payload,
                result,
                marker,
                stack,
                address,
            )

        a = arguments
        if name == "OPEN":
            fd, flags = int(a[3]), int(a[1])
            self._positions.opened(fd, a[0], flags)
            if flags & abi.O_APPEND and int(a[4]) >= 0:
                self._positions.size_bytes[a[0]] = int(a[4])
            return operation("open", (a[0],), None, fd, flags, int(a[2]), result=fd)
        if name == "CREAT":
            fd, flags = int(a[2]), abi.O_CREAT | abi.O_TRUNC | 1
            self._positions.opened(fd, a[0], flags)
            return operation("creat", (a[0],), None, fd, flags, int(a[1]), result=fd)
        if name in ("WRITE", "PWRITE64", "WRITEV"):
            offset = int(a[2]) if name == "PWRITE64" else None
            if name == "WRITEV":
                if len(a) != 3 + 2 * int(a[2]):
                    raise ValueError(f"WRITEV of {a[2]} parts has {len(a)} arguments")
                length, payload = sum(map(int, a[3::2])), b"".join(map(_payload, a[4::2]))
            else:
                length, payload = int(a[-2]), _payload(a[-1])
            self._positions.wrote(int(a[0]), a[1], offset, length)
            self.without_payload |= len(payload) != length
            kind = "write" if offset is None else "pwrite"
            known = payload if len(payload) == length else None
            return operation(kind, (a[1],), int(a[0]), offset=offset, length=length, payload=known, result=length)
        if name == "LSEEK":
            result = self._positions.sought(int(a[0]), a[1], int(a[2]), int(a[3]))
            return operation("lseek", (a[1],), int(a[0]), flags=int(a[3]), offset=int(a[2]), result=result)
        if name in ("CLOSE", "FSYNC", "FDATASYNC", "SYNCFS"):
            return operation(name.lower(), (a[1],), int(a[0]))
        if name == "SYNC_FILE_RANGE":
            return operation("sync_file_range", (a[1],), int(a[0]), offset=int(a[2]), length=int(a[3]), flags=int(a[4]))
        if name == "RENAME":
            if a[0] in self._positions.size_bytes:
                self._positions.size_bytes[a[1]] = self._positions.size_bytes.pop(a[0])
            return operation("rename", (a[0], a[1]))
        if name in ("UNLINK", "RMDIR"):
            self._positions.size_bytes.pop(a[0], None)
            return operation(name.lower(), (a[0],))
        if name in ("MKDIR", "MKDIRAT"):
            return operation("mkdir", (a[-2],), mode=int(a[-1]))
        if name == "FTRUNCATE":
            self._positions.size_bytes[a[1]] = int(a[2])
            return operation("truncate", (a[1],), int(a[0]), length=int(a[2]))
        if name == "FALLOCATE":
            return operation("fallocate", (a[1],), int(a[0]), mode=int(a[2]), offset=int(a[3]), length=int(a[4]))
        if name == "REGISTER_FILE":
            address, length, offset = int(a[1], 16), int(a[2]), int(a[3])
            self._mapped.setdefault(a[0], []).append((address, length, offset))
            return operation("mmap", (a[0],), flags=int(a[5]), mode=int(a[4]), offset=offset, length=length, address=address)
        if name == "UNREGISTER_FILE":
            return operation("munmap", (a[0],), length=int(a[2]), address=int(a[1], 16))
        if name == "STORE":
            address, payload = int(a[2], 16), _payload(a[4])
            self.without_payload |= len(payload) != int(a[3])
            return operation("store", (a[1],), offset=self._offset(a[1], address), length=int(a[3]), payload=payload, address=address)
        if name == "MSYNC":
            return operation("msync", (a[0],), flags=int(a[3]), length=int(a[2]), address=int(a[1], 16))
        if name in ("READ", "PREAD"):
            return operation("read", (a[1],), int(a[0]), offset=int(a[2]) if len(a) > 3 else None, length=int(a[-1]))
        if name in ("PATHFINDER_OP_BEGIN", "PATHFINDER_OP_END"):
            return operation("begin" if name.endswith("BEGIN") else "ack", marker=f"{int(a[0])},{int(a[1])}")
        return operation(name.removeprefix("PATHFINDER_").lower())

    def _offset(self, path: str, address: int) -> int:
        for start, length, offset in reversed(self._mapped.get(path, [])):
            if start <= address < start + length:
                return offset + address - start
        raise ValueError(f"no REGISTER_FILE of {path} holds address {address:#x}")


# Arguments behind the name; None: depends.
_ARGUMENTS: dict[str, int | None] = {
    "OPEN": 5,
    "CREAT": 3,
    "WRITE": 4,
    "PWRITE64": 5,
    "WRITEV": None,
    "LSEEK": 4,
    "CLOSE": 2,
    "FSYNC": 2,
    "FDATASYNC": 2,
    "SYNCFS": 2,
    "SYNC": 0,
    "SYNC_FILE_RANGE": 5,
    "RENAME": 2,
    "UNLINK": 1,
    "MKDIR": 2,
    "MKDIRAT": 3,
    "RMDIR": 1,
    "FTRUNCATE": 3,
    "FALLOCATE": 5,
    "REGISTER_FILE": 6,
    "UNREGISTER_FILE": 3,
    "STORE": 5,
    "MSYNC": 4,
    "READ": None,
    "PREAD": None,
    "PATHFINDER_OP_BEGIN": 2,
    "PATHFINDER_OP_END": 2,
    "PATHFINDER_BEGIN_TESTING": 0,
    "PATHFINDER_END_TESTING": 0,
}


def _frame(text: str) -> Frame:
    function, file, line, address = text.rsplit(",", 3)
    return Frame(function, file, int(line) if line else -1, int(address, 16))


def _payload(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as problem:
        raise ValueError(f"a payload is no base64 ({problem})") from problem


def render(trace: Trace) -> tuple[str, list[str]]:
    """(the trace in Pathfinder's format, one sentence for each kind of operation that the format cannot hold and that is left out).

    Raises TraceError for a path or function name that the format cannot hold.
    """
    positions = _Positions()
    lines: list[str] = []
    left_out: dict[str, int] = {}
    tids: dict[int, int] = {}
    for operation in trace.operations:
        event = _EVENTS.get(operation.kind)
        fields = event(operation, positions) if event is not None else None
        if fields is None:
            left_out[operation.kind] = left_out.get(operation.kind, 0) + 1
            continue
        for path in operation.paths:
            if set(path) & set(",;\n"):
                raise TraceError(f"{path!r} cannot be written: Pathfinder's format does not escape commas and semicolons; rename the file")
        tid = operation.tid if operation.pid == PID else tids.setdefault(operation.tid, len(tids))
        stack = "".join(f"{_frame_text(frame)};" for frame in operation.stack)
        end = "" if operation.kind in _MARKERS else stack or ";"
        joint = ";" if stack and operation.kind not in _MARKERS else ""
        lines.append(",".join([str(len(lines)), str(tid), *map(str, fields)]) + joint + end + "\n")
    sentences = [f"{count} x {kind}: no such event in Pathfinder's format" for kind, count in sorted(left_out.items())]
    return "".join(lines), sentences


def _frame_text(frame: Frame) -> str:
    if ";" in frame.function + frame.file or "," in frame.file:
        raise TraceError(f"frame {frame.function} {frame.file} cannot be written: Pathfinder's format does not escape ; and ,")
    return f"{frame.function},{frame.file},{frame.line if frame.line >= 0 else ''},0x{frame.address:09x}"


_MARKERS = frozenset({"begin", "ack", "begin_testing", "end_testing"})
_Fields = list[str | int] | None


def _write_event(operation: Operation, positions: _Positions) -> _Fields:
    fd, path, payload = operation.fd or 0, operation.paths[0], base64.b64encode(operation.payload or b"").decode()
    positions.wrote(fd, path, operation.offset, operation.length)
    if operation.offset is None:
        return ["WRITE", fd, path, operation.length, payload]
    return ["PWRITE64", fd, path, operation.offset, operation.length, payload]


def _open_event(operation: Operation, positions: _Positions) -> _Fields:
    fd = operation.fd2 or 0
    size_bytes = positions.opened(fd, operation.paths[0], operation.flags)
    return ["OPEN", operation.paths[0], operation.flags, operation.mode, fd, size_bytes]


def _marker_event(operation: Operation, positions: _Positions) -> _Fields:
    """Ours are free text; the format wants two numbers, so others become thread and place of the marker."""
    name = "PATHFINDER_OP_BEGIN" if operation.kind == "begin" else "PATHFINDER_OP_END"
    parts = (operation.marker or "").split(",")
    if len(parts) == 2 and all(part.isdigit() for part in parts):
        return [name, *parts]
    return [name, operation.tid, operation.index]


def _on_fd(operation: Operation, positions: _Positions) -> _Fields:
    return [operation.kind.upper(), operation.fd or 0, operation.paths[0]] if operation.paths else None


def _on_path(operation: Operation, positions: _Positions) -> _Fields:
    return [operation.kind.upper(), *operation.paths]


_EVENTS: dict[str, Callable[[Operation, _Positions], _Fields]] = {
    "open": _open_event,
    "creat": lambda op, _: ["CREAT", op.paths[0], op.mode, op.fd2 or 0],
    "write": _write_event,
    "pwrite": _write_event,
    "lseek": lambda op, _: ["LSEEK", op.fd or 0, op.paths[0], op.offset or 0, op.flags],
    **dict.fromkeys(("close", "fsync", "fdatasync", "syncfs"), _on_fd),
    "sync": lambda op, _: ["SYNC"],
    "sync_file_range": lambda op, _: ["SYNC_FILE_RANGE", op.fd or 0, op.paths[0], op.offset or 0, op.length, op.flags],
    **dict.fromkeys(("rename", "unlink", "rmdir"), _on_path),
    "mkdir": lambda op, _: ["MKDIR", op.paths[0], op.mode],
    "truncate": lambda op, _: ["FTRUNCATE", op.fd, op.paths[0], op.length] if op.fd is not None else None,
    "fallocate": lambda op, _: ["FALLOCATE", op.fd or 0, op.paths[0], op.mode, op.offset or 0, op.length],
    "mmap": lambda op, _: ["REGISTER_FILE", op.paths[0], f"{op.address:#x}", op.length, op.offset or 0, op.mode, op.flags],
    "munmap": lambda op, _: ["UNREGISTER_FILE", op.paths[0], f"{op.address:#x}", op.length] if op.paths else None,
    "store": lambda op, _: [
        "STORE",
        op.index,
        op.paths[0],
        f"{op.address:#x}",
        op.length,
        base64.b64encode(op.payload or b"").decode(),
    ],
    "msync": lambda op, _: ["MSYNC", op.paths[0], f"{op.address:#x}", op.length, op.flags] if op.paths else None,
    "begin": _marker_event,
    "ack": _marker_event,
    "begin_testing": lambda op, _: ["PATHFINDER_BEGIN_TESTING"],
    "end_testing": lambda op, _: ["PATHFINDER_END_TESTING"],
}
