/* The gated delta rule for many rows a sequence, heads of 128: chunks of 64 rows as matrix products (Gated Delta Networks, arXiv
 * 2412.06464, section 3.3; the chunked delta rule, arXiv 2406.06484, section 3).
 *
 * In a chunk that begins with the state S, with G_t the sum of log g up to row t and
 *   A_tj = beta_t e^(G_t - G_j) k_t.k_j  (j < t),   P_tj = e^(G_t - G_j) q_t.k_j  (j <= t),   T = (I + A)^-1
 * the rows' changes d, outputs o and the state after the last row are
 *   d = T (beta v - beta e^G S^T k),   o = e^G S^T q + P d,   S <- e^G_last S + sum_j e^(G_last - G_j) k_j d_j^T
 * Exponents are of differences G_t - G_j <= 0: nothing grows. Rows that a last chunk lacks have k = q = v = 0, beta = 0, g = 1.
 *
 *   delta_mix      convolution, lengths, gates: all rows and heads at once, written as halves
 *   delta_solve    T and P of each chunk and head, all at once
 *   delta_advance  through a sequence's chunks in order: a warp has 16 columns of S, transposed, as sums of its products
 *
 * Factors of products are halves (k and q have length 1, T's values are at most 1); sums, T's substitution and S are float.
 *
 * A chunk's number is (first row of its sequence) / 32 + its place in the sequence: unique, because a sequence here has more than
 * 32 rows and so at most rows / 32 chunks of 64; found without a search, because row 32 * number + 31 belongs to the sequence.
 * What is read before chip_wait_for_previous(): delta_step.cu says why.
 *
 * Floors for 4096 rows, 35B-A3B, H200, in us: mix 45 (134 MB in, 67 out), solve 25 (100 MB; 4 GFLOP; 180 M fused multiply-adds
 * on 132 processors), advance 60 (64 chunks one after the other, 232 products a warp, of 6.5 clocks each), delta_finish 48 (201
 * MB). */
#include "delta.cuh"

#define STRIDE 32      /* rows to a chunk's number */
static_assert(STRIDE <= DELTA_FEW && 2 * STRIDE == DELTA_CHUNK, "chunks' numbers rely on it");

#define TAIL_HALVES 8  /* at the end of rows in shared memory, so that eight rows' 16 bytes lie in different banks */
#define WIDE (DELTA_SIZE + TAIL_HALVES)
#define SQUARE (DELTA_CHUNK + TAIL_HALVES)

#define MIX_THREADS 256
#define MIX_ROWS 16    /* of a warp: few, so that a short prompt does not wait for one warp's loads after the other */
#define MIX_AHEAD 8    /* rows whose loads are under way at once */
#define SOLVE_THREADS 128 /* a warp: 16 rows of the products; a thread: a column of T, of two heads */
#define ADVANCE_THREADS 128
#define ADVANCE_COLUMNS 64 /* of S; 16 a warp */

/* Of a chunk and value head, [64] each. */
enum { GATE_LOG, /* G */ GATE_BETA, GATE_RECALL, /* beta e^G */ GATE_CARRY, /* e^G */ GATE_TAIL, /* e^(G_last - G) */ GATES };

typedef struct chunk_scratch {
    __half *mixed;   /* [rows][channels] */
    __half *inverse; /* T [chunks][value_heads][64][64] */
    __half *scores;  /* P, likewise */
    float *gates;    /* [chunks][value_heads][GATES][64] */
} chunk_scratch;

typedef struct chunk_place {
    cuda_sequence sequence;
    int index;       /* in its sequence */
    int row, rows;   /* in the batch */
} chunk_place;

/* False: there is no chunk of this number. */
static __device__ __forceinline__ bool find_chunk(const delta_work &w, int number, chunk_place *place)
{
    const int row = number * STRIDE + STRIDE - 1;
    if (row >= w.rows)
        return false;
    place->sequence = w.step.sequences[w.step.sequence[row]];
    place->index = number - place->sequence.first / STRIDE;
    place->row = place->sequence.first + place->index * DELTA_CHUNK;
    place->rows = min(DELTA_CHUNK, place->sequence.count - place->index * DELTA_CHUNK);
    return place->sequence.count > DELTA_FEW && place->rows > 0;
}

/* ---- convolution, lengths, gates ---- */

static __device__ __forceinline__ float4 load4(const float *p) /* of a state, which need not be aligned */
{
    return make_float4(p[0], p[1], p[2], p[3]);
}

