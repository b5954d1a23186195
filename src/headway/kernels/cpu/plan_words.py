"""Words of the planner's parameter block (int64, some read as float64) and the operations of its interval code. No numba here."""

(
    W_BUFFER,
    W_QO_INDPTR,
    W_ROW_PAGE,
    W_PAGE,
    W_POSITION,  # 0: implied
    W_ROW_KV,
    W_ROW_REQUEST,
    W_ROW_REQUESTS,
    W_ROW_START,
    W_ROW_TOKENS,
    W_ROW_HEAD,
    W_SEQUENCE,
    W_REQUESTS,
    W_ROWS,
    W_PAGE_TOKENS,
    W_OVERLAPPING,
    W_KV_HEADS,
    W_GROUP,
    W_WORKERS,
    W_SPLIT,  # 0 balanced, -1 none, n > 0
    W_SMALL_TILE,  # packed rows
    W_LARGE_TILE,
    W_CODE,  # interval code, CODE_WORDS int64 an instruction; 0 instructions: everything is visible
    W_CODE_LENGTH,
    W_VALUES,  # float64 pairs [low, high] of constants, one an instruction
    W_BUFFERS,  # captured buffers, TABLE_WORDS each
    W_SCRATCH,
    W_SCRATCH_BYTES,
    W_CAP_ROWS,
    W_CAP_TOKENS,
    W_CAP_PAGES,
    W_CAP_ITEMS,
    W_CAP_RANGES,
    W_CAP_MERGES,
    W_CAP_PART_ROWS,
    # float64 seconds
    W_ITEM_S,
    W_TOKEN_S,  # a kept token of one kv head
    W_PAIR_S,  # a packed row times a kept token
    W_MERGE_S,  # a partial row
    W_CHUNK_S,  # longest item of few rows in balanced mode
    W_SHARES,  # items that make a worker's share in balanced mode
    # results
    W_WHICH,  # 0 fine, else 1 + index in CAPACITIES that overflowed
    W_NEEDED,
    W_PREDICTED_S,
    W_TOTAL_S,
    W_KV_TOKENS,  # kept tokens over items
    W_PAIRS,  # packed rows times kept tokens over items
) = range(47)
PARAMETER_WORDS = 64
CAPACITIES = ("rows", "tokens", "pages", "items", "ranges", "merges", "partial_rows")

# ---- interval code: [operation, a, b, c] of registers; the result is the instruction's own register
CODE_WORDS = 5  # the fifth: 1 float32 arithmetic (results are widened), 2 int32 (results outside wrap), 0 bool
OPERATIONS = (
    "input", "value", "load1", "load2", "add", "sub", "mul", "div", "floordiv", "mod", "min", "max", "abs",
    "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "where", "copy", "trunc", "unknown",
)  # fmt: skip
OPERATION = {name: i for i, name in enumerate(OPERATIONS)}
INPUT_NAMES = ("q", "kv", "b", "h", "kv_head", "row")
TABLE_WORDS = 6  # address of float64 [blocks, 2] minima and maxima, axis sizes 0 and 1, elements a block, known (0/1)
BUFFER_BLOCK = 64
MAX_CODE = 512
