"""A run on disk: the trace, what was asked, what came out, so that `explain` and `repair` can go on from it."""

import io
import json
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headway.core.durable import make_dirs, publish
from headway.core.errors import ConfigError
from headway.core.paths import home_state
from headway.crashtest.check import CheckOptions, Run
from headway.crashtest.operations import Trace
from headway.crashtest.oracle import CallableOracle, Oracle, ProgramOracle, load_callable
from headway.crashtest.tree import File, Symlink, Tree

VERSION = 1


@dataclass(frozen=True, slots=True)
class OracleSpec:
    """What the command line named: exactly one of the three is set."""

    function: str = ""
    program: str = ""
    target: str = ""

    def loader(self, timeout_s: float) -> Callable[[], Oracle]:
        """For fork servers. Raises ConfigError at once when something is missing."""
        if sum(map(bool, (self.function, self.program, self.target))) != 1:
            raise ConfigError("say who judges the states: --oracle module:function, --checker 'command {dir}', or a target's name")
        if self.target:
            from headway.crashtest.targets.catalogue import find

            return find(self.target).oracle
        if self.program:
            program = ProgramOracle(self.program, timeout_s)
            return lambda: program
        return lambda: CallableOracle(load_callable(self.function))

    def __str__(self) -> str:
        return self.function or self.program or f"target {self.target}"


@dataclass(slots=True)
class Stored:
    """One run directory."""

    directory: Path
    trace: Trace
    oracle: OracleSpec
    options: CheckOptions
    models: list[str]
    model_file: str | None


def new_directory() -> Path:
    """A fresh run directory under the state directory, named by UTC time."""
    parent = home_state() / "crashtest"
    name = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    number = 0
    while (found := parent / (name if not number else f"{name}-{number}")).exists():
        number += 1
    make_dirs(found)
    return found


def newest_directory() -> Path:
    runs = sorted((home_state() / "crashtest").glob("*/run.json"))
    if not runs:
        raise ConfigError("there is no run yet: `headway crashtest run --oracle module:function -- COMMAND` makes one")
    return runs[-1].parent


def save(directory: Path, trace: Trace, oracle: OracleSpec, options: CheckOptions, runs: list[Run], model_file: str | None) -> None:
    """Writes trace and run.json."""
    trace.save(directory / "trace")
    document = {
        "version": VERSION,
        "command": list(trace.command),
        "oracle": asdict(oracle),
        "options": asdict(options),
        "model_file": model_file,
        "runs": [run_document(run) for run in runs],
    }
    publish(directory / "run.json", json.dumps(document, indent=1, default=str).encode())


def load(directory: Path) -> Stored:
    """Raises ConfigError when `directory` holds no run of this version."""
    try:
        document = json.loads((directory / "run.json").read_bytes())
        if document["version"] != VERSION:
            raise ConfigError(f"{directory} was written by another version of headway ({document['version']}); run it again")
        options = {**document["options"], "ignore": tuple(document["options"]["ignore"])}
        models = [run["model"] for run in document["runs"]]
        oracle, model_file = OracleSpec(**document["oracle"]), document["model_file"]
        return Stored(directory, Trace.load(directory / "trace"), oracle, CheckOptions(**options), models, model_file)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ConfigError(f"{directory} is no crashtest run ({problem!r}); `headway crashtest run` writes one") from problem


