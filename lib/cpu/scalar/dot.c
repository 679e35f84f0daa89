/* Products of float weights (F32, F16, BF16) with float activations. */
#include <string.h>

#include "cpu/scalar/scalar.h"

#define PIECE 256 /* columns unpacked at a time: 1 KB, used for several tokens */
#define TOKENS 16 /* sums kept at a time */

typedef void (*unpack_function)(const char *row, int64_t first, int64_t count, float *to);

static const float *input_of(const qmi_cpu_tile *tile, int32_t token)
{
    int64_t row = tile->order ? tile->order[token] : token;
    return (const float *)(const void *)((const char *)tile->inputs + row * tile->input_bytes);
}

/* One row with tokens [from, to). */
static void dot_row(const qmi_cpu_tile *tile, unpack_function unpack, int32_t row, int32_t from, int32_t to)
{
    const char *weights = (const char *)tile->weights + row * tile->row_bytes;
    double sums[TOKENS] = { 0 };
    float piece[PIECE];
    for (int64_t first = 0; first < tile->columns; first += PIECE) {
        int64_t count = tile->columns - first < PIECE ? tile->columns - first : PIECE;
        unpack(weights, first, count, piece);
        for (int32_t t = from; t < to; t++) {
            const float *x = input_of(tile, t) + first;
            double sum = sums[t - from];
            for (int64_t c = 0; c < count; c++)
                sum += (double)piece[c] * x[c];
            sums[t - from] = sum;
        }
    }
    for (int32_t t = from; t < to; t++) {
        float *out = tile->out + t * tile->out_stride + row;
        *out = (tile->add ? *out : 0) + (float)sums[t - from];
    }
}

static void dot_tile(const qmi_cpu_tile *tile, unpack_function unpack)
{
    for (int32_t from = 0; from < tile->tokens; from += TOKENS)
        for (int32_t row = 0; row < tile->rows; row++)
            dot_row(tile, unpack, row, from, tile->tokens - from < TOKENS ? tile->tokens : from + TOKENS);
}

static void unpack_f32(const char *row, int64_t first, int64_t count, float *to)
{
    memcpy(to, row + first * 4, (size_t)count * 4);
}

static void unpack_f16(const char *row, int64_t first, int64_t count, float *to)
{
    const uint16_t *halves = (const uint16_t *)(const void *)row + first;
    for (int64_t i = 0; i < count; i++)
        to[i] = qmi_half_to_float(halves[i]);
}

static void unpack_bf16(const char *row, int64_t first, int64_t count, float *to)
{
    const uint16_t *numbers = (const uint16_t *)(const void *)row + first;
    for (int64_t i = 0; i < count; i++)
        to[i] = qmi_bfloat_to_float(numbers[i]);
}

void qmi_scalar_dot_f32(const qmi_cpu_tile *tile)
{
    dot_tile(tile, unpack_f32);
}

void qmi_scalar_dot_f16(const qmi_cpu_tile *tile)
{
    dot_tile(tile, unpack_f16);
}

void qmi_scalar_dot_bf16(const qmi_cpu_tile *tile)
{
    dot_tile(tile, unpack_bf16);
}
