"""A trace as one file: magic, length and CRC32 of a msgpack document, the document, then one blob with every payload once.

Reading trusts nothing: the document is decoded into typed structures, references into the blob are checked, sizes are bounded.
"""

import struct
import zlib
from pathlib import Path
from typing import TypeVar

import msgspec

from headway.core.durable import publish
from headway.crashtest.operations import Frame, Operation, Trace, TraceError
from headway.crashtest.tree import OUTSIDE, ROOT, Directory, File, Node, Symlink, Tree

MAGIC = b"HWCT0001"
MAX_DOCUMENT_BYTES = 1 << 30
MAX_BLOB_BYTES = 4 << 30
_HEADER = struct.Struct("<8sQQI")

T = TypeVar("T", bound=Trace)


class _Frame(msgspec.Struct, array_like=True):
    function: str
    file: str
    line: int
    address: int


class _Operation(msgspec.Struct, array_like=True):
    seq_enter: int
    seq_exit: int
    pid: int
    tid: int
    kind: str
    paths: list[bytes]
    fd: int | None
    fd2: int | None
    flags: int
    mode: int
    offset: int | None
    length: int
    payload: int | None
    result: int
    marker: str | None
    stack: list[int]
    address: int


class _Node(msgspec.Struct, array_like=True):
    kind: str  # f, d, l
    mode: int
    content: int | None  # of a file
    entries: dict[bytes, int]
    target: bytes
    xattrs: list[tuple[str, bytes]]


class _Document(msgspec.Struct):
    root: bytes
    source: str
    unseen: list[str]
    command: list[bytes]
    exit_code: int | None
    blobs: list[int]  # lengths, in the order of the blob
    frames: list[_Frame]
    operations: list[_Operation]
    initial: dict[int, _Node]
    final: dict[int, _Node] | None


class _Blobs:
    """Payloads by content, each stored once."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._number: dict[bytes, int] = {}

    def add(self, data: bytes) -> int:
        number = self._number.setdefault(data, len(self.parts))
        if number == len(self.parts):
            self.parts.append(data)
        return number


def save(trace: Trace, path: str | Path) -> None:
    """Publishes the file under its final name. Raises TraceError when the trace is too large."""
    blobs = _Blobs()
    frames: dict[Frame, int] = {}
    operations = [
        _Operation(
            op.seq_enter,
            op.seq_exit,
            op.pid,
            op.tid,
            op.kind,
            [_raw(one) for one in op.paths],
            op.fd,
            op.fd2,
            op.flags,
            op.mode,
            op.offset,
            op.length,
            None if op.payload is None else blobs.add(op.payload),
            op.result,
            op.marker,
            [frames.setdefault(frame, len(frames)) for frame in op.stack],
            op.address,
        )
        for op in trace.operations
    ]
    initial, final = _pack_tree(trace.initial, blobs), _pack_tree(trace.final, blobs) if trace.final is not None else None
    document = msgspec.msgpack.encode(
        _Document(
            _raw(trace.root),
            trace.source,
            list(trace.unseen),
            [_raw(word) for word in trace.command],
            trace.exit_code,
            [len(part) for part in blobs.parts],
            [_Frame(frame.function, frame.file, frame.line, frame.address) for frame in frames],
            operations,
            initial,
            final,
        )
    )
    blob_bytes = sum(map(len, blobs.parts))
    if len(document) > MAX_DOCUMENT_BYTES or blob_bytes > MAX_BLOB_BYTES:
        raise TraceError(f"a trace of {len(operations)} operations and {blob_bytes} payload bytes is too large; trace a smaller workload")
    publish(path, b"".join([_HEADER.pack(MAGIC, len(document), blob_bytes, zlib.crc32(document)), document, *blobs.parts]))


def load(path: str | Path, kind: type[T]) -> T:
    """Reads a trace. Raises TraceError with the reason when the file is none, damaged or of another version."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size or not head.startswith(MAGIC[:4]):
                raise TraceError(f"{path} is no Headway trace; `headway crashtest import` reads strace and Pathfinder logs")
            magic, document_bytes, blob_bytes, checksum = _HEADER.unpack(head)
            if magic != MAGIC:
                raise TraceError(f"{path} has trace format {magic!r}, this program reads {MAGIC!r}; record it again")
            if document_bytes > MAX_DOCUMENT_BYTES or blob_bytes > MAX_BLOB_BYTES:
                raise TraceError(f"{path} claims {document_bytes} + {blob_bytes} bytes, more than a trace may have: it is damaged")
            rest = file.read()
    except OSError as problem:
        raise TraceError(f"{path} cannot be read: {problem}") from problem
    if len(rest) != document_bytes + blob_bytes or zlib.crc32(rest[:document_bytes]) != checksum:
        raise TraceError(f"{path} is cut short or damaged; record it again")
    try:
        document = msgspec.msgpack.decode(rest[:document_bytes], type=_Document)
        return _unpack(document, memoryview(rest)[document_bytes:], kind)
    except (msgspec.DecodeError, LookupError, ValueError) as problem:
        raise TraceError(f"{path} is not a well-formed trace ({problem!r}); record it again") from problem