static __device__ __forceinline__ float tap4(float4 tap, float a, float b, float c, float d)
{
    return chip_silu(tap.x * a + tap.y * b + tap.z * c + tap.w * d);
}

/* G and what comes from it: lane l has rows 2 l and 2 l + 1. */
static __device__ __forceinline__ void store_gates(const delta_work &w, const chunk_place &at, int head, float *gates)
{
    const int lane = threadIdx.x % QMI_WARP;
    float beta[2] = {}, sum[2] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (2 * lane + i >= at.rows)
            continue;
        const delta_gate gate = delta_load_gate(w, at.row + 2 * lane + i, head);
        beta[i] = chip_sigmoid(gate.beta);
        sum[i] = delta_log_decay(gate.alpha, w.time_bias[head], w.rate[head]);
    }
    sum[1] += sum[0];
    float before = sum[1];
#pragma unroll
    for (int o = 1; o < QMI_WARP; o *= 2) {
        const float left = __shfl_up_sync(~0u, before, o);
        before += lane >= o ? left : 0;
    }
    const float last = __shfl_sync(~0u, before, QMI_WARP - 1);
    before -= sum[1];
    sum[0] += before;
    sum[1] += before;
    const float carry[2] = { expf(sum[0]), expf(sum[1]) };
    float2 *out = (float2 *)gates + lane;
    out[GATE_LOG * DELTA_CHUNK / 2] = make_float2(sum[0], sum[1]);
    out[GATE_BETA * DELTA_CHUNK / 2] = make_float2(beta[0], beta[1]);
    out[GATE_RECALL * DELTA_CHUNK / 2] = make_float2(beta[0] * carry[0], beta[1] * carry[1]);
    out[GATE_CARRY * DELTA_CHUNK / 2] = make_float2(carry[0], carry[1]);
    out[GATE_TAIL * DELTA_CHUNK / 2] = make_float2(expf(last - sum[0]), expf(last - sum[1]));
}

/* A warp: 16 rows of a chunk, a head (queries, keys, values), four channels a lane. Grid: chunks, heads, parts of chunks. */
static __global__ void __launch_bounds__(MIX_THREADS) delta_mix(delta_work w, chunk_scratch room)
{
    const int lane = threadIdx.x % QMI_WARP, head = blockIdx.y * (MIX_THREADS / QMI_WARP) + threadIdx.x / QMI_WARP;
    const int value = head - 2 * w.key_heads, first = blockIdx.z * MIX_ROWS;
    const int64_t channel = (int64_t)head * DELTA_SIZE + 4 * lane, stride = w.channels;
    chunk_place at = {};
    chip_let_next_start();
    if (value >= w.value_heads || !find_chunk(w, blockIdx.x, &at) || first >= at.rows) {
        chip_wait_for_previous();
        return;
    }
    const float4 *taps = (const float4 *)w.convolution + channel;
    const float4 tap[4] = { __ldg(taps), __ldg(taps + 1), __ldg(taps + 2), __ldg(taps + 3) };
    const int rows = min(MIX_ROWS, at.rows - first);
    const float *in = w.qkv + (at.row + first) * stride + channel;
    uint2 *out = (uint2 *)(room.mixed + (at.row + first) * stride + channel);
    const float size = head < w.key_heads ? DELTA_SIZE : 1; /* queries are divided by its root */
    float4 old[DELTA_TAPS - 1];
    chip_wait_for_previous();
#pragma unroll
    for (int i = 0; i < DELTA_TAPS - 1; i++)
        old[i] = at.index || first ? *(const float4 *)(in - (DELTA_TAPS - 1 - i) * stride)
                                   : load4(delta_columns(w, at.sequence.state) + i * stride + channel);
    for (int t = 0; t < rows; t += MIX_AHEAD) {
        float4 x[MIX_AHEAD] = {};
#pragma unroll
        for (int i = 0; i < MIX_AHEAD; i++)
            if (t + i < rows)
                x[i] = *(const float4 *)(in + (t + i) * stride);
#pragma unroll
        for (int i = 0; i < MIX_AHEAD; i++) {
            float4 y = make_float4(
                tap4(tap[0], old[0].x, old[1].x, old[2].x, x[i].x), tap4(tap[1], old[0].y, old[1].y, old[2].y, x[i].y),
                tap4(tap[2], old[0].z, old[1].z, old[2].z, x[i].z), tap4(tap[3], old[0].w, old[1].w, old[2].w, x[i].w));
            old[0] = old[1];
            old[1] = old[2];
            old[2] = x[i];
            if (value < 0) {
                const float squares = chip_warp_sum(y.x * y.x + y.y * y.y + y.z * y.z + y.w * y.w);
                const float scale = rsqrtf((squares + DELTA_EPSILON) * size);
                y = make_float4(y.x * scale, y.y * scale, y.z * scale, y.w * scale);
            }
            if (t + i < rows)
                out[(t + i) * stride / 4] = make_uint2(chip_pack_half(y.x, y.y), chip_pack_half(y.z, y.w));
        }
    }
    if (value >= 0 && first == 0)
        store_gates(w, at, value, room.gates + ((int64_t)blockIdx.x * w.value_heads + value) * (GATES * DELTA_CHUNK));
}

