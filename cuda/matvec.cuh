/* What the decode kernels share: a few rows of activations as 8-bit numbers in shared memory, weights on their way through
 * shared memory, and their products. Decode reads each weight once and is bound by two things: bytes, and the chain of kernels
 * that wait for each other. So
 *   - one block of 512 threads a multiprocessor takes at most half of its registers and shared memory: the next kernel's
 *     blocks lie beside it and fetch their weights (cp.async, no registers) while it computes;
 *   - every block normalises and quantizes the activations for itself: one round of loads, one barrier, and no kernel between;
 *   - the factor of the norm is a number a row, and multiplies the finished sums. */
#ifndef QMI_CUDA_MATVEC_CUH
#define QMI_CUDA_MATVEC_CUH

#include "block.cuh"

#define MATVEC_THREADS 512
#define MATVEC_WARPS (MATVEC_THREADS / QMI_WARP)
#define MATVEC_LANES 32      /* blocks of a row in one stage: one a lane */
#define MATVEC_STAGES_MAX 8
#define MATVEC_SQUARES_BYTES (CUDA_VECTOR_ROWS * MATVEC_WARPS * 4)
#define MATVEC_TILE_MAX 4    /* rows of a stage; with more than one row of activations 2 */

static inline __host__ __device__ bool matvec_is_float(uint32_t type)
{
    return type == QMI_TYPE_F32 || type == QMI_TYPE_F16 || type == QMI_TYPE_BF16;
}

/* The statement for the type, as a constant T. What a statement computes of the lane's number should come from chip_here: else
 * the compiler finds it the same in each round of a loop, and keeps all types' results in registers. */
#define MATVEC_CASE(type, ...) \
    case type: { \
        constexpr uint32_t T = type; \
        __VA_ARGS__; \
        break; \
    }
#define MATVEC_FOR_QUANTIZED(type, ...) \
    switch (type) { \
        MATVEC_CASE(QMI_TYPE_Q8_0, __VA_ARGS__) \
        MATVEC_CASE(QMI_TYPE_Q4_0, __VA_ARGS__) \
        MATVEC_CASE(QMI_TYPE_Q5_0, __VA_ARGS__) \
        MATVEC_CASE(QMI_TYPE_Q4_K, __VA_ARGS__) \
        MATVEC_CASE(QMI_TYPE_Q5_K, __VA_ARGS__) \
        MATVEC_CASE(QMI_TYPE_Q6_K, __VA_ARGS__) \
        MATVEC_CASE(QMI_TYPE_IQ4_NL, __VA_ARGS__) \
        MATVEC_CASE(QMI_TYPE_IQ4_XS, __VA_ARGS__) \
    }
#define MATVEC_FOR_FLOAT(type, ...) \
    switch (type) { \
        MATVEC_CASE(QMI_TYPE_F32, __VA_ARGS__) \
        MATVEC_CASE(QMI_TYPE_F16, __VA_ARGS__) \
        MATVEC_CASE(QMI_TYPE_BF16, __VA_ARGS__) \
    }

/* ---- sums over a warp ---- V sums at once (a power of two): lane l gets the total of value l / (32 / V). Lanes that hold
 * halves of the values exchange, so V values cost about V + 5 shuffles instead of 5 V. */
template <int COUNT, int V> static __device__ __forceinline__ void matvec_exchange(float (&v)[V]) /* halves COUNT values a lane */
{
    if constexpr (COUNT > 1) {
        constexpr int half = COUNT / 2, distance = 16 * COUNT / V;
        const bool upper = threadIdx.x & distance;
#pragma unroll
        for (int i = 0; i < half; i++) {
            const float keep = upper ? v[i + half] : v[i], give = upper ? v[i] : v[i + half];
            v[i] = keep + __shfl_xor_sync(~0u, give, distance);
        }
        matvec_exchange<half, V>(v);
    }
}

template <int V> static __device__ __forceinline__ float matvec_reduce(float (&v)[V])
{
    matvec_exchange<V, V>(v);
    float sum = v[0];
#pragma unroll
    for (int d = 16 / V; d; d >>= 1)
        sum += __shfl_xor_sync(~0u, sum, d);
    return sum;
}

