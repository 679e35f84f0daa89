/* The types of stored keys and values, as a table: how a token's head of numbers lies in a page, and how it unpacks.
 *
 * A head of n numbers of a type with blocks of 32 is a record of ceil(n / 32) blocks, the last one filled up with zeros, in
 * planes: a token's record can be copied and read in long runs, and its scales in one load.
 *
 *   | low: 8 or 4 bits a number | high: the other 2 or 1 bits | scales: a half float a block |
 *
 * low, 4 bits: byte i of a block holds number i in its low half and number i + 16 in its high half;
 * low, 2 bits: byte i of a block's 8 holds the numbers i, i + 8, i + 16, i + 24, from the lowest bits up.
 * high, 2 bits: byte i of a block's 8 holds the bits of the numbers i, i + 8, i + 16, i + 24, from the lowest up;
 * high, 1 bit: bit i of a block's 32 (little endian) is that of number i.
 * value = scale * (code - 2^(bits - 1)); q8_0: scale * (signed) code; q2: scale * (code - 3 / 2). This product is exact as a
 * float.
 *
 * Numbers that lie unevenly, as keys do, are turned first by an orthogonal matrix that spreads each over all, so that the largest
 * of a block is nearer to the others: x' = H S x / sqrt(m) in runs of m, the largest power of two that divides n; S changes signs
 * (qmi_kv_sign), H is Hadamard's matrix, H[i][j] = (-1)^(number of bits in i & j). As in QuaRot (arXiv 2404.00456), section 3.
 *
 * Two bits are too few for keys that way. As KVLinC (arXiv 2510.05373) found best, keys of q2 are packed by channel, without
 * turning, and values by token, turned. QMI_KV_GROUP successive tokens of a head of n keys are one group, n' being n rounded up
 * to whole blocks:
 *
 *   | codes: 16 bytes a channel [n'] | scales: half floats [n'] | centres: half floats [n'] |
 *
 * Byte i of a channel's 16 holds the codes of the tokens i, i + 16, i + 32, i + 48; key = centre + scale * (code - 3 / 2). A group
 * can only be packed when its tokens are all there, and the latest tokens matter most: of a sequence of n tokens, the first
 * qmi_kv_packed(window, n) are packed, and the others kept as f16. That depends on nothing but n. */
#ifndef QMI_QUANT_KV_TYPE_H
#define QMI_QUANT_KV_TYPE_H

#include <stdbool.h>
#include <stdint.h>

typedef enum qmi_kv_type {
    QMI_KV_F32, QMI_KV_F16, QMI_KV_BF16, QMI_KV_Q8_0, QMI_KV_Q6, QMI_KV_Q5, QMI_KV_Q4_0, QMI_KV_Q2,
    QMI_KV_TYPES
} qmi_kv_type;

#define QMI_KV_BLOCK 32
#define QMI_KV_GROUP 64 /* tokens */

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
 * of largest magnitude divided by -2^(bits - 1) (q8_0: the magnitude by 127; q2: near that of the least squared error, to which
 * a few rounds of codes by scale and scale by codes lead). A block with a number that is not finite, or whose scale is out of the
 * half floats' range, becomes NaN. */
void qmi_kv_pack(qmi_kv_type type, const float *from, void *to, int64_t count);
void qmi_kv_unpack(qmi_kv_type type, const void *from, float *to, int64_t count);

/* Keys of q2: from [QMI_KV_GROUP][count] a group of qmi_kv_group_bytes(count), and what it unpacks to. Of each channel the range
 * whose sum of |error|^3 over the tokens is least among those that leave out up to 28 % at either end: the cube, since a query
 * meets the far keys. A channel with a number that is not finite, or out of the half floats' range, becomes NaN. */
void qmi_kv_pack_group(const float *from, void *to, int64_t count);
void qmi_kv_unpack_group(const void *from, float *to, int64_t count);

static inline int64_t qmi_kv_group_bytes(int64_t count)
{
    return (count + QMI_KV_BLOCK - 1) / QMI_KV_BLOCK * QMI_KV_BLOCK * (QMI_KV_GROUP / 4 + 4);
}

/* How many of a sequence's first tokens are packed. */
static inline int64_t qmi_kv_packed(int32_t window, int64_t tokens)
{
    return tokens > window ? (tokens - window) / QMI_KV_GROUP * QMI_KV_GROUP : 0;
}

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
