/* ROUTE for many rows. The choice of experts needs float32's accuracy, so each operand is split into two half floats, high and
 * low, both scaled by powers of two that bring a row's largest value to 2^13 .. 2^14, and three of the four products are
 * summed: activations [high | low | high] times weights [high | high | low], one product three times as long. What is left out,
 * and what the second rounding loses, is 2^-22 of the largest values.
 *
 * Some rows only, and a router of float32: plain sums, which take one kernel less to prepare.
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
    float *scores;             /* [n][score_stride] */
    matmul_dense dense;
} route_room;

/* The product's matrix, as columns of halves. */
static qmi_matrix split_matrix(const qmi_op_route *op, const route_room *room)
{
    const qmi_matrix out = { QMI_TYPE_F16, room->in.stride, op->router.rows + (op->shared_gate.data != 0), 1,
                             (qmi_address)room->weights };
    return out;
}

/* Of the experts and the shared one's gate: rows begin at a multiple of 32 bytes. */
static int32_t score_stride(int64_t experts)
{
    return (int32_t)((experts + 1 + 7) / 8 * 8);
}

static route_room lay_out(const qmi_op_route *op, int32_t rows, matmul_room *room)
{
    route_room out = {};
    int64_t experts = op->router.rows + 1;
    out.in = matmul_take_input(room, rows, op->router.columns, 3);
    out.weights = (__half *)matmul_take(room, experts * out.in.stride, sizeof(__half));
    out.weight_scale = (float *)matmul_take(room, experts, sizeof(float));
    out.scores = (float *)matmul_take(room, rows, score_stride(op->router.rows) * sizeof(float));
    const qmi_matrix matrix = split_matrix(op, &out);
    out.dense = matmul_take_dense(room, &matrix, rows, false);
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

/* ---- few rows: scores by sums of floats ---- A block: eight tokens, in shared memory after the norm's weights, and eight
 * experts, a warp each; the tokens' rms factors come after the sums. The router's rows are on their way before the wait. Floor:
 * 4 experts D bytes from L2 for every eight tokens. */

#define SCORE_SHARED (96 << 10)
#define SCORE_ROWS 64      /* up to so many */
#define SCORE_TOKENS 8
#define SCORE_WARPS 8
#define SCORE_AHEAD 8      /* float4 of the router's row a lane fetches early: 1024 columns */

typedef struct score_work {
    const float *in, *weight;  /* weight NULL: no norm */
    float epsilon;
    const float *router, *gate; /* rows of `stride` floats, the padding zero; gate NULL: none */
    float *hidden, *scores;
    int32_t rows, columns, stride, experts, score_stride;
} score_work;

/* Sums over the warp of eight values; lane i has that of value i & 7. */
static __device__ __forceinline__ float score_sums(float v[SCORE_TOKENS])
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int half = SCORE_TOKENS / 2; half; half /= 2)
#pragma unroll
        for (int i = 0; i < half; i++) {
            bool upper = lane & half;
            float give = upper ? v[i] : v[i + half], keep = upper ? v[i + half] : v[i];
            v[i] = keep + __shfl_xor_sync(~0u, give, half);
        }
    v[0] += __shfl_xor_sync(~0u, v[0], 8);
    return v[0] + __shfl_xor_sync(~0u, v[0], 16);
}

static __global__ void __launch_bounds__(SCORE_WARPS * QMI_WARP) score_kernel(const __grid_constant__ score_work work)
{
    CHIP_SHARED(float4, tokens); /* [SCORE_TOKENS][stride / 4] */
    __shared__ float factors[SCORE_TOKENS];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, columns = work.columns, items = work.stride / 4;
    const int expert = blockIdx.x * SCORE_WARPS + warp, first = blockIdx.y * SCORE_TOKENS;
    const bool gate = expert == work.experts && work.gate, real = expert < work.experts || gate;
    const float4 *router = (const float4 *)(gate ? work.gate : work.router + (int64_t)(real ? expert : 0) * work.stride);
    float4 ahead[SCORE_AHEAD];
    chip_let_next_start();
#pragma unroll
    for (int i = 0; i < SCORE_AHEAD; i++)
        ahead[i] = real && lane + 32 * i < items ? router[lane + 32 * i] : make_float4(0, 0, 0, 0);
    chip_wait_for_previous();

    const int row = first + warp;
    float sum = 0, sums[SCORE_TOKENS] = {};
    for (int i = lane; i < items; i += 32) {
        float4 x = row < work.rows ? convert_load(work.in + (int64_t)row * columns, columns, 4 * i) : make_float4(0, 0, 0, 0);
        sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        if (work.weight)
            x = convert_times(x, convert_load(work.weight, columns, 4 * i), 1);
        tokens[warp * items + i] = x;
    }
    sum = chip_warp_sum(sum);
    if (lane == 0)
        factors[warp] = work.weight ? 1 / sqrtf(sum / (float)columns + work.epsilon) : 1;
    __syncthreads();

    for (int i0 = 0; i0 < items; i0 += 32 * SCORE_AHEAD)
#pragma unroll
        for (int j = 0; j < SCORE_AHEAD; j++) {
            const int i = i0 + lane + 32 * j;
            if (i >= items)
                break;
            const float4 w = i0 ? real ? router[i] : make_float4(0, 0, 0, 0) : ahead[j];
#pragma unroll
            for (int t = 0; t < SCORE_TOKENS; t++) {
                const float4 x = tokens[t * items + i];
                sums[t] += x.x * w.x + x.y * w.y + x.z * w.z + x.w * w.w;
            }
        }
    const float score = score_sums(sums);
    if (real && lane < SCORE_TOKENS && first + lane < work.rows)
        work.scores[(int64_t)(first + lane) * work.score_stride + expert] = score * factors[lane];

    /* The blocks of these tokens share out the normalised rows. */
    const float4 ones = make_float4(1, 1, 1, 1);
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < SCORE_TOKENS * items; i += gridDim.x * blockDim.x) {
        const int t = i / items, v = (i - t * items) * 4;
        if (first + t < work.rows)
            convert_store(work.hidden + (int64_t)(first + t) * columns, columns, v, convert_times(tokens[i], ones, factors[t]));
    }
}

