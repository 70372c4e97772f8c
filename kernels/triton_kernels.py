"""The kernel itself, in Triton. Imported only when it is launched or compiled; `triton_attention` launches it.

Head dimensions need not be powers of two: D features are handled as LOW + HIGH, both powers of two, the last one masked
where it is wider than what is left (40 = 32 + 8 of 16, 80 = 64 + 16, 160 = 128 + 32; HIGH = 0 where D is LOW). Tensors
are read where they lie, [rows, tokens, heads, features]: features are adjacent, the other strides come in chunks of 8
elements, so that the compiler knows every copy of a chunk to be aligned whatever the numbers are at run time.
"""

import triton
import triton.language as tl

from . import triton_attention

LOG2_E = tl.constexpr(1.4426950408889634)
CHUNK = tl.constexpr(triton_attention.CHUNK)  # elements, 16 bytes of half precision
ROW_BITS = tl.constexpr(triton_attention.ROW_BITS)
LAST_ROW = tl.constexpr((1 << triton_attention.ROW_BITS) - 1)
INSTRUCTION = tl.constexpr(16)  # what the matrix instructions multiply at least


@triton.jit(do_not_specialize=triton_attention.NUMBERS)
def forward(
    Q, K, V, OUT,
    e0: tl.int64, e1: tl.int64, e2: tl.int64, e3: tl.int64, e4: tl.int64, e5: tl.int64, e6: tl.int64, e7: tl.int64,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, N, M, scale,
    D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    ONE_TILE: tl.constexpr, RAGGED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_QUERIES queries of one head of one entry, over all M keys.

    e0 … e7: the launch's entries, packed by `triton_attention.launches`. OUT: (rows, N, heads, D), contiguous.
    ONE_TILE: M is at most BLOCK_KEYS. RAGGED: the last tile of keys is not full. UPCAST: multiply in float32, for the
    interpreter only.
    """
    queries = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    head = tl.program_id(1)
    entry = _choose(tl.program_id(2), e0, e1, e2, e3, e4, e5, e6, e7)
    Q += (_row(entry, 0) * q_row + head * q_head) * CHUNK
    K += (_row(entry, 1) * k_row + head * k_head) * CHUNK
    V += (_row(entry, 2) * v_row + head * v_head) * CHUNK
    if _flag(entry, 0) != 0:
        v_gap = ((_row(entry, 3) - _row(entry, 2)) * v_row * CHUNK).to(tl.int32)  # the host refuses spans of 2³¹
        _attend(Q, K, V, OUT, entry, queries, head, q_token, k_token, v_token, v_gap, N, M, scale,
                D, LOW, HIGH, BLOCK_QUERIES, BLOCK_KEYS, ONE_TILE, RAGGED, UPCAST, 2)  # fmt: skip
    else:
        _attend(Q, K, V, OUT, entry, queries, head, q_token, k_token, v_token, 0, N, M, scale,
                D, LOW, HIGH, BLOCK_QUERIES, BLOCK_KEYS, ONE_TILE, RAGGED, UPCAST, 1)  # fmt: skip


@triton.jit
def _choose(index, e0, e1, e2, e3, e4, e5, e6, e7):
    low = tl.where(index < 2, tl.where(index == 0, e0, e1), tl.where(index == 2, e2, e3))
    high = tl.where(index < 6, tl.where(index == 4, e4, e5), tl.where(index == 6, e6, e7))
    return tl.where(index < 4, low, high)


@triton.jit
def _row(entry, place: tl.constexpr):
    return (entry >> (place * ROW_BITS)) & LAST_ROW


@triton.jit
def _flag(entry, place: tl.constexpr):
    return (entry >> (6 * ROW_BITS + place)) & 1


@triton.jit
def _attend(
    Q, K, V, OUT, entry, queries, head, q_token, k_token, v_token, v_gap, N, M, scale,
    D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    ONE_TILE: tl.constexpr, RAGGED: tl.constexpr, UPCAST: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Attention whose map multiplies SHARE rows of values, laid side by side: column c is feature c % D of value
    c // D, so that one tile holds a pair's values. More than one tile of keys takes an online softmax."""
    WIDTH_0: tl.constexpr = SHARE * LOW if SHARE * LOW > INSTRUCTION else INSTRUCTION
    WIDTH_1: tl.constexpr = SHARE * HIGH if SHARE * HIGH > INSTRUCTION else INSTRUCTION
    START_1: tl.constexpr = SHARE * LOW
    there = queries < N
    q_0, q_1 = _parts(Q, queries, there, q_token, D, LOW, HIGH, True)
    if ONE_TILE:
        keys = tl.arange(0, BLOCK_KEYS)
        scores = _scores(q_0, q_1, K, keys, M, k_token, D, LOW, HIGH, RAGGED, UPCAST)
        peak = tl.max(scores, 1) * (scale * LOG2_E)
        weights = tl.exp2(tl.fma(scores, scale * LOG2_E, -peak[:, None]))
        total = tl.sum(weights, 1)
        weights = weights.to(V.dtype.element_ty)
        out_0 = _dot(weights, _values(V, keys, M, v_token, v_gap, D, SHARE, 0, WIDTH_0, RAGGED), None, UPCAST)
        if HIGH > 0:
            v_1 = _values(V, keys, M, v_token, v_gap, D, SHARE, START_1, WIDTH_1, RAGGED)
            out_1 = _dot(weights, v_1, None, UPCAST)
    else:
        peak = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)  # of the scores so far, in powers of two
        total = tl.zeros([BLOCK_QUERIES], tl.float32)
        out_0 = tl.zeros([BLOCK_QUERIES, WIDTH_0], tl.float32)
        if HIGH > 0:
            out_1 = tl.zeros([BLOCK_QUERIES, WIDTH_1], tl.float32)
        full = M // BLOCK_KEYS * BLOCK_KEYS if RAGGED else M
        for start in range(0, full, BLOCK_KEYS):
            keys = start + tl.arange(0, BLOCK_KEYS)
            scores = _scores(q_0, q_1, K, keys, M, k_token, D, LOW, HIGH, False, UPCAST)
            weights, shrink, peak, total = _softmax_step(scores, peak, total, scale)
            v_0 = _values(V, keys, M, v_token, v_gap, D, SHARE, 0, WIDTH_0, False)
            out_0 = _dot(weights.to(v_0.dtype), v_0, out_0 * shrink[:, None], UPCAST)
            if HIGH > 0:
                v_1 = _values(V, keys, M, v_token, v_gap, D, SHARE, START_1, WIDTH_1, False)
                out_1 = _dot(weights.to(v_1.dtype), v_1, out_1 * shrink[:, None], UPCAST)
        if RAGGED:  # the same once more, masked
            keys = full + tl.arange(0, BLOCK_KEYS)
            scores = _scores(q_0, q_1, K, keys, M, k_token, D, LOW, HIGH, True, UPCAST)
            weights, shrink, peak, total = _softmax_step(scores, peak, total, scale)
            v_0 = _values(V, keys, M, v_token, v_gap, D, SHARE, 0, WIDTH_0, True)
            out_0 = _dot(weights.to(v_0.dtype), v_0, out_0 * shrink[:, None], UPCAST)
            if HIGH > 0:
                v_1 = _values(V, keys, M, v_token, v_gap, D, SHARE, START_1, WIDTH_1, True)
                out_1 = _dot(weights.to(v_1.dtype), v_1, out_1 * shrink[:, None], UPCAST)
    heads = tl.num_programs(1)
    OUT += (_row(entry, 4) * N * heads + head) * D + queries[:, None] * (heads * D)
    gap = ((_row(entry, 5) - _row(entry, 4)) * N * heads * D).to(tl.int32)
    _store(OUT, out_0 / total[:, None], there, gap, entry, D, SHARE, 0, WIDTH_0)
    if HIGH > 0:
        _store(OUT, out_1 / total[:, None], there, gap, entry, D, SHARE, START_1, WIDTH_1)