/* ---- T and P ---- */

/* A chunk's rows of `columns` halves from `from` on into shared memory; rows that it lacks become 0. */
template <int COLUMNS, int THREADS>
static __device__ __forceinline__ void copy_rows(__half *to, const __half *from, int64_t stride, int rows)
{
    constexpr int pieces = COLUMNS / 8;
#pragma unroll 4
    for (int i = threadIdx.x; i < DELTA_CHUNK * pieces; i += THREADS) {
        const int row = i / pieces, piece = i % pieces;
        const __half *source = row < rows ? from + row * stride + 8 * piece : from;
        chip_copy16(to + row * (COLUMNS + TAIL_HALVES) + 8 * piece, source, row < rows);
    }
}

/* Where a lane's row is for chip_load_matrices of a 16 x 16 tile at (row, column) of a matrix in shared memory. As a of an mma:
 * rows first, then columns; as b of two mmas (rows are the products' columns): b0, b1 of the first 8 rows, then of the others. */
static __device__ __forceinline__ const __half *tile_a(const __half *matrix, int stride, int row, int column)
{
    const int lane = threadIdx.x % QMI_WARP;
    return matrix + (row + lane % 16) * stride + column + lane / 16 * 8;
}

static __device__ __forceinline__ const __half *tile_b(const __half *matrix, int stride, int row, int column)
{
    const int lane = threadIdx.x % QMI_WARP;
    return matrix + (row + lane / 16 * 8 + lane % 8) * stride + column + lane / 8 % 2 * 8;
}

typedef struct solve_shared {
    union {
        __half keys_queries[2][DELTA_CHUNK * WIDE];
        float a[2][DELTA_CHUNK][DELTA_CHUNK + 4]; /* of two heads; rows of 16 bytes, apart by 4 banks */
    };
    float log[2][DELTA_CHUNK], beta[2][DELTA_CHUNK];
} solve_shared;

/* Column j of (I + a)^-1 from row FIRST (j >= FIRST) on: x_t = [t = j] - sum_{i < t} a_ti x_i. */
template <int FIRST>
static __device__ __forceinline__ void substitute(const float (*a)[DELTA_CHUNK + 4], int j, __half *out)
{
    float x[DELTA_CHUNK];
#pragma unroll
    for (int t = FIRST; t < DELTA_CHUNK; t++) {
        float sum[4] = { t == j ? 1.f : 0.f };
#pragma unroll
        for (int i = FIRST; i < t; i += 4) {
            const float4 row = *(const float4 *)&a[t][i];
            sum[0] -= row.x * x[i];
            if (i + 1 < t)
                sum[1] -= row.y * x[i + 1];
            if (i + 2 < t)
                sum[2] -= row.z * x[i + 2];
            if (i + 3 < t)
                sum[3] -= row.w * x[i + 3];
        }
        x[t] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        out[t * DELTA_CHUNK] = __float2half_rn(x[t]);
    }
}

