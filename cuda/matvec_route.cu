/* The first kernel of ROUTE for up to 8 rows, and the choice by a kernel of its own, for when EXPERTS does not do both. */
#include "matvec_experts.cuh"
#include "matvec_host.h"

/* ---- scores ---- */

#define SCORE_AHEAD 4 /* times 4 columns whose weights a thread fetches before the wait: 4096 columns in all */
#define ROW_WARPS 8   /* warps that share a row */

struct score_job {
    matvec_input in;
    cuda_matrix router, gate; /* gate: one row, or rows 0 */
    float *scores;            /* [n][stride] */
    int32_t stride;
    float *hidden;            /* [n][columns], normalised */
};

static __device__ __forceinline__ float4 score_weights(const cuda_matrix &m, int row, int u)
{
    const int64_t first = (int64_t)row * m.blocks;
    float4 w = make_float4(0, 0, 0, 0);
    MATVEC_FOR_FLOAT(m.type, w = matvec_weights4<T>(m.plane[0], first, u));
    return w;
}

/* Scores of two experts a block, by float32 products; eight warps a row, so that all of the router is under way before the
 * wait. Each block also writes its part of the hidden state.
 *
 * Floors (256 x 2048 F32, H200): 2.1 MB = 0.5 us, before the wait; latency after it: load 0.35 us, 8 products a row of
 * activations, two sums over a warp 0.1, a barrier, sums over the warps 0.1. */
__global__ void __launch_bounds__(MATVEC_THREADS, 2) matvec_score_kernel(const __grid_constant__ score_job job)
{
    __shared__ float dots[CUDA_VECTOR_ROWS][MATVEC_WARPS], squares[CUDA_VECTOR_ROWS][MATVEC_WARPS];
    chip_let_next_start();
    const matvec_input &in = job.in;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, units = (in.columns + 3) >> 2;
    const int row = (int)blockIdx.x * 2 + warp / ROW_WARPS, unit = (warp % ROW_WARPS) * 32 + lane;
    const bool gated = row >= job.router.rows, real = row < job.router.rows + job.gate.rows;
    float4 w[SCORE_AHEAD];
#pragma unroll
    for (int i = 0; i < SCORE_AHEAD; i++) {
        const int u = unit + i * 32 * ROW_WARPS;
        w[i] = make_float4(0, 0, 0, 0);
        if (real && u < units) {
            w[i] = gated ? score_weights(job.gate, 0, u) : score_weights(job.router, row, u);
            if (in.norm)
                w[i] = matvec_multiply(w[i], matvec_load4(in.norm, u, in.columns));
        }
    }
    /* The block's columns of the hidden state, and its two scores of each row: by a thread each, which fetches what it can of its
     * first one. */
    const int columns = (in.columns + (int)gridDim.x - 1) / (int)gridDim.x, first = (int)blockIdx.x * columns;
    const int each = max(0, min(columns, in.columns - first)) + 2, items = in.count * each;
    const int own_row = (int)threadIdx.x / each, own_column = (int)threadIdx.x - own_row * each - 2;
    const bool own = (int)threadIdx.x < items && own_column >= 0;
    float own_x = 0, own_norm = 1;
    if (own && in.norm)
        own_norm = in.norm[first + own_column];
    chip_wait_for_previous();
    if (own)
        own_x = matvec_row(in, own_row)[first + own_column];
    for (int n = 0; n < in.count; n++) {
        const float *x = matvec_row(in, n);
        float4 v[SCORE_AHEAD];
        float sums[2] = {};
#pragma unroll
        for (int i = 0; i < SCORE_AHEAD; i++) {
            const int u = unit + i * 32 * ROW_WARPS;
            v[i] = u < units ? matvec_load4(x, u, in.columns) : make_float4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < SCORE_AHEAD; i++) {
            sums[0] += matvec_dot4(w[i], v[i]);
            sums[1] += matvec_dot4(v[i], v[i]);
        }
        for (int u = unit + SCORE_AHEAD * 32 * ROW_WARPS; u < units; u += 32 * ROW_WARPS) {
            const float4 more = matvec_load4(x, u, in.columns);
            float4 weights = make_float4(0, 0, 0, 0);
            if (real)
                weights = gated ? score_weights(job.gate, 0, u) : score_weights(job.router, row, u);
            if (in.norm)
                weights = matvec_multiply(weights, matvec_load4(in.norm, u, in.columns));
            sums[0] += matvec_dot4(weights, more);
            sums[1] += matvec_dot4(more, more);
        }
        const float sum = matvec_reduce<2>(sums); /* lanes 0 and 16 */
        if ((lane & 15) == 0)
            (lane ? squares : dots)[n][warp] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < items; i += MATVEC_THREADS) {
        const int n = i / each, c = i - n * each - 2;
        float square = 0, factor = 1;
        if (in.norm) {
#pragma unroll
            for (int k = 0; k < ROW_WARPS; k++)
                square += squares[n][k];
            factor = rsqrtf(square * in.inverse_columns + in.epsilon);
        }
        if (c >= 0) {
            if (i >= MATVEC_THREADS) {
                own_x = matvec_row(in, n)[first + c];
                own_norm = in.norm ? in.norm[first + c] : 1;
            }
            job.hidden[(int64_t)n * in.columns + first + c] = own_x * factor * own_norm;
        } else if ((int)blockIdx.x * 2 + c + 2 < job.router.rows + job.gate.rows) {
            float dot = 0;
#pragma unroll
            for (int k = 0; k < ROW_WARPS; k++)
                dot += dots[n][(c + 2) * ROW_WARPS + k];
            job.scores[(int64_t)n * job.stride + blockIdx.x * 2 + c + 2] = dot * factor;
        }
    }
}

