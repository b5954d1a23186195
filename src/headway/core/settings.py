"""Turns a frozen dataclass into command-line flags, `HEADWAY_*` variables and a TOML table: one description, four sources.

Precedence: flags > environment > TOML file > default. Every value passes the same parser and check wherever it came from,
and an error names the flag, variable or key, the value, and the remedy. Knows nothing of what the settings mean.
"""

import argparse
import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from headway.core.errors import ConfigError

T = TypeVar("T")
Scalar = Callable[[str], object]

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_BYTES = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "kib": 1 << 10,
    "m": 10**6,
    "mb": 10**6,
    "mib": 1 << 20,
    "g": 10**9,
    "gb": 10**9,
    "gib": 1 << 30,
}
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


def _number_and_unit(text: str) -> tuple[float, str]:
    text = text.strip()
    digits = len(text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    # "inf" and "nan" have no digits in front, so they fail here too.
    return float(text[:digits].replace("_", "")), text[digits:].lower()


def parse_bytes(text: str) -> int:
    """Bytes of "512MiB", "2GB", "1.5g", "4096". Raises ConfigError."""
    try:
        number, unit = _number_and_unit(text)
        size = number * _BYTES[unit]
    except (ValueError, KeyError):
        raise ConfigError(f"{text!r} is no size; write a number with B, KB, KiB, MB, MiB, GB or GiB, such as 512MiB") from None
    if not 0 <= size < 1 << 63:
        raise ConfigError(f"{text!r} is out of range for a size; use 0 to 8 EiB")
    return round(size)


def parse_duration_s(text: str) -> float:
    """Seconds of "30", "1.5s", "250ms", "2min", "1h". Raises ConfigError."""
    try:
        number, unit = _number_and_unit(text)
        seconds = number * _SECONDS[unit]
    except (ValueError, KeyError):
        raise ConfigError(f"{text!r} is no duration; write a number with ms, s, min or h, such as 30s") from None
    if not 0 <= seconds <= 1e9:
        raise ConfigError(f"{text!r} is out of range for a duration; use 0s to 1e9s")
    return seconds


def parse_bool(text: str) -> bool:
    """on/off, true/false, yes/no, 1/0. Raises ConfigError."""
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ConfigError(f"{text!r} is neither on nor off; write on or off")


def parse_int(text: str) -> int:
    """A whole decimal number. Raises ConfigError."""
    try:
        return int(text.strip())
    except ValueError:
        raise ConfigError(f"{text!r} is no whole number; write digits only") from None


def parse_text(text: str) -> str:
    """The text itself, without surrounding blanks."""
    return text.strip()


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """How one field is written, checked and explained. `name` is the flag's, dashes; the TOML key and variable follow from it."""

    name: str
    help: str
    parse: Scalar
    native: tuple[type, ...]
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    metavar: str | None = None
    positional: bool = False
    repeated: bool = False
    optional: bool = False
    secret: bool = False

    @property
    def flag(self) -> str:
        return self.name.upper().replace("-", "_") if self.positional else f"--{self.name}"

    @property
    def variable(self) -> str:
        return "HEADWAY_" + self.name.upper().replace("-", "_")

    def shown(self, value: object) -> str:
        return "(hidden)" if self.secret else repr(value)

    def check(self, value: object, source: str) -> None:
        """Raises ConfigError when `value` (already of the field's type) is not among the choices or out of range."""
        if value is None and self.optional:
            return
        for item in value if isinstance(value, tuple) and self.repeated else (value,):
            if not isinstance(item, self.native) or (isinstance(item, bool) and bool not in self.native):
                wanted = " or ".join(kind.__name__ for kind in self.native)
                raise ConfigError(f"{source}: {self.shown(item)} is a {type(item).__name__}; give {wanted}")
            if self.choices and item not in self.choices:
                raise ConfigError(f"{source}: {self.shown(item)} is not possible; choose {', '.join(c or 'nothing' for c in self.choices)}")
            if isinstance(item, (int, float)):
                below = self.minimum is not None and not item >= self.minimum
                above = self.maximum is not None and not item <= self.maximum
                if below or above:
                    raise ConfigError(f"{source}: {item} is out of range; use {_range_text(self.minimum, self.maximum)}")

    def read(self, value: object, source: str) -> object:
        """The field's value from a text or a TOML value. Raises ConfigError naming `source`."""
        if self.repeated:
            parts = value.split(",") if isinstance(value, str) else value
            if not isinstance(parts, Sequence):
                raise ConfigError(f"{source}: {self.shown(value)} is no list; give a list or comma-separated text")
            # A flag given several times arrives as a list whose items may hold commas themselves.
            items = [piece for part in parts for piece in (part.split(",") if isinstance(part, str) else [part])]
            result: object = tuple(self._read_one(item, source) for item in items if item != "")
        else:
            result = self._read_one(value, source)
        self.check(result, source)
        return result

    def _read_one(self, value: object, source: str) -> object:
        if isinstance(value, str):
            try:
                return self.parse(value)
            except ConfigError as problem:
                raise ConfigError(f"{source}: {problem if not self.secret else 'the value cannot be used'}") from None
        if float in self.native and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return value


def _range_text(minimum: float | None, maximum: float | None) -> str:
    if maximum is None:
        return f"at least {minimum}"
    return f"at most {maximum}" if minimum is None else f"{minimum} to {maximum}"


_PARSERS: dict[type, Scalar] = {bool: parse_bool, int: parse_int, str: parse_text, float: parse_duration_s}


def setting(
    default: object,
    help: str,
    *,
    name: str | None = None,
    parse: Scalar | None = None,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    metavar: str | None = None,
    positional: bool = False,
    secret: bool = False,
) -> Any:
    """A dataclass field with its description. Tuples are repeatable lists of text; a default of None makes an optional text."""
    kind = str if default is None or isinstance(default, tuple) else type(default)
    info: dict[str, Any] = {
        "name": name,
        "help": help,
        "parse": parse or _PARSERS[kind],
        "native": (kind,),
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "metavar": metavar,
        "positional": positional,
        "repeated": isinstance(default, tuple),
        "optional": default is None,
        "secret": secret,
    }
    return dataclasses.field(default=default, metadata={"setting": info}, repr=not secret)


def settings_of(cls: type) -> dict[str, Setting]:
    """Field name -> Setting of a configuration class."""
    found: dict[str, Setting] = {}
    for item in dataclasses.fields(cls):
        info = dict(item.metadata["setting"])
        info["name"] = info["name"] or item.name.replace("_", "-")
        found[item.name] = Setting(**info)
    return found


def check_all(config: Any) -> None:
    """Checks an object built by hand; call from `__post_init__`. Raises ConfigError naming the field."""
    cls = type(config)
    for field_name, item in settings_of(cls).items():
        item.check(getattr(config, field_name), f"{cls.__name__}.{field_name}")


def add_flags(parser: argparse.ArgumentParser, cls: type, only: Collection[str] | None = None) -> None:
    """Adds one flag (or positional) per field of `cls`, or of `only`; absent flags leave None, values stay text until `from_sources`."""
    defaults = {item.name: item.default for item in dataclasses.fields(cls)}
    for field_name, item in settings_of(cls).items():
        if only is not None and field_name not in only:
            continue
        default = defaults[field_name]
        shown = "" if default in (None, "", ()) else f" (default {_shown_default(default, item)})"
        help_text = f"{item.help}{shown}".replace("%", "%%")
        metavar = item.metavar or (("{" + ",".join(c for c in item.choices if c) + "}") if item.choices else None)
        if item.positional:
            parser.add_argument(field_name, nargs="?", default=None, help=help_text, metavar=metavar or item.name.upper())
        elif bool in item.native:
            parser.add_argument(item.flag, dest=field_name, action=argparse.BooleanOptionalAction, default=None, help=help_text)
        elif item.repeated:
            parser.add_argument(item.flag, dest=field_name, action="append", default=None, help=help_text, metavar=metavar)
        else:
            parser.add_argument(
                item.flag, dest=field_name, default=None, help=help_text, metavar=metavar or item.name.upper().replace("-", "_")
            )


def _shown_default(default: object, item: Setting) -> str:
    if item.parse is parse_bytes and isinstance(default, int):
        return f"{default >> 20}MiB" if default % (1 << 20) == 0 else str(default)
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, float):
        return f"{default:g}s"
    return str(default)


