/* The decode kernel of PROJECT, GLU, PROJECT_ADD and LOGITS, for up to N rows.
 *
 * A block has rows of one matrix (PAIR: of gate and up, the same rows of each); a warp takes two rows (a pair) at a time, each
 * lane one block of 32 columns. Where rows are few and long, several warps share a row.
 *
 * Floors, for PROJECT of a delta layer of 35B-A3B (12352 x 2048, Q4_K, H200): bytes 14.2 MB / 4.6 TB/s = 3.1 us, of which 60 %
 * are on their way before the wait; latency after the wait: load of the input 0.35 us, normalise and quantize 0.2, dots 1.1
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
    int32_t split_bits;                  /* 2^split_bits warps share a row */
    float *normed;                       /* [normed_count][columns]: the input's rows normalised, in their order; or NULL */
    int32_t normed_count;
};

#define MATVEC_PARTS_BYTES (MATVEC_WARPS * 2 * CUDA_VECTOR_ROWS * 4)

/* Shared memory of a launch: squares' sums, sums of warps that share rows, activation blocks. */
static inline __host__ __device__ int64_t matvec_rows_shared(int rows, int blocks)
{
    return MATVEC_SQUARES_BYTES + MATVEC_PARTS_BYTES + (int64_t)rows * blocks * (int64_t)sizeof(matvec_activation);
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

/* Lane (r * N + n) * width has the sum of row r with row n of activations. */
template <int N> constexpr __host__ __device__ int matvec_width(void)
{
    return 32 / (2 * N);
}

/* Stores a group's sums: rows first and first + 1 (pair: silu(gate) * up of row first); `old` is what was in the lane's place. */
template <int N, bool PAIR>
static __device__ __forceinline__ void matvec_store(const matvec_job &job, const matvec_share &s, int first, float value,
                                                    float old)
{
    constexpr int width = matvec_width<N>();
    const int lane = threadIdx.x & 31, r = lane / width / N, n = lane / width % N, row = first + (PAIR ? 0 : r);
    if (PAIR)
        value = chip_silu(value) * __shfl_down_sync(~0u, value, (N * width) & 31);
    if (lane % width == 0 && row < s.begin + s.count && n < job.in.count && !(PAIR && r))
        job.out[s.matrix][(int64_t)n * job.out_stride[s.matrix] + row] = old + value;
}

template <int N> static __device__ __forceinline__ float matvec_old(const matvec_job &job, const matvec_share &s, int first)
{
    constexpr int width = matvec_width<N>();
    const int lane = threadIdx.x & 31, n = lane / width % N, row = first + lane / width / N;
    if (!job.add || lane % width || row >= s.begin + s.count || n >= job.in.count)
        return 0;
    return job.out[s.matrix][(int64_t)n * job.out_stride[s.matrix] + row];
}

/* All of the block, from the wait on: `stage` waits and brings the activations. */
template <uint32_t T, int N, bool PAIR, class STAGE>
static __device__ __forceinline__ void matvec_quantized_rows(const matvec_share &s, const matvec_job &job,
                                                             const matvec_activation *area, float *parts, STAGE stage)
{
    constexpr int C = matvec_chunks<T, N, PAIR>(), per_group = PAIR ? 1 : 2;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, blocks = job.in.blocks, last = s.begin + s.count - 1;
    const int bits = job.split_bits, part = warp & ((1 << bits) - 1), place = warp >> bits, per_pass = MATVEC_WARPS >> bits;
    const int groups = (s.count + per_group - 1) / per_group, passes = (groups + per_pass - 1) >> (MATVEC_WARP_BITS - bits);
    const int stride = 32 << bits, steps = (blocks + stride * C - 1) >> (5 + bits + (C == 2));
    const cuda_matrix a = job.matrix[s.matrix], up = job.matrix[PAIR ? s.matrix + 1 : s.matrix];
    const uint32_t inputs = (1u << job.in.count) - 1;
    block<T> w[C][2];
    int first = s.begin + place * per_group, at = 32 * part + lane; /* of the weights on their way */
    const auto load = [&]() {
        const int64_t row = (int64_t)min(first, last) * blocks, next = PAIR ? row : (int64_t)min(first + 1, last) * blocks;
#pragma unroll
        for (int c = 0; c < C; c++) {
            const int b = min(at + c * stride, blocks - 1);
            block_load<T>(w[c][0], a, row + b);
            block_load<T>(w[c][1], up, next + b);
        }
    };
    load();
    const float factor = stage();
#pragma unroll 1
    for (int pass = 0; pass < passes; pass++) {
        float sums[2 * N] = {};
        const int group = first;
        const float old = PAIR || part ? 0 : matvec_old<N>(job, s, group);
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
#pragma unroll
            for (int c = 0; c < C; c++) {
                const int b = at + c * stride;
                if (b < blocks)
                    matvec_dots<T, N, 2>(w[c], b, area + b, blocks, inputs, sums);
            }
            at += C * stride;
            if (step + 1 == steps) {
                at = 32 * part + lane;
                first += per_pass * per_group;
            }
            if (step + 1 < steps || pass + 1 < passes)
                load();
        }
        float value = matvec_reduce<2 * N>(sums);
        if (bits) {
            constexpr int width = matvec_width<N>();
            if (pass)
                __syncthreads();
            if (lane % width == 0)
                parts[warp * 2 * N + lane / width] = value;
            __syncthreads();
            if (part)
                continue;
#pragma unroll 1
            for (int i = 1; i < 1 << bits; i++)
                value += parts[(warp + i) * 2 * N + lane / width];
        }
        matvec_store<N, PAIR>(job, s, group, value * factor, old);
    }
}

