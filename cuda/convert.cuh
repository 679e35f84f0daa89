/* Converting rows, as a function of a block, for kernels that do something else beside.
 *
 * Floor: 4 bytes read and 2 written a value; a second look at the row finds it in L1 or L2. An item is 16 values, 4 neighbours
 * of each of a chunk's 4 blocks, which become two whole units. */
#ifndef QMI_CUDA_CONVERT_CUH
#define QMI_CUDA_CONVERT_CUH

#include "chip.cuh"
#include "matmul.cuh"

#define CONVERT_WARPS 8
#define CONVERT_WARPS_MOST 16
#define CONVERT_MANY 2048 /* warps that keep a card busy */

/* Values v .. v + 3 of a row, zeros behind its end. */
static __device__ __forceinline__ float4 convert_load(const float *row, int columns, int v)
{
    if (columns % 4 == 0)
        return v < columns ? *(const float4 *)(row + v) : make_float4(0, 0, 0, 0);
    return make_float4(v < columns ? row[v] : 0, v + 1 < columns ? row[v + 1] : 0, v + 2 < columns ? row[v + 2] : 0,
                       v + 3 < columns ? row[v + 3] : 0);
}

static __device__ __forceinline__ void convert_store(float *row, int columns, int v, float4 x)
{
    if (columns % 4 == 0) {
        if (v < columns)
            *(float4 *)(row + v) = x;
        return;
    }
    const float values[4] = { x.x, x.y, x.z, x.w };
    for (int i = 0; i < 4 && v + i < columns; i++)
        row[v + i] = values[i];
}

/* Sums and maxima over the warps that share a row; all threads of the block call it. */
static __device__ __forceinline__ void convert_reduce(float *sum, float *most, int row_warps)
{
    __shared__ float sums[CONVERT_WARPS_MOST], mosts[CONVERT_WARPS_MOST];
    const int warp = threadIdx.x >> 5, first = warp / row_warps * row_warps;
    *sum = chip_warp_sum(*sum);
    *most = chip_warp_max(*most);
    if (row_warps == 1)
        return;
    if ((threadIdx.x & 31) == 0) {
        sums[warp] = *sum;
        mosts[warp] = *most;
    }
    __syncthreads();
    *sum = *most = 0;
    for (int w = first; w < first + row_warps; w++) {
        *sum += sums[w];
        *most = fmaxf(*most, mosts[w]);
    }
}

/* Power of two that brings `most` below 2^14; `always`: also small rows up to 2^13 .. 2^14. 2^exponent of the return value is
 * what the halves are to be multiplied with. */
static __device__ __forceinline__ int convert_exponent(float most, bool always)
{
    int exponent = (int)(__float_as_uint(most) >> 23) - 127 - 13;
    return exponent > 0 || always ? max(exponent, -100) : 0;
}

static __device__ __forceinline__ float convert_power(int exponent) /* 2^exponent */
{
    return __uint_as_float((uint32_t)(exponent + 127) << 23);
}

static __device__ __forceinline__ uint32_t convert_pair(float a, float b)
{
    __half2 pair = __floats2half2_rn(a, b);
    return *(uint32_t *)&pair;
}

/* Two units: of values (0, 2) and (1, 3) of the four blocks' four neighbours. */
static __device__ __forceinline__ void convert_units(void *even, void *odd, const float4 x[4])
{
    *(uint4 *)even = make_uint4(convert_pair(x[0].x, x[0].z), convert_pair(x[1].x, x[1].z), convert_pair(x[2].x, x[2].z),
                              convert_pair(x[3].x, x[3].z));
    *(uint4 *)odd = make_uint4(convert_pair(x[0].y, x[0].w), convert_pair(x[1].y, x[1].w), convert_pair(x[2].y, x[2].w),
                                    convert_pair(x[3].y, x[3].w));
}

static __device__ __forceinline__ float4 convert_rest(float4 x) /* what rounding to half lost */
{
    return make_float4(x.x - __half2float(__float2half_rn(x.x)), x.y - __half2float(__float2half_rn(x.y)),
                       x.z - __half2float(__float2half_rn(x.z)), x.w - __half2float(__float2half_rn(x.w)));
}

static __device__ __forceinline__ float4 convert_times(float4 x, float4 y, float factor)
{
    return make_float4(x.x * factor * y.x, x.y * factor * y.y, x.z * factor * y.z, x.w * factor * y.w);
}

/* The four float4 of item i of a row. */
static __device__ __forceinline__ void convert_item(float4 x[4], const float *row, int columns, int i)
{
#pragma unroll
    for (int b = 0; b < 4; b++)
        x[b] = convert_load(row, columns, (i >> 3) * MATMUL_CHUNK + b * 32 + (i & 7) * 4);
}

static __device__ __forceinline__ float convert_most(float most, float4 x)
{
    return fmaxf(fmaxf(most, fmaxf(fabsf(x.x), fabsf(x.y))), fmaxf(fabsf(x.z), fabsf(x.w)));
}

/* The first of an item's two units in its chunk: values 4 k .. of the block's half `high` are pairs 4 k + 2 high and the next. */
static __device__ __forceinline__ int convert_unit(int i)
{
    return 4 * (i & 3) + 2 * ((i >> 2) & 1);
}

/* Four values a thread as numbers of 8 bits; eight threads from a multiple of eight on have a block. All lanes of the warp take
 * part. Where a block's largest value is below 1e-30, all count as 0: 127 / it would overflow. */
