"""The planner of attention, compiled: table rows to query tiles, tiles to ranges of kept slots, ranges to items, items to workers.

FlashInfer's Algorithm 1 (arXiv 2501.01005) with the sort that its released code leaves out, costs in seconds from a law, and masks turned
into ranges by interval analysis. Reads the parameter block of plan_words.py, writes the plan of plan_layout.py; allocates nothing.
"""

from numba import njit

from headway.kernels.cpu import plan_layout as at
from headway.kernels.cpu import plan_words as w
from headway.kernels.cpu.machine import get, get32, get_f64, put, put32, put_f64
from headway.kernels.cpu.plan_tiles import TILE_BYTES, array, copy_tables, lay_tiles, over

PIECE_BYTES = 32  # cost (float64), first item, items, unused
STACK_BYTES = 8 * 64


@njit(nogil=True)
def piece_tokens(p, tile, target_s):
    """Kept tokens of one piece of a tile in balanced mode: a multiple of SLOT_ALIGN."""
    kept, cost, tokens = get(tile + 40), get_f64(tile + 48), get(tile + 16)
    if tokens * get(p + 8 * w.W_GROUP) <= get(p + 8 * w.W_SMALL_TILE):
        target_s = min(target_s, get_f64(p + 8 * w.W_CHUNK_S))
    if cost <= target_s * 1.25 or cost <= 0.0:
        return kept
    pieces = int(cost / target_s) + 1
    length = (kept + pieces - 1) // pieces
    return (length + at.SLOT_ALIGN - 1) // at.SLOT_ALIGN * at.SLOT_ALIGN


@njit(nogil=True)
def emit_piece(p, buffer, tile, first_range, end_range, tokens_kept, n_items, split, first, counts, pieces, n_pieces):
    """Items of one piece, one a head. `split`: they write partial rows. Returns the number of items, -1 after `over`."""
    n_ranges = end_range - first_range
    heads, group = get(p + 8 * w.W_KV_HEADS), get(p + 8 * w.W_GROUP)
    head, token, tokens = get(tile + 56), get(tile + 8), get(tile + 16)
    low, high = (head, head + 1) if head >= 0 else (0, heads)
    if n_items + high - low > get(p + 8 * w.W_CAP_ITEMS):
        over(p, 3, n_items + high - low)
        return -1
    starts, ends = array(buffer, at.A_RANGE_START), array(buffer, at.A_RANGE_END)
    start = get32(starts + 4 * first_range) if n_ranges > 0 else 0
    end = get32(ends + 4 * (first_range + n_ranges - 1)) if n_ranges > 0 else 0
    part_rows = get32(buffer + 4 * at.H_PART_ROWS)
    opening = first
    for h in range(low, high):
        i = 4 * n_items
        put32(array(buffer, at.A_ITEM_ROW) + i, get(tile))
        put32(array(buffer, at.A_ITEM_HEAD) + i, h)
        put32(array(buffer, at.A_ITEM_TOKEN) + i, token)
        put32(array(buffer, at.A_ITEM_TOKENS) + i, tokens)
        put32(array(buffer, at.A_ITEM_START) + i, start)
        put32(array(buffer, at.A_ITEM_END) + i, end)
        put32(array(buffer, at.A_ITEM_RANGE) + i, first_range)
        put32(array(buffer, at.A_ITEM_RANGES) + i, n_ranges)
        slot = -1
        if split:
            if part_rows + tokens > get(p + 8 * w.W_CAP_PART_ROWS):
                over(p, 6, part_rows + tokens)
                return -1
            slot = part_rows
            part_rows += tokens
            opening = get32(counts + 4 * (token * heads + h)) == 0
            for t in range(token, token + tokens):
                c = counts + 4 * (t * heads + h)
                put32(c, get32(c) + 1)
        put32(array(buffer, at.A_ITEM_SLOT) + i, slot)
        put32(array(buffer, at.A_ITEM_FLAGS) + i, at.FLAG_FIRST if opening else 0)
        n_items += 1
    put32(buffer + 4 * at.H_PART_ROWS, part_rows)
    rows = tokens * group
    cost = get_f64(p + 8 * w.W_ITEM_S) + tokens_kept * (get_f64(p + 8 * w.W_TOKEN_S) + get_f64(p + 8 * w.W_PAIR_S) * rows)
    put_f64(pieces + PIECE_BYTES * n_pieces, cost)
    put(pieces + PIECE_BYTES * n_pieces + 8, n_items - (high - low))
    put(pieces + PIECE_BYTES * n_pieces + 16, high - low)
    put(p + 8 * w.W_KV_TOKENS, get(p + 8 * w.W_KV_TOKENS) + tokens_kept * (high - low))
    put(p + 8 * w.W_PAIRS, get(p + 8 * w.W_PAIRS) + tokens_kept * (high - low) * rows)
    return n_items


