/* A step: one batch through the forward pass, for one or several sessions, and the multi-token-prediction block behind it.
 *
 * Sessions change only when the whole step has succeeded. Computed apart, a step writes the recurrent state into a spare
 * copy that changes place with the session's at the end, so it can be cancelled; computed in place (decoding: nothing to copy,
 * several sessions), a failure leaves a session without a defined state, and it is then failed for good. */
#ifndef QMI_RUN_STEP_H
#define QMI_RUN_STEP_H

#include "memory/plan.h"

typedef struct qmi_part { /* one session's share of a step */
    qm_session *session;
    qm_job *job;            /* for whom */
    int32_t first, count;   /* its rows of the batch */
    int64_t start;          /* position of the first; one less than the tokens held when the last is computed again */
    int32_t output;         /* index among the outputs of its last row */
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
    qmi_address spare;       /* state of one session; 0: the model has none */
    qmi_slot hidden, logits, draft_in, draft_logits; /* of the programs */
} qmi_step;

int32_t qmi_step_new(qm_model *model);  /* model->engine.step */
void qmi_step_free(qm_model *model);    /* also after a failure */

/* Does the session's last token have to be computed again: its logits (want_logits) or its hidden state are not there? Only
 * happens after a cut of a model without recurrent state. */
bool qmi_step_goes_back(const qm_session *session, bool want_logits);

void qmi_step_start(qmi_step *step);
/* Adds `count` tokens (0: only what goes_back asks for) of a session to the batch. False when there is no room. */
bool qmi_step_add(qmi_step *step, qm_job *job, qm_session *session, const int32_t *tokens, int32_t count);
/* Asks for the logits after the token of index `token` of those added last; ascending. All outputs but the last token's are at
 * most output_limit - 1. */
void qmi_step_want(qmi_step *step, int32_t token, float *target);
/* Computes it. cancel NULL: in place; else apart, which takes one part only. */
int32_t qmi_step_run(qm_model *model, qmi_step *step, const int32_t *cancel);

/* The multi-token-prediction block's logits for the token after `next`, to `logits`. The session does not change. */
int32_t qmi_step_draft(qm_model *model, qm_session *session, int32_t next, float *logits);

#endif
