/* A generate job between two steps: its next token, and what becomes of its text. */
#ifndef QMI_RUN_GENERATE_H
#define QMI_RUN_GENERATE_H

#include "run/job.h"

/* Before submitting: makes the budget and room for the tokens. prompt is what will be appended to the session first. */
int32_t qmi_generate_prepare(qm_job *job, const int32_t *prompt, int64_t count);
/* Chooses the token to append next and shows its text. 1: *token is to be appended (and is the last, if job->finish is set then);
 * 0: none, since the context is full; or a code. */
int32_t qmi_generate_next(qm_job *job, int32_t *token);
/* Shows what was held back. `code` is how the job ends; returns it, or another if that fails. */
int32_t qmi_generate_end(qm_job *job, int32_t code);

#endif
