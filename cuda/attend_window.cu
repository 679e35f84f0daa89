/* Attention with a window: appending a batch's keys and values as halves, packing the tokens that leave the window, and keeping
 * what is not packed in the sequence's state. As lib/cpu/cpu_window.c. */
#include "attend_window.cuh"

#define WARPS 4
#define THREADS (WARPS * QMI_WARP)

/* ---- appending: a warp a row's key and value of one key-value head ---- */
static __global__ void __launch_bounds__(THREADS) window_append(attend_arguments a)
{
    CHIP_SHARED(float, heads); /* [WARPS][key, value] */
    const int warp = threadIdx.x / QMI_WARP, lane = threadIdx.x % QMI_WARP, size = a.head_size;
    const int64_t item = (int64_t)blockIdx.x * WARPS + warp;
    const int row = (int)(item / a.kv_heads), kv_head = (int)(item % a.kv_heads);
    chip_let_next_start();
    chip_wait_for_previous();
    if (row >= a.rows)
        return;
    float *head = heads + 2 * warp * size, *value = head + size;
    __half *to_key = (__half *)attend_in_rows(a, false, kv_head, row);
    __half *to_value = (__half *)attend_in_rows(a, true, kv_head, row);
    for (int i = lane; i < size; i += QMI_WARP) {
        head[i] = a.key[item * size + i];
        value[i] = a.value[item * size + i];
    }
    attend_turn(head, size, a.key_norm, a.key_epsilon, a.rotary, a.frequency, a.step.position[row], lane);
    if (a.rotate_keys)
        attend_spread_any(head, size, false, lane);
    if (a.rotate_values)
        attend_spread_any(value, size, false, lane);
    for (int i = lane; i < size; i += QMI_WARP) {
        to_key[i] = attend_half(head[i]);
        to_value[i] = attend_half(value[i]);
    }
}

/* ---- queries in both bases: a block takes some queries of a key-value head, and OUTPUTS numbers of each ---- */
#define OUTPUTS 64
#define EACH 8                /* queries of a thread */
#define QUERIES (EACH * (THREADS / OUTPUTS))

static __global__ void __launch_bounds__(THREADS) window_prepare(attend_arguments a)
{
    CHIP_SHARED(float, queries); /* [QUERIES][step], zeros behind the head */
    const int warp = threadIdx.x / QMI_WARP, lane = threadIdx.x % QMI_WARP, size = a.head_size, kv_head = blockIdx.y;
    const int step = (size + 3) & ~3;
    const int64_t first = (int64_t)blockIdx.x * QUERIES, all = (int64_t)a.rows * a.group;
    chip_let_next_start();
    chip_wait_for_previous();
    for (int q = warp; q < QUERIES; q += WARPS) {
        float *query = queries + q * step;
        const int row = (int)((first + q) / a.group), head = kv_head * a.group + (int)((first + q) % a.group);
        for (int i = first + q < all ? size + lane : lane; i < step; i += QMI_WARP)
            query[i] = 0;
        if (first + q >= all)
            continue;
        const int64_t index = (int64_t)row * a.heads + head;
        for (int i = lane; i < size; i += QMI_WARP)
            query[i] = a.query[index * a.query_step + i];
        attend_turn(query, size, a.query_norm, a.query_epsilon, a.rotary, a.frequency, a.step.position[row], lane);
        if (blockIdx.z == 0)
            for (int i = lane; i < size; i += QMI_WARP)
                a.prepared[((int64_t)a.rows * a.heads + index) * size + i] = attend_half(query[i] * a.scale);
    }
    __syncthreads();
    const int i = blockIdx.z * OUTPUTS + threadIdx.x % OUTPUTS, own = threadIdx.x / OUTPUTS * EACH;
    if (i >= size)
        return;
    const float *matrix = a.correction + ((int64_t)(2 * kv_head + 1) * size + i) * size;
    float sum[EACH] = {};
#pragma unroll 2
    for (int j = 0; j < size; j += 4) {
        const float m[4] = { matrix[j], matrix[min(j + 1, size - 1)], matrix[min(j + 2, size - 1)],
                             matrix[min(j + 3, size - 1)] };
#pragma unroll
        for (int q = 0; q < EACH; q++) {
            const float4 x = *(const float4 *)(queries + (own + q) * step + j);
            sum[q] += m[0] * x.x + m[1] * x.y + m[2] * x.z + m[3] * x.w;
        }
    }
#pragma unroll
    for (int q = 0; q < EACH; q++) {
        const int64_t pair = first + own + q;
        const int64_t index = pair / a.group * a.heads + kv_head * a.group + pair % a.group;
        if (pair < all)
            a.prepared[index * size + i] = attend_half(sum[q] * a.scale);
    }
}

