"""Single machine operations for the control code: memory by address, atomics, futex, calls through addresses.

Imported only while control code is compiled (numba).
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from headway.kernels.cpu.emit import F16, F32, I8, I16, I32, I64, VOID

F64 = ir.DoubleType()

_FUTEX_CALL = 202
FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE = 128, 129


def _pointer(builder: Any, address: Any, type_: Any) -> Any:
    return builder.inttoptr(address, type_.as_pointer())


def _load(builder: Any, address: Any, type_: Any, align: int) -> Any:
    x = builder.load(_pointer(builder, address, type_), typ=type_)
    x.align = align
    return x


@intrinsic
def get(typing: Any, address: Any) -> Any:
    """int64 at an address."""
    return types.int64(types.int64), lambda c, b, s, a: _load(b, a[0], I64, 8)


@intrinsic
def get32(typing: Any, address: Any) -> Any:
    return types.int64(types.int64), lambda c, b, s, a: b.sext(_load(b, a[0], I32, 4), I64)


@intrinsic
def get8(typing: Any, address: Any) -> Any:
    return types.int64(types.int64), lambda c, b, s, a: b.zext(_load(b, a[0], I8, 1), I64)


@intrinsic
def get_f32(typing: Any, address: Any) -> Any:
    return types.float32(types.int64), lambda c, b, s, a: _load(b, a[0], F32, 4)


@intrinsic
def get_f16(typing: Any, address: Any) -> Any:
    return types.float32(types.int64), lambda c, b, s, a: b.fpext(_load(b, a[0], F16, 2), F32)


@intrinsic
def get_bf16(typing: Any, address: Any) -> Any:
    def code(c: Any, b: Any, s: Any, a: Any) -> Any:
        return b.bitcast(b.shl(b.zext(_load(b, a[0], I16, 2), I32), I32(16)), F32)

    return types.float32(types.int64), code


def _store(builder: Any, value: Any, address: Any, align: int) -> None:
    builder.store(value, _pointer(builder, address, value.type)).align = align


@intrinsic
def put(typing: Any, address: Any, value: Any) -> Any:
    def code(c: Any, b: Any, s: Any, a: Any) -> Any:
        _store(b, a[1], a[0], 8)
        return c.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def put32(typing: Any, address: Any, value: Any) -> Any:
    def code(c: Any, b: Any, s: Any, a: Any) -> Any:
        _store(b, b.trunc(a[1], I32), a[0], 4)
        return c.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def put_f32(typing: Any, address: Any, value: Any) -> Any:
    def code(c: Any, b: Any, s: Any, a: Any) -> Any:
        _store(b, a[1], a[0], 4)
        return c.get_dummy_value()

    return types.void(types.int64, types.float32), code


@intrinsic
def get_f64(typing: Any, address: Any) -> Any:
    return types.float64(types.int64), lambda c, b, s, a: _load(b, a[0], F64, 8)


@intrinsic
def put_f64(typing: Any, address: Any, value: Any) -> Any:
    def code(c: Any, b: Any, s: Any, a: Any) -> Any:
        _store(b, a[1], a[0], 8)
        return c.get_dummy_value()

    return types.void(types.int64, types.float64), code


@intrinsic
def load(typing: Any, address: Any) -> Any:
    """Atomic load, acquire."""
    return types.int64(types.int64), lambda c, b, s, a: b.load_atomic(_pointer(b, a[0], I64), "acquire", 8, typ=I64)


@intrinsic
def store(typing: Any, address: Any, value: Any) -> Any:
    """Atomic store, release."""

    def code(c: Any, b: Any, s: Any, a: Any) -> Any:
        b.store_atomic(a[1], _pointer(b, a[0], I64), "release", 8)
        return c.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def add(typing: Any, address: Any, value: Any) -> Any:
    """Atomic add, a full fence; returns the value before."""
    return types.int64(types.int64, types.int64), lambda c, b, s, a: b.atomic_rmw("add", _pointer(b, a[0], I64), a[1], "seq_cst")


@intrinsic
def swap_if(typing: Any, address: Any, old: Any, new: Any) -> Any:
    """Compare and swap; returns the value found."""

    def code(c: Any, b: Any, s: Any, a: Any) -> Any:
        return b.extract_value(b.cmpxchg(_pointer(b, a[0], I64), a[1], a[2], "seq_cst", "seq_cst"), 0)

    return types.int64(types.int64, types.int64, types.int64), code


def _declared(builder: Any, name: str, result: Any, arguments: list[Any], var_arg: bool = False) -> Any:
    return builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(result, arguments, var_arg=var_arg), name)


@intrinsic
def pause(typing: Any) -> Any:
    def code(c: Any, b: Any, s: Any, a: Any) -> Any:
        b.call(_declared(b, "llvm.x86.sse2.pause", VOID, []), [])
        return c.get_dummy_value()

    return types.void(), code


@intrinsic
def cycles(typing: Any) -> Any:
    """Time stamp counter."""
    return types.int64(), lambda c, b, s, a: b.call(_declared(b, "llvm.readcyclecounter", I64, []), [])


@intrinsic
def futex(typing: Any, address: Any, operation: Any, value: Any, timeout: Any) -> Any:
    def code(c: Any, b: Any, s: Any, a: Any) -> Any:
        call = _declared(b, "syscall", I64, [I64], var_arg=True)
        return b.call(call, [I64(_FUTEX_CALL), a[0], a[1], a[2], a[3], I64(0), I64(0)])

    return types.int64(types.int64, types.int64, types.int64, types.int64), code


def _call(builder: Any, arguments: Any) -> None:
    kind = ir.FunctionType(VOID, [I64] * (len(arguments) - 1))
    builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), list(arguments[1:]))


def _calls(n: int) -> Any:
    def code(c: Any, b: Any, s: Any, a: Any) -> Any:
        _call(b, a)
        return c.get_dummy_value()

    return types.void(*[types.int64] * (n + 1)), code


@intrinsic
def call2(typing: Any, kernel: Any, a: Any, b: Any) -> Any:
    """Call a microkernel by address."""
    return _calls(2)


@intrinsic
def call3(typing: Any, kernel: Any, a: Any, b: Any, c: Any) -> Any:
    return _calls(3)


@intrinsic
def call5(typing: Any, kernel: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    return _calls(5)


@intrinsic
def call6(typing: Any, kernel: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    return _calls(6)


@intrinsic
def call_execute(typing: Any, function: Any, program: Any, thread: Any, epoch: Any) -> Any:
    """Call another compiled control function (numba's convention: int32 f(ret*, exc**, args...))."""

    def code(c: Any, b: Any, s: Any, a: Any) -> Any:
        pointer = I8.as_pointer()
        kind = ir.FunctionType(I32, [pointer, pointer, I64, I64, I64])
        with b.goto_entry_block():  # an alloca inside the worker's loop would eat the stack
            result, error = b.alloca(I64), b.alloca(pointer)
        b.call(b.inttoptr(a[0], kind.as_pointer()), [b.bitcast(result, pointer), b.bitcast(error, pointer), *a[1:]])
        return c.get_dummy_value()

    return types.void(*[types.int64] * 4), code