def _unpack(document: _Document, blob: memoryview, kind: type[T]) -> T:
    if any(length < 0 for length in document.blobs) or sum(document.blobs) != len(blob):
        raise ValueError("payload lengths do not add up")
    parts, start = [], 0
    for length in document.blobs:
        parts.append(bytes(blob[start : start + length]))
        start += length
    frames = [Frame(frame.function, frame.file, frame.line, frame.address) for frame in document.frames]
    operations = [
        Operation(
            index,
            op.seq_enter,
            op.seq_exit,
            op.pid,
            op.tid,
            op.kind,
            tuple(_text(one) for one in op.paths),
            op.fd,
            op.fd2,
            op.flags,
            op.mode,
            op.offset,
            op.length,
            None if op.payload is None else _at(parts, op.payload),
            op.result,
            op.marker,
            tuple(_at(frames, number) for number in op.stack),
            op.address,
        )
        for index, op in enumerate(document.operations)
    ]
    return kind(
        _text(document.root),
        operations,
        _unpack_tree(document.initial, parts),
        None if document.final is None else _unpack_tree(document.final, parts),
        document.source,
        tuple(document.unseen),
        tuple(_text(word) for word in document.command),
        document.exit_code,
    )


def _pack_tree(tree: Tree, blobs: _Blobs) -> dict[int, _Node]:
    packed = {}
    for inode, node in tree.nodes.items():
        if isinstance(node, File):
            packed[inode] = _Node("f", node.mode, blobs.add(node.data), {}, b"", list(node.xattrs))
        elif isinstance(node, Directory):
            packed[inode] = _Node("d", node.mode, None, {_raw(name): child for name, child in node.entries.items()}, b"", [])
        else:
            packed[inode] = _Node("l", 0, None, {}, _raw(node.target), [])
    return packed


def _unpack_tree(packed: dict[int, _Node], parts: list[bytes]) -> Tree:
    nodes: dict[int, Node] = {}
    for inode, node in packed.items():
        if node.kind == "f" and node.content is not None:
            nodes[inode] = File(_at(parts, node.content), node.mode, tuple(node.xattrs))
        elif node.kind == "d":
            nodes[inode] = Directory({_name(name, inode): child for name, child in node.entries.items()}, node.mode)
        elif node.kind == "l":
            nodes[inode] = Symlink(_text(node.target))
        else:
            raise ValueError(f"node {inode} has kind {node.kind!r}")
    _refuse_cycles(nodes)
    return Tree(nodes)


def _refuse_cycles(nodes: dict[int, Node]) -> None:
    """Every directory has one name, so that walking ends."""
    seen = {ROOT}
    pending = [ROOT]
    while pending:
        node = nodes[pending.pop()]
        if isinstance(node, Directory):
            for child in node.entries.values():
                if isinstance(nodes[child], Directory):
                    if child in seen:
                        raise ValueError(f"directory {child} has two names")
                    seen.add(child)
                    pending.append(child)


def _name(raw: bytes, directory: int) -> str:
    """A name that stays inside its directory when it is written."""
    if directory != OUTSIDE and (raw in (b"", b".", b"..") or b"/" in raw or b"\0" in raw):
        raise ValueError(f"{raw!r} is no file name")
    return _text(raw)


Item = TypeVar("Item")


def _at(items: list[Item], number: int) -> Item:
    if number < 0:
        raise ValueError(f"reference {number}")
    return items[number]


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
