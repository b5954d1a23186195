"""A seccomp filter that stops the program for its tracer at the system calls of interest and lets all others run at full speed."""

import ctypes
import struct
from collections.abc import Iterable

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2  # include/uapi/linux/{prctl,seccomp}.h
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_ALLOW, _TRACE = 0x7FFF0000, 0x7FF00000
_ARCH_X86_64 = 0xC000003E
_OFFSET_NUMBER, _OFFSET_ARCH = 0, 4
FOREIGN_ARCH = 1  # the event message of a call that is no x86-64 one


def program(numbers: Iterable[int]) -> bytes:
    """The filter as an array of struct sock_filter."""
    wanted = sorted(numbers)
    code = [(_LOAD_WORD, 0, 0, _OFFSET_ARCH), (_JUMP_EQUAL, 1, 0, _ARCH_X86_64), (_RETURN, 0, 0, _TRACE | FOREIGN_ARCH)]
    code.append((_LOAD_WORD, 0, 0, _OFFSET_NUMBER))
    code.extend((_JUMP_EQUAL, len(wanted) - place, 0, number) for place, number in enumerate(wanted))
    code.extend([(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _TRACE)])
    return b"".join(struct.pack("<HBBI", *one) for one in code)


def install(numbers: Iterable[int]) -> None:
    """Puts the filter on this process and all that it will start. Raises OSError."""
    code = ctypes.create_string_buffer(program(numbers))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    described = Program((len(code) - 1) // 8, ctypes.cast(code, ctypes.c_void_p).value)
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, None, 0, 0) or prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(described), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refuses a seccomp filter")
