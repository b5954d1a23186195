"""Reads a GGUF file (versions 2 and 3) through a memory map, trusting nothing in it.

Every count, length and offset is checked against the length of the file before it is used, so that a damaged or hostile file gives a
`ModelError` and never a crash, a hang or a large allocation. Knows the container only: meanings are in `architecture` and `tokenizer`.
Source of the layout: the GGUF specification in the ggml repository (docs/gguf.md).
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from headway.core.errors import ModelError
from headway.models.blocks import TYPE_NAMES, block_shape, dequantise

MAGIC = b"GGUF"
MIN_FILE_BYTES = 24  # magic, version, two counts
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4
MAX_KEY_BYTES = 65_535  # the specification's limit for keys
MIN_KEY_BYTES = 8 + 4 + 1  # an empty key, its type and the smallest value
MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # an empty name, one dimension, type and offset

_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of the file; `data` is a read-only view into the map and keeps it alive.

    `shape` is in row-major order (the file's `ne` reversed): a weight is (outputs, inputs). `data` is uint8 [rows, row_bytes], where
    rows is the product of all dimensions but the last.
    """

    name: str
    ggml_type: int
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    @property
    def type_name(self) -> str:
        return TYPE_NAMES[self.ggml_type]

    def dequantise(self) -> npt.NDArray[np.float32]:
        """The values as float32 in `shape`."""
        return dequantise(self.ggml_type, self.data, self.shape[-1]).reshape(self.shape)


