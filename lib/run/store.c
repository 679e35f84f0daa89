/* Saving and restoring: see store.h.
 *
 * Beside what a snapshot has, a file keeps the random state of the sampler, [4] u64, and the options of scope "sampling", each as
 * name, zero, value, zero. */
#include "run/store.h"

#include <string.h>
#include "memory/snapshot.h"
#include "run/reuse.h"

static int32_t call_engine(void *user, int32_t (*function)(void *), void *argument)
{
    return qmi_engine_call(user, function, argument);
}

int32_t qmi_store_place(qm_model *model, const int32_t *cancel, qmi_snapshot_place *out)
{
    *out = (qmi_snapshot_place){ .pages = &model->pages, .states = &model->states, .alloc = &model->settings.alloc,
                                 .call = call_engine, .user = model, .cancel = cancel };
    return qmi_parts_identify(&model->parts, &out->model);
}

/* ---- settings and random state ---- */

/* Writes them to `out`, or only counts (NULL). */
static int64_t write_settings(const qmi_settings *settings, uint8_t *out)
{
    int64_t length = 0;
    for (int32_t id = 0; id < QMI_OPT_COUNT; id++) {
        const qmi_option *option = qmi_option_at(id);
        int64_t value = qmi_settings_get(settings, id, NULL, 0), name = (int64_t)strlen(option->name);
        if (option->scope != QMI_SCOPE_SAMPLING)
            continue;
        if (out) {
            memcpy(out + length, option->name, (size_t)name + 1);
            qmi_settings_get(settings, id, (char *)out + length + name + 1, value + 1);
        }
        length += name + 1 + value + 1;
    }
    return length;
}

#define RANDOM_BYTES 32

static int32_t write_extra(const qm_session *session, qmi_snapshot *snapshot)
{
    uint64_t random[4];
    snapshot->extra_size = RANDOM_BYTES + write_settings(&session->settings, NULL);
    snapshot->extra = qmi_new(&session->model->settings.alloc, (size_t)snapshot->extra_size, 1, "settings of a session");
    if (!snapshot->extra)
        return QM_ERROR_MEMORY;
    qmi_sampler_random(session->sampler, random);
    memcpy(snapshot->extra, random, RANDOM_BYTES);
    write_settings(&session->settings, snapshot->extra + RANDOM_BYTES);
    return QM_OK;
}

/* Settings and sampler as a file has them; both are started on success. */
static int32_t read_extra(const qm_session *session, const qmi_snapshot *snapshot, qmi_settings *settings, qmi_sampler **sampler)
{
    const char *at = (const char *)snapshot->extra + RANDOM_BYTES, *end = (const char *)snapshot->extra + snapshot->extra_size;
    uint64_t random[4];
    int32_t code = qmi_settings_copy(&session->settings, settings);
    if (code < 0)
        return code;
    if (snapshot->extra_size < RANDOM_BYTES || (at < end && end[-1] != 0))
        code = qmi_fail(QM_ERROR_FORMAT, "its settings are cut");
    while (code >= 0 && at < end) {
        const char *name = at, *value = name + strlen(name) + 1;
        if (value >= end) {
            code = qmi_fail(QM_ERROR_FORMAT, "its settings are cut");
            break;
        }
        code = qmi_option_find(name);
        if (code >= 0 && qmi_option_at(code)->scope != QMI_SCOPE_SAMPLING)
            code = qmi_fail(QM_ERROR_FORMAT, "its settings have option %s, which is none of a session's", name);
        if (code >= 0)
            code = qmi_settings_set(settings, code, value);
        at = value + strlen(value) + 1;
    }
    if (code >= 0)
        code = qmi_session_check_settings(session->model, settings);
    if (code >= 0)
        code = qmi_sampler_new(settings, session->model->plan.hparams.vocabulary, sampler);
    if (code < 0) {
        qmi_settings_end(settings);
        return code;
    }
    memcpy(random, snapshot->extra, RANDOM_BYTES);
    qmi_sampler_set_random(*sampler, random);
    return QM_OK;
}

/* ---- saving ---- */

typedef struct exchange {
    qm_session *session;
    qmi_snapshot *snapshot;
    qmi_settings *settings;
    qmi_sampler **sampler;
} exchange;

