"""What this machine is, read from /proc and /sys without importing anything: instruction sets, memory, pages, platform."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from headway.core.errors import UnsupportedMachine
from headway.kernels.cpu.isa import LEVELS, select

GIB = 1 << 30

# Where /proc/cpuinfo spells a feature differently from LLVM.
CPUINFO_NAMES = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni"}


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Flags of the first CPU; empty where the file does not exist."""
    return frozenset(_cpuinfo_field("flags", cpuinfo).split())


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    return _cpuinfo_field("model name", cpuinfo) or platform.processor() or "unknown CPU"


def isa_level(flags: frozenset[str]) -> str | None:
    """Name of the best level of `kernels.cpu.isa` that `flags` allow, None if the CPU has none of them. Loads no LLVM."""
    return next((isa.name for isa in LEVELS if all(CPUINFO_NAMES.get(name, name) in flags for name in isa.needs)), None)


def chosen_isa() -> str:
    """Name of the level that the kernels will be emitted for here, `HEADWAY_ISA` respected. Raises UnsupportedMachine with a remedy."""
    try:
        return select().name
    except ImportError:  # without llvmlite nothing can be emitted; what the CPU could do is still worth knowing
        level = isa_level(cpu_flags())
        if level is None:
            raise UnsupportedMachine(f"{cpu_model()} lacks AVX2, FMA or F16C, which Headway's kernels need") from None
        return level


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
