/* A session on disk. The file, little-endian:
 *
 *   head      what it is of, and the sizes of all that follows
 *   tokens    [count] i32
 *   extra     bytes of the caller's
 *   tables    i32 index of the session's state (-1: none); [its pages] i32 indices of pages; for each checkpoint: i64 tokens, i32
 *             kind, i32 index of its state, [its pages] i32
 *   states    each: recurrent state, hidden state, logits
 *   pages     each: page_bytes; what belongs to none of the tokens, but to those of another branch perhaps, is zero
 *
 * The head, each of the next three, each state and each page are followed by their CRC-32C, so every byte is under one. */
#ifndef QMI_MEMORY_SNAPSHOT_H
#define QMI_MEMORY_SNAPSHOT_H

#include "memory/checkpoint.h"

#define QMI_SNAPSHOT_VERSION 2
#define QMI_SNAPSHOT_CHECKPOINTS 8 /* the last ones: a conversation goes on at its end */

typedef struct qmi_snapshot {
    int64_t count;
    int32_t *tokens;             /* [count] */
    qmi_page_table pages;
    qmi_state *state;            /* NULL: none */
    qmi_checkpoint checkpoints[QMI_SNAPSHOT_CHECKPOINTS]; /* of the first of these tokens, with a state each */
    int32_t checkpoint_count;
    uint8_t *extra;
    int64_t extra_size;
} qmi_snapshot;

/* Where a snapshot comes from or goes to. */
typedef struct qmi_snapshot_place {
    uint64_t model;              /* tells models apart */
    qmi_page_pool *pages;
    qmi_state_pool *states;
    const qmi_alloc *alloc;
    /* Runs a function that uses the device or the pools where that is allowed, and returns what it returns. */
    int32_t (*call)(void *user, int32_t (*function)(void *), void *argument);
    void *user;
    const int32_t *cancel;       /* read atomically: not 0 ends it with QM_ERROR_CANCELLED */
} qmi_snapshot_place;

/* Writes it beside the file of that name, and puts it in its place when it is whole. The snapshot's pages and states do not
 * change meanwhile. */
int32_t qmi_snapshot_save(const qmi_snapshot_place *place, const qmi_snapshot *snapshot, const char *path);
/* Reads it; *out is to be freed with qmi_snapshot_free. QM_ERROR_FORMAT: not such a file, or damaged; _UNSUPPORTED: of another
 * version or model, or of other settings of the model; _CONTEXT: more than `context` tokens. */
int32_t qmi_snapshot_load(const qmi_snapshot_place *place, const char *path, int64_t context, qmi_snapshot *out);
void qmi_snapshot_free(const qmi_snapshot_place *place, qmi_snapshot *snapshot); /* gives back pages and states, too */

/* Tells apart what a file may be of: the model, and how its pages and states lie. */
uint64_t qmi_snapshot_identity(const qmi_snapshot_place *place);
/* How many of tokens[0, count) need not be computed with that file; or a code: QM_ERROR_FORMAT and _UNSUPPORTED where it can be
 * of no use here. Reads neither states nor pages. */
int64_t qmi_snapshot_probe(const qmi_snapshot_place *place, const char *path, const int32_t *tokens, int64_t count);

#endif
