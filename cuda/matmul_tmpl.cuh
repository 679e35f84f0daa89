/* The product kernel: MATMUL_INSTANCE(type) makes the instances of one type; several files share them out, so that they compile
 * side by side.
 *
 * A block of 8 warps has a tile of rows x tokens. A warp has two tiles of 16 rows (m = 0, 1; GLU: one of gate, one of up) times
 * all tokens of the tile; lane 4 g + c holds block 4 j + c of rows g and g + 8 of each for chunk j, loads them as they lie in
 * memory, one chunk ahead, and unpacks a quarter (k 32 of the chunk's 128) at a time. Activations come through shared memory,
 * three stages of cp.async; each fragment read from there serves two mma, so that shared memory (128 bytes a clock) is
 * 2/3 busy when the tensor cores are full.
 *
 * Floors, for R rows, K columns, n tokens: bytes R K x bits / 8 over the bandwidth (few tokens), 2 R K n over the rate of
 * mma.sync (on sm_90 about 0.6 of the tensor cores' rate). Unpacking takes 300 instructions a warp and chunk for its 32 rows,
 * the mma of 128 tokens 256: they overlap. Where there are few tokens the warps share out k, so that enough loads are under
 * way. */
#ifndef QMI_CUDA_MATMUL_TMPL_CUH
#define QMI_CUDA_MATMUL_TMPL_CUH

#include "block.cuh"
#include "matmul.cuh"

#define MATMUL_GROUP 8 /* tiles of tokens whose activations stay in L2 while all rows pass by */

/* Registers for weights now and next, and sums: where they do not fit, weights are loaded when needed. */
template <uint32_t T, int TOKENS> __host__ __device__ constexpr bool matmul_ahead(void)
{
    return sizeof(block<T>) / 4 * 8 + TOKENS <= 208;
}

template <uint32_t T, int TOKENS> __host__ __device__ constexpr int matmul_resident(void)
{
    return TOKENS <= 32 && sizeof(block<T>) <= 36 ? 2 : 1;
}

struct matmul_place {
    int row_tile, first, count, expert;
};

/* Which tile a block has; count 0: none. */
static __device__ __forceinline__ matmul_place matmul_find(const matmul_part &part, int tile_tokens, int block)
{
    matmul_place at = {};
    if (part.tiles) {
        int tile = block / part.row_tiles;
        at.row_tile = block - tile * part.row_tiles;
        if (tile < *part.tile_count) {
            matmul_tile t = part.tiles[tile];
            at.expert = t.expert;
            at.first = t.first;
            at.count = t.count;
        }
    } else {
        int group_blocks = MATMUL_GROUP * part.row_tiles, group = block / group_blocks, rest = block - group * group_blocks;
        int tiles = min(MATMUL_GROUP, part.token_tiles - group * MATMUL_GROUP);
        at.row_tile = rest / tiles;
        at.first = (group * MATMUL_GROUP + rest - at.row_tile * tiles) * tile_tokens;
        at.count = min(tile_tokens, part.tokens - at.first);
    }
    return at;
}

/* Chunks [first, last) of the tile's tokens to shared memory: token t's unit u at u ^ (t & 7), so that the eight rows an ldmatrix
 * takes lie in different banks. What lies there for tokens that do not exist ends in sums that nobody stores. */
template <int TOKENS>
static __device__ __forceinline__ void matmul_fetch(const uint8_t *const *source, int count, uint8_t *stage, int first, int last)
{
    const int unit = threadIdx.x & 15, own = threadIdx.x >> 4;
#pragma unroll 1
    for (int chunk = first; chunk < last; chunk++, stage += TOKENS * 256)
#pragma unroll
        for (int i = 0; i < TOKENS; i += MATMUL_THREADS / 16)
            if (own + i < count)
                chip_copy16(stage + (own + i) * 256 + ((unit ^ (own & 7)) << 4), source[own + i] + chunk * 256 + unit * 16, true);
}

