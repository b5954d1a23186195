"""Real file systems, where the machine has them: a known bug is confirmed, a careful program is clean, nothing is left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headway.core.errors import UnsupportedMachine
from headway.crashtest.litmus import LITMUS, measure, model_outcomes
from headway.crashtest.realfs.filesystems import require
from headway.crashtest.realfs.session import RealOptions, run_real
from headway.crashtest.scratch import scratch_root
from headway.crashtest.targets.catalogue import command, find


def lacking(*names: str) -> str:
    try:
        require(names)
    except UnsupportedMachine as problem:
        return str(problem)
    return ""


needs_ext4 = pytest.mark.skipif(bool(lacking("ext4")), reason=lacking("ext4") or "-")
pytestmark = [pytest.mark.slow, needs_ext4]


def leftovers() -> list[str]:
    """Mounts and loop devices of sessions that have ended; a session's directory is named after its process."""
    lines = Path("/proc/mounts").read_text().splitlines()
    lines += [text.decode() for file in Path("/sys/block").glob("loop*/loop/backing_file") if (text := _read(file))]
    owned = [(match[1], line) for line in lines if (match := re.search(r"headway-crashtest-(\d+)-", line))]
    return [line for pid, line in owned if not Path(f"/proc/{pid}").exists()]


def test_a_known_bug_is_confirmed_and_nothing_is_left() -> None:
    target = find("json-replace-fsync")
    run = run_real("ext4", command(target.name), target.oracle, RealOptions())
    assert run.states > 0
    assert any("neither old nor new" in failure.verdict for failure in run.failures)
    assert not leftovers()


@pytest.mark.parametrize("name", ["headway-journal", "headway-publish", "json-full"])
@pytest.mark.parametrize("system", ["ext4", "xfs", "btrfs"])
def test_careful_programs_are_clean(system: str, name: str) -> None:
    if lacking(system):
        pytest.skip(lacking(system))
    target = find(name)
    run = run_real(system, command(name), target.oracle, RealOptions(limit=400))
    assert run.states > 0
    assert not run.failures, run.failures
    assert not leftovers()


def test_a_killed_session_leaves_no_mount_no_loop_device_and_no_process() -> None:
    script = (
        "from headway.crashtest.realfs.session import RealOptions, run_real\n"
        "from headway.crashtest.targets.catalogue import command, find\n"
        "t = find('sqlite-full')\n"
        "run_real('ext4', command(t.name), t.oracle, RealOptions(), progress=lambda done, total: print(done, flush=True))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "1"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    for _ in range(200):  # the kernel takes a moment
        processes = [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if b"headway.crashtest.realfs.device" in (_read(entry) or b"")]
        ours = [entry for entry in processes if str(child.pid).encode() in (_read(entry) or b"")]
        if not ours and not leftovers():
            break
        time.sleep(0.05)
    assert not ours
    assert not leftovers()
    run_real("ext4", command("json-full"), find("json-full").oracle, RealOptions(limit=1))  # the next run tidies up
    assert not list(scratch_root().glob(f"headway-crashtest-{child.pid}-*"))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


@pytest.mark.parametrize("name", LITMUS)
def test_no_outcome_on_ext4_that_the_shipped_model_forbids(name: str) -> None:
    seen = measure(("ext4",), seeds=2, only=(name,), say=lambda line: None)[name]["ext4"]
    assert set(seen) <= model_outcomes(name, "ext4"), seen
