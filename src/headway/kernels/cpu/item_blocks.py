"""Register blocks of one attention item: scores from key rows or from packed keys, outputs from value rows.

A block holds rows x columns sums in registers, keeps the shorter side's operands beside them and streams the longer one. The order of
the sums is explicit (fma) and fenced: LLVM's scheduler would gather the loads of a block and spill them.

Prefetches that find all miss buffers busy are dropped, and scores are computed faster than memory delivers: a block's values are asked for
twice, while the values before them are added and while its own scores are computed (10 % of a cold float32 decode on a Zen 3).
"""

from collections.abc import Callable, Sequence

from headway.kernels.cpu import item_layout as at
from headway.kernels.cpu.emit import I8, I64, Kit, Value, vector
from headway.kernels.cpu.isa import Isa
from headway.kernels.cpu.item_walk import KEYS, PAGES, VALUES

NUMBER_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}
Load = Callable[[int], Value]


def registers(isa: Isa) -> int:
    return 32 if isa.lanes == 16 and isa.dot != "portable" else 16


def fits(isa: Isa, rows: int, columns: int) -> bool:
    return rows * columns + min(rows, columns) + 1 <= registers(isa)


def row_block(isa: Isa, rows: int, many: bool) -> int:
    """Query rows that share registers: all of a small group, else as many as leave room for two columns."""
    most = 6 if registers(isa) == 16 else 8
    if many or rows % most == 0:
        return most
    if rows <= most:
        return rows
    return min(range(3, most + 1), key=lambda n: (-rows % n, -n))


def columns_for(isa: Isa, rows: int, count: int, most: int) -> int:
    """The widest block of at most `most` columns that divides `count` and fits the registers."""
    return max(c for c in range(1, most + 1) if count % c == 0 and (c == 1 or fits(isa, rows, c)))


def load_number(k: Kit, dtype: str, address: Value, offset: int = 0) -> Value:
    """`lanes` numbers of a storage type as float32."""
    if dtype == "int8":
        return k.b.sitofp(k.b.sext(k.load(address, vector(I8, k.lanes), offset, 1), k.i), k.f)
    return k.load_float(dtype, address, offset)


def outer(k: Kit, rows: Sequence[Load], columns: Sequence[Load], sums: list[Value]) -> list[Value]:
    """sums[r*columns + c] += rows[r] * columns[c]; the shorter side's operands are loaded first and stay."""
    n = len(columns)
    sums = list(sums)
    if len(columns) <= len(rows):
        held = [load(0) for load in columns]
        for r, row in enumerate(rows):
            x = row(0)
            for c in range(n):
                sums[r * n + c] = k.fma(x, held[c], sums[r * n + c])
    else:
        held = [load(0) for load in rows]
        for c, column in enumerate(columns):
            x = column(0)
            for r in range(len(rows)):
                sums[r * n + c] = k.fma(held[r], x, sums[r * n + c])
    return k.fence(sums)


