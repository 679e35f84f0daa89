/* A step: one batch through the forward pass, for one or several sessions, and the multi-token-prediction block behind it.
 *
 * Sessions change only when the whole step has succeeded: it writes into pages that no other session sees, behind the tokens
 * that count, and into a state that takes the old one's place at the end. Only decoding writes the state in place where nobody
 * else holds it, since that is half the memory traffic; a failure then leaves the session without a defined state, and it has
 * failed for good. */
#ifndef QMI_RUN_STEP_H
#define QMI_RUN_STEP_H

#include "memory/plan.h"
#include "memory/state.h"

typedef struct qmi_part { /* one session's share of a step */
    qm_session *session;
    qm_job *job;            /* for whom */
    int32_t first, count;   /* its rows of the batch */
    int64_t start;          /* position of the first; one less than the tokens held when the last is computed again */
    int32_t output;         /* index among the outputs of its last row */
    qmi_state *next;        /* its state after the step; the session's own: in place */
    /* the same for the multi-token-prediction block */
    int32_t draft_first, draft_count;
} qmi_part;

typedef struct qmi_step {
    int32_t part_limit, row_limit, output_limit;
    int32_t part_count, row_count, output_count;
    qmi_part *parts;
    int32_t *tokens;         /* of the rows */
    int32_t *outputs;        /* rows */
    float **targets;         /* where each output's logits go besides its session; NULL: nowhere */
    int32_t *draft_tokens;
    qmi_pick *picks;         /* of the outputs; NULL: the device has none */
    qmi_sequence *sequences;
    bool apart;              /* no state is written in place, so the step can be cancelled */
    qmi_slot hidden, logits, draft_in, draft_logits; /* of the programs */
} qmi_step;

int32_t qmi_step_new(qm_model *model);  /* model->engine.step */
void qmi_step_free(qm_model *model);    /* also after a failure */

/* Does the session's last token have to be computed again: its logits (want_logits) or its hidden state are not there? Only
 * happens after a cut of a model without recurrent state. */
bool qmi_step_goes_back(const qm_session *session, bool want_logits);

void qmi_step_start(qmi_step *step, bool apart);
/* Adds `count` rows (0: only what goes_back asks for) of a session to the batch, and makes its pages and state ready. 1: done;
 * 0: there is no room in the batch; or a code, the session being as it was. tokens NULL: they are set afterwards. */
int32_t qmi_step_add(qm_model *model, qm_job *job, qm_session *session, const int32_t *tokens, int32_t count);
void qmi_step_set(qmi_step *step, int32_t token);            /* the one token of the part added last */
void qmi_step_take_back(qm_model *model, qmi_step *step);    /* the part added last */
/* Asks for the logits after the token of index `token` of those added last; ascending. All outputs but the last token's are at
 * most output_limit - 1. */
void qmi_step_want(qmi_step *step, int32_t token, float *target);
/* Computes it; the parts stay to be looked at. cancel: of a step apart; NULL: never. */
int32_t qmi_step_run(qm_model *model, qmi_step *step, const int32_t *cancel);

/* The multi-token-prediction block's logits for the token after `next`, to `logits`. The session does not change. */
int32_t qmi_step_draft(qm_model *model, qm_session *session, int32_t next, float *logits);

#endif
