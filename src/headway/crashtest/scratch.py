"""Scratch directories in memory for crash images, and the removal of those that a killed run left behind."""

import os
import re
import shutil
import tempfile
from pathlib import Path

_NAME = re.compile(r"^headway-crashtest-(?P<pid>\d+)-")


def scratch_root() -> Path:
    """/dev/shm where it can be written, else the system's temporary directory."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def scratch_directory(purpose: str) -> Path:
    """A new directory of this process; what dead processes left is removed first."""
    root = scratch_root()
    for left in root.glob("headway-crashtest-*"):
        match = _NAME.match(left.name)
        if match and not Path(f"/proc/{match['pid']}").exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"headway-crashtest-{os.getpid()}-{purpose}-", dir=root))
