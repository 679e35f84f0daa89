/* What a session has at a position besides its pages: the recurrent state, the last token's hidden state (with multi-token
 * prediction) and its logits. One block of the device's memory:
 *
 *   | recurrent state | hidden [D] | logits [vocabulary] |
 *
 * The latest keys and values, where they are kept outside the pages (kv_format.h), are a part of the recurrent state: whatever
 * holds for it, that the session can go back to kept states only, and exactly, holds for them.
 *
 * States are counted. One that several hold never changes: computing writes into another block. So a fork, and a checkpoint, is
 * one reference more and no copy. The engine's thread's, as pages are. */
#ifndef QMI_MEMORY_STATE_H
#define QMI_MEMORY_STATE_H

#include "backend/backend.h"
#include "memory/page_pool.h"

typedef struct qmi_state {
    int32_t references;
    qmi_address recurrent, hidden, logits; /* recurrent, hidden 0: the model has none */
    bool has_picks;
    qmi_pick picks[QMI_PICKS_MAX];         /* the highest of the logits, if has_picks */
    struct qmi_state *next;                /* among the free ones */
} qmi_state;

/* Bytes of a block and its parts. */
typedef struct qmi_state_layout {
    int64_t recurrent_bytes, hidden_bytes, logits_bytes;
    int64_t bytes;
} qmi_state_layout;

void qmi_state_layout_make(const qmi_hparams *hparams, const qmi_kv_layout *kv, bool mtp, qmi_state_layout *out);

typedef struct qmi_state_pool {
    qmi_state_layout layout;
    const qmi_backend *backend;
    qmi_device *device;
    const qmi_alloc *alloc;
    qmi_reclaim reclaim;   /* NULL: none */
    void *user;
    qmi_state *free;
    int32_t free_count;
    int64_t count;         /* blocks that it has, free ones too */
} qmi_state_pool;

/* Has blocks for one session: the one it is in and the one that is computed into. */
int32_t qmi_state_pool_open(qmi_state_pool *pool, const qmi_state_layout *layout, const qmi_backend *backend,
                            qmi_device *device, const qmi_alloc *alloc);
void qmi_state_pool_close(qmi_state_pool *pool); /* no state is in use; also after a failed or no opening */

/* A block with undefined contents, held once. QM_ERROR_MEMORY names the numbers. */
int32_t qmi_state_take(qmi_state_pool *pool, qmi_state **out);
qmi_state *qmi_state_retain(qmi_state *state); /* NULL is fine */
void qmi_state_release(qmi_state_pool *pool, qmi_state **state); /* sets NULL, accepts NULL */

#endif