/* sums += weights of one chunk (the lane's: block b of its rows) times the tokens at `tokens` in shared memory; live: groups of
 * eight tokens that exist. */
template <uint32_t T, int TOKENS>
static __device__ __forceinline__ void matmul_multiply(float sums[2][TOKENS / 8][4], const block<T> w[2][2], int b,
                                                       const uint8_t *tokens, int live)
{
    constexpr int skip = TOKENS >= 128 ? 4 : 1; /* groups left out together: a branch less often */
    const int lane = threadIdx.x & 31;
    const uint8_t *row = tokens + (lane & 7) * 256;
    block_factors factors[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            factors[m][h] = block_factors_of(w[m][h], b);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t a[2][2][4]; /* two steps of k 16 for each m */
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t pairs[4];
                block_unpack_quarter(w[m][h], factors[m][h], k, pairs);
#pragma unroll
                for (int p = 0; p < 4; p++)
                    a[m][p >> 1][h + 2 * (p & 1)] = pairs[p];
            }
        const uint8_t *units = row + (((4 * k + (lane >> 3)) ^ (lane & 7)) << 4);
#pragma unroll
        for (int group = 0; group < TOKENS / 8; group += skip) {
            if (group && group >= live)
                break;
#pragma unroll
            for (int n = group; n < group + skip; n++) {
                uint32_t b[4];
                chip_load_matrices(b, units + n * 2048);
#pragma unroll
                for (int step = 0; step < 2; step++)
#pragma unroll
                    for (int m = 0; m < 2; m++)
                        chip_mma_half(sums[m][n], a[m][step], b[2 * step], b[2 * step + 1]);
            }
        }
    }
}

/* The warps that shared out k add up; the first of each has the sums. */
template <int TOKENS>
static __device__ __forceinline__ void matmul_gather_sums(float sums[2][TOKENS / 8][4], float *room, int row_warps, int share)
{
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, shares = MATMUL_WARPS / row_warps;
    room += warp % row_warps * TOKENS * 32 + lane;
    __syncthreads(); /* the stages are free */
    if (share)
#pragma unroll
        for (int i = 0; i < TOKENS; i++)
            room[(share - 1) * row_warps * TOKENS * 32 + i * 32] = sums[i / (TOKENS / 2)][i % (TOKENS / 2) / 4][i & 3];
    __syncthreads();
    if (!share)
        for (int s = 1; s < shares; s++)
#pragma unroll
            for (int i = 0; i < TOKENS; i++)
                sums[i / (TOKENS / 2)][i % (TOKENS / 2) / 4][i & 3] += room[(s - 1) * row_warps * TOKENS * 32 + i * 32];
}

/* A lane has rows g and g + 8 of tokens 8 n + 2 c, + 1: a warp's store covers eight neighbouring floats, whole sectors. */
template <int TOKENS>
static __device__ __forceinline__ void matmul_store(const matmul_part &part, const float sums[2][TOKENS / 8][4], int row,
                                                    int first, int count, const float *scale)
{
    const int c = threadIdx.x & 3;
    const bool glu = part.mode == MATMUL_GLU, add = part.mode == MATMUL_ADD;
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int token = 8 * n + 2 * c + e;
            if (token >= count)
                continue;
            float factor = scale[token], *out = part.out + (int64_t)(first + token) * part.out_stride;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float low = sums[0][n][2 * h + e] * factor, high = sums[1][n][2 * h + e] * factor;
                int r = row + 8 * h;
                if (glu) {
                    if (r < part.rows)
                        out[r] = chip_silu(low) * high;
                } else {
                    if (r < part.rows)
                        out[r] = add ? out[r] + low : low;
                    if (r + 16 < part.rows)
                        out[r + 16] = add ? out[r + 16] + high : high;
                }
            }
        }
}

/* The lane's four rows of weights: rows g and g + 8 of the warp's two tiles of 16. */
struct matmul_weights {
    cuda_matrix matrix[2];     /* of each m, from the block's first row on; GLU: gate and up, else the same */
    int at[2][2];              /* first block of each row */
    int blocks, row;           /* in a row; its first row, of `out` */
};

