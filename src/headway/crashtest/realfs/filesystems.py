"""The file systems that can be tried, how each is made, and what this machine lacks for them."""

import os
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from headway.core.errors import ConfigError, UnsupportedMachine


@dataclass(frozen=True, slots=True)
class FileSystem:
    """`make` is the mkfs command without the image; sizes are the smallest that mkfs accepts with room for a workload."""

    name: str
    size_bytes: int
    make: tuple[str, ...]
    package: str
    options: str = ""


def file_system(name: str, *, block_bytes: int = 4096) -> FileSystem:
    """Raises ConfigError for an unknown name. ext4 below 512 MB would take 1 KiB blocks by itself and tear 4 KiB writes: always say."""
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    known = {
        "ext4": FileSystem("ext4", 64 << 20, ("mkfs.ext4", "-q", "-F", "-b", str(block_bytes), "-E", lazy), "e2fsprogs"),
        "xfs": FileSystem("xfs", 300 << 20, ("mkfs.xfs", "-q", "-f"), "xfsprogs"),
        "btrfs": FileSystem("btrfs", 128 << 20, ("mkfs.btrfs", "-q", "-f"), "btrfs-progs", "commit=1"),
    }
    if name not in known:
        raise ConfigError(f"there is no file system {name!r} here; choose from {', '.join(known)}")
    return known[name]


def require(names: tuple[str, ...]) -> None:
    """Raises UnsupportedMachine with one line that names everything that is missing."""
    lacks = []
    if os.geteuid() != 0:
        lacks.append("root")
    lacks += [device for device in ("/dev/fuse", "/dev/loop-control") if not Path(device).exists()]
    supported = Path("/proc/filesystems").read_text().split() if Path("/proc/filesystems").exists() else []
    for name in names:
        system = file_system(name)
        if name not in supported:
            lacks.append(f"{name} in the kernel")
        if not _runs(system.make[0]):
            lacks.append(f"{system.make[0]} ({system.package})")
    if find_spec("mfusepy") is None:
        lacks.append("the package mfusepy (pip install 'headway[crashtest]')")
    elif not _has_libfuse():
        lacks.append("libfuse3 (Debian: libfuse3-3; FUSE_LIBRARY_PATH names a copy)")
    if lacks:
        raise UnsupportedMachine(f"testing on real file systems lacks {', '.join(lacks)}; `headway crashtest run` needs none of it")


def _runs(program: str) -> bool:
    try:
        return subprocess.run([program, "-V"], capture_output=True, timeout=10).returncode in (0, 1)
    except (OSError, subprocess.TimeoutExpired):
        return False


def _has_libfuse() -> bool:
    from ctypes.util import find_library

    return bool(os.environ.get("FUSE_LIBRARY_PATH") or find_library("fuse3") or find_library("fuse"))


def make(system: FileSystem, image: Path) -> None:
    """Creates `image` with an empty file system. Raises UnsupportedMachine with mkfs's own words when it fails."""
    with image.open("wb") as file:
        file.truncate(system.size_bytes)
    made = subprocess.run([*system.make, str(image)], capture_output=True, text=True)
    if made.returncode != 0:
        raise UnsupportedMachine(f"{' '.join(system.make)} failed: {made.stderr.strip()[:300]}")