/* ---- the choice ---- */

/* Many experts: each round takes the largest score that comes after the last one taken; ties go to the lower index. By a
 * block. */
static __device__ void choose_of_many(const float *scores, int experts, int top, float *route)
{
    __shared__ uint32_t keys[MATVEC_WARPS];
    __shared__ int32_t places[MATVEC_WARPS];
    __shared__ float weight[QMI_TOP_MAX];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    uint32_t last = ~0u;
    int last_place = -1;
    for (int k = 0; k < top; k++) {
        uint32_t best = 0;
        int place = experts;
        for (int e = threadIdx.x; e < experts; e += MATVEC_THREADS) {
            const uint32_t key = matvec_key(scores[e]);
            if (key > best && (key < last || (key == last && e > last_place))) {
                best = key;
                place = e;
            }
        }
        const uint32_t largest = __reduce_max_sync(~0u, best);
        place = (int)__reduce_min_sync(~0u, best == largest ? (uint32_t)place : (uint32_t)experts);
        if (lane == 0) {
            keys[warp] = largest;
            places[warp] = place;
        }
        __syncthreads();
        last = 0;
        last_place = experts;
        for (int i = 0; i < MATVEC_WARPS; i++)
            if (keys[i] > last || (keys[i] == last && places[i] < last_place)) {
                last = keys[i];
                last_place = places[i];
            }
        if (threadIdx.x == 0) {
            route[k] = (float)last_place;
            weight[k] = matvec_key_value(last);
        }
        __syncthreads();
    }
    if (warp == 0) {
        matvec_weigh(weight, top);
        __syncwarp();
        for (int k = lane; k < top; k += 32)
            route[top + k] = weight[k];
    }
}

/* A block a row. */
__global__ void __launch_bounds__(MATVEC_THREADS, 2) matvec_choose_kernel(const __grid_constant__ matvec_experts_job job)
{
    __shared__ __align__(16) uint32_t keys[MATVEC_FEW];
    __shared__ int32_t expert[QMI_TOP_MAX];
    __shared__ float weight[QMI_TOP_MAX + 1];
    chip_let_next_start();
    chip_wait_for_previous();
    const int n = blockIdx.x, top = job.top;
    const float *scores = job.scores + (int64_t)n * job.score_stride;
    float *route = job.route + (int64_t)n * (2 * top + 1);
    if (job.experts > MATVEC_CHOOSE_MAX) {
        choose_of_many(scores, job.experts, top, route);
        if (threadIdx.x == 0)
            route[2 * top] = job.shared_scored ? chip_sigmoid(scores[job.experts]) : 1;
        return;
    }
    if (threadIdx.x < 32)
        matvec_choose(job, n, keys, expert, weight);
    __syncthreads();
    for (int k = threadIdx.x; k <= top; k += MATVEC_THREADS) {
        if (k < top)
            route[k] = (float)expert[k];
        route[top + k] = weight[k];
    }
}

/* ---- launches ---- */

int32_t matvec_score_stride(int64_t experts)
{
    return (int32_t)((experts + 1 + 3) / 4 * 4);
}

void matvec_launch_scores(const cuda_run *run, const qmi_op_route *op, float *scores)
{
    const cuda_matrix router = cuda_matrix_of(&op->router), gate = cuda_matrix_of(&op->shared_gate);
    const matvec_input in = matvec_input_of(run, op->in, &op->norm, &router, run->rows);
    const int32_t stride = matvec_score_stride(router.rows);
    if (matvec_is_float(router.type) && (gate.rows == 0 || matvec_is_float(gate.type))) {
        const score_job job = { in, router, gate, scores, stride, cuda_slot(run, op->hidden) };
        const dim3 blocks((uint32_t)matvec_ceil(router.rows + gate.rows, 2));
        cuda_launch(run, blocks, dim3(MATVEC_THREADS), 0, matvec_score_kernel, job);
        return;
    }
    matvec_job job = {};
    job.in = in;
    job.count = gate.rows ? 2 : 1;
    job.matrix[0] = router;
    job.matrix[1] = gate;
    job.out[0] = scores;
    job.out[1] = scores + router.rows;
    job.out_stride[0] = job.out_stride[1] = stride;
    job.normed = cuda_slot(run, op->hidden);
    job.normed_count = run->rows;
    matvec_launch(run, &job);
}

void matvec_launch_choice(const cuda_run *run, const matvec_experts_job *job)
{
    cuda_launch(run, dim3((uint32_t)run->rows), dim3(MATVEC_THREADS), 0, matvec_choose_kernel, *job);
}
