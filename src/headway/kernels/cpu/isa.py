"""Which vector instructions the kernels are emitted for: chosen once at start, printed by `headway doctor`.

An `Isa` is data for the emitters (lane count, kind of int8 dot product, registers); nothing else in the house asks about the CPU.
"""

import os
from dataclasses import dataclass
from functools import cache
from typing import Literal

from headway.core.errors import UnsupportedMachine

Dot = Literal["vnni", "maddubs", "portable"]


@dataclass(frozen=True, slots=True)
class Isa:
    """`lanes`: float32 lanes of a vector. `dot`: how four u8*s8 products are summed. `needs`: LLVM feature names.

    `portable` uses no special instruction: it runs every lane count on any CPU, which is how the 16-lane layout code is tested on
    machines without AVX-512.
    """

    name: str
    lanes: int
    dot: Dot
    needs: tuple[str, ...]

    @property
    def vectors_per_strip(self) -> int:
        return 16 // self.lanes


AVX512_VNNI = Isa("avx512vnni", 16, "vnni", ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "fma", "f16c"))
AVX_VNNI = Isa("avxvnni", 8, "vnni", ("avx2", "avxvnni", "fma", "f16c"))
AVX2 = Isa("avx2", 8, "maddubs", ("avx2", "fma", "f16c"))
PORTABLE16 = Isa("portable16", 16, "portable", ("avx2", "fma", "f16c"))
LEVELS = (AVX512_VNNI, AVX_VNNI, AVX2, PORTABLE16)


@cache
def host_cpu() -> tuple[str, str]:
    """(LLVM name, LLVM feature string) of this CPU."""
    import llvmlite.binding as llvm

    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def host_supports(isa: Isa) -> bool:
    features = set(host_cpu()[1].split(","))
    return all(f"+{name}" in features for name in isa.needs)


def select(name: str | None = None) -> Isa:
    """The best level this CPU has, or the one named by the argument or `HEADWAY_ISA`.

    Raises UnsupportedMachine when the named level, or any, is missing.
    """
    wanted = name or os.environ.get("HEADWAY_ISA")
    if wanted:
        for isa in LEVELS:
            if isa.name == wanted:
                if host_supports(isa):
                    return isa
                raise UnsupportedMachine(f"HEADWAY_ISA={wanted}: this CPU ({host_cpu()[0]}) lacks one of {', '.join(isa.needs)}; unset it")
        raise UnsupportedMachine(f"HEADWAY_ISA={wanted} is not one of {', '.join(i.name for i in LEVELS)}")
    for isa in LEVELS:
        if host_supports(isa):
            return isa
    raise UnsupportedMachine(
        f"this CPU ({host_cpu()[0]}) has no AVX2 with FMA and F16C, which Headway's kernels need; there is no other back end yet"
    )