/* Whether this way can be gone, and then goes it. */
static bool score(const cuda_run *run, const qmi_op_route *op, const route_room *room)
{
    const cuda_matrix router = cuda_matrix_of(&op->router), gate = cuda_matrix_of(&op->shared_gate);
    const int32_t stride = router.blocks * QMI_CUDA_BLOCK, rows = router.rows + (op->shared_gate.data ? 1 : 0);
    const size_t shared = SCORE_TOKENS * stride * sizeof(float);
    if (run->rows > SCORE_ROWS || router.type != QMI_TYPE_F32 || (op->shared_gate.data && gate.type != QMI_TYPE_F32) ||
        shared > SCORE_SHARED)
        return false;
    const score_work work = { cuda_slot(run, op->in), cuda_vector(&op->norm.weight), op->norm.epsilon,
                              (const float *)router.plane[0], (const float *)gate.plane[0], cuda_slot(run, op->hidden),
                              room->scores, run->rows, router.columns, stride, router.rows, score_stride(router.rows) };
    const dim3 grid(matmul_ceil(rows, SCORE_WARPS), matmul_ceil(run->rows, SCORE_TOKENS));
    cuda_launch(run, grid, dim3(SCORE_WARPS * QMI_WARP), shared, score_kernel, work);
    return true;
}

cudaError_t route_setup(void)
{
    return cudaFuncSetAttribute(score_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SCORE_SHARED);
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

/* scale: of an expert's scores, or NULL. PER: experts a lane, in registers; 0: any number, probabilities replace the scores in
 * memory. */
template <int PER>
static __global__ void __launch_bounds__(CHOOSE_WARPS * QMI_WARP)
    choose_kernel(float *scores, int stride, const float *scale, int rows, int experts, int top, bool gated, float *route)
{
    const int row = blockIdx.x * CHOOSE_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    chip_let_next_start();
    chip_wait_for_previous();
    if (row >= rows)
        return;
    scores += (int64_t)row * stride;
    route += (int64_t)row * (2 * top + 1);
    float p[PER ? PER : 1], most = -INFINITY, sum = 0;
    unsigned long long last = ~0ull;
    if constexpr (PER > 0) {
#pragma unroll
        for (int i = 0; i < PER; i++) {
            int e = lane + 32 * i;
            p[i] = e < experts ? scores[e] * (scale ? scale[e] : 1) : -INFINITY;
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
            most = fmaxf(most, scores[e] * (scale ? scale[e] : 1));
        most = chip_warp_max(most);
        for (int e = lane; e < experts; e += 32)
            sum += scores[e] = expf(scores[e] * (scale ? scale[e] : 1) - most);
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
        route[2 * top] = gated ? chip_sigmoid(scores[experts] * (scale ? scale[experts] : 1)) : 1.f;
}

/* scores = router h by products of split halves. */
static void multiply(const cuda_run *run, const qmi_op_route *op, const route_room &room)
{
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
    cuda_convert(run, &convert, 1);
    split(run, &op->router, room.weights, room.weight_scale, third);
    if (gated)
        split(run, &op->shared_gate, room.weights + (int64_t)experts * room.in.stride, room.weight_scale + experts, third);

    const qmi_matrix matrix = split_matrix(op, &room);
    matmul_part part = {};
    part.a = cuda_matrix_of(&matrix);
    part.rows = part.a.rows;
    part.dense = room.dense;
    part.in = room.in;
    part.passes = 1;
    part.out = room.scores;
    part.out_stride = score_stride(experts);
    part.mode = MATMUL_STORE;
    part.tokens = run->rows;
    part.written = true;
    matmul_launch(run, &part, 1, matmul_tokens(run->rows));
}

void cuda_matmul_route(const cuda_run *run, const qmi_op_route *op)
{
    matmul_room scratch = { run->scratch, 0 };
    const route_room room = lay_out(op, run->rows, &scratch);
    const int32_t experts = (int32_t)op->router.rows;
    const bool scored = score(run, op, &room);
    if (!scored)
        multiply(run, op, room);
    const auto choose = experts <= 256 ? choose_kernel<8> : experts <= 512 ? choose_kernel<16> : choose_kernel<0>;
    cuda_launch(run, dim3(matmul_ceil(run->rows, CHOOSE_WARPS)), dim3(CHOOSE_WARPS * QMI_WARP), 0, choose, room.scores, score_stride(experts),
                scored ? NULL : room.weight_scale, run->rows, experts, op->top, op->shared_gate.data != 0,
                cuda_slot(run, op->route));
}
