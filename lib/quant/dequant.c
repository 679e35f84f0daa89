/* What each number format means: scalar unpacking, the specification that fast kernels are tested against.
 *
 * Layouts: quant_blocks.h. The order of the multiplications is part of the meaning: results are exact to the bit. */
#include "quant/dequant.h"

#include <string.h>
#include "quant/quant_blocks.h"
#include "quant/quant_tables.h"

/* Defines qmi_dequant_NAME as a loop over blocks of unpack_NAME. */
#define FOR_EACH_BLOCK(name, values) \
    void qmi_dequant_##name(const void *from, float *to, int64_t blocks) \
    { \
        const qmi_block_##name *block = from; \
        for (int64_t i = 0; i < blocks; i++) \
            unpack_##name(block + i, to + i * (values)); \
    }

/* ---- plain numbers ---- */

void qmi_dequant_f32(const void *from, float *to, int64_t blocks)
{
    memcpy(to, from, (size_t)blocks * sizeof *to);
}

void qmi_dequant_f16(const void *from, float *to, int64_t blocks)
{
    const uint8_t *bytes = from;
    for (int64_t i = 0; i < blocks; i++)
        to[i] = qmi_load_half(bytes + 2 * i);
}

void qmi_dequant_bf16(const void *from, float *to, int64_t blocks)
{
    const uint8_t *bytes = from;
    for (int64_t i = 0; i < blocks; i++)
        to[i] = qmi_bfloat_to_float((uint16_t)qmi_load_u16(bytes + 2 * i));
}

/* ---- blocks of 32 ---- */

static int half_byte(const uint8_t *bytes, int i) /* of 32 in 16 bytes: first all low halves, then all high ones */
{
    return bytes[i % 16] >> 4 * (i / 16) & 15;
}

static void unpack_q4_0(const qmi_block_q4_0 *block, float *to)
{
    const float d = qmi_load_half(block->d);
    for (int i = 0; i < 32; i++)
        to[i] = d * (float)(half_byte(block->q, i) - 8);
}
FOR_EACH_BLOCK(q4_0, 32)

static void unpack_q4_1(const qmi_block_q4_1 *block, float *to)
{
    const float d = qmi_load_half(block->d), m = qmi_load_half(block->m);
    for (int i = 0; i < 32; i++)
        to[i] = d * (float)half_byte(block->q, i) + m;
}
FOR_EACH_BLOCK(q4_1, 32)

static int five_bits(const uint8_t *low, uint32_t high, int i)
{
    return half_byte(low, i) | (int)(high >> i & 1) << 4;
}

static void unpack_q5_0(const qmi_block_q5_0 *block, float *to)
{
    const float d = qmi_load_half(block->d);
    const uint32_t high = qmi_load_u32(block->high);
    for (int i = 0; i < 32; i++)
        to[i] = d * (float)(five_bits(block->q, high, i) - 16);
}
FOR_EACH_BLOCK(q5_0, 32)

static void unpack_q5_1(const qmi_block_q5_1 *block, float *to)
{
    const float d = qmi_load_half(block->d), m = qmi_load_half(block->m);
    const uint32_t high = qmi_load_u32(block->high);
    for (int i = 0; i < 32; i++)
        to[i] = d * (float)five_bits(block->q, high, i) + m;
}
FOR_EACH_BLOCK(q5_1, 32)

static void unpack_q8_0(const qmi_block_q8_0 *block, float *to)
{
    const float d = qmi_load_half(block->d);
    for (int i = 0; i < 32; i++)
        to[i] = d * (float)block->q[i];
}
FOR_EACH_BLOCK(q8_0, 32)

static void unpack_iq4_nl(const qmi_block_iq4_nl *block, float *to)
{
    const float d = qmi_load_half(block->d);
    for (int i = 0; i < 32; i++)
        to[i] = d * (float)qmi_quant_levels_iq4[half_byte(block->q, i)];
}
FOR_EACH_BLOCK(iq4_nl, 32)

static void unpack_mxfp4(const qmi_block_mxfp4 *block, float *to)
{
    const float d = qmi_mxfp4_scale(block->exponent);
    for (int i = 0; i < 32; i++)
        to[i] = d * (float)qmi_quant_levels_mxfp4[half_byte(block->q, i)];
}
FOR_EACH_BLOCK(mxfp4, 32)

/* ---- blocks of 256 with evenly spaced levels ---- */