/* ---- packing ---- */
#define CHANNELS 64           /* of a block */
#define INPUTS 32             /* of the correction's products, at a time */
#define PACK_WARPS 8
#define PACK_THREADS (PACK_WARPS * QMI_WARP)
#define SHARES (PACK_THREADS / CHANNELS)
#define TOKENS (QMI_KV_GROUP / SHARES) /* of a thread */
#define CUTS 5
#define CUT 0.07f

/* The batch's group of that index: its sequence, and its first token; -1: there is none. */
static __device__ __forceinline__ int window_group(const attend_arguments &a, int index, int *sequence)
{
    for (int s = 0; s < a.sequences; s++) {
        const cuda_sequence &q = a.step.sequences[s];
        const int packed = attend_packed(a, q.start);
        const int groups = (attend_packed(a, q.start + q.count) - packed) / QMI_KV_GROUP;
        if (index < groups) {
            *sequence = s;
            return packed + index * QMI_KV_GROUP;
        }
        index -= groups;
    }
    return -1;
}

/* A channel's range (kv_type.c, best_range): of the ways share, share + SHARES, ... to leave something out the one with the least
 * sum of cubes. Rounded as there, so that the codes are the same. */
static __device__ __forceinline__ void window_range(const float *x, int step, int share, float *least, int *which, __half *centre,
                                                    __half *scale)
{
    float low = x[0], high = x[0];
    for (int t = 1; t < QMI_KV_GROUP; t++) {
        low = x[t * step] < low ? x[t * step] : low;
        high = x[t * step] > high ? x[t * step] : high;
    }
    const float size = __fadd_rn(high, -low);
    *least = INFINITY;
    *which = CUTS * CUTS;
    *centre = *scale = __ushort_as_half(0x7E00);
    for (int cut = share; cut < CUTS * CUTS; cut += SHARES) {
        const float from = __fadd_rn(low, __fmul_rn(__fmul_rn(CUT, (float)(cut / CUTS)), size));
        const float to = __fadd_rn(high, -__fmul_rn(__fmul_rn(CUT, (float)(cut % CUTS)), size));
        const __half c = __float2half_rn(__fmul_rn(0.5f, __fadd_rn(from, to))), s = __float2half_rn(__fadd_rn(to, -from) / 3.f);
        const float middle = __half2float(c), one = __half2float(s), by = one > 0 ? 1.f / one : 0;
        float cubes = 0;
        for (int t = 0; t < QMI_KV_GROUP; t++) {
            const float above = __fadd_rn(x[t * step], -middle), steps = __fmul_rn(above, by);
            const float level = (steps < 0 ? -0.5f : 0.5f) + (steps < -1 ? -1.f : 0.f) + (steps < 1 ? 0.f : 1.f);
            const float error = fabsf(__fadd_rn(above, -__fmul_rn(level, one)));
            cubes = __fadd_rn(cubes, __fmul_rn(__fmul_rn(error, error), error));
        }
        if (cubes < *least) {
            *least = cubes;
            *which = cut;
            *centre = c;
            *scale = s;
        }
    }
}

