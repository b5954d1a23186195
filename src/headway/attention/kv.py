"""PagedKV: where keys and values lie, as addresses and byte strides over arrays that somebody else owns. Never copies, never gathers.

Row layouts keep a token's elements together: NHD `[pages, P, heads, D]`, HND `[pages, heads, P, D]`; every stride but the last is free, so
head-major memory is HND with other strides. `packed` keeps 16-token pages with transposed keys: K `[pages, heads, D, 16]`, V `[pages,
heads, 16, D]` (kernels/cpu/rows.py writes the same).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.core.errors import ConfigError
from headway.kernels.cpu.memory import Arena

KINDS: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
}
LAYOUTS = ("NHD", "HND", "packed")
PACKED_TOKENS = 16
Array = NDArray[Any]


class _Foreign:
    """A torch tensor's memory under NumPy's array interface; bf16 comes out as uint16."""

    def __init__(self, tensor: Any) -> None:
        kinds = {"torch.float32": "<f4", "torch.float16": "<f2", "torch.bfloat16": "<u2", "torch.int8": "|i1", "torch.int32": "<i4"}
        if tensor.device.type != "cpu":
            raise ConfigError(f"a tensor on {tensor.device} was given; this back end reads CPU memory: call .cpu() first")
        if str(tensor.dtype) not in kinds:
            raise ConfigError(f"tensors of {tensor.dtype} cannot be read; supported are {', '.join(kinds)}")
        self.owner = tensor
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "strides": tuple(s * tensor.element_size() for s in tensor.stride()),
            "typestr": kinds[str(tensor.dtype)],
        }


def as_array(x: Any) -> Array:
    """A NumPy array as it is; a torch CPU tensor as a view of its memory."""
    return x if isinstance(x, np.ndarray) else np.asarray(_Foreign(x)) if hasattr(x, "data_ptr") else np.asarray(x)


def to_bf16(x: Array) -> NDArray[np.uint16]:
    """float32 to bfloat16 bits, round to nearest even, NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def to_float32(x: Array, dtype: str) -> NDArray[np.float32]:
    """Stored elements as float32; int8 without its scale."""
    if dtype == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def encode(x: Array, dtype: str) -> Array:
    """float32 as stored elements f32 | f16 | bf16."""
    return to_bf16(x) if dtype == "bf16" else x.astype(KINDS[dtype])


