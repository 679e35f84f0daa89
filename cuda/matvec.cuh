/* What the decode kernels share: a few rows of activations as 8-bit numbers in shared memory, and their products with weights
 * that come through rings (matvec_ring.cuh). Decode reads each weight once and is bound by three things: bytes, the chain of
 * kernels that wait for each other, and instructions (a block of 32 weights costs about 55, copies and all). So
 *   - a kernel has half of a processor at most, and its first weights under way before it waits for its predecessor;
 *   - a warp has blocks of four rows in its registers at once: four chains of instructions that do not wait for each other;
 *   - every block normalises and quantizes the activations for itself: one round of loads, one barrier, and no kernel between;
 *   - the factor of the norm is a number a row, and multiplies the finished sums. */
#ifndef QMI_CUDA_MATVEC_CUH
#define QMI_CUDA_MATVEC_CUH

#include "matvec_ring.cuh"

#define MATVEC_THREADS 512
#define MATVEC_WARP_BITS 4
#define MATVEC_WARPS (1 << MATVEC_WARP_BITS)

/* Rows of the kernel that takes so many: 1, 4 or 8; and the bytes of shared memory for sums of their squares. */
static inline __host__ __device__ int matvec_kernel_rows(int rows)
{
    return rows == 1 ? 1 : rows <= 4 ? 4 : 8;
}

constexpr __host__ __device__ int matvec_squares_bytes(int kernel_rows)
{
    return kernel_rows * MATVEC_WARPS * 4;
}

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

/* ---- sums over a warp ----
 * V sums at once (a power of two): lane l gets the total of value l / (32 / V). Lanes that hold halves of the values exchange, so
 * V values cost about V + 5 shuffles instead of 5 V. */
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
    float epsilon, inverse_columns;
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

/* Rounded to an integer, in the low byte: the sum's last bit is 1. For values of -127 .. 127. */
static __device__ __forceinline__ uint32_t matvec_round(float v, float to)
{
    return __float_as_uint(fmaf(v, to, 12582912.f)); /* 1.5 * 2^23 */
}

static __device__ __forceinline__ uint32_t matvec_round4(float4 v, float to)
{
    const uint32_t low = __byte_perm(matvec_round(v.x, to), matvec_round(v.y, to), 0x0040);
    return __byte_perm(low, __byte_perm(matvec_round(v.z, to), matvec_round(v.w, to), 0x0040), 0x5410);
}

