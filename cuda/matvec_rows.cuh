/* The decode kernel of PROJECT, GLU, PROJECT_ADD and LOGITS, for up to N rows.
 *
 * A block has rows of one matrix (or of gate and up in turns); its warps take tiles of rows, each lane one block of 32 columns
 * of them at a time. Weights come through a ring of stages in shared memory, a ring for each warp, filled before the wait.
 *
 * Floors, for PROJECT of a delta layer of 35B-A3B (12352 x 2048, Q4_K, H200): bytes 14.2 MB / 4.6 TB/s = 3.1 us, of which all
 * may arrive before the wait (108 KB a multiprocessor); latency after the wait: load of the input 0.35 us, normalise and
 * quantize 0.2, dots 1.1 (188 x 32 blocks a multiprocessor, 45 instructions each, 4 issued a cycle), sums 0.15. */
#ifndef QMI_CUDA_MATVEC_ROWS_CUH
#define QMI_CUDA_MATVEC_ROWS_CUH

#include "matvec.cuh"

struct matvec_job {
    matvec_input in;
    cuda_matrix matrix[QMI_PROJECT_MAX]; /* pair: gate, up */
    float *out[QMI_PROJECT_MAX];         /* [row of activations][out_stride] */
    int32_t out_stride[QMI_PROJECT_MAX];
    int32_t first_block[QMI_PROJECT_MAX + 1]; /* blocks [i], [i + 1] of the grid have matrix i */
    int32_t per_block[QMI_PROJECT_MAX];  /* rows (pair: pairs) a block */
    int32_t count;                       /* matrices; pair: 1 */
    int32_t pair, add;                   /* 0 or 1 */
    int32_t tile;                        /* rows a stage */
    int32_t stages, stage_bytes;         /* of one warp's ring; stages 0: no matrix is quantized */
    float *normed;                       /* [normed_count][columns]: the input's rows normalised, in their order; or NULL */
    int32_t normed_count;
};

template <int N> constexpr __host__ __device__ int matvec_tile_rows(void)
{
    return N == 1 ? MATVEC_TILE_MAX : 2;
}

/* Shared memory of a launch: squares' sums, activation blocks, rings. */
static inline __host__ __device__ int64_t matvec_ring_offset(int rows, int blocks)
{
    return MATVEC_SQUARES_BYTES + (int64_t)rows * blocks * (int64_t)sizeof(matvec_activation);
}

/* One row of the input, normalised, to memory: what speculation starts from (op.h, LOGITS). By one block. */
static __device__ __forceinline__ void matvec_write_normed(const matvec_job &job, int row, float *squares)
{
    const int columns = job.in.columns, units = (columns + 3) >> 2, thread = (int)threadIdx.x;
    const float *x = job.in.rows + (int64_t)row * columns;
    float *to = job.normed + (int64_t)row * columns, sum = 0, factor = 1;
    __syncthreads();
    if (job.in.norm) {
        for (int u = thread; u < units; u += MATVEC_THREADS) {
            const float4 v = matvec_load4(x, u, columns);
            sum += matvec_dot4(v, v);
        }
        sum = chip_warp_sum(sum);
        if ((thread & 31) == 0)
            squares[thread >> 5] = sum;
        __syncthreads();
        sum = 0;
        for (int i = 0; i < MATVEC_WARPS; i++)
            sum += squares[i];
        factor = rsqrtf(sum / (float)columns + job.in.epsilon);
    }
    for (int c = thread; c < columns; c += MATVEC_THREADS)
        to[c] = x[c] * factor * (job.in.norm ? job.in.norm[c] : 1.f);
}

/* A block's share. */
struct matvec_share {
    int matrix, begin, count, tiles; /* rows (pairs) [begin, begin + count) of a matrix in `tiles` tiles */
    int segments;                    /* stages of a tile */
};