/* The warp's 16 rows of A to shared memory and of P to memory, from k.k and q.k; right of the diagonal are zeros. */
static __device__ __forceinline__ void weigh(const float kk[8][4], const float qk[8][4], const float *log, const float *beta,
                                             float (*a)[DELTA_CHUNK + 4], __half *scores)
{
    const int lane = threadIdx.x % QMI_WARP, first = threadIdx.x / QMI_WARP * 16 + lane / 4;
#pragma unroll
    for (int tile = 0; tile < 8; tile++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int t = first + 8 * half, j = 8 * tile + 2 * (lane % 4);
            const float e0 = j <= t ? __expf(log[t] - log[j]) : 0, e1 = j + 1 <= t ? __expf(log[t] - log[j + 1]) : 0;
            const float *k = &kk[tile][2 * half], *q = &qk[tile][2 * half];
            *(float2 *)&a[t][j] = make_float2(j < t ? beta[t] * e0 * k[0] : 0, j + 1 < t ? beta[t] * e1 * k[1] : 0);
            *(uint32_t *)&scores[t * DELTA_CHUNK + j] = chip_pack_half(j <= t ? e0 * q[0] : 0, j + 1 <= t ? e1 * q[1] : 0);
        }
    }
}

/* Grid: chunks, key heads. MANY: more than two value heads a key head, for which the products must be kept. */
template <bool MANY>
static __global__ void __launch_bounds__(SOLVE_THREADS, MANY ? 2 : 3) delta_solve(delta_work w, chunk_scratch room)
{
    CHIP_SHARED(solve_shared, s);
    const int warp = threadIdx.x / QMI_WARP, key_head = blockIdx.y;
    chunk_place at = {};
    chip_let_next_start();
    const bool real = find_chunk(w, blockIdx.x, &at);
    chip_wait_for_previous();
    if (!real)
        return;
    __half *keys = s->keys_queries[0], *queries = s->keys_queries[1];
    const __half *from = room.mixed + at.row * (int64_t)w.channels + key_head * DELTA_SIZE;
    copy_rows<DELTA_SIZE, SOLVE_THREADS>(queries, from, w.channels, at.rows);
    copy_rows<DELTA_SIZE, SOLVE_THREADS>(keys, from + w.key_width, w.channels, at.rows);
    chip_copy_commit();
    chip_copy_wait<0>();
    __syncthreads();

    float kk[8][4] = {}, qk[8][4] = {};
#pragma unroll
    for (int c = 0; c < DELTA_SIZE; c += 16) {
        uint32_t k[4], q[4], b[4];
        chip_load_matrices(k, tile_a(keys, WIDE, 16 * warp, c));
        chip_load_matrices(q, tile_a(queries, WIDE, 16 * warp, c));
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            if (pair > warp) /* right of the diagonal */
                continue;
            chip_load_matrices(b, tile_b(keys, WIDE, 16 * pair, c));
            chip_mma_half(kk[2 * pair], k, b[0], b[1]);
            chip_mma_half(kk[2 * pair + 1], k, b[2], b[3]);
            chip_mma_half(qk[2 * pair], q, b[0], b[1]);
            chip_mma_half(qk[2 * pair + 1], q, b[2], b[3]);
        }
    }
    const int side = threadIdx.x / DELTA_CHUNK, column = threadIdx.x % DELTA_CHUNK; /* which of two heads; of T */
    for (int first = 0; first == 0 || (MANY && first < w.per_key); first += 2) {
        const int mine = first + side;
        const int64_t block = (int64_t)blockIdx.x * w.value_heads;
        if (mine < w.per_key) {
            const float *gates = room.gates + (block + delta_value_head(w, key_head, mine)) * (GATES * DELTA_CHUNK) + column;
            s->log[side][column] = gates[GATE_LOG * DELTA_CHUNK];
            s->beta[side][column] = gates[GATE_BETA * DELTA_CHUNK];
        }
        __syncthreads(); /* also: the products have been made, or the last heads' columns */
        for (int i = 0; i < 2 && first + i < w.per_key; i++)
            weigh(kk, qk, s->log[i], s->beta[i], s->a[i],
                  room.scores + (block + delta_value_head(w, key_head, first + i)) * (DELTA_CHUNK * DELTA_CHUNK));
        __syncthreads();
        if (mine < w.per_key) {
            __half *out = room.inverse + (block + delta_value_head(w, key_head, mine)) * (DELTA_CHUNK * DELTA_CHUNK) + column;
            if (column < DELTA_CHUNK / 2)
                substitute<0>(s->a[side], column, out);
            else {
                for (int t = 0; t < DELTA_CHUNK / 2; t++)
                    out[t * DELTA_CHUNK] = __float2half_rn(0.f);
                substitute<DELTA_CHUNK / 2>(s->a[side], column, out);
            }
        }
    }
}

/* ---- through the chunks ---- */