class _Cursor:
    """A position in the file that refuses to pass its end."""

    __slots__ = ("buffer", "length", "path", "position")

    def __init__(self, path: Path, buffer: mmap.mmap | bytes) -> None:
        self.path, self.buffer, self.length, self.position = path, buffer, len(buffer), 0

    def fail(self, what: str) -> NoReturn:
        raise ModelError(f"{self.path}: not a usable GGUF file: {what} (at byte {self.position} of {self.length}). Pull or copy it again.")

    def need(self, count: int, what: str) -> int:
        """Reserves `count` bytes and returns where they start."""
        start = self.position
        if count > self.length - start:
            self.fail(f"{what} needs {count} bytes, {self.length - start} are left")
        self.position = start + count
        return start

    def u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self.buffer, self.need(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = _U64.unpack_from(self.buffer, self.need(8, what))[0]
        return value

    def string(self, what: str, limit: int | None = None) -> str:
        size = self.u64(what)
        if limit is not None and size > limit:
            self.fail(f"{what} has {size} bytes, at most {limit} are allowed")
        start = self.need(size, what)
        try:
            return self.buffer[start : start + size].decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _FORMATS:
            form = _FORMATS[kind]
            size = struct.calcsize(form)
            return struct.unpack_from(form, self.buffer, self.need(size, what))[0]
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY:
            self.fail(f"{what} has the unknown type {kind}")
        if depth >= MAX_ARRAY_DEPTH:
            self.fail(f"{what} nests arrays deeper than {MAX_ARRAY_DEPTH}")
        element, count = self.u32(what), self.u64(what)
        if element in _NUMBERS:
            dtype = np.dtype(_NUMBERS[element])
            start = self.need(count * dtype.itemsize, what)
            return np.frombuffer(self.buffer, dtype, count, start).copy()
        smallest = {_STRING: 8, _ARRAY: 12}.get(element)
        if smallest is None:
            self.fail(f"{what} has elements of the unknown type {element}")
        if count * smallest > self.length - self.position:
            self.fail(f"{what} claims {count} elements, more than the file can hold")
        if element == _STRING:
            return self.strings(count, what)
        return [self.value(_ARRAY, what, depth + 1) for _ in range(count)]

    def strings(self, count: int, what: str) -> list[str]:
        """The hot loop of opening a model (a vocabulary has 50 to 260 thousand strings): locals and one check for each string."""
        buffer, position, length, unpack = self.buffer, self.position, self.length, _U64.unpack_from
        found: list[str] = []
        append = found.append
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(buffer, position)[0]
                if position > length:
                    self.position = start
                    self.fail(f"a string of {what} ends behind the file")
                append(buffer[start:position].decode())
        except struct.error:
            self.fail(f"{what} is cut short")
        except UnicodeDecodeError:
            self.fail(f"element {len(found)} of {what} is not UTF-8")
        self.position = position
        return found


class GgufFile:
    """An open GGUF file: `metadata` by key (arrays of numbers as NumPy arrays, of strings as lists) and `tensors` by name.

    `header_bytes` is where the tensor data starts. Raises `ModelError` with the path, the place and what was wrong.
    """

    __slots__ = ("_map", "alignment", "header_bytes", "metadata", "path", "size_bytes", "tensors", "version")

    def __init__(self, path: str | Path) -> None:
        where = Path(path)
        try:
            with where.open("rb") as stream:
                size = stream.seek(0, 2)
                if size < MIN_FILE_BYTES:
                    raise ModelError(f"{where}: not a GGUF file: only {size} bytes long. Pull or copy it again.")
                data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelError(f"{where}: cannot be read: {error.strerror}. Check the path, or `headway pull` the model.") from error
        self._parse(where, data)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "<bytes>") -> GgufFile:
        """Reads a file that is in memory; `name` stands for the path in messages."""
        if len(data) < MIN_FILE_BYTES:
            raise ModelError(f"{name}: not a GGUF file: only {len(data)} bytes long. Pull or copy it again.")
        made = cls.__new__(cls)
        made._parse(Path(name), data)
        return made

    def _parse(self, path: Path, data: mmap.mmap | bytes) -> None:
        self.path, self.size_bytes = path, len(data)
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        self._map: mmap.mmap | bytes | None = data
        cursor = _Cursor(path, data)
        if data[:4] != MAGIC:
            cursor.fail(f"it starts with {data[:4]!r} instead of {MAGIC!r}")
        cursor.position = 4
        self.version = cursor.u32("the version")
        if self.version not in VERSIONS:
            cursor.fail(f"version {self.version} is not one of {VERSIONS}")
        tensor_count, key_count = cursor.u64("the tensor count"), cursor.u64("the key count")
        left = cursor.length - cursor.position
        if tensor_count * MIN_TENSOR_BYTES + key_count * MIN_KEY_BYTES > left:
            cursor.fail(f"{tensor_count} tensors and {key_count} keys cannot fit")
        for index in range(key_count):
            key = cursor.string(f"the name of key {index}", MAX_KEY_BYTES)
            if key in self.metadata:
                cursor.fail(f"the key {key!r} appears twice")
            self.metadata[key] = cursor.value(cursor.u32(f"the type of {key!r}"), f"the value of {key!r}")
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            cursor.fail(f"general.alignment is {alignment!r}, not a power of two from 8 to 1048576")
        self.alignment = alignment
        entries = [self._tensor_entry(cursor, index) for index in range(tensor_count)]
        self.header_bytes = -(-cursor.position // alignment) * alignment
        used: list[tuple[int, int, str]] = []
        for name, kind, shape, offset in entries:
            if name in self.tensors:
                cursor.fail(f"the tensor {name!r} appears twice")
            tensor = self._tensor(cursor, data, name, kind, shape, offset)
            self.tensors[name] = tensor
            used.append((offset, offset + tensor.data.nbytes, name))
        used.sort()
        for (_, end, first), (start, _, second) in pairwise(used):
            if start < end:
                cursor.fail(f"the tensors {first!r} and {second!r} overlap")

    def _tensor_entry(self, cursor: _Cursor, index: int) -> tuple[str, int, tuple[int, ...], int]:
        name = cursor.string(f"the name of tensor {index}", MAX_KEY_BYTES)
        dimensions = cursor.u32(f"the dimensions of {name!r}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            cursor.fail(f"the tensor {name!r} has {dimensions} dimensions, 1 to {MAX_DIMENSIONS} are allowed")
        sizes = tuple(cursor.u64(f"the shape of {name!r}") for _ in range(dimensions))
        return name, cursor.u32(f"the type of {name!r}"), sizes[::-1], cursor.u64(f"the offset of {name!r}")

    def _tensor(self, cursor: _Cursor, data: mmap.mmap | bytes, name: str, kind: int, shape: tuple[int, ...], offset: int) -> GgufTensor:
        block = block_shape(kind)
        if block is None:
            known = ", ".join(TYPE_NAMES.values())
            cursor.fail(f"the tensor {name!r} has the type {kind} ({UNREADABLE.get(kind, 'unknown')}); readable: {known}")
        elements, block_bytes = block
        columns, rows = shape[-1], 1
        for size in shape[:-1]:
            rows *= size  # Python integers: no overflow to hide a hostile shape
        if columns == 0 or rows == 0:
            cursor.fail(f"the tensor {name!r} has the empty shape {shape}")
        if columns % elements:
            cursor.fail(f"the rows of {name!r} have {columns} elements, no multiple of the block of {elements}")
        row_bytes = columns // elements * block_bytes
        if offset % self.alignment:
            cursor.fail(f"the tensor {name!r} starts at {offset}, no multiple of the alignment {self.alignment}")
        start = self.header_bytes + offset
        if start + rows * row_bytes > cursor.length:
            cursor.fail(f"the tensor {name!r} ends at byte {start + rows * row_bytes}, behind the file")
        view = np.frombuffer(data, np.uint8, rows * row_bytes, start).reshape(rows, row_bytes)
        return GgufTensor(name, kind, shape, view)

    def header_sha256(self) -> str:
        """Hash of everything before the tensor data (metadata, vocabulary, tensor list), as hexadecimal: milliseconds, not seconds."""
        if self._map is None:
            raise ModelError(f"{self.path}: the file was closed; open it again")
        return hashlib.sha256(self._map[: self.header_bytes]).hexdigest()

    def close(self) -> None:
        """Lets go of the map; it is unmapped when the last view of a tensor is gone."""
        self.tensors.clear()
        self._map = None


UNREADABLE = {10: "Q2_K", 11: "Q3_K", 20: "IQ4_NL", 23: "IQ4_XS", 39: "MXFP4"}
"""Types that exist but that Headway does not read, named so that the message can say so."""
