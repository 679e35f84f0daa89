/* Sessions: the blocking calls. Each is a job that is waited for, so that calls of several threads are computed together. */
#include "api/handles.h"
#include "run/submit.h"

int32_t qm_session_new(qm_model *model, const qm_options *options, qm_session **out)
{
    if (!out)
        return qmi_handles_null("out");
    *out = NULL;
    if (!model)
        return qmi_handles_null("model");
    return qmi_session_new(model, options ? &options->settings : NULL, out);
}

int32_t qm_session_fork(qm_session *session, qm_session **out)
{
    if (!out)
        return qmi_handles_null("out");
    *out = NULL;
    if (!session)
        return qmi_handles_null("session");
    return qmi_session_fork(session, out);
}

void qm_session_free(qm_session **session)
{
    if (!session || !*session)
        return;
    qmi_session_free(*session);
    *session = NULL;
}

int32_t qm_session_set(qm_session *session, const char *name, const char *value)
{
    if (!session)
        return qmi_handles_null("session");
    if (!name)
        return qmi_handles_null("name");
    return qmi_session_set(session, name, value);
}

int64_t qm_session_get(const qm_session *session, const char *name, char *text, int64_t size)
{
    if (!session)
        return qmi_handles_null("session");
    if (!name)
        return qmi_handles_null("name");
    int32_t code = qmi_handles_buffer(text, size, "text");
    if (code < 0)
        return code;
    int32_t id = qmi_option_find(name);
    return id < 0 ? id : qmi_settings_get(&session->settings, id, text, size);
}

int64_t qm_session_context(const qm_session *session)
{
    return session ? session->context : qmi_handles_null("session");
}

int64_t qm_session_length(const qm_session *session)
{
    return session ? qmi_session_length(session) : qmi_handles_null("session");
}

int64_t qm_session_tokens(const qm_session *session, int32_t *tokens, int64_t capacity)
{
    if (!session)
        return qmi_handles_null("session");
    int32_t code = qmi_handles_buffer(tokens, capacity, "tokens");
    return code < 0 ? code : qmi_session_tokens(session, tokens, capacity);
}

int32_t qm_prefill(qm_session *session, const int32_t *tokens, int64_t count)
{
    return qm_prefill_rows(session, tokens, count, NULL, 0, NULL);
}

int32_t qm_prefill_rows(qm_session *session, const int32_t *tokens, int64_t count, const int64_t *rows, int64_t row_count,
                        float *logits)
{
    qm_job *job;
    if (!session)
        return qmi_handles_null("session");
    int32_t code = qmi_handles_buffer(tokens, count, "tokens");
    if (code >= 0)
        code = qmi_handles_buffer(rows, row_count, "rows");
    if (code >= 0)
        code = qmi_handles_buffer(logits, row_count, "logits");
    if (code >= 0)
        code = qmi_submit_prefill(session, tokens, count, &(qmi_rows){ rows, row_count, logits }, false, &job);
    return code < 0 ? code : qmi_job_finish_blocking(job, NULL);
}

int32_t qm_decode(qm_session **sessions, const int32_t *tokens, int32_t count)
{
    qm_job *job;
    int32_t code = qmi_submit_check_sessions(sessions, tokens, count);
    if (code >= 0)
        code = qmi_submit_decode(sessions, tokens, count, false, &job);
    return code < 0 ? code : qmi_job_finish_blocking(job, NULL);
}

const float *qm_logits(const qm_session *session)
{
    if (!session) {
        qmi_handles_null("session");
        return NULL;
    }
    return qmi_session_logits((qm_session *)session); /* reading them from a device is no change that the caller sees */
}

int32_t qm_sample(qm_session *session, int32_t *token)
{
    if (!session)
        return qmi_handles_null("session");
    return token ? qmi_session_sample(session, token) : qmi_handles_null("token");
}

int32_t qm_mtp_logits(qm_session *session, int32_t next, float *logits)
{
    qm_job *job;
    if (!session)
        return qmi_handles_null("session");
    if (!logits)
        return qmi_handles_null("logits");
    int32_t code = qmi_submit_draft(session, next, logits, &job);
    return code < 0 ? code : qmi_job_finish_blocking(job, NULL);
}

int32_t qm_session_rewind(qm_session *session, int64_t length)
{
    qm_job *job;
    if (!session)
        return qmi_handles_null("session");
    int32_t code = qmi_submit_rewind(session, length, false, &job);
    return code < 0 ? code : qmi_job_finish_blocking(job, NULL);
}

int64_t qm_session_sync(qm_session *session, const int32_t *tokens, int64_t count)
{
    qm_job *job;
    if (!session)
        return qmi_handles_null("session");
    int32_t code = qmi_handles_buffer(tokens, count, "tokens");
    if (code >= 0)
        code = qmi_submit_sync(session, tokens, count, false, &job);
    if (code < 0)
        return code;
    int64_t reused;
    code = qmi_job_finish_blocking(job, &reused);
    return code < 0 ? code : reused;
}

static int32_t store(qmi_job_kind kind, qm_session *session, const char *path)
{
    qm_job *job;
    if (!session)
        return qmi_handles_null("session");
    if (!path)
        return qmi_handles_null("path");
    int32_t code = qmi_submit_store(kind, session, path, false, &job);
    return code < 0 ? code : qmi_job_finish_blocking(job, NULL);
}

int32_t qm_session_save(qm_session *session, const char *path)
{
    return store(QMI_JOB_SAVE, session, path);
}

int32_t qm_session_restore(qm_session *session, const char *path)
{
    return store(QMI_JOB_RESTORE, session, path);
}
