/* The decode kernels for what the others can't take: rows too long for shared memory, gate and up of different types, experts
 * of float types. A warp computes a row of the result for one row of activations after another, and quantizes these anew each
 * time; lanes have blocks of 32 columns. Bound by arithmetic (a factor of 2 to 4 above the bytes). */
#include "matvec_experts.cuh"
#include "matvec_host.h"

/* ---- a product ---- */

/* 32 values times the norm's weights, quantized. */
static __device__ __forceinline__ block_activation wide_quantize(const float *x, const float *norm)
{
    float v[32], most = 0;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        v[i] = norm ? x[i] * norm[i] : x[i];
        most = fmaxf(most, fabsf(v[i]));
    }
    const float to = most > 1e-30f ? __fdividef(127.f, most) : 0.f;
    uint32_t q[8];
    int sums[2] = {};
#pragma unroll
    for (int w = 0; w < 8; w++) {
        q[w] = 0;
#pragma unroll
        for (int j = 0; j < 4; j++)
            q[w] |= ((uint32_t)__float2int_rn(v[4 * w + j] * to) & 255) << (8 * j);
        sums[w >> 2] = chip_dot4_signed(q[w], 0x01010101u, sums[w >> 2]);
    }
    block_activation a;
    a.low = make_uint4(q[0], q[1], q[2], q[3]);
    a.high = make_uint4(q[4], q[5], q[6], q[7]);
    a.scale = most * (1.f / 127);
    a.sums = ((uint32_t)sums[0] & 0xffff) | (uint32_t)sums[1] << 16;
    return a;
}

/* A row of a matrix (of all experts' rows) with x; all lanes get the sum. */
static __device__ float wide_product(const cuda_matrix &m, int64_t row, const float *x, const float *norm)
{
    const int lane = threadIdx.x & 31;
    const int64_t first = row * m.blocks;
    float sum = 0;
    if (matvec_is_float(m.type)) {
        const int units = (m.columns + 3) >> 2;
        for (int u = lane; u < units; u += 32) {
            float4 w = make_float4(0, 0, 0, 0);
            MATVEC_FOR_FLOAT(m.type, w = matvec_weights4<T>(m.plane[0], first, u));
            if (norm)
                w = matvec_multiply(w, matvec_load4(norm, u, m.columns));
            sum += matvec_dot4(w, matvec_load4(x, u, m.columns));
        }
    } else {
        for (int b = lane; b < m.blocks; b += 32) {
            const block_activation a = wide_quantize(x + b * 32, norm ? norm + b * 32 : NULL);
            MATVEC_FOR_QUANTIZED(m.type, block<T> w; block_load<T>(w, m, first + b); sum += block_dot<T>(w, first + b, a));
        }
    }
    return chip_warp_sum(sum);
}

/* Factors of the norm of all rows, by the block; a barrier is part of it. */
static __device__ void wide_factors(const matvec_input &in, float *factors)
{
    __shared__ float squares[MATVEC_WARPS];
    for (int n = 0; n < in.count; n++) {
        const float *x = matvec_row(in, n);
        float sum = 0;
        for (int c = threadIdx.x; in.norm && c < in.columns; c += MATVEC_THREADS)
            sum += x[c] * x[c];
        sum = chip_warp_sum(sum);
        if ((threadIdx.x & 31) == 0)
            squares[threadIdx.x >> 5] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            sum = 0;
            for (int i = 0; i < MATVEC_WARPS; i++)
                sum += squares[i];
            factors[n] = in.norm ? rsqrtf(sum / (float)in.columns + in.epsilon) : 1;
        }
        __syncthreads();
    }
}

/* ---- PROJECT and its kind ---- */

