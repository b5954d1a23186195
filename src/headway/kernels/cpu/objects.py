"""The disk cache of compiled kernels and the loader that needs llvmlite only.

An object's file name carries a key over everything that could change its code: CPU name and features, versions of llvmlite and numba, the
ISA level and the source of this package. A file that is missing, torn or foreign is compiled again; nothing is ever trusted by name alone.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from headway.kernels.cpu.compile import Kernel
from headway.kernels.cpu.isa import Isa, host_cpu

_MAGIC = b"hwo1"
Progress = Callable[[int, int], None]


@cache
def code_key(isa_name: str) -> str:
    """Hash of everything compiled code depends on besides the kernel's own parameters."""
    from importlib.metadata import version

    digest = hashlib.sha256()
    for part in (*host_cpu(), isa_name, version("llvmlite"), version("numba")):
        digest.update(part.encode() + b"\0")
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class ObjectCache:
    """Object files by symbol in one directory. `compiled` counts what had to be compiled since this cache was made."""

    def __init__(self, directory: Path, isa: Isa) -> None:
        self.directory = directory
        self.isa = isa
        self.key = code_key(isa.name)
        self.compiled = 0

    def _path(self, symbol: str) -> Path:
        return self.directory / f"{hashlib.sha256(symbol.encode()).hexdigest()[:16]}-{self.key}.o"

    def read(self, symbol: str) -> tuple[str, bytes] | None:
        """(entry symbol, object) or None when there is no intact entry."""
        try:
            data = self._path(symbol).read_bytes()
        except OSError:
            return None
        body = data[36:]
        if data[:4] != _MAGIC or hashlib.sha256(body).digest() != data[4:36]:
            return None
        name, _, code = body.partition(b"\0")
        return name.decode(), code

    def write(self, symbol: str, entry: str, code: bytes) -> None:
        from headway.core.durable import publish  # brings the journals and asyncio: 30 CPU-ms that a warm start need not pay

        body = entry.encode() + b"\0" + code
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            publish(self._path(symbol), _MAGIC + hashlib.sha256(body).digest() + body, durable=False)
        except OSError:
            pass  # a cache that cannot be written (full or read-only disk) only costs the next start its compile time

    def kernels(self, kernels: Iterable[Kernel], progress: Progress | None = None, workers: int = 2) -> dict[str, bytes]:
        """{symbol: object} of all kernels; missing ones are compiled in `workers` threads. `progress(done, total)` counts the missing."""
        wanted = {kernel.symbol: kernel for kernel in kernels}
        found = {symbol: entry[1] for symbol in wanted if (entry := self.read(symbol))}
        missing = [wanted[symbol] for symbol in wanted if symbol not in found]
        if missing:
            from headway.kernels.cpu.compile import compile_kernel

            with ThreadPoolExecutor(workers) as pool:
                for done, (kernel, code) in enumerate(
                    zip(missing, pool.map(lambda k: compile_kernel(k, self.isa), missing), strict=True), 1
                ):
                    self.write(kernel.symbol, kernel.symbol, code)
                    found[kernel.symbol] = code
                    self.compiled += 1
                    if progress:
                        progress(done, len(missing))
        return found

    def control(self, name: str, load: Callable[[], tuple[Callable[..., Any], str]]) -> tuple[str, bytes]:
        """(entry symbol, object) of a control-flow function; `load` imports it (and numba) only when it must be compiled."""
        entry = self.read("control:" + name)
        if entry:
            return entry
        from headway.kernels.cpu.compile import compile_control

        entry = compile_control(*load())
        self.write("control:" + name, *entry)
        self.compiled += 1
        return entry


class Linked:
    """Object files in executable memory. Addresses stay valid while this object lives."""

    def __init__(self, objects: Sequence[bytes]) -> None:
        import llvmlite.binding as llvm

        from headway.kernels.cpu.compile import target_machine

        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
        for code in objects:
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()

    def address(self, symbol: str) -> int:
        found = int(self._engine.get_function_address(symbol))
        if not found:
            raise KeyError(symbol)
        return found
