"""`headway crashtest pathfinder`: calls, mapped memory and the original's INI files, each with the counts the modes themselves give."""

from pathlib import Path

import pytest

from headway.cli.main import main
from tests.crashtest.pathfinder.test_mmio import REGIONS, entries

LOG = Path(__file__).parent.parent / "data" / "leveldb-bug-0-tracer.log"
ROOT = "/home/yilegu/squint_test_dir/628b-bda1-d221-d700"


def ini(tmp_path: Path, general: str) -> str:
    path = tmp_path / "run.ini"
    path.write_text(f"[general]\n{general}\n[trace]\ntrace_path = {LOG}\nroot_dir = {ROOT}\n")
    return str(path)


def test_the_shipped_trace_has_its_ten_tests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crashtest", "pathfinder", str(LOG), "--root-dir", ROOT]) == 0
    out = capsys.readouterr().out
    assert out.startswith("10 tests")
    assert out.splitlines()[-1].split() == ["all", "1609", "72", "-"]


def test_regions_test_the_stores_of_mapped_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries(msync=False).save(tmp_path / "t.trace")
    (tmp_path / "types.toml").write_text(REGIONS)
    assert main(["crashtest", "pathfinder", str(tmp_path / "t.trace"), "--regions", str(tmp_path / "types.toml")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("entry"))
    assert line.split()[1] == "2"


def test_a_baseline_of_an_ini_file_lists_its_prefixes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crashtest", "pathfinder", ini(tmp_path, "mode = linear")]) == 0
    assert next(line for line in capsys.readouterr().out.splitlines() if line.startswith("linear")).split()[2] == "39"


def test_a_baseline_without_end_stops_in_time_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crashtest", "pathfinder", ini(tmp_path, "mode = random\nbaseline_timeout = 0.2s")]) == 3
    assert "skipped: what the baseline would list after 0.2 s" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["selective_testing = true", "use_induced_subgraph = false"])
def test_options_that_are_not_built_are_refused(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crashtest", "pathfinder", ini(tmp_path, option)]) != 0
    assert option.split()[0] in capsys.readouterr().err
