"""Reads Pathfinder's own INI files, so that a target of theirs runs here: sections general, trace and test, templates in {{...}}."""

import configparser
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.core.errors import ConfigError

MODES = {"posix": "posix", "syscall": "posix", "pathfinder": "posix", "mmio": "mmio", "pm": "mmio"}
BASELINE_TIMEOUT_S = 900.0
CHECK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class PathfinderConfig:
    """What an INI file asks for. Command templates still hold what is filled in for each run: `{{pmdir}}` unless it was given.

    `mode`: "posix", "mmio", or the name of a baseline. `test_ranges`: pairs of event numbers; only groups inside one are tested when
    `selective_testing`. Times in seconds.
    """

    mode: str = "posix"
    max_run_events: int = 40
    max_processes: int = 1
    parallelize: bool = False
    decompose: bool = True
    op_tracing: bool = False
    selective_testing: bool = False
    test_ranges: tuple[tuple[int, int], ...] = ()
    count_crash_states: bool = False
    use_induced_subgraph: bool = True
    baseline_timeout_s: float = BASELINE_TIMEOUT_S
    trace_path: str = ""
    root_dir: str = ""
    command: str = ""
    daemon: str = ""
    setup: str = ""
    cleanup: str = ""
    checker: str = ""
    test_daemon: str = ""
    test_setup: str = ""
    test_cleanup: str = ""
    check_timeout_s: float = CHECK_TIMEOUT_S


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        raise ValueError("true or false")
    return text.lower() in ("true", "yes", "on", "1")


def _mode(text: str) -> str:
    from headway.crashtest.pathfinder.baselines import BASELINES

    known: dict[str, str] = {**MODES, **{one: str(one) for one in BASELINES}}
    if text.lower() not in known:
        raise ValueError(f"one of {', '.join(known)}")
    return known[text.lower()]


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError("a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    """Plain seconds, or with a unit: 15min, 900s."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|sec|m|min|h)?", text.lower())
    if match is None:
        raise ValueError("seconds, or a number with s, min or h")
    return float(match[1]) * {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"]


def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    pairs = re.findall(r"(\d+)\s*[-:,]\s*(\d+)", text)
    if not pairs and text.strip(" []()"):
        raise ValueError("ranges such as 3-10, 35-36")
    return tuple((int(a), int(b)) for a, b in pairs)


_OPTIONS: dict[tuple[str, str], tuple[str, Callable[[str], Any]]] = {
    ("general", "mode"): ("mode", _mode),
    ("general", "max_um_size"): ("max_run_events", _whole),
    ("general", "max_nproc"): ("max_processes", _whole),
    ("general", "parallelize"): ("parallelize", _boolean),
    ("general", "decompose_syscall"): ("decompose", _boolean),
    ("general", "op_tracing"): ("op_tracing", _boolean),
    ("general", "selective_testing"): ("selective_testing", _boolean),
    ("general", "test_ranges"): ("test_ranges", _ranges),
    ("general", "count_crash_state"): ("count_crash_states", _boolean),
    ("general", "use_induced_subgraph"): ("use_induced_subgraph", _boolean),
    ("general", "baseline_timeout"): ("baseline_timeout_s", _seconds),
    ("trace", "trace_path"): ("trace_path", str),
    ("trace", "root_dir"): ("root_dir", str),
    ("trace", "cmd_tmpl"): ("command", str),
    ("trace", "daemon_tmpl"): ("daemon", str),
    ("trace", "setup_tmpl"): ("setup", str),
    ("trace", "cleanup_tmpl"): ("cleanup", str),
    ("test", "checker_tmpl"): ("checker", str),
    ("test", "daemon_tmpl"): ("test_daemon", str),
    ("test", "setup_tmpl"): ("test_setup", str),
    ("test", "cleanup_tmpl"): ("test_cleanup", str),
    ("test", "timeout"): ("check_timeout_s", _seconds),
}


def read(path: str | Path, templates: Mapping[str, str] | None = None) -> PathfinderConfig:
    """Reads a file. `{{pwd}}` is its directory, `{{build_root}}` too unless `templates` says otherwise; unknown templates stay.

    Raises ConfigError naming file, section and option.
    """
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        with Path(path).open(encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be read: {problem.strerror}; give a Pathfinder INI file") from problem
    except (configparser.Error, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path} is not an INI file: {problem}") from problem
    here = str(Path(path).resolve().parent)
    known = {"pwd": here, "build_root": here, **(templates or {})}
    values: dict[str, Any] = {}
    for section in parser.sections():
        for option, text in parser.items(section):
            if (section, option) not in _OPTIONS:
                names = ", ".join(f"{a}.{b}" for a, b in _OPTIONS)
                raise ConfigError(f"{path}: {section}.{option} is not an option of Pathfinder's; options are {names}")
            name, convert = _OPTIONS[section, option]
            filled = fill(text.strip().strip('"'), known)
            try:
                values[name] = convert(filled)
            except ValueError as problem:
                raise ConfigError(f"{path}: {section}.{option} = {filled!r} must be {problem}") from problem
    return PathfinderConfig(**values)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replaces {{name}} where `values` has the name."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: values.get(match[1], match[0]), template)