typedef struct advance_stage {
    __half keys[DELTA_CHUNK * WIDE], queries[DELTA_CHUNK * WIDE];
    __half inverse[DELTA_CHUNK * SQUARE], scores[DELTA_CHUNK * SQUARE], values[DELTA_CHUNK * SQUARE];
    float gates[GATES * DELTA_CHUNK];
} advance_stage;

static __device__ __forceinline__ void fetch_chunk(const delta_work &w, const chunk_scratch &room, advance_stage *to,
                                                   const cuda_sequence &sequence, int index, int head, int column)
{
    const int rows = min(DELTA_CHUNK, sequence.count - index * DELTA_CHUNK);
    const int64_t row = sequence.first + index * DELTA_CHUNK;
    const int64_t block = (int64_t)(sequence.first / STRIDE + index) * w.value_heads + head;
    const __half *from = room.mixed + row * w.channels + delta_key_head(w, head) * DELTA_SIZE;
    const __half *values = room.mixed + row * w.channels + 2 * w.key_width + head * DELTA_SIZE + column;
    constexpr int square = DELTA_CHUNK * DELTA_CHUNK;
    copy_rows<DELTA_SIZE, ADVANCE_THREADS>(to->keys, from + w.key_width, w.channels, rows);
    copy_rows<DELTA_SIZE, ADVANCE_THREADS>(to->queries, from, w.channels, rows);
    copy_rows<DELTA_CHUNK, ADVANCE_THREADS>(to->values, values, w.channels, rows);
    copy_rows<DELTA_CHUNK, ADVANCE_THREADS>(to->inverse, room.inverse + block * square, DELTA_CHUNK, DELTA_CHUNK);
    copy_rows<DELTA_CHUNK, ADVANCE_THREADS>(to->scores, room.scores + block * square, DELTA_CHUNK, DELTA_CHUNK);
    for (int i = threadIdx.x; i < GATES * DELTA_CHUNK / 4; i += ADVANCE_THREADS)
        chip_copy16(to->gates + 4 * i, room.gates + block * (GATES * DELTA_CHUNK) + 4 * i, true);
    chip_copy_commit();
}

/* What comes out of a product, [16][8 and 8 more], as a of the next; `low`, `high` scale columns 2 t, 2 t + 1 of the eights. */
static __device__ __forceinline__ void pack_a(uint32_t a[4], const float c[2][4], float2 low, float2 high)
{
    a[0] = chip_pack_half(c[0][0] * low.x, c[0][1] * low.y);
    a[1] = chip_pack_half(c[0][2] * low.x, c[0][3] * low.y);
    a[2] = chip_pack_half(c[1][0] * high.x, c[1][1] * high.y);
    a[3] = chip_pack_half(c[1][2] * high.x, c[1][3] * high.y);
}

/* out [16 columns][64 rows] += change * matrix^T, a lower triangle. */
static __device__ __forceinline__ void times_triangle(float out[8][4], const uint32_t change[4][4], const __half *matrix)
{
#pragma unroll
    for (int k = 0; k < 4; k++) {
#pragma unroll
        for (int pair = k; pair < 4; pair++) {
            uint32_t b[4];
            chip_load_matrices(b, tile_b(matrix, SQUARE, 16 * pair, 16 * k));
            chip_mma_half(out[2 * pair], change[k], b[0], b[1]);
            chip_mma_half(out[2 * pair + 1], change[k], b[2], b[3]);
        }
    }
}

/* A chunk for the warp's 16 columns (`column`: the first, of the block's). Everything is transposed: rows of the fragments are
 * columns of S, so that one product's sums are the next one's operand as they lie. state: S^T [16][128]; out: o^T [16][64]. */
