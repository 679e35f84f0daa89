/* Making jobs: the checks that can be made before any work, claiming the sessions, handing over to the engine or a thread.
 *
 * Tokens and texts are copied; rows and logits are not, so those are for blocking calls. watched: with a descriptor. */
#ifndef QMI_RUN_SUBMIT_H
#define QMI_RUN_SUBMIT_H

#include "run/job.h"

typedef struct qmi_rows { /* logits wanted of a prefill */
    const int64_t *rows;  /* indices into its tokens, ascending */
    int64_t count;
    float *logits;        /* [count][vocabulary] */
} qmi_rows;

/* The arguments of a decode: at least one session, and none of the pointers null. */
int32_t qmi_submit_check_sessions(qm_session *const *sessions, const int32_t *tokens, int32_t count);

int32_t qmi_submit_prefill(qm_session *session, const int32_t *tokens, int64_t count, const qmi_rows *rows, bool watched,
                           qm_job **out);
int32_t qmi_submit_decode(qm_session *const *sessions, const int32_t *tokens, int32_t count, bool watched, qm_job **out);
int32_t qmi_submit_rewind(qm_session *session, int64_t length, bool watched, qm_job **out);
int32_t qmi_submit_sync(qm_session *session, const int32_t *tokens, int64_t count, bool watched, qm_job **out);
int32_t qmi_submit_generate(qm_session *session, const int32_t *tokens, int64_t count, qm_job **out);
int32_t qmi_submit_draft(qm_session *session, int32_t next, float *logits, qm_job **out); /* blocking calls only */
int32_t qmi_submit_store(qmi_job_kind kind, qm_session *session, const char *path, bool watched,
                         qm_job **out); /* QMI_JOB_SAVE or _RESTORE */
int32_t qmi_submit_tokenize(qm_model *model, const char *text, int64_t length, int32_t special, qm_job **out);
int32_t qmi_submit_chat_tokens(qm_model *model, const qmi_chat_request *request, qm_job **out); /* without `literal` */
int32_t qmi_submit_load(const char *path, const qmi_settings *settings, qm_job **out);
int32_t qmi_submit_follow(const char *path, const qmi_settings *settings, qm_job **out);

#endif
