/* Sessions: see session.h. */
#include "run/session.h"

#include <string.h>
#include "run/budget.h"
#include "run/constraint.h"
#include "run/job.h"
#include "run/load.h"
#include "run/prefix.h"
#include "run/reuse.h"

/* ---- life ---- */

/* QM_ERROR_FIT when there is plainly less memory than the context needs, even if the model had no other session. */
static int32_t check_fit(const qm_session *session)
{
    const qm_model *model = session->model;
    const qmi_page_pool *pool = &model->pages;
    qmi_device_info info;
    int64_t needed = qmi_kv_pages_for(&model->plan.kv, session->context) * model->plan.kv.page_bytes;
    int64_t promised = model->plan.kv_pool;
    if (needed <= promised)
        return QM_OK;
    model->backend->info(model->device, &info);
    if (pool->grows && (info.memory_free <= 0 || needed - promised <= info.memory_free))
        return QM_OK;
    return qmi_fail(QM_ERROR_FIT, "keys and values of a session of %lld tokens need %lld bytes; %lld are there%s; set option "
                    "context lower%s", (long long)session->context, (long long)needed,
                    (long long)(promised + (pool->grows ? info.memory_free : 0)),
                    pool->grows ? "" : " (option kv-memory)", pool->grows ? "" : ", or kv-memory higher");
}

typedef struct newcomer {
    qm_session *session;
    const qm_session *from;  /* whose pages and state it shares; NULL: it is empty */
} newcomer;

/* Joins the model's sessions, in the engine's thread. */
static int32_t join(void *argument)
{
    const newcomer *new = argument;
    qm_session *session = new->session;
    qm_model *model = session->model;
    session->next = model->sessions;
    model->sessions = session;
    if (!new->from)
        return check_fit(session);
    int32_t code = qmi_page_table_share(&model->pages, &session->pages, &new->from->pages, new->from->count);
    if (code >= 0)
        session->state = qmi_state_retain(new->from->state);
    return code;
}

/* Leaves them, and gives back what it has on the device. */
static int32_t leave(void *argument)
{
    qm_session *session = argument;
    qm_model *model = session->model;
    qm_session **link = &model->sessions;
    while (*link && *link != session)
        link = &(*link)->next;
    if (*link)
        *link = session->next;
    qmi_reuse_leave(session);
    qmi_state_release(&model->states, &session->state);
    qmi_page_table_free(&model->pages, &session->pages);
    return QM_OK;
}

/* Of a session that no job uses, or whose making failed. */
static void destroy(qm_session *session)
{
    qm_model *model = session->model;
    const qmi_alloc alloc = model->settings.alloc;
    qmi_engine_call(model, leave, session);
    qmi_sampler_free(&session->sampler);
    qmi_settings_end(&session->settings);
    qmi_delete(&alloc, session->tokens);
    qmi_delete(&alloc, session->logits);
    qmi_delete(&alloc, session);
    qmi_load_release(model);
}

/* Copies settings so that their memory and log are the model's, whichever options they came from. */
static int32_t copy_settings(const qm_model *model, const qmi_settings *from, qmi_settings *to)
{
    qmi_settings view = *from;
    view.alloc = model->settings.alloc;
    view.log = model->settings.log;
    return qmi_settings_copy(&view, to);
}

int32_t qmi_session_check_settings(qm_model *model, const qmi_settings *settings)
{
    int64_t context;
    qmi_budget *budget = NULL;
    qmi_constraint *constraint = NULL;
    int32_t code = qmi_plan_context(&model->plan.hparams, settings, &context);
    if (code >= 0)
        code = qmi_budget_new(settings, model->vocab, false, &model->settings.alloc, &budget);
    qmi_budget_free(&budget);
    if (code >= 0)
        code = qmi_constraint_get(model, settings, &constraint);
    qmi_constraint_release(model, &constraint);
    return code;
}