static __device__ __forceinline__ void advance_chunk(const advance_stage *s, int column, float state[16][4], float out[8][4])
{
    const int lane = threadIdx.x % QMI_WARP, pair_of_lane = lane % 4;
    const float2 one = make_float2(1, 1);
    float recalled[8][4] = {}, changes[8][4] = {};
    uint32_t y[4][4], b[4];
#pragma unroll
    for (int k = 0; k < 8; k++) {
        uint32_t a[4];
        pack_a(a, &state[2 * k], one, one);
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            chip_load_matrices(b, tile_b(s->keys, WIDE, 16 * pair, 16 * k));
            chip_mma_half(recalled[2 * pair], a, b[0], b[1]);
            chip_mma_half(recalled[2 * pair + 1], a, b[2], b[3]);
            chip_load_matrices(b, tile_b(s->queries, WIDE, 16 * pair, 16 * k));
            chip_mma_half(out[2 * pair], a, b[0], b[1]);
            chip_mma_half(out[2 * pair + 1], a, b[2], b[3]);
        }
    }
    const float2 *beta = (const float2 *)(s->gates + GATE_BETA * DELTA_CHUNK) + pair_of_lane;
    const float2 *recall = (const float2 *)(s->gates + GATE_RECALL * DELTA_CHUNK) + pair_of_lane;
    const float2 *carry = (const float2 *)(s->gates + GATE_CARRY * DELTA_CHUNK) + pair_of_lane;
    const float2 *tail = (const float2 *)(s->gates + GATE_TAIL * DELTA_CHUNK) + pair_of_lane;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        /* v^T as products' sums lie: of rows 16 k .. 16 k + 7 the column g, then g + 8; then of the next 8 rows. */
        chip_load_matrices_turned(b, s->values + (16 * k + lane / 16 * 8 + lane % 8) * SQUARE + column + lane / 8 % 2 * 8);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float2 bt = beta[8 * k + 4 * half], rc = recall[8 * k + 4 * half];
            float *r = recalled[2 * k + half];
            r[0] = bt.x * chip_half_low(b[2 * half]) - rc.x * r[0];
            r[1] = bt.y * chip_half_high(b[2 * half]) - rc.y * r[1];
            r[2] = bt.x * chip_half_low(b[2 * half + 1]) - rc.x * r[2];
            r[3] = bt.y * chip_half_high(b[2 * half + 1]) - rc.y * r[3];
        }
        pack_a(y[k], &recalled[2 * k], one, one);
    }
    times_triangle(changes, y, s->inverse);
#pragma unroll
    for (int k = 0; k < 4; k++)
        pack_a(y[k], &changes[2 * k], one, one);
#pragma unroll
    for (int tile = 0; tile < 8; tile++) {
        const float2 c = carry[4 * tile];
        out[tile][0] *= c.x;
        out[tile][1] *= c.y;
        out[tile][2] *= c.x;
        out[tile][3] *= c.y;
    }
    times_triangle(out, y, s->scores);
#pragma unroll
    for (int k = 0; k < 4; k++)
        pack_a(y[k], &changes[2 * k], tail[8 * k], tail[8 * k + 4]);
    const float decay = s->gates[GATE_CARRY * DELTA_CHUNK + DELTA_CHUNK - 1];
#pragma unroll
    for (int i = 0; i < 16; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++)
            state[i][j] *= decay;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
#pragma unroll
        for (int pair = 0; pair < 8; pair++) { /* keys as b: rows of the chunk are what is summed over */
            chip_load_matrices_turned(b, tile_a(s->keys, WIDE, 16 * k, 16 * pair));
            chip_mma_half(state[2 * pair], y[k], b[0], b[1]);
            chip_mma_half(state[2 * pair + 1], y[k], b[2], b[3]);
        }
    }
}

/* Grid: halves of value heads, sequences. `stages`: chunks in shared memory, 2: the next one comes in meanwhile. */
static __global__ void __launch_bounds__(ADVANCE_THREADS) delta_advance(delta_work w, chunk_scratch room, int32_t stages)
{
    CHIP_SHARED(advance_stage, stage);
    constexpr int parts = DELTA_SIZE / ADVANCE_COLUMNS;
    const int lane = threadIdx.x % QMI_WARP, head = blockIdx.x / parts, part = blockIdx.x % parts * ADVANCE_COLUMNS;
    const int column = threadIdx.x / QMI_WARP * 16; /* of the block's */
    chip_let_next_start();
    const cuda_sequence sequence = w.step.sequences[blockIdx.y];
    if (sequence.count <= DELTA_FEW) {
        chip_wait_for_previous();
        return;
    }
    /* state[i][0, 1]: keys 8 i + 2 t, + 1 of column g; [2, 3]: of column g + 8 (lane = 4 g + t). */
    const int64_t place = (int64_t)(2 * (lane % 4)) * DELTA_SIZE + part + column + lane / 4;
    const float *from = delta_matrix(w, sequence.state, head) + place;
    float state[16][4];
#pragma unroll
    for (int i = 0; i < 16; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++)
            state[i][j] = from[(8 * i + j % 2) * DELTA_SIZE + j / 2 * 8];
    }
    chip_wait_for_previous();

    const int chunks = (sequence.count + DELTA_CHUNK - 1) / DELTA_CHUNK;
    fetch_chunk(w, room, &stage[0], sequence, 0, head, part);
    for (int c = 0; c < chunks; c++) {
        chip_copy_wait<0>();
        __syncthreads();
        if (stages == 2 && c + 1 < chunks)
            fetch_chunk(w, room, &stage[(c + 1) % 2], sequence, c + 1, head, part);
        float out[8][4] = {};
        advance_chunk(&stage[c % stages], column, state, out);
        if (stages == 1 && c + 1 < chunks) {
            __syncthreads();
            fetch_chunk(w, room, &stage[0], sequence, c + 1, head, part);
        }
        const int64_t first = sequence.first + c * DELTA_CHUNK;
        float *to = w.out + (first * w.value_heads + head) * DELTA_SIZE + part + column + lane / 4;
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int t = 8 * i + 2 * (lane % 4) + j % 2;
                if (c * DELTA_CHUNK + t < sequence.count)
                    to[(int64_t)t * w.value_heads * DELTA_SIZE + j / 2 * 8] = out[i][j];
            }
        }
    }
    float *next = delta_matrix(w, sequence.next_state, head) + place;
