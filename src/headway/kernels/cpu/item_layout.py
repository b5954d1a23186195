"""Words of the blocks that attention kernels read: one run block a call, one frame a work item. int64 words, all addresses in bytes."""

BLOCK_TOKENS = 64  # keys of one softmax update, at absolute multiples of 64: masked, never shortened
PAGE_TOKENS = 16  # keys of a packed page

(
    RUN_Q,
    RUN_Q_TOKEN_BYTES,
    RUN_Q_HEAD_BYTES,
    RUN_OUT,
    RUN_OUT_TOKEN_BYTES,
    RUN_OUT_HEAD_BYTES,
    RUN_LSE,  # float32, 0: not wanted
    RUN_LSE_TOKEN_BYTES,
    RUN_LSE_HEAD_BYTES,
    RUN_K,
    RUN_K_PAGE_BYTES,
    RUN_K_HEAD_BYTES,
    RUN_K_SLOT_BYTES,
    RUN_V,
    RUN_V_PAGE_BYTES,
    RUN_V_HEAD_BYTES,
    RUN_V_SLOT_BYTES,
    RUN_KS,  # float32 scales of keys, one a token and head (int8 only)
    RUN_KS_PAGE_BYTES,
    RUN_KS_HEAD_BYTES,
    RUN_KS_SLOT_BYTES,
    RUN_VS,
    RUN_VS_PAGE_BYTES,
    RUN_VS_HEAD_BYTES,
    RUN_VS_SLOT_BYTES,
    RUN_PAGE_TOKENS,
    RUN_QUERY_SCALE,  # float32 bits: sm_scale, times log2(e) when there is no score hook
    RUN_OUT_SCALE,  # float32 bits
    RUN_CAPTURED,  # address of the captured values, as the printer of the hooks laid them out
    RUN_SINK,  # float32[heads] natural logits, 0: none
    # for the loops over items and merges (attention_loop.py)
    RUN_PLAN,  # address of a plan (plan_layout.py)
    RUN_FEW,  # kernels: AttentionItem of few rows, of many, AttentionFinish, AttentionMerge
    RUN_MANY,
    RUN_FINISH,
    RUN_MERGE,
    RUN_FEW_ROWS,  # most rows that the kernel of few rows takes
    RUN_PARTIALS,
    RUN_STATE_BYTES,
    RUN_SCRATCH,  # per thread: frame | states | scratch of the item
    RUN_SCRATCH_BYTES,
    RUN_STATES_BYTES,
) = range(41)
RUN_ITEM_CURSOR, RUN_MERGE_CURSOR = 48, 56  # on cache lines of their own
RUN_WORDS = 64

(
    F_TOKEN,  # first query token (row of q)
    F_TOKENS,
    F_KV_HEAD,
    F_PAGES,  # int32 page numbers of the table row, and the position of each page's first token
    F_PAGE_POSITIONS,
    F_TOKEN_POSITION,  # int32 by query token: position, request, row in its request
    F_TOKEN_REQUEST,
    F_TOKEN_ROW,
    F_RANGE_START,  # int32 slots: start, end and kind (plan_layout.FULL, PARTIAL) of ascending ranges
    F_RANGE_END,
    F_RANGE_KIND,
    F_N_RANGES,
    F_STATES,
    F_SCRATCH,
) = range(14)
FRAME_WORDS = 16