static __device__ __forceinline__ matvec_share matvec_share_of(const matvec_job &job)
{
    matvec_share s;
    int m = 0;
    while (m + 1 < job.count && (int)blockIdx.x >= job.first_block[m + 1])
        m++;
    s.matrix = m;
    s.begin = ((int)blockIdx.x - job.first_block[m]) * job.per_block[m];
    s.count = min(job.per_block[m], job.matrix[m].rows - s.begin);
    const int per_tile = job.tile >> job.pair;
    s.tiles = (s.count + per_tile - 1) / per_tile;
    s.segments = (job.in.blocks + MATVEC_LANES - 1) / MATVEC_LANES;
    return s;
}

/* Rows of a tile: of one matrix one after another; of a pair gate's and up's in turns. */
struct matvec_tile {
    const matvec_job *job;
    int matrix, row, count; /* count: pair: twice the rows of each */
};

static __device__ __forceinline__ matvec_tile matvec_tile_of(const matvec_share &s, const matvec_job &job, int tile)
{
    const int per_tile = job.tile >> job.pair, at = tile * per_tile;
    return { &job, s.matrix, s.begin + at, min(per_tile, s.count - at) << job.pair };
}

static __device__ __forceinline__ int64_t matvec_row_first(const matvec_tile &t, int r)
{
    return (int64_t)(t.row + (r >> t.job->pair)) * t.job->in.blocks;
}

static __device__ __forceinline__ const uint8_t *matvec_row_plane(const matvec_tile &t, int r, int plane)
{
    return t.job->matrix[t.matrix + (t.job->pair & r)].plane[plane];
}

/* Lane (r * N + n) * width has the sum of row r with row n of activations, and stores it; `old` is what was in its place. */
template <int N>
static __device__ __forceinline__ void matvec_store(const matvec_job &job, const matvec_tile &t, float value, float old)
{
    constexpr int width = 32 / (matvec_tile_rows<N>() * N);
    const int lane = threadIdx.x & 31, r = lane / width / N, n = lane / width % N;
    if (job.pair) {
        const float up = __shfl_down_sync(~0u, value, N * width);
        value = chip_silu(value) * up;
    }
    if (lane % width == 0 && r < t.count && n < job.in.count && !(job.pair & r))
        job.out[t.matrix][(int64_t)n * job.out_stride[t.matrix] + t.row + (r >> job.pair)] = old + value;
}

template <int N> static __device__ __forceinline__ float matvec_old(const matvec_job &job, const matvec_tile &t)
{
    constexpr int width = 32 / (matvec_tile_rows<N>() * N);
    const int lane = threadIdx.x & 31, r = lane / width / N, n = lane / width % N;
    if (!job.add || lane % width || r >= t.count || n >= job.in.count)
        return 0;
    return job.out[t.matrix][(int64_t)n * job.out_stride[t.matrix] + t.row + r];
}

/* Where a warp's ring is: the next stage to fill is `segment` of tile `tile`. */
struct matvec_ring {
    uint8_t *stages;
    int tile, segment;
};

static __device__ __forceinline__ void matvec_fill(const matvec_share &s, const matvec_job &job, uint32_t type, matvec_ring &ring,
                                                   uint8_t *stage)
{
    if (ring.tile < s.tiles) {
        const matvec_tile t = matvec_tile_of(s, job, ring.tile);
        const int at = ring.segment * MATVEC_LANES, real = min(MATVEC_LANES, job.in.blocks - at);
        MATVEC_FOR_QUANTIZED(type, matvec_fetch<T, MATVEC_LANES>(stage, t, t.count, at, real));
    }
    chip_copy_commit();
    if (++ring.segment == s.segments)
        ring.segment = 0, ring.tile += MATVEC_WARPS;
}

