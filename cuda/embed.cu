/* EMBED and JOIN: rows of the table in any of the card's formats, as float32; exactly what the format's specification says. */
#include "block.cuh"
#include "chip.cuh"
#include "cuda.h"

#define THREADS 256

/* ---- one word of a block: values 4 k .. 4 k + 3, k < 8 ---- */

static __device__ __forceinline__ float4 floats_of_codes(uint32_t codes, int offset, float scale, float minimum)
{
    return make_float4(scale * (float)((int)(codes & 255) - offset) - minimum,
                       scale * (float)((int)(codes >> 8 & 255) - offset) - minimum,
                       scale * (float)((int)(codes >> 16 & 255) - offset) - minimum,
                       scale * (float)((int)(codes >> 24) - offset) - minimum);
}

static __device__ __forceinline__ float4 floats_of_bytes(uint32_t bytes, float scale) /* signed */
{
    return make_float4(scale * (float)(int8_t)bytes, scale * (float)(int8_t)(bytes >> 8), scale * (float)(int8_t)(bytes >> 16),
                       scale * (float)(int8_t)(bytes >> 24));
}

template <uint32_t T> static __device__ __forceinline__ float4 word_of_codes(const cuda_matrix &m, int64_t i, int k)
{
    block<T> w;
    block_load(w, m, i);
    if constexpr (T == QMI_TYPE_IQ4_NL || T == QMI_TYPE_IQ4_XS) {
        uint32_t values[2];
        float scale;
        block_iq4_values(block_word(w.q, k & 3), &values[0], &values[1]);
        if constexpr (T == QMI_TYPE_IQ4_NL)
            scale = chip_half_low(w.d);
        else
            scale = block_iq4_xs_scale(w.scales, (int)(i & 7));
        return floats_of_bytes(values[k >> 2], scale);
    } else if constexpr (T == QMI_TYPE_Q4_K || T == QMI_TYPE_Q5_K) {
        float scale, minimum;
        block_mins(w.mins, w.d, &scale, &minimum);
        return floats_of_codes(block_codes(w, k), 0, scale, minimum);
    } else if constexpr (T == QMI_TYPE_Q6_K) {
        int scale = (int)(int8_t)(w.scales >> (k < 4 ? 0 : 8));
        return floats_of_codes(block_codes(w, k), 32, chip_half_low(w.d) * (float)scale, 0);
    } else {
        return floats_of_codes(block_codes(w, k), T == QMI_TYPE_Q4_0 ? 8 : 16, chip_half_low(w.d), 0);
    }
}

template <uint32_t T> static __device__ __forceinline__ float4 word_of(const cuda_matrix &m, int64_t i, int k)
{
    if constexpr (T == QMI_TYPE_F32) {
        uint4 q = chip_load16(m.plane[0] + i * 128 + 16 * k);
        return make_float4(__uint_as_float(q.x), __uint_as_float(q.y), __uint_as_float(q.z), __uint_as_float(q.w));
    } else if constexpr (T == QMI_TYPE_F16) {
        uint2 q = chip_load8(m.plane[0] + i * 64 + 8 * k);
        return make_float4(chip_half_low(q.x), chip_half_high(q.x), chip_half_low(q.y), chip_half_high(q.y));
    } else if constexpr (T == QMI_TYPE_BF16) {
        uint2 q = chip_load8(m.plane[0] + i * 64 + 8 * k);
        return make_float4(__uint_as_float(q.x << 16), __uint_as_float(q.x & 0xffff0000u), __uint_as_float(q.y << 16),
                           __uint_as_float(q.y & 0xffff0000u));
    } else if constexpr (T == QMI_TYPE_Q8_0) {
        return floats_of_bytes(chip_load4(m.plane[0] + i * 32 + 4 * k), chip_half_low(chip_load2(m.plane[2] + i * 2)));
    } else {
        return word_of_codes<T>(m, i, k);
    }
}

/* A row is few bytes, so one kernel serves all formats. */
static __device__ float4 any_word_of(const cuda_matrix &m, int64_t i, int k)
{
    switch (m.type) {
    case QMI_TYPE_F32: return word_of<QMI_TYPE_F32>(m, i, k);
    case QMI_TYPE_F16: return word_of<QMI_TYPE_F16>(m, i, k);
    case QMI_TYPE_BF16: return word_of<QMI_TYPE_BF16>(m, i, k);
    case QMI_TYPE_Q8_0: return word_of<QMI_TYPE_Q8_0>(m, i, k);
    case QMI_TYPE_Q4_0: return word_of<QMI_TYPE_Q4_0>(m, i, k);
    case QMI_TYPE_Q5_0: return word_of<QMI_TYPE_Q5_0>(m, i, k);
    case QMI_TYPE_Q4_K: return word_of<QMI_TYPE_Q4_K>(m, i, k);
    case QMI_TYPE_Q5_K: return word_of<QMI_TYPE_Q5_K>(m, i, k);
    case QMI_TYPE_Q6_K: return word_of<QMI_TYPE_Q6_K>(m, i, k);
    case QMI_TYPE_IQ4_NL: return word_of<QMI_TYPE_IQ4_NL>(m, i, k);
    default: return word_of<QMI_TYPE_IQ4_XS>(m, i, k);
    }
}

