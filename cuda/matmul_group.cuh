/* The product kernel for tiles of many tokens on sm_90a: as matmul_tmpl.cuh, but the warp groups' instructions multiply, which
 * read the activations from shared memory by themselves and run while the next quarter of the weights is unpacked.
 *
 * A block: two warp groups, each 128 rows as two tiles of 64 (m = 0, 1), or, when they share out k, the same 128 rows. Sums
 * take 128 registers a thread, weights in halves 2 x 16 (one set at work, one being unpacked), blocks at hand and to come 2 x
 * 32.
 *
 * For each chunk of 128 tokens and 256 rows: 2048 clocks of the tensor cores, 600 instructions a scheduler to unpack, shared
 * memory half busy, from L2 32 KB of activations and 18 KB (4.5 bits) of weights: 25 bytes a clock, about what L2 gives. */
#ifndef QMI_CUDA_MATMUL_GROUP_CUH
#define QMI_CUDA_MATMUL_GROUP_CUH

#include "chip_group.cuh"
#include "matmul_tmpl.cuh"

#define GROUP_TOKENS 128

/* Chunks [first, last) to shared memory, each as two halves of k 64: [tokens][128 bytes] as chip_group.cuh describes. */
static __device__ __forceinline__ void group_fetch(const uint8_t *const *source, int count, int tokens, uint8_t *stage,
                                                   int first, int last)
{
    const int unit = threadIdx.x & 15, own = threadIdx.x >> 4;
    stage += (unit >> 3) * tokens * 128 + (((unit & 7) ^ (own & 7)) << 4);
#pragma unroll 1
    for (int chunk = first; chunk < last; chunk++, stage += tokens * 256)
#pragma unroll
        for (int i = 0; i < GROUP_TOKENS; i += MATMUL_THREADS / 16)
            if (own + i < count)
                chip_copy16(stage + (own + i) * 128, source[own + i] + chunk * 256 + unit * 16, true);
}

#if CHIP_HAS_GROUPS

template <uint32_t T>
static __device__ __forceinline__ void group_unpack(uint32_t a[16], const block<T> w[2][2], const block_factors factors[2][2],
                                                    int k)
{
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t pairs[4];
            block_unpack_quarter(w[m][h], factors[m][h], k, pairs);
#pragma unroll
            for (int p = 0; p < 4; p++)
                a[8 * m + 4 * (p >> 1) + h + 2 * (p & 1)] = pairs[p]; /* [m][step of k 16][register] */
        }
}

/* The first quarter of a chunk's weights; `now` takes them from `next`, or, where they were not fetched ahead, from memory. */
template <uint32_t T>
static __device__ __forceinline__ void group_begin(uint32_t a[16], block<T> now[2][2], const block<T> next[2][2],
                                                   block_factors factors[2][2], const matmul_weights &weights, int chunk)
{
    if constexpr (matmul_ahead<T, GROUP_TOKENS>()) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            now[i >> 1][i & 1] = next[i >> 1][i & 1];
    } else
        matmul_load<T>(now, weights, chunk);
#pragma unroll
    for (int i = 0; i < 4; i++)
        factors[i >> 1][i & 1] = block_factors_of(now[i >> 1][i & 1], 4 * chunk + (threadIdx.x & 3));
    group_unpack<T>(a, now, factors, 0);
}

/* Sets the tensor cores to a quarter of a chunk; when it returns, those before have been done and their a is free. */
template <int N>
static __device__ __forceinline__ void group_multiply(float sums[2][GROUP_TOKENS / 2], uint32_t a[16], uint32_t before[16],
                                                      uint64_t rows)
{
    chip_group_keep(a, 16);
    chip_group_fence();
#pragma unroll
    for (int step = 0; step < 2; step++)
#pragma unroll
        for (int m = 0; m < 2; m++)
            chip_group_multiply<N>(sums[m], a + 8 * m + 4 * step, chip_group_step(rows, step * 32));
    chip_group_commit();
    chip_group_wait<1>();
    chip_group_keep(before, 16);
}

/* All rounds for tiles of N tokens at most. In round r the stage of round r - 2, which nobody reads any more after the barrier,
 * is filled for round r + stages - 2: there are four, or three. The first quarter of the next chunk is unpacked before the
 * barrier, while the last one of this chunk is at work. */
