"""The house's rules as tests: who may import whom, what stays light, who writes files, and what must never be in the tree."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "headway"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILE_LINES = 400

# Packages that a room may import beside the standard library (docs/architecture.md: what each extra brings).
THIRD_PARTY = {
    "core": {"numpy"},
    "scheduling": {"numpy"},
    "kernels": {"numpy", "numba", "llvmlite"},
    "attention": {"numpy", "numba", "llvmlite"},
    "models": {"numpy", "tokenizers", "jinja2"},
    "engine": {"numpy", "msgspec"},
    "fleet": {"numpy", "msgspec"},
    "server": {"uvicorn", "h11", "msgspec", "prometheus_client"},
    "bench": {"numpy", "yaml", "rich", "msgspec"},
    # Recipes import the storage engines they test where these are installed; nothing else does.
    "crashtest": {"numpy", "msgspec", "mfusepy", "pytest", "plyvel", "lmdb", "rocksdict", "diskcache", "ZODB", "transaction"},
    "cli": {"rich", "numpy"},
}

# Files that open something for writing themselves, and why that is no state of Headway (state goes through core.durable).
WRITERS = {
    "core/disk.py": "the system calls under core.durable",
    "core/publish.py": "core.durable: atomic publish",
    "core/chunklog.py": "core.durable: metrics that may lose their last seconds",
    "core/record.py": "telemetry for another tool to read, where its user asked for it",
    "bench/processes.py": "logs of the services that a run started",
    "bench/report.py": "a run's files in its own folder, made visible by publish_dir at the end",
    "crashtest/tree.py": "crash images for one check, on a memory file system",
    "crashtest/trace/ptrace.py": "the tracer's log in a scratch directory; it runs without the package's imports",
    "crashtest/trace/record.py": "opens the scratch file that a traced program writes its markers to",
    "cli/main.py": "sends what nobody reads any more to the null device",
    "crashtest/oracle.py": "the markers of one check, in memory, gone after it",
    "crashtest/realfs/filesystems.py": "the image that mkfs fills, in memory, gone after the session",
    "crashtest/realfs/session.py": "orders to our own FUSE server and a file that is there to be synced",
    "crashtest/realfs/kernel.py": "device files of loop devices",
    "crashtest/realfs/device.py": "the log of a session's device, in memory, gone after it",
    "crashtest/forkserver.py": "the null device",
    "crashtest/litmus.py": "programs under test, run on file systems of their own",
    "crashtest/repair.py": "a file that is there to measure fsync",
    "crashtest/targets/idioms.py": "recipes: programs under test, some wrong on purpose",
    "crashtest/targets/durable.py": "recipes: programs under test",
    "crashtest/targets/planted.py": "recipes: programs under test, wrong on purpose",
    "crashtest/targets/planted_logs.py": "recipes: programs under test, wrong on purpose",
    "crashtest/targets/stores.py": "recipes: programs under test",
    "models/carrier.py": "wheels and files on their way into the cache, in a private folder, verified by sha256 before anybody sees them",
}

# The directory in the trace that Pathfinder's authors published (tests/crashtest/data); it stays as they wrote it.
PUBLISHED_TRACE_ROOT = "/home/" + "yilegu/squint_test_dir"


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def text_files() -> Iterator[Path]:
    """Everything that git would carry, whether committed yet or not."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the rules about tracked files are checked where the repository is")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_relative_to(ROOT / "tests" / "crashtest" / "data"):
            continue  # somebody else's trace, unchanged, with the paths of the machine that it was recorded on
        if path.is_file() and b"\0" not in path.read_bytes()[:4096]:
            yield path


def modules_after(statement: str) -> set[str]:
    """Names of all modules loaded in a fresh interpreter after `statement`."""
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    child = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return set(child.stderr.splitlines())


# ---- imports ------------------------------------------------------------------------------------------------------------
def test_imports_point_downward_and_the_lab_imports_core_only() -> None:
    child = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert "0 broken" in child.stdout


