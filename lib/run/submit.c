/* Making jobs: see submit.h. */
#include "run/submit.h"

#include <string.h>
#include "exchange/ranks.h"
#include "run/generate.h"
#include "run/load.h"
#include "run/prefix.h"
#include "run/store.h"

static int32_t check_tokens(const qm_model *model, const int32_t *tokens, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= model->plan.hparams.vocabulary)
            return qmi_fail(QM_ERROR_ARGUMENT, "tokens[%lld] is %d; the model's ids are 0 to %d", (long long)i, tokens[i],
                            model->plan.hparams.vocabulary - 1);
    return QM_OK;
}

static int32_t check_room(const qm_session *session, int64_t count)
{
    if (count > session->context - session->count)
        return qmi_fail(QM_ERROR_CONTEXT, "the session's context is %lld tokens: it holds %lld, and %lld more do not fit; "
                        "set option context higher, or rewind", (long long)session->context, (long long)session->count,
                        (long long)count);
    return QM_OK;
}

/* The same, unless the session's oldest turns may be dropped for them: the job then does so. */
static int32_t make_room(qm_job *job, int64_t count)
{
    const qm_session *session = job->sessions[0];
    job->overflows = session->drops && count > session->context - session->count;
    return job->overflows ? QM_OK : check_room(session, count);
}

static int32_t keep_tokens(qm_job *job, const int32_t *tokens, int64_t count)
{
    job->tokens = qmi_new(&job->alloc, (size_t)count, sizeof *job->tokens, "tokens of a job");
    if (!job->tokens)
        return QM_ERROR_MEMORY;
    if (count > 0)
        memcpy(job->tokens, tokens, (size_t)count * sizeof *tokens);
    job->token_count = count;
    return QM_OK;
}

/* A job with claimed sessions, none of which has failed. On failure nothing is left. */
static int32_t open_job(qmi_job_kind kind, qm_session *const *sessions, int32_t count, bool watched, qm_job **out)
{
    qm_model *model = sessions[0]->model;
    qm_job *job;
    *out = NULL;
    int32_t code = qmi_job_new(kind, &model->settings.alloc, watched, &job);
    if (code < 0)
        return code;
    qmi_load_retain(model);
    job->model = model;
    job->sessions = qmi_new(&job->alloc, (size_t)count, sizeof *job->sessions, "sessions of a job");
    code = job->sessions ? QM_OK : QM_ERROR_MEMORY;
    if (code >= 0) {
        memcpy(job->sessions, sessions, (size_t)count * sizeof *sessions);
        job->session_count = count;
        code = qmi_engine_claim(model, sessions, count, job);
    }
    if (code < 0) {
        qmi_job_abandon(job);
        return code;
    }
    job->priority = INT32_MIN;
    for (int32_t i = 0; i < count; i++) {
        job->priority = sessions[i]->priority > job->priority ? sessions[i]->priority : job->priority;
        if (sessions[i]->failure && code >= 0)
            code = qmi_fail(sessions[i]->failure, "%s", sessions[i]->failure_text);
    }
    if (code < 0) {
        qmi_engine_unclaim(model, sessions, count);
        qmi_job_abandon(job);
        return code;
    }
    *out = job;
    return QM_OK;
}

/* Hands an open job to the engine, or takes it back when `code` says that a check failed. */
static int32_t close_job(qm_job *job, int32_t code, qm_job **out)
{
    if (code >= 0) {
        *out = job;
        qmi_engine_submit(job->model, job);
    } else {
        qmi_engine_unclaim(job->model, job->sessions, job->session_count);
        qmi_job_abandon(job);
    }
    return code;
}

static int32_t check_rows(const qmi_rows *rows, int64_t count)
{
    for (int64_t i = 0; i < rows->count; i++)
        if (rows->rows[i] < (i ? rows->rows[i - 1] + 1 : 0) || rows->rows[i] >= count)
            return qmi_fail(QM_ERROR_ARGUMENT, "rows[%lld] is %lld; rows have to ascend and be below the %lld tokens",
                            (long long)i, (long long)rows->rows[i], (long long)count);
    return QM_OK;
}

int32_t qmi_submit_prefill(qm_session *session, const int32_t *tokens, int64_t count, const qmi_rows *rows, bool watched,
                           qm_job **out)
{
    qm_job *job;
    *out = NULL;
    int32_t code = check_tokens(session->model, tokens, count);
    if (code >= 0 && rows)
        code = check_rows(rows, count);
    if (code >= 0)
        code = open_job(QMI_JOB_PREFILL, &session, 1, watched, &job);
    if (code < 0)
        return code;
    code = rows && rows->count > 0 ? check_room(session, count) : make_room(job, count);
    if (code >= 0)
        code = keep_tokens(job, tokens, count);
    if (code >= 0 && rows) {
        job->rows = rows->rows;
        job->row_count = rows->count;
        job->logits = rows->logits;
    }
    return close_job(job, code, out);
}

