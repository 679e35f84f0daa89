/* Jobs: submitting them, watching them, and what they have to show. */
#include "api/handles.h"
#include "run/submit.h"

/* What the calls with a file's path have in common. */
static int32_t submit_path(int32_t (*submit)(const char *path, const qmi_settings *settings, qm_job **out), const char *path,
                           const qm_options *options, qm_job **out)
{
    qmi_settings defaults;
    if (!out)
        return qmi_handles_null("out");
    *out = NULL;
    if (!path)
        return qmi_handles_null("path");
    qmi_settings_start(&defaults, &(qmi_alloc){ 0 });
    int32_t code = submit(path, options ? &options->settings : &defaults, out);
    qmi_settings_end(&defaults);
    return code;
}

int32_t qm_submit_load(const char *path, const qm_options *options, qm_job **out)
{
    return submit_path(qmi_submit_load, path, options, out);
}

int32_t qm_submit_follow(const char *path, const qm_options *options, qm_job **out)
{
    return submit_path(qmi_submit_follow, path, options, out);
}

int32_t qm_submit_tokenize(const qm_model *model, const char *text, int64_t length, int32_t special, qm_job **out)
{
    if (!out)
        return qmi_handles_null("out");
    *out = NULL;
    if (!model)
        return qmi_handles_null("model");
    int32_t code = qmi_handles_text(text, &length, "text");
    if (code < 0)
        return code;
    if (special < QM_SPECIAL_NONE || special > QM_SPECIAL_ALL)
        return qmi_fail(QM_ERROR_ARGUMENT, "special is %d; QM_SPECIAL_NONE, _USER and _ALL are 0, 1 and 2", special);
    qm_model *counted = (qm_model *)(uintptr_t)model; /* the job takes a reference, which is no change that can be seen */
    return qmi_submit_tokenize(counted, text, length, special, out);
}

/* What the calls with a session and tokens have in common. */
static int32_t check_submit(const qm_session *session, const int32_t *tokens, int64_t count, qm_job **out)
{
    if (!out)
        return qmi_handles_null("out");
    *out = NULL;
    if (!session)
        return qmi_handles_null("session");
    return qmi_handles_buffer(tokens, count, "tokens");
}

int32_t qm_submit_prefill(qm_session *session, const int32_t *tokens, int64_t count, qm_job **out)
{
    int32_t code = check_submit(session, tokens, count, out);
    return code < 0 ? code : qmi_submit_prefill(session, tokens, count, NULL, true, out);
}

int32_t qm_submit_decode(qm_session **sessions, const int32_t *tokens, int32_t count, qm_job **out)
{
    if (!out)
        return qmi_handles_null("out");
    *out = NULL;
    int32_t code = qmi_submit_check_sessions(sessions, tokens, count);
    return code < 0 ? code : qmi_submit_decode(sessions, tokens, count, true, out);
}

int32_t qm_submit_rewind(qm_session *session, int64_t length, qm_job **out)
{
    int32_t code = check_submit(session, NULL, 0, out);
    return code < 0 ? code : qmi_submit_rewind(session, length, true, out);
}

int32_t qm_submit_sync(qm_session *session, const int32_t *tokens, int64_t count, qm_job **out)
{
    int32_t code = check_submit(session, tokens, count, out);
    return code < 0 ? code : qmi_submit_sync(session, tokens, count, true, out);
}

static int32_t submit_store(qmi_job_kind kind, qm_session *session, const char *path, qm_job **out)
{
    int32_t code = check_submit(session, NULL, 0, out);
    if (code < 0)
        return code;
    return path ? qmi_submit_store(kind, session, path, true, out) : qmi_handles_null("path");
}

int32_t qm_submit_save(qm_session *session, const char *path, qm_job **out)
{
    return submit_store(QMI_JOB_SAVE, session, path, out);
}

int32_t qm_submit_restore(qm_session *session, const char *path, qm_job **out)
{
    return submit_store(QMI_JOB_RESTORE, session, path, out);
}

int32_t qm_submit_generate(qm_session *session, const int32_t *tokens, int64_t count, qm_job **out)
{
    int32_t code = check_submit(session, tokens, count, out);
    return code < 0 ? code : qmi_submit_generate(session, tokens, count, out);
}

int32_t qm_job_poll(const qm_job *job)
{
    return job ? qmi_job_poll(job) : qmi_handles_null("job");
}

int32_t qm_job_wait(qm_job *job, int64_t timeout_ms)
{
    return job ? qmi_job_wait(job, timeout_ms) : qmi_handles_null("job");
}

int32_t qm_job_descriptor(const qm_job *job)
{
    return job ? job->event.read_end : qmi_handles_null("job");
}

int32_t qm_job_cancel(qm_job *job)
{
    if (!job)
        return qmi_handles_null("job");
    qmi_job_cancel(job);
    return QM_OK;
}

int32_t qm_job_end_thinking(qm_job *job)
{
    if (!job)
        return qmi_handles_null("job");
    qmi_job_end_thinking(job);
    return QM_OK;
}

void qm_job_free(qm_job **job)
{
    if (!job || !*job)
        return;
    qmi_job_free(*job);
    *job = NULL;
}

int64_t qm_job_read(qm_job *job, char *text, int64_t size, int32_t *kind)
{
    if (!job)
        return qmi_handles_null("job");
    if (!text)
        return qmi_handles_null("text");
    if (!kind)
        return qmi_handles_null("kind");
    if (size < 8)
        return qmi_fail(QM_ERROR_ARGUMENT, "the size of text is %lld; at least 8 bytes are needed", (long long)size);
    return qmi_job_read(job, text, size, kind);
}

int64_t qm_job_text(const qm_job *job, char *text, int64_t size)
{
    if (!job)
        return qmi_handles_null("job");
    int32_t code = qmi_handles_buffer(text, size, "text");
    return code < 0 ? code : qmi_job_text(job, text, size);
}

int64_t qm_job_tokens(const qm_job *job, int32_t *tokens, int64_t capacity)
{
    if (!job)
        return qmi_handles_null("job");
    int32_t code = qmi_handles_buffer(tokens, capacity, "tokens");
    return code < 0 ? code : qmi_job_tokens(job, tokens, capacity);
}

int64_t qm_job_logprobs(const qm_job *job, int64_t first, float *logprobs, int32_t *top_tokens, float *top_logprobs,
                        int64_t capacity)
{
    if (!job)
        return qmi_handles_null("job");
    if (first < 0 || capacity < 0)
        return qmi_fail(QM_ERROR_ARGUMENT, "first is %lld and capacity %lld; neither may be negative", (long long)first,
                        (long long)capacity);
    return qmi_job_logprobs(job, first, &(qmi_logprobs_out){ logprobs, top_tokens, top_logprobs }, capacity);
}

const char *qm_job_finish(const qm_job *job)
{
    if (job)
        return qmi_job_finish_name(job);
    qmi_handles_null("job");
    return "";
}

int32_t qm_job_number(const qm_job *job, const char *name, double *value)
{
    if (!job)
        return qmi_handles_null("job");
    if (!name)
        return qmi_handles_null("name");
    return value ? qmi_job_number(job, name, value) : qmi_handles_null("value");
}

int32_t qm_job_model(qm_job *job, qm_model **out)
{
    if (!out)
        return qmi_handles_null("out");
    *out = NULL;
    return job ? qmi_job_take_model(job, out) : qmi_handles_null("job");
}