template <uint32_t T>
static __device__ __forceinline__ matmul_weights matmul_aim(const matmul_part &part, const matmul_place &place, int row_warps)
{
    matmul_weights to;
    const bool glu = part.mode == MATMUL_GLU;
    const int warp = (threadIdx.x >> 5) % row_warps, g = (threadIdx.x & 31) >> 2, warp_rows = glu ? 16 : 32;
    const int tile_row = place.row_tile * row_warps * warp_rows, warp_row = warp * warp_rows + g;
    const int64_t expert = place.expert;
    to.blocks = part.a.blocks;
    to.row = tile_row + warp_row;
    to.matrix[0] = to.matrix[1] = block_from<T>(part.a, (expert * part.a.rows + tile_row) * to.blocks);
    if (glu)
        to.matrix[1] = block_from<T>(part.b, (expert * part.b.rows + part.b_first + tile_row) * to.blocks);
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            to.at[m][h] = min(warp_row + 8 * h + (glu ? 0 : 16 * m), part.rows - 1 - tile_row) * to.blocks;
    return to;
}

/* Chunks of a row, counted once for each pass; a pass begins anew with the row's first. */
template <uint32_t T> static __device__ __forceinline__ int matmul_chunks(const matmul_part &part, const matmul_weights &from)
{
    const int chunks = (from.blocks + 3) / 4;
    return block_is_float<T>() ? chunks * part.passes : chunks;
}

template <uint32_t T> static __device__ __forceinline__ int matmul_pass(const matmul_weights &from, int chunk)
{
    const int chunks = (from.blocks + 3) / 4;
    return block_is_float<T>() ? (chunk >= chunks) + (chunk >= 2 * chunks) : 0;
}

/* Blocks past the end of a row count for nothing (the activations are zero there), but must exist. */
template <uint32_t T>
static __device__ __forceinline__ void matmul_load(block<T> w[2][2], const matmul_weights &from, int chunk)
{
    const int pass = matmul_pass<T>(from, chunk);
    const int b = min(4 * (chunk - pass * ((from.blocks + 3) / 4)) + (int)(threadIdx.x & 3), from.blocks - 1);
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            block_load_at(w[m][h], from.matrix[m], block_of_row{ from.at[m][h], b });
            if constexpr (T == QMI_TYPE_F32)
                if (pass == 2)
                    block_rest(w[m][h]);
        }
}

static __device__ __forceinline__ int matmul_part_of(const matmul_work &work)
{
    int p = 0;
    while (p + 1 < work.parts && (int)blockIdx.x >= work.part[p + 1].first_block)
        p++;
    return p;
}

/* Where the tile's tokens are, and what their sums are to be multiplied with. */
template <uint32_t T>
static __device__ __forceinline__ void matmul_list(const matmul_part &part, const matmul_place &place, const uint8_t **source,
                                                   float *scale)
{
    for (int t = threadIdx.x; t < place.count; t += MATMUL_THREADS) {
        int i = place.first + t, from = part.gather ? part.gather[i] : i;
        source[t] = (const uint8_t *)(part.in.x + (int64_t)from * part.in.stride);
        scale[t] = part.in.scale[from] * (1.f / block_gain<T>());
    }
    __syncthreads();
}