int32_t qmi_submit_check_sessions(qm_session *const *sessions, const int32_t *tokens, int32_t count)
{
    if (count < 1)
        return qmi_fail(QM_ERROR_ARGUMENT, "count is %d; at least one session is needed", count);
    if (!sessions || !tokens)
        return qmi_fail(QM_ERROR_ARGUMENT, "%s is null", sessions ? "tokens" : "sessions");
    for (int32_t i = 0; i < count; i++)
        if (!sessions[i])
            return qmi_fail(QM_ERROR_ARGUMENT, "sessions[%d] is null", i);
    return QM_OK;
}

int32_t qmi_submit_decode(qm_session *const *sessions, const int32_t *tokens, int32_t count, bool watched, qm_job **out)
{
    qm_model *model = sessions[0]->model;
    qm_job *job;
    *out = NULL;
    for (int32_t i = 1; i < count; i++)
        if (sessions[i]->model != model)
            return qmi_fail(QM_ERROR_ARGUMENT, "sessions[%d] is of another model than sessions[0]; decode them apart", i);
    int32_t code = check_tokens(model, tokens, count);
    if (code >= 0)
        code = open_job(QMI_JOB_DECODE, sessions, count, watched, &job);
    if (code < 0)
        return code;
    for (int32_t i = 0; i < count && code >= 0; i++)
        code = check_room(sessions[i], 1);
    if (code >= 0)
        code = keep_tokens(job, tokens, count);
    job->decoding = true;
    return close_job(job, code, out);
}

int32_t qmi_submit_rewind(qm_session *session, int64_t length, bool watched, qm_job **out)
{
    qm_job *job;
    *out = NULL;
    int32_t code = open_job(QMI_JOB_PREFILL, &session, 1, watched, &job);
    if (code < 0)
        return code;
    if (length < 0 || length > session->count)
        code = qmi_fail(QM_ERROR_ARGUMENT, "cannot rewind to %lld tokens: the session holds %lld", (long long)length,
                        (long long)session->count);
    else
        code = keep_tokens(job, session->tokens, length);
    job->replaces = true;
    return close_job(job, code, out);
}

int32_t qmi_submit_sync(qm_session *session, const int32_t *tokens, int64_t count, bool watched, qm_job **out)
{
    qm_job *job;
    *out = NULL;
    int32_t code = check_tokens(session->model, tokens, count);
    if (code >= 0)
        code = open_job(QMI_JOB_PREFILL, &session, 1, watched, &job);
    if (code < 0)
        return code;
    code = check_room(session, count - session->count);
    if (code >= 0)
        code = keep_tokens(job, tokens, count);
    job->replaces = job->synced = true;
    if (code >= 0 && qmi_prefix_is_on(job->model)) {
        code = qmi_os_thread_start(&job->thread, qmi_prefix_fetch_main, job, "qwenmoe-job");
        if (code >= 0) {
            *out = job;
            return code;
        }
    }
    return close_job(job, code, out);
}

int32_t qmi_submit_generate(qm_session *session, const int32_t *tokens, int64_t count, qm_job **out)
{
    qm_job *job;
    *out = NULL;
    int32_t code = check_tokens(session->model, tokens, count);
    if (code >= 0)
        code = open_job(QMI_JOB_GENERATE, &session, 1, true, &job);
    if (code < 0)
        return code;
    code = make_room(job, count);
    if (code >= 0 && session->count + count == 0)
        code = qmi_fail(QM_ERROR_STATE, "the session is empty and no tokens are given; an answer needs a token before it");
    if (code >= 0)
        code = keep_tokens(job, tokens, count);
    if (code >= 0)
        code = qmi_generate_prepare(job, tokens, count);
    return close_job(job, code, out);
}

int32_t qmi_submit_draft(qm_session *session, int32_t next, float *logits, qm_job **out)
{
    qm_job *job;
    *out = NULL;
    if (!session->model->plan.mtp)
        return qmi_fail(QM_ERROR_STATE, "the multi-token-prediction block does not run: %s",
                        session->model->plan.hparams.mtp_layers > 0 ? "load the model with option mtp" : "the file has none");
    int32_t code = check_tokens(session->model, &next, 1);
    if (code >= 0)
        code = open_job(QMI_JOB_DRAFT, &session, 1, false, &job);
    if (code < 0)
        return code;
    if (session->count == 0)
        code = qmi_fail(QM_ERROR_STATE, "the session is empty; append a token first");
    job->draft_token = next;
    job->logits = logits;
    return close_job(job, code, out);
}

/* ---- jobs with a thread of their own ---- */

