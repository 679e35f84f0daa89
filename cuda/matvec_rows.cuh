/* The decode kernel of PROJECT, GLU, PROJECT_ADD and LOGITS, for up to N rows.
 *
 * A block has rows of one matrix (PAIR: of gate and up, the same rows of each); a warp takes a group of four (several rows of
 * activations: two) at a time, each lane one block of 32 columns. Where rows are few and long, several warps share a group.
 *
 * Floors, for PROJECT of a delta layer of 35B-A3B (12352 x 2048, Q4_K, H200): bytes 14.6 MB / 4.6 TB/s = 3.2 us, which are on
 * their way before the wait; latency after the wait: load of the input 0.35 us, normalise and quantize 0.2, dots 1.1
 * (188 x 32 blocks a multiprocessor, 45 instructions each, 4 issued a cycle), sums 0.15. */
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
    int32_t pair, add, quantized;        /* 0 or 1; quantized: some matrix is */
    int32_t split_bits;                  /* 2^split_bits warps share a group of rows */
    int32_t fillers, ring_bytes;         /* of a warp's ring, as deep as it is (matvec_ring.cuh) */
    float *normed;                       /* [normed_count][columns]: the input's rows normalised, in their order; or NULL */
    int32_t normed_count;
};

#define MATVEC_RING_BYTES 7104 /* of a warp: three units of Q4_K; with 16 warps half of a processor's */

/* Shared memory of a launch: squares' sums, sums of warps that share rows, rings, activation blocks. */
constexpr __host__ __device__ int matvec_parts_bytes(int kernel_rows) /* two passes' */
{
    return 2 * MATVEC_WARPS * (kernel_rows == 1 ? 4 : 2 * kernel_rows) * 4;
}

