/* ROUTE for many rows. The choice of experts needs float32's accuracy, so each operand is split into two half floats, high and
 * low, both scaled by powers of two that bring a row's largest value to 2^13 .. 2^14, and three of the four products are
 * summed: activations [high | low | high] times weights [high | high | low], one product three times as long. What is left out,
 * and what the second rounding loses, is 2^-22 of the largest values.
 *
 * Floor: 6 n experts D operations of tensor cores; float32 arithmetic would take 2 n experts D at a tenth of the rate. */
#include <math.h>

#include "block.cuh"
#include "convert.cuh"
#include "matmul.cuh"

typedef struct route_room {
    matmul_input in;           /* split */
    __half *weights;           /* [experts + 1][3 stride]: the shared expert's gate is the last row */
    float *weight_scale;       /* [experts + 1] */
    float *scores;             /* [n][experts + 1] */
} route_room;

static route_room lay_out(const qmi_op_route *op, int32_t rows, matmul_room *room)
{
    route_room out = {};
    int32_t stride = 3 * matmul_stride(op->router.columns);
    int64_t experts = op->router.rows + 1;
    out.in = matmul_take_input(room, rows, stride);
    out.weights = (__half *)matmul_take(room, experts * stride, sizeof(__half));
    out.weight_scale = (float *)matmul_take(room, experts, sizeof(float));
    out.scores = (float *)matmul_take(room, rows * experts, sizeof(float));
    return out;
}

int64_t route_scratch(const qmi_op_route *op, int32_t rows)
{
    matmul_room room = {};
    lay_out(op, rows, &room);
    return room.used;
}

/* ---- weights: a warp a row; third: halves of a part ---- */

#define SPLIT_WARPS 8

template <uint32_t T>
static __global__ void __launch_bounds__(SPLIT_WARPS * QMI_WARP)
    split_kernel(cuda_matrix matrix, __half *to, float *scale, int third)
{
    const int row = blockIdx.x * SPLIT_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    chip_let_next_start();
    chip_wait_for_previous();
    if (row >= matrix.rows)
        return;
    float most = 0;
    for (int b = lane; b < matrix.blocks; b += 32) {
        int64_t i = (int64_t)row * matrix.blocks + b;
        block<T> w;
        float values[32];
        block_load(w, matrix, i);
        block_values(w, i, values);
#pragma unroll
        for (int v = 0; v < 32; v++)
            most = fmaxf(most, fabsf(values[v]));
    }
    const int exponent = convert_exponent(chip_warp_max(most), true);
    const float down = convert_power(-exponent);
    for (int b = lane; b < third / QMI_CUDA_BLOCK; b += 32) {
        int64_t i = (int64_t)row * matrix.blocks + b;
        float values[32] = {};
        if (b < matrix.blocks) {
            block<T> w;
            block_load(w, matrix, i);
            block_values(w, i, values);
        }
        uint4 *high = (uint4 *)(to + (int64_t)row * 3 * third + b * QMI_CUDA_BLOCK);
        uint4 *again = high + third / 8, *low = again + third / 8;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t h[4], l[4];
#pragma unroll
            for (int p = 0; p < 4; p++) {
                float x = values[8 * j + 2 * p] * down, y = values[8 * j + 2 * p + 1] * down;
                h[p] = convert_pair(x, y);
                l[p] = convert_pair(x - chip_half_low(h[p]), y - chip_half_high(h[p]));
            }
            high[j] = again[j] = make_uint4(h[0], h[1], h[2], h[3]);
            low[j] = make_uint4(l[0], l[1], l[2], l[3]);
        }
    }
    if (lane == 0)
        scale[row] = convert_power(exponent);
}

static void split(const cuda_run *run, const qmi_matrix *matrix, __half *to, float *scale, int third)
{
    const cuda_matrix from = cuda_matrix_of(matrix);
    const dim3 grid(matmul_ceil(matrix->rows, SPLIT_WARPS)), block(SPLIT_WARPS * QMI_WARP);
    switch (from.type) {
#define SPLIT(name) \
    case QMI_TYPE_##name: cuda_launch(run, grid, block, 0, split_kernel<QMI_TYPE_##name>, from, to, scale, third); break;
    MATMUL_TYPES(SPLIT)
#undef SPLIT
    }
}

/* ---- softmax and choice: a warp a token ----
 * An expert's key has its probability above and its index, negated, below: the largest key is the largest probability, the lowest
 * index of equals; NaN counts as less than all. */

#define CHOOSE_WARPS 4

static __device__ __forceinline__ unsigned long long choose_key(float p, int expert)
{
    uint32_t rank = isnan(p) ? 0 : __float_as_uint(p) + 1;
    return (unsigned long long)rank << 32 | (0xffffffffu - (uint32_t)expert);
}

static __device__ __forceinline__ unsigned long long choose_most(unsigned long long key)
{
#pragma unroll
    for (int o = 16; o; o >>= 1) {
        unsigned long long other = __shfl_xor_sync(~0u, key, o);
        key = other > key ? other : key;
    }
    return key;
}