static __device__ __forceinline__ float matvec_most4(float4 v)
{
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

static __device__ __forceinline__ float matvec_steps(float most) /* 127 / most; below 1e-30 that overflows */
{
    return most > 1e-30f ? __fdividef(127.f, most) : 0.f;
}

/* What belongs to a block besides its values, of which the halves have these sums. */
static __device__ __forceinline__ void matvec_describe(matvec_activation *block, float scale, int low, int high)
{
    block->scale = scale;
    block->total = scale * (float)(low + high);
    block->sums = ((uint32_t)low & 0xffff) | (uint32_t)high << 16;
}

/* Quantizes four values a thread; the eight threads from a multiple of eight on hold a block. All lanes of the warp take part,
 * those without a block write nothing. */
static __device__ __forceinline__ void matvec_quantize(matvec_activation *block, float4 v, bool real)
{
    const int word = threadIdx.x & 7;
    float most = matvec_most4(v);
#pragma unroll
    for (int d = 1; d < 8; d <<= 1)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    const uint32_t q = matvec_round4(v, matvec_steps(most));
    if (real)
        ((uint32_t *)block)[word] = q;
    int sum = chip_dot4_signed(q, 0x01010101u, 0);
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int other = __shfl_xor_sync(~0u, sum, 4);
    if (real && word == 0)
        matvec_describe(block, most * (1.f / 127), sum, other);
}

/* Loads in flight at once: so many times four columns a thread, for N rows. */
template <int N> constexpr __host__ __device__ int matvec_batch(void)
{
    return N == 1 ? 2 : 1;
}

/* The norm's weights of a thread's first batch, to be fetched before the wait. */
template <int N> struct matvec_norm_weights {
    float4 w[matvec_batch<N>()];
};

template <int N>
static __device__ __forceinline__ void matvec_fetch_norm(const matvec_input &in, int base, int threads,
                                                         matvec_norm_weights<N> &norm)
{
#pragma unroll
    for (int b = 0; b < matvec_batch<N>(); b++) {
        const int u = base + b * threads + (int)threadIdx.x;
        norm.w[b] = make_float4(1, 1, 1, 1);
        if (in.norm && 4 * u + 3 < in.columns)
            norm.w[b] = ((const float4 *)in.norm)[u];
    }
}

/* Writes the squares' sums of each warp to squares[n][warp]. */
template <int N> static __device__ __forceinline__ void matvec_keep_squares(float (&square)[N], float (*squares)[MATVEC_WARPS])
{
    const float sum = matvec_reduce<N>(square);
    if ((threadIdx.x & (32 / N - 1)) == 0)
        squares[(threadIdx.x & 31) / (32 / N)][threadIdx.x >> 5] = sum;
}

/* Reads the rows: their blocks go to the area, the sums of their squares to squares (which has a number of each warp: others
 * must write 0). By the first `threads` threads, whole warps. The columns are a multiple of 32. A barrier must follow. */
template <int N>
static __device__ __forceinline__ void matvec_stage_input(const matvec_input &in, int threads, matvec_norm_weights<N> &norm,
                                                          matvec_activation *area, float (*squares)[MATVEC_WARPS])
{
    constexpr int batch = matvec_batch<N>();
    const int units = in.columns >> 2, thread = (int)threadIdx.x;
    float square[N] = {};
#pragma unroll 1
    for (int base = 0; base < units; base += batch * threads) {
        float4 x[batch][N];
#pragma unroll
        for (int b = 0; b < batch; b++) {
            const int u = base + b * threads + thread;
            if (b && base + b * threads >= units)
                break;
#pragma unroll
            for (int n = 0; n < N; n++) {
                x[b][n] = make_float4(0, 0, 0, 0);
                if (n < in.count && u < units)
                    x[b][n] = ((const float4 *)matvec_row(in, n))[u];
            }
        }
        if (base)
            matvec_fetch_norm<N>(in, base, threads, norm);
#pragma unroll
        for (int b = 0; b < batch; b++) {
            const int u = base + b * threads + thread;
            if (b && base + b * threads >= units)
                break;
#pragma unroll
            for (int n = 0; n < N; n++)
                if (n < in.count) {
                    square[n] += matvec_dot4(x[b][n], x[b][n]);
                    matvec_quantize(area + n * in.blocks + (u >> 3), matvec_multiply(x[b][n], norm.w[b]), u < units);
                }
        }
    }
    if (in.norm)
        matvec_keep_squares<N>(square, squares);
}

/* The squares alone, for float weights and any number of columns. */
template <int N>
static __device__ __forceinline__ void matvec_square_input(const matvec_input &in, float (*squares)[MATVEC_WARPS])
{
    const int units = (in.columns + 3) >> 2;
    float square[N] = {};
    if (!in.norm)
        return;
#pragma unroll 1
    for (int u = threadIdx.x; u < units; u += MATVEC_THREADS)
#pragma unroll
        for (int n = 0; n < N; n++)
            if (n < in.count) {
                const float4 x = matvec_load4(matvec_row(in, n), u, in.columns);
                square[n] += matvec_dot4(x, x);
            }
    matvec_keep_squares<N>(square, squares);
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
    return rsqrtf(sum * in.inverse_columns + in.epsilon);
}

/* Bytes of eight blocks in a plane (layout.h). */
constexpr __host__ __device__ int matvec_eight(uint32_t type, int plane)
{
    switch (plane) {
    case 0: return type == QMI_TYPE_Q8_0 ? 256 : 128;
    case 1: return type == QMI_TYPE_Q5_0 || type == QMI_TYPE_Q5_K ? 32 : type == QMI_TYPE_Q6_K ? 64 : 0;
    case 2: return type == QMI_TYPE_IQ4_XS ? 8 : 16;
    default: return type == QMI_TYPE_Q4_K || type == QMI_TYPE_Q5_K ? 4 : type == QMI_TYPE_Q6_K ? 2 : 0;
    }
}

/* v / divisor for 0 <= v < MATVEC_DIVIDE_MOST, given 1 / divisor: the quotient's distance to the next integer is at least half
 * of 1 / divisor. */
#define MATVEC_DIVIDE_MOST (1 << 20)
static __device__ __forceinline__ int matvec_divide(int v, float inverse)
{
    return (int)(((float)v + 0.5f) * inverse);
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
        block_mins(w.mins, w.d, &c.scale, &c.other);
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
#pragma unroll
        for (int k = 0; k < 4; k++)
            low = matvec_dot_word<T>(c.low[k], block_word(a.low, k), low);
        low += T == QMI_TYPE_Q4_0 || T == QMI_TYPE_Q4_K ? high >> 4 : high; /* exact: all are multiples of 16 */
        sum = fmaf(c.scale * a.scale, (float)low, sum);
        if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K)
            sum = fmaf(-c.other, a.total, sum);
        if constexpr (T == QMI_TYPE_Q4_0 || T == QMI_TYPE_Q5_0)
            sum = fmaf(c.scale * (T == QMI_TYPE_Q4_0 ? -8.f : -16.f), a.total, sum);
        return sum;
    }
}

/* Rows of weights that a unit has: as many as share each load of activations, and as registers allow. */
template <int N> constexpr __host__ __device__ int matvec_unit(void)
{
    return N == 1 ? 4 : 2;
}

/* A unit: the lane's blocks of R rows in a slot with those of the N rows of activations whose bit is set: sums[r * N + n] grows
 * by the lane's part. Row n of activations has its block at area[n * stride]; i, next, M: as in ring_fetch, but of the lane's
 * block. */
template <uint32_t T, int N, int R, int M>
static __device__ __forceinline__ void matvec_unit_dots(const uint8_t *slot, uint32_t i, uint32_t next,
                                                        const matvec_activation *area, int stride, uint32_t inputs,
                                                        float (&sums)[R * N])
{
    matvec_codes<T> codes[R];
    block<T> w[R];
    if constexpr (N == 1) {
        const matvec_activation a = area[0];
#pragma unroll
        for (int r = 0; r < R; r++)
            ring_take<T, R>(w[r], slot, r, i + r / M * next);
#pragma unroll
        for (int r = 0; r < R; r++) {
            matvec_unpack<T>(w[r], i, codes[r]);
            sums[r] = matvec_dot<T>(codes[r], a, sums[r]);
        }
        (void)stride, (void)inputs;
    } else {
#pragma unroll
        for (int r = 0; r < R; r++) {
            ring_take<T, R>(w[r], slot, r, i + r / M * next);
            matvec_unpack<T>(w[r], i, codes[r]);
        }
#pragma unroll
        for (int n = 0; n < N; n++)
            if ((inputs >> n) & 1) {
                const matvec_activation a = area[n * stride];
#pragma unroll
                for (int r = 0; r < R; r++)
                    sums[r * N + n] = matvec_dot<T>(codes[r], a, sums[r * N + n]);
            }
    }
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

/* Whole rows of type T; sums as in matvec_dots. */
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

#endif