static __device__ __forceinline__ void convert_bytes(matmul_bytes *to, float4 v, bool real)
{
    const int word = threadIdx.x & 7;
    float most = convert_most(0, v);
#pragma unroll
    for (int d = 1; d < 8; d <<= 1)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    const float gain = most > 1e-30f ? __fdividef(127.f, most) : 0.f;
    const uint32_t a = (uint32_t)__float2int_rn(v.x * gain), b = (uint32_t)__float2int_rn(v.y * gain);
    const uint32_t c = (uint32_t)__float2int_rn(v.z * gain), d = (uint32_t)__float2int_rn(v.w * gain);
    const uint32_t q = __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
    int sum = chip_dot4_signed(q, 0x01010101u, 0);
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int other = __shfl_xor_sync(~0u, sum, 4);
    if (!real)
        return;
    to->word[2 * (word & 3) + (word >> 2)] = q;
    if (word == 0) {
        const float scale = most * (1.f / 127);
        to->scale = scale;
        to->total = scale * (float)(sum + other);
        to->sums = ((uint32_t)sum & 0xffff) | (uint32_t)other << 16;
        to->unused = 0;
    }
}

/* A row of 8-bit numbers by its warps. */
static __device__ __forceinline__ void convert_row_bytes(const convert_part &part, int row, bool real, int row_warps)
{
    const int columns = part.columns, blocks = (columns + QMI_CUDA_BLOCK - 1) / QMI_CUDA_BLOCK;
    const int warp = (threadIdx.x >> 5) % row_warps, first = warp * 32 + (threadIdx.x & 31), step = row_warps * 32;
    const float *from = part.from + (int64_t)(real ? row : 0) * columns;
    float sum = 0, most = 0, factor = 1;
    if (part.weight) {
        for (int i = first; i < blocks * 8; i += step) {
            const float4 x = convert_load(from, columns, 4 * i);
            sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        }
        convert_reduce(&sum, &most, row_warps);
        factor = 1 / sqrtf(sum / (float)columns + part.epsilon);
    }
    for (int i0 = warp * 32; i0 < blocks * 8; i0 += step) { /* whole blocks: 8 a row at least, or a multiple of a warp's 4 */
        const int i = i0 + (threadIdx.x & 31);
        const bool there = real && i < blocks * 8;
        float4 x = i < blocks * 8 ? convert_load(from, columns, 4 * i) : make_float4(0, 0, 0, 0);
        if (part.weight)
            x = convert_times(x, i < blocks * 8 ? convert_load(part.weight, columns, 4 * i) : x, factor);
        if (part.normed && there)
            convert_store(part.normed + (int64_t)row * columns, columns, 4 * i, x);
        convert_bytes(part.bytes + (int64_t)(real ? row : 0) * blocks + (there ? i >> 3 : 0), x, there);
    }
}

/* The rows of one block of the launch. */
static __device__ __forceinline__ void convert_block(const convert_work &work, int block)
{
    const int p = block >= work.first_block[1];
    const convert_part &part = work.part[p];
    const int row_warps = work.row_warps[p], warps = blockDim.x >> 5, warp = threadIdx.x >> 5;
    const int row = (block - work.first_block[p]) * (warps / row_warps) + warp / row_warps;
    const bool real = row < part.rows;
    if (part.bytes) {
        convert_row_bytes(part, row, real, row_warps);
        return;
    }
    const int columns = part.columns, chunks = (columns + MATMUL_CHUNK - 1) / MATMUL_CHUNK, items = real ? chunks * 8 : 0;
    const int first = warp % row_warps * 32 + (threadIdx.x & 31), step = row_warps * 32;
    const float *from = part.from + (int64_t)(real ? row : 0) * columns;
    const float4 ones = make_float4(1, 1, 1, 1);

    float sum = 0, most = 0;
    for (int i = first; i < items; i += step)
#pragma unroll
        for (int b = 0; b < 4; b++) {
            int v = (i >> 3) * MATMUL_CHUNK + b * 32 + (i & 7) * 4;
            float4 x = convert_load(from, columns, v);
            sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
            if (part.weight)
                x = convert_times(x, convert_load(part.weight, columns, v), 1);
            most = convert_most(most, x);
        }
    convert_reduce(&sum, &most, row_warps);
    const float factor = part.weight ? 1 / sqrtf(sum / (float)columns + part.epsilon) : 1;
    const int exponent = convert_exponent(most * factor, part.to.passes > 1);
    const float down = convert_power(-exponent);
    for (int i = first; i < items; i += step) {
        float4 x[4];
#pragma unroll
        for (int b = 0; b < 4; b++) {
            int v = (i >> 3) * MATMUL_CHUNK + b * 32 + (i & 7) * 4;
            x[b] = convert_load(from, columns, v);
            if (part.weight)
                x[b] = convert_times(x[b], convert_load(part.weight, columns, v), factor);
            if (part.normed)
                convert_store(part.normed + (int64_t)row * columns, columns, v, x[b]);
            x[b] = convert_times(x[b], ones, down);
        }
        if (!part.to.x)
            continue;
        __half *to = part.to.x + (int64_t)row * part.to.stride + (i >> 3) * MATMUL_CHUNK + convert_unit(i) * 8;
        convert_units(to, to + 8, x);
        if (part.to.passes > 1) {
            const int length = part.to.stride / part.to.passes;
            if (part.to.passes > 2)
                convert_units(to + 2 * length, to + 2 * length + 8, x);
#pragma unroll
            for (int b = 0; b < 4; b++)
                x[b] = convert_rest(x[b]);
            convert_units(to + length, to + length + 8, x);
        }
    }
    if (real && first == 0 && part.to.x)
        part.to.scale[row] = convert_power(exponent);
}

#endif