def sums_of(k: Kit, vectors: Sequence[Value]) -> Value:
    """Up to `lanes` vectors to one: lane i is the sum of vector i, by unpacking pairs. Lanes beyond are garbage."""
    b, n = k.b, k.lanes

    def pair(x: Value, y: Value, low: list[int], high: list[int]) -> Value:
        return b.fadd(k.shuffle2(x, y, low), k.shuffle2(x, y, high))

    quarters = range(0, n, 4)
    unpack = [
        ([i for q in quarters for i in (q, n + q, q + 1, n + q + 1)], [i for q in quarters for i in (q + 2, n + q + 2, q + 3, n + q + 3)]),
        ([i for q in quarters for i in (q, q + 1, n + q, n + q + 1)], [i for q in quarters for i in (q + 2, q + 3, n + q + 2, n + q + 3)]),
    ]
    step = 1
    while 4 * step < n:  # then even and odd quarters of a pair
        even = [base + 4 * q + i for base in (0, n) for q in range(0, n // 4, 2) for i in range(4)]
        unpack.append((even, [i + 4 for i in even]))
        step *= 2
    level = list(vectors)
    for low, high in unpack:
        level = [pair(level[i], level[min(i + 1, len(level) - 1)], low, high) for i in range(0, len(level), 2)]
    return level[0]


def scores_from_rows(
    k: Kit, dtype: str, dims: int, rows: int, q: Value, groups: Value, table: Value, ahead: Value, tokens: Value, scores: Value
) -> None:
    """Scores of `tokens` keys (rounded up to a register block) that lie as rows, for `groups` groups of `rows` queries.

    `ahead`: address table of the next block, whose keys are prefetched on the way, and again the values of this one.
    """
    many = columns_for(k.isa, rows, at.BLOCK_TOKENS, 8)
    size = NUMBER_BYTES[dtype]
    vectors = dims // k.lanes
    unroll = max(u for u in range(1, 64 // (k.lanes * size) + 1) if vectors % u == 0)

    def of_tokens(i: Value, _: list[Value]) -> list[Value]:
        first = k.b.mul(i, k.i64(many))
        at_keys = k.index(k.at(table, KEYS), first, 8)
        keys = [k.load(at_keys, I64, 8 * t, 8) for t in range(many)]
        at_ahead = k.index(k.at(ahead, KEYS), first, 8)

        def of_rows(q: Value, out: Value, prefetch: bool) -> None:
            coming = []
            if prefetch:
                at_values = k.index(k.at(table, VALUES), first, 8)
                coming = [k.load(at, I64, 8 * t, 8) for at in (at_ahead, at_values) for t in range(many)]

            def step(d: Value, sums: list[Value]) -> list[Value]:
                along_q = k.index(q, d, 4 * k.lanes * unroll)
                along_k = k.b.mul(d, k.i64(size * k.lanes * unroll))
                for address in coming:
                    k.prefetch(k.b.add(address, along_k))
                for u in range(unroll):

                    def row(r: int, u: int = u) -> Load:
                        return lambda _: k.load(along_q, k.f, 4 * (dims * r + k.lanes * u))

                    def key(t: int, u: int = u) -> Load:
                        return lambda _: load_number(k, dtype, k.b.add(keys[t], along_k), size * k.lanes * u)

                    sums = outer(k, [row(r) for r in range(rows)], [key(t) for t in range(many)], sums)
                return sums

            sums = k.loop(k.i64(vectors // unroll), [k.vf(0.0)] * (rows * many), step)
            _store_sums(k, sums, rows, many, out)

        out = k.index(scores, first, 4)
        of_rows(q, out, True)

        def rest() -> None:
            def of_group(g: Value, _: list[Value]) -> list[Value]:
                g = k.b.add(g, k.i64(1))
                of_rows(k.index(q, g, 4 * dims * rows), k.index(out, g, 4 * at.BLOCK_TOKENS * rows), False)
                return []

            k.loop(k.b.sub(groups, k.i64(1)), [], of_group)

        k.when(k.b.icmp_signed(">", groups, k.i64(1)), rest)
        return []

    k.loop(k.b.udiv(k.b.add(tokens, k.i64(many - 1)), k.i64(many)), [], of_tokens)


def _store_sums(k: Kit, sums: list[Value], rows: int, columns: int, out: Value) -> None:
    """Sum over lanes of rows x columns vectors, stored at out[row][column]; `columns` is a power of two."""
    for first in range(0, len(sums), k.lanes):
        part = sums[first : first + k.lanes]
        total = sums_of(k, part)
        for i in range(0, len(part), columns):
            r, c = divmod(first + i, columns)
            piece = total if columns == k.lanes else k.shuffle(total, range(i, i + columns))
            k.store(piece, out, 4 * (at.BLOCK_TOKENS * r + c))


def scores_from_pages(
    k: Kit, dtype: str, dims: int, rows: int, q: Value, groups: Value, table: Value, ahead: Value | None, count: Value, scores: Value
) -> None:
    """The same from packed keys [dims][16] at the table's PAGES: lane = key, sums in the order of the dims."""
    size = NUMBER_BYTES[dtype]
    vectors = at.PAGE_TOKENS // k.lanes
    unroll = 2
    lines = size * at.PAGE_TOKENS * unroll

    def of_page(i: Value, _: list[Value]) -> list[Value]:
        page = k.load(k.index(k.at(table, PAGES), i, 8), I64, 0, 8)

        def of_rows(q: Value, out: Value, prefetch: list[Value]) -> None:
            def step(d: Value, sums: list[Value]) -> list[Value]:
                along_q = k.index(q, d, 4 * unroll)
                along_k = k.b.mul(d, k.i64(lines))
                for address in prefetch:
                    for line in range(0, lines, 64):
                        k.prefetch(k.b.add(address, along_k), line)
                for u in range(unroll):

                    def row(r: int, u: int = u) -> Load:
                        return lambda _: k.splat_f32(along_q, 4 * (dims * r + u))

                    def key(v: int, u: int = u) -> Load:
                        return lambda _: load_number(k, dtype, k.b.add(page, along_k), size * (at.PAGE_TOKENS * u + k.lanes * v))

                    sums = outer(k, [row(r) for r in range(rows)], [key(v) for v in range(vectors)], sums)
                return sums

            sums = k.loop(k.i64(dims // unroll), [k.vf(0.0)] * (rows * vectors), step)
            for r in range(rows):
                for v in range(vectors):
                    k.store(sums[r * vectors + v], out, 4 * (at.BLOCK_TOKENS * r + k.lanes * v))

        out = k.index(scores, i, 4 * at.PAGE_TOKENS)
        coming = []
        if ahead is not None:  # a page's values are as long as its keys, when their dims are equal
            values = k.load(k.index(k.at(table, VALUES), i, 8 * at.PAGE_TOKENS), I64, 0, 8)
            coming = [k.load(k.index(k.at(ahead, PAGES), i, 8), I64, 0, 8), values]
        of_rows(q, out, coming)

        def rest() -> None:
            def of_group(g: Value, _: list[Value]) -> list[Value]:
                g = k.b.add(g, k.i64(1))
                of_rows(k.index(q, g, 4 * dims * rows), k.index(out, g, 4 * at.BLOCK_TOKENS * rows), [])
                return []

            k.loop(k.b.sub(groups, k.i64(1)), [], of_group)

        k.when(k.b.icmp_signed(">", groups, k.i64(1)), rest)
        return []

    k.loop(count, [], of_page)


def add_values(
    k: Kit,
    dtype: str,
    dims: int,
    rows: int,
    weights: Value,
    factors: Value | None,
    groups: Value,
    values: Callable[[Value], Value],
    ahead: Value,
    tokens: Value,
    states: Value,
    state_bytes: int,
) -> None:
    """states[r].output = factor[r] * output + sum over tokens of weight * value, in ascending order of the tokens.

    `values(t)`: address of the row of token t. `ahead`: address table of the next block.
    """
    vectors = dims // k.lanes
    columns = columns_for(k.isa, rows, vectors, 8)
    size = NUMBER_BYTES[dtype]
    # tokens are taken by groups; weights of dead slots are zero and their addresses are live
    unroll = min(8, 1 << (vectors // columns).bit_length() - 1)
    groups_of_tokens = k.b.udiv(k.b.add(tokens, k.i64(unroll - 1)), k.i64(unroll))

    def of_rows(weights: Value, factors: Value | None, states: Value, prefetch: bool) -> None:
        def of_columns(c: Value, _: list[Value]) -> list[Value]:
            out = k.index(states, c, 4 * k.lanes * columns)
            along = k.b.mul(c, k.i64(size * k.lanes * columns))
            start = []
            for r in range(rows):
                part = [k.load(out, k.f, state_bytes * r + 4 * k.lanes * v) for v in range(columns)]
                if factors is not None:
                    factor = k.splat_f32(factors, 4 * r)
                    part = [k.b.fmul(p, factor) for p in part]
                start += part

            def of_tokens(i: Value, sums: list[Value]) -> list[Value]:
                first = k.b.mul(i, k.i64(unroll))
                weight_at = k.index(weights, first, 4)
                if prefetch:  # one row of the next block: together all column blocks fetch every row, line after line
                    number = k.b.add(k.b.mul(c, k.i64(at.BLOCK_TOKENS // unroll)), i)
                    coming = k.load(k.index(k.at(ahead, VALUES), number, 8), I64, 0, 8)
                    for line in range(0, size * dims, 64):
                        k.prefetch(coming, line)
                for u in range(unroll):
                    row_at = k.b.add(values(k.at(first, u)), along)

                    def row(r: int, u: int = u) -> Load:
                        return lambda _: k.splat_f32(weight_at, 4 * (at.BLOCK_TOKENS * r + u))

                    def value(v: int, row_at: Value = row_at) -> Load:
                        return lambda _: load_number(k, dtype, row_at, size * k.lanes * v)

                    sums = outer(k, [row(r) for r in range(rows)], [value(v) for v in range(columns)], sums)
                return sums

            sums = k.loop(groups_of_tokens, start, of_tokens)
            for r in range(rows):
                for v in range(columns):
                    k.store(sums[r * columns + v], out, state_bytes * r + 4 * k.lanes * v)
            return []

        k.loop(k.i64(vectors // columns), [], of_columns)

    of_rows(weights, factors, states, True)

    def rest() -> None:
        def of_group(g: Value, _: list[Value]) -> list[Value]:
            g = k.b.add(g, k.i64(1))
            scale = None if factors is None else k.index(factors, g, 4 * rows)
            of_rows(k.index(weights, g, 4 * at.BLOCK_TOKENS * rows), scale, k.index(states, g, state_bytes * rows), False)
            return []

        k.loop(k.b.sub(groups, k.i64(1)), [], of_group)

    k.when(k.b.icmp_signed(">", groups, k.i64(1)), rest)
