"""The whole way: a recipe is traced, explored, judged, minimised, repaired and reproduced. Planted bugs are found, fixed ones clean."""

import subprocess
from pathlib import Path

import pytest

from headway.crashtest import report, stored
from headway.crashtest.check import EXIT_CLEAN, EXIT_INFIDEL, EXIT_VULNERABLE, CheckOptions, Run, check
from headway.crashtest.explain import find_variant
from headway.crashtest.history import History
from headway.crashtest.models import MODELS
from headway.crashtest.operations import Trace
from headway.crashtest.plugin import CrashEnvironment, CrashTestFailed, crash_test
from headway.crashtest.repair import repair, superfluous
from headway.crashtest.stored import OracleSpec
from headway.crashtest.targets.catalogue import TARGETS, command, find
from headway.crashtest.timeline import page
from headway.crashtest.trace.record import record
from headway.crashtest.tree import Tree

OPTIONS = CheckOptions(budget_s=None, workers=1)
PLANTED = [name for name, target in TARGETS.items() if target.planted]
OURS = [name for name, target in TARGETS.items() if name.startswith("headway-")]


def traced(name: str, root: Path) -> Trace:
    return record([word.replace("{dir}", str(root)) for word in command(name)], root, backend=find(name).backend, stacks=False)


def checked(name: str, root: Path, options: CheckOptions = OPTIONS) -> tuple[Trace, Run]:
    target = find(name)
    trace = traced(name, root)
    return trace, check(trace, target.oracle, target.model, options)


@pytest.mark.parametrize("name", PLANTED)
def test_every_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    _, run = checked(name, tmp_path / "root")
    assert run.exit_code == EXIT_VULNERABLE, run.verdict
    assert run.findings


@pytest.mark.parametrize("name", [f"{name}-fixed" for name in PLANTED if f"{name}-fixed" in TARGETS] + ["json-full"])
def test_the_same_store_without_the_bug_is_clean(name: str, tmp_path: Path) -> None:
    _, run = checked(name, tmp_path / "root")
    assert run.exit_code == EXIT_CLEAN, report.text([run])


@pytest.mark.parametrize("name", OURS)
def test_headways_own_durable_files_are_clean_under_every_model(name: str, tmp_path: Path) -> None:
    trace = traced(name, tmp_path / "root")
    for model in ("ext4", "xfs", "btrfs", "posix", "apm"):
        run = check(trace, find(name).oracle, model, OPTIONS)
        assert run.exit_code == EXIT_CLEAN, report.text([run])


def test_the_cause_of_a_zero_length_file_is_named_and_its_repair_verified(tmp_path: Path) -> None:
    target = find("rename-before-sync")
    trace, run = checked(target.name, tmp_path / "root")
    (finding,) = run.findings
    assert finding.lost_shape == "write to value.tmp"
    assert finding.survived_shape == "rename of value.tmp to value"
    assert str(finding.barrier) == "fsync of value.tmp before rename of value.tmp to value"
    history = History.of(trace, MODELS["ext4"])
    fixed = repair(history, run.findings, target.oracle, OPTIONS)
    assert fixed.works and fixed.complete and fixed.added >= 1


def test_an_acknowledgement_without_the_directory_is_a_cause_of_its_own(tmp_path: Path) -> None:
    _, run = checked("no-directory-sync", tmp_path / "root")
    assert [finding.title for finding in run.findings] == ["acknowledged before it was durable: rename of value.tmp to value"]
    assert run.findings[0].barrier.sync == "fsync of the directory ."


def test_a_sync_that_nobody_needs_is_reported_and_a_needed_one_is_not(tmp_path: Path) -> None:
    target = find("sync-of-another-file-fixed")
    trace, run = checked(target.name, tmp_path / "root")
    history = History.of(trace, MODELS["ext4"])
    needless = {sync.shape for sync in superfluous(history, target.oracle, OPTIONS, run)}
    assert "fsync of ." not in needless


