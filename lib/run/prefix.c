/* Prefixes between a model and their folder: see prefix.h. */
#include "run/prefix.h"

#include <string.h>
#include "memory/prefix_folder.h"
#include "run/reuse.h"
#include "run/session.h"
#include "run/store.h"

#define CHECKPOINTS 4 /* of a session that go along: the states of an answer's start and before it */

static qmi_prefix_folder folder_of(const qm_model *model)
{
    return (qmi_prefix_folder){ .path = qmi_settings_text(&model->settings, QMI_OPT_PREFIX_CACHE),
                                .limit = qmi_settings_int(&model->settings, QMI_OPT_PREFIX_CACHE_SIZE) };
}

bool qmi_prefix_is_on(const qm_model *model)
{
    return *qmi_settings_text(&model->settings, QMI_OPT_PREFIX_CACHE) && model->checkpoints.limit > 0;
}

/* ---- from the folder ---- */

typedef struct arrival {
    qm_job *job;
    qmi_snapshot *snapshot;
    int64_t held;
} arrival;

static int32_t ask_held(void *argument)
{
    arrival *a = argument;
    a->held = qmi_reuse_held(a->job);
    return QM_OK;
}

static int32_t take_in(void *argument)
{
    const arrival *a = argument;
    qmi_checkpoints *store = &a->job->model->checkpoints;
    const qmi_snapshot *s = a->snapshot;
    for (int32_t i = 0; i < s->checkpoint_count; i++)
        qmi_checkpoints_keep(store, &s->checkpoints[i].pages, s->checkpoints[i].length, s->checkpoints[i].state,
                             s->checkpoints[i].kind);
    qmi_checkpoints_keep(store, &s->pages, s->count, s->state, QMI_CHECKPOINT_LEFT);
    return QM_OK;
}

/* Nothing here is a failure of the job: what can't be had from the folder is computed. */
static void fetch(qm_job *job)
{
    qm_model *model = job->model;
    const qmi_prefix_folder folder = folder_of(model);
    qmi_snapshot_place place;
    qmi_snapshot snapshot;
    char path[QMI_OS_PATH_SIZE];
    int64_t length;
    arrival a = { .job = job, .snapshot = &snapshot };
    if (qmi_store_place(model, &job->cancel, &place) < 0)
        return;
    qmi_engine_call(model, ask_held, &a);
    if (!qmi_prefix_folder_find(&folder, &place, job->tokens, job->token_count, a.held + QMI_PREFIX_LEAST, path, &length))
        return;
    int32_t code = qmi_snapshot_load(&place, path, INT64_MAX, &snapshot);
    if (code >= 0) {
        qmi_os_file_use(path);
        qmi_engine_call(model, take_in, &a);
        qmi_snapshot_free(&place, &snapshot);
    } else if (code == QM_ERROR_FORMAT || code == QM_ERROR_UNSUPPORTED) {
        qmi_os_file_remove(path);
    }
    if (code < 0)
        qmi_log_line(&model->settings.log, QM_LOG_INFO, "prefix-cache: %s", qmi_error_text());
    else
        qmi_log_line(&model->settings.log, QM_LOG_INFO, "prefix-cache: %lld tokens from %s", (long long)length, path);
}

void qmi_prefix_fetch_main(void *argument)
{
    qm_job *job = argument;
    fetch(job);
    qmi_engine_submit(job->model, job);
}

/* ---- to the folder ---- */

/* The start up to the first turn's end, which other conversations share. */
static int32_t collect_first_turn(void *argument)
{
    const qmi_store_collected *c = argument;
    const qm_session *session = c->session;
    qm_model *model = session->model;
    const qmi_checkpoint *first = qmi_checkpoints_first_turn(&model->checkpoints, session->tokens, session->count,
                                                             QMI_PREFIX_LEAST);
    if (!first)
        return QM_OK;
    c->snapshot->count = first->length;
    c->snapshot->state = qmi_state_retain(first->state);
    return qmi_page_table_share(&model->pages, &c->snapshot->pages, &first->pages, first->length);
}

static int32_t collect_all(void *argument)
{
    const qmi_store_collected *c = argument;
    return qmi_store_collect(c, CHECKPOINTS);
}

static int32_t write(qm_session *session, const qmi_snapshot_place *place, int32_t (*collect)(void *))
{
    const qmi_prefix_folder folder = folder_of(session->model);
    qmi_snapshot snapshot = { 0 };
    int32_t code = qmi_engine_call(session->model, collect, &(qmi_store_collected){ session, &snapshot });
    if (code >= 0 && snapshot.count >= QMI_PREFIX_LEAST) {
        snapshot.tokens = qmi_new(place->alloc, (size_t)snapshot.count, sizeof *snapshot.tokens, "tokens");
        code = snapshot.tokens ? QM_OK : QM_ERROR_MEMORY;
        if (code >= 0) {
            memcpy(snapshot.tokens, session->tokens, (size_t)snapshot.count * sizeof *snapshot.tokens);
            code = qmi_prefix_folder_keep(&folder, place, &snapshot);
        }
    }
    qmi_snapshot_free(place, &snapshot);
    return code;
}

void qmi_prefix_keep(qm_session *session)
{
    const qm_model *model = session->model;
    const qmi_prefix_folder folder = folder_of(model);
    qmi_snapshot_place place;
    char path[QMI_OS_PATH_SIZE];
    int64_t length = 0;
    if (!qmi_prefix_is_on(model) || session->failure || session->count < QMI_PREFIX_LEAST)
        return;
    int32_t code = qmi_store_place(session->model, NULL, &place);
    if (code >= 0 && qmi_prefix_folder_find(&folder, &place, session->tokens, session->count, 1, path, &length))
        qmi_os_file_use(path);
    if (code >= 0 && session->count - length >= QMI_PREFIX_LEAST) {
        code = write(session, &place, collect_first_turn);
        if (code >= 0)
            code = write(session, &place, collect_all);
    }
    if (code < 0)
        qmi_log_line(&model->settings.log, QM_LOG_INFO, "prefix-cache: %s", qmi_error_text());
}