template <uint32_t T, int TOKENS>
__global__ void __launch_bounds__(MATMUL_THREADS, matmul_resident<T, TOKENS>())
    matmul_kernel(const __grid_constant__ matmul_work work)
{
    constexpr int stages = MATMUL_STAGES;
    constexpr bool ahead = matmul_ahead<T, TOKENS>();
    CHIP_SHARED(uint8_t, shared);
    __shared__ const uint8_t *source[TOKENS];
    __shared__ float scale[TOKENS];
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
    const int chunks = matmul_chunks<T>(part, weights), rounds = (chunks + shares - 1) / shares, live = (place.count + 7) / 8;
    block<T> now[2][2], next[2][2];
    if (ahead && share < chunks)
        matmul_load<T>(next, weights, share);
    if (!late)
        chip_wait_for_previous();
    matmul_list<T>(part, place, source, scale);

    float sums[2][TOKENS / 8][4] = {};
#pragma unroll
    for (int s = 0; s < stages - 1; s++) {
        if (s < rounds)
            matmul_fetch<TOKENS>(source, place.count, shared + s * work.stage_bytes, s * shares,
                                 min((s + 1) * shares, chunks));
        chip_copy_commit();
    }
    int stage = 0, fill = stages - 1;
    for (int round = 0; round < rounds; round++) {
        const int chunk = round * shares + share;
        chip_copy_wait<stages - 2>();
        __syncthreads();
        if (round + stages - 1 < rounds)
            matmul_fetch<TOKENS>(source, place.count, shared + fill * work.stage_bytes, (round + stages - 1) * shares,
                                 min((round + stages) * shares, chunks));
        chip_copy_commit();
        if (chunk < chunks) {
            if constexpr (ahead) {
#pragma unroll
                for (int i = 0; i < 4; i++)
                    now[i >> 1][i & 1] = next[i >> 1][i & 1];
                if (chunk + shares < chunks)
                    matmul_load<T>(next, weights, chunk + shares);
            } else
                matmul_load<T>(now, weights, chunk);
            matmul_multiply<T, TOKENS>(sums, now, 4 * chunk + (threadIdx.x & 3),
                                       shared + stage * work.stage_bytes + share * TOKENS * 256, live);
        }
        stage = stage + 1 == stages ? 0 : stage + 1;
        fill = fill + 1 == stages ? 0 : fill + 1;
    }
    chip_copy_wait<0>();
    if (shares > 1)
        matmul_gather_sums<TOKENS>(sums, (float *)shared, work.row_warps, share);
    if (!share)
        matmul_store<TOKENS>(part, sums, weights.row, place.first, place.count, scale);
}

#include "matmul_few.cuh"
#include "matmul_group.cuh"

/* Weights of floats have no kernel for few tokens. */
template <uint32_t T> static void (*matmul_few(void))(matmul_work)
{
    if constexpr (block_is_float<T>())
        return matmul_kernel<T, 16>;
    else
        return matmul_few_kernel<T>;
}

/* *groups: whether the kernel of warp groups is more than a trap, told by its own shared memory. */
template <uint32_t T> static cudaError_t matmul_setup(int32_t shared_most, bool *groups)
{
    void (*const kernels[])(matmul_work) = { matmul_kernel<T, 16>, matmul_kernel<T, 32>, matmul_kernel<T, 128>,
                                             matmul_few<T>(), matmul_group_kernel<T> };
    cudaFuncAttributes attributes = {};
    cudaError_t code = cudaSuccess;
    for (auto kernel : kernels)
        if (code == cudaSuccess)
            code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_most);
    if (code == cudaSuccess)
        code = cudaFuncGetAttributes(&attributes, matmul_group_kernel<T>);
    *groups = attributes.sharedSizeBytes > 0;
    return code;
}

#define MATMUL_INSTANCE(type) \
    void matmul_start_##type(const cuda_run *run, const matmul_work *work, const matmul_shape *shape, int32_t blocks) \
    { \
        constexpr uint32_t T = QMI_TYPE_##type; \
        auto kernel = shape->groups ? matmul_group_kernel<T> : \
                      shape->few ? matmul_few<T>() : \
                      shape->tokens <= 16 ? matmul_kernel<T, 16> : \
                      shape->tokens <= 32 ? matmul_kernel<T, 32> : matmul_kernel<T, 128>; \
        cuda_launch(run, dim3(blocks), dim3(MATMUL_THREADS), shape->shared, kernel, *work); \
    } \
    cudaError_t matmul_setup_##type(int32_t shared_most, bool *groups) \
    { \
        constexpr uint32_t T = QMI_TYPE_##type; \
        return matmul_setup<T>(shared_most, groups); \
    }

#endif
