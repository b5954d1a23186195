"""First half of the planner: tables into the plan's buffer, table rows to query tiles, masks to ranges of kept slots (plan_loop.py)."""

from numba import njit

from headway.kernels.cpu import plan_layout as at
from headway.kernels.cpu import plan_words as w
from headway.kernels.cpu.intervals_loop import EMPTY, FULL, HOPELESS, evaluate
from headway.kernels.cpu.machine import get, get32, get_f64, put, put32, put_f64

TILE_BYTES = 64  # row, first token, tokens, first range, ranges, kept, cost (float64), head


@njit(nogil=True)
def array(buffer, name):
    return buffer + 4 * get32(buffer + 4 * (at.OFFSETS + name))


@njit(nogil=True)
def over(p, which, needed):
    """Report that a capacity does not hold; `which` indexes plan_words.CAPACITIES."""
    put(p + 8 * w.W_WHICH, which + 1)
    put(p + 8 * w.W_NEEDED, needed)
    return 1


@njit(nogil=True)
def copy32(source, target, n):
    for i in range(n):
        put32(target + 4 * i, get32(source + 4 * i))


@njit(nogil=True)
def copy_tables(p, buffer):
    """Rows, pages and query tokens into the plan. Returns 0, 1 after `over`, 3: the query bounds fall or do not start at 0."""
    rows, page_tokens, requests = get(p + 8 * w.W_ROWS), get(p + 8 * w.W_PAGE_TOKENS), get(p + 8 * w.W_REQUESTS)
    qo, row_page, sequence = get(p + 8 * w.W_QO_INDPTR), get(p + 8 * w.W_ROW_PAGE), get(p + 8 * w.W_SEQUENCE)
    before = get32(qo)
    for i in range(1, requests + 1):
        if get32(qo + 4 * i) < before or get32(qo) != 0:
            return 3
        before = get32(qo + 4 * i)
    tokens, pages = get32(qo + 4 * requests), get32(row_page + 4 * rows)
    if rows > get(p + 8 * w.W_CAP_ROWS):
        return over(p, 0, rows)
    if tokens > get(p + 8 * w.W_CAP_TOKENS):
        return over(p, 1, tokens)
    if pages > get(p + 8 * w.W_CAP_PAGES):
        return over(p, 2, pages)
    copy32(row_page, array(buffer, at.A_ROW_PAGE), rows + 1)
    copy32(get(p + 8 * w.W_ROW_KV), array(buffer, at.A_ROW_KV_TOKENS), rows)
    source, target = get(p + 8 * w.W_PAGE), array(buffer, at.A_PAGE)
    given, position = get(p + 8 * w.W_POSITION), array(buffer, at.A_PAGE_POSITION)
    top = -1
    for i in range(pages):
        page = get32(source + 4 * i)
        put32(target + 4 * i, page)
        top = max(top, page)
    if given != 0:
        copy32(given, position, pages)
    else:
        for r in range(rows):
            first = get32(row_page + 4 * r)
            for i in range(first, get32(row_page + 4 * r + 4)):
                put32(position + 4 * i, (i - first) * page_tokens)
    q, b, row = array(buffer, at.A_TOKEN_POSITION), array(buffer, at.A_TOKEN_REQUEST), array(buffer, at.A_TOKEN_ROW)
    for request in range(requests):
        first, end = get32(qo + 4 * request), get32(qo + 4 * request + 4)
        start = get32(sequence + 4 * request) - (end - first)
        for t in range(first, end):
            put32(q + 4 * t, start + t - first)
            put32(b + 4 * t, request)
            put32(row + 4 * t, t - first)
    put32(buffer + 4 * at.H_ROWS, rows)
    put32(buffer + 4 * at.H_TOKENS, tokens)
    put32(buffer + 4 * at.H_PAGES, pages)
    put32(buffer + 4 * at.H_MAX_PAGE, top)
    return 0


@njit(nogil=True)
def position_of(buffer, row, slot, page_tokens):
    page = get32(array(buffer, at.A_ROW_PAGE) + 4 * row) + slot // page_tokens
    return get32(array(buffer, at.A_PAGE_POSITION) + 4 * page) + slot % page_tokens


@njit(nogil=True)
def add_range(ranges, n, first, start, end, kind):
    """Append slots [start, end) to the ranges from `first`, joining them to an adjacent range of the same kind. Returns the new count."""
    if n > first:
        last = ranges + 16 * (n - 1)
        if get32(last + 4) == start and get32(last + 8) == kind:
            put32(last + 4, end)
            return n
    put32(ranges + 16 * n, start)
    put32(ranges + 16 * n + 4, end)
    put32(ranges + 16 * n + 8, kind)
    return n + 1