/* ---- activations ---- */

/* Rows that a matrix multiplies: row n is rows[(order ? order[n] : n) * columns ...], to be multiplied with the norm's weight. */
struct matvec_input {
    const float *rows, *norm; /* norm: NULL when there is none */
    const int32_t *order;
    float epsilon;
    int32_t columns, blocks, count;
};

/* A block of 32 activations in shared memory: q * scale; total is scale times the sum of q; sums are those of the halves, as
 * two int16. Its 48 bytes are an odd number of 16, so lanes that read the same part of neighbouring blocks meet no bank twice. */
struct matvec_activation {
    uint4 low, high;
    float scale, total;
    uint32_t sums, unused;
};

/* Four columns from column 4 u on; those past the end are 0. Rows of a multiple of four columns are aligned. */
static __device__ __forceinline__ float4 matvec_load4(const float *row, int u, int columns)
{
    if ((columns & 3) == 0)
        return ((const float4 *)row)[u];
    const int c = 4 * u;
    return make_float4(row[c], c + 1 < columns ? row[c + 1] : 0, c + 2 < columns ? row[c + 2] : 0,
                       c + 3 < columns ? row[c + 3] : 0);
}

static __device__ __forceinline__ float4 matvec_multiply(float4 a, float4 b)
{
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}

static __device__ __forceinline__ float matvec_dot4(float4 a, float4 b)
{
    return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

static __device__ __forceinline__ const float *matvec_row(const matvec_input &in, int n)
{
    return in.rows + (int64_t)(in.order ? in.order[n] : n) * in.columns;
}

/* Quantizes four values a thread; the eight threads from a multiple of eight on hold a block. All lanes of the warp take part,
 * those without a block write nothing. `gain` multiplies the values. */
static __device__ __forceinline__ void matvec_quantize(matvec_activation *block, float4 v, float gain, bool real)
{
    const int word = threadIdx.x & 7;
    float most = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
    for (int d = 1; d < 8; d <<= 1)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    const float to = most > 1e-30f ? __fdividef(127.f, most) : 0.f; /* below, 127 / most overflows */
    const uint32_t a = (uint32_t)__float2int_rn(v.x * to), b = (uint32_t)__float2int_rn(v.y * to);
    const uint32_t c = (uint32_t)__float2int_rn(v.z * to), d = (uint32_t)__float2int_rn(v.w * to);
    const uint32_t q = __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
    int sum = chip_dot4_signed(q, 0x01010101u, 0);
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int other = __shfl_xor_sync(~0u, sum, 4);
    if (!real)
        return;
    ((uint32_t *)block)[word] = q;
    if (word == 0) {
        const float scale = most * (1.f / 127) * gain;
        block->scale = scale;
        block->total = scale * (float)(sum + other);
        block->sums = ((uint32_t)sum & 0xffff) | (uint32_t)other << 16;
    }
}

/* Batches of loads in flight at once: so many times four columns a thread, for N rows. */
template <int N> constexpr __host__ __device__ int matvec_batch(void)
{
    return N == 1 ? 2 : 1;
}

/* The norm's weights of a thread's first batch, to be fetched before the wait. */
template <int N> struct matvec_norm_weights {
    float4 w[matvec_batch<N>()];
};

template <int N>
static __device__ __forceinline__ void matvec_fetch_norm(const matvec_input &in, int base, matvec_norm_weights<N> &norm)
{
    const int units = (in.columns + 3) >> 2;
#pragma unroll
    for (int b = 0; b < matvec_batch<N>(); b++) {
        const int u = base + b * MATVEC_THREADS + (int)threadIdx.x;
        norm.w[b] = in.norm && u < units ? matvec_load4(in.norm, u, in.columns) : make_float4(1, 1, 1, 1);
    }
}

/* Reads the rows: their blocks go to the area (when `quantize`; the columns are a multiple of 32 then), the squares' sums of
 * each warp to squares[n][warp]. A barrier must follow. */
template <int N>
static __device__ __forceinline__ void matvec_stage_input(const matvec_input &in, matvec_norm_weights<N> &norm, bool quantize,
                                                          matvec_activation *area, float (*squares)[MATVEC_WARPS])
{
    constexpr int batch = matvec_batch<N>();
    const int units = (in.columns + 3) >> 2, thread = (int)threadIdx.x;
    float square[N] = {};
    for (int base = 0; base < units; base += batch * MATVEC_THREADS) {
        float4 x[batch][N];
#pragma unroll
        for (int b = 0; b < batch; b++) {
            const int u = base + b * MATVEC_THREADS + thread;
#pragma unroll
            for (int n = 0; n < N; n++)
                x[b][n] = n < in.count && u < units ? matvec_load4(matvec_row(in, n), u, in.columns) : make_float4(0, 0, 0, 0);
        }
        if (base)
            matvec_fetch_norm<N>(in, base, norm);
#pragma unroll
        for (int b = 0; b < batch; b++) {
            const int u = base + b * MATVEC_THREADS + thread;
#pragma unroll
            for (int n = 0; n < N; n++)
                if (n < in.count && base + b * MATVEC_THREADS < units) {
                    square[n] += matvec_dot4(x[b][n], x[b][n]);
                    if (quantize)
                        matvec_quantize(area + n * in.blocks + (u >> 3), matvec_multiply(x[b][n], norm.w[b]), 1, u < units);
                }
        }
    }
    if (!in.norm)
        return;
    const float sum = matvec_reduce<N>(square);
    if ((thread & (32 / N - 1)) == 0)
        squares[(thread & 31) / (32 / N)][thread >> 5] = sum;
}

/* The norm's factor of row n, after the barrier. */
static __device__ __forceinline__ float matvec_factor(const matvec_input &in, const float (*squares)[MATVEC_WARPS], int n)
{
    if (!in.norm || n >= in.count)
        return 1;
    const float4 *s = (const float4 *)squares[n];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < MATVEC_WARPS / 4; i++)
        sum += s[i].x + s[i].y + s[i].z + s[i].w;
    return rsqrtf(sum / (float)in.columns + in.epsilon);
}

