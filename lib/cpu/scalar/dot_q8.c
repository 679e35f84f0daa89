/* Activations as 8-bit blocks, and the products of quantized weights with them: integers within a block, floats across blocks. */
#include <math.h>
#include <string.h>

#include "cpu/scalar/scalar.h"
#include "quant/quant_blocks.h"

/* An input row taken apart. */
typedef struct q8_row {
    const int8_t *values;  /* [columns] */
    const float *scales;   /* [columns / 32] */
    const int16_t *sums;   /* [columns / 16] */
} q8_row;

void qmi_scalar_quantize(const float *x, void *row, int64_t columns, int64_t first, int64_t count)
{
    for (int64_t block = 0; block < count / 32; block++, x += 32) {
        int8_t *values = (int8_t *)row + first + 32 * block;
        int16_t *sums = qmi_q8_sums(row, columns) + (first + 32 * block) / 16;
        float *scale = qmi_q8_scales(row, columns) + first / 32 + block;
        float largest = 0;
        bool finite = true;
        for (int i = 0; i < 32; i++) {
            finite = finite && isfinite(x[i]);
            largest = fmaxf(largest, fabsf(x[i]));
        }
        *scale = finite ? largest / 127 : NAN;
        sums[0] = sums[1] = 0;
        for (int i = 0; i < 32; i++) {
            /* In double, so that the smallest scales keep the quotient within 127 (and half to even is exact). */
            double quotient = finite && *scale > 0 ? nearbyint((double)x[i] / *scale) : 0;
            values[i] = (int8_t)(quotient > 127 ? 127 : quotient < -127 ? -127 : quotient);
            sums[i / 16] = (int16_t)(sums[i / 16] + values[i]);
        }
    }
}

static int32_t dot_integers(const int8_t *a, const int8_t *b, int count)
{
    int32_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

static double row_q8_0(const void *weights, q8_row x, int64_t columns)
{
    const qmi_block_q8_0 *block = weights;
    double sum = 0;
    for (int64_t b = 0; b < columns / 32; b++)
        sum += (double)(qmi_load_half(block[b].d) * x.scales[b]) * dot_integers(block[b].q, x.values + 32 * b, 32);
    return sum;
}

/* One super-block of Q4_K or Q5_K with its numbers in q: sum of d scale q x - dmin minimum x. */
static double super_block(const int8_t q[256], const qmi_f16 d, const qmi_f16 dmin, const uint8_t scales[12], q8_row x)
{
    double sum = 0;
    for (int j = 0; j < 8; j++) {
        uint8_t scale, minimum;
        qmi_q4_k_scale(scales, j, &scale, &minimum);
        int32_t products = dot_integers(q + 32 * j, x.values + 32 * j, 32);
        int32_t values = x.sums[2 * j] + x.sums[2 * j + 1];
        sum += x.scales[j] * ((double)qmi_load_half(d) * scale * products - (double)qmi_load_half(dmin) * minimum * values);
    }
    return sum;
}

static q8_row advanced(q8_row x, int64_t columns)
{
    return (q8_row){ x.values + columns, x.scales + columns / 32, x.sums + columns / 16 };
}

static double row_q4_k(const void *weights, q8_row x, int64_t columns)
{
    const qmi_block_q4_k *block = weights;
    double sum = 0;
    for (; columns > 0; columns -= 256, block++, x = advanced(x, 256)) {
        int8_t q[256];
        for (int i = 0; i < 256; i++)
            q[i] = (int8_t)(block->q[i / 64 * 32 + i % 32] >> 4 * (i / 32 % 2) & 15);
        sum += super_block(q, block->d, block->dmin, block->scales, x);
    }
    return sum;
}

static double row_q5_k(const void *weights, q8_row x, int64_t columns)
{
    const qmi_block_q5_k *block = weights;
    double sum = 0;
    for (; columns > 0; columns -= 256, block++, x = advanced(x, 256)) {
        int8_t q[256];
        for (int i = 0; i < 256; i++) {
            int low = block->q[i / 64 * 32 + i % 32] >> 4 * (i / 32 % 2) & 15;
            q[i] = (int8_t)(low | (block->high[i % 32] >> (i / 32) & 1) << 4);
        }
        sum += super_block(q, block->d, block->dmin, block->scales, x);
    }
    return sum;
}

static double row_q6_k(const void *weights, q8_row x, int64_t columns)
{
    const qmi_block_q6_k *block = weights;
    double sum = 0;
    for (; columns > 0; columns -= 256, block++, x = advanced(x, 256)) {
        int8_t q[256];
        for (int i = 0; i < 256; i++) {
            int half = i / 128, within = i % 128;
            int low = block->low[64 * half + within % 64] >> 4 * (within / 64) & 15;
            int high = block->high[32 * half + within % 32] >> 2 * (within / 32) & 3;
            q[i] = (int8_t)((low | high << 4) - 32);
        }
        for (int j = 0; j < 16; j++)
            sum += (double)(qmi_load_half(block->d) * x.scales[j / 2]) * block->scales[j] *
                   dot_integers(q + 16 * j, x.values + 16 * j, 16);
    }
    return sum;
}

static void dot_tile(const qmi_cpu_tile *tile, double (*row_dot)(const void *, q8_row, int64_t))
{
    for (int32_t t = 0; t < tile->tokens; t++) {
        int64_t columns = tile->columns;
        char *input = (char *)tile->inputs + (tile->order ? tile->order[t] : t) * tile->input_bytes;
        q8_row x = { (const int8_t *)input, qmi_q8_scales(input, columns), qmi_q8_sums(input, columns) };
        for (int32_t r = 0; r < tile->rows; r++) {
            float *out = tile->out + t * tile->out_stride + r;
            double sum = row_dot((const char *)tile->weights + r * tile->row_bytes, x, columns);
            *out = (tile->add ? *out : 0) + (float)sum;
        }
    }
}

void qmi_scalar_dot_q8_0(const qmi_cpu_tile *tile)
{
    dot_tile(tile, row_q8_0);
}

void qmi_scalar_dot_q4_k(const qmi_cpu_tile *tile)
{
    dot_tile(tile, row_q4_k);
}

void qmi_scalar_dot_q5_k(const qmi_cpu_tile *tile)
{
    dot_tile(tile, row_q5_k);
}

void qmi_scalar_dot_q6_k(const qmi_cpu_tile *tile)
{
    dot_tile(tile, row_q6_k);
}