static void tokenize_main(void *argument)
{
    qm_job *job = argument;
    int32_t code = qmi_tokenize_around(job->model->vocab, job->text, job->text_length, job->special, &job->literal, &job->alloc,
                                       &job->ids);
    if (qmi_job_cancelled(job))
        code = qmi_fail(QM_ERROR_CANCELLED, "the job was cancelled");
    qmi_job_end(job, code);
}

static int32_t start_thread(qm_job *job, void (*body)(void *), qm_job **out)
{
    int32_t code = qmi_os_thread_start(&job->thread, body, job, "qwenmoe-job");
    if (code < 0)
        qmi_job_abandon(job);
    else
        *out = job;
    return code;
}

static int32_t open_tokenize(qm_model *model, int32_t special, qm_job **out)
{
    int32_t code = qmi_job_new(QMI_JOB_TOKENIZE, &model->settings.alloc, true, out);
    if (code < 0)
        return code;
    qmi_load_retain(model);
    (*out)->model = model;
    (*out)->special = special;
    return QM_OK;
}

int32_t qmi_submit_tokenize(qm_model *model, const char *text, int64_t length, int32_t special, qm_job **out)
{
    qm_job *job;
    *out = NULL;
    int32_t code = open_tokenize(model, special, &job);
    if (code < 0)
        return code;
    job->text_length = length;
    job->text = qmi_new_text(&job->alloc, text, (size_t)length);
    if (!job->text) {
        qmi_job_abandon(job);
        return QM_ERROR_MEMORY;
    }
    return start_thread(job, tokenize_main, out);
}

int32_t qmi_submit_chat_tokens(qm_model *model, const qmi_chat_request *request, qm_job **out)
{
    qm_job *job;
    qmi_string text = { 0 };
    *out = NULL;
    int32_t code = open_tokenize(model, QM_SPECIAL_ALL, &job);
    if (code < 0)
        return code;
    qmi_chat_request with_literal = *request;
    with_literal.literal = &job->literal;
    code = qmi_chat_render(model->chat, &with_literal, &job->alloc, &text);
    job->text = text.data;
    job->text_length = (int64_t)text.length;
    if (code < 0) {
        qmi_job_abandon(job);
        return code;
    }
    return start_thread(job, tokenize_main, out);
}

/* The host's callback, and the job's own wish. */
static int32_t load_progress(const char *stage, int64_t done, int64_t total, void *user)
{
    const qm_job *job = user;
    const qmi_settings *settings = &job->settings;
    if (qmi_job_cancelled(job))
        return 1;
    return settings->progress ? settings->progress(stage, done, total, settings->progress_user) : 0;
}

static void load_main(void *argument)
{
    qm_job *job = argument;
    qm_model *model = NULL;
    const qmi_load_watch watch = { .progress = load_progress, .user = job, .cancel = &job->cancel };
    int32_t code = qmi_load_model(job->text, &job->settings, &watch, &model);
    qmi_os_mutex_lock(job->mutex);
    job->model = model;
    qmi_os_mutex_unlock(job->mutex);
    qmi_job_end(job, code);
}

int32_t qmi_submit_store(qmi_job_kind kind, qm_session *session, const char *path, bool watched, qm_job **out)
{
    qm_job *job;
    *out = NULL;
    int32_t code = open_job(kind, &session, 1, watched, &job);
    if (code < 0)
        return code;
    job->text = qmi_new_text(&job->alloc, path, strlen(path));
    code = job->text ? qmi_os_thread_start(&job->thread, qmi_store_main, job, "qwenmoe-job") : QM_ERROR_MEMORY;
    if (code >= 0) {
        *out = job;
        return code;
    }
    qmi_engine_unclaim(job->model, job->sessions, job->session_count);
    qmi_job_abandon(job);
    return code;
}

static void follow_main(void *argument)
{
    qm_job *job = argument;
    qmi_job_end(job, qmi_ranks_follow(job->text, &job->settings, &job->cancel));
}

/* A job about a file, with a thread of its own. */
static int32_t submit_path(qmi_job_kind kind, void (*body)(void *), const char *path, const qmi_settings *settings, qm_job **out)
{
    qm_job *job;
    *out = NULL;
    int32_t code = qmi_job_new(kind, &settings->alloc, true, &job);
    if (code < 0)
        return code;
    code = qmi_settings_copy(settings, &job->settings);
    job->has_settings = code >= 0;
    job->text = code >= 0 ? qmi_new_text(&job->alloc, path, strlen(path)) : NULL;
    if (!job->text) {
        qmi_job_abandon(job);
        return code < 0 ? code : QM_ERROR_MEMORY;
    }
    return start_thread(job, body, out);
}

int32_t qmi_submit_load(const char *path, const qmi_settings *settings, qm_job **out)
{
    return submit_path(QMI_JOB_LOAD, load_main, path, settings, out);
}

int32_t qmi_submit_follow(const char *path, const qmi_settings *settings, qm_job **out)
{
    return submit_path(QMI_JOB_FOLLOW, follow_main, path, settings, out);
}