/* ---- weights on their way: a stage holds `tile` rows' next 32 (or L) blocks in the order of their planes ---- What a plane
 * has for eight blocks (layout.h), where 16-byte copies can begin at any row of it, and the room a row's part takes in a
 * stage: copies begin at a multiple of 16 bytes, so planes that aren't aligned need up to 30 bytes more. */
constexpr __host__ __device__ int matvec_eight(uint32_t type, int plane)
{
    switch (plane) {
    case 0: return type == QMI_TYPE_Q8_0 ? 256 : 128;
    case 1: return type == QMI_TYPE_Q5_0 || type == QMI_TYPE_Q5_K ? 32 : type == QMI_TYPE_Q6_K ? 64 : 0;
    case 2: return type == QMI_TYPE_IQ4_XS ? 8 : 16;
    default: return type == QMI_TYPE_Q6_K ? 2 : 0;
    }
}

constexpr __host__ __device__ bool matvec_is_aligned(uint32_t type, int plane)
{
    const bool super = type == QMI_TYPE_Q4_K || type == QMI_TYPE_Q5_K || type == QMI_TYPE_Q6_K; /* rows of 8 n blocks */
    return plane == 0 || (super && plane != 3);
}

constexpr __host__ __device__ int matvec_room(uint32_t type, int plane, int lanes)
{
    const int bytes = matvec_eight(type, plane) * lanes / 8;
    return matvec_is_aligned(type, plane) || bytes == 0 ? bytes : (bytes + 14 + 15) / 16 * 16;
}

constexpr __host__ __device__ int matvec_place(uint32_t type, int plane, int lanes)
{
    int at = 0;
    for (int p = 0; p < plane; p++)
        at += matvec_room(type, p, lanes);
    return at;
}

constexpr __host__ __device__ int matvec_row_room(uint32_t type, int lanes)
{
    return matvec_place(type, QMI_CUDA_PLANES, lanes);
}