static __device__ __forceinline__ void store_word(float *row, int width, int at, float4 x)
{
    if (width % 4 == 0) { /* rows are then aligned to 16 bytes */
        *(float4 *)(row + at) = x;
        return;
    }
    const float values[4] = { x.x, x.y, x.z, x.w };
    for (int j = 0; j < 4 && at + j < width; j++)
        row[at + j] = values[j];
}

static __global__ void __launch_bounds__(THREADS) embed_rows(cuda_matrix table, const int32_t *tokens, float *out)
{
    const int word = blockIdx.x * THREADS + threadIdx.x, row = blockIdx.y;
    chip_let_next_start();
    chip_wait_for_previous();
    if (4 * word < table.columns)
        store_word(out + (int64_t)row * table.columns, table.columns, 4 * word,
                   any_word_of(table, (int64_t)tokens[row] * table.blocks + word / 8, word % 8));
}

void cuda_embed(const cuda_run *run, const qmi_op_embed *op)
{
    const cuda_matrix table = cuda_matrix_of(&op->table);
    const int words = (table.columns + 3) / 4;
    cuda_launch(run, dim3((words + THREADS - 1) / THREADS, run->rows), dim3(THREADS), 0, embed_rows, table, run->step.tokens,
                cuda_slot(run, op->out));
}

/* ---- JOIN: a block makes one half of a row ---- */

static __device__ float block_sum(float x)
{
    __shared__ float sums[THREADS / QMI_WARP];
    x = chip_warp_sum(x);
    if (threadIdx.x % QMI_WARP == 0)
        sums[threadIdx.x / QMI_WARP] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < THREADS / QMI_WARP; i++)
        x += sums[i];
    return x;
}

/* Word `word` of the row: of the table, or of a hidden state. */
static __device__ float4 join_word(const cuda_matrix &table, int64_t first_block, const float *hidden, int word)
{
    if (!hidden)
        return any_word_of(table, first_block + word / 8, word % 8);
    float values[4];
    for (int j = 0; j < 4; j++)
        values[j] = 4 * word + j < table.columns ? hidden[4 * word + j] : 0.f;
    return make_float4(values[0], values[1], values[2], values[3]);
}

static __global__ void __launch_bounds__(THREADS)
join_rows(cuda_matrix table, const int32_t *tokens, const float *hidden, const float *norm, float epsilon,
          const float *hidden_norm, float hidden_epsilon, float *out)
{
    const int width = table.columns, words = (width + 3) / 4, row = blockIdx.y;
    const bool second = blockIdx.x == 1;
    chip_let_next_start();
    chip_wait_for_previous();
    const int64_t first_block = (int64_t)tokens[row] * table.blocks;
    const float *from = second ? hidden + (int64_t)row * width : NULL, *weight = second ? hidden_norm : norm;
    float *to = out + (2 * (int64_t)row + second) * width;
    float factor = 1;
    if (weight) {
        float sum = 0;
        for (int word = threadIdx.x; word < words; word += THREADS) {
            float4 x = join_word(table, first_block, from, word);
            sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        }
        factor = rsqrtf(block_sum(sum) / (float)width + (second ? hidden_epsilon : epsilon));
    }
    for (int word = threadIdx.x; word < words; word += THREADS) {
        float4 x = join_word(table, first_block, from, word);
        const float values[4] = { x.x, x.y, x.z, x.w };
        for (int j = 0; j < 4 && 4 * word + j < width; j++)
            to[4 * word + j] = weight ? values[j] * factor * weight[4 * word + j] : values[j];
    }
}

void cuda_join(const cuda_run *run, const qmi_op_join *op)
{
    cuda_launch(run, dim3(2, run->rows), dim3(THREADS), 0, join_rows, cuda_matrix_of(&op->table), run->step.tokens,
                (const float *)cuda_slot(run, op->hidden), cuda_vector(&op->norm.weight), op->norm.epsilon,
                cuda_vector(&op->hidden_norm.weight), op->hidden_norm.epsilon, cuda_slot(run, op->out));
}
