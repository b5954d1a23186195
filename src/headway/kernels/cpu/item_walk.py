"""From page table to addresses: where the keys and values of one block of 64 tokens lie, whatever the page size and strides.

A slot outside [low, high) gets the address of the block's first live key: what lies in unused slots may be NaN, and 0 * NaN is NaN.
"""

from dataclasses import dataclass

from headway.kernels.cpu import item_layout as at
from headway.kernels.cpu.emit import F32, I32, I64, Kit, Value

# one block in scratch: int64 addresses of keys[64] | values[64] | packed key pages[4], float32 scales of keys[64] | values[64],
# int32 positions[64]
KEYS, VALUES, PAGES = 0, 8 * at.BLOCK_TOKENS, 16 * at.BLOCK_TOKENS
KEY_SCALES = PAGES + 8 * at.BLOCK_TOKENS // at.PAGE_TOKENS
VALUE_SCALES = KEY_SCALES + 4 * at.BLOCK_TOKENS
POSITIONS = VALUE_SCALES + 4 * at.BLOCK_TOKENS
TABLE_BYTES = -(-(POSITIONS + 4 * at.BLOCK_TOKENS) // 64) * 64


@dataclass(frozen=True, slots=True)
class Pool:
    """Where one kv head's keys (or values, or scales of either) lie: base address and byte strides of pages and slots."""

    base: Value
    page_bytes: Value
    slot_bytes: Value

    def of(self, k: Kit, page: Value, slot: Value) -> Value:
        return k.b.add(k.b.add(self.base, k.b.mul(page, self.page_bytes)), k.b.mul(slot, self.slot_bytes))


def pool(k: Kit, run: Value, words: int, head: Value) -> Pool:
    """The pool whose base, page, head and slot strides are four words of the run block from `words` on."""
    base, page, head_bytes, slot = (k.load(run, I64, 8 * (words + i), 8) for i in range(4))
    return Pool(k.b.add(base, k.b.mul(head, head_bytes)), page, slot)


@dataclass(frozen=True, slots=True)
class Walk:
    """Fills address tables. `packed`: keys come in [dims][16] pages, their addresses go to PAGES. `scales`: int8 pools have them.

    `positions`: int32 position of the first token of each page, None when no hook asks.
    """

    keys: Pool
    values: Pool
    scales: tuple[Pool, Pool] | None
    page_tokens: Value
    pages: Value
    positions: Value | None
    packed: bool

    def fill(self, k: Kit, table: Value, start: Value, low: Value, high: Value) -> None:
        """Addresses of the block that starts at key `start`, of which the slots [low, high) are live, 0 <= low < high <= 64."""
        b = k.b
        first = b.add(start, low)
        page = b.udiv(first, self.page_tokens)
        slot = b.sub(first, b.mul(page, self.page_tokens))

        def of_page(values: list[Value]) -> tuple[list[Value], Value]:
            t, page, slot = values
            number = b.zext(k.load(k.index(self.pages, page, 4), I32), I64)
            left, room = b.sub(high, t), b.sub(self.page_tokens, slot)
            n = b.select(b.icmp_signed("<", left, room), left, room)
            key, value = self.keys.of(k, number, slot), self.values.of(k, number, slot)
            if self.packed:  # a page is 16 tokens and starts at a multiple of 16
                whole = self.keys.of(k, number, k.i64(0))
                k.store(whole, k.index(k.at(table, PAGES), b.lshr(t, k.i64(4)), 8), 0, 8)
            self._tokens(k, table, t, n, key, value)
            if self.scales is not None:
                self._scales(k, table, t, n, [pool.of(k, number, slot) for pool in self.scales])
            if self.positions is not None:
                position = b.add(k.load(k.index(self.positions, page, 4), I32), b.trunc(slot, I32))
                self._positions(k, table, t, n, position)
            return [b.add(t, n), b.add(page, k.i64(1)), k.i64(0)], b.icmp_signed("<", b.add(t, n), high)

        k.do_while([low, page, slot], of_page)
        self._dead(k, table, low, high)

    def _tokens(self, k: Kit, table: Value, t: Value, n: Value, key: Value, value: Value) -> None:
        where = k.index(table, t, 8)

        def body(i: Value, addresses: list[Value]) -> list[Value]:
            to = k.index(where, i, 8)
            if not self.packed:
                k.store(addresses[0], to, KEYS, 8)
            k.store(addresses[1], to, VALUES, 8)
            return [k.b.add(addresses[0], self.keys.slot_bytes), k.b.add(addresses[1], self.values.slot_bytes)]

        k.loop(n, [key, value], body)

    def _scales(self, k: Kit, table: Value, t: Value, n: Value, sources: list[Value]) -> None:
        assert self.scales is not None
        where = k.index(table, t, 4)
        steps = [pool.slot_bytes for pool in self.scales]

        def body(i: Value, addresses: list[Value]) -> list[Value]:
            to = k.index(where, i, 4)
            for address, offset in zip(addresses, (KEY_SCALES, VALUE_SCALES), strict=True):
                k.store(k.load(address, F32), to, offset)
            return [k.b.add(a, s) for a, s in zip(addresses, steps, strict=True)]

        k.loop(n, sources, body)

    def _positions(self, k: Kit, table: Value, t: Value, n: Value, first: Value) -> None:
        where = k.index(k.at(table, POSITIONS), t, 4)

        def body(i: Value, _: list[Value]) -> list[Value]:
            k.store(k.b.add(first, k.b.trunc(i, I32)), k.index(where, i, 4))
            return []

        k.loop(n, [], body)

    def _dead(self, k: Kit, table: Value, low: Value, high: Value) -> None:
        b = k.b

        def copy(base: int, size: int, from_: Value, to: Value, live: Value) -> None:
            kind = I64 if size == 8 else I32
            value = k.load(k.index(k.at(table, base), live, size), kind, 0, size)

            def body(i: Value, _: list[Value]) -> list[Value]:
                k.store(value, k.index(k.at(table, base), b.add(from_, i), size), 0, size)
                return []

            k.when(b.icmp_signed("<", from_, to), lambda: void(k.loop(b.sub(to, from_), [], body)))

        columns = [(VALUES, 8)] if self.packed else [(KEYS, 8), (VALUES, 8)]
        if self.scales is not None:
            columns += [(KEY_SCALES, 4), (VALUE_SCALES, 4)]
        if self.positions is not None:
            columns.append((POSITIONS, 4))

        def both() -> None:
            for base, size in columns:
                copy(base, size, k.i64(0), low, low)
                copy(base, size, high, k.i64(at.BLOCK_TOKENS), low)
            if self.packed:
                live = b.lshr(low, k.i64(4))
                copy(PAGES, 8, k.i64(0), live, live)
                copy(PAGES, 8, b.lshr(b.add(high, k.i64(15)), k.i64(4)), k.i64(at.BLOCK_TOKENS // at.PAGE_TOKENS), live)

        k.when(b.icmp_signed("<", b.sub(high, low), k.i64(at.BLOCK_TOKENS)), both)


def void(_: object) -> None:
    """For a callback whose result is not wanted."""
