"""Directories: HEADWAY_HOME first, then XDG, then the home directory."""

from pathlib import Path

import pytest

from headway.core import paths


def test_headway_home_holds_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert paths.home_cache() == tmp_path / "cache"
    assert paths.home_state() == tmp_path / "state"
    assert paths.models_dir() == tmp_path / "cache" / "models"
    assert paths.kernels_dir() == tmp_path / "cache" / "kernels"
    assert paths.laws_dir() == tmp_path / "state" / "laws"
    assert paths.serve_dir(8000) == tmp_path / "state" / "serve" / "8000"


def test_xdg_directories_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HEADWAY_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    assert paths.home_cache() == tmp_path / "c" / "headway"
    assert paths.home_state() == tmp_path / "s" / "headway"


def test_home_last_and_relative_xdg_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HEADWAY_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert paths.home_cache() == tmp_path / ".cache" / "headway"
    assert paths.home_state() == tmp_path / ".local" / "state" / "headway"


def test_a_relative_headway_home_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADWAY_HOME", "here")
    assert paths.home_cache() == tmp_path / "here" / "cache"