static int32_t allocate_on_host(qm_session *session, const qmi_settings *settings)
{
    const qm_model *model = session->model;
    const qmi_alloc *alloc = &model->settings.alloc;
    int32_t code = copy_settings(model, settings, &session->settings);
    if (code < 0) {
        qmi_settings_start(&session->settings, alloc); /* so that it can be ended */
        return code;
    }
    code = qmi_plan_context(&model->plan.hparams, &session->settings, &session->context);
    if (code < 0)
        return code;
    session->drops = strcmp(qmi_settings_text(&session->settings, QMI_OPT_CONTEXT_FULL), "drop-oldest") == 0;
    session->priority = (int32_t)qmi_settings_int(&session->settings, QMI_OPT_PRIORITY);
    session->tokens = qmi_new(alloc, (size_t)session->context, sizeof *session->tokens, "the tokens of a session");
    return session->tokens ? QM_OK : QM_ERROR_MEMORY;
}

/* All but the sampler, and the tokens of the one it is a fork of (NULL: none). */
static int32_t make_session(qm_model *model, const qmi_settings *settings, const qm_session *from, qm_session **out)
{
    *out = NULL;
    if (!model->computes)
        return qmi_fail(QM_ERROR_STATE, "%s was loaded with option vocabulary-only and cannot compute; load it without",
                        model->path);
    qm_session *session = qmi_new(&model->settings.alloc, 1, sizeof *session, "session");
    if (!session)
        return QM_ERROR_MEMORY;
    session->model = model;
    qmi_load_retain(model);
    int32_t code = allocate_on_host(session, settings);
    if (code >= 0)
        code = qmi_engine_call(model, join, &(newcomer){ session, from });
    if (code < 0) {
        destroy(session);
        return code;
    }
    *out = session;
    return QM_OK;
}

int32_t qmi_session_new(qm_model *model, const qmi_settings *settings, qm_session **out)
{
    int32_t code = make_session(model, settings ? settings : &model->settings, NULL, out);
    if (code < 0)
        return code;
    code = qmi_session_check_settings(model, &(*out)->settings);
    if (code >= 0)
        code = qmi_sampler_new(&(*out)->settings, model->plan.hparams.vocabulary, &(*out)->sampler);
    if (code < 0) {
        destroy(*out);
        *out = NULL;
    }
    return code;
}

/* Brings the logits of a device with memory of its own to the host, if they are not there. */
static int32_t read_logits(void *argument)
{
    qm_session *session = argument;
    qm_model *model = session->model;
    int64_t vocabulary = model->plan.hparams.vocabulary;
    if (session->logits_read)
        return QM_OK;
    if (!session->logits)
        session->logits = qmi_new(&model->settings.alloc, (size_t)vocabulary, sizeof(float), "the logits of a session");
    if (!session->logits)
        return QM_ERROR_MEMORY;
    int32_t code = model->backend->read(model->device, session->logits, session->state->logits,
                                        vocabulary * (int64_t)sizeof(float));
    session->logits_read = code >= 0;
    return code;
}

/* The last token's logits, which the session has. */
int32_t qmi_session_find_logits(qm_session *session, const float **out)
{
    bool shared = session->model->info.shares_host;
    int32_t code = shared ? QM_OK : qmi_engine_call(session->model, read_logits, session);
    *out = shared ? (const float *)(uintptr_t)session->state->logits : session->logits;
    return code;
}

int32_t qmi_session_fork(qm_session *session, qm_session **out)
{
    qm_model *model = session->model;
    *out = NULL;
    int32_t code = qmi_engine_claim(model, &session, 1, NULL);
    if (code < 0)
        return code;
    if (session->failure)
        code = qmi_fail(session->failure, "%s", session->failure_text);
    if (code >= 0)
        code = make_session(model, &session->settings, session, out);
    if (code >= 0)
        code = qmi_sampler_copy(session->sampler, &(*out)->sampler);
    if (code >= 0) {
        memcpy((*out)->tokens, session->tokens, (size_t)session->count * sizeof *session->tokens);
        (*out)->checkpointed = session->checkpointed;
        qmi_session_set_length(*out, session->count);
    } else if (*out) {
        destroy(*out);
        *out = NULL;
    }
    qmi_engine_unclaim(model, &session, 1);
    return code;
}

void qmi_session_free(qm_session *session)
{
    qmi_engine *engine = &session->model->engine;
    qmi_os_mutex_lock(engine->mutex);
    while (session->busy) {
        if (session->job)
            __atomic_store_n(&session->job->cancel, 1, __ATOMIC_RELEASE);
        qmi_os_condition_signal_all(engine->wake);
        qmi_os_condition_wait(engine->answered, engine->mutex, -1);
    }
    qmi_os_mutex_unlock(engine->mutex);
    qmi_prefix_keep(session);
    destroy(session);
}

