/* One block of 32 values of a quantized type from the file's form to the planes of layout.h: for the host and for the card. */
#ifndef QMI_CUDA_REORDER_H
#define QMI_CUDA_REORDER_H

#include "quant/quant_blocks.h"

#ifdef __CUDACC__
#define REORDER static __device__ __forceinline__
#else
#define REORDER static inline
#endif

typedef struct reorder_16 {
    uint32_t word[4];
} __attribute__((aligned(16))) reorder_16;

typedef struct reorder_8 {
    uint32_t word[2];
} __attribute__((aligned(8))) reorder_8;

/* Blocks of the file have even sizes, and nothing more can be said of where one begins. */
REORDER uint32_t reorder_load2(const uint8_t *from)
{
#ifdef __CUDACC__
    return *(const uint16_t *)from;
#else
    return qmi_load_u16(from);
#endif
}

REORDER uint32_t reorder_load4(const uint8_t *from)
{
    return reorder_load2(from) | reorder_load2(from + 2) << 16;
}

REORDER void reorder_store2(uint8_t *to, uint32_t value)
{
    *(uint16_t *)to = (uint16_t)value;
}

REORDER void reorder_copy16(const uint8_t *from, uint8_t *to)
{
    *(reorder_16 *)to = (reorder_16){ { reorder_load4(from), reorder_load4(from + 4), reorder_load4(from + 8),
                                        reorder_load4(from + 12) } };
}

/* Word k of eight: the codes, 4 bits each, of values 4 k .. 4 k + 3. */
REORDER void reorder_store_codes(uint8_t *to, const uint32_t codes[8])
{
    *(reorder_16 *)to = (reorder_16){ { codes[0] | codes[4] << 4, codes[1] | codes[5] << 4, codes[2] | codes[6] << 4,
                                        codes[3] | codes[7] << 4 } };
}

/* Scale and minimum of sub-block i % 8, and d and dmin where it is the first: from the 12 bytes whose meaning qmi_q4_k_scale
 * gives. */
REORDER void reorder_mins(const uint8_t *d, const uint8_t *scales, int64_t i, uint8_t *const plane[])
{
    const int j = (int)(i % 8);
    uint32_t scale, minimum;
    if (j < 4) {
        scale = scales[j] & 63;
        minimum = scales[j + 4] & 63;
    } else {
        scale = (scales[j + 4] & 15) | scales[j - 4] >> 6 << 4;
        minimum = scales[j + 4] >> 4 | scales[j] >> 6 << 4;
    }
    reorder_store2(plane[2] + 2 * i, scale | minimum << 8);
    if (j == 0)
        *(uint32_t *)(plane[3] + i / 2) = reorder_load4(d);
}

REORDER void reorder_q5_0(const qmi_block_q5_0 *block, int64_t i, uint8_t *const plane[])
{
    const uint32_t high = reorder_load4(block->high);
    uint32_t word = 0;
    reorder_copy16(block->q, plane[0] + 16 * i);
    for (int w = 0; w < 8; w++) /* bit n of four goes to bit 8 n: 1 + 2^7 + 2^14 + 2^21 */
        word |= ((high >> 4 * w & 15) * 0x00204081u & 0x01010101u) << w;
    *(uint32_t *)(plane[1] + 4 * i) = word;
    reorder_store2(plane[2] + 2 * i, reorder_load2(block->d));
}

/* Codes of sub-block j of Q4_K and Q5_K. */
REORDER void reorder_halves(const uint8_t *q, int j, uint8_t *to)
{
    uint32_t codes[8];
    for (int k = 0; k < 8; k++)
        codes[k] = reorder_load4(q + j / 2 * 32 + 4 * k) >> 4 * (j % 2) & 0x0f0f0f0f;
    reorder_store_codes(to, codes);
}

REORDER void reorder_q5_k(const qmi_block_q5_k *block, int64_t i, uint8_t *const plane[])
{
    const int j = (int)(i % 8);
    uint32_t word = 0;
    reorder_halves(block->q, j, plane[0] + 16 * i);
    for (int k = 0; k < 8; k++)
        word |= (reorder_load4(block->high + 4 * k) >> j & 0x01010101) << k;
    *(uint32_t *)(plane[1] + 4 * i) = word;
    reorder_mins(block->d, block->scales, i, plane);
}

REORDER void reorder_q6_k(const qmi_block_q6_k *block, int64_t i, uint8_t *const plane[])
{
    const int j = (int)(i % 8);
    uint32_t codes[8], high[2] = { 0, 0 };
    for (int k = 0; k < 8; k++) {
        codes[k] = reorder_load4(block->low + j / 4 * 64 + j % 2 * 32 + 4 * k) >> 4 * (j / 2 % 2) & 0x0f0f0f0f;
        high[k / 4] |= (reorder_load4(block->high + j / 4 * 32 + 4 * k) >> 2 * (j % 4) & 0x03030303) << 2 * (k % 4);
    }
    reorder_store_codes(plane[0] + 16 * i, codes);
    *(reorder_8 *)(plane[1] + 8 * i) = (reorder_8){ { high[0], high[1] } };
    reorder_store2(plane[2] + 2 * i, reorder_load2((const uint8_t *)block->scales + 2 * j));
    if (j == 0)
        reorder_store2(plane[3] + i / 4, reorder_load2(block->d));
}

/* i: number of the block in the matrix. from: the block of the file in which it lies, of 32 or of 256 values; rows of the latter
 * are whole, so block i is its sub-block i % 8. */
REORDER void reorder_block(uint32_t type, const uint8_t *from, int64_t i, uint8_t *const plane[])
{
    switch (type) {
    case QMI_TYPE_Q8_0: {
        const qmi_block_q8_0 *block = (const qmi_block_q8_0 *)from;
        reorder_copy16((const uint8_t *)block->q, plane[0] + 32 * i);
        reorder_copy16((const uint8_t *)block->q + 16, plane[0] + 32 * i + 16);
        reorder_store2(plane[2] + 2 * i, reorder_load2(block->d));
        break;
    }
    case QMI_TYPE_Q4_0:
    case QMI_TYPE_IQ4_NL: { /* the same bytes */
        const qmi_block_q4_0 *block = (const qmi_block_q4_0 *)from;
        reorder_copy16(block->q, plane[0] + 16 * i);
        reorder_store2(plane[2] + 2 * i, reorder_load2(block->d));
        break;
    }
    case QMI_TYPE_Q5_0:
        reorder_q5_0((const qmi_block_q5_0 *)from, i, plane);
        break;
    case QMI_TYPE_Q4_K: {
        const qmi_block_q4_k *block = (const qmi_block_q4_k *)from;
        reorder_halves(block->q, (int)(i % 8), plane[0] + 16 * i);
        reorder_mins(block->d, block->scales, i, plane);
        break;
    }
    case QMI_TYPE_Q5_K:
        reorder_q5_k((const qmi_block_q5_k *)from, i, plane);
        break;
    case QMI_TYPE_Q6_K:
        reorder_q6_k((const qmi_block_q6_k *)from, i, plane);
        break;
    case QMI_TYPE_IQ4_XS: { /* d, high pairs and low nibbles come in the plane's order already */
        const qmi_block_iq4_xs *block = (const qmi_block_iq4_xs *)from;
        reorder_copy16(block->q + i % 8 * 16, plane[0] + 16 * i);
        if (i % 8 == 0)
            *(reorder_8 *)(plane[2] + i) = (reorder_8){ { reorder_load4(block->d), reorder_load4(block->scales_low) } };
        break;
    }
    default:
        break;
    }
}

#endif
