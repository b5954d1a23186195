"""The FUSE server behind a session: one file, `disk.img`, that logs every write and flush and can show any crash state of them.

Run as `python -m headway.crashtest.realfs.device MOUNTPOINT BASE LOG` by session.py. Writes never reach BASE; they live in an overlay of
blocks. Log entry: `<cQQd`: 'W', offset, length, wall time, then the bytes; 'F' is a flush; 'M' a line that the program wrote to `markers`,
which this one thread puts exactly where it belongs. Writing "PREFIX I:A:B I:A:B ..." to `control` shows the first PREFIX writes in full and
bytes A to B of further ones.
"""

import errno
import mmap
import os
import stat
import sys
import time
from typing import Any

import mfusepy

from headway.crashtest.realfs.kernel import die_with_parent
from headway.crashtest.realfs.write_log import ENTRY

BLOCK = 4096


class LoggedDisk(mfusepy.Operations):  # type: ignore[misc]
    """Blocks are kept by number; a block not in the overlay is BASE's."""

    use_ns = True

    def __init__(self, base: str, log: str) -> None:
        with open(base, "rb") as file:  # noqa: PTH123
            self.base = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.size = len(self.base)
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.recording = True
        self.entries: list[tuple[int, bytes]] = []
        self.blocks: dict[int, bytes] = {}
        self.prefix: dict[int, bytes] = {}
        self.prefix_length = 0

    def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        if path in ("/disk.img", "/control", "/markers"):
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": self.size if path == "/disk.img" else 0}
        raise mfusepy.FuseOSError(errno.ENOENT)

    def open(self, path: str, info: Any) -> int:
        info.direct_io = 1  # the kernel must not keep pages of one crash state for the next
        return 0

    def truncate(self, path: str, length: int, fh: Any = None) -> int:
        return 0

    def read(self, path: str, size: int, offset: int, fh: Any) -> bytes:
        size = max(0, min(size, self.size - offset))
        if not size or path != "/disk.img":
            return b""
        out = bytearray(self.base[offset : offset + size])
        for number in range(offset // BLOCK, (offset + size - 1) // BLOCK + 1):
            block = self.blocks.get(number)
            if block is not None:
                start = number * BLOCK
                low, high = max(start, offset), min(start + BLOCK, offset + size)
                out[low - offset : high - offset] = block[low - start : high - start]
        return bytes(out)

    def write(self, path: str, data: bytes, offset: int, fh: Any) -> int:
        if path == "/control":
            self.show(data.decode())
            return len(data)
        if path == "/markers":
            os.write(self.log, ENTRY.pack(b"M", 0, len(data), time.time()) + data)
            return len(data)
        if self.recording:
            os.write(self.log, ENTRY.pack(b"W", offset, len(data), time.time()) + data)
            self.entries.append((offset, data))
        self.put(self.blocks, offset, data)
        return len(data)

    def fsync(self, path: str, datasync: int, fh: Any) -> int:
        if self.recording:
            os.write(self.log, ENTRY.pack(b"F", 0, 0, time.time()))
        return 0

    def flush(self, path: str, fh: Any) -> int:
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: Any) -> int:
        raise mfusepy.FuseOSError(errno.EOPNOTSUPP)

    def show(self, command: str) -> None:
        """From the first command on the log is closed: what the kernel writes while it recovers is not the program's."""
        self.recording = False
        first, *parts = command.split()
        if int(first) < self.prefix_length:
            self.prefix, self.prefix_length = {}, 0
        for offset, data in self.entries[self.prefix_length : int(first)]:
            self.put(self.prefix, offset, data)
        self.prefix_length = int(first)
        self.blocks = dict(self.prefix)
        for part in parts:
            index, low, high = map(int, part.split(":"))
            offset, data = self.entries[index]
            self.put(self.blocks, offset + low, data[low:high])

    def put(self, blocks: dict[int, bytes], offset: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, inside = divmod(offset + at, BLOCK)
            part = data[at : at + BLOCK - inside]
            if len(part) < BLOCK:
                whole = bytearray(blocks.get(number) or self.base[number * BLOCK : (number + 1) * BLOCK])
                whole[inside : inside + len(part)] = part
                part = bytes(whole)
            blocks[number] = part
            at += BLOCK - inside


if __name__ == "__main__":
    die_with_parent()
    mfusepy.FUSE(LoggedDisk(sys.argv[2], sys.argv[3]), sys.argv[1], foreground=True, nothreads=True, raw_fi=True)