/* Which rows a stage has is for each kernel to say, by two functions of a type of its own: row r's first block, a number of
 * its matrix, and a plane of that matrix: int64_t matvec_row_first(const ROWS &rows, int r);  const uint8_t
 * *matvec_row_plane(const ROWS &rows, int r, int plane); */

/* Bytes by which a row's part of a plane lies past a multiple of 16; planes begin at one. */
template <uint32_t T> static __device__ __forceinline__ int matvec_skew(int plane, int64_t first)
{
    if (matvec_is_aligned(T, plane))
        return 0;
    return (int)(matvec_eight(T, plane) >= 8 ? (uint32_t)first * (uint32_t)(matvec_eight(T, plane) / 8) :
                 (uint32_t)(first >> 3) * (uint32_t)matvec_eight(T, plane)) & 15;
}

/* Copies blocks [at, at + real) of `count` rows to a stage; real <= L. Each lane copies pieces of 16 bytes. */
template <uint32_t T, int L, class ROWS>
static __device__ __forceinline__ void matvec_fetch(uint8_t *stage, const ROWS &rows, int count, int at, int real)
{
    const int lane = chip_here((int)threadIdx.x & 31);
#pragma unroll
    for (int plane = 0; plane < QMI_CUDA_PLANES; plane++) {
        constexpr int room = matvec_row_room(T, L);
        const int pieces = matvec_room(T, plane, L) / 16;
        if (pieces == 0)
            continue;
        for (int i = lane; i < count * pieces; i += 32) {
            const int r = i / pieces, piece = i % pieces;
            const int64_t first = matvec_row_first(rows, r) + at;
            const int eight = matvec_eight(T, plane), skew = matvec_skew<T>(plane, first), bytes = eight * real / 8;
            const int64_t start = eight >= 8 ? first * (eight / 8) : (first >> 3) * eight;
            if (16 * piece < bytes + skew)
                chip_copy16_once(stage + r * room + matvec_place(T, plane, L) + 16 * piece,
                                 matvec_row_plane(rows, r, plane) + start - skew + 16 * piece);
        }
    }
}

/* Block b of a row's part in a stage; `first` is the row's first block there, a number of the matrix. */
template <uint32_t T, int L>
static __device__ __forceinline__ void matvec_take(block<T> &w, const uint8_t *row, int b, int64_t first)
{
    const uint8_t *high = row + matvec_place(T, 1, L) + matvec_skew<T>(1, first);
    const uint8_t *scales = row + matvec_place(T, 2, L) + matvec_skew<T>(2, first);
    if constexpr (T == QMI_TYPE_Q8_0) {
        w.q[0] = ((const uint4 *)row)[2 * b];
        w.q[1] = ((const uint4 *)row)[2 * b + 1];
    } else
        w.q = ((const uint4 *)row)[b];
    if constexpr (T == QMI_TYPE_Q8_0 || T == QMI_TYPE_Q4_0 || T == QMI_TYPE_IQ4_NL || T == QMI_TYPE_Q5_0)
        w.d = ((const uint16_t *)scales)[b];
    if constexpr (T == QMI_TYPE_Q5_0 || T == QMI_TYPE_Q5_K)
        w.high = ((const uint32_t *)high)[b];
    if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K)
        w.mins = ((const uint4 *)scales)[b >> 3];
    if constexpr (T == QMI_TYPE_Q6_K) {
        w.high = ((const uint2 *)high)[b];
        w.scales = ((const uint16_t *)scales)[b];
        w.d = ((const uint16_t *)(row + matvec_place(T, 3, L) + matvec_skew<T>(3, first)))[b >> 3];
    }
    if constexpr (T == QMI_TYPE_IQ4_XS)
        w.scales = ((const uint2 *)scales)[b >> 3];
}

/* ---- products with activations of 8 bits ---- */

/* A block's codes as bytes, ready to be multiplied with several rows of activations. */
template <uint32_t T> struct matvec_codes {
    uint32_t low[4], high[4]; /* 4-bit formats without a table: `high` is 16 times too large */
    float scale, other;       /* other: Q4_K, Q5_K the minimum; Q6_K the scale of the high half */
};

