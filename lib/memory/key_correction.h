/* The linear correction of keys of q2, and its file.
 *
 * KVLinC (arXiv 2510.05373) makes up for a part of what 2-bit keys lose by a linear term that is fitted for a model. Here what is
 * fitted is the basis in which a head's keys are packed: with T k packed and T^-T q as the query, q.k is what it was, and what
 * packing loses becomes less where it counts. If each number of T k loses in proportion to its variance, and errors do not depend
 * on each other, the loss of a score has the variance
 *
 *   sum over c of (T^-T Q T^-1)_cc (T K T^T)_cc,   K = E[x x^T] of keys within a group, less its mean;  Q = E[q q^T]
 *
 * With K = L L^T and L^T Q L = U diag(m) U^T, T = diag(m^1/4) U^T L^-1 makes both diag(m^1/2), and a Hadamard matrix behind it
 * (kv_type.h) spreads both evenly over all c. The sum is then (sum of m^1/2)^2 / n, and no T has less: for diagonals a and b the
 * sum of a_c b_c is at least (sum of (a_c b_c)^1/2)^2 / n (Cauchy and Schwarz), and that sum at least the nuclear norm of
 * Q^1/2 K^1/2, which is the sum of m^1/2. T is scaled so that its numbers are as large as the keys' own.
 *
 * The file, little endian, is written beside and renamed:
 *
 *   | qmi_key_head | float32 [layers][kv_heads][T, T^-T][head_size][head_size] | CRC-32C of all before it |
 *
 * It belongs to the model's file that it was fitted with. It comes from outside: its size, its sum, its head and that each number
 * is finite are checked before anything of it is used. */
#ifndef QMI_MEMORY_KEY_CORRECTION_H
#define QMI_MEMORY_KEY_CORRECTION_H

#include "base/alloc.h"
#include "model/hparams.h"

#define QMI_KEY_MAGIC "QM keys\n" /* 8 bytes, without the zero */
#define QMI_KEY_VERSION 1

typedef struct qmi_key_head {
    char magic[8];
    uint32_t version, layers, kv_heads, head_size;
    uint64_t model;        /* qmi_parts_identify */
} qmi_key_head;

_Static_assert(sizeof(qmi_key_head) == 32, "the head has no gaps, so that it is written as it lies");

qmi_key_head qmi_key_head_of(const qmi_hparams *hparams, uint64_t model); /* as a file for this model begins */
int64_t qmi_key_floats(const qmi_key_head *head);                         /* of all its matrices */

/* *out: the floats, the caller's to delete. QM_ERROR_FILE, _FORMAT, _UNSUPPORTED (another version or model) name the file. */
int32_t qmi_key_correction_read(const char *path, const qmi_key_head *expected, const qmi_alloc *alloc, float **out);
/* moments: [layers][kv_heads][K, Q][head_size][head_size], each up to a factor. QM_ERROR_STATE when a head has none. */
int32_t qmi_key_correction_write(const char *path, const qmi_key_head *head, const double *moments, const qmi_alloc *alloc);

#endif
