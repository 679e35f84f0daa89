/* The types of stored keys and values, as a table: how a token's head of numbers lies in a page, and how it unpacks.
 *
 * A head of n numbers of a type with blocks of 32 is a record of ceil(n / 32) blocks, the last one filled up with zeros, in
 * planes: a token's record can be copied and read in long runs, and its scales in one load.
 *
 *   | low: 8 or 4 bits a number | high: the other 2 or 1 bits | scales: a half float a block |
 *
 * low, 4 bits: byte i of a block holds number i in its low half and number i + 16 in its high half.
 * high, 2 bits: byte i of a block's 8 holds the bits of the numbers i, i + 8, i + 16, i + 24, from the lowest up;
 * high, 1 bit: bit i of a block's 32 (little endian) is that of number i.
 * value = scale * (code - 2^(bits - 1)); q8_0: scale * (signed) code. This product is exact as a float.
 *
 * Numbers that lie unevenly, as keys do, are turned first by an orthogonal matrix that spreads each over all, so that the largest
 * of a block is nearer to the others: x' = H S x / sqrt(m) in runs of m, the largest power of two that divides n; S changes signs
 * (qmi_kv_sign), H is Hadamard's matrix, H[i][j] = (-1)^(number of bits in i & j). As in QuaRot (arXiv 2404.00456), section 3. */
#ifndef QMI_QUANT_KV_TYPE_H
#define QMI_QUANT_KV_TYPE_H

#include <stdbool.h>
#include <stdint.h>

typedef enum qmi_kv_type {
    QMI_KV_F32, QMI_KV_F16, QMI_KV_BF16, QMI_KV_Q8_0, QMI_KV_Q6, QMI_KV_Q5, QMI_KV_Q4_0,
    QMI_KV_TYPES
} qmi_kv_type;

#define QMI_KV_BLOCK 32

typedef struct qmi_kv_format {
    const char *name;     /* as users write it: "q4_0" */
    int32_t low, high;    /* bits of a number in each plane; of a float type: its bits, and 0 */
    bool quantized;       /* with scales */
} qmi_kv_format;

extern const qmi_kv_format qmi_kv_formats[QMI_KV_TYPES];

int32_t qmi_kv_type_find(const char *name);  /* QMI_KV_TYPES: there is no such type */

/* Where the scales of a record of `count` numbers begin. */
static inline int64_t qmi_kv_scales_at(qmi_kv_type type, int64_t count)
{
    int64_t blocks = (count + QMI_KV_BLOCK - 1) / QMI_KV_BLOCK;
    return blocks * (QMI_KV_BLOCK / 8) * (qmi_kv_formats[type].low + qmi_kv_formats[type].high);
}

/* Bytes of a token's head of `count` numbers. */
int64_t qmi_kv_head_bytes(qmi_kv_type type, int64_t count);

/* The specification of each type. Rounds to the nearest, ties to even; the scale of a block is the half float next to its number
 * of largest magnitude divided by -2^(bits - 1) (q8_0: the magnitude by 127). A block with a number that is not finite, or whose
 * scale is out of the half floats' range, becomes NaN. */
void qmi_kv_pack(qmi_kv_type type, const float *from, void *to, int64_t count);
void qmi_kv_unpack(qmi_kv_type type, const void *from, float *to, int64_t count);

/* Numbers that are turned together. */
static inline int32_t qmi_kv_rotation(int32_t count)
{
    return count & -count;
}

/* Whether S makes number i of a run negative: as good as random, so that no vector that occurs is one of H S. */
static inline bool qmi_kv_sign(uint32_t i)
{
    return __builtin_popcount(i * UINT32_C(0x9E3779B1)) & 1;
}

#endif