template <uint32_t T> static __device__ __forceinline__ void matvec_unpack(const block<T> &w, int b, matvec_codes<T> &c)
{
    c.other = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if constexpr (T == QMI_TYPE_IQ4_NL || T == QMI_TYPE_IQ4_XS)
            block_iq4_values(block_word(w.q, k), &c.low[k], &c.high[k]);
        else if constexpr (T == QMI_TYPE_Q4_0 || T == QMI_TYPE_Q4_K) {
            c.low[k] = block_word(w.q, k) & 0x0f0f0f0fu;
            c.high[k] = block_word(w.q, k) & 0xf0f0f0f0u;
        } else {
            c.low[k] = block_codes(w, k);
            c.high[k] = block_codes(w, k + 4);
        }
    }
    if constexpr (T == QMI_TYPE_Q8_0 || T == QMI_TYPE_Q4_0 || T == QMI_TYPE_Q5_0 || T == QMI_TYPE_IQ4_NL)
        c.scale = chip_half_low(w.d);
    if constexpr (T == QMI_TYPE_IQ4_XS)
        c.scale = block_iq4_xs_scale(w.scales, b & 7);
    if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K)
        block_mins(w.mins, b & 7, &c.scale, &c.other);
    if constexpr (T == QMI_TYPE_Q6_K) {
        c.scale = chip_half_low(w.d) * (float)(int8_t)(w.scales & 0xff);
        c.other = chip_half_low(w.d) * (float)(int8_t)(w.scales >> 8);
    }
}

/* Four signed or unsigned codes with four activations. */
template <uint32_t T> static __device__ __forceinline__ int matvec_dot_word(uint32_t codes, uint32_t values, int sum)
{
    if constexpr (T == QMI_TYPE_IQ4_NL || T == QMI_TYPE_IQ4_XS || T == QMI_TYPE_Q8_0)
        return chip_dot4_signed(codes, values, sum);
    else
        return chip_dot4(codes, values, sum);
}

/* sum + the block's product. */
template <uint32_t T>
static __device__ __forceinline__ float matvec_dot(const matvec_codes<T> &c, const matvec_activation &a, float sum)
{
    int low = 0, high = 0;
#pragma unroll
    for (int k = 0; k < 4; k++)
        high = matvec_dot_word<T>(c.high[k], block_word(a.high, k), high);
    if constexpr (T == QMI_TYPE_Q6_K) {
#pragma unroll
        for (int k = 0; k < 4; k++)
            low = matvec_dot_word<T>(c.low[k], block_word(a.low, k), low);
        const int sum_low = (int)(int16_t)(a.sums & 0xffff), sum_high = (int)a.sums >> 16;
        return fmaf(a.scale, fmaf(c.scale, (float)(low - 32 * sum_low), c.other * (float)(high - 32 * sum_high)), sum);
    } else {
        low = T == QMI_TYPE_Q4_0 || T == QMI_TYPE_Q4_K ? high >> 4 : high; /* exact: all are multiples of 16 */
#pragma unroll
        for (int k = 0; k < 4; k++)
            low = matvec_dot_word<T>(c.low[k], block_word(a.low, k), low);
        sum = fmaf(c.scale * a.scale, (float)low, sum);
        if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K)
            sum = fmaf(-c.other, a.total, sum);
        if constexpr (T == QMI_TYPE_Q4_0 || T == QMI_TYPE_Q5_0)
            sum = fmaf(c.scale * (T == QMI_TYPE_Q4_0 ? -8.f : -16.f), a.total, sum);
        return sum;
    }
}

/* One row of activations with `count` rows of a stage: sums[r] grows by the part of this lane. Block b of the stage goes with
 * block at + b of the area. */
