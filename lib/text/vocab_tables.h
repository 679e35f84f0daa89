/* What a vocabulary is made of; for vocab.c, which makes it, and tokenize.c, which uses it. */
#ifndef QMI_TEXT_VOCAB_TABLES_H
#define QMI_TEXT_VOCAB_TABLES_H

#include "text/added.h"
#include "text/bpe.h"
#include "text/pretokenize.h"
#include "text/vocab.h"

typedef struct qmi_vocab_slot { /* of the hash table from bytes to normal tokens */
    uint32_t hash;
    int32_t token;              /* -1: free */
} qmi_vocab_slot;

struct qmi_vocab {
    qmi_alloc alloc;
    int32_t size, eos, pad;
    char *bytes;           /* of all tokens, one after another */
    uint32_t *offsets;     /* size + 1: where a token's bytes start, and the next one's */
    uint8_t *kinds;        /* QMI_TOKEN_*, and QMI_VOCAB_HIDDEN */
    qmi_vocab_slot *slots;
    size_t slot_mask;      /* slots - 1, a power of two less one */
    qmi_bpe bpe;
    qmi_added added;
    qmi_unicode *unicode;
    const qmi_pretokenizer *pre;
};

#define QMI_VOCAB_KIND 7   /* mask of the kind */
#define QMI_VOCAB_HIDDEN 8 /* left out by skip_special */

#endif
