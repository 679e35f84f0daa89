/* How a matrix lies on the card. The file's blocks of bytes are taken apart into planes, so that every load is 16, 8, 4 or 2
 * bytes wide and aligned, and a warp's loads touch whole sectors. No bit is lost; the scales of Q4_K and Q5_K, 6 bits in the
 * file, take a byte here, as unpacking them would cost more time than reading them.
 *
 * A row is cut into blocks of 32 values (the last one filled with zeros). Block b of row r is number r * blocks + b, and each
 * plane holds so many bytes of it, one block after another:
 *
 *   type            plane 0: codes   1: high bits   2: scales                     3
 *   F32             128
 *   F16, BF16       64
 *   Q8_0            32                              2: d
 *   Q4_0, IQ4_NL    16                              2: d
 *   Q5_0            16               4              2: d
 *   Q4_K            16                              scale, minimum: a byte each   4 for 8 blocks: d, dmin
 *   Q5_K            16               4              scale, minimum: a byte each   4 for 8 blocks: d, dmin
 *   Q6_K            16               8              16 for 8 blocks: int8 scale   2 for 8 blocks: d
 *                                                   of each 16 values
 *   IQ4_XS          16                              8 for 8 blocks: d, 16 bits of
 *                                                   high pairs, 8 low nibbles
 *
 * 4-bit codes: the low half of byte j is that of value j, the high half that of value 16 + j.
 * High bits of 5-bit codes: bit 8 j + w of the word is that of value 4 w + j (j < 4, w < 8).
 * High pairs of 6-bit codes: values 0-15 in the first word, 16-31 in the second; pair 8 j + 2 w is that of value 4 w + j (w < 4).
 * Nibbles and pairs are numbered from the lowest bits of a word, words are little endian. */
#ifndef QMI_CUDA_LAYOUT_H
#define QMI_CUDA_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QMI_CUDA_BLOCK 32
#define QMI_CUDA_PLANES 4
#define QMI_CUDA_PLANE_ALIGN 256

typedef struct qmi_cuda_planes {
    int64_t offset[QMI_CUDA_PLANES]; /* bytes from the matrix's start */
    int64_t bytes;                   /* all planes */
} qmi_cuda_planes;

/* The type a matrix of this type has on the card: its own, or the smallest of the card's in which each value of every possible
 * block is the same number, to the bit (sign of zero included):
 *   Q3_K, IQ3_S    Q6_K: (d * scale) * code, too, with fewer scales and codes
 *   TQ1_0, TQ2_0   Q4_0: d * (-1 .. 2), d of 256 values given to each 32
 *   MXFP4          BF16: 3 significant bits, and every exponent of float
 *   all others     F32. Q4_1, Q5_1, Q2_K: a rounded sum of 24 bits. IQ2_*: levels 8, 25, 43 need more than 6 bits, and scales
 *                  (d of 11 bits times an odd number up to 31) more than a half. IQ3_XXS, IQ1_*: d / 2 and d / 8 would serve as
 *                  d of Q6_K, but lose bits where they are subnormal halves.
 * QMI_TYPE_COUNT for a type that is no weight. */
uint32_t qmi_cuda_type(uint32_t type);

/* rows: all, those of every expert. Formats of 256 values: columns are a multiple of that. */
void qmi_cuda_planes_of(uint32_t card_type, int64_t columns, int64_t rows, qmi_cuda_planes *out);

/* Bytes that so many rows take in that plane; row r begins after those of r rows. */
int64_t qmi_cuda_plane_bytes(uint32_t card_type, int32_t plane, int64_t columns, int64_t rows);

/* Host re-ordering of `rows` rows from the file's bytes (of type `type`) to planes: row 0 of `from` becomes row `first` of a
 * matrix whose planes begin at `to`, which is aligned to 16. The way of types that are converted; those that the card has go
 * there as they are, and its own kernel does the same. */
void qmi_cuda_reorder(uint32_t type, int64_t columns, const void *from, int64_t first, int64_t rows,
                      const qmi_cuda_planes *planes, uint8_t *to);

#ifdef __cplusplus
}
#endif
#endif