@pytest.mark.parametrize("room", sorted(THIRD_PARTY))
def test_a_room_imports_only_the_packages_of_its_extra(room: str) -> None:
    foreign = {}
    for path in python_files(f"src/headway/{room}"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "headway" and top not in THIRD_PARTY[room]:
                    foreign[f"{path.relative_to(ROOT)}:{node.lineno}"] = top
    assert not foreign


def test_help_loads_no_room_and_no_number_cruncher() -> None:
    loaded = modules_after("from headway.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass")
    heavy = {"numpy", "numba", "llvmlite", "tokenizers", "jinja2", "fastapi", "uvicorn", "pydantic", "msgspec", "rich", "asyncio", "yaml"}
    assert not loaded & heavy
    rooms = {name.split(".")[1] for name in loaded if name.startswith("headway.")}
    assert rooms <= {"cli", "core"}
    assert len(loaded) < 150, "help has become heavy: see what `python -X importtime -m headway.cli.main --help` lists"


@pytest.mark.parametrize("module", ["headway.server.app", "headway.server.stream", "headway.fleet.local"])
def test_the_front_process_never_loads_the_compiler(module: str) -> None:
    """numba and llvmlite belong to the engine process: in the front they would cost start-up, memory and threads."""
    if not (SOURCE / Path(*module.split(".")[1:])).with_suffix(".py").exists():
        pytest.skip(f"{module} is not built yet")
    loaded = modules_after(f"import {module}")
    assert not loaded & {"numba", "llvmlite"}
    if module == "headway.server.stream":
        assert not {name for name in loaded if name.startswith("headway.scheduling.router")}


def test_the_import_of_headway_itself_loads_nothing() -> None:
    assert not modules_after("import headway") & {"numpy", "headway.core", "headway.fleet"}


# ---- files that must survive ---------------------------------------------------------------------------------------------
def writes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of every call that creates, replaces or renames a file."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
        owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
        if name == "open" and owner != "os":
            mode_at = 1 if isinstance(function, ast.Name) or owner in {"io", "gzip"} else 0
            modes = list(node.args[mode_at : mode_at + 1]) + [word.value for word in node.keywords if word.arg == "mode"]
            if any(isinstance(mode, ast.Constant) and isinstance(mode.value, str) and set(mode.value) & set("wax+") for mode in modes):
                yield node.lineno, ast.unparse(node)
        elif name == "open" and owner == "os":
            if re.search(r"O_(WRONLY|RDWR|CREAT)", ast.unparse(node)):
                yield node.lineno, ast.unparse(node)
        elif (
            (owner == "os" and name in {"rename", "replace", "link", "symlink"})
            or name in {"write_text", "write_bytes"}
            or name == "rename"
            or (owner == "shutil" and name.startswith(("copy", "move")))
        ):
            yield node.lineno, ast.unparse(node)
        elif (
            name == "replace"
            and isinstance(function, ast.Attribute)
            and len(node.args) == 1
            and not node.keywords
            and owner != "dataclasses"
        ):
            yield node.lineno, ast.unparse(node)  # Path.replace; the one of str takes two


def test_only_durable_writes_files() -> None:
    found = {
        f"{path.relative_to(SOURCE)}:{line}": what
        for path in python_files("src/headway")
        if path.relative_to(SOURCE).as_posix() not in WRITERS
        for line, what in writes(ast.parse(path.read_text()))
    }
    assert not found, "write state through core.durable, or add the file to WRITERS with the reason why it is no state"


def test_every_exception_to_the_writing_rule_is_still_needed() -> None:
    idle = [name for name in WRITERS if (SOURCE / name).exists() and not any(writes(ast.parse((SOURCE / name).read_text())))]
    assert not idle


@pytest.mark.parametrize(
    "line",
    [
        "open(p, 'w')",
        "p.open('ab')",
        "open(p, mode='x')",
        "os.replace(a, b)",
        "p.rename(q)",
        "p.replace(q)",
        "p.write_text('')",
        "os.open(p, os.O_CREAT)",
    ],
)
def test_the_writing_rule_sees(line: str) -> None:
    assert list(writes(ast.parse(line)))


@pytest.mark.parametrize("line", ["open(p)", "p.open('rb')", "text.replace('a', 'b')", "os.open(p, os.O_RDONLY)"])
def test_the_writing_rule_lets_pass(line: str) -> None:
    assert not list(writes(ast.parse(line)))


# ---- tests -----------------------------------------------------------------------------------------------------------------
CLOCKS = re.compile(r"\b(perf_counter|monotonic|process_time|thread_time)(_ns)?\(|\btime\.time(_ns)?\(|\bloop\.time\(")


def time_assertions(tree: ast.AST) -> Iterator[int]:
    """Lines of asserts on a value that was computed from a real clock in the same function."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        clocked: set[str] = set()
        for _ in range(3):  # a chain of three assignments is as long as they get
            for node in ast.walk(function):
                assigns = isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None
                if assigns and reads_clock(node.value, clocked):
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    clocked |= {target.id for target in targets if isinstance(target, ast.Name)}
        for node in ast.walk(function):
            compares = isinstance(node, ast.Assert) and any(isinstance(part, ast.Compare) for part in ast.walk(node.test))
            if compares and reads_clock(node.test, clocked):
                yield node.lineno


def reads_clock(node: ast.AST, clocked: set[str]) -> bool:
    return CLOCKS.search(ast.unparse(node)) is not None or bool(names_in(node) & clocked)


def names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def test_no_test_asserts_a_time() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}" for path in python_files("tests") for line in time_assertions(ast.parse(path.read_text()))]
    assert not found, "assert counts, bytes, modules or allocations; times belong into benchmarks/"


def test_the_time_rule_sees_an_elapsed_time() -> None:
    assert list(time_assertions(ast.parse("def f():\n t = time.perf_counter()\n took = g() - t\n assert took < 1")))
    assert not list(time_assertions(ast.parse("def f():\n t = time.perf_counter()\n n = g()\n assert n == 1")))


# ---- what must never be in the tree ------------------------------------------------------------------------------------------
def test_no_registry_hosts_and_no_paths_of_one_machine() -> None:
    dot = r"\."
    hosts = re.compile(
        "|".join([f"pypi{dot}org", f"pythonhosted{dot}org", f"registry{dot}npmjs", f"deb{dot}debian", f"archive{dot}ubuntu"])
    )
    folders = "|".join(["root", "work", "tmp", "home", "Users"])
    paths = re.compile(rf"(?<![\w.~}})\]/-])/({folders})/[\w.-]")
    found = []
    for path in text_files():
        for number, raw in enumerate(path.read_text(errors="replace").splitlines(), 1):
            line = raw.replace(PUBLISHED_TRACE_ROOT, "") if path.is_relative_to(ROOT / "tests" / "crashtest") else raw
            if hosts.search(line) or paths.search(line) or str(ROOT) + "/" in line:
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found


def test_no_large_files_and_no_weights() -> None:
    large = {path.name: path.stat().st_size for path in text_files() if path.stat().st_size > 1 << 20}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    weights = [name for name in tracked if name.endswith((".gguf", ".safetensors", ".onnx", ".whl"))]
    assert not large
    assert not weights


def test_names_say_what_a_file_is_about() -> None:
    vague = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
    assert not [path for path in python_files("src/headway") if path.stem in vague or path.parent.name in vague]


def test_files_have_one_idea() -> None:
    """A long file is a warning, not an error: it is listed so that the next change splits it."""
    counted = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files("src", "tests", "benchmarks")}
    long = {name: lines for name, lines in counted.items() if lines > FILE_LINES}
    if long:
        warnings.warn(f"files over {FILE_LINES} lines: {long}", stacklevel=1)
    assert max(counted.values()) <= 2 * FILE_LINES


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in python_files("src/headway")
        if (text := path.read_text().strip()) and not ast.get_docstring(ast.parse(text))
    ]
    assert not silent


# ---- versions ------------------------------------------------------------------------------------------------------------------
def test_constraints_pin_every_package_of_every_extra_and_name_no_place() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!+-]+", pin) for pin in pins)
    pinned = {normal(pin.partition("==")[0]) for pin in pins}
    project = PYPROJECT["project"]
    made_by_make = [
        *project["dependencies"],
        *(wish for extra in ("serve", "bench", "dev") for wish in project["optional-dependencies"][extra]),
    ]
    wanted = {normal(re.match(r"[A-Za-z0-9_.-]+", wish).group()) for wish in made_by_make}  # type: ignore[union-attr]
    assert wanted <= pinned


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