__global__ void __launch_bounds__(MATVEC_THREADS) matvec_wide_kernel(const __grid_constant__ matvec_job job)
{
    __shared__ float factors[CUDA_VECTOR_ROWS], squares[MATVEC_WARPS];
    chip_let_next_start();
    chip_wait_for_previous();
    wide_factors(job.in, factors);
    const int lane = threadIdx.x & 31, warps = (int)gridDim.x * MATVEC_WARPS;
    for (int m = 0; m < job.count; m++)
        for (int row = (int)(blockIdx.x * MATVEC_WARPS + (threadIdx.x >> 5)); row < job.matrix[m].rows; row += warps)
            for (int n = 0; n < job.in.count; n++) {
                const float *x = matvec_row(job.in, n);
                float value = wide_product(job.matrix[m], row, x, job.in.norm) * factors[n];
                if (job.pair)
                    value = chip_silu(value) * (wide_product(job.matrix[1], row, x, job.in.norm) * factors[n]);
                float *to = job.out[m] + (int64_t)n * job.out_stride[m] + row;
                if (lane == 0)
                    *to = job.add ? *to + value : value;
            }
    if (job.normed)
        for (int row = (int)blockIdx.x; row < job.normed_count; row += (int)gridDim.x)
            matvec_write_normed(job, row, squares);
}

void matvec_launch_wide(const cuda_run *run, const matvec_job *job)
{
    cuda_launch(run, dim3((uint32_t)run->processors), dim3(MATVEC_THREADS), 0, matvec_wide_kernel, *job);
}

/* ---- EXPERTS, the route given ---- */

__global__ void __launch_bounds__(MATVEC_THREADS) matvec_wide_gate_kernel(const __grid_constant__ matvec_experts_job job)
{
    chip_let_next_start();
    chip_wait_for_previous();
    const int lane = threadIdx.x & 31, warps = (int)gridDim.x * MATVEC_WARPS;
    const int64_t per_row = (int64_t)job.top * job.inner + job.shared_inner;
    for (int64_t i = (int64_t)blockIdx.x * MATVEC_WARPS + (threadIdx.x >> 5); i < job.in.count * per_row; i += warps) {
        const int n = (int)(i / per_row), k = (int)min((i - n * per_row) / job.inner, (int64_t)job.top);
        const int f = (int)(i - n * per_row - (int64_t)k * job.inner);
        const float *x = matvec_row(job.in, n);
        float gate, up;
        if (k == job.top) {
            gate = wide_product(job.shared_gate, f, x, NULL);
            up = wide_product(job.shared_up, f, x, NULL);
        } else {
            const int64_t expert = (int64_t)job.route[(int64_t)n * (2 * job.top + 1) + k];
            gate = wide_product(job.gate, expert * job.gate.rows + f, x, NULL);
            up = wide_product(job.up, expert * job.gate.rows + f + (job.fused ? job.inner : 0), x, NULL);
        }
        if (lane == 0)
            job.act[((int64_t)n * (job.top + 1) + k) * job.act_stride + f] = chip_silu(gate) * up;
    }
}

__global__ void __launch_bounds__(MATVEC_THREADS) matvec_wide_down_kernel(const __grid_constant__ matvec_experts_job job)
{
    chip_let_next_start();
    chip_wait_for_previous();
    const int lane = threadIdx.x & 31, warps = (int)gridDim.x * MATVEC_WARPS, rows = job.down.rows;
    for (int64_t i = (int64_t)blockIdx.x * MATVEC_WARPS + (threadIdx.x >> 5); i < (int64_t)job.in.count * rows; i += warps) {
        const int n = (int)(i / rows), row = (int)(i - (int64_t)n * rows);
        const float *route = job.route + (int64_t)n * (2 * job.top + 1);
        const float *act = job.act + (int64_t)n * (job.top + 1) * job.act_stride;
        float sum = 0;
        for (int k = 0; k < job.top; k++)
            sum += route[job.top + k] *
                   wide_product(job.down, (int64_t)route[k] * rows + row, act + (int64_t)k * job.act_stride, NULL);
        if (job.shared_inner)
            sum += route[2 * job.top] * wide_product(job.shared_down, row, act + (int64_t)job.top * job.act_stride, NULL);
        if (lane == 0)
            job.out[(int64_t)n * rows + row] += sum;
    }
}

void matvec_launch_wide_experts(const cuda_run *run, const matvec_experts_job *job)
{
    cuda_launch(run, dim3((uint32_t)run->processors), dim3(MATVEC_THREADS), 0, matvec_wide_gate_kernel, *job);
    cuda_launch(run, dim3((uint32_t)run->processors), dim3(MATVEC_THREADS), 0, matvec_wide_down_kernel, *job);
}
