"""`headway doctor`: one line for each thing a room may want of this machine; it reports what it cannot read and never fails."""

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from headway.cli.machine import GIB, answers, chosen_isa, cpu_model, meminfo_bytes, usable_cores
from headway.cli.parser import CommandParser
from headway.core.errors import UnsupportedMachine

EXAMPLES = """\
  headway doctor            one line for each thing; `-` marks what is missing, and for what
"""

# What an extra brings, by the modules it must make importable (pyproject.toml).
EXTRAS = {
    "serve": ("numba", "llvmlite", "tokenizers", "jinja2", "uvicorn", "h11", "msgspec", "prometheus_client"),
    "bench": ("yaml", "rich", "msgspec"),
    "crashtest": ("msgspec", "mfusepy"),
}
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `lacks` names what a room cannot do because of it; empty = all is well."""

    name: str
    found: str
    lacks: str = ""


def run(argv: list[str]) -> int:
    """0 if this machine can serve a model, 1 if it cannot."""
    CommandParser("doctor", "What this machine has, and which room lacks what.", EXAMPLES).parse_args(argv)
    findings = [_guarded(name, check) for name, check in CHECKS.items()]
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{'-' if finding.lacks else '+'} {finding.name:<{width}}  {finding.found}{f'  ({finding.lacks})' if finding.lacks else ''}")
    blocked = [finding.name for finding in findings if finding.lacks and finding.name in NEEDED_TO_SERVE]
    print(
        f"\nThis machine cannot serve a model yet: see {', '.join(blocked)} above."
        if blocked
        else "\nThis machine can serve a model: headway serve"
    )
    return 1 if blocked else 0


def _guarded(name: str, check: Callable[[], tuple[str, str]]) -> Finding:
    """A doctor that dies of one unreadable file helps nobody: the failure becomes the finding."""
    try:
        return Finding(name, *check())
    except Exception as error:
        return Finding(name, "could not be read", f"{type(error).__name__}: {error}")


def _platform() -> tuple[str, str]:
    found = f"{platform.system()} {platform.release()} {platform.machine()}"
    supported = sys.platform == "linux" and platform.machine() == "x86_64"
    return found, "" if supported else "Headway runs on Linux x86-64 so far"


def _python() -> tuple[str, str]:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return f"{platform.python_version()} ({platform.python_implementation()})", "" if supported else "Headway knows Python 3.11 to 3.13"


def _cpu() -> tuple[str, str]:
    return f"{cpu_model()}, {usable_cores()} cores usable", "" if usable_cores() > 1 else "front and engine share one core: promises suffer"


def _isa() -> tuple[str, str]:
    asked = os.environ.get("HEADWAY_ISA")
    try:
        return chosen_isa() + (" (HEADWAY_ISA)" if asked else ""), ""
    except UnsupportedMachine as error:
        return asked or "none that has kernels", str(error)


def _memory() -> tuple[str, str]:
    sizes = meminfo_bytes()
    found = f"{sizes['MemTotal'] / GIB:.1f} GiB, {sizes['MemAvailable'] / GIB:.1f} GiB available"
    return found, "" if sizes["MemAvailable"] >= GIB else "engine: a small model with its KV pool takes about 1 GiB"


def _huge_pages() -> tuple[str, str]:
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    chosen = mode.partition("[")[2].partition("]")[0]
    return f"transparent: {chosen}", "" if chosen in ("always", "madvise") else "kernels: weights in 4 KiB pages are read slower"


def _disk() -> tuple[str, str]:
    from headway.core.paths import home_cache, home_state

    free = {}
    for what, path in {"cache": home_cache(), "state": home_state()}.items():
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        free[what] = shutil.disk_usage(existing).free
    found = ", ".join(f"{what} {size / GIB:.1f} GiB free" for what, size in free.items())
    return found, "" if min(free.values()) >= GIB else "pull and serve: a model, its repacked copy and the journal want 1 GiB"


def _extra(name: str) -> Callable[[], tuple[str, str]]:
    def check() -> tuple[str, str]:
        missing = [module for module in EXTRAS[name] if find_spec(module) is None]
        if not missing:
            return "installed", ""
        return f"lacks {', '.join(missing)}", f"pip install 'headway[{name}]'"

    return check


def _pip() -> tuple[str, str]:
    return (
        ("here", "")
        if find_spec("pip")
        else ("not in this environment", "pull: fetches wheels with it; `headway pull NAME --from FILE` works without")
    )


def _strace() -> tuple[str, str]:
    version = answers("strace", "--version")
    return version or "none that runs", "" if version else "crashtest traces with ptrace instead, slower and as complete"


def _chromium() -> tuple[str, str]:
    version = next((line for name in CHROMIUM_NAMES if (line := answers(name)) is not None), None)
    return version or "none that runs", "" if version else "`make test-all` tests the chat page in it; the page itself needs none of it"


def _cgroups() -> tuple[str, str]:
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    if not controllers.exists():
        return "version 1 or none", "not needed: nothing in this release sets shares of the machine"
    return f"version 2: {controllers.read_text().strip()}", ""


def _autogroup() -> tuple[str, str]:
    switch = Path("/proc/sys/kernel/sched_autogroup_enabled")
    on = switch.exists() and switch.read_text().strip() == "1"
    return ("on: nice works within a session only" if on else "off: nice works between sessions"), ""


def _gpu() -> tuple[str, str]:
    cards = answers("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return cards or "none", "" if cards else "not needed: kernels run on the CPU"


CHECKS: dict[str, Callable[[], tuple[str, str]]] = {
    "platform": _platform,
    "python": _python,
    "cpu": _cpu,
    "isa": _isa,
    "memory": _memory,
    "huge pages": _huge_pages,
    "disk": _disk,
    **{f"extra {name}": _extra(name) for name in EXTRAS},
    "pip": _pip,
    "strace": _strace,
    "chromium": _chromium,
    "cgroups": _cgroups,
    "autogroup": _autogroup,
    "gpu": _gpu,
}
NEEDED_TO_SERVE = frozenset({"platform", "python", "isa", "extra serve"})
