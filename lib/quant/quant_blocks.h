/* The blocks of each quantized format, byte for byte: the layouts behind dequant.c, for it and for the fast kernels.
 *
 * All members are bytes, so a block can lie anywhere and has no padding. "f16[2]" is a half float, little endian. In formats
 * with 256 values a block (the super-block), sub-blocks have scales of their own, which are multiples of the block's scale d. */
#ifndef QMI_QUANT_QUANT_BLOCKS_H
#define QMI_QUANT_QUANT_BLOCKS_H

#include "quant/quant.h"

typedef uint8_t qmi_f16[2];

/* value = d * (q - 8); byte i holds value i in its low half and value i + 16 in its high half, as in all formats of 32 */
typedef struct { qmi_f16 d; uint8_t q[16]; } qmi_block_q4_0;
/* value = d * q + m */
typedef struct { qmi_f16 d, m; uint8_t q[16]; } qmi_block_q4_1;
/* value = d * (q - 16); bit i of `high` (32 bits, little endian) is the fifth bit of value i */
typedef struct { qmi_f16 d; uint8_t high[4], q[16]; } qmi_block_q5_0;
/* value = d * q + m */
typedef struct { qmi_f16 d, m; uint8_t high[4], q[16]; } qmi_block_q5_1;
/* value = d * q */
typedef struct { qmi_f16 d; int8_t q[32]; } qmi_block_q8_0;
/* value = level[q] * d */
typedef struct { qmi_f16 d; uint8_t q[16]; } qmi_block_iq4_nl;
/* value = level[q] * 2^(exponent - 128) */
typedef struct { uint8_t exponent, q[16]; } qmi_block_mxfp4;

/* 16 sub-blocks of 16: value = (d * (scales & 15)) * q - (dmin * (scales >> 4)).
 * q has 2 bits: value 128 h + 32 s + l has bits 2s, 2s + 1 of q[32 h + l]. */
typedef struct { uint8_t scales[16], q[64]; qmi_f16 d, dmin; } qmi_block_q2_k;
/* 16 sub-blocks of 16: value = (d * (scale - 32)) * (q - 4); the low 2 bits of q as in q2_k, the third of value
 * 128 h + 32 s + l is bit 4 h + s of high[l]. Scales: qmi_q3_k_scale. */
typedef struct { uint8_t high[32], q[64], scales[12]; qmi_f16 d; } qmi_block_q3_k;
/* 8 sub-blocks of 32: value = (d * scale) * q - (dmin * minimum); value 64 c + 32 s + l is the low (s 0) or high (s 1) half of
 * q[32 c + l]. Scales and minima: qmi_q4_k_scale. */
typedef struct { qmi_f16 d, dmin; uint8_t scales[12], q[128]; } qmi_block_q4_k;
/* As q4_k; bit j of high[l] is the fifth bit of value 32 j + l. */
typedef struct { qmi_f16 d, dmin; uint8_t scales[12], high[32], q[128]; } qmi_block_q5_k;
/* 16 sub-blocks of 16: value = (d * scale) * (q - 32); value 128 h + i has its low 4 bits in half i / 64 of low[64 h + i % 64],
 * its high 2 bits from bit 2 (i / 32) of high[32 h + i % 32]. */
typedef struct { uint8_t low[128], high[64]; int8_t scales[16]; qmi_f16 d; } qmi_block_q6_k;

/* The IQ formats take 8 (IQ3: 4) values at once from a code book ("grid") of quant_tables.h. */

/* 8 groups of 32, each 4 grid indices and then 32 bits: 4 x 7 of signs, 4 of scale s. value = +-(d * (0.5 + s) * 0.25) * level */
typedef struct { qmi_f16 d; uint8_t groups[8][8]; } qmi_block_iq2_xxs;
/* 32 x (9 bits of grid index, 7 of signs); a scale s of 4 bits for 16 values, low half first. Value as above. */
typedef struct { qmi_f16 d; uint8_t q[32][2], scales[8]; } qmi_block_iq2_xs;
/* Index i: q[i], and 2 bits of high[i / 4] on top. A byte of signs for 8 values. Scales and value as above. */
typedef struct { qmi_f16 d; uint8_t q[32], signs[32], high[8], scales[8]; } qmi_block_iq2_s;
/* 64 grid indices; 8 x 32 bits for groups of 32 values: 4 x 7 of signs, 4 of scale s. value = +-(d * (0.5 + s) * 0.5) * level */
typedef struct { qmi_f16 d; uint8_t q[64], groups[8][4]; } qmi_block_iq3_xxs;
/* Index i: q[i], and bit i % 8 of high[i / 8] on top. A scale s of 4 bits for 32 values. value = +-(d * (1 + 2 s)) * level */
typedef struct { qmi_f16 d; uint8_t q[64], high[8], signs[32], scales[4]; } qmi_block_iq3_s;
/* Index i: q[i], and bits 3 (i % 4) .. + 2 of group i / 4 on top. The group's bits 12-14 are the scale s, bit 15 the sign of
 * delta = +-1/8. value = (d * (2 s + 1)) * (level + delta) */