#pragma unroll
    for (int i = 0; i < 16; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++)
            next[(8 * i + j % 2) * DELTA_SIZE + j / 2 * 8] = state[i][j];
    }
}

/* ---- launches ---- */

/* Where the scratch's parts lie from `base` on; returns their bytes. */
static int64_t lay_out(int64_t rows, int64_t channels, int64_t value_heads, uint8_t *base, chunk_scratch *room)
{
    const int64_t blocks = rows / STRIDE * value_heads, square = blocks * DELTA_CHUNK * DELTA_CHUNK;
    const int64_t sizes[] = { rows * channels * 2, square * 2, square * 2, blocks * GATES * DELTA_CHUNK * 4 };
    int64_t at[5] = {};
    for (int i = 0; i < 4; i++)
        at[i + 1] = at[i] + (sizes[i] + 255) / 256 * 256;
    *room = { (__half *)(base + at[0]), (__half *)(base + at[1]), (__half *)(base + at[2]), (float *)(base + at[3]) };
    return at[4];
}

void delta_run_chunks(const cuda_run *run, const delta_work *w)
{
    const uint32_t chunks = (uint32_t)(w->rows / STRIDE), warps = MIX_THREADS / QMI_WARP;
    const uint32_t heads = (uint32_t)(2 * w->key_heads + w->value_heads), parts = DELTA_SIZE / ADVANCE_COLUMNS;
    /* Where there are more blocks than processors, two blocks a processor hide each other's waiting, with one stage each. */
    const bool alone = parts * w->value_heads * (int64_t)run->sequences <= run->processors;
    const int32_t stages = alone && (size_t)run->shared_most >= 2 * sizeof(advance_stage) ? 2 : 1;
    chunk_scratch room;
    lay_out(w->rows, w->channels, w->value_heads, run->scratch, &room);
    cuda_launch(run, dim3(chunks, (heads + warps - 1) / warps, DELTA_CHUNK / MIX_ROWS), MIX_THREADS, 0, delta_mix, *w, room);
    cuda_launch(run, dim3(chunks, (uint32_t)w->key_heads), SOLVE_THREADS, sizeof(solve_shared),
                w->per_key > 2 ? delta_solve<true> : delta_solve<false>, *w, room);
    cuda_launch(run, dim3(parts * (uint32_t)w->value_heads, (uint32_t)run->sequences), ADVANCE_THREADS,
                (size_t)stages * sizeof(advance_stage), delta_advance, *w, room, stages);
}

int64_t delta_chunk_scratch(const qmi_op_delta *op, int32_t rows)
{
    chunk_scratch room;
    const int64_t channels = 2 * (int64_t)op->key_heads * op->key_size + (int64_t)op->value_heads * op->value_size;
    return lay_out(rows, channels, op->value_heads, NULL, &room);
}

cudaError_t delta_chunk_setup(void)
{
    int device, most;
    cudaError_t code = cudaGetDevice(&device);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (code != cudaSuccess)
        return code;
    const int stages = most >= (int)(2 * sizeof(advance_stage)) ? 2 : 1;
    return cudaFuncSetAttribute(delta_advance, cudaFuncAttributeMaxDynamicSharedMemorySize, stages * (int)sizeof(advance_stage));
}