int32_t qmi_store_collect(const qmi_store_collected *what, int32_t most)
{
    const qm_session *session = what->session;
    qm_model *model = session->model;
    qmi_snapshot *snapshot = what->snapshot;
    int32_t code = qmi_page_table_share(&model->pages, &snapshot->pages, &session->pages, session->count);
    if (code < 0)
        return code;
    snapshot->count = session->count;
    snapshot->state = qmi_state_retain(session->state);
    return qmi_checkpoints_collect(&model->checkpoints, session->tokens, session->count, most, snapshot->checkpoints,
                                   &snapshot->checkpoint_count);
}

static int32_t collect(void *argument)
{
    return qmi_store_collect(argument, QMI_SNAPSHOT_CHECKPOINTS);
}

static int32_t save(qm_job *job)
{
    qm_session *session = job->sessions[0];
    qmi_snapshot_place place;
    qmi_snapshot snapshot = { 0 };
    int32_t code = qmi_store_place(job->model, &job->cancel, &place);
    if (code < 0)
        return code;
    code = qmi_engine_call(job->model, collect, &(qmi_store_collected){ session, &snapshot });
    snapshot.tokens = code >= 0 ? qmi_new(place.alloc, (size_t)session->count, sizeof *snapshot.tokens, "tokens") : NULL;
    if (code >= 0 && !snapshot.tokens)
        code = QM_ERROR_MEMORY;
    if (code >= 0) {
        memcpy(snapshot.tokens, session->tokens, (size_t)session->count * sizeof *snapshot.tokens);
        code = write_extra(session, &snapshot);
    }
    if (code >= 0)
        code = qmi_snapshot_save(&place, &snapshot, job->text);
    qmi_snapshot_free(&place, &snapshot);
    return code;
}

/* ---- restoring ---- */

/* The session's part changes place with the snapshot's. */
static int32_t adopt(void *argument)
{
    const exchange *e = argument;
    qm_session *session = e->session;
    qm_model *model = session->model;
    qmi_snapshot *snapshot = e->snapshot;
    qmi_page_table pages = snapshot->pages;
    qmi_state *state = snapshot->state;
    qmi_reuse_leave(session);
    qmi_session_cut(session, 0);
    snapshot->pages = session->pages;
    snapshot->state = NULL;
    session->pages = pages;
    session->state = state;
    memcpy(session->tokens, snapshot->tokens, (size_t)snapshot->count * sizeof *snapshot->tokens);
    qmi_session_set_length(session, snapshot->count);
    session->checkpointed = 0;
    for (int32_t i = 0; i < snapshot->checkpoint_count; i++) {
        const qmi_checkpoint *checkpoint = &snapshot->checkpoints[i];
        qmi_checkpoints_keep(&model->checkpoints, &checkpoint->pages, checkpoint->length, checkpoint->state, checkpoint->kind);
        session->checkpointed = checkpoint->length;
    }
    qmi_settings settings = session->settings;
    session->settings = *e->settings;
    *e->settings = settings;
    qmi_sampler *sampler = session->sampler;
    session->sampler = *e->sampler;
    *e->sampler = sampler;
    return QM_OK;
}

static int32_t restore(qm_job *job)
{
    qm_session *session = job->sessions[0];
    qmi_snapshot_place place;
    qmi_snapshot snapshot;
    qmi_settings settings;
    qmi_sampler *sampler = NULL;
    int32_t code = qmi_store_place(job->model, &job->cancel, &place);
    if (code >= 0)
        code = qmi_snapshot_load(&place, job->text, session->context, &snapshot);
    if (code < 0)
        return code;
    code = read_extra(session, &snapshot, &settings, &sampler);
    if (code < 0)
        qmi_fail_within(code, job->text);
    if (code >= 0) {
        qmi_engine_call(job->model, adopt, &(exchange){ session, &snapshot, &settings, &sampler });
        qmi_settings_end(&settings);
        qmi_sampler_free(&sampler);
    }
    qmi_snapshot_free(&place, &snapshot);
    return code;
}

void qmi_store_main(void *argument)
{
    qm_job *job = argument;
    int32_t code = job->kind == QMI_JOB_SAVE ? save(job) : restore(job);
    qmi_engine_unclaim(job->model, job->sessions, job->session_count);
    qmi_job_end(job, code);
}
