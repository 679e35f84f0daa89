/* A generate job between two steps: see generate.h. */
#include "run/generate.h"

#include "run/constrain.h"

/* The mark that the text which the session holds, with the prompt behind it, has last: of thoughts, or of turns. -1: none. */
static int32_t last_mark(const qm_session *session, const int32_t *prompt, int64_t count)
{
    const qm_model *model = session->model;
    int32_t eos = qmi_vocab_eos(model->vocab);
    if (model->think_open < 0)
        return -1;
    for (int64_t i = session->count + count; i-- > 0;) {
        int32_t token = i < session->count ? session->tokens[i] : prompt[i - session->count];
        if (token == model->think_open || token == model->think_close || token == model->turn_start || token == eos)
            return token;
    }
    return -1;
}

int32_t qmi_generate_prepare(qm_job *job, const int32_t *prompt, int64_t count)
{
    qm_session *session = job->sessions[0];
    int32_t mark = last_mark(session, prompt, count);
    bool thinks = mark >= 0 && mark == session->model->think_open, may_think = mark >= 0 && mark == session->model->turn_start;
    int64_t room = session->context - session->count - count;
    int64_t most = qmi_settings_int(&session->settings, QMI_OPT_ANSWER_TOKENS);
    if (most > 0 && most < room)
        room = most;
    if (room < 0) /* until turns are dropped */
        room = 0;
    int32_t code = qmi_budget_new(&session->settings, session->model->vocab, thinks, &job->alloc, &job->budget);
    if (code >= 0)
        code = qmi_constrained_new(session, thinks, may_think, &job->alloc, &job->constrained);
    if (code >= 0)
        code = qmi_reserve(&job->alloc, (void **)&job->ids.data, &job->ids.capacity, (size_t)room, sizeof(int32_t),
                           "generated tokens");
    qmi_logprobs_start(&job->logprobs, qmi_settings_int(&session->settings, QMI_OPT_LOGPROBS),
                       session->model->plan.hparams.vocabulary);
    return code;
}

static void show_piece(qmi_answer_part part, const char *text, int64_t length, void *user)
{
    qmi_job_show(user, part, text, length);
}

/* Whether it was sampled or forced: what the model says of it. */
static int32_t keep_logprobs(qm_job *job, int32_t token)
{
    qm_session *session = job->sessions[0];
    const float *logits;
    int32_t code = qmi_session_find_logits(session, &logits);
    return code < 0 ? code
                    : qmi_logprobs_add(&job->logprobs, logits, session->model->plan.hparams.vocabulary, token, &job->alloc);
}

/* Keeps the token and its text; job->mutex is held. */
static int32_t keep_token(qm_job *job, int32_t token)
{
    int32_t code = qmi_reserve(&job->alloc, (void **)&job->ids.data, &job->ids.capacity, job->ids.count + 1, sizeof(int32_t),
                               "generated tokens");
    if (code < 0)
        return code;
    if (job->logprobs.kept)
        code = keep_logprobs(job, token);
    if (code < 0)
        return code;
    job->ids.data[job->ids.count++] = token;
    code = qmi_budget_push(job->budget, token, show_piece, job);
    if (job->queue_failed)
        code = qmi_fail(QM_ERROR_MEMORY, "out of memory for generated text");
    if (code < 0)
        return code;
    job->finish = (qmi_finish)code;
    job->thought = qmi_budget_thought_tokens(job->budget);
    if (job->first_ns == 0)
        job->first_ns = qmi_os_time_ns();
    return QM_OK;
}

/* The token that has to come next whatever the logits say, or -1; the finish tells when there is room for none. */
static int32_t forced_token(qm_job *job)
{
    const qm_session *session = job->sessions[0];
    int32_t token = -1;
    qmi_os_mutex_lock(job->mutex);
    if (session->count >= session->context)
        job->finish = QMI_FINISH_CONTEXT;
    if (__atomic_exchange_n(&job->end_thinking, 0, __ATOMIC_ACQ_REL))
        qmi_budget_end_thinking(job->budget);
    if (job->finish == QMI_FINISH_NONE)
        token = qmi_budget_forced(job->budget);
    qmi_os_mutex_unlock(job->mutex);
    return token;
}

/* By the logits. 1: *token; 0: the answer is complete without one; or a code. */
static int32_t choose_token(qm_job *job, int32_t *token)
{
    qm_session *session = job->sessions[0];
    int64_t room = qmi_budget_room(job->budget), left = session->drops ? INT64_MAX : session->context - session->count;
    if (!job->constrained) {
        int32_t code = qmi_session_choose(session, token);
        return code < 0 ? code : 1;
    }
    return qmi_constrained_choose(job->constrained, session, job->budget, room < left ? room : left, token);
}

int32_t qmi_generate_next(qm_job *job, int32_t *token)
{
    *token = forced_token(job);
    if (job->finish != QMI_FINISH_NONE)
        return 0;
    int32_t code = *token < 0 ? choose_token(job, token) : 1;
    if (code < 0)
        return code;
    qmi_os_mutex_lock(job->mutex);
    if (code == 0)
        job->finish = QMI_FINISH_END;
    else
        code = keep_token(job, *token);
    if (code >= 0 && job->finish == QMI_FINISH_NONE && job->constrained)
        code = qmi_constrained_push(job->constrained, *token, job->budget);
    qmi_os_mutex_unlock(job->mutex);
    return code < 0 ? code : job->finish == QMI_FINISH_END && *token < 0 ? 0 : 1;
}

int32_t qmi_generate_end(qm_job *job, int32_t code)
{
    char message[QMI_ERROR_SIZE];
    qmi_error_copy(message); /* of `code` */
    qmi_os_mutex_lock(job->mutex);
    int32_t flushed = qmi_budget_end(job->budget, show_piece, job);
    if (job->constrained)
        qmi_constrained_end(job->constrained);
    if (job->queue_failed)
        flushed = qmi_fail(QM_ERROR_MEMORY, "out of memory for generated text");
    if (code < 0)
        qmi_error_restore(message);
    else if (flushed < 0)
        code = flushed;
    if (code < 0)
        job->finish = code == QM_ERROR_CANCELLED ? QMI_FINISH_CANCELLED : QMI_FINISH_ERROR;
    qmi_os_mutex_unlock(job->mutex);
    return code;
}
