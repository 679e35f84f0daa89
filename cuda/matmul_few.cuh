/* The product kernel for tiles of few tokens: experts when some sequences are decoded together, one to three tokens each.
 * Activations are numbers of 8 bits (convert.cu), as in decoding.
 *
 * Loads are as in matmul_tmpl.cuh: lane 4 g + t has block 4 j + t of rows g and g + 8. An mma of k 32 takes a word (8 codes) of each
 * lane, so it covers words of four blocks at once, whose sums must not be mixed. They are kept apart in the columns: column 2 t + e
 * is block 4 j + t of token e, and what lane 4 g + t gives as b is zero unless g >> 1 is t. Four mma then make whole blocks of 16
 * rows for two tokens, and lane 4 g + t finds the sums of its own block, for which it has the scale, in c.
 *
 * Floor: the bytes of weights. A chunk of 32 rows (2.25 KB at 4.5 bits) takes a warp about 130 instructions and 110 for each two
 * tokens; at 1.6 instructions a clock, which 16 warps reach, that is 16 bytes a clock and multiprocessor where the memory delivers 20. */
#ifndef QMI_CUDA_MATMUL_FEW_CUH
#define QMI_CUDA_MATMUL_FEW_CUH

#include "convert.cuh"
#include "matmul_tmpl.cuh"

#define FEW_PAIRS (MATMUL_FEW_TOKENS / 2)

/* A block's codes as bytes. Q6_K: other is the scale of the high half; else it times the activations' sum is to be taken off. */
template <uint32_t T> struct few_codes {
    uint32_t low[4], high[4];
    float scale, other;
};

template <uint32_t T> static __device__ __forceinline__ void few_unpack(const block<T> &w, int b, few_codes<T> &c)
{
#pragma unroll
    for (int k = 0; k < 4; k++)
        if constexpr (T == QMI_TYPE_IQ4_NL || T == QMI_TYPE_IQ4_XS)
            block_iq4_values(block_word(w.q, k), &c.low[k], &c.high[k]);
        else {
            c.low[k] = block_codes(w, k);
            c.high[k] = block_codes(w, k + 4);
        }
    c.other = 0;
    if constexpr (T == QMI_TYPE_Q8_0 || T == QMI_TYPE_Q4_0 || T == QMI_TYPE_Q5_0 || T == QMI_TYPE_IQ4_NL)
        c.scale = chip_half_low(w.d);
    if constexpr (T == QMI_TYPE_Q4_0 || T == QMI_TYPE_Q5_0)
        c.other = c.scale * (T == QMI_TYPE_Q4_0 ? 8.f : 16.f);
    if constexpr (T == QMI_TYPE_IQ4_XS)
        c.scale = block_iq4_xs_scale(w.scales, b & 7);
    if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K)
        block_mins(w.mins, w.d, &c.scale, &c.other);
    if constexpr (T == QMI_TYPE_Q6_K) {
        c.scale = chip_half_low(w.d) * (float)(int8_t)(w.scales & 0xff);
        c.other = chip_half_low(w.d) * (float)(int8_t)(w.scales >> 8);
    }
}

/* The compiler would put off what it takes to make them, and copy the blocks before others are loaded. */
template <uint32_t T> static __device__ __forceinline__ void few_keep(few_codes<T> c[2])
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        c[i >> 2].low[i & 3] = (uint32_t)chip_here((int)c[i >> 2].low[i & 3]);
        c[i >> 2].high[i & 3] = (uint32_t)chip_here((int)c[i >> 2].high[i & 3]);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        c[h].scale = __uint_as_float((uint32_t)chip_here((int)__float_as_uint(c[h].scale)));
        c[h].other = __uint_as_float((uint32_t)chip_here((int)__float_as_uint(c[h].other)));
    }
}

/* Sums of integers that begin at 1.5 x 2^23 as a float's bits are, read as a float, that much too large: no conversion. */
#define FEW_ZERO 0x4b400000
static __device__ __forceinline__ float few_float(int sum)
{
    return __uint_as_float((uint32_t)sum) - 12582912.f;
}

