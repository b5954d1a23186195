"""Numbers shared by the compiled control code and the Python that fills its tables. No numba here: a warm start must not import it.

Team block: byte offsets. Program block and operation records: indices of int64 words.
"""

# ---- team block (bytes); hot words on cache lines of their own
TEAM_EPOCH, TEAM_FUTEX, TEAM_SLEEPERS, TEAM_SPIN, TEAM_STOP, TEAM_THREADS, TEAM_TIMEOUT, TEAM_PROGRAM, TEAM_EXECUTE = (
    0,
    64,
    128,
    192,
    200,
    208,
    216,
    232,
    240,
)
TEAM_BYTES = 256

# control of one operation: line 0 = epoch<<32 | end<<16 | next, line 1 = epoch<<32 | finished chunks
CONTROL_BYTES = 128
MAX_CHUNKS = 0xFFFF

# ---- program block
(
    P_OPS,
    P_N_OPS,
    P_CONTROLS,
    P_SCRATCH,
    P_SCRATCH_BYTES,
    P_STATES_OFFSET,
    P_PREPARE_OFFSET,
    P_ROWS,
    P_GENERATED_ROWS,
    P_SEGMENTS,
    P_SAMPLED,
    P_TOKEN_IDS,
    P_POSITIONS,
    P_SEGMENT_FIRST,
    P_SEGMENT_ROWS,
    P_SEGMENT_TABLE,
    P_TABLES,
    P_TABLE_BYTES,
    P_SAMPLED_ROWS,
    P_ROW_SEGMENT,
    P_ITEMS,
    P_N_ITEMS,
    P_PAGES_PER_ENTRY,
    P_PROFILE,
    P_COUNTERS,
    P_FUSED_ROWS,
) = range(26)
P_TEAM = 31
PROGRAM_WORDS = 32

# ---- operation records
OP_WORDS = 32
OP_CODE, OP_CHUNKS = 0, 1
OP_EMBED, OP_PREPARE, OP_PRODUCT, OP_ROTATE, OP_ATTEND, OP_READ, OP_EMPTY, OP_CALL = 1, 2, 3, 4, 5, 6, 7, 8
OP_NAMES = ("", "embed", "prepare", "product", "rotate", "attend", "read", "empty", "call")

E_KIND, E_TABLE, E_STRIP_BYTES, E_WIDTH, E_OUT = range(2, 7)
EMBED_KINDS = {"f32": 0, "f16": 1, "bf16": 2, "q8_0": 3, "q4_1": 4}

(
    R_SOURCE,
    R_SOURCE_BYTES,
    R_NORM,
    R_GENERATED,
    R_GENERATED_OUT,
    R_GENERATED_BYTES,
    R_PROMPT,
    R_PROMPT_OUT,
    R_PROMPT_BYTES,
    R_SAMPLED_ONLY,
) = range(2, 12)

M_WEIGHTS, M_UNIT_BYTES, M_UNITS, M_CHUNK_UNITS, M_OUT, M_OUT_BYTES, M_OUT_UNIT_BYTES, M_PREPARE, M_NEXT, M_NEXT_BACK, M_GENERATED = range(
    2, 13
)
M_TILES = 4  # (rows, kernel) pairs of each class, descending by rows
M_PROMPT = M_GENERATED + 2 * M_TILES

(
    Q_QKV,
    Q_ROW_BYTES,
    Q_ROTATE,
    Q_APPEND,
    Q_ANGLES,
    Q_ANGLE_BYTES,
    Q_KV_HEADS,
    Q_KEYS,
    Q_VALUES,
    Q_HEAD_BYTES,
    Q_POOL,
    Q_HEAD_POOL_BYTES,
    Q_PAGE_BYTES,
) = range(2, 15)

(
    A_QUERIES,
    A_ROW_BYTES,
    A_POOL,
    A_HEAD_POOL_BYTES,
    A_PAGE_BYTES,
    A_KV_HEADS,
    A_GROUP_HEADS,
    A_HEAD_BYTES,
    A_OUT,
    A_OUT_BYTES,
    A_TOKENS,
    A_HEAD_GROUPS,
    A_CLEAR,
    A_FOLD,
    A_FINISH,
    A_STATE_BYTES,
    A_PARTIALS,
    A_KERNELS,
) = range(2, 20)
MAX_HEAD_GROUPS = 4  # (heads, kernel of A_TOKENS tokens, kernel of one token) triples from A_KERNELS

L_ADDRESS, L_BYTES, L_KERNEL = 2, 3, 4

C_KERNEL, C_ARGUMENT = 2, 3

# ---- attention items (int32 words)
ITEM_WORDS = 8
I_SEGMENT, I_TOKEN, I_TOKENS, I_SPLIT, I_SPLITS, I_PARTIAL, I_PARTS = range(7)

ROW_CHUNK = 16  # rows of one chunk of the row-wise operations
PRODUCT_ROWS = 128  # activation rows of one chunk of a product: they stay in L2 while the chunk's strips pass
TILE_TOKENS = 8  # query tokens of one attention item: small enough that the last items of a short chunk balance
SPLIT_TOKENS, BLOCK_TOKENS, PAGE_TOKENS = 512, 64, 16

# ---- sampling
SAMPLING_COLUMNS = 1024  # ids equal modulo this share a sum of bounds.WeightBounds