template <int N>
static __device__ __forceinline__ void matvec_quantized_rows(const matvec_share &s, const matvec_job &job, uint32_t type,
                                                             matvec_ring &ring, const matvec_activation *area, float factor)
{
    constexpr int R = matvec_tile_rows<N>();
    int slot = 0;
#pragma unroll 1
    for (int tile = threadIdx.x >> 5; tile < s.tiles; tile += MATVEC_WARPS) {
        float sums[R * N] = {};
        const matvec_tile t = matvec_tile_of(s, job, tile);
        const float old = matvec_old<N>(job, t);
#pragma unroll 1
        for (int segment = 0; segment < s.segments; segment++) {
            uint8_t *stage = ring.stages + slot * job.stage_bytes;
            const int at = segment * MATVEC_LANES, real = min(MATVEC_LANES, job.in.blocks - at);
            chip_copy_wait_for(job.stages - 1);
            __syncwarp();
            MATVEC_STAGE_DOTS(type, N, R, stage, t, t.count, at, real, area, job.in.blocks, (1u << job.in.count) - 1, sums);
            __syncwarp();
            matvec_fill(s, job, type, ring, stage);
            slot = slot + 1 == job.stages ? 0 : slot + 1;
        }
        matvec_store<N>(job, t, matvec_reduce<R * N>(sums) * factor, old);
    }
}

template <uint32_t T, int N>
static __device__ __forceinline__ void matvec_float_rows(const matvec_share &s, const matvec_job &job, float factor)
{
    constexpr int R = matvec_tile_rows<N>();
#pragma unroll 1
    for (int tile = threadIdx.x >> 5; tile < s.tiles; tile += MATVEC_WARPS) {
        float sums[R * N] = {};
        const matvec_tile t = matvec_tile_of(s, job, tile);
        const float old = matvec_old<N>(job, t);
        matvec_float_dots<T, N, R>(t, t.count, job.in, sums);
        matvec_store<N>(job, t, matvec_reduce<R * N>(sums) * factor, old);
    }
}

template <int N>
__global__ void __launch_bounds__(MATVEC_THREADS, N <= 4 ? 2 : 1) matvec_rows_kernel(const __grid_constant__ matvec_job job)
{
    constexpr int width = 32 / (matvec_tile_rows<N>() * N);
    CHIP_SHARED(uint8_t, shared);
    chip_let_next_start();
    float (*squares)[MATVEC_WARPS] = (float (*)[MATVEC_WARPS])shared;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const matvec_share s = matvec_share_of(job);
    const uint32_t type = job.matrix[s.matrix].type;
    matvec_activation *area = (matvec_activation *)(shared + MATVEC_SQUARES_BYTES);
    uint8_t *rings = shared + matvec_ring_offset(job.in.count, job.in.blocks);
    matvec_ring ring = { rings + warp * job.stages * job.stage_bytes, warp, 0 };

    if (!matvec_is_float(type)) {
#pragma unroll 1
        for (int i = 0; i < job.stages; i++)
            matvec_fill(s, job, type, ring, ring.stages + i * job.stage_bytes);
    } else
        for (int tile = warp; tile < s.tiles; tile += MATVEC_WARPS) {
            const matvec_tile t = matvec_tile_of(s, job, tile);
            matvec_float_prefetch(t, t.count, job.in.blocks, type == QMI_TYPE_F32 ? 128 : 64);
        }
    matvec_norm_weights<N> norm;
    matvec_fetch_norm<N>(job.in, 0, norm);
    chip_wait_for_previous();
    matvec_stage_input<N>(job.in, norm, job.stages != 0, area, squares);
    __syncthreads();
    const float factor = matvec_factor(job.in, squares, lane / width % N);
    if (!matvec_is_float(type))
        matvec_quantized_rows<N>(s, job, type, ring, area, factor);
    MATVEC_FOR_FLOAT(type, matvec_float_rows<T, N>(s, job, factor));
    if (job.normed) /* the last blocks have the fewest rows */
        for (int row = (int)(gridDim.x - 1 - blockIdx.x); row < job.normed_count; row += (int)gridDim.x)
            matvec_write_normed(job, row, squares[0]);
}

#endif