def run_document(run: Run) -> dict[str, Any]:
    """A run as JSON-ready data."""
    coverage = run.coverage
    return {
        "model": run.model,
        "verdict": run.verdict,
        "exit_code": run.exit_code,
        "infidel": run.infidel,
        "checked": run.checked,
        "failing": run.failing,
        "states_to_first": run.states_to_first,
        "seconds": round(run.seconds, 3),
        "kinds": run.kinds,
        "coverage": {
            "strategy": coverage.strategy,
            "crash_points": coverage.crash_points,
            "visited_points": len(coverage.visited_points),
            "capped_points": len(coverage.capped_points),
            "classes": coverage.classes,
            "classes_tested": len(coverage.classes_tested),
            "contexts": coverage.contexts,
            "represented_points": coverage.represented_points,
            "rechecked": coverage.rechecked,
            "listed": coverage.listed,
            "distinct": coverage.distinct,
            "budget_hit": coverage.budget_hit,
            "limit_hit": coverage.limit_hit,
        },
        "findings": [
            {
                "title": finding.title,
                "lost": finding.lost_shape,
                "survived": finding.survived_shape,
                "barrier": str(finding.barrier),
                "verdict": finding.verdict,
                "kinds": sorted(finding.kinds),
                "states": finding.states,
                "after": finding.failure.after,
                "kept": hex(finding.failure.kept),
                "variant": finding.failure.variant,
                "acks": list(finding.failure.acks),
                "begun": list(finding.failure.begun),
                "confirmed": list(finding.confirmed),
                "timeline": finding.lines,
            }
            for finding in run.findings
        ],
    }


def reproduction(directory: Path, number: int, tree: Tree, oracle: OracleSpec, acks: tuple[str, ...], begun: tuple[str, ...]) -> Path:
    """Writes `bug-N.tar` (the crash image) and `bug-N.sh`, which judges it on a plain loop mount (or, without root, in a directory)."""
    image = directory / f"bug-{number}.tar"
    publish(image, _tar(tree))
    markers = "".join(f"begin {text}\n" for text in begun) + "".join(f"ack {text}\n" for text in acks)
    script = directory / f"bug-{number}.sh"
    publish(script, _script(number, oracle, markers, acks, begun).encode(), mode=0o755)
    return script


def _script(number: int, oracle: OracleSpec, markers: str, acks: tuple[str, ...], begun: tuple[str, ...]) -> str:
    if oracle.program:
        check = oracle.program.replace("{dir}", '"$dir"').replace("{acks}", '"$work/acks"')
        judge = f'HEADWAY_CRASH_DIR="$dir" HEADWAY_CRASH_ACKS="$work/acks" {check}'
    else:
        module, _, function = (oracle.function or f"headway.crashtest.targets.catalogue:TARGETS[{oracle.target!r}].check").partition(":")
        call = f"import pathlib, sys; from {module} import *; import {module} as m"
        name = f"m.{function}"
        wrong = f"f = {name}; n = f.__code__.co_argcount; wrong = f(*(pathlib.Path(sys.argv[1]), {list(acks)!r}, {list(begun)!r})[:n])"
        judge = f"""python3 - "$dir" <<'END'\n{call}\n{wrong}\nprint(wrong or "consistent")\nsys.exit(bool(wrong))\nEND"""
    return f"""#!/bin/sh
# Judges crash image {number} on a fresh ext4 in a file (root), else in a plain directory. Exit status 0: consistent.
work=$(mktemp -d); dir=$work/mount; mkdir "$dir"
here=$(cd "$(dirname "$0")" && pwd)
cat > "$work/acks" <<'END'
{markers}END
if [ "$(id -u)" = 0 ] && truncate -s 256M "$work/disk" && mkfs.ext4 -q -b 4096 "$work/disk" && mount -o loop "$work/disk" "$dir"; then
  rmdir "$dir/lost+found"; fi
tar -xf "$here/bug-{number}.tar" -C "$dir"
{judge}
status=$?
if mountpoint -q "$dir"; then umount "$dir"; fi
rm -rf "$work"
exit $status
"""


def _tar(tree: Tree) -> bytes:
    out = io.BytesIO()
    first: dict[int, str] = {}
    with tarfile.TarFile(fileobj=out, mode="w") as archive:
        for path, inode, node in tree.walk():
            entry = tarfile.TarInfo(path)
            if isinstance(node, Symlink):
                entry.type, entry.linkname = tarfile.SYMTYPE, node.target
            elif not isinstance(node, File):
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            elif inode in first:
                entry.type, entry.linkname = tarfile.LNKTYPE, first[inode]
            else:
                first[inode] = path
                entry.size, entry.mode = len(node.data), 0o644
            archive.addfile(entry, io.BytesIO(node.data) if entry.isreg() and isinstance(node, File) else None)
    return out.getvalue()
