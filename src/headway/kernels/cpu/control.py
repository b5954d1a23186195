"""The compiled loop of a step program: operations are data, threads take chunks from cursors, nobody waits for a thread without work.

Three entries: `run` (the caller: lays out the iteration, publishes the epoch, works as thread 0), `worker` (one call for the life of a
helper thread) and `execute` (all operations of one iteration). A thread that comes late finds another epoch in the cursor and leaves; what
it may still write goes to its own scratch only. Every address is an int64; nothing here allocates or raises.
"""

from numba import njit

from headway.kernels.cpu import layout as at
from headway.kernels.cpu.machine import (
    add,
    call2,
    call3,
    call5,
    call6,
    call_execute,
    cycles,
    get,
    get8,
    get32,
    get_bf16,
    get_f16,
    get_f32,
    load,
    put,
    put32,
    put_f32,
    store,
)
from headway.kernels.cpu.waiting import await_epoch, finish, has_work, take, wake

_OP_BYTES = at.OP_WORDS * 8
_ITEM_BYTES = at.ITEM_WORDS * 4


@njit(nogil=True)
def embed_row(op, token, out):
    """One row of the packed embedding matrix as float32 (layouts: products.py)."""
    kind, width, lane = get(op + 8 * at.E_KIND), get(op + 8 * at.E_WIDTH), token & 15
    strip = get(op + 8 * at.E_TABLE) + (token >> 4) * get(op + 8 * at.E_STRIP_BYTES)
    if kind == 0:
        for i in range(width):
            put_f32(out + 4 * i, get_f32(strip + 64 * i + 4 * lane))
    elif kind == 1:
        for i in range(width):
            put_f32(out + 4 * i, get_f16(strip + 32 * i + 2 * lane))
    elif kind == 2:
        for i in range(width):
            put_f32(out + 4 * i, get_bf16(strip + 32 * i + 2 * lane))
    elif kind == 3:
        for block in range(width // 32):
            block_at = strip + 544 * block
            d = get_f16(block_at + 2 * lane)
            for i in range(32):
                put_f32(out + 128 * block + 4 * i, d * (get8(block_at + 32 + 64 * (i >> 2) + 4 * lane + (i & 3)) - 128))
    else:
        for block in range(width // 32):
            block_at = strip + 320 * block
            d, m = get_f16(block_at + 2 * lane), get_f16(block_at + 32 + 2 * lane)
            for i in range(16):
                q = get8(block_at + 64 + 64 * (i >> 2) + 4 * lane + (i & 3))
                put_f32(out + 128 * block + 4 * i, d * (q & 15) + m)
                put_f32(out + 128 * block + 64 + 4 * i, d * (q >> 4) + m)


@njit(nogil=True)
def embed(p, op, control, epoch, thread):
    mine, rows = 0, get(p + 8 * at.P_ROWS)
    width, out, ids = get(op + 8 * at.E_WIDTH), get(op + 8 * at.E_OUT), get(p + 8 * at.P_TOKEN_IDS)
    while True:
        c = take(control, epoch, thread)
        if c < 0:
            return mine
        for r in range(c * at.ROW_CHUNK, min(rows, c * at.ROW_CHUNK + at.ROW_CHUNK)):
            embed_row(op, get32(ids + 4 * r), out + 4 * width * r)
        mine += 1


@njit(nogil=True)
def rows_of(p, op):
    """(rows, rows of class generated) that a prepare operation covers; sampled rows are always of class generated."""
    if get(op + 8 * at.R_SAMPLED_ONLY) != 0:
        return get(p + 8 * at.P_SAMPLED), get(p + 8 * at.P_SAMPLED)
    rows = get(p + 8 * at.P_ROWS)
    if get(op + 8 * at.R_PROMPT) == 0:
        return rows, rows
    return rows, get(p + 8 * at.P_GENERATED_ROWS)


@njit(nogil=True)
def prepare_row(p, op, row, generated, out, prompt_out):
    source = row
    if get(op + 8 * at.R_SAMPLED_ONLY) != 0:
        source = get32(get(p + 8 * at.P_SAMPLED_ROWS) + 4 * row)
    x = get(op + 8 * at.R_SOURCE) + source * get(op + 8 * at.R_SOURCE_BYTES)
    if row < generated:
        call3(get(op + 8 * at.R_GENERATED), x, get(op + 8 * at.R_NORM), out + row * get(op + 8 * at.R_GENERATED_BYTES))
    else:
        call3(get(op + 8 * at.R_PROMPT), x, get(op + 8 * at.R_NORM), prompt_out + (row - generated) * get(op + 8 * at.R_PROMPT_BYTES))


@njit(nogil=True)
def prepare(p, op, control, epoch, thread):
    mine = 0
    rows, generated = rows_of(p, op)
    out, prompt_out = get(op + 8 * at.R_GENERATED_OUT), get(op + 8 * at.R_PROMPT_OUT)
    while True:
        c = take(control, epoch, thread)
        if c < 0:
            return mine
        for r in range(c * at.ROW_CHUNK, min(rows, c * at.ROW_CHUNK + at.ROW_CHUNK)):
            prepare_row(p, op, r, generated, out, prompt_out)
        mine += 1


@njit(nogil=True)
def tiles(kernels, first, end, weights, x, x_bytes, out, out_bytes, ahead):
    """Rows [first, end) of one unit, in the largest tiles there are."""
    r = first
    t = 0
    while r < end:
        n = get(kernels + 16 * t)
        if r + n > end:
            t += 1
            continue
        call5(get(kernels + 16 * t + 8), weights, x + r * x_bytes, out + r * out_bytes, out_bytes, ahead)
        r += n


@njit(nogil=True)
def product(p, op, control, epoch, thread):
    mine = 0
    source = get(p + 8 * at.P_OPS) + get(op + 8 * at.M_PREPARE) * _OP_BYTES
    rows, generated = rows_of(p, source)
    x, x_prompt = get(source + 8 * at.R_GENERATED_OUT), get(source + 8 * at.R_PROMPT_OUT)
    if rows <= get(p + 8 * at.P_FUSED_ROWS) and has_work(control, epoch):
        # few rows: every thread prepares them for itself, which is cheaper than one more barrier
        x = get(p + 8 * at.P_SCRATCH) + thread * get(p + 8 * at.P_SCRATCH_BYTES) + get(p + 8 * at.P_PREPARE_OFFSET)
        x_prompt = x + generated * get(source + 8 * at.R_GENERATED_BYTES)
        for r in range(rows):
            prepare_row(p, source, r, generated, x, x_prompt)
    unit_bytes, units, per_chunk = get(op + 8 * at.M_UNIT_BYTES), get(op + 8 * at.M_UNITS), get(op + 8 * at.M_CHUNK_UNITS)
    weights, out, out_bytes, out_unit = (
        get(op + 8 * at.M_WEIGHTS),
        get(op + 8 * at.M_OUT),
        get(op + 8 * at.M_OUT_BYTES),
        get(op + 8 * at.M_OUT_UNIT_BYTES),
    )
    x_bytes, prompt_bytes = get(source + 8 * at.R_GENERATED_BYTES), get(source + 8 * at.R_PROMPT_BYTES)
    groups = (units + per_chunk - 1) // per_chunk
    following = get(op + 8 * at.M_NEXT_BACK) if thread & 1 else get(op + 8 * at.M_NEXT)
    while True:
        c = take(control, epoch, thread)
        if c < 0:
            return mine
        group = c % groups
        first = (c // groups) * at.PRODUCT_ROWS
        end = min(rows, first + at.PRODUCT_ROWS)
        last = min(units, (group + 1) * per_chunk)
        for u in range(group * per_chunk, last):
            w = weights + u * unit_bytes
            ahead = w + unit_bytes
            if u + 1 == last:
                if not has_work(control, epoch):
                    ahead = following
                elif thread & 1:
                    ahead = max(weights, weights + (group - 1) * per_chunk * unit_bytes)
            o = out + u * out_unit
            if first < generated:
                tiles(op + 8 * at.M_GENERATED, first, min(end, generated), w, x, x_bytes, o, out_bytes, ahead)
            if end > generated:
                skip = generated * out_bytes
                tiles(
                    op + 8 * at.M_PROMPT,
                    max(first, generated) - generated,
                    end - generated,
                    w,
                    x_prompt,
                    prompt_bytes,
                    o + skip,
                    out_bytes,
                    ahead,
                )
        mine += 1


@njit(nogil=True)
def page_address(p, table, index, pool, page_bytes):
    """Address of a sequence's index-th 16-token page in one head's part of the pool."""
    per_entry = get(p + 8 * at.P_PAGES_PER_ENTRY)
    entry = get32(table + 4 * (index // per_entry))
    return pool + (entry * per_entry + index % per_entry) * page_bytes


@njit(nogil=True)
def rotate(p, op, control, epoch, thread):
    mine, rows = 0, get(p + 8 * at.P_ROWS)
    qkv, row_bytes, heads = get(op + 8 * at.Q_QKV), get(op + 8 * at.Q_ROW_BYTES), get(op + 8 * at.Q_KV_HEADS)
    head_bytes, page_bytes = get(op + 8 * at.Q_HEAD_BYTES), get(op + 8 * at.Q_PAGE_BYTES)
    positions, segments = get(p + 8 * at.P_POSITIONS), get(p + 8 * at.P_ROW_SEGMENT)
    while True:
        c = take(control, epoch, thread)
        if c < 0:
            return mine
        for r in range(c * at.ROW_CHUNK, min(rows, c * at.ROW_CHUNK + at.ROW_CHUNK)):
            position = get32(positions + 4 * r)
            segment = get32(segments + 4 * r)
            table = get(p + 8 * at.P_TABLES) + get32(get(p + 8 * at.P_SEGMENT_TABLE) + 4 * segment) * get(p + 8 * at.P_TABLE_BYTES)
            source = qkv + r * row_bytes
            angles = get(op + 8 * at.Q_ANGLES) + position * get(op + 8 * at.Q_ANGLE_BYTES)
            call2(get(op + 8 * at.Q_ROTATE), source, angles)
            page = page_address(p, table, position // at.PAGE_TOKENS, get(op + 8 * at.Q_POOL), page_bytes)
            for h in range(heads):
                key = source + get(op + 8 * at.Q_KEYS) + h * head_bytes
                value = source + get(op + 8 * at.Q_VALUES) + h * head_bytes
                call5(
                    get(op + 8 * at.Q_APPEND), key, value, angles, page + h * get(op + 8 * at.Q_HEAD_POOL_BYTES), position % at.PAGE_TOKENS
                )
        mine += 1


@njit(nogil=True)
def attend_split(p, op, queries, table, pool, first_position, tokens, split, states, scratch, addresses):
    """One split for `tokens` consecutive query tokens of one kv head: states must be empty."""
    page_bytes, state_bytes, group = get(op + 8 * at.A_PAGE_BYTES), get(op + 8 * at.A_STATE_BYTES), get(op + 8 * at.A_GROUP_HEADS)
    row_bytes, head_bytes, many = get(op + 8 * at.A_ROW_BYTES), get(op + 8 * at.A_HEAD_BYTES), get(op + 8 * at.A_TOKENS)
    last = first_position + tokens - 1
    start = split * at.SPLIT_TOKENS
    while start < (split + 1) * at.SPLIT_TOKENS and start <= last:
        pages = min(at.BLOCK_TOKENS // at.PAGE_TOKENS, (last - start) // at.PAGE_TOKENS + 1)
        for i in range(pages):
            put(addresses + 8 * i, page_address(p, table, start // at.PAGE_TOKENS + i, pool, page_bytes))
        t = 0
        while t < tokens:
            n = many if t + many <= tokens else 1
            limit = first_position + t - start
            if limit + n > 0:
                seen = min(pages, (limit + n - 1) // at.PAGE_TOKENS + 1)
                heads_done = 0
                for g in range(get(op + 8 * at.A_HEAD_GROUPS)):
                    entry = op + 8 * (at.A_KERNELS + 3 * g)
                    heads = get(entry)
                    kernel = get(entry + 8) if n > 1 else get(entry + 16)
                    state = states + (t * group + heads_done) * state_bytes
                    call6(kernel, queries + t * row_bytes + heads_done * head_bytes, addresses, seen, state, limit, scratch)
                    heads_done += heads
            t += n
        start += at.BLOCK_TOKENS


@njit(nogil=True)
def attend(p, op, control, epoch, thread):
    mine, heads, group = 0, get(op + 8 * at.A_KV_HEADS), get(op + 8 * at.A_GROUP_HEADS)
    base = get(p + 8 * at.P_SCRATCH) + thread * get(p + 8 * at.P_SCRATCH_BYTES)
    addresses, scratch = base, base + 64
    states = base + get(p + 8 * at.P_STATES_OFFSET)
    state_bytes, head_bytes = get(op + 8 * at.A_STATE_BYTES), get(op + 8 * at.A_HEAD_BYTES)
    folded = states + at.TILE_TOKENS * group * state_bytes
    clear, fold, end_state = get(op + 8 * at.A_CLEAR), get(op + 8 * at.A_FOLD), get(op + 8 * at.A_FINISH)
    while True:
        c = take(control, epoch, thread)
        if c < 0:
            return mine
        item = get(p + 8 * at.P_ITEMS) + (c // heads) * _ITEM_BYTES
        h = c % heads
        segment, token, tokens = get32(item + 4 * at.I_SEGMENT), get32(item + 4 * at.I_TOKEN), get32(item + 4 * at.I_TOKENS)
        split, splits = get32(item + 4 * at.I_SPLIT), get32(item + 4 * at.I_SPLITS)
        partial, parts = get32(item + 4 * at.I_PARTIAL), get32(item + 4 * at.I_PARTS)
        row = get32(get(p + 8 * at.P_SEGMENT_FIRST) + 4 * segment) + token
        position = get32(get(p + 8 * at.P_POSITIONS) + 4 * row)
        table = get(p + 8 * at.P_TABLES) + get32(get(p + 8 * at.P_SEGMENT_TABLE) + 4 * segment) * get(p + 8 * at.P_TABLE_BYTES)
        queries = get(op + 8 * at.A_QUERIES) + row * get(op + 8 * at.A_ROW_BYTES) + h * group * head_bytes
        pool = get(op + 8 * at.A_POOL) + h * get(op + 8 * at.A_HEAD_POOL_BYTES)
        out = get(op + 8 * at.A_OUT) + row * get(op + 8 * at.A_OUT_BYTES) + h * group * head_bytes
        n = tokens * group
        if partial < 0:
            call2(clear, folded, n)
            for s in range(splits):
                call2(clear, states, n)
                attend_split(p, op, queries, table, pool, position, tokens, s, states, scratch, addresses)
                for r in range(n):
                    call2(fold, folded + r * state_bytes, states + r * state_bytes)
            for t in range(tokens):
                for g in range(group):
                    call2(end_state, folded + (t * group + g) * state_bytes, out + t * get(op + 8 * at.A_OUT_BYTES) + g * head_bytes)
        else:
            # one token, one split of several: whoever finishes the last one folds them all, in ascending order
            slots = get(op + 8 * at.A_PARTIALS) + (partial * heads + h * parts) * group * state_bytes
            mine_at = slots + split * group * state_bytes
            call2(clear, mine_at, group)
            attend_split(p, op, queries, table, pool, position, 1, split, mine_at, scratch, addresses)
            counter = get(p + 8 * at.P_COUNTERS) + (partial * heads + h * parts) * 8
            if add(counter, 1) + 1 == parts:
                store(counter, 0)
                for g in range(group):
                    call2(clear, folded, 1)
                    for s in range(parts):
                        call2(fold, folded, slots + (s * group + g) * state_bytes)
                    call2(end_state, folded, out + g * head_bytes)
        mine += 1


@njit(nogil=True)
def read(op, control, epoch, thread):
    """Plain loads over a range: the read limit of this machine, with the same threads and cursors as the model."""
    mine = 0
    while True:
        c = take(control, epoch, thread)
        if c < 0:
            return mine
        call2(get(op + 8 * at.L_KERNEL), get(op + 8 * at.L_ADDRESS) + c * get(op + 8 * at.L_BYTES), get(op + 8 * at.L_BYTES) // 512)
        mine += 1


@njit(nogil=True)
def call(op, control, epoch, thread):
    mine = 0
    while True:
        c = take(control, epoch, thread)
        if c < 0:
            return mine
        call3(get(op + 8 * at.C_KERNEL), get(op + 8 * at.C_ARGUMENT), c, thread)
        mine += 1


def execute(p, thread, epoch):
    """All operations of one iteration, as one of the team's threads."""
    team = get(p + 8 * at.P_TEAM)
    op, control = get(p + 8 * at.P_OPS), get(p + 8 * at.P_CONTROLS)
    profile = get(p + 8 * at.P_PROFILE)
    for _ in range(get(p + 8 * at.P_N_OPS)):
        code, total = get(op + 8 * at.OP_CODE), get(op + 8 * at.OP_CHUNKS)
        if total > 0:
            t0 = cycles()
            mine = 0
            if code == at.OP_PRODUCT:
                mine = product(p, op, control, epoch, thread)
            elif code == at.OP_PREPARE:
                mine = prepare(p, op, control, epoch, thread)
            elif code == at.OP_ROTATE:
                mine = rotate(p, op, control, epoch, thread)
            elif code == at.OP_ATTEND:
                mine = attend(p, op, control, epoch, thread)
            elif code == at.OP_EMBED:
                mine = embed(p, op, control, epoch, thread)
            elif code == at.OP_READ:
                mine = read(op, control, epoch, thread)
            elif code == at.OP_CALL:
                mine = call(op, control, epoch, thread)
            elif take(control, epoch, thread) >= 0:
                mine = 1
            t1 = cycles()
            finish(team, control, epoch, mine, total)
            if thread == 0:
                put(profile + 16 * code, get(profile + 16 * code) + t1 - t0)
                put(profile + 16 * code + 8, get(profile + 16 * code + 8) + cycles() - t1)
        op += _OP_BYTES
        control += at.CONTROL_BYTES


@njit(nogil=True)
def lay_out_items(p):
    """Attention items of this iteration: tiles of a prompt's rows, or one split each of a single row with a long context."""
    items, n, partials = get(p + 8 * at.P_ITEMS), 0, 0
    for s in range(get(p + 8 * at.P_SEGMENTS)):
        first, rows = get32(get(p + 8 * at.P_SEGMENT_FIRST) + 4 * s), get32(get(p + 8 * at.P_SEGMENT_ROWS) + 4 * s)
        for r in range(rows):
            put32(get(p + 8 * at.P_ROW_SEGMENT) + 4 * (first + r), s)
        position = get32(get(p + 8 * at.P_POSITIONS) + 4 * first)
        if rows == 1 and position >= at.SPLIT_TOKENS:
            parts = position // at.SPLIT_TOKENS + 1
            for k in range(parts):
                item = items + n * _ITEM_BYTES
                put32(item + 4 * at.I_SEGMENT, s)
                put32(item + 4 * at.I_TOKEN, 0)
                put32(item + 4 * at.I_TOKENS, 1)
                put32(item + 4 * at.I_SPLIT, k)
                put32(item + 4 * at.I_SPLITS, 1)
                put32(item + 4 * at.I_PARTIAL, partials)
                put32(item + 4 * at.I_PARTS, parts)
                n += 1
            partials += parts
        else:
            for t in range(0, rows, at.TILE_TOKENS):
                item = items + n * _ITEM_BYTES
                tokens = min(at.TILE_TOKENS, rows - t)
                put32(item + 4 * at.I_SEGMENT, s)
                put32(item + 4 * at.I_TOKEN, t)
                put32(item + 4 * at.I_TOKENS, tokens)
                put32(item + 4 * at.I_SPLIT, 0)
                put32(item + 4 * at.I_SPLITS, (position + t + tokens - 1) // at.SPLIT_TOKENS + 1)
                put32(item + 4 * at.I_PARTIAL, -1)
                put32(item + 4 * at.I_PARTS, 0)
                n += 1
    put(p + 8 * at.P_N_ITEMS, n)
    return n


@njit(nogil=True)
def chunks_of(p, op, items):
    code = get(op + 8 * at.OP_CODE)
    rows = get(p + 8 * at.P_ROWS)
    if code in (at.OP_EMBED, at.OP_ROTATE):
        return (rows + at.ROW_CHUNK - 1) // at.ROW_CHUNK
    if code == at.OP_PREPARE:
        n, _ = rows_of(p, op)
        return 0 if n <= get(p + 8 * at.P_FUSED_ROWS) else (n + at.ROW_CHUNK - 1) // at.ROW_CHUNK
    if code == at.OP_PRODUCT:
        n, _ = rows_of(p, get(p + 8 * at.P_OPS) + get(op + 8 * at.M_PREPARE) * _OP_BYTES)
        per_chunk = get(op + 8 * at.M_CHUNK_UNITS)
        return (get(op + 8 * at.M_UNITS) + per_chunk - 1) // per_chunk * ((n + at.PRODUCT_ROWS - 1) // at.PRODUCT_ROWS)
    if code == at.OP_ATTEND:
        return items * get(op + 8 * at.A_KV_HEADS)
    return get(op + 8 * at.OP_CHUNKS)


def run(team):
    """One iteration: returns 0, or the number of an operation that would need more chunks than a cursor can count."""
    p = get(team + at.TEAM_PROGRAM)
    epoch = load(team + at.TEAM_EPOCH) + 1
    items = lay_out_items(p)
    op, control = get(p + 8 * at.P_OPS), get(p + 8 * at.P_CONTROLS)
    for i in range(get(p + 8 * at.P_N_OPS)):
        n = chunks_of(p, op, items)
        if n > at.MAX_CHUNKS:
            return i + 1
        put(op + 8 * at.OP_CHUNKS, n)
        store(control, (epoch << 32) | (n << 16))
        store(control + 64, epoch << 32)
        op += _OP_BYTES
        control += at.CONTROL_BYTES
    put(p + 8 * at.P_TEAM, team)
    add(team + at.TEAM_EPOCH, 1)  # a fence too: the sleepers' count is read after it
    if get(team + at.TEAM_THREADS) > 1:
        wake(team)
    call_execute(get(team + at.TEAM_EXECUTE), p, 0, epoch)
    return 0


def worker(team, thread):
    seen = 0
    while load(team + at.TEAM_STOP) == 0:
        seen = await_epoch(team, seen)
        if load(team + at.TEAM_STOP) == 0:
            call_execute(get(team + at.TEAM_EXECUTE), get(team + at.TEAM_PROGRAM), thread, seen)
    return 0
