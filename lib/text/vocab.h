/* A vocabulary: token texts, added tokens, merges, and what text needs of them. Read-only once made; any number of threads. */
#ifndef QMI_TEXT_VOCAB_H
#define QMI_TEXT_VOCAB_H

#include <stdbool.h>
#include "base/alloc.h"
#include "text/added.h"
#include "base/log.h"

enum { /* as tokenizer.ggml.token_type has them */
    QMI_TOKEN_NORMAL = 1,
    QMI_TOKEN_UNKNOWN = 2,
    QMI_TOKEN_CONTROL = 3,
    QMI_TOKEN_USER_DEFINED = 4,
    QMI_TOKEN_UNUSED = 5,
    QMI_TOKEN_BYTE = 6
};

/* Where the vocabulary comes from: the arrays of a GGUF header, still in their file form (u64 length, bytes, one after another;
 * the reader has checked that they lie in the file). Nothing of it is needed once the vocabulary is made.
 *
 * A merge that names a token which the vocabulary lacks cannot happen: it is ignored, with one warning in the log. */
typedef struct qmi_vocab_source {
    int64_t token_count;
    const uint8_t *tokens;     /* token_count strings: GPT-2's visible bytes for normal tokens, plain text for added ones */
    int64_t type_count;        /* as the file has it; checked here to be token_count */
    const int32_t *types;      /* QMI_TOKEN_*, unaligned memory; NULL: all normal, and type_count does not count */
    int64_t merge_count;
    const uint8_t *merges;     /* merge_count strings "left right" */
    const char *pre;           /* tokenizer.ggml.pre, zero-terminated: "qwen2", "qwen35" */
    int64_t eos, pad;          /* ids from the file, -1: none; checked here */
} qmi_vocab_source;

typedef struct qmi_vocab qmi_vocab;

/* QM_ERROR_FORMAT (a token, merge or id is wrong: named), QM_ERROR_UNSUPPORTED (pre-tokenizer), QM_ERROR_MEMORY. */
int32_t qmi_vocab_new(const qmi_vocab_source *source, const qmi_alloc *alloc, const qmi_log *log, qmi_vocab **out);
void qmi_vocab_free(qmi_vocab **vocab);

int32_t qmi_vocab_size(const qmi_vocab *vocab);
int32_t qmi_vocab_eos(const qmi_vocab *vocab); /* -1: none */
int32_t qmi_vocab_pad(const qmi_vocab *vocab);
int32_t qmi_vocab_kind(const qmi_vocab *vocab, int32_t token); /* QMI_TOKEN_*; UNUSED for an id out of range */
/* Whether "skip special" leaves the token out: control tokens, but not the marks of fill-in-the-middle and repositories
 * (<|fim_prefix|>, <|repo_name|> ...), which files mark as control and the reference tokenizer treats as text. */
bool qmi_vocab_hidden(const qmi_vocab *vocab, int32_t token);
/* Bytes of a token (what detokenizing gives for it); unused ids give length 0. Borrowed. */
const char *qmi_vocab_bytes(const qmi_vocab *vocab, int32_t token, int64_t *length);
/* The token whose bytes are exactly these, added tokens first; -1: none. */
int32_t qmi_vocab_find(const qmi_vocab *vocab, const char *text, int64_t length);

/* special: QM_SPECIAL_*. Appends ids to a growing array that belongs to the caller (alloc's). QM_ERROR_TEXT for bad UTF-8. */
typedef struct qmi_ids {
    int32_t *data;
    size_t count, capacity;
} qmi_ids;
int32_t qmi_tokenize(const qmi_vocab *vocab, const char *text, int64_t length, int32_t special, const qmi_alloc *alloc,
                     qmi_ids *out);
/* The same, but no added token is recognised where it touches one of the stretches (NULL: none). */
int32_t qmi_tokenize_around(const qmi_vocab *vocab, const char *text, int64_t length, int32_t special,
                            const qmi_stretches *literal, const qmi_alloc *alloc, qmi_ids *out);

#endif
