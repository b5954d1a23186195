"""Staging: a block's keys or values as float32 in scratch, converted and transformed once for all rows of an item.

Keys become packed pages [dims][16], so that scores of many rows need no sums over lanes; values become rows.
"""

from typing import TYPE_CHECKING

from headway.kernels.cpu import item_layout as at
from headway.kernels.cpu.emit import I32, I64, Kit, Value
from headway.kernels.cpu.item_blocks import NUMBER_BYTES, load_number
from headway.kernels.cpu.item_hooks import Hooks, apply
from headway.kernels.cpu.item_walk import KEYS, PAGES, POSITIONS, VALUES

if TYPE_CHECKING:
    from headway.kernels.cpu.item import AttentionItem


def partner_of(k: Kit, hooks: Hooks, dtype: str, dims: int, row: Value, first: Value, x: Value) -> Value:
    """The partner elements of the `lanes` elements x, which start at `first` in a row of numbers."""
    if hooks.pairs == "adjacent":
        return k.shuffle(x, [i ^ 1 for i in range(k.lanes)])
    # dims/2 is a multiple of the lanes, so a vector has one partner vector
    return load_number(k, dtype, k.index(row, partner_dim(k, hooks, dims, first), NUMBER_BYTES[dtype]))


def partner_dim(k: Kit, hooks: Hooks, dims: int, d: Value) -> Value:
    """Number of the partner of dim `d`, an int64 scalar."""
    b, half = k.b, k.i64(dims // 2)
    if hooks.pairs == "adjacent":
        return b.xor(d, k.i64(1))
    return b.select(b.icmp_signed("<", d, half), b.add(d, half), b.sub(d, half))


def element(k: Kit, dims: int, x: Value, partner: Value, d: Value, pos: Value, head: Value) -> dict[str, Value]:
    """Inputs of a query, key or value hook."""
    return {"x": x, "partner": partner, "d": d, "dim": I32(dims), "pos": pos, "head": head}


def stage_keys(
    k: Kit,
    item: "AttentionItem",
    table: Value,
    ahead: Value,
    pages: Value,
    out: Value,
    head: Value,
    captured: Value,
) -> None:
    """Keys of a block as packed float32 pages at `out`; their addresses replace those in the block's table."""
    size, dims, hooks, b = NUMBER_BYTES[item.kv_dtype], item.dims, item.hooks, k.b
    head32 = b.trunc(head, I32)

    def of_page(p: Value, _: list[Value]) -> list[Value]:
        to = k.index(out, p, 4 * at.PAGE_TOKENS * dims)
        for part in range(at.PAGE_TOKENS // k.lanes):
            position_at = k.at(k.index(k.at(table, POSITIONS), p, 4 * at.PAGE_TOKENS), 4 * k.lanes * part)
            if item.layout == "packed":
                page = k.load(k.index(k.at(table, PAGES), p, 8), I64, 0, 8)
                coming = k.load(k.index(k.at(ahead, PAGES), p, 8), I64, 0, 8)

                def of_dim(
                    d: Value, _: list[Value], page: Value = page, coming: Value = coming, part: int = part, position_at: Value = position_at
                ) -> list[Value]:
                    k.prefetch(k.index(coming, d, size * at.PAGE_TOKENS), size * k.lanes * part)
                    x = load_number(k, item.kv_dtype, k.index(page, d, size * at.PAGE_TOKENS), size * k.lanes * part)
                    if hooks.key is not None:
                        other = k.index(page, partner_dim(k, hooks, dims, d), size * at.PAGE_TOKENS)
                        partner = load_number(k, item.kv_dtype, other, size * k.lanes * part)
                        x = apply(k, hooks.key, element(k, dims, x, partner, b.trunc(d, I32), k.load(position_at, k.i), head32), captured)
                    k.store(x, k.index(to, d, 4 * at.PAGE_TOKENS), 4 * k.lanes * part)
                    return []

                k.loop(k.i64(dims), [], of_dim)
            else:
                entry = k.index(table, b.add(b.mul(p, k.i64(at.PAGE_TOKENS)), k.i64(part * k.lanes)), 8)
                entry_ahead = k.index(ahead, b.add(b.mul(p, k.i64(at.PAGE_TOKENS)), k.i64(part * k.lanes)), 8)

                def of_dims(
                    j: Value,
                    _: list[Value],
                    entry: Value = entry,
                    entry_ahead: Value = entry_ahead,
                    part: int = part,
                    position_at: Value = position_at,
                ) -> list[Value]:
                    first_dim = b.mul(j, k.i64(k.lanes))
                    rows = []
                    for i in range(k.lanes):
                        row = k.load(entry, I64, KEYS + 8 * i, 8)
                        along = b.mul(first_dim, k.i64(size))
                        k.prefetch(b.add(k.load(entry_ahead, I64, KEYS + 8 * i, 8), along))
                        x = load_number(k, item.kv_dtype, b.add(row, along))
                        if hooks.key is not None:
                            partner = partner_of(k, hooks, item.kv_dtype, dims, row, first_dim, x)
                            d = k.lane_numbers(b.trunc(first_dim, I32))
                            x = apply(k, hooks.key, element(k, dims, x, partner, d, k.load(position_at, I32, 4 * i), head32), captured)
                        rows.append(x)
                    for i, column in enumerate(transposed(k, rows)):
                        k.store(column, k.index(to, first_dim, 4 * at.PAGE_TOKENS), 4 * (at.PAGE_TOKENS * i + k.lanes * part))
                    return []

                k.loop(k.i64(dims // k.lanes), [], of_dims)
        return []

    k.loop(pages, [], of_page)

    def point(p: Value, _: list[Value]) -> list[Value]:
        k.store(k.index(out, p, 4 * at.PAGE_TOKENS * dims), k.index(k.at(table, PAGES), p, 8), 0, 8)
        return []

    k.loop(pages, [], point)


def stage_values(k: Kit, item: "AttentionItem", table: Value, tokens: Value, out: Value, head: Value, captured: Value) -> None:
    """Values of a block's first `tokens` slots as float32 rows at `out`."""
    size, dims, hooks, b = NUMBER_BYTES[item.kv_dtype], item.value_dims, item.hooks, k.b

    def of_token(t: Value, _: list[Value]) -> list[Value]:
        row = k.load(k.index(k.at(table, VALUES), t, 8), I64, 0, 8)
        to = k.index(out, t, 4 * dims)

        def of_vector(j: Value, _: list[Value]) -> list[Value]:
            x = load_number(k, item.kv_dtype, k.index(row, j, size * k.lanes))
            if hooks.value is not None:
                first = b.mul(j, k.i64(k.lanes))
                partner = partner_of(k, hooks, item.kv_dtype, dims, row, first, x)
                position = k.load(k.index(k.at(table, POSITIONS), t, 4), I32)
                d = k.lane_numbers(b.trunc(first, I32))
                x = apply(k, hooks.value, element(k, dims, x, partner, d, position, b.trunc(head, I32)), captured)
            k.store(x, k.index(to, j, 4 * k.lanes))
            return []

        k.loop(k.i64(dims // k.lanes), [], of_vector)
        return []

    k.loop(tokens, [], of_token)


def transposed(k: Kit, rows: list[Value]) -> list[Value]:
    """`lanes` vectors as a square matrix, transposed: pairs of 32 bits, of 64 bits, then quarters."""
    n = k.lanes
    quarters = range(0, n, 4)
    low32 = [i for q in quarters for i in (q, n + q, q + 1, n + q + 1)]
    low64 = [i for q in quarters for i in (q, q + 1, n + q, n + q + 1)]
    fours: list[list[Value]] = []  # [rows 4g..4g+3][c]: quarter q holds column 4q + c
    for g in range(0, n, 4):
        a, b, c, d = rows[g : g + 4]
        halves = [(k.shuffle2(x, y, low32), k.shuffle2(x, y, [i + 2 for i in low32])) for x, y in ((a, b), (c, d))]
        columns = []
        for half in range(2):
            x, y = halves[0][half], halves[1][half]
            columns += [k.shuffle2(x, y, low64), k.shuffle2(x, y, [i + 2 for i in low64])]
        fours.append(columns)
    out = []
    for column in range(n):
        q, c = divmod(column, 4)
        parts = [k.shuffle(four[c], range(4 * q, 4 * q + 4)) for four in fours]
        while len(parts) > 1:
            parts = [k.shuffle2(x, y, range(2 * len_of(x))) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        out.append(parts[0])
    return out


def len_of(v: Value) -> int:
    return int(v.type.count)
