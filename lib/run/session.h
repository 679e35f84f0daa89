/* A conversation: its tokens, keys and values, recurrent state, last logits and sampler. */
#ifndef QMI_RUN_SESSION_H
#define QMI_RUN_SESSION_H

#include "memory/page_pool.h"
#include "memory/state.h"
#include "run/engine.h"
#include "run/sampler.h"

struct qm_session {
    qm_model *model;         /* a reference */
    qm_session *next;        /* of the model's, for the engine's thread */
    qmi_settings settings;
    qmi_sampler *sampler;
    int64_t context;
    int32_t priority;
    bool drops;              /* the oldest turns, when the context is full */
    /* guarded by the engine's mutex */
    bool busy;
    qm_job *job;             /* that it is busy with */
    /* The engine's while busy, else of the thread that calls. `count` is stored atomically, since the length may be asked for
     * at any time. */
    int32_t *tokens;         /* [context] */
    int64_t count;
    qmi_page_table pages;    /* of the `count` tokens */
    int64_t checkpointed;    /* tokens at its last checkpoint */
    qmi_state *state;        /* after the last token; NULL: of no token, or (models without recurrent state) after a cut */
    float *logits;           /* [vocabulary] on the host, of a device that does not share it; NULL until they are asked for */
    bool logits_read;        /* `logits` are those of `state` */
    int32_t failure;         /* not 0: failed for good, with this code and text */
    char failure_text[QMI_ERROR_SIZE];
};

int32_t qmi_session_new(qm_model *model, const qmi_settings *settings, qm_session **out);
int32_t qmi_session_fork(qm_session *session, qm_session **out);
void qmi_session_free(qm_session *session); /* cancels its job and waits for it */

/* QM_ERROR_BUSY, or what it failed with for good. */
int32_t qmi_session_check(const qm_session *session);
int32_t qmi_session_set(qm_session *session, const char *name, const char *value);
int32_t qmi_session_sample(qm_session *session, int32_t *token);
const float *qmi_session_logits(qm_session *session);
/* What only shows when an answer starts: are the stop strings and the budgets possible? */
int32_t qmi_session_check_settings(qm_model *model, const qmi_settings *settings);
int64_t qmi_session_tokens(const qm_session *session, int32_t *tokens, int64_t capacity);

/* ---- for the engine's thread ---- */
/* The next token from the last logits, which the session has. Also for others while the session is idle. */
int32_t qmi_session_choose(qm_session *session, int32_t *token);
/* The last logits on the host, valid until the session changes. */
int32_t qmi_session_find_logits(qm_session *session, const float **logits);
/* Likewise, of the allowed ones. */
int32_t qmi_session_choose_among(qm_session *session, const qmi_filter *filter, int32_t *token);
void qmi_session_break(qm_session *session, int32_t code); /* failed for good, with this thread's message */
/* Forgets all tokens after the first `keep`, and the state: models with a recurrent one can do without only where keep is 0. */
void qmi_session_cut(qm_session *session, int64_t keep);

static inline int64_t qmi_session_length(const qm_session *session)
{
    return __atomic_load_n(&session->count, __ATOMIC_RELAXED);
}

static inline void qmi_session_set_length(qm_session *session, int64_t count)
{
    __atomic_store_n(&session->count, count, __ATOMIC_RELAXED);
}

#endif
