"""What LLVM makes of the products: its scheduler must not gather loads and spill them. Counted in the assembly; guards against upgrades."""

import pytest
from tests.kernels.test_item_assembly import inner_loops

from headway.kernels.cpu import isa
from headway.kernels.cpu.compile import assembly
from headway.kernels.cpu.products import Kind, Product, tile_rows


@pytest.mark.parametrize("kind", ["q4_1", "q8_0"])
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize(("level", "cpu", "spilled_share"), [(isa.AVX2, "znver3", 0.1), (isa.AVX512_VNNI, "znver4", 0.06)])
def test_activations_are_not_spilled(level: isa.Isa, cpu: str, spilled_share: float, planes: int, kind: Kind) -> None:
    for rows in tile_rows(level, planes):
        text = assembly(Product(kind, 576, rows, planes, "store", prefetch=False), level, cpu)
        body = max(inner_loops(text), key=len)
        spills = sum("(%rsp)" in line for line in body)
        # Four rows keep eight sums of floats on the stack, which are touched once a block.
        assert spills <= spilled_share * len(body), f"{rows} rows: {spills} of {len(body)} instructions touch the stack"