template <uint32_t T, int R, class ROWS>
static __device__ __forceinline__ void matvec_stage_dots(const uint8_t *stage, const ROWS &rows, int count, int at, int real,
                                                         const matvec_activation *area, float (&sums)[R])
{
    constexpr int room = matvec_row_room(T, MATVEC_LANES);
    const int lane = chip_here((int)threadIdx.x & 31);
    if (lane >= real)
        return;
    const matvec_activation a = area[at + lane];
#pragma unroll
    for (int r = 0; r < R; r++)
        if (r < count) {
            block<T> w;
            matvec_codes<T> c;
            matvec_take<T, MATVEC_LANES>(w, stage + r * room, lane, matvec_row_first(rows, r) + at);
            matvec_unpack<T>(w, lane, c);
            sums[r] = matvec_dot<T>(c, a, sums[r]);
        }
}

/* ---- the same with several rows of activations: codes of all types become the same form, which then is multiplied by one
 * piece of code, with 14 instructions a product instead of 12 ---- */

struct matvec_bytes { /* signed codes; value = scale of its half * code - minimum */
    uint32_t low[4], high[4];
    float scale_low, scale_high, minimum;
};

template <uint32_t T> static __device__ __forceinline__ void matvec_to_bytes(const block<T> &w, int b, matvec_bytes &c)
{
    constexpr uint32_t offset = T == QMI_TYPE_Q4_0 ? 8 : T == QMI_TYPE_Q5_0 ? 16 : T == QMI_TYPE_Q6_K ? 32 : 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if constexpr (T == QMI_TYPE_IQ4_NL || T == QMI_TYPE_IQ4_XS)
            block_iq4_values(block_word(w.q, k), &c.low[k], &c.high[k]);
        else {
            c.low[k] = block_codes(w, k);
            c.high[k] = block_codes(w, k + 4);
        }
        if constexpr (offset != 0) { /* codes are below 128, so no byte carries into the next */
            c.low[k] = (c.low[k] + (128 - offset) * 0x01010101u) ^ 0x80808080u;
            c.high[k] = (c.high[k] + (128 - offset) * 0x01010101u) ^ 0x80808080u;
        }
    }
    c.minimum = 0;
    if constexpr (T == QMI_TYPE_Q8_0 || T == QMI_TYPE_Q4_0 || T == QMI_TYPE_Q5_0 || T == QMI_TYPE_IQ4_NL)
        c.scale_low = c.scale_high = chip_half_low(w.d);
    if constexpr (T == QMI_TYPE_IQ4_XS)
        c.scale_low = c.scale_high = block_iq4_xs_scale(w.scales, b & 7);
    if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K) {
        block_mins(w.mins, b & 7, &c.scale_low, &c.minimum);
        c.scale_high = c.scale_low;
    }
    if constexpr (T == QMI_TYPE_Q6_K) {
        c.scale_low = chip_half_low(w.d) * (float)(int8_t)(w.scales & 0xff);
        c.scale_high = chip_half_low(w.d) * (float)(int8_t)(w.scales >> 8);
    }
}

static __device__ __forceinline__ float matvec_bytes_dot(const matvec_bytes &c, const matvec_activation &a, float sum)
{
    int low = 0, high = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        low = chip_dot4_signed(c.low[k], block_word(a.low, k), low);
        high = chip_dot4_signed(c.high[k], block_word(a.high, k), high);
    }
    return fmaf(-c.minimum, a.total, fmaf(a.scale, fmaf(c.scale_low, (float)low, c.scale_high * (float)high), sum));
}

/* Block b of row r of a stage of type T, L blocks a row. */
template <uint32_t T, int L, class ROWS>
static __device__ __forceinline__ void matvec_stage_bytes(const uint8_t *stage, const ROWS &rows, int r, int b, int at,
                                                          matvec_bytes &c)
{
    block<T> w;
    matvec_take<T, L>(w, stage + r * matvec_row_room(T, L), b, matvec_row_first(rows, r) + at);
    matvec_to_bytes<T>(w, b, c);
}

/* Two rows (or one) with those of N rows of activations whose bit is set: sums[r * N + n] grows by the part of this lane. Row
 * n of activations has its block at area[n * stride]. */
