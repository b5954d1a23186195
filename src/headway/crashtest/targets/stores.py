"""What the recipes with planted bugs are made of: small files, framed records, and pairs of a buggy and a fixed store."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from headway.crashtest.targets.target import Target, TargetCheck

BLOCK = 4096
_FRAME = struct.Struct("<III")  # number, length, CRC32
Store = Callable[[Path, bool], None]


def open_file(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)


def sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def create(path: Path, data: bytes, *, sync: bool = True) -> None:
    fd = open_file(path, os.O_TRUNC)
    os.write(fd, data)
    if sync:
        os.fsync(fd)
    os.close(fd)


def frame(number: int, size: int = 600) -> bytes:
    payload = bytes([number]) * size
    return _FRAME.pack(number, size, zlib.crc32(payload)) + payload


def frames(raw: bytes, *, step: int = 0) -> list[int]:
    """Numbers of the whole frames from the start; `step` aligns each to a multiple."""
    found, at = [], 0
    while at + _FRAME.size <= len(raw):
        number, size, crc = _FRAME.unpack_from(raw, at)
        payload = raw[at + _FRAME.size : at + _FRAME.size + size]
        if size == 0 or len(payload) < size or zlib.crc32(payload) != crc:
            break
        found.append(number)
        at += step or _FRAME.size + size
    return found


def pair(
    name: str,
    title: str,
    store: Store,
    check: TargetCheck,
    fixed_check: TargetCheck | None = None,
    model: str = "ext4",
    backend: Literal["auto", "ptrace"] = "auto",
) -> tuple[Target, Target]:
    return (
        Target(name, title, lambda directory: store(directory, False), check, clean=False, model=model, planted=True, backend=backend),
        Target(
            f"{name}-fixed",
            f"{title}: without the bug",
            lambda directory: store(directory, True),
            fixed_check or check,
            clean=True,
            model=model,
            backend=backend,
        ),
    )
