"""Where Headway keeps things: `cache` (safe to delete at any time) and `state` (journals, laws, rules).

`HEADWAY_HOME` holds both when set, else the XDG base directories. Nothing here creates a directory: whoever writes does.
"""

import os
from pathlib import Path

from headway.core.errors import ConfigError


def _base(variable: str, home_default: str, kind: str) -> Path:
    home = os.environ.get("HEADWAY_HOME", "")
    if home:
        return _absolute("HEADWAY_HOME", home) / kind
    # The XDG specification tells programs to ignore relative values.
    xdg = os.environ.get(variable, "")
    if xdg and Path(xdg).is_absolute():
        return Path(xdg) / "headway"
    return Path.home() / home_default / "headway"


def _absolute(variable: str, value: str) -> Path:
    path = Path(value).expanduser()
    if "\0" in value:
        raise ConfigError(f"{variable} contains a NUL byte: {value!r}; set it to a directory")
    return path if path.is_absolute() else Path.cwd() / path


def home_cache() -> Path:
    """Models, repacked weights, kernel objects: everything that can be made again."""
    return _base("XDG_CACHE_HOME", ".cache", "cache")


def home_state() -> Path:
    """Journals, laws, rules: what a user would miss."""
    return _base("XDG_STATE_HOME", ".local/state", "state")


def models_dir() -> Path:
    """Pulled model files (cache)."""
    return home_cache() / "models"


def kernels_dir() -> Path:
    """Compiled kernel objects (cache)."""
    return home_cache() / "kernels"


def laws_dir() -> Path:
    """Calibrated laws (state)."""
    return home_state() / "laws"


def serve_dir(port: int) -> Path:
    """Journal and server.json of the server on `port` (state)."""
    return home_state() / "serve" / str(port)