static inline int64_t matvec_rows_shared(int rows, int staged, int blocks, int ring_bytes)
{
    const int kernel_rows = matvec_kernel_rows(rows);
    return matvec_squares_bytes(kernel_rows) + matvec_parts_bytes(kernel_rows) + (int64_t)MATVEC_WARPS * ring_bytes +
           (int64_t)staged * blocks * (int64_t)sizeof(matvec_activation);
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

/* A block's share: rows (pairs) [begin, begin + count) of a matrix. */
struct matvec_share {
    int matrix, begin, count;
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
    return s;
}

/* Lane (r * N + n) * width has the sum of row r of a group with row n of activations. */
template <int N> constexpr __host__ __device__ int matvec_width(void)
{
    return 32 / (matvec_unit<N>() * N);
}

/* Where the lane's sum goes to; NULL: nowhere. A group's first row (pair) is `first`; PAIR: lanes of even r have a pair. */
template <int N, bool PAIR>
static __device__ __forceinline__ float *matvec_place(const matvec_job &job, const matvec_share &s, int first)
{
    constexpr int width = matvec_width<N>();
    const int lane = threadIdx.x & 31, r = lane / width / N, n = lane / width % N, row = first + (PAIR ? r >> 1 : r);
    const bool has = lane % width == 0 && row < s.begin + s.count && n < job.in.count && !(PAIR && (r & 1));
    return has ? job.out[s.matrix] + (int64_t)n * job.out_stride[s.matrix] + row : NULL;
}

/* silu(gate) * up to the lanes of even r. */
template <int N> static __device__ __forceinline__ float matvec_gated(float value)
{
    return chip_silu(value) * __shfl_down_sync(~0u, value, N * matvec_width<N>());
}

/* Groups of rows that a warp has. */
static __device__ __forceinline__ int matvec_passes(int count, int bits, int group)
{
    const int groups = (count + group - 1) / group;
    return (groups + (MATVEC_WARPS >> bits) - 1) >> (MATVEC_WARP_BITS - bits);
}

/* All of the block: `stage` waits and brings the activations. A warp's work is units: a group of rows (PAIR: gate and up in
 * turns) and 32 columns a lane; they pass through its ring. */
template <uint32_t T, int N, bool PAIR, class STAGE>
static __device__ __forceinline__ void matvec_quantized_rows(const matvec_share &s, const matvec_job &job,
                                                             const matvec_activation *area, float *parts, uint8_t *ring,
                                                             STAGE stage)
{
    constexpr int R = matvec_unit<N>(), M = PAIR ? 2 : 1, group = R / M, most = ring_most(T, R, MATVEC_RING_BYTES);
    constexpr int slot_bytes = R * ring_row_bytes(T), width = matvec_width<N>();
    const int warp = threadIdx.x >> 5, lane = chip_here((int)threadIdx.x & 31), blocks = job.in.blocks;
    const int bits = job.split_bits, part = warp & ((1 << bits) - 1), place = warp >> bits;
    const int per_pass = (MATVEC_WARPS >> bits) * group;
    const int passes = matvec_passes(s.count, bits, group), stride = 32 << bits, start = 32 * part;
    const int steps = (blocks + stride - 1) >> (5 + bits), begin = s.begin + place * group, depth = ring_depth(most, job.fillers);
    const cuda_matrix &a = job.matrix[s.matrix], &up = job.matrix[PAIR ? s.matrix + 1 : s.matrix];
    const uint32_t inputs = (1u << job.in.count) - 1;
    uint8_t *const slots = ring + warp * job.ring_bytes;

    int left = passes * steps, ahead_at = start, ahead = s.begin + s.count - begin, slot = 0; /* ahead: rows from the group on */
    uint32_t ahead_i = (uint32_t)(begin * blocks + start);
    const auto fetch = [&]() {
        if (left > 0) {
            left--;
            ring_fetch<T, R, M>(slots + slot * slot_bytes, a, up, ahead_i, blocks, 0, ahead, blocks - ahead_at);
            ahead_at += stride;
            ahead_i += stride;
            if (ahead_at >= blocks) {
                ahead_i += per_pass * blocks - (ahead_at - start);
                ahead_at = start;
                ahead -= per_pass;
            }
        }
        slot = slot + 1 == depth ? 0 : slot + 1;
        ring_commit(job.fillers);
    };
#pragma unroll 1
    for (int i = 0; i < depth; i++)
        fetch();
    const float factor = stage();
    int first = begin;
#pragma unroll 1
    for (int pass = 0; pass < passes; pass++, first += per_pass) {
        float sums[R * N] = {};
        float *const to = part ? NULL : matvec_place<N, PAIR>(job, s, first);
        const float old = to && job.add ? *to : 0;
        int b = start + lane;
#pragma unroll 1
        for (int step = 0; step < steps; step++, b += stride) {
            chip_copy_wait<most - 1>();
            __syncwarp();
            if (b < blocks)
                matvec_unit_dots<T, N, R, M>(slots + slot * slot_bytes, (uint32_t)(first * blocks + b), blocks, area + b, blocks,
                                             inputs, sums);
            __syncwarp();
            fetch();
        }
        float value = matvec_reduce<R * N>(sums);
        if (bits) {
            float *mine = parts + (pass & 1) * (MATVEC_WARPS * R * N);
            if (lane % width == 0)
                mine[warp * R * N + lane / width] = value;
            __syncthreads();
            if (part)
                continue;
#pragma unroll 1
            for (int i = 1; i < 1 << bits; i++)
                value += mine[(warp + i) * R * N + lane / width];
        }
        value *= factor;
        if (PAIR)
            value = matvec_gated<N>(value);
        if (to)
            *to = old + value;
    }
}

/* Rows of a group of float weights, as matvec_float_dots asks for them. */
template <bool PAIR> struct matvec_float_group {
    const matvec_job *job;
    int matrix, first;
};

template <bool PAIR> static __device__ __forceinline__ int64_t matvec_row_first(const matvec_float_group<PAIR> &g, int r)
{
    return (int64_t)(g.first + (PAIR ? r >> 1 : r)) * g.job->in.blocks;
}

template <bool PAIR>
static __device__ __forceinline__ const uint8_t *matvec_row_plane(const matvec_float_group<PAIR> &g, int r, int plane)
{
    return g.job->matrix[g.matrix + (PAIR ? r & 1 : 0)].plane[plane];
}

template <uint32_t T, int N, bool PAIR>
static __device__ __forceinline__ void matvec_float_rows(const matvec_share &s, const matvec_job &job, float factor)
{
    constexpr int R = matvec_unit<N>(), group = PAIR ? R / 2 : R;
    const int end = s.begin + s.count;
#pragma unroll 1
    for (int first = s.begin + (int)(threadIdx.x >> 5) * group; first < end; first += MATVEC_WARPS * group) {
        float sums[R * N] = {};
        float *const to = matvec_place<N, PAIR>(job, s, first);
        const float old = to && job.add ? *to : 0;
        const matvec_float_group<PAIR> rows = { &job, s.matrix, first };
        matvec_float_dots<T, N, R>(rows, min(R, (end - first) * (PAIR ? 2 : 1)), job.in, sums);
        float value = matvec_reduce<R * N>(sums) * factor;
        if (PAIR)
            value = matvec_gated<N>(value);
        if (to)
            *to = old + value;
    }
}

template <int N, bool PAIR>
__global__ void __launch_bounds__(MATVEC_THREADS, N <= 4 ? 2 : 1) matvec_rows_kernel(const __grid_constant__ matvec_job job)
{
    CHIP_SHARED(uint8_t, shared);
    chip_let_next_start();
    float (*squares)[MATVEC_WARPS] = (float (*)[MATVEC_WARPS])shared;
    float *parts = (float *)(shared + matvec_squares_bytes(N));
    uint8_t *ring = (uint8_t *)parts + matvec_parts_bytes(N);
    matvec_activation *area = (matvec_activation *)(ring + MATVEC_WARPS * job.ring_bytes);
    const matvec_share s = matvec_share_of(job);
    const uint32_t type = job.matrix[s.matrix].type;
    matvec_norm_weights<N> norm;
    matvec_fetch_norm<N>(job.in, 0, MATVEC_THREADS, norm);
    const auto stage = [&]() {
        chip_wait_for_previous();
        if (job.quantized)
            matvec_stage_input<N>(job.in, MATVEC_THREADS, norm, area, squares);
        else
            matvec_square_input<N>(job.in, squares);
        __syncthreads();
        return matvec_factor(job.in, squares, (int)(threadIdx.x & 31) / matvec_width<N>() % N);
    };
    if (matvec_is_float(type)) {
        const float factor = stage();
        MATVEC_FOR_FLOAT(type, matvec_float_rows<T, N, PAIR>(s, job, factor));
    } else
        MATVEC_FOR_QUANTIZED(type, matvec_quantized_rows<T, N, PAIR>(s, job, area, parts, ring, stage));
    if (job.normed) /* the last blocks have the fewest rows */
        for (int row = (int)(gridDim.x - 1 - blockIdx.x); row < job.normed_count; row += (int)gridDim.x)
            matvec_write_normed(job, row, squares[0]);
}

#endif
