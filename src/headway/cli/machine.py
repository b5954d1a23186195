"""What this machine is, read from /proc and /sys without importing anything: instruction sets, memory, pages, platform."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from headway.core.errors import UnsupportedMachine

GIB = 1 << 30

# Instruction sets that have kernels of their own, best first, with the /proc/cpuinfo flags each needs (specs/engine.md 3.5).
ISA_LEVELS = {
    "AVX-512 with VNNI": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni"}),
    "AVX2 with AVX-VNNI": frozenset({"avx2", "fma", "f16c", "avx_vnni"}),
    "AVX2": frozenset({"avx2", "fma", "f16c"}),
}


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Flags of the first CPU; empty where the file does not exist."""
    return frozenset(_cpuinfo_field("flags", cpuinfo).split())


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    return _cpuinfo_field("model name", cpuinfo) or platform.processor() or "unknown CPU"


def isa_level(flags: frozenset[str]) -> str | None:
    """The best level of ISA_LEVELS that `flags` allow, None if the CPU has none of them."""
    return next((name for name, needed in ISA_LEVELS.items() if needed <= flags), None)


def require_supported() -> None:
    """Raises UnsupportedMachine with one line unless this is Linux x86-64 with AVX2 and a Python that Headway knows."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise UnsupportedMachine(f"Headway runs on Linux x86-64 so far; {platform.system()} {platform.machine()} is not supported yet")
    if isa_level(cpu_flags()) is None:
        raise UnsupportedMachine(f"Headway's kernels need a CPU with AVX2, FMA and F16C; {cpu_model()} is not supported")


def usable_cores() -> int:
    """Cores this process may run on (affinity, not the number in the box)."""
    return len(os.sched_getaffinity(0))


def meminfo_bytes(meminfo: Path = Path("/proc/meminfo")) -> dict[str, int]:
    """/proc/meminfo with sizes in bytes; counts (HugePages_Total) as they are."""
    sizes = {}
    for line in meminfo.read_text().splitlines():
        name, _, rest = line.partition(":")
        number, *unit = rest.split()
        sizes[name] = int(number) * (1024 if unit == ["kB"] else 1)
    return sizes


def answers(tool: str, *arguments: str) -> str | None:
    """First line that `tool --version` prints if it runs and exits with 0, else None: being in PATH proves nothing."""
    path = shutil.which(tool)
    if path is None:
        return None
    try:
        child = subprocess.run([path, *(arguments or ("--version",))], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (child.stdout or child.stderr).strip().splitlines()
    return (lines[0] if lines else tool) if child.returncode == 0 else None


def _cpuinfo_field(name: str, cpuinfo: Path) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