/* keys [tokens][CHANNELS + 1] of a group, from channel `first` on: packed. */
static __device__ __forceinline__ void window_pack_channels(uint8_t *group, const float *keys, int size, int first, float *least,
                                                            int *which)
{
    const int channel = threadIdx.x % CHANNELS, share = threadIdx.x / CHANNELS, step = CHANNELS + 1;
    const int channels = (size + QMI_KV_BLOCK - 1) / QMI_KV_BLOCK * QMI_KV_BLOCK;
    const float *x = keys + channel;
    float own;
    int cut;
    __half centre, scale;
    window_range(x, step, share, &own, &cut, &centre, &scale);
    least[threadIdx.x] = own;
    which[threadIdx.x] = cut;
    __syncthreads();
    bool best = true; /* the first of the least */
    for (int s = 0; s < SHARES; s++) {
        const float other = least[s * CHANNELS + channel];
        best = best && !(other < own || (other == own && which[s * CHANNELS + channel] < cut));
    }
    if (!best || first + channel >= channels)
        return;
    bool finite = fabsf(__half2float(centre)) <= 65504.f && fabsf(__half2float(scale)) <= 65504.f;
    for (int t = 0; t < QMI_KV_GROUP; t++)
        finite = finite && fabsf(x[t * step]) <= 3.402823466e38f;
    const float middle = __half2float(centre), one = finite ? __half2float(scale) : 0;
    uint32_t codes[4] = {};
    for (int t = 0; t < QMI_KV_GROUP && one > 0; t++) {
        const float steps = __fmul_rn(__fadd_rn(x[t * step], -middle), 1.f / one);
        codes[t % 16 / 4] |= (uint32_t)attend_nearest_of_four(steps) << (8 * (t % 4) + 2 * (t / 16));
    }
    *(uint4 *)(group + 16 * (first + channel)) = make_uint4(codes[0], codes[1], codes[2], codes[3]);
    __half *scales = (__half *)(group + 16 * channels);
    scales[first + channel] = finite ? scale : __ushort_as_half(0x7E00);
    scales[channels + first + channel] = finite ? centre : __ushort_as_half(0);
}

/* [tokens][CHANNELS + 1]: T k, of the channels from `first` on. */
static __device__ __forceinline__ void window_correct(const attend_arguments &a, const cuda_sequence &s, int kv_head, int token,
                                                      int first, float *out, float *inputs)
{
    const int channel = threadIdx.x % CHANNELS, share = threadIdx.x / CHANNELS, size = a.head_size;
    const float *matrix = a.correction + ((int64_t)2 * kv_head * size + min(first + channel, size - 1)) * size;
    float sum[TOKENS] = {};
    for (int from = 0; from < size; from += INPUTS) {
        __syncthreads();
        for (int i = threadIdx.x; i < QMI_KV_GROUP * INPUTS; i += PACK_THREADS) {
            const int t = i / INPUTS, j = from + i % INPUTS;
            const __half *key = (const __half *)attend_in_window(a, s, false, kv_head, token + t);
            inputs[i] = j < size ? __half2float(key[j]) : 0;
        }
        __syncthreads();
        for (int j = 0; j < INPUTS; j += 4) { /* inputs behind the head: zeros */
            float m[4];
#pragma unroll
            for (int k = 0; k < 4; k++)
                m[k] = matrix[min(from + j + k, size - 1)];
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                const float4 x = *(const float4 *)(inputs + (share * TOKENS + t) * INPUTS + j);
                sum[t] += m[0] * x.x + m[1] * x.y + m[2] * x.z + m[3] * x.w;
            }
        }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
        out[(share * TOKENS + t) * (CHANNELS + 1) + channel] = first + channel < size ? sum[t] : 0;
    __syncthreads();
}

/* A block: a group of a sequence, a key-value head's keys or values, and of them CHANNELS channels or a share of the tokens. */
static __global__ void __launch_bounds__(PACK_THREADS) window_pack(attend_arguments a)
{
    __shared__ float keys[QMI_KV_GROUP * (CHANNELS + 1)], least[PACK_THREADS];
    __shared__ float4 inputs[QMI_KV_GROUP * INPUTS / 4];
    __shared__ int which[PACK_THREADS];
    CHIP_SHARED(float, heads); /* [PACK_WARPS][head_size] */
    const int kv_head = blockIdx.y % a.kv_heads, size = a.head_size, first = blockIdx.z * CHANNELS;
    const bool value = (int)blockIdx.y >= a.kv_heads;
    int sequence = 0;
    chip_let_next_start();
    const int token = window_group(a, blockIdx.x, &sequence);
    chip_wait_for_previous();
    if (token < 0)
        return;
    const cuda_sequence s = a.step.sequences[sequence];
    const uint64_t page = a.step.pages[s.page_first + token / QMI_KV_GROUP];
    if (!value && a.key_type == QMI_KV_Q2) {
        if (a.correction)
            window_correct(a, s, kv_head, token, first, keys, (float *)inputs);
        else
            for (int i = threadIdx.x; i < QMI_KV_GROUP * CHANNELS; i += PACK_THREADS) {
                const int t = i / CHANNELS, channel = i % CHANNELS;
                const __half *key = (const __half *)attend_in_window(a, s, false, kv_head, token + t);
                keys[t * (CHANNELS + 1) + channel] = first + channel < size ? __half2float(key[first + channel]) : 0;
            }
        __syncthreads();
        window_pack_channels((uint8_t *)attend_group_of(a, page, kv_head), keys, size, first, least, which);
        return;
    }
    const int warp = threadIdx.x / QMI_WARP, lane = threadIdx.x % QMI_WARP;
    float *head = heads + warp * size;
    for (int t = blockIdx.z * PACK_WARPS + warp; t < QMI_KV_GROUP; t += PACK_WARPS * gridDim.z) {
        const __half *from = (const __half *)attend_in_window(a, s, value, kv_head, token + t);
        for (int i = lane; i < size; i += QMI_WARP)
            head[i] = __half2float(from[i]);
        __syncwarp();
        const uint64_t record = attend_address<ATTEND_ANY>(a, attend_place{ page, kv_head * QMI_KV_GROUP + t }, value);
        attend_append_head(value ? a.value_type : a.key_type, record, head, size, true, lane);
    }
}