/* values: the lane's words of token 0 or 1, or zeros; numbers: scale, total and sums of its block for token 0. */
template <uint32_t T>
static __device__ __forceinline__ void few_multiply(float sums[FEW_PAIRS][4], const few_codes<T> c[2], const uint8_t *values,
                                                    int pair_step, const uint8_t *numbers, int row_bytes, int pairs)
{
    constexpr bool is_signed = T == QMI_TYPE_Q8_0 || T == QMI_TYPE_IQ4_NL || T == QMI_TYPE_IQ4_XS;
    constexpr bool minimum = T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K || T == QMI_TYPE_Q4_0 || T == QMI_TYPE_Q5_0;
#pragma unroll
    for (int p = 0; p < FEW_PAIRS; p++) {
        if (p >= pairs)
            break;
        const uint4 first = *(const uint4 *)(values + p * pair_step), second = *(const uint4 *)(values + p * pair_step + 16);
        const uint32_t low[4] = { first.x, first.z, second.x, second.z }, high[4] = { first.y, first.w, second.y, second.w };
        int d[4] = { FEW_ZERO, FEW_ZERO, FEW_ZERO, FEW_ZERO };
        if constexpr (T == QMI_TYPE_Q6_K) { /* codes are 32 too large, and each half has a scale */
            int e[4];
            float scale[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const uint4 own = *(const uint4 *)(numbers + (2 * p + j) * row_bytes);
                scale[j] = __uint_as_float(own.x);
                d[j] = d[2 + j] = FEW_ZERO - 32 * (int)(int16_t)(own.z & 0xffff);
                e[j] = e[2 + j] = FEW_ZERO - 32 * ((int)own.z >> 16);
            }
#pragma unroll
            for (int k = 0; k < 4; k++) {
                chip_mma_bytes_half(d, c[0].low[k], c[1].low[k], low[k]);
                chip_mma_bytes_half(e, c[0].high[k], c[1].high[k], high[k]);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float whole = fmaf(c[i >> 1].scale, few_float(d[i]), c[i >> 1].other * few_float(e[i]));
                sums[p][i] = fmaf(scale[i & 1], whole, sums[p][i]);
            }
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const uint32_t a[4] = { c[0].low[k], c[1].low[k], c[0].high[k], c[1].high[k] };
                chip_mma_bytes<is_signed>(d, a, low[k], high[k]);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 own = *(const float2 *)(numbers + (2 * p + (i & 1)) * row_bytes);
                sums[p][i] = fmaf(c[i >> 1].scale * own.x, few_float(d[i]), sums[p][i]);
                if constexpr (minimum)
                    sums[p][i] = fmaf(-c[i >> 1].other, own.y, sums[p][i]);
            }
        }
    }
}

/* The tile's tokens to shared memory; zeros behind the last block of a row, and for the second of a pair that does not exist. */
static __device__ __forceinline__ void few_stage(const matmul_part &part, const matmul_place &place, uint8_t *shared,
                                                 int row_bytes)
{
    const int blocks = part.a.blocks, units = (blocks + 3) / 4 * 12, rows = (place.count + 1) / 2 * 2;
    for (int token = 0; token < rows; token++) {
        const int i = place.first + min(token, place.count - 1);
        const uint8_t *from = (const uint8_t *)(part.bytes + (int64_t)(part.gather ? part.gather[i] : i) * blocks);
        for (int u = threadIdx.x; u < units; u += MATMUL_THREADS) {
            const bool real = u < 3 * blocks && token < place.count;
            chip_copy16(shared + token * row_bytes + u * 16, real ? from + u * 16 : from, real);
        }
    }
    if (threadIdx.x < 2)
        *(uint4 *)(shared + MATMUL_FEW_TOKENS * row_bytes + 16 * threadIdx.x) = make_uint4(0, 0, 0, 0);
    chip_copy_commit();
    chip_copy_wait<0>();
    __syncthreads();
}

/* Block b of the row that begins with block `row` of the tile, whose planes are smaller than 4 GB. */
struct few_place {
    uint32_t row, b;
    static constexpr bool again = true;
    __device__ __forceinline__ const uint8_t *one(const uint8_t *plane, int bytes) const
    {
        return plane + (row + b) * (uint32_t)bytes;
    }
    __device__ __forceinline__ const uint8_t *eight(const uint8_t *plane, int bytes) const
    {
        return plane + ((row + b) >> 3) * (uint32_t)bytes;
    }
};

/* The lane's blocks of a chunk; past the last one it is loaded again, for nobody. */
template <uint32_t T>
static __device__ __forceinline__ void few_load(block<T> w[2], const matmul_weights &from, int m, int chunk)
{
    const int b = min(4 * chunk + (int)(threadIdx.x & 3), from.blocks - 1);
#pragma unroll
    for (int h = 0; h < 2; h++)
        block_load_at(w[h], from.matrix[m], few_place{ (uint32_t)from.at[m][h], (uint32_t)b });
}

/* Sums over the four lanes of each row; lane t gets that of v[t]. */
static __device__ __forceinline__ float few_reduce(const float v[4])
{
    const bool upper = threadIdx.x & 2, odd = threadIdx.x & 1;
    float a = upper ? v[2] : v[0], b = upper ? v[3] : v[1];
    a += __shfl_xor_sync(~0u, upper ? v[0] : v[2], 2);
    b += __shfl_xor_sync(~0u, upper ? v[1] : v[3], 2);
    return (odd ? b : a) + __shfl_xor_sync(~0u, odd ? a : b, 1);
}

/* silu(gate) * up of the block's rows as numbers of 8 bits. A lane of the warps that have sums holds row `row` of token 2 p + odd;
 * tile: [tokens][rows]. */
