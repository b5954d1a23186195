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
) = range(30)
RUN_WORDS = 64  # the rest belongs to the loop over items (attention_loop.py)

(
    F_REQUEST,
    F_QO_FIRST,  # row of the request's first query in q, out and lse
    F_Q_POSITION,  # position of that query
    F_KV_POSITION,  # position of the request's first key
    F_ROW,  # first packed row of the item: query row * group + head of the group
    F_ROWS,
    F_KV_HEAD,
    F_TABLE,  # int32 page numbers of the request
    F_RANGES,  # int32 triplets (start, end, kind) of keys, ascending
    F_N_RANGES,
    F_STATES,
    F_SCRATCH,
) = range(12)
FRAME_WORDS = 16
RANGE_BYTES = 12
FULL, PARTIAL = 0, 1  # kinds of a range: all keys visible, or the mask decides
