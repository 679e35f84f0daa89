/* What has been computed once is not computed again: a session is moved to wherever most of its new tokens are held already,
 * by itself, by another session of the model, or by a checkpoint; and checkpoints are made on the way. All for the engine's
 * thread. */
#ifndef QMI_RUN_REUSE_H
#define QMI_RUN_REUSE_H

#include "run/job.h"

/* Begins a job whose tokens are all that its session shall hold: moves the session, and leaves in the job what is to be computed.
 * On failure the session is as it was. */
int32_t qmi_reuse_begin(qm_job *job);

/* Drops the oldest turns after the system prompt of what the job's session would hold with the tokens that are still to be
 * appended, and leaves in the job, as one that replaces, what remains. 1: done; 0: no turn can go; or a code, the session being
 * as it was. */
int32_t qmi_reuse_overflow(qm_job *job);

/* How many of a job's tokens are held already by any session or checkpoint. */
int64_t qmi_reuse_held(const qm_job *job);

/* Where a prompt's chunk should end so that a checkpoint lies where the conversation may branch: at most `limit` tokens from the
 * job's next one. Returns the number of tokens. */
int64_t qmi_reuse_chunk(qm_job *job, int64_t limit);
/* A chunk of the job's prompt was computed. */
void qmi_reuse_prefilled(qm_job *job);
/* A token was decoded. */
void qmi_reuse_decoded(qm_session *session);
/* The session is about to give up what it holds. */
void qmi_reuse_leave(qm_session *session);

#endif