static __device__ __forceinline__ void few_store_bytes(const matmul_part &part, const matmul_place &place,
                                                       const float sums[2][FEW_PAIRS], float *tile, int rows, int local, int row,
                                                       int odd, bool has_sums)
{
    const int blocks = (part.rows + QMI_CUDA_BLOCK - 1) / QMI_CUDA_BLOCK, first = place.row_tile * rows / QMI_CUDA_BLOCK;
    const int own = rows / QMI_CUDA_BLOCK, total = place.count * own;
    __syncthreads();
    if (has_sums)
#pragma unroll
        for (int p = 0; p < FEW_PAIRS; p++)
            tile[(2 * p + odd) * rows + local] = row < part.rows ? chip_silu(sums[0][p]) * sums[1][p] : 0;
    __syncthreads();
    for (int q0 = 0; q0 < total; q0 += MATMUL_THREADS / 8) {
        const int q = q0 + (int)(threadIdx.x >> 3), token = q < total ? q / own : 0, b = q < total ? q - token * own : 0;
        const float4 v = *(const float4 *)(tile + token * rows + b * QMI_CUDA_BLOCK + (threadIdx.x & 7) * 4);
        convert_bytes(part.out_bytes + (int64_t)(place.first + token) * blocks + first + b, v, q < total && first + b < blocks);
    }
}

template <uint32_t T>
__global__ void __launch_bounds__(MATMUL_THREADS, 2) matmul_few_kernel(const __grid_constant__ matmul_work work)
{
    CHIP_SHARED(uint8_t, shared);
    chip_let_next_start();
    const matmul_part &part = work.part[matmul_part_of(work)];
    if (part.tiles)
        chip_wait_for_previous();
    const matmul_place place = matmul_find(part, work.tile_tokens, blockIdx.x - part.first_block);
    if (part.tiles && place.count <= 0)
        return;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int share = warp / work.row_warps, shares = MATMUL_WARPS / work.row_warps;
    const matmul_weights weights = matmul_aim<T>(part, place, work.row_warps);
    const int chunks = (weights.blocks + 3) / 4, row_bytes = matmul_few_row_bytes(weights.blocks), pairs = (place.count + 1) / 2;
    block<T> w[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
        few_load<T>(w[m], weights, m, share);
    if (!part.tiles)
        chip_wait_for_previous();
    few_stage(part, place, shared, row_bytes);

    constexpr int chunk_bytes = 4 * sizeof(matmul_bytes);
    const bool mine = t == g >> 1;
    const uint8_t *numbers = shared + share * chunk_bytes + t * sizeof(matmul_bytes) + 32;
    const uint8_t *values = mine ? numbers - 32 + (g & 1) * row_bytes : shared + MATMUL_FEW_TOKENS * row_bytes;
    const int pair_step = mine ? 2 * row_bytes : 0, step = mine ? shares * chunk_bytes : 0;
    float parts[2][FEW_PAIRS][4] = {};
    for (int chunk = share; chunk < chunks; chunk += shares) {
#pragma unroll
        for (int m = 0; m < 2; m++) {
            few_codes<T> codes[2];
#pragma unroll
            for (int h = 0; h < 2; h++)
                few_unpack<T>(w[m][h], 4 * chunk + t, codes[h]);
            few_keep(codes);
            few_load<T>(w[m], weights, m, chunk + shares);
            few_multiply<T>(parts[m], codes, values, pair_step, numbers, row_bytes, pairs);
        }
        values += step;
        numbers += shares * chunk_bytes;
    }

    /* The lane's sums: row g or g + 8 of each m, tokens 0, 2, .. or 1, 3, .. */
    float sums[2][FEW_PAIRS];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int p = 0; p < FEW_PAIRS; p++)
            sums[m][p] = few_reduce(parts[m][p]);
    if (shares > 1) {
        float *room = (float *)shared + warp % work.row_warps * 2 * FEW_PAIRS * 32 + lane;
        const int stride = work.row_warps * 2 * FEW_PAIRS * 32;
        __syncthreads();
        if (share)
#pragma unroll
            for (int i = 0; i < 2 * FEW_PAIRS; i++)
                room[(share - 1) * stride + i * 32] = sums[i / FEW_PAIRS][i % FEW_PAIRS];
        __syncthreads();
        if (!share)
            for (int s = 1; s < shares; s++)
#pragma unroll
                for (int i = 0; i < 2 * FEW_PAIRS; i++)
                    sums[i / FEW_PAIRS][i % FEW_PAIRS] += room[(s - 1) * stride + i * 32];
    }
    const int half = 8 * (t >> 1), row = weights.row + half;
    if (part.out_bytes) {
        const int rows = 16 * work.row_warps;
        few_store_bytes(part, place, sums, (float *)shared, rows, warp % work.row_warps * 16 + g + half, row, t & 1, !share);
        return;
    }
    if (share)
        return;
#pragma unroll
    for (int p = 0; p < FEW_PAIRS; p++) {
        const int token = 2 * p + (t & 1);
        if (token >= place.count)
            break;
        float *out = part.out + (int64_t)(place.first + token) * part.out_stride;
        if (part.mode == MATMUL_GLU) {
            if (row < part.rows)
                out[row] = chip_silu(sums[0][p]) * sums[1][p];
        } else
#pragma unroll
            for (int m = 0; m < 2; m++)
                if (row + 16 * m < part.rows)
                    out[row + 16 * m] = sums[m][p] + (part.mode == MATMUL_ADD ? out[row + 16 * m] : 0.f);
    }
}

#endif
