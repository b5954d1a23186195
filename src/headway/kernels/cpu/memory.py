"""Arena: one private anonymous mapping, 2 MiB aligned, huge pages asked for before the first touch."""

import ctypes
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from headway.core.errors import CapacityError

HUGE_PAGE_BYTES = 2 << 20
_MADV_HUGEPAGE = 14


class Arena:
    """`take` hands out zeroed, aligned pieces; everything is freed at once when the arena and its views are gone."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = -(-max(n_bytes, 1) // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        # Python's default is a *shared* mapping, which gets no huge pages at all
        mapping = mmap.mmap(-1, self.n_bytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = np.frombuffer(mapping, np.uint8)
        skip = -whole.ctypes.data % HUGE_PAGE_BYTES
        self._bytes = whole[skip : skip + self.n_bytes]
        self.address = self._bytes.ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise(ctypes.c_void_p(self.address), ctypes.c_size_t(self.n_bytes), _MADV_HUGEPAGE)  # refused on some kernels: only slower
        self.used_bytes = 0

    def take(self, n_bytes: int, dtype: DTypeLike = np.uint8, align: int = 64) -> NDArray[Any]:
        """A zeroed piece of `n_bytes`; raises CapacityError when the arena is too small."""
        start = -(-self.used_bytes // align) * align
        if start + n_bytes > self.n_bytes:
            raise CapacityError(
                f"arena of {self.n_bytes} bytes has no room for {n_bytes} more", needed=start + n_bytes, capacity=self.n_bytes
            )
        self.used_bytes = start + n_bytes
        return self._bytes[start : start + n_bytes].view(dtype)


def address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)