def load_toml(path: Path, table: str) -> dict[str, object]:
    """The table `[table]` of a TOML file ({} when the file has none). Raises ConfigError on unreadable or malformed files."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise ConfigError(f"configuration file {path}: {problem}; mend the file or drop it") from None
    found = document.get(table, {})
    if not isinstance(found, dict):
        raise ConfigError(f"configuration file {path}: {table!r} is a {type(found).__name__}; write a table [{table}]")
    return found


def from_sources(
    cls: type[T],
    namespace: argparse.Namespace | None = None,
    env: Mapping[str, str] | None = None,
    toml: Mapping[str, object] | None = None,
) -> T:
    """An instance of `cls` from flags > `HEADWAY_*` variables > TOML table > defaults.

    An empty variable counts as unset. Unknown TOML keys are errors (a mistyped key would otherwise be silently ignored).
    Raises ConfigError.
    """
    settings = settings_of(cls)
    toml = toml or {}
    env = env or {}
    keys = {item.name: field_name for field_name, item in settings.items()} | {
        spelling: field_name for field_name, item in settings.items() for spelling in (field_name, item.name.replace("-", "_"))
    }
    file_values: dict[str, tuple[str, object]] = {}
    for key, value in toml.items():
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            raise ConfigError(
                f"configuration key {key!r} is unknown; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(keys))}")
            )
        if keys[key] in file_values:
            raise ConfigError(f"configuration keys {file_values[keys[key]][0]!r} and {key!r} are the same setting; keep one")
        file_values[keys[key]] = (key, value)
    values: dict[str, object] = {}
    for field_name, item in settings.items():
        given = getattr(namespace, field_name, None)
        if given is not None:
            values[field_name] = item.read(given, item.flag)
        elif env.get(item.variable, "") != "":
            values[field_name] = item.read(env[item.variable], item.variable)
        elif field_name in file_values:
            key, value = file_values[field_name]
            values[field_name] = item.read(value, f"configuration key {key!r}")
    return cls(**values)
