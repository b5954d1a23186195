"""All recipes by name. Recipes whose package is missing are listed too; running one says what to install."""

import sys
from importlib.util import find_spec
from pathlib import Path

from headway.core.errors import ConfigError
from headway.crashtest.targets import databases, durable, idioms, planted, planted_logs
from headway.crashtest.targets.target import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (idioms, databases, durable, planted, planted_logs) for target in module.TARGETS
}


def find(name: str) -> Target:
    """Raises ConfigError for a name that does not exist or whose package is not installed."""
    if name not in TARGETS:
        raise ConfigError(f"there is no target {name!r}; `headway crashtest targets` lists them")
    target = TARGETS[name]
    if target.needs and find_spec(target.needs) is None:
        raise ConfigError(f"the target {name} needs the package {target.needs}: pip install {target.needs}")
    return target


def command(name: str) -> list[str]:
    """How to run a recipe's workload in `{dir}`; an interpreter of our own, so that Headway need not be installed."""
    find(name)
    package_root = str(Path(__file__).resolve().parents[3])
    start = f"import runpy, sys; sys.path.insert(0, {package_root!r}); runpy.run_module('headway.crashtest.targets', run_name='__main__')"
    return [sys.executable, "-c", start, name, "{dir}"]