static int two_bits(const uint8_t *bytes, int i) /* of 256 in 64 bytes */
{
    return bytes[i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3;
}

static void unpack_q2_k(const qmi_block_q2_k *block, float *to)
{
    const float d = qmi_load_half(block->d), dmin = qmi_load_half(block->dmin);
    for (int j = 0; j < 16; j++) {
        const float scale = d * (float)(block->scales[j] & 15), minimum = dmin * (float)(block->scales[j] >> 4);
        for (int i = 16 * j; i < 16 * j + 16; i++)
            to[i] = scale * (float)two_bits(block->q, i) - minimum;
    }
}
FOR_EACH_BLOCK(q2_k, 256)

static void unpack_q3_k(const qmi_block_q3_k *block, float *to)
{
    const float d = qmi_load_half(block->d);
    for (int j = 0; j < 16; j++) {
        const float scale = d * (float)(qmi_q3_k_scale(block->scales, j) - 32);
        for (int i = 16 * j; i < 16 * j + 16; i++) {
            const int third = block->high[i % 32] >> (i / 32) & 1;
            to[i] = scale * (float)((two_bits(block->q, i) | third << 2) - 4);
        }
    }
}
FOR_EACH_BLOCK(q3_k, 256)

static void unpack_q4_k(const qmi_block_q4_k *block, float *to)
{
    const float d = qmi_load_half(block->d), dmin = qmi_load_half(block->dmin);
    for (int j = 0; j < 8; j++) {
        uint8_t s, m;
        qmi_q4_k_scale(block->scales, j, &s, &m);
        const float scale = d * (float)s, minimum = dmin * (float)m;
        for (int l = 0; l < 32; l++)
            to[32 * j + l] = scale * (float)(block->q[j / 2 * 32 + l] >> 4 * (j % 2) & 15) - minimum;
    }
}
FOR_EACH_BLOCK(q4_k, 256)

static void unpack_q5_k(const qmi_block_q5_k *block, float *to)
{
    const float d = qmi_load_half(block->d), dmin = qmi_load_half(block->dmin);
    for (int j = 0; j < 8; j++) {
        uint8_t s, m;
        qmi_q4_k_scale(block->scales, j, &s, &m);
        const float scale = d * (float)s, minimum = dmin * (float)m;
        for (int l = 0; l < 32; l++) {
            const int low = block->q[j / 2 * 32 + l] >> 4 * (j % 2) & 15, fifth = block->high[l] >> j & 1;
            to[32 * j + l] = scale * (float)(low | fifth << 4) - minimum;
        }
    }
}
FOR_EACH_BLOCK(q5_k, 256)

static void unpack_q6_k(const qmi_block_q6_k *block, float *to)
{
    const float d = qmi_load_half(block->d);
    for (int j = 0; j < 16; j++) {
        const float scale = d * (float)block->scales[j];
        for (int i = 16 * j; i < 16 * j + 16; i++) {
            const int low = block->low[i / 128 * 64 + i % 64] >> 4 * (i / 64 % 2) & 15;
            to[i] = scale * (float)((low | two_bits(block->high, i) << 4) - 32);
        }
    }
}
FOR_EACH_BLOCK(q6_k, 256)

/* ---- blocks of 256 with a code book ---- */

static float with_sign(float value, uint32_t signs, int i)
{
    return signs >> i & 1 ? -value : value;
}

static void put_iq2(uint32_t entry, uint32_t signs, float scale, float *to) /* 8 values */
{
    for (int i = 0; i < 8; i++)
        to[i] = with_sign(scale * (float)qmi_quant_levels_iq2[entry >> 2 * i & 3], signs, i);
}

static float scale_iq2(float d, uint32_t s)
{
    return d * (0.5f + (float)s) * 0.25f;
}

static void unpack_iq2_xxs(const qmi_block_iq2_xxs *block, float *to)
{
    const float d = qmi_load_half(block->d);
    for (int g = 0; g < 8; g++) {
        const uint32_t word = qmi_load_u32(block->groups[g] + 4);
        const float scale = scale_iq2(d, word >> 28);
        for (int k = 0; k < 4; k++)
            put_iq2(qmi_quant_grid_iq2_xxs[block->groups[g][k]], qmi_even_signs(word >> 7 * k & 127), scale, to + 32 * g + 8 * k);
    }
}
FOR_EACH_BLOCK(iq2_xxs, 256)

static void unpack_iq2_xs(const qmi_block_iq2_xs *block, float *to)
{
    const float d = qmi_load_half(block->d);
    for (int k = 0; k < 32; k++) {
        const uint32_t word = qmi_load_u16(block->q[k]);
        const float scale = scale_iq2(d, block->scales[k / 4] >> 4 * (k / 2 % 2) & 15);
        put_iq2(qmi_quant_grid_iq2_xs[word & 511], qmi_even_signs(word >> 9), scale, to + 8 * k);
    }
}
FOR_EACH_BLOCK(iq2_xs, 256)

static void unpack_iq2_s(const qmi_block_iq2_s *block, float *to)
{
    const float d = qmi_load_half(block->d);
    for (int k = 0; k < 32; k++) {
        const int index = block->q[k] | (block->high[k / 4] >> 2 * (k % 4) & 3) << 8;
        const float scale = scale_iq2(d, block->scales[k / 4] >> 4 * (k / 2 % 2) & 15);
        put_iq2(qmi_quant_grid_iq2_s[index], block->signs[k], scale, to + 8 * k);
    }
}
FOR_EACH_BLOCK(iq2_s, 256)

static void unpack_iq3_xxs(const qmi_block_iq3_xxs *block, float *to)
{
    const float d = qmi_load_half(block->d);
    for (int i = 0; i < 256; i++) {
        const uint32_t word = qmi_load_u32(block->groups[i / 32]);
        const uint32_t digit = qmi_quant_grid_iq3_xxs[block->q[i / 4]] >> 4 * (i % 4) & 7;
        const float scale = d * (0.5f + (float)(word >> 28)) * 0.5f;
        const uint32_t signs = qmi_even_signs(word >> 7 * (i / 8 % 4) & 127);
        to[i] = with_sign(scale * (float)qmi_quant_levels_iq3_xxs[digit], signs, i % 8);
    }
}
FOR_EACH_BLOCK(iq3_xxs, 256)

static void unpack_iq3_s(const qmi_block_iq3_s *block, float *to)
{
    const float d = qmi_load_half(block->d);
    for (int i = 0; i < 256; i++) {
        const int k = i / 4, index = block->q[k] | (block->high[k / 8] >> k % 8 & 1) << 8;
        const float scale = d * (float)(1 + 2 * (block->scales[i / 64] >> 4 * (i / 32 % 2) & 15));
        const int level = 2 * (qmi_quant_grid_iq3_s[index] >> 4 * (i % 4) & 7) + 1;
        to[i] = with_sign(scale * (float)level, block->signs[i / 8], i % 8);
    }
}
FOR_EACH_BLOCK(iq3_s, 256)

static void put_iq1(uint32_t entry, float delta, float scale, float *to) /* 8 values */
{
    for (int i = 0; i < 8; i++)
        to[i] = scale * ((float)((int)(entry >> 2 * i & 3) - 1) + delta);
}

static void unpack_iq1_s(const qmi_block_iq1_s *block, float *to)
{
    const float d = qmi_load_half(block->d);
    for (int k = 0; k < 32; k++) {
        const uint32_t word = qmi_load_u16(block->groups[k / 4]);
        const float scale = d * (float)(2 * (word >> 12 & 7) + 1);
        const uint32_t index = block->q[k] | (word >> 3 * (k % 4) & 7) << 8;
        put_iq1(qmi_quant_grid_iq1[index], word >> 15 ? -0.125f : 0.125f, scale, to + 8 * k);
    }
}
FOR_EACH_BLOCK(iq1_s, 256)

static void unpack_iq1_m(const qmi_block_iq1_m *block, float *to)
{
    uint32_t half = 0;
    for (int j = 0; j < 4; j++)
        half |= qmi_load_u16(block->scales[j]) >> 12 << 4 * j;
    const float d = qmi_half_to_float((uint16_t)half);
    for (int k = 0; k < 32; k++) {
        const float scale = d * (float)(2 * (qmi_load_u16(block->scales[k / 8]) >> 3 * (k / 2 % 4) & 7) + 1);
        const uint32_t high = block->high[k / 2] >> 4 * (k % 2);
        const uint32_t index = block->q[k] | (high & 7) << 8;
        put_iq1(qmi_quant_grid_iq1[index], high & 8 ? -0.125f : 0.125f, scale, to + 8 * k);
    }
}
FOR_EACH_BLOCK(iq1_m, 256)

static void unpack_iq4_xs(const qmi_block_iq4_xs *block, float *to)
{
    const float d = qmi_load_half(block->d);
    const uint32_t scales_high = qmi_load_u16(block->scales_high);
    for (int g = 0; g < 8; g++) {
        const uint32_t low = block->scales_low[g / 2] >> 4 * (g % 2) & 15, high = scales_high >> 2 * g & 3;
        const float scale = d * (float)((int)(low | high << 4) - 32);
        for (int i = 0; i < 32; i++)
            to[32 * g + i] = scale * (float)qmi_quant_levels_iq4[half_byte(block->q + 16 * g, i)];
    }
}
FOR_EACH_BLOCK(iq4_xs, 256)

/* ---- ternary ---- */

/* Digits 0 .. digits - 1 of `count` bytes, all first digits first. */
static void put_ternary(const uint8_t *bytes, int count, int digits, float d, float *to)
{
    static const uint8_t powers[5] = { 1, 3, 9, 27, 81 };
    for (int n = 0; n < digits; n++)
        for (int l = 0; l < count; l++) {
            const uint8_t rest = (uint8_t)(bytes[l] * powers[n]);
            to[n * count + l] = d * (float)((rest * 3 >> 8) - 1);
        }
}

static void unpack_tq1_0(const qmi_block_tq1_0 *block, float *to)
{
    const float d = qmi_load_half(block->d);
    put_ternary(block->q, 32, 5, d, to);
    put_ternary(block->q + 32, 16, 5, d, to + 160);
    put_ternary(block->last, 4, 4, d, to + 240);
}
FOR_EACH_BLOCK(tq1_0, 256)

static void unpack_tq2_0(const qmi_block_tq2_0 *block, float *to)
{
    const float d = qmi_load_half(block->d);
    for (int i = 0; i < 256; i++)
        to[i] = d * (float)(two_bits(block->q, i) - 1);
}
FOR_EACH_BLOCK(tq2_0, 256)
