"""What LLVM makes of the attention item: counted in the assembly, also for CPUs that are not here. Guards against upgrades of llvmlite."""

import re

import pytest

from headway.kernels.cpu import isa
from headway.kernels.cpu.compile import assembly
from headway.kernels.cpu.item import AttentionItem


def inner_loops(text: str) -> list[list[str]]:
    """Bodies of loops without a loop inside: from a label to the jump back to it."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith((".p2align", "#"))]
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.match(r"\.LBB\d+_\d+:$", line)}
    loops = []
    for i, line in enumerate(lines):
        target = re.match(r"j\w+\s+(\.LBB\d+_\d+)$", line)
        if target and labels.get(target[1], i) < i:
            body = lines[labels[target[1]] + 1 : i]
            if not any(other.endswith(":") for other in body):
                loops.append(body)
    return loops


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("group", [1, 3, 4, 7])
@pytest.mark.parametrize(
    ("level", "cpu", "register"),
    [(isa.AVX2, "znver3", "ymm"), (isa.AVX512_VNNI, "znver4", "zmm")],
    ids=lambda x: str(getattr(x, "name", x)),
)
def test_sums_stay_in_registers(level: isa.Isa, cpu: str, register: str, group: int, dtype: str) -> None:
    text = assembly(AttentionItem("f32", dtype, 128, 128, group, group, False, "rows"), level, cpu)
    hot = [body for body in inner_loops(text) if sum("vfmadd" in line for line in body) >= 6]
    assert len(hot) >= 2  # scores and values
    for body in hot:
        fmas = [line for line in body if "vfmadd" in line]
        assert all(register in line for line in fmas)
        assert not any("call" in line for line in body)
        # One row of converted numbers: LLVM converts ahead and spills one sum of eight.
        spills = sum(line.startswith("vmov") and "rsp" in line for line in body)
        assert spills <= (2 if group == 1 and dtype != "f32" and level is isa.AVX2 else 0), "sums are spilled inside the loop"