def quantise(x: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(int8 values, float32 scale of each row): symmetric, largest magnitude on 127; the scale of a zero row is 0."""
    top = np.abs(x).max(-1)
    scale = (top / np.float32(127)).astype(np.float32)
    return np.rint(x / np.where(scale == 0, 1, scale)[..., None]).astype(np.int8), scale


class PagedKV:
    """Keys `[..., D_qk]` and values `[..., D_vo]` of one layer in `pages` pages of `page_tokens` tokens.

    `layout`: NHD | HND | packed. `dtype`: f32 | f16 | bf16 (uint16 bits) | int8, by default the arrays' own (uint16 = bf16). int8 needs
    `k_scale` and `v_scale`, float32 `[pages, heads, P]`. 3-D arrays are pages of one token.
    Addresses `k_address`, `v_address`; byte strides `k_strides`, `v_strides` = (page, head, token). Packed keys have no token stride: the
    third is a dimension's.
    """

    def __init__(self, k: Any, v: Any, *, layout: str = "NHD", dtype: str | None = None, k_scale: Any = None, v_scale: Any = None) -> None:
        if layout not in LAYOUTS:
            raise ConfigError(f"layout={layout!r} is not one of {', '.join(LAYOUTS)}")
        self.k, self.v, self.layout = as_array(k), as_array(v), layout
        kinds = {kind: name for name, kind in KINDS.items()}
        self.dtype = dtype or kinds.get(self.k.dtype, str(self.k.dtype))
        if self.dtype not in KINDS or self.k.dtype != KINDS[self.dtype] or self.v.dtype != KINDS[self.dtype]:
            raise ConfigError(f"keys {self.k.dtype} and values {self.v.dtype} are not both {self.dtype}; types are {', '.join(KINDS)}")
        if layout != "packed" and self.k.ndim == 3:
            axis = 1 if layout == "NHD" else 2
            self.k, self.v = np.expand_dims(self.k, axis), np.expand_dims(self.v, axis)
        if self.k.ndim != 4 or self.v.ndim != 4:
            raise ConfigError(f"keys {self.k.shape} and values {self.v.shape}: both need 4 axes, or 3 for pages of one token")
        if self.k.strides[-1] != self.k.itemsize or self.v.strides[-1] != self.v.itemsize:
            raise ConfigError("the last axis of keys and values must be contiguous; every other stride is free")
        self._read_shapes()
        self.k_address, self.v_address = int(self.k.ctypes.data), int(self.v.ctypes.data)
        self.k_strides, self.v_strides = self._strides(self.k), self._strides(self.v)
        self.k_scale, self.v_scale = self._scales(k_scale, "k_scale"), self._scales(v_scale, "v_scale")

    def _read_shapes(self) -> None:
        k, v = self.k.shape, self.v.shape
        self.pages = k[0]
        if self.layout == "packed":
            same = k[:2] == v[:2] and k[3] == v[2] == PACKED_TOKENS
            self.kv_heads, self.page_tokens, self.head_dim_qk = k[1], PACKED_TOKENS, k[2]
        else:
            same = k[:3] == v[:3]
            self.kv_heads, self.page_tokens = (k[2], k[1]) if self.layout == "NHD" else (k[1], k[2])
            self.head_dim_qk = k[3]
        self.head_dim_vo = v[3]
        if not same:
            raise ConfigError(f"keys {k} and values {v} of {self.dtype} do not fit together in layout {self.layout}")

    def _strides(self, x: Array) -> tuple[int, int, int]:
        s = x.strides
        return (s[0], s[2], s[1]) if self.layout == "NHD" else (s[0], s[1], s[2])

    def _scales(self, scale: Any, name: str) -> NDArray[np.float32] | None:
        wanted = (self.pages, self.kv_heads, self.page_tokens)
        if self.dtype != "int8":
            if scale is not None:
                raise ConfigError(f"{name} is given with {self.dtype} elements; only int8 has scales")
            return None
        x = None if scale is None else as_array(scale)
        if x is None or x.shape != wanted or x.dtype != np.float32 or not x.flags.c_contiguous:
            raise ConfigError(f"int8 needs {name}: contiguous float32 {wanted} [pages, heads, page tokens]")
        return x

    @staticmethod
    def view(kv: Any, *, layout: str = "NHD", dtype: str | None = None, k_scale: Any = None, v_scale: Any = None) -> "PagedKV":
        """One 5-D array `[pages, 2, P, heads, D]` (NHD) or `[pages, 2, heads, P, D]` (HND); 4-D is pages of one token."""
        x = as_array(kv)
        if x.ndim not in (4, 5) or x.shape[1] != 2:
            raise ConfigError(f"a single KV array has shape [pages, 2, ...], got {x.shape}")
        return PagedKV(x[:, 0], x[:, 1], layout=layout, dtype=dtype, k_scale=k_scale, v_scale=v_scale)

    @staticmethod
    def ragged(k: Any, v: Any, page_tokens: int, *, layout: str = "NHD", dtype: str | None = None) -> "PagedKV":
        """Ragged rows `[tokens, heads, D]` (NHD) or `[heads, tokens, D]` (HND) seen as whole pages, without a copy."""
        arrays = []
        for x in (as_array(k), as_array(v)):
            axis = 0 if layout == "NHD" else 1
            tokens = x.shape[axis]
            if tokens % page_tokens:
                raise ConfigError(
                    f"{tokens} tokens are not whole pages of {page_tokens}: use BlockSparse.ragged(kv_indptr).page_tokens, or pad"
                )
            s, n = x.strides, tokens // page_tokens
            if layout == "NHD":
                shape, strides = (n, page_tokens, x.shape[1], x.shape[2]), (s[0] * page_tokens, s[0], s[1], s[2])
            else:
                shape, strides = (n, x.shape[0], page_tokens, x.shape[2]), (s[1] * page_tokens, s[0], s[1], s[2])
            arrays.append(np.lib.stride_tricks.as_strided(x, shape, strides))
        return PagedKV(arrays[0], arrays[1], layout=layout, dtype=dtype)

    @staticmethod
    def allocate(
        pages: int,
        page_tokens: int,
        kv_heads: int,
        head_dim: int,
        *,
        head_dim_vo: int | None = None,
        dtype: str = "f32",
        layout: str = "HND",
        head_major: bool = True,
    ) -> "PagedKV":
        """Zeroed pages in huge-page memory. `head_major`: neighbouring pages of a head are contiguous (HND and packed)."""
        if dtype not in KINDS or layout not in LAYOUTS:
            raise ConfigError(f"dtype {dtype!r}, layout {layout!r}: types are {', '.join(KINDS)}, layouts {', '.join(LAYOUTS)}")
        d_vo = head_dim if head_dim_vo is None else head_dim_vo
        arrays = []
        for kind, d in (("k", head_dim), ("v", d_vo)):
            inner = (d, page_tokens) if layout == "packed" and kind == "k" else (page_tokens, d)
            n_bytes = pages * kv_heads * page_tokens * d * KINDS[dtype].itemsize
            flat = Arena(n_bytes).take(n_bytes, KINDS[dtype])
            flat.fill(0)  # touched here, not inside a step
            if layout == "NHD":
                arrays.append(flat.reshape(pages, page_tokens, kv_heads, d))
            elif head_major:
                arrays.append(flat.reshape(kv_heads, pages, *inner).transpose(1, 0, 2, 3))
            else:
                arrays.append(flat.reshape(pages, kv_heads, *inner))
        scales = [np.zeros((pages, kv_heads, page_tokens), np.float32) if dtype == "int8" else None for _ in range(2)]
        return PagedKV(arrays[0], arrays[1], layout=layout, dtype=dtype, k_scale=scales[0], v_scale=scales[1])

    def with_page_tokens(self, page_tokens: int) -> "PagedKV":
        """The same memory in smaller pages: page p becomes pages p * n .. p * n + n - 1. How single tokens of a pool are addressed."""
        if page_tokens == self.page_tokens:
            return self
        n, rest = divmod(self.page_tokens, page_tokens)
        if rest or self.layout == "packed" or self.dtype == "int8":
            raise ConfigError(
                f"pages of {self.page_tokens} tokens, layout {self.layout}, {self.dtype} cannot be seen as pages of {page_tokens}"
            )
        arrays = []
        for x, (page, head, token) in ((self.k, self.k_strides), (self.v, self.v_strides)):
            if page != token * self.page_tokens:
                raise ConfigError("tokens of neighbouring pages are not equally far apart here: use NHD or head-major pages")
            sizes = {"page": self.pages * n, "token": page_tokens, "head": self.kv_heads}
            strides = {"page": token * page_tokens, "token": token, "head": head}
            axes = ("page", "token", "head") if self.layout == "NHD" else ("page", "head", "token")
            shape = (*(sizes[a] for a in axes), x.shape[3])
            arrays.append(np.lib.stride_tricks.as_strided(x, shape, (*(strides[a] for a in axes), x.itemsize)))
        return PagedKV(arrays[0], arrays[1], layout=self.layout, dtype=self.dtype)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one kv head, keys and values, without scales."""
        return int((self.head_dim_qk + self.head_dim_vo) * self.k.itemsize)

    def run_bytes(self, pages: Array) -> float:
        """Mean length in bytes of contiguous key memory of one head over a list of page numbers: what decides the read bandwidth."""
        row = self.head_dim_qk * self.k.itemsize
        page, _, token = self.k_strides
        inside = self.layout == "packed" or token == row
        if not inside:
            return float(row)
        whole = self.page_tokens * row
        pages = np.asarray(pages)
        if page != whole or not len(pages):
            return float(whole)
        return float(whole * len(pages) / (1 + np.count_nonzero(np.diff(pages) != 1)))

    def read(self, pages: Array, offsets: Array, head: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Keys `[n, D_qk]` and values `[n, D_vo]` of single tokens as float64: for the oracle."""
        if self.layout == "packed":
            k, v = self.k[pages, head, :, offsets], self.v[pages, head, offsets]
        elif self.layout == "NHD":
            k, v = self.k[pages, offsets, head], self.v[pages, offsets, head]
        else:
            k, v = self.k[pages, head, offsets], self.v[pages, head, offsets]
        k64, v64 = to_float32(k, self.dtype).astype(np.float64), to_float32(v, self.dtype).astype(np.float64)
        if self.k_scale is not None and self.v_scale is not None:
            k64 = k64 * self.k_scale[pages, head, offsets][:, None]
            v64 = v64 * self.v_scale[pages, head, offsets][:, None]
        return k64, v64

    def write(self, pages: Array, offsets: Array, k: Array, v: Array) -> None:
        """Store rows k `[n, heads, D_qk]`, v `[n, heads, D_vo]` (float32) at single tokens; int8 is quantised. NumPy speed."""
        for array, scale, rows, is_key in ((self.k, self.k_scale, k, True), (self.v, self.v_scale, v, False)):
            if scale is not None:
                stored, row_scale = quantise(rows)
                scale[pages, :, offsets] = row_scale
            else:
                stored = encode(rows, self.dtype)
            if self.layout == "NHD":
                array[pages, offsets] = stored
            elif self.layout == "packed" and is_key:
                array[pages, :, :, offsets] = stored
            else:
                array[pages, :, offsets] = stored