/* ---- keeping: a block a sequence's keys or values of one key-value head ---- */
static __global__ void __launch_bounds__(PACK_THREADS) window_keep(attend_arguments a, bool from_rows)
{
    const int kv_head = blockIdx.y % a.kv_heads, warp = threadIdx.x / QMI_WARP, lane = threadIdx.x % QMI_WARP;
    const bool value = (int)blockIdx.y >= a.kv_heads;
    chip_let_next_start();
    chip_wait_for_previous();
    const cuda_sequence s = a.step.sequences[blockIdx.x];
    const int packed = attend_packed(a, s.start + s.count), end = from_rows ? s.start + s.count : s.start;
    const int first = s.state == s.next_state ? max(packed, s.start) : packed; /* the others are there */
    for (int t = first + warp; t < end; t += PACK_WARPS) {
        const __half *from = (const __half *)attend_in_window(a, s, value, kv_head, t);
        __half *to = (__half *)attend_in_ring(a, s.next_state, value, kv_head, t);
        for (int i = lane; i < a.head_size; i += QMI_WARP)
            to[i] = from[i];
    }
}

/* ---- launching ---- */

static size_t prepare_bytes(int32_t head_size)
{
    return QUERIES * sizeof(float) * (size_t)((head_size + 3) & ~3);
}

static size_t pack_bytes(int32_t head_size)
{
    return PACK_WARPS * sizeof(float) * (size_t)head_size;
}

void attend_window_append(const cuda_run *run, const attend_arguments *a)
{
    const int64_t items = (int64_t)a->rows * a->kv_heads;
    cuda_launch(run, (uint32_t)((items + WARPS - 1) / WARPS), THREADS, 2 * WARPS * sizeof(float) * (size_t)a->head_size,
                window_append, *a);
}

void attend_window_prepare(const cuda_run *run, const attend_arguments *a)
{
    const int64_t queries = (int64_t)a->rows * a->group;
    cuda_launch(run, dim3((uint32_t)((queries + QUERIES - 1) / QUERIES), a->kv_heads, (a->head_size + OUTPUTS - 1) / OUTPUTS),
                THREADS, prepare_bytes(a->head_size), window_prepare, *a);
}

void attend_window_pack(const cuda_run *run, const attend_arguments *a)
{
    const uint32_t groups = (uint32_t)(a->rows / QMI_KV_GROUP + a->sequences); /* of n rows at most (n + 63) / 64 */
    const uint32_t channels = (uint32_t)((a->head_size + QMI_KV_BLOCK - 1) / QMI_KV_BLOCK * QMI_KV_BLOCK);
    cuda_launch(run, dim3(groups, 2 * a->kv_heads, (channels + CHANNELS - 1) / CHANNELS), PACK_THREADS,
                pack_bytes(a->head_size), window_pack, *a);
}

void attend_window_keep(const cuda_run *run, const attend_arguments *a, bool from_rows)
{
    cuda_launch(run, dim3(a->sequences, 2 * a->kv_heads), PACK_THREADS, 0, window_keep, *a, from_rows);
}

cudaError_t attend_window_setup(void)
{
    const cudaError_t error = cudaFuncSetAttribute(window_prepare, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   (int)prepare_bytes(QMI_HEAD_SIZE_MAX));
    return error != cudaSuccess ? error : cudaFuncSetAttribute(window_pack, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                               (int)pack_bytes(QMI_HEAD_SIZE_MAX));
}
