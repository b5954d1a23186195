"""What every benchmark prints and writes: rows of one shape, and the machine they were measured on."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from headway.core.stats import machine_fingerprint


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `ratio` = ours/peer (with its interval over repetitions); `goal` in words; `met` None = no goal or not measurable."""

    room: str
    case: str
    ours: float | None
    peer: float | None
    unit: str
    peer_version: str = ""
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    limit: float | None = None
    goal: str = ""
    met: bool | None = None


def ratio_row(room: str, case: str, ours: Sequence[float], peer: Sequence[float], unit: str, **more: object) -> Row:
    """Ratio of medians with a percentile bootstrap interval over interleaved repetitions (pairs are resampled together)."""
    left, right = np.asarray(ours), np.asarray(peer)
    picks = np.random.default_rng(0).integers(0, len(left), (2000, len(left)))
    ratios = np.median(left[picks], axis=1) / np.median(right[picks], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    middle = float(np.median(left) / np.median(right))
    values = {"ratio": middle, "ratio_low": float(low), "ratio_high": float(high)}
    return Row(room, case, float(np.median(left)), float(np.median(right)), unit, **values, **more)  # type: ignore[arg-type]


def parser(description: str) -> argparse.ArgumentParser:
    """A benchmark's command line: `--json FILE` everywhere."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, help="write the rows and the machine to this file")
    return made


def versions(*packages: str) -> dict[str, str]:
    """Installed versions; absent packages are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def header(title: str) -> dict[str, object]:
    """Prints what the numbers depend on and returns it."""
    machine: dict[str, Any] = machine_fingerprint() | {
        "versions": versions("headway", "numpy", "numba", "llvmlite"),
        "load_before": list(os.getloadavg()),
    }
    print(f"{title}\n  {machine['cpu']}, {machine['cores']} cores, {' '.join(machine['isa'])}; load {os.getloadavg()[0]:.2f}")
    print(f"  python {machine['python']}, {', '.join(f'{k} {v}' for k, v in machine['versions'].items())}\n", flush=True)
    return machine


def finish(rows: Sequence[Row], machine: dict[str, object], target: Path | None) -> int:
    """Prints the table, writes the JSON, and says by the exit status whether every goal that could be judged was met."""
    print(f"\n{'case':<44}{'ours':>12}{'peer':>12}  {'unit':<8}{'ratio':>7} {'95 %':>13}  goal")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        interval = "" if row.ratio_low is None else f"{row.ratio_low:.2f}-{row.ratio_high:.2f}"
        verdict = {True: "met", False: "NOT met", None: ""}[row.met]
        print(f"{row.case:<44}{_number(row.ours):>12}{_number(row.peer):>12}  {row.unit:<8}{ratio:>7} {interval:>13}  {row.goal} {verdict}")
    machine["load_after"] = list(os.getloadavg())
    if target is not None:
        target.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1, default=str))
        print(f"\nwritten to {target}")
    return 1 if any(row.met is False for row in rows) else 0


def peers_python() -> Path | None:
    """The interpreter of `make peers`, or None (then peers are left out, and the table says so)."""
    root = Path(os.environ.get("PEERS", ".peers"))
    python = root / "bin" / "python"
    if python.exists():
        return python
    print(f"no peers: {python} is missing; `make peers` installs them", file=sys.stderr)
    return None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