/* PER: experts a lane, in registers; 0: any number, probabilities replace the scores in memory. */
template <int PER>
static __global__ void __launch_bounds__(CHOOSE_WARPS * QMI_WARP)
    choose_kernel(float *scores, const float *scale, int rows, int experts, int top, bool gated, float *route)
{
    const int row = blockIdx.x * CHOOSE_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    chip_let_next_start();
    chip_wait_for_previous();
    if (row >= rows)
        return;
    scores += (int64_t)row * (experts + 1);
    route += (int64_t)row * (2 * top + 1);
    float p[PER ? PER : 1], most = -INFINITY, sum = 0;
    unsigned long long last = ~0ull;
    if constexpr (PER > 0) {
#pragma unroll
        for (int i = 0; i < PER; i++) {
            int e = lane + 32 * i;
            p[i] = e < experts ? scores[e] * scale[e] : -INFINITY;
            most = fmaxf(most, p[i]);
        }
        most = chip_warp_max(most);
#pragma unroll
        for (int i = 0; i < PER; i++)
            sum += p[i] = lane + 32 * i < experts ? expf(p[i] - most) : 0;
        sum = chip_warp_sum(sum);
#pragma unroll
        for (int i = 0; i < PER; i++)
            p[i] /= sum;
    } else {
        for (int e = lane; e < experts; e += 32)
            most = fmaxf(most, scores[e] * scale[e]);
        most = chip_warp_max(most);
        for (int e = lane; e < experts; e += 32)
            sum += scores[e] = expf(scores[e] * scale[e] - most);
        sum = chip_warp_sum(sum);
        for (int e = lane; e < experts; e += 32)
            scores[e] /= sum;
    }
    float chosen = 0, mine[2] = { 0, 0 }; /* probabilities of choices lane and lane + 32 */
    for (int k = 0; k < top; k++) {
        unsigned long long best = 0;
        if constexpr (PER > 0) {
#pragma unroll
            for (int i = 0; i < PER; i++) {
                unsigned long long key = choose_key(p[i], lane + 32 * i);
                if (lane + 32 * i < experts && key < last && key > best)
                    best = key;
            }
        } else
            for (int e = lane; e < experts; e += 32) {
                unsigned long long key = choose_key(scores[e], e);
                if (key < last && key > best)
                    best = key;
            }
        last = choose_most(best);
        uint32_t rank = (uint32_t)(last >> 32);
        float probability = rank ? __uint_as_float(rank - 1) : NAN;
        chosen += probability;
        if (lane == (k & 31)) {
            mine[k >> 5] = probability;
            route[k] = (float)(0xffffffffu - (uint32_t)last);
        }
    }
    for (int k = lane; k < top; k += 32)
        route[top + k] = mine[k >> 5] / chosen;
    if (lane == 0)
        route[2 * top] = gated ? chip_sigmoid(scores[experts] * scale[experts]) : 1.f;
}

void cuda_matmul_route(const cuda_run *run, const qmi_op_route *op)
{
    matmul_room scratch = { run->scratch, 0 };
    route_room room = lay_out(op, run->rows, &scratch);
    const int32_t experts = (int32_t)op->router.rows, third = room.in.stride / 3;
    const bool gated = op->shared_gate.data != 0;
    convert_part convert = {};
    convert.from = cuda_slot(run, op->in);
    convert.columns = (int32_t)op->router.columns;
    convert.rows = run->rows;
    convert.weight = cuda_vector(&op->norm.weight);
    convert.epsilon = op->norm.epsilon;
    convert.to = room.in;
    convert.normed = cuda_slot(run, op->hidden);
    convert.split = true;
    cuda_convert(run, &convert, 1);
    split(run, &op->router, room.weights, room.weight_scale, third);
    if (gated)
        split(run, &op->shared_gate, room.weights + (int64_t)experts * room.in.stride, room.weight_scale + experts, third);

    matmul_part part = {};
    part.a.plane[0] = (const uint8_t *)room.weights;
    part.a.type = QMI_TYPE_F16;
    part.a.columns = room.in.stride;
    part.a.rows = part.rows = experts + gated;
    part.a.blocks = room.in.stride / QMI_CUDA_BLOCK;
    part.in = room.in;
    part.out = room.scores;
    part.out_stride = experts + 1;
    part.mode = MATMUL_STORE;
    part.tokens = run->rows;
    part.written = true;
    matmul_launch(run, &part, 1, matmul_tokens(run->rows));

    const auto choose = experts <= 256 ? choose_kernel<8> : experts <= 512 ? choose_kernel<16> : choose_kernel<0>;
    cuda_launch(run, dim3(matmul_ceil(run->rows, CHOOSE_WARPS)), dim3(CHOOSE_WARPS * QMI_WARP), 0, choose, room.scores,
                room.weight_scale, run->rows, experts, op->top, gated, cuda_slot(run, op->route));
}
