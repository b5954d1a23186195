"""House rules of every test: derandomised hypothesis, a private HEADWAY_HOME, and who may skip what and why.

`pytest` runs the quick tests, `pytest --all` also those marked slow and peer. Tests marked model use the file that HEADWAY_TEST_MODEL
names, else the one that `headway pull smollm2-135m` left in the cache of whoever runs them.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
TEST_MODEL = "smollm2-135m"
KEPT_SETTINGS = frozenset({"HEADWAY_TEST_MODEL", "HEADWAY_DEBUG", "HEADWAY_PEERS_PYTHON"})

settings.register_profile(
    "quick", derandomize=True, database=None, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "all", database=None, deadline=None, max_examples=400, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)

_session_home: Path | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also the tests marked slow and peer, and ten times the drawn examples")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported: nothing a test does may reach the caches, journals or settings of its user."""
    settings.load_profile("all" if config.getoption("--all") else "quick")
    model = _model_file()
    for name in [name for name in os.environ if name.startswith("HEADWAY_") and name not in KEPT_SETTINGS]:
        del os.environ[name]
    global _session_home
    _session_home = Path(tempfile.mkdtemp(prefix="headway-tests-"))
    os.environ["HEADWAY_HOME"] = str(_session_home)
    if model is not None:
        os.environ["HEADWAY_TEST_MODEL"] = str(model)
    # Compiled kernels are keyed by their source, so they may outlive a session: compiling them is most of a first run's time.
    kernels = config.rootpath / ".pytest_cache" / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    (_session_home / "cache").mkdir()
    (_session_home / "cache" / "kernels").symlink_to(kernels, target_is_directory=True)
    # Commands that name the model find it too: its file (only that) is linked where `headway pull` would have put it.
    if model is not None:
        from headway.models import catalogue

        pulled = _session_home / "cache" / "models" / TEST_MODEL
        pulled.mkdir(parents=True)
        (pulled / catalogue.find(TEST_MODEL).file).symlink_to(model)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _session_home is not None:
        shutil.rmtree(_session_home, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    run_all = config.getoption("--all")
    model_missing = "HEADWAY_TEST_MODEL" not in os.environ
    peers = _peers_python()
    for item in items:
        if item.get_closest_marker("slow") and not run_all:
            item.add_marker(pytest.mark.skip(reason="slow: runs in `make test-all`"))
        if item.get_closest_marker("model") and model_missing:
            item.add_marker(pytest.mark.skip(reason=f"needs {TEST_MODEL}: `headway pull {TEST_MODEL}`, or HEADWAY_TEST_MODEL=FILE"))
        if item.get_closest_marker("peer"):
            if not run_all:
                item.add_marker(pytest.mark.skip(reason="peer: runs in `make test-all` after `make peers`"))
            elif peers is None:
                item.add_marker(pytest.mark.skip(reason="the peers are not installed: `make peers`, or HEADWAY_PEERS_PYTHON=python"))


@pytest.fixture
def headway_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HEADWAY_HOME of this test's own, for tests that leave journals, laws or a server.json behind."""
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def model_file() -> Path:
    """The real model's file; use it in tests marked `model`."""
    return Path(os.environ["HEADWAY_TEST_MODEL"])


@pytest.fixture
def peers_python() -> Path:
    """The interpreter of `make peers`; use it in tests marked `peer`."""
    python = _peers_python()
    assert python is not None, "tests that ask for peers_python are marked `peer`"
    return python


@pytest.fixture(scope="session")
def peers_torch() -> Path:
    """The interpreter of `make peers` where it has torch and transformers; skips where it lacks them. For tests marked `peer`."""
    python = _peers_python()
    assert python is not None, "tests that ask for peers_torch are marked `peer`"
    probe = "import importlib.util as u, sys; sys.exit(not (u.find_spec('torch') and u.find_spec('transformers')))"
    if subprocess.run([str(python), "-c", probe], check=False).returncode != 0:
        pytest.skip(f"{python} has no torch and transformers: `make peers`, or HEADWAY_PEERS_PYTHON=python")
    return python


def _model_file() -> Path | None:
    named = os.environ.get("HEADWAY_TEST_MODEL")
    if named:
        path = Path(named).resolve()
        if not path.is_file():
            raise pytest.UsageError(f"HEADWAY_TEST_MODEL names {named}, which is not a file")
        return path
    from headway.core.errors import HeadwayError
    from headway.models import hub

    try:
        return hub.path_of(TEST_MODEL)
    except HeadwayError:
        return None  # not pulled: tests marked model say so when they skip


def _peers_python() -> Path | None:
    named = os.environ.get("HEADWAY_PEERS_PYTHON")
    python = Path(named) if named else ROOT / ".peers" / "bin" / "python"
    return python if python.is_file() else None