@njit(nogil=True)
def tile_ranges(p, buffer, row, token, tokens, head, ranges, n, room, registers, inputs, stack):
    """Kept slots of one query tile as ranges, ascending, by halving what is partly visible. Returns the new count, -1 when out of room."""
    kv = get32(array(buffer, at.A_ROW_KV_TOKENS) + 4 * row)
    first = n
    if kv == 0:
        return n
    if get(p + 8 * w.W_CODE_LENGTH) == 0:
        return add_range(ranges, n, first, 0, kv, at.FULL) if n < room else -1
    page_tokens, group, heads = get(p + 8 * w.W_PAGE_TOKENS), get(p + 8 * w.W_GROUP), get(p + 8 * w.W_KV_HEADS)
    arrays = (array(buffer, at.A_TOKEN_POSITION), array(buffer, at.A_TOKEN_REQUEST), array(buffer, at.A_TOKEN_ROW))
    for i in range(3):
        low = high = get32(arrays[i] + 4 * token)
        for t in range(token + 1, token + tokens):
            x = get32(arrays[i] + 4 * t)
            low, high = min(low, x), max(high, x)
        where = inputs + 16 * (0 if i == 0 else (2 if i == 1 else 5))
        put_f64(where, float(low))
        put_f64(where + 8, float(high))
    put_f64(inputs + 48, float(max(head, 0) * group))
    put_f64(inputs + 56, float((head + 1) * group - 1 if head >= 0 else heads * group - 1))
    put_f64(inputs + 64, float(max(head, 0)))
    put_f64(inputs + 72, float(head if head >= 0 else heads - 1))
    put32(stack, 0)
    put32(stack + 4, kv)
    depth = 1
    while depth > 0:
        depth -= 1
        start, end = get32(stack + 8 * depth), get32(stack + 8 * depth + 4)
        put_f64(inputs + 16, float(position_of(buffer, row, start, page_tokens)))
        put_f64(inputs + 24, float(position_of(buffer, row, end - 1, page_tokens)))
        kind = evaluate(p, registers, inputs)
        if kind == EMPTY:
            continue
        blocks = (end - start + at.SLOT_ALIGN - 1) // at.SLOT_ALIGN
        if blocks == 1 or kind in (FULL, HOPELESS):
            if n >= room:
                return -1
            n = add_range(ranges, n, first, start, end, at.FULL if kind == FULL else at.PARTIAL)
            continue
        middle = start + (blocks + 1) // 2 * at.SLOT_ALIGN
        put32(stack + 8 * depth, middle)
        put32(stack + 8 * depth + 4, end)
        put32(stack + 8 * depth + 8, start)
        put32(stack + 8 * depth + 12, middle)
        depth += 2
    return n


@njit(nogil=True)
def lay_tiles(p, buffer, tiles, ranges, registers, inputs, stack):
    """Query tiles with their ranges and costs. Returns the number of tiles, or -1 after `over`; the total cost goes to W_TOTAL_S."""
    heads, group, qo = get(p + 8 * w.W_KV_HEADS), get(p + 8 * w.W_GROUP), get(p + 8 * w.W_QO_INDPTR)
    token_s, pair_s = get_f64(p + 8 * w.W_TOKEN_S), get_f64(p + 8 * w.W_PAIR_S)
    room, tile_room = get(p + 8 * w.W_CAP_RANGES), get(p + 8 * w.W_CAP_ITEMS)
    n, n_ranges, total = 0, 0, 0.0
    for row in range(get(p + 8 * w.W_ROWS)):
        request = get32(get(p + 8 * w.W_ROW_REQUEST) + 4 * row)
        origin = get32(qo + 4 * request)
        available = get32(qo + 4 * (request + get32(get(p + 8 * w.W_ROW_REQUESTS) + 4 * row))) - origin
        start, count = get32(get(p + 8 * w.W_ROW_START) + 4 * row), get32(get(p + 8 * w.W_ROW_TOKENS) + 4 * row)
        count = available - start if count < 0 else min(count, available - start)
        head = get32(get(p + 8 * w.W_ROW_HEAD) + 4 * row)
        packed = get(p + 8 * w.W_SMALL_TILE) if count * group <= get(p + 8 * w.W_SMALL_TILE) else get(p + 8 * w.W_LARGE_TILE)
        step = max(1, packed // group)
        for t in range(0, count, step):
            tokens = min(step, count - t)
            if n >= tile_room:
                over(p, 3, n + 1)
                return -1
            end = tile_ranges(p, buffer, row, origin + start + t, tokens, head, ranges, n_ranges, room, registers, inputs, stack)
            if end < 0:
                over(p, 4, room + 1)
                return -1
            kept = 0
            for i in range(n_ranges, end):
                kept += get32(ranges + 16 * i + 4) - get32(ranges + 16 * i)
            cost = kept * (token_s + pair_s * (tokens * group))
            tile = tiles + TILE_BYTES * n
            put(tile, row)
            put(tile + 8, origin + start + t)
            put(tile + 16, tokens)
            put(tile + 24, n_ranges)
            put(tile + 32, end - n_ranges)
            put(tile + 40, kept)
            put_f64(tile + 48, cost)
            put(tile + 56, head)
            total += cost * (1 if head >= 0 else heads)
            n, n_ranges = n + 1, end
    put_f64(p + 8 * w.W_TOTAL_S, total)
    return n
