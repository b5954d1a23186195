"""The pipeline emitter -> object -> cache -> loader, and code for CPUs that are not here (read as assembly, never run)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headway.kernels.cpu import isa, objects
from headway.kernels.cpu.compile import assembly
from headway.kernels.cpu.objects import Linked, ObjectCache
from headway.kernels.cpu.products import Product
from headway.kernels.cpu.rows import PrepareRow

SMALL = PrepareRow(64, False, 1e-5, 0)
ZEN4 = "+avx512f,+avx512bw,+avx512vl,+avx512vnni,+fma,+f16c,+avx2"
ALDER_LAKE = "+avx2,+avxvnni,+fma,+f16c"


def test_a_second_cache_compiles_nothing(tmp_path: Path) -> None:
    first = ObjectCache(tmp_path, isa.AVX2)
    code = first.kernels([SMALL])
    second = ObjectCache(tmp_path, isa.AVX2)
    assert second.kernels([SMALL]) == code
    assert (first.compiled, second.compiled) == (1, 0)
    assert Linked(list(code.values())).address(SMALL.symbol)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_object_is_compiled_again(tmp_path: Path, damage: str) -> None:
    code = ObjectCache(tmp_path, isa.AVX2).kernels([SMALL])
    (file,) = tmp_path.glob("*.o")
    data = bytearray(file.read_bytes())
    if damage == "cut":
        data = data[:-10]
    elif damage == "flip":
        data[len(data) // 2] ^= 1
    else:
        data = bytearray()
    file.write_bytes(data)
    again = ObjectCache(tmp_path, isa.AVX2)
    assert again.kernels([SMALL]) == code
    assert again.compiled == 1


def test_a_cache_that_cannot_be_written_still_serves(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cache = ObjectCache(blocked / "kernels", isa.AVX2)
    assert cache.kernels([SMALL])


def test_objects_of_another_cpu_or_level_are_not_taken(tmp_path: Path) -> None:
    ObjectCache(tmp_path, isa.AVX2).kernels([SMALL])
    other = ObjectCache(tmp_path, isa.PORTABLE16)
    assert other.read(SMALL.symbol) is None


def test_the_key_covers_cpu_versions_level_and_this_packages_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(level: str = "avx2") -> str:
        objects.code_key.cache_clear()
        return objects.code_key(level)

    (tmp_path / "products.py").write_text("a = 1\n")
    keys = [key(), key("portable16")]
    with monkeypatch.context() as patch:
        patch.setattr(objects, "host_cpu", lambda: ("znver9", "+avx2"))
        keys.append(key())
    for package in ("numba", "llvmlite"):
        with monkeypatch.context() as patch:
            patch.setattr("importlib.metadata.version", lambda name, changed=package: "9.9" if name == changed else "1.0")
            keys.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(objects, "__file__", str(tmp_path / "objects.py"))
        keys.append(key())
        (tmp_path / "products.py").write_text("a = 2\n")
        keys.append(key())
    assert len(set(keys)) == len(keys) and key() == keys[0]


def test_cached_control_code_runs_without_numba(headway_home: Path) -> None:
    """A team and a kernel in a fresh process: the second start must not import numba."""
    program = (
        "import sys; from headway.core.paths import kernels_dir; from headway.kernels.cpu import isa\n"
        "from headway.kernels.cpu.objects import ObjectCache; from headway.kernels.cpu.team import Team\n"
        "cache = ObjectCache(kernels_dir(), isa.select()); Team(2, cache).close()\n"
        "print(cache.compiled, 'numba' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)]
    assert runs[1] == ["0", "False"]


@pytest.mark.parametrize(
    ("level", "cpu", "features", "instruction", "register"),
    [
        (isa.AVX512_VNNI, "znver4", ZEN4, "vpdpbusd", "zmm"),
        (isa.AVX_VNNI, "alderlake", ALDER_LAKE, "vpdpbusd", "ymm"),
        (isa.AVX2, "haswell", "", "vpmaddubsw", "ymm"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_products_use_the_level_s_instructions(level: isa.Isa, cpu: str, features: str, instruction: str, register: str) -> None:
    text = assembly(Product("q4_1", 64, 2, 1, "store", True), level, cpu, features)
    lines = [line for line in text.splitlines() if instruction in line]
    assert lines and all(register in line for line in lines)
    assert "call" not in text


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.core.errors import UnsupportedMachine

    monkeypatch.setenv("HEADWAY_ISA", "sse2")
    with pytest.raises(UnsupportedMachine, match="avx2"):
        isa.select()
