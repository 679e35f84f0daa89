/* Byte-pair encoding: a piece's bytes to tokens by merging the pair of lowest merge index, leftmost first, until none is left.
 *
 * A piece that is itself in the vocabulary is not taken whole: only merges count, as in the reference tokenizer. */
#ifndef QMI_TEXT_BPE_H
#define QMI_TEXT_BPE_H

#include <stddef.h>
#include "text/vocab.h"

typedef struct qmi_merge {
    uint32_t left, right; /* tokens; QMI_NO_TOKEN as `left` marks a free slot */
    uint32_t rank;        /* index in the file: smaller goes first */
    uint32_t result;
} qmi_merge;

#define QMI_NO_TOKEN UINT32_MAX

/* The merges as a hash table with open addressing. Read-only once filled. */
typedef struct qmi_bpe {
    uint32_t byte_tokens[256]; /* QMI_NO_TOKEN: the vocabulary has none for this byte */
    qmi_merge *merges;
    size_t mask;               /* slots - 1; slots is a power of two, at most half of them are taken */
} qmi_bpe;

int32_t qmi_bpe_init(qmi_bpe *bpe, size_t merge_count, const qmi_alloc *alloc); /* room for that many merges */
void qmi_bpe_add(qmi_bpe *bpe, qmi_merge merge); /* a later merge of the same pair replaces the earlier, as in the reference */
void qmi_bpe_clear(qmi_bpe *bpe, const qmi_alloc *alloc);

/* What encoding works in: made per call and never shared, so that the tables need no lock. All zero at the start. */
typedef struct qmi_bpe_work {
    struct qmi_bpe_cached *cache; /* pieces seen before: cache_size direct-mapped slots */
    size_t cache_size;        /* 0 (no cache) or a power of two */
    struct qmi_bpe_node *nodes;   /* of one long piece */
    size_t node_capacity;
    uint64_t *heap;
    size_t heap_count, heap_capacity;
} qmi_bpe_work;

/* Chooses a cache for a text of this length: none for short ones. */
int32_t qmi_bpe_work_init(qmi_bpe_work *work, int64_t text_length, const qmi_alloc *alloc);
void qmi_bpe_work_clear(qmi_bpe_work *work, const qmi_alloc *alloc);

/* Appends the tokens of one piece, at least one byte long, to `out`. QM_ERROR_TEXT: a byte has no token. Time n log n. */
int32_t qmi_bpe_encode(const qmi_bpe *bpe, qmi_bpe_work *work, const char *piece, int64_t length, const qmi_alloc *alloc,
                       qmi_ids *out);

#endif
