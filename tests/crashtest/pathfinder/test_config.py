"""Pathfinder's INI files: their options, their templates, and what is wrong with one."""

from pathlib import Path

import pytest

from headway.core.errors import ConfigError
from headway.crashtest.pathfinder import config

INI = """
[general]
mode = posix
max_um_size = 30
decompose_syscall = False
baseline_timeout = 15min
test_ranges = [3-10, 35-36]
[trace]
trace_path = {{pwd}}/tracer.log
root_dir = {{pmdir}}/db
cmd_tmpl = {{build_root}}/workload {{pmdir}}
[test]
checker_tmpl = "{{build_root}}/check {{pmdir}}"
timeout = 5
"""


def test_options_and_templates(tmp_path: Path) -> None:
    (tmp_path / "t.ini").write_text(INI)
    read = config.read(tmp_path / "t.ini", {"build_root": "/build"})
    assert (read.mode, read.max_run_events, read.decompose) == ("posix", 30, False)
    assert (read.baseline_timeout_s, read.check_timeout_s) == (900.0, 5.0)
    assert read.test_ranges == ((3, 10), (35, 36))
    assert read.trace_path == f"{tmp_path.resolve()}/tracer.log"
    assert read.command == "/build/workload {{pmdir}}"
    assert config.fill(read.checker, {"pmdir": "/crash"}) == "/build/check /crash"


def test_defaults_are_the_originals() -> None:
    plain = config.PathfinderConfig()
    assert (plain.max_run_events, plain.baseline_timeout_s, plain.check_timeout_s) == (40, 900.0, 30.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[general]\nmode = fast", "general.mode"),
        ("[general]\nmax_um_size = -1", "general.max_um_size"),
        ("[general]\nparallelize = maybe", "true or false"),
        ("[general]\nspeed = 9", "general.speed"),
        ("[test]\ntimeout = soon", "test.timeout"),
        ("mode = posix", "not an INI file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.ini").write_text(text)
    with pytest.raises(ConfigError, match=said):
        config.read(tmp_path / "t.ini")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.read(tmp_path / "none.ini")