template <uint32_t T, int N>
static __device__ __forceinline__ void group_rounds(const matmul_work &work, const matmul_weights &weights,
                                                    const uint8_t *const *source, int count, uint8_t *shared,
                                                    float sums[2][GROUP_TOKENS / 2], block<T> next[2][2], int chunks,
                                                    int share, int shares)
{
    const int rounds = (chunks + shares - 1) / shares, half_bytes = work.tile_tokens * 128, stages = work.stages;
    block<T> now[2][2];
    block_factors factors[2][2];
    uint32_t a[2][16] = {};
    for (int s = 0; s < stages - 2; s++) {
        if (s < rounds)
            group_fetch(source, count, work.tile_tokens, shared + s * work.stage_bytes, s * shares,
                        min((s + 1) * shares, chunks));
        chip_copy_commit();
    }
    if (share < chunks)
        group_begin<T>(a[0], now, next, factors, weights, share);
    int stage = 0, fill = stages - 2;
    for (int round = 0; round < rounds; round++) {
        const int chunk = round * shares + share;
        const uint64_t rows = chip_group_rows(shared + stage * work.stage_bytes + 2 * share * half_bytes);
        if (stages == 4)
            chip_copy_wait<1>();
        else
            chip_copy_wait<0>();
        chip_group_publish();
        __syncthreads();
        if (chunk < chunks)
            group_multiply<N>(sums, a[0], a[1], rows);
        if (round + stages - 2 < rounds)
            group_fetch(source, count, work.tile_tokens, shared + fill * work.stage_bytes, (round + stages - 2) * shares,
                        min((round + stages - 1) * shares, chunks));
        chip_copy_commit();
        if (chunk < chunks) {
            if (matmul_ahead<T, GROUP_TOKENS>() && chunk + shares < chunks)
                matmul_load<T>(next, weights, chunk + shares);
#pragma unroll
            for (int k = 1; k < 4; k++) {
                group_unpack<T>(a[k & 1], now, factors, k);
                group_multiply<N>(sums, a[k & 1], a[(k & 1) ^ 1],
                                  chip_group_step(rows, (k >> 1) * half_bytes + (k & 1) * 64));
            }
            if (chunk + shares < chunks)
                group_begin<T>(a[0], now, next, factors, weights, chunk + shares);
        }
        stage = stage + 1 == stages ? 0 : stage + 1;
        fill = fill + 1 == stages ? 0 : fill + 1;
    }
    chip_group_wait<0>();
#pragma unroll
    for (int m = 0; m < 2; m++)
        chip_group_keep(sums[m], N / 2);
    chip_copy_wait<0>();
}

template <uint32_t T>
static __device__ __forceinline__ void group_tile(const matmul_work &work, const matmul_part &part, const matmul_place &place,
                                                  const uint8_t *const *source, const float *scale, uint8_t *shared,
                                                  const matmul_weights &weights, block<T> next[2][2], int share, int shares)
{
    float sums[2][GROUP_TOKENS / 8][4] = {};
    float(*flat)[GROUP_TOKENS / 2] = (float(*)[GROUP_TOKENS / 2])sums;
    const int chunks = matmul_chunks<T>(part, weights);
#define GROUP_CASE(n) \
    case n / 16: group_rounds<T, n>(work, weights, source, place.count, shared, flat, next, chunks, share, shares); break;
    switch ((place.count + 15) / 16) {
        GROUP_CASE(16)
        GROUP_CASE(32)
        GROUP_CASE(48)
        GROUP_CASE(64)
        GROUP_CASE(80)
        GROUP_CASE(96)
        GROUP_CASE(112)
        GROUP_CASE(128)
    }
#undef GROUP_CASE
    if (shares > 1)
        matmul_gather_sums<GROUP_TOKENS>(sums, (float *)shared, work.row_warps, share);
    if (!share)
        matmul_store<GROUP_TOKENS>(part, sums, weights.row, place.first, place.count, scale);
}

#endif

template <uint32_t T>
__global__ void __launch_bounds__(MATMUL_THREADS, 1) matmul_group_kernel(const __grid_constant__ matmul_work work)
{
#if CHIP_HAS_GROUPS
    CHIP_SHARED(uint8_t, unaligned);
    __shared__ const uint8_t *source[GROUP_TOKENS];
    __shared__ float scale[GROUP_TOKENS];
    uint8_t *shared = unaligned + ((1024 - ((uintptr_t)unaligned & 1023)) & 1023);
    chip_let_next_start();
    const matmul_part &part = work.part[matmul_part_of(work)];
    const bool late = part.tiles || part.written;
    if (late)
        chip_wait_for_previous();
    const matmul_place place = matmul_find(part, work.tile_tokens, blockIdx.x - part.first_block);
    if (part.tiles && place.count <= 0)
        return;
    const int share = (threadIdx.x >> 5) / work.row_warps, shares = MATMUL_WARPS / work.row_warps;
    const matmul_weights weights = matmul_aim<T>(part, place, work.row_warps);
    block<T> next[2][2];
    if (matmul_ahead<T, GROUP_TOKENS>() && share * 4 < weights.blocks)
        matmul_load<T>(next, weights, share);
    if (!late)
        chip_wait_for_previous();
    matmul_list<T>(part, place, source, scale);
    group_tile<T>(work, part, place, source, scale, shared, weights, next, share, shares);
#else
    (void)work;
    __trap();
#endif
}

#endif