/* ---- use ---- */

int32_t qmi_session_check(const qm_session *session)
{
    const qmi_engine *engine = &session->model->engine;
    qmi_os_mutex_lock(engine->mutex);
    bool busy = session->busy;
    qmi_os_mutex_unlock(engine->mutex);
    if (busy)
        return qmi_fail(QM_ERROR_BUSY, "the session has a job under way; wait for it, or cancel it first");
    return session->failure ? qmi_fail(session->failure, "%s", session->failure_text) : QM_OK;
}

int32_t qmi_session_set(qm_session *session, const char *name, const char *value)
{
    qmi_settings changed;
    int32_t code = qmi_session_check(session);
    if (code < 0)
        return code;
    int32_t id = qmi_option_find(name);
    if (id < 0)
        return id;
    qmi_option_scope scope = qmi_option_at(id)->scope;
    if (scope != QMI_SCOPE_SAMPLING)
        return qmi_fail(QM_ERROR_OPTION, "option %s cannot change in a session; give it to %s", name,
                        scope == QMI_SCOPE_MODEL ? "qm_model_load" : "qm_session_new");
    code = qmi_settings_copy(&session->settings, &changed);
    if (code < 0)
        return code;
    code = qmi_settings_set(&changed, id, value);
    if (code >= 0)
        code = qmi_session_check_settings(session->model, &changed);
    if (code >= 0)
        code = qmi_sampler_configure(session->sampler, &changed, id == QMI_OPT_SEED);
    if (code < 0) {
        qmi_settings_end(&changed);
        return code;
    }
    qmi_settings_end(&session->settings);
    session->settings = changed;
    return QM_OK;
}

int32_t qmi_session_sample(qm_session *session, int32_t *token)
{
    int32_t code = qmi_session_check(session);
    if (code < 0)
        return code;
    if (!session->state)
        return qmi_fail(QM_ERROR_STATE, "the session has no logits to sample from; append a token first");
    return qmi_session_choose(session, token);
}

const float *qmi_session_logits(qm_session *session)
{
    if (qmi_session_check(session) < 0)
        return NULL;
    if (!session->state) {
        qmi_fail(QM_ERROR_STATE, "the session has no logits; append a token first");
        return NULL;
    }
    const float *logits;
    return qmi_session_find_logits(session, &logits) < 0 ? NULL : logits;
}

int64_t qmi_session_tokens(const qm_session *session, int32_t *tokens, int64_t capacity)
{
    int32_t code = qmi_session_check(session);
    if (code < 0)
        return code;
    int64_t fits = session->count < capacity ? session->count : capacity;
    if (fits > 0)
        memcpy(tokens, session->tokens, (size_t)fits * sizeof *tokens);
    return session->count;
}

/* ---- for the engine's thread ---- */

int32_t qmi_session_choose(qm_session *session, int32_t *token)
{
    if (session->state->has_picks && qmi_sampler_takes_picks(session->sampler)) {
        *token = qmi_sampler_choose_picked(session->sampler, session->state->picks);
        return QM_OK;
    }
    const float *logits;
    int32_t code = qmi_session_find_logits(session, &logits);
    if (code >= 0)
        *token = qmi_sampler_choose(session->sampler, logits, session->tokens, session->count);
    return code;
}

int32_t qmi_session_choose_among(qm_session *session, const qmi_filter *filter, int32_t *token)
{
    int32_t code = 0;
    if (session->state->has_picks && qmi_sampler_takes_picks(session->sampler))
        code = qmi_sampler_pick_among(session->sampler, session->state->picks, filter, token);
    if (code != 0)
        return code < 0 ? code : QM_OK;
    const float *logits;
    code = qmi_session_find_logits(session, &logits);
    if (code >= 0)
        code = qmi_sampler_choose_among(session->sampler, logits, session->tokens, session->count, filter, token);
    return code;
}

void qmi_session_break(qm_session *session, int32_t code)
{
    session->failure = code;
    qmi_error_copy(session->failure_text);
}

void qmi_session_cut(qm_session *session, int64_t keep)
{
    qm_model *model = session->model;
    qmi_state_release(&model->states, &session->state);
    qmi_page_table_cut(&model->pages, &session->pages, keep);
    session->logits_read = false;
    qmi_session_set_length(session, keep);
}
