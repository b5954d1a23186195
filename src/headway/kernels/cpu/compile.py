"""From source to object code: emitters through llvmlite alone, control-flow functions through numba.

The only module that knows LLVM's pass pipeline and numba's private names (`_get_compiled_object`, `fndesc`); both are version-bound and
covered by a test. Nothing here is imported when every object is already in the cache.
"""

from collections.abc import Callable
from typing import Any, Protocol

from headway.kernels.cpu.isa import Isa, host_cpu


class Kernel(Protocol):
    """A microkernel: frozen data that names itself and emits its code for int64 `arguments`."""

    @property
    def symbol(self) -> str: ...

    @property
    def arguments(self) -> int: ...

    def emit(self, k: Any, *args: Any) -> None: ...


def target_machine() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = host_cpu()
    return llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features, opt=3, codemodel="jitdefault", jit=True)


def _module(kernel: Kernel, isa: Isa) -> Any:
    from llvmlite import ir

    from headway.kernels.cpu.emit import I64, VOID, Kit

    module = ir.Module(kernel.symbol)
    function = ir.Function(module, ir.FunctionType(VOID, [I64] * kernel.arguments), kernel.symbol)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    kernel.emit(Kit(builder, isa), *function.args)
    builder.ret_void()
    return module


def _optimised(kernel: Kernel, isa: Isa, machine: Any) -> Any:
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(str(_module(kernel, isa)))
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    # The emitters already are vector code in the order it should run: LLVM's full pipeline regroups the sums and then spills (a 4-row tile
    # ran 15 % slower). Code generation still selects, schedules and allocates registers.
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes = llvm.create_new_function_pass_manager()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)
    return module


def compile_kernel(kernel: Kernel, isa: Isa) -> bytes:
    """Object file of one microkernel (about 0.03 CPU-s)."""
    machine = target_machine()
    return bytes(machine.emit_object(_optimised(kernel, isa, machine)))


def assembly(kernel: Kernel, isa: Isa, cpu: str | None = None, features: str = "") -> str:
    """Assembly text of a kernel, for this CPU or for `cpu`: how code for CPUs that are not here is inspected."""
    import llvmlite.binding as llvm

    machine = target_machine()
    if cpu:
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=cpu, features=features, opt=3, codemodel="jitdefault", jit=True
        )
    return str(machine.emit_assembly(_optimised(kernel, isa, machine)))


def compile_control(function: Callable[..., Any], signature: str) -> tuple[str, bytes]:
    """(symbol, object file) of a numba function over int64 addresses and scalars; call convention `int32 f(ret*, exc**, args...)`."""
    from numba import njit

    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # known to numba, not to its annotations
    compiled = njit(signature, nogil=True, error_model="numpy", boundscheck=False, **options)(function)
    overload: Any = compiled.overloads[compiled.signatures[0]]
    return overload.fndesc.llvm_func_name, overload.library._get_compiled_object()