def test_a_minimal_lost_set_is_allowed_by_the_model_and_fails_in_the_same_way(tmp_path: Path) -> None:
    target = find("rotate-without-sync")
    trace, run = checked(target.name, tmp_path / "root")
    history = History.of(trace, MODELS["ext4"])
    for finding in run.findings:
        lost = sum(1 << place for place in finding.lost)
        kept = history.done_at(finding.failure.after) & ~lost
        assert history.allows(finding.failure.after, kept)
        image = tmp_path / "image"
        history.tree(kept, find_variant(history, finding.failure.variant)).write(image)
        assert target.check(image, finding.failure.acks, finding.failure.begun) is not None


def test_an_unfaithful_trace_is_never_clean(tmp_path: Path) -> None:
    target = find("json-full")
    trace = traced("json-full", tmp_path / "root")
    trace.final = Tree.of({"settings.json": b"something else"})
    run = check(trace, target.oracle, "ext4", OPTIONS)
    assert run.exit_code == EXIT_INFIDEL
    assert "clean" not in run.verdict
    trace.final = None
    assert check(trace, target.oracle, "ext4", OPTIONS).exit_code == EXIT_INFIDEL


def test_a_limit_is_never_clean_either(tmp_path: Path) -> None:
    target = find("json-full")
    trace = traced("json-full", tmp_path / "root")
    run = check(trace, target.oracle, "ext4", CheckOptions(budget_s=None, limit=3, workers=1))
    assert run.exit_code == 3
    assert "not clean" in run.verdict


def test_a_run_is_stored_and_its_reports_name_the_barrier(tmp_path: Path) -> None:
    trace, run = checked("no-file-sync", tmp_path / "root")
    directory = tmp_path / "run"
    directory.mkdir()
    oracle = OracleSpec(target="no-file-sync")
    stored.save(directory, trace, oracle, OPTIONS, [run], None)
    again = stored.load(directory)
    assert (again.oracle, again.options, again.models) == (oracle, OPTIONS, ["ext4"])
    assert [operation.kind for operation in again.trace.operations] == [operation.kind for operation in trace.operations]
    for text in (report.markdown([run], trace.command), report.sarif([run]), report.text([run])):
        assert str(run.findings[0].barrier) in text
    html = page(History.of(trace, MODELS["ext4"]), run.findings[0], "a <run>")
    assert "power cut" in html and "a &lt;run&gt;" in html


def test_the_reproduction_fails_without_our_tracer(tmp_path: Path) -> None:
    trace, run = checked("no-file-sync", tmp_path / "root")
    finding = run.findings[0]
    history = History.of(trace, MODELS["ext4"])
    tree = history.tree(finding.failure.kept, find_variant(history, finding.failure.variant))
    checker = OracleSpec(program="sh -c 'test $(wc -c < {dir}/value) -eq 6000'")
    script = stored.reproduction(tmp_path, 1, tree, checker, finding.failure.acks, finding.failure.begun)
    assert len(script.read_text().splitlines()) <= 20 + len(finding.failure.acks) + len(finding.failure.begun)
    child = subprocess.run(["sh", "-c", f"id() {{ echo 1000; }}; . {script}"], capture_output=True, text=True)
    assert child.returncode != 0


# ---- the decorator ---------------------------------------------------------------------------------------------------------------
def careless(directory: Path) -> None:
    (directory / "new").write_text("complete")
    (directory / "new").rename(directory / "file")


def complete_or_absent(directory: Path) -> str | None:
    file = directory / "file"
    return None if not file.exists() or file.read_text() == "complete" else "half a file"


def test_crash_test_fails_with_the_report() -> None:
    @crash_test(model="ext4", budget_s=None)
    def careless_test(env: CrashEnvironment) -> object:
        env.run(careless)
        return complete_or_absent

    with pytest.raises(CrashTestFailed, match="fsync of new before rename of new to file"):
        careless_test()


@crash_test(model="prefix", budget_s=None)
def test_crash_test_passes_under_a_model_that_forgives(env: CrashEnvironment) -> object:
    env.run(careless)
    return complete_or_absent
