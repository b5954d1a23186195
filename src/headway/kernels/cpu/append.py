"""AppendRows: new keys or values scattered to their pages, converted or quantised on the way (specs/attention.md 6.8)."""

from dataclasses import dataclass
from typing import Literal

from llvmlite import ir

from headway.kernels.cpu.emit import F32, I8, I32, I64, Kit, Value, vector
from headway.kernels.cpu.item_blocks import NUMBER_BYTES, load_number

(
    SOURCE,  # rows of any source type
    SOURCE_TOKEN_BYTES,
    SOURCE_HEAD_BYTES,
    POOL,
    PAGE_BYTES,
    HEAD_BYTES,
    SLOT_BYTES,  # of packed keys: not used
    SCALES,  # float32 of int8 pools
    SCALE_PAGE_BYTES,
    SCALE_HEAD_BYTES,
    SCALE_SLOT_BYTES,
    PAGES,  # int32 page of each token; below 0: the token is skipped
    SLOTS,  # int32
    HEADS,
) = range(14)
WORDS = 16


@dataclass(frozen=True, slots=True)
class AppendRows:
    """Call: (block of WORDS int64, tokens). Rows of `dims` elements, a multiple of the lanes.

    int8: symmetric, scale = max|x| / 127, rounded to nearest even; a row of zeros has scale 0. `layout` "packed_keys": pages [dims][16].
    Nothing but the token's own slot is written: tokens of one page may be appended by several threads.
    """

    source_dtype: str
    kv_dtype: str
    dims: int
    layout: Literal["rows", "packed_keys"] = "rows"

    arguments = 2

    @property
    def symbol(self) -> str:
        return f"hw_append_rows_{self.source_dtype}_{self.kv_dtype}_{self.dims}_{self.layout}"

    def emit(self, k: Kit, block: Value, tokens: Value) -> None:
        b = k.b
        w = [k.load(block, I64, 8 * i, 8) for i in range(HEADS + 1)]

        def strided(base: int, *places: Value) -> Value:
            at = w[base]
            for i, place in enumerate(places):
                at = b.add(at, b.mul(place, w[base + 1 + i]))
            return at

        def of_token(t: Value, _: list[Value]) -> list[Value]:
            page, slot = (b.sext(k.load(k.index(w[words], t, 4), I32), I64) for words in (PAGES, SLOTS))

            def of_head(h: Value, _: list[Value]) -> list[Value]:
                source = strided(SOURCE, t, h)
                if self.layout == "packed_keys":
                    to = b.add(strided(POOL, page, h), b.mul(slot, k.i64(NUMBER_BYTES[self.kv_dtype])))
                else:
                    to = strided(POOL, page, h, slot)
                inverse = self._quantise(k, source, strided(SCALES, page, h, slot)) if self.kv_dtype == "int8" else None
                self._row(k, source, to, inverse)
                return []

            def place() -> None:
                k.loop(w[HEADS], [], of_head)

            k.when(b.icmp_signed(">=", page, k.i64(0)), place)
            return []

        k.loop(tokens, [], of_token)

    def _quantise(self, k: Kit, source: Value, scale_at: Value) -> Value:
        """Stores the row's scale; returns its inverse, 0 for a row of zeros."""
        b = k.b

        def largest(j: Value, top: list[Value]) -> list[Value]:
            x = load_number(k, self.source_dtype, k.index(source, j, NUMBER_BYTES[self.source_dtype] * k.lanes))
            return [k.maximum(top[0], k.unary("fabs", x))]

        peak = k.max_f32(k.loop(k.i64(self.dims // k.lanes), [k.vf(0.0)], largest)[0])
        scale = b.fdiv(peak, ir.Constant(F32, 127.0))
        k.store(scale, scale_at)
        some = b.fcmp_ordered(">", scale, ir.Constant(F32, 0.0))
        return k.splat(b.select(some, scale, ir.Constant(F32, 1.0)))

    def _row(self, k: Kit, source: Value, to: Value, scale: Value | None) -> None:
        b, size = k.b, NUMBER_BYTES[self.kv_dtype]

        def of_vector(j: Value, _: list[Value]) -> list[Value]:
            x = load_number(k, self.source_dtype, k.index(source, j, NUMBER_BYTES[self.source_dtype] * k.lanes))
            if scale is not None:
                stored = b.trunc(b.fptosi(k.unary("rint", b.fdiv(x, scale)), k.i), vector(I8, k.lanes))
            else:
                stored = x if self.kv_dtype == "f32" else k.to_16bit(self.kv_dtype, x)
            if self.layout == "rows":
                k.store(stored, k.index(to, j, size * k.lanes), 0, size)
                return []
            for lane in range(k.lanes):
                dim = b.add(b.mul(j, k.i64(k.lanes)), k.i64(lane))
                k.store(b.extract_element(stored, I32(lane)), k.index(to, dim, 16 * size), 0, size)
            return []

        k.loop(k.i64(self.dims // k.lanes), [], of_vector)