/* Rows of a group of float weights, as matvec_float_dots asks for them. */
template <bool PAIR> struct matvec_float_group {
    const matvec_job *job;
    int matrix, first;
};

template <bool PAIR> static __device__ __forceinline__ int64_t matvec_row_first(const matvec_float_group<PAIR> &g, int r)
{
    return (int64_t)(g.first + (PAIR ? 0 : r)) * g.job->in.blocks;
}

template <bool PAIR>
static __device__ __forceinline__ const uint8_t *matvec_row_plane(const matvec_float_group<PAIR> &g, int r, int plane)
{
    return g.job->matrix[g.matrix + (PAIR ? r : 0)].plane[plane];
}

template <uint32_t T, int N, bool PAIR>
static __device__ __forceinline__ void matvec_float_rows(const matvec_share &s, const matvec_job &job, float factor)
{
    constexpr int per_group = PAIR ? 1 : 2;
#pragma unroll 1
    for (int first = s.begin + (int)(threadIdx.x >> 5) * per_group; first < s.begin + s.count;
         first += MATVEC_WARPS * per_group) {
        float sums[2 * N] = {};
        const float old = PAIR ? 0 : matvec_old<N>(job, s, first);
        const matvec_float_group<PAIR> group = { &job, s.matrix, first };
        matvec_float_dots<T, N, 2>(group, PAIR ? 2 : min(2, s.begin + s.count - first), job.in, sums);
        matvec_store<N, PAIR>(job, s, first, matvec_reduce<2 * N>(sums) * factor, old);
    }
}

template <int N, bool PAIR>
__global__ void __launch_bounds__(MATVEC_THREADS, N <= 4 ? 2 : 1) matvec_rows_kernel(const __grid_constant__ matvec_job job)
{
    CHIP_SHARED(uint8_t, shared);
    chip_let_next_start();
    float (*squares)[MATVEC_WARPS] = (float (*)[MATVEC_WARPS])shared;
    float *parts = (float *)(shared + MATVEC_SQUARES_BYTES);
    matvec_activation *area = (matvec_activation *)(shared + MATVEC_SQUARES_BYTES + MATVEC_PARTS_BYTES);
    const matvec_share s = matvec_share_of(job);
    const uint32_t type = job.matrix[s.matrix].type;
    matvec_norm_weights<N> norm;
    matvec_fetch_norm<N>(job.in, 0, norm);
    const auto stage = [&]() {
        chip_wait_for_previous();
        if (job.quantized)
            matvec_stage_input<N>(job.in, norm, area, squares);
        else
            matvec_square_input<N>(job.in, squares);
        __syncthreads();
        return matvec_factor(job.in, squares, (int)(threadIdx.x & 31) / matvec_width<N>() % N);
    };
    if (matvec_is_float(type)) {
        const float factor = stage();
        MATVEC_FOR_FLOAT(type, matvec_float_rows<T, N, PAIR>(s, job, factor));
    } else
        MATVEC_FOR_QUANTIZED(type, matvec_quantized_rows<T, N, PAIR>(s, job, area, parts, stage));
    if (job.normed) /* the last blocks have the fewest rows */
        for (int row = (int)(gridDim.x - 1 - blockIdx.x); row < job.normed_count; row += (int)gridDim.x)
            matvec_write_normed(job, row, squares[0]);
}

#endif