template <int N>
static __device__ __forceinline__ void matvec_bytes_dots(const matvec_bytes (&c)[2], int count, const matvec_activation *area,
                                                         int stride, uint32_t inputs, float (&sums)[2 * N])
{
#pragma unroll
    for (int n = 0; n < N; n++)
        if ((inputs >> n) & 1) {
            const matvec_activation a = area[n * stride];
            sums[n] = matvec_bytes_dot(c[0], a, sums[n]);
            if (count > 1)
                sums[N + n] = matvec_bytes_dot(c[1], a, sums[N + n]);
        }
}

/* A stage with N rows of activations, of those whose bit is set; R is its most rows. */
#define MATVEC_STAGE_DOTS(type, N, R, stage, rows, count, at, real, area, stride, inputs, sums) \
    if constexpr (N == 1) { \
        MATVEC_FOR_QUANTIZED(type, matvec_stage_dots<T, R>(stage, rows, count, at, real, area, sums)) \
    } else if (((int)threadIdx.x & 31) < (real)) { \
        matvec_bytes bytes[2] = {}; \
        const int b = (int)threadIdx.x & 31; \
        MATVEC_FOR_QUANTIZED(type, matvec_stage_bytes<T, MATVEC_LANES>(stage, rows, 0, chip_here(b), at, bytes[0]); \
                             if (count > 1) matvec_stage_bytes<T, MATVEC_LANES>(stage, rows, 1, chip_here(b), at, bytes[1])) \
        matvec_bytes_dots<N>(bytes, count, area + (at) + b, stride, inputs, sums); \
    }

/* ---- products with float weights: both sides straight from memory ---- */

/* Columns 4 u .. 4 u + 3 of a row that begins at block `first`; behind the last column there are zeros. */
template <uint32_t T> static __device__ __forceinline__ float4 matvec_weights4(const uint8_t *plane, int64_t first, int u)
{
    if constexpr (T == QMI_TYPE_F32) {
        const uint4 w = chip_load16(plane + first * 128 + (int64_t)u * 16);
        return make_float4(__uint_as_float(w.x), __uint_as_float(w.y), __uint_as_float(w.z), __uint_as_float(w.w));
    } else {
        const uint2 w = chip_load8(plane + first * 64 + (int64_t)u * 8);
        if constexpr (T == QMI_TYPE_F16)
            return make_float4(chip_half_low(w.x), chip_half_high(w.x), chip_half_low(w.y), chip_half_high(w.y));
        else
            return make_float4(__uint_as_float(w.x << 16), __uint_as_float(w.x & 0xffff0000u), __uint_as_float(w.y << 16),
                               __uint_as_float(w.y & 0xffff0000u));
    }
}

/* Whole rows of type T; sums as in matvec_stage_dots. */
template <uint32_t T, int N, int R, class ROWS>
static __device__ __forceinline__ void matvec_float_dots(const ROWS &rows, int count, const matvec_input &in,
                                                         float (&sums)[R * N])
{
    const int units = (in.columns + 3) >> 2;
#pragma unroll
    for (int r = 0; r < R; r++)
        if (r < count) {
            const uint8_t *plane = matvec_row_plane(rows, r, 0);
            const int64_t first = matvec_row_first(rows, r);
#pragma unroll(N == 1 ? 2 : 1)
            for (int u = threadIdx.x & 31; u < units; u += 32) {
                const float4 norm = in.norm ? matvec_load4(in.norm, u, in.columns) : make_float4(1, 1, 1, 1);
                const float4 w = matvec_multiply(matvec_weights4<T>(plane, first, u), norm);
#pragma unroll
                for (int n = 0; n < N; n++)
                    if (n < in.count)
                        sums[r * N + n] += matvec_dot4(w, matvec_load4(matvec_row(in, n), u, in.columns));
            }
        }
}

/* Brings whole rows of so many bytes to the L2 cache. */
template <class ROWS>
static __device__ __forceinline__ void matvec_float_prefetch(const ROWS &rows, int count, int blocks, int block_bytes)
{
    for (int r = 0; r < count; r++) {
        const uint8_t *row = matvec_row_plane(rows, r, 0) + matvec_row_first(rows, r) * block_bytes;
        for (int at = (int)(threadIdx.x & 31) * 128; at < blocks * block_bytes; at += 32 * 128)
            chip_prefetch(row + at);
    }
}

#endif
