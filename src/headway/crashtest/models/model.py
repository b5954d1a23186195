"""A persistence model: what a file system promises about the order in which changes reach the disk, as plain data.

The rules are chosen by fields, so that a model is a few lines of TOML (builtin.toml; `load` reads a user's own). order.py turns them into
predecessors, forcing.py into what a sync makes durable, variants.py into torn and filled writes.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from headway.core.errors import ConfigError

Fill = Literal["zeros", "garbage"]


@dataclass(frozen=True, slots=True)
class PersistenceModel:
    """The rules of one file system. Defaults promise nothing.

    - `everything_in_order`: changes persist in the order they were made (then no other order rule matters).
    - `names`: the order among changes of names (link, unlink, rename, mkdir, rmdir): "none", "directory" (those of one directory keep
      their order; a rename belongs to both), "total". `truncations_with_names`: truncations, attributes and allocated sizes join it.
    - `after_link`: content follows the link that created its file, entries the creation of their directory.
    - `growth_in_order`: what extends or truncates a file follows the file's previous change of size.
    - `pages_in_order`: writes that touch the same 4 KiB page keep their order (there is one page in the page cache).
    - `data_before_size`: a size that a write set follows the write's data: "no", "fresh" (where its blocks were not allocated before),
      "always".
    - `replace_waits_for_data`: a rename onto an existing file follows the content of the file that moves.
    - `rewrite_waits_for_data`: a file cut to 0 and rewritten has its content before any change of names after its close (ext4's
      auto_da_alloc).
    - `sync_names`: which names fsync(file) makes durable too: "none", "own" (that file's), "all" (everything before: the journal commits
      whole). `sync_alone`: what a sync forces does not drag along the older changes that the order would put before it (a log tree).
    - `tear_bytes`: a write may stop at a multiple of these; `fills`: what extends a file may hold instead of the data;
      `split_writes`: a write may stop after each third.
    """

    name: str
    description: str = ""
    everything_in_order: bool = False
    names: Literal["none", "directory", "total"] = "none"
    truncations_with_names: bool = False
    after_link: bool = False
    growth_in_order: bool = False
    pages_in_order: bool = False
    data_before_size: Literal["no", "fresh", "always"] = "no"
    replace_waits_for_data: bool = False
    rewrite_waits_for_data: bool = False
    sync_names: Literal["none", "own", "all"] = "none"
    sync_alone: bool = False
    tear_bytes: tuple[int, ...] = ()
    split_writes: bool = False
    fills: tuple[Fill, ...] = ()


def load(path: str | Path) -> dict[str, PersistenceModel]:
    """The models of a TOML file: one table a model, its keys the fields; `base = "ext4"` starts from a shipped model.

    Raises ConfigError naming the file, the model and the field.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return parse(tomllib.loads(text), str(path), builtin())
    except OSError as problem:
        raise ConfigError(f"the model file {path} cannot be read: {problem.strerror}; name a TOML file") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"the model file {path} is not TOML: {problem}; see docs/crashtest.md for an example") from problem


def builtin() -> dict[str, PersistenceModel]:
    """The shipped models by name."""
    text = resources.files("headway.crashtest.models").joinpath("builtin.toml").read_text(encoding="utf-8")
    return parse(tomllib.loads(text), "builtin.toml", {})


def parse(tables: Mapping[str, Any], where: str, known: Mapping[str, PersistenceModel]) -> dict[str, PersistenceModel]:
    """Models from tables; later ones may name earlier ones as their base."""
    made: dict[str, PersistenceModel] = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: {name} = {table!r} is not a model; write a table [{name}]")
        values = dict(table)
        base = values.pop("base", None)
        if base is not None and base not in made and base not in known:
            raise ConfigError(f"{where}: model {name} is based on {base!r}, which is not a model; known are {', '.join([*known, *made])}")
        start = {} if base is None else {one.name: getattr({**known, **made}[base], one.name) for one in fields(PersistenceModel)}
        made[name] = PersistenceModel(**{**start, **{key: _value(where, name, key, value) for key, value in values.items()}, "name": name})
    return made


def _value(where: str, model: str, key: str, value: Any) -> Any:
    field_types = {one.name: one.type for one in fields(PersistenceModel) if one.name != "name"}
    if key not in field_types:
        raise ConfigError(f"{where}: model {model} has an unknown field {key!r}; fields are base, {', '.join(field_types)}")
    wanted = field_types[key]
    choices = get_args(wanted) if get_origin(wanted) is Literal else get_args(Fill) if key == "fills" else ()
    if key == "tear_bytes":
        fits = isinstance(value, list) and all(type(one) is int and one > 0 for one in value)
    elif key == "fills":
        fits = isinstance(value, list) and all(one in choices for one in value)
    elif choices:
        fits = value in choices
    else:
        fits = type(value) is wanted
    if not fits:
        expected = f"one of {', '.join(choices)}" if choices else "positive numbers of bytes" if key == "tear_bytes" else str(wanted)
        raise ConfigError(f"{where}: model {model} has {key} = {value!r}; it must be {expected}")
    return tuple(value) if isinstance(value, list) else value