@njit(nogil=True)
def cut(p, buffer, tiles, n_tiles, ranges, counts, pieces):
    """Cut every tile into pieces and write their items and ranges. Returns the number of pieces, -1 after `over`."""
    workers, mode = get(p + 8 * w.W_WORKERS), get(p + 8 * w.W_SPLIT)
    overlapping = get(p + 8 * w.W_OVERLAPPING) != 0
    # part of a worker's share: with items as long as the whole share, two on one worker would double the makespan
    target_s = get_f64(p + 8 * w.W_TOTAL_S) / (get_f64(p + 8 * w.W_SHARES) * workers) if workers > 1 else 1e30
    starts, ends, kinds = array(buffer, at.A_RANGE_START), array(buffer, at.A_RANGE_END), array(buffer, at.A_RANGE_KIND)
    room = get(p + 8 * w.W_CAP_RANGES)
    n_items, n_ranges, n_pieces = 0, 0, 0
    for t in range(n_tiles):
        tile = tiles + TILE_BYTES * t
        kept, first, count = get(tile + 40), get(tile + 24), get(tile + 32)
        length = kept
        split = overlapping
        if mode == 0 and kept > 0:
            length = piece_tokens(p, tile, target_s)
            split = split or length < kept
        elif mode > 0 and kept > 0:
            split = split or get32(ranges + 16 * first) // mode != (get32(ranges + 16 * (first + count - 1) + 4) - 1) // mode
        begin, mine, number = n_ranges, 0, 0
        for r in range(first, first + count):
            start, end, kind = get32(ranges + 16 * r), get32(ranges + 16 * r + 4), get32(ranges + 16 * r + 8)
            while start < end:
                stop = end
                if mode > 0:
                    stop = min(end, (start // mode + 1) * mode)
                    full = mine > 0 and get32(starts + 4 * begin) // mode != start // mode
                else:
                    full = mode == 0 and mine >= length
                if full:
                    n_items = emit_piece(p, buffer, tile, begin, n_ranges, mine, n_items, split, number == 0, counts, pieces, n_pieces)
                    if n_items < 0:
                        return -1
                    begin, mine, number, n_pieces = n_ranges, 0, number + 1, n_pieces + 1
                if mode == 0:
                    # whole blocks from the row's start, so that the item kernel's blocks are the same wherever the cut falls
                    wanted = max(length - mine, at.SLOT_ALIGN)
                    stop = min(end, (start + wanted) // at.SLOT_ALIGN * at.SLOT_ALIGN)
                if n_ranges >= room:
                    over(p, 4, n_ranges + 1)
                    return -1
                put32(starts + 4 * n_ranges, start)
                put32(ends + 4 * n_ranges, stop)
                put32(kinds + 4 * n_ranges, kind)
                n_ranges += 1
                mine += stop - start
                start = stop
        n_items = emit_piece(p, buffer, tile, begin, n_ranges, mine, n_items, split, number == 0, counts, pieces, n_pieces)
        if n_items < 0:
            return -1
        n_pieces += 1
    put32(buffer + 4 * at.H_ITEMS, n_items)
    put32(buffer + 4 * at.H_RANGES, n_ranges)
    return n_pieces


@njit(nogil=True)
def lay_merges(p, buffer, counts):
    """Which partial rows make each (query token, kv head), in item order, which is ascending kv order. Returns 0, or 1 after `over`."""
    heads, tokens = get(p + 8 * w.W_KV_HEADS), get32(buffer + 4 * at.H_TOKENS)
    token_of, head_of = array(buffer, at.A_MERGE_TOKEN), array(buffer, at.A_MERGE_HEAD)
    indptr, parts = array(buffer, at.A_MERGE_INDPTR), array(buffer, at.A_MERGE_PART)
    n, end = 0, 0
    put32(indptr, 0)
    for i in range(tokens * heads):
        c = get32(counts + 4 * i)
        if c > 0:
            if n >= get(p + 8 * w.W_CAP_MERGES):
                return over(p, 5, n + 1)
            put32(token_of + 4 * n, i // heads)
            put32(head_of + 4 * n, i % heads)
            put32(counts + 4 * i, end)  # where its next part goes
            end += c
            n += 1
            put32(indptr + 4 * n, end)
    for i in range(get32(buffer + 4 * at.H_ITEMS)):
        slot = get32(array(buffer, at.A_ITEM_SLOT) + 4 * i)
        if slot >= 0:
            token, head = get32(array(buffer, at.A_ITEM_TOKEN) + 4 * i), get32(array(buffer, at.A_ITEM_HEAD) + 4 * i)
            for t in range(get32(array(buffer, at.A_ITEM_TOKENS) + 4 * i)):
                c = counts + 4 * ((token + t) * heads + head)
                put32(parts + 4 * get32(c), slot + t)
                put32(c, get32(c) + 1)
    put32(buffer + 4 * at.H_MERGES, n)
    put32(buffer + 4 * at.H_MERGE_PARTS, end)
    return 0


@njit(nogil=True)
def sort(pieces, n, numbers, spare):
    """Piece numbers by cost descending, then in the order they were made: merge sort. Returns the address that holds them."""
    for i in range(n):
        put32(numbers + 4 * i, i)
    width = 1
    while width < n:
        for start in range(0, n, 2 * width):
            i, middle = start, min(start + width, n)
            j, end = middle, min(start + 2 * width, n)
            for out in range(start, end):
                left = i < middle
                if left and j < end:
                    a, b = get32(numbers + 4 * i), get32(numbers + 4 * j)
                    left = get_f64(pieces + PIECE_BYTES * a) >= get_f64(pieces + PIECE_BYTES * b)
                put32(spare + 4 * out, get32(numbers + 4 * (i if left else j)))
                if left:
                    i += 1
                else:
                    j += 1
        numbers, spare = spare, numbers
        width *= 2
    return numbers


@njit(nogil=True)
def assign(p, buffer, pieces, n_pieces, numbers, heap):
    """Longest items first to the least loaded worker (binary heap of [load, worker]); returns the makespan in seconds."""
    workers = get(p + 8 * w.W_WORKERS)
    order, of = array(buffer, at.A_ORDER), array(buffer, at.A_ITEM_WORKER)
    for i in range(workers):
        put_f64(heap + 16 * i, 0.0)
        put(heap + 16 * i + 8, i)
    n, longest = 0, 0.0
    for i in range(n_pieces):
        piece = pieces + PIECE_BYTES * get32(numbers + 4 * i)
        cost, first = get_f64(piece), get(piece + 8)
        for item in range(first, first + get(piece + 16)):
            put32(order + 4 * n, item)
            n += 1
            worker, load = get(heap + 8), get_f64(heap) + cost
            put32(of + 4 * item, worker)
            longest = max(longest, load)
            hole = 0
            while True:
                child = 2 * hole + 1
                if child >= workers:
                    break
                if child + 1 < workers:
                    a, b = get_f64(heap + 16 * child), get_f64(heap + 16 * child + 16)
                    if b < a or (b == a and get(heap + 16 * child + 24) < get(heap + 16 * child + 8)):
                        child += 1
                other = get_f64(heap + 16 * child)
                if other > load or (other == load and get(heap + 16 * child + 8) > worker):
                    break
                put_f64(heap + 16 * hole, other)
                put(heap + 16 * hole + 8, get(heap + 16 * child + 8))
                hole = child
            put_f64(heap + 16 * hole, load)
            put(heap + 16 * hole + 8, worker)
    return longest


@njit(nogil=True)
def scratch_layout(p):
    """Byte offsets of tiles, ranges, counts, pieces, sort (twice), heap, registers, inputs, stack and the end, from the capacities."""
    items, ranges = get(p + 8 * w.W_CAP_ITEMS), get(p + 8 * w.W_CAP_RANGES)
    counts = get(p + 8 * w.W_CAP_TOKENS) * get(p + 8 * w.W_KV_HEADS)
    a = items * TILE_BYTES
    b = a + ranges * 16
    c = b + (counts * 4 + 63) // 64 * 64
    d = c + items * PIECE_BYTES
    e = d + (items * 4 + 63) // 64 * 64
    f = e + (items * 4 + 63) // 64 * 64
    g = f + get(p + 8 * w.W_WORKERS) * 16
    h = g + w.MAX_CODE * 24
    i = h + 16 * 8
    return a, b, c, d, e, f, g, h, i, i + STACK_BYTES


def plan(p):
    """One plan from the parameter block at `p`. 0; 1: a capacity does not hold (W_WHICH, W_NEEDED); 2: scratch too small; 3."""
    buffer, base = get(p + 8 * w.W_BUFFER), get(p + 8 * w.W_SCRATCH)
    a, b, c, d, e, f, g, h, i, end = scratch_layout(p)
    if end > get(p + 8 * w.W_SCRATCH_BYTES):
        put(p + 8 * w.W_NEEDED, end)
        return 2
    put(p + 8 * w.W_WHICH, 0)
    put(p + 8 * w.W_KV_TOKENS, 0)
    put(p + 8 * w.W_PAIRS, 0)
    put32(buffer + 4 * at.H_GENERATION, get32(buffer + 4 * at.H_GENERATION) + 1)
    for header in range(at.H_ITEMS, at.H_CURSOR + 1):
        put32(buffer + 4 * header, 0)
    put32(buffer + 4 * at.H_PAGE_TOKENS, get(p + 8 * w.W_PAGE_TOKENS))
    put32(buffer + 4 * at.H_KV_HEADS, get(p + 8 * w.W_KV_HEADS))
    put32(buffer + 4 * at.H_GROUP, get(p + 8 * w.W_GROUP))
    put32(buffer + 4 * at.H_WORKERS, get(p + 8 * w.W_WORKERS))
    put32(buffer + 4 * at.H_SPLIT_TOKENS, get(p + 8 * w.W_SPLIT))
    status = copy_tables(p, buffer)
    if status != 0:
        return status
    tiles, ranges, counts, pieces = base, base + a, base + b, base + c
    n_tiles = lay_tiles(p, buffer, tiles, ranges, base + g, base + h, base + i)
    if n_tiles < 0:
        return 1
    for t in range(get32(buffer + 4 * at.H_TOKENS) * get(p + 8 * w.W_KV_HEADS)):
        put32(counts + 4 * t, 0)
    n_pieces = cut(p, buffer, tiles, n_tiles, ranges, counts, pieces)
    if n_pieces < 0:
        return 1
    if get32(buffer + 4 * at.H_PART_ROWS) > 0 and lay_merges(p, buffer, counts) != 0:
        return 1
    numbers = sort(pieces, n_pieces, base + d, base + e)
    longest = assign(p, buffer, pieces, n_pieces, numbers, base + f)
    merging = get32(buffer + 4 * at.H_MERGE_PARTS) * get_f64(p + 8 * w.W_MERGE_S) / get(p + 8 * w.W_WORKERS)
    put_f64(p + 8 * w.W_PREDICTED_S, longest + merging)
    return 0
