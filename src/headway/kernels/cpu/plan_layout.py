"""The int32 buffer of an attention plan: one header, then arrays at offsets fixed by its capacity. Shared by planner, loops and Python.

A compiled reader takes the buffer's address and finds array A at `4 * header[OFFSETS + A]` bytes. Names and meaning: attention/plan.py.
"""

# ---- header words
(
    H_MAGIC,
    H_GENERATION,  # counts plans written into this buffer: an older Plan over it is stale
    H_ITEMS,
    H_RANGES,
    H_MERGES,
    H_MERGE_PARTS,
    H_PART_ROWS,  # partial rows in use; a partial row is one query token of one kv head: `group` packed rows
    H_ROWS,  # table rows
    H_TOKENS,  # query tokens
    H_PAGES,
    H_PAGE_TOKENS,
    H_KV_HEADS,
    H_GROUP,
    H_WORKERS,
    H_MAX_PAGE,  # largest page number named, -1 when none: checked against the pool at run
    H_SPLIT_TOKENS,  # 0 balanced, -1 no split, n: cut at multiples of n
    H_CURSOR,  # free for the executor: the atomic cursor over `order`
) = range(17)
OFFSETS = 32
HEADER_WORDS = 96  # a multiple of 16, so that arrays start on cache lines
MAGIC = 0x4850_4C31

# ---- arrays, in buffer order
ARRAYS = (
    # items: one (table row, kv head, query tokens, kept slots) each
    "item_row",  # table row
    "item_head",  # kv head
    "item_token",  # first query token (row of q)
    "item_tokens",  # number of query tokens, >= 1
    "item_start",  # first kept slot, a multiple of 16
    "item_end",  # end of kept slots
    "item_slot",  # first partial row, or -1: the item writes its output directly
    "item_worker",  # advisory on a CPU
    "item_range",  # first of its ranges
    "item_ranges",  # how many; 0 = nothing is kept: the state is empty
    "item_flags",  # bit 0: holds the first kept slots of its query tokens (where a sink counts)
    "order",  # items in the order to take them: cost descending
    # ranges of slots, ascending inside an item and shared by the heads; starts are multiples of 16, ends too or the row's kv_len
    "range_start",
    "range_end",
    "range_kind",  # FULL: every (query token, slot) is visible; PARTIAL: evaluate the mask
    # merges: one (query token, kv head) whose keys were split; parts in ascending kv order
    "merge_token",
    "merge_head",
    "merge_indptr",  # merges + 1
    "merge_part",  # partial rows
    # the block table: slot i of table row r is token i % page_tokens of page[row_page[r] + i // page_tokens]
    "row_page",  # rows + 1
    "row_kv_tokens",  # kept slots of a row
    "page",  # page number in the pool
    "page_position",  # position of the page's first token in the sequence
    # query tokens
    "token_position",  # q: absolute position
    "token_request",  # b
    "token_row",  # row: index among its request's query tokens
)
INDEX = {name: i for i, name in enumerate(ARRAYS)}
(
    A_ITEM_ROW,
    A_ITEM_HEAD,
    A_ITEM_TOKEN,
    A_ITEM_TOKENS,
    A_ITEM_START,
    A_ITEM_END,
    A_ITEM_SLOT,
    A_ITEM_WORKER,
    A_ITEM_RANGE,
    A_ITEM_RANGES,
    A_ITEM_FLAGS,
    A_ORDER,
    A_RANGE_START,
    A_RANGE_END,
    A_RANGE_KIND,
    A_MERGE_TOKEN,
    A_MERGE_HEAD,
    A_MERGE_INDPTR,
    A_MERGE_PART,
    A_ROW_PAGE,
    A_ROW_KV_TOKENS,
    A_PAGE,
    A_PAGE_POSITION,
    A_TOKEN_POSITION,
    A_TOKEN_REQUEST,
    A_TOKEN_ROW,
) = range(26)

PARTIAL, FULL = 1, 2
FLAG_FIRST = 1
SLOT_ALIGN = 16  # ranges and cuts lie on multiples of this many slots: one block of the item kernel
