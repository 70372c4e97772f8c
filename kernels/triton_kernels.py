"""The kernels themselves, in Triton. Imported only when one is launched or compiled; `triton_attention` launches them.

Head dimensions need not be powers of two: D features are handled as LOW + HIGH, both powers of two, the last one masked
where it is wider than what is left (40 = 32 + 8 of 16, 80 = 64 + 16, 160 = 128 + 32; HIGH = 0 where D is LOW). Tensors
are read where they lie, [rows, tokens, heads, features]: features are adjacent, the other strides come in chunks of 8
elements, so that the compiler knows every copy of a chunk to be aligned.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
CHUNK = tl.constexpr(8)  # elements, 16 bytes of half precision
INSTRUCTION = tl.constexpr(16)  # what the matrix instructions multiply at least


@triton.jit
def forward(
    Q, K, V, OUT, LSE, TABLE,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, o_row, o_token, o_head,
    N, M, H, scale,
    D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    WHOLE: tl.constexpr, WRITE_LSE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_QUERIES queries of one head of one table entry, over all M keys.

    TABLE: int32 (entries, 3): the row of Q and K, the row of V and OUT, and a second row of V and OUT that takes the
    same map, or -1. WHOLE: M is a multiple of BLOCK_KEYS. UPCAST: multiply in float32, for the interpreter only.
    LSE: (rows, H, N) float32, the natural logarithm of each softmax's sum, written where WRITE_LSE.
    """
    queries = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    head = tl.program_id(1)
    entry = TABLE + tl.program_id(2) * 3
    source = tl.load(entry).to(tl.int64)
    first = tl.load(entry + 1).to(tl.int64)
    second = tl.load(entry + 2).to(tl.int64)
    Q += (source * q_row + head * q_head) * CHUNK
    K += (source * k_row + head * k_head) * CHUNK
    V += (first * v_row + head * v_head) * CHUNK
    OUT += (first * o_row + head * o_head) * CHUNK
    LSE += head * N
    v_gap = ((second - first) * v_row * CHUNK).to(tl.int32)  # triton_attention refuses tensors that span 2³¹
    o_gap = ((second - first) * o_row * CHUNK).to(tl.int32)
    if second >= 0:
        _attend(Q, K, V, OUT, LSE, queries, first, second, q_token, k_token, v_token, v_gap, o_token, o_gap,
                N, M, H, scale, D, LOW, HIGH, BLOCK_QUERIES, BLOCK_KEYS, WHOLE, WRITE_LSE, UPCAST, 2)  # fmt: skip
    else:
        _attend(Q, K, V, OUT, LSE, queries, first, first, q_token, k_token, v_token, v_gap, o_token, o_gap,
                N, M, H, scale, D, LOW, HIGH, BLOCK_QUERIES, BLOCK_KEYS, WHOLE, WRITE_LSE, UPCAST, 1)  # fmt: skip


