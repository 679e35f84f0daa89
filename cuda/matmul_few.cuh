/* The product kernel for tiles of few tokens whose rows come as floats: experts when some sequences are decoded together, one
 * to three tokens each. A block converts its tokens itself, whole rows, so that no kernel has to do it before, and then reads
 * weights without a barrier in between.
 * Floor: the bytes of weights. A chunk of 32 rows (2.25 KB at 4.5 bits) takes a warp about 450 instructions, so 16 warps on
 * four schedulers unpack 20 bytes a clock and multiprocessor: a little more than the memory delivers. */
#ifndef QMI_CUDA_MATMUL_FEW_CUH
#define QMI_CUDA_MATMUL_FEW_CUH

#include "convert.cuh"
#include "matmul_tmpl.cuh"

#define FEW_TOKENS 16

/* Rows to shared memory as matmul_fetch would lay them, chunk after chunk; the fewer they are the more warps take one. */
static __device__ __forceinline__ void few_convert(const matmul_part &part, const matmul_place &place, uint8_t *shared,
                                                   float gain, float *scale)
{
    const int row_warps = place.count <= 1 ? 8 : place.count <= 2 ? 4 : place.count <= 4 ? 2 : 1;
    const int warp = threadIdx.x >> 5, step = row_warps * 32, start = warp % row_warps * 32 + (threadIdx.x & 31);
    const int columns = part.a.columns, chunks = (columns + MATMUL_CHUNK - 1) / MATMUL_CHUNK;
    for (int first = 0; first < place.count; first += MATMUL_WARPS / row_warps) { /* once, when warps share rows */
        const int token = first + warp / row_warps, items = token < place.count ? chunks * 8 : 0;
        const int i0 = place.first + min(token, place.count - 1);
        const float *row = part.from + (int64_t)(part.gather ? part.gather[i0] : i0) * columns;
        float sum = 0, most = 0;
        for (int i = start; i < items; i += step) {
            float4 x[4];
            convert_item(x, row, columns, i);
#pragma unroll
            for (int b = 0; b < 4; b++)
                most = convert_most(most, x[b]);
        }
        convert_reduce(&sum, &most, row_warps);
        const int exponent = convert_exponent(most, false);
        const float4 down = make_float4(convert_power(-exponent), convert_power(-exponent), convert_power(-exponent),
                                        convert_power(-exponent));
        for (int i = start; i < items; i += step) {
            float4 x[4];
            convert_item(x, row, columns, i);
#pragma unroll
            for (int b = 0; b < 4; b++)
                x[b] = convert_times(x[b], down, 1);
            uint8_t *to = shared + ((i >> 3) * FEW_TOKENS + token) * 256;
            const int unit = convert_unit(i);
            convert_units(to + ((unit ^ (token & 7)) << 4), to + (((unit + 1) ^ (token & 7)) << 4), x);
        }
        if (start == 0 && token < place.count)
            scale[token] = convert_power(exponent) / gain;
    }
}

template <uint32_t T>
__global__ void __launch_bounds__(MATMUL_THREADS, matmul_resident<T, FEW_TOKENS>())
    matmul_few_kernel(const __grid_constant__ matmul_work work)
{
    constexpr bool ahead = matmul_ahead<T, FEW_TOKENS>();
    CHIP_SHARED(uint8_t, shared);
    __shared__ float scale[FEW_TOKENS];
    chip_let_next_start();
    const matmul_part &part = work.part[matmul_part_of(work)];
    if (part.tiles)
        chip_wait_for_previous();
    const matmul_place place = matmul_find(part, work.tile_tokens, blockIdx.x - part.first_block);
    if (part.tiles && place.count <= 0)
        return;
    const int share = (threadIdx.x >> 5) / work.row_warps, shares = MATMUL_WARPS / work.row_warps;
    const matmul_weights weights = matmul_aim<T>(part, place, work.row_warps);
    const int chunks = (weights.blocks + 3) / 4, live = (place.count + 7) / 8;
    block<T> now[2][2], next[2][2];
    if (ahead && share < chunks)
        matmul_load<T>(next, weights, share);
    if (!part.tiles)
        chip_wait_for_previous();
    few_convert(part, place, shared, block_gain<T>(), scale);
    __syncthreads();

    float sums[2][FEW_TOKENS / 8][4] = {};
    for (int chunk = share; chunk < chunks; chunk += shares) {
        if constexpr (ahead) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                now[i >> 1][i & 1] = next[i >> 1][i & 1];
            if (chunk + shares < chunks)
                matmul_load<T>(next, weights, chunk + shares);
        } else
            matmul_load<T>(now, weights, chunk);
        matmul_multiply<T, FEW_TOKENS>(sums, now, 4 * chunk + (threadIdx.x & 3), shared + chunk * FEW_TOKENS * 256, live);
    }
    if (shares > 1)
        matmul_gather_sums<FEW_TOKENS>(sums, (float *)shared, work.row_warps, share);
    if (!share)
        matmul_store<FEW_TOKENS>(part, sums, weights.row, place.first, place.count, scale);
}

#endif