typedef struct { qmi_f16 d; uint8_t q[32], groups[8][2]; } qmi_block_iq1_s;
/* Index i: q[i], and 3 bits of half i % 2 of high[i / 2] on top, whose fourth bit is the sign of delta. scales: four words of
 * 16 bits; their top 4 bits are d (lowest first), below are four scales s of 3 bits, each for 16 values. Value as above. */
typedef struct { uint8_t q[32], high[16], scales[4][2]; } qmi_block_iq1_m;
/* 8 groups of 32: scale = low half of scales_low, and 2 bits of scales_high on top; value = (d * (scale - 32)) * level[q] */
typedef struct { qmi_f16 d; uint8_t scales_high[2], scales_low[4], q[128]; } qmi_block_iq4_xs;

/* Ternary: value = d * (digit - 1). A byte holds 5 digits as a fraction of 256 in base 3: digit n is
 * (byte * 3^n mod 256) * 3 / 256. Digit n of byte l is value 32 n + l (first 32 bytes), 160 + 16 n + l (next 16),
 * 240 + 4 n + l (the last 4, which hold 4 digits). */
typedef struct { uint8_t q[48], last[4]; qmi_f16 d; } qmi_block_tq1_0;
/* Ternary in 2 bits, laid out as q2_k. */
typedef struct { uint8_t q[64]; qmi_f16 d; } qmi_block_tq2_0;

static inline uint32_t qmi_load_u16(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8;
}

static inline uint32_t qmi_load_u32(const uint8_t *bytes)
{
    return qmi_load_u16(bytes) | qmi_load_u16(bytes + 2) << 16;
}

static inline float qmi_load_half(const qmi_f16 half)
{
    return qmi_half_to_float((uint16_t)qmi_load_u16(half));
}

/* Q4_K and Q5_K: scale and minimum of sub-block j, 6 bits each. Bytes 0-3 and 4-7 hold those of the first four sub-blocks, and
 * in their top bits the upper 2 of the last four, whose lower 4 are in bytes 8-11. */
static inline void qmi_q4_k_scale(const uint8_t scales[12], int j, uint8_t *scale, uint8_t *minimum)
{
    if (j < 4) {
        *scale = scales[j] & 63;
        *minimum = scales[j + 4] & 63;
    } else {
        *scale = (uint8_t)((scales[j + 4] & 15) | scales[j - 4] >> 6 << 4);
        *minimum = (uint8_t)(scales[j + 4] >> 4 | scales[j] >> 6 << 4);
    }
}

/* Q3_K: scale of sub-block j, 0..63: 4 low bits in halves of bytes 0-7, 2 high bits in quarters of bytes 8-11. */
static inline int qmi_q3_k_scale(const uint8_t scales[12], int j)
{
    return (scales[j % 8] >> 4 * (j / 8) & 15) | (scales[8 + j % 4] >> 2 * (j / 4) & 3) << 4;
}

/* 7 bits of signs stand for 8: the number of minus signs is even. */
static inline uint32_t qmi_even_signs(uint32_t seven)
{
    return seven | (uint32_t)(__builtin_popcount(seven) & 1) << 7;
}

/* MXFP4's scale for levels that are twice the numbers: 2^(exponent - 128). */
static inline float qmi_mxfp4_scale(uint8_t exponent)
{
    union { uint32_t bits; float value; } u = { exponent < 2 ? UINT32_C(0x00200000) << exponent : (exponent - 1u) << 23 };
    return u.value;
}

#endif