@triton.jit
def _attend(
    Q, K, V, OUT, LSE, queries, first, second, q_token, k_token, v_token, v_gap, o_token, o_gap,
    N, M, H, scale,
    D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    WHOLE: tl.constexpr, WRITE_LSE: tl.constexpr, UPCAST: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Attention with an online softmax whose map multiplies the values of SHARE rows, laid side by side: column c is
    feature c % D of row c // D, so that one tile holds a pair's values."""
    WIDTH_0: tl.constexpr = SHARE * LOW if SHARE * LOW > INSTRUCTION else INSTRUCTION
    WIDTH_1: tl.constexpr = SHARE * HIGH if SHARE * HIGH > INSTRUCTION else INSTRUCTION
    real = queries < N
    q_0, q_1 = _parts(Q, queries, real, q_token, D, LOW, HIGH, True)
    peak = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)  # of the scores so far, in powers of two
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    out_0 = tl.zeros([BLOCK_QUERIES, WIDTH_0], tl.float32)
    out_1 = tl.zeros([BLOCK_QUERIES, WIDTH_1], tl.float32)
    for start in range(0, M, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        scores = _scores(q_0, q_1, K, keys, keys < M, k_token, D, LOW, HIGH, not WHOLE, UPCAST)
        weights, shrink, peak, total = _softmax_step(scores, peak, total, scale)
        weights = weights.to(V.dtype.element_ty)
        tile = V + keys[:, None] * (v_token * CHUNK)
        offsets, inside = _columns(0, v_gap, D, SHARE, WIDTH_0)
        v_0 = _load(tile + offsets, (keys < M)[:, None], inside, not WHOLE, WIDTH_0 > SHARE * D)
        out_0 = _dot(weights, v_0, out_0 * shrink[:, None], UPCAST)
        if HIGH > 0:
            offsets, inside = _columns(SHARE * LOW, v_gap, D, SHARE, WIDTH_1)
            v_1 = _load(tile + offsets, (keys < M)[:, None], inside, not WHOLE, SHARE * LOW + WIDTH_1 > SHARE * D)
            out_1 = _dot(weights, v_1, out_1 * shrink[:, None], UPCAST)
    if WRITE_LSE:
        lse = (peak + tl.log2(total)) * LN_2
        tl.store(LSE + first * H * N + queries, lse, real)
        tl.store(LSE + second * H * N + queries, lse, real)
    offsets, inside = _columns(0, o_gap, D, SHARE, WIDTH_0)
    places = OUT + queries[:, None] * (o_token * CHUNK) + offsets
    tl.store(places, (out_0 / total[:, None]).to(OUT.dtype.element_ty), real[:, None] & inside)
    if HIGH > 0:
        offsets, inside = _columns(SHARE * LOW, o_gap, D, SHARE, WIDTH_1)
        places = OUT + queries[:, None] * (o_token * CHUNK) + offsets
        tl.store(places, (out_1 / total[:, None]).to(OUT.dtype.element_ty), real[:, None] & inside)


@triton.jit
def maps(
    Q, K, OUT, QUERIES, KEYS,
    q_row, q_token, q_head, k_row, k_token, k_head,
    n_queries, n_keys, M, groups, scale,
    D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    HEADS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One program: the map of BLOCK_QUERIES named queries at BLOCK_KEYS named keys, averaged over HEADS heads.

    QUERIES, KEYS: int32, the tokens asked for. OUT: float32 (rows, groups, n_queries, n_keys), where groups × HEADS are
    all heads. The softmax runs over all M keys: a first pass finds its sum, a second writes only what was asked for.
    """
    n = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    m = tl.program_id(1) * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    row = (tl.program_id(2) // groups).to(tl.int64)
    group = tl.program_id(2) % groups
    queries = tl.load(QUERIES + n, n < n_queries, 0)
    wanted = tl.load(KEYS + m, m < n_keys, 0)
    mean = tl.zeros([BLOCK_QUERIES, BLOCK_KEYS], tl.float32)
    for head in range(group * HEADS, group * HEADS + HEADS):
        Q_h = Q + (row * q_row + head * q_head) * CHUNK
        K_h = K + (row * k_row + head * k_head) * CHUNK
        q_0, q_1 = _parts(Q_h, queries, n < n_queries, q_token, D, LOW, HIGH, True)
        peak = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_QUERIES], tl.float32)
        for start in range(0, M, BLOCK_KEYS):
            keys = start + tl.arange(0, BLOCK_KEYS)
            scores = _scores(q_0, q_1, K_h, keys, keys < M, k_token, D, LOW, HIGH, True, UPCAST)
            _, _, peak, total = _softmax_step(scores, peak, total, scale)
        scores = _scores(q_0, q_1, K_h, wanted, m < n_keys, k_token, D, LOW, HIGH, True, UPCAST)
        mean += tl.exp2(tl.fma(scores, scale * LOG2_E, -peak[:, None])) / (total * HEADS)[:, None]
    places = OUT + (tl.program_id(2).to(tl.int64) * n_queries + n[:, None]) * n_keys + m[None, :]
    tl.store(places, mean, (n < n_queries)[:, None] & (m < n_keys)[None, :])


@triton.jit
def _scores(q_0, q_1, K, keys, there, stride, D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
            RAGGED: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Unscaled q kᵀ in float32 [queries, keys], -inf where RAGGED and no key is `there`."""
    k_0, k_1 = _parts(K, keys, there, stride, D, LOW, HIGH, RAGGED)
    scores = _dot(q_0, tl.trans(k_0), None, UPCAST)
    if HIGH > 0:
        scores = _dot(q_1, tl.trans(k_1), scores, UPCAST)
    if RAGGED:
        scores = tl.where(there[None, :], scores, float("-inf"))
    return scores


@triton.jit
def _softmax_step(scores, peak, total, scale):
    """Takes one more tile of scores into an online softmax: its weights, what to multiply earlier results with, the
    peak and the sum so far. Powers of two throughout."""
    higher = tl.maximum(peak, tl.max(scores, 1) * (scale * LOG2_E))
    weights = tl.exp2(tl.fma(scores, scale * LOG2_E, -higher[:, None]))
    shrink = tl.exp2(peak - higher)
    return weights, shrink, higher, tl.fma(total, shrink, tl.sum(weights, 1))


@triton.jit
def _parts(X, tokens, there, stride, D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, RAGGED: tl.constexpr):
    """The features of some tokens as two tiles [tokens, LOW] and [tokens, HIGH]; zeros where there is nothing."""
    low = _tile(X, tokens, there, stride, 0, D, LOW, RAGGED)
    high = _tile(X, tokens, there, stride, LOW, D, HIGH, RAGGED) if HIGH > 0 else low
    return low, high


@triton.jit
def _tile(X, tokens, there, stride, START: tl.constexpr, D: tl.constexpr, PART: tl.constexpr, RAGGED: tl.constexpr):
    WIDTH: tl.constexpr = PART if PART > INSTRUCTION else INSTRUCTION
    features = START + tl.arange(0, WIDTH)
    places = X + tokens[:, None] * (stride * CHUNK) + features[None, :]
    return _load(places, there[:, None], (features < D)[None, :], RAGGED, START + WIDTH > D)


@triton.jit
def _load(places, rows, columns, CHECK_ROWS: tl.constexpr, CHECK_COLUMNS: tl.constexpr):
    """A tile, zero outside the rows and columns that exist; masks that would be all true are not built."""
    if CHECK_ROWS and CHECK_COLUMNS:
        return tl.load(places, rows & columns, 0.0)
    elif CHECK_ROWS:
        return tl.load(places, rows, 0.0)
    elif CHECK_COLUMNS:
        return tl.load(places, columns, 0.0)
    else:
        return tl.load(places)


@triton.jit
def _columns(START: tl.constexpr, gap, D: tl.constexpr, SHARE: tl.constexpr, WIDTH: tl.constexpr):
    """Where columns START … START + WIDTH of a pair's values lie, seen from the first row, and which of them exist:
    [1, WIDTH] each. gap: elements from the first row to the second."""
    columns = START + tl.arange(0, WIDTH)
    offsets = tl.where(columns < D, columns, columns - D + gap) if SHARE == 2 else columns
    offsets = tl.max_contiguous(tl.multiple_of(offsets, CHUNK), CHUNK)  # D is a multiple of CHUNK
    return offsets[None, :], (columns < SHARE * D)[None, :]


@triton.jit
def _dot(a, b, accumulator, UPCAST: tl.constexpr):
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator)