@triton.jit
def _scores(q_0, q_1, K, keys, M, stride, D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
            RAGGED: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Unscaled q kᵀ in float32 [queries, keys], -inf where RAGGED and there is no such key."""
    k_0, k_1 = _parts(K, keys, keys < M, stride, D, LOW, HIGH, RAGGED)
    scores = _dot(q_0, tl.trans(k_0), None, UPCAST)
    if HIGH > 0:
        scores = _dot(q_1, tl.trans(k_1), scores, UPCAST)
    if RAGGED:
        scores = tl.where((keys < M)[None, :], scores, float("-inf"))
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
def _values(V, keys, M, stride, gap, D: tl.constexpr, SHARE: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr,
            RAGGED: tl.constexpr):  # fmt: skip
    """Columns START … START + WIDTH of the values side by side [keys, WIDTH]; zeros where there is nothing."""
    offsets, inside, _ = _columns(gap, D, SHARE, START, WIDTH)
    places = V + keys[:, None] * (stride * CHUNK) + offsets
    return _load(places, (keys < M)[:, None], inside, RAGGED, START + WIDTH > SHARE * D)


@triton.jit
def _store(OUT, result, there, gap, entry, D: tl.constexpr, SHARE: tl.constexpr, START: tl.constexpr,
           WIDTH: tl.constexpr):  # fmt: skip
    """Writes columns START … START + WIDTH of the results side by side, added to what an earlier launch wrote."""
    offsets, inside, first = _columns(gap, D, SHARE, START, WIDTH)
    inside = there[:, None] & inside
    add = tl.where(first, _flag(entry, 1), _flag(entry, 2)) != 0
    result += tl.load(OUT + offsets, inside & add, 0.0).to(tl.float32)
    tl.store(OUT + offsets, result.to(OUT.dtype.element_ty), inside)


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
def _columns(gap, D: tl.constexpr, SHARE: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr):
    """Where columns START … START + WIDTH of a pair's rows lie, seen from the first row, which of them exist, and which
    are the first row's: [1, WIDTH] each. gap: elements from the first row to the second."""
    columns = START + tl.arange(0, WIDTH)
    offsets = tl.where(columns < D, columns, columns - D + gap) if SHARE == 2 else columns
    offsets = tl.max_contiguous(tl.multiple_of(offsets, CHUNK), CHUNK)  # D is a multiple of CHUNK
    return offsets[None, :], (columns < SHARE * D)[None, :], (columns < D)[None, :]


@triton.jit
def _dot(a, b, accumulator, UPCAST: tl.constexpr):
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator)


@triton.jit
def probe(X):
    tl.store(X, 1.0)
