/* The engine's thread: who computes next. See engine.h. */
#include "run/engine.h"

#include "run/generate.h"
#include "run/job.h"
#include "run/reuse.h"

/* Rows of a prompt computed in one turn while other sessions decode: each of their tokens waits for such a chunk, so it is
 * small; and large enough that weights are still read for many rows at once. */
#define SHARED_CHUNK 64

static _Thread_local const qm_model *worker_of; /* whose engine's thread this is, or is in the place of */

/* ---- jobs ---- */

static void unlink_job(qmi_engine *engine, qm_job *job)
{
    qm_job **link = &engine->jobs;
    while (*link && *link != job)
        link = &(*link)->next;
    if (*link)
        *link = job->next;
    job->next = NULL;
}

static void append_job(qmi_engine *engine, qm_job *job)
{
    qm_job **link = &engine->jobs;
    while (*link)
        link = &(*link)->next;
    *link = job;
}

static void release_sessions(qmi_engine *engine, qm_session *const *sessions, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        sessions[i]->busy = false;
        sessions[i]->job = NULL;
    }
    qmi_os_condition_signal_all(engine->answered);
}

/* The sessions are idle before the job is seen to have ended. */
static void end_job(qm_model *model, qm_job *job, int32_t code)
{
    qmi_engine *engine = &model->engine;
    if (job->kind == QMI_JOB_GENERATE)
        code = qmi_generate_end(job, code);
    qmi_os_mutex_lock(engine->mutex);
    unlink_job(engine, job);
    release_sessions(engine, job->sessions, job->session_count);
    qmi_os_mutex_unlock(engine->mutex);
    qmi_job_end(job, code);
}

/* To the end of the queue: it has just had its turn. */
static void requeue(qmi_engine *engine, qm_job *job)
{
    qmi_os_mutex_lock(engine->mutex);
    unlink_job(engine, job);
    append_job(engine, job);
    qmi_os_mutex_unlock(engine->mutex);
}

static int32_t fail_cancelled(void)
{
    return qmi_fail(QM_ERROR_CANCELLED, "the job was cancelled");
}

/* The next job after `after` (NULL: from the start) that decodes, or does not, and has the highest priority of all. */
static qm_job *next_job(qmi_engine *engine, const qm_job *after, bool decoding)
{
    qm_job *found = NULL;
    qmi_os_mutex_lock(engine->mutex);
    int32_t highest = INT32_MIN;
    for (const qm_job *job = engine->jobs; job; job = job->next)
        highest = job->priority > highest ? job->priority : highest;
    for (qm_job *job = after ? after->next : engine->jobs; job && !found; job = job->next)
        if (job->priority == highest && job->decoding == decoding)
            found = job;
    qmi_os_mutex_unlock(engine->mutex);
    return found;
}

static void end_cancelled(qm_model *model)
{
    qmi_engine *engine = &model->engine;
    for (;;) {
        qmi_os_mutex_lock(engine->mutex);
        qm_job *job = engine->jobs;
        while (job && !qmi_job_cancelled(job))
            job = job->next;
        qmi_os_mutex_unlock(engine->mutex);
        if (!job)
            return;
        end_job(model, job, fail_cancelled());
    }
}

/* ---- one token of each of several sessions ---- */

typedef enum added { ADDED, ENDED, NO_ROOM } added; /* the job takes part; it does not, or has ended; it has to wait */

/* Adds the sessions of a decode job to the step, as far as there is room. */
static added add_decode(qm_model *model, qm_job *job)
{
    int32_t code = 1, index = job->session_done;
    while (index < job->session_count && code > 0) {
        code = qmi_step_add(model, job, job->sessions[index], job->tokens + index, 1);
        index += code > 0;
    }
    if (code >= 0)
        return index > job->session_done ? ADDED : NO_ROOM;
    while (index-- > job->session_done)
        qmi_step_take_back(model, &model->engine.step);
    end_job(model, job, code);
    return ENDED;
}

/* A generate job whose context is full goes on after its oldest turns were dropped, or ends. */
static added make_room(qm_model *model, qm_job *job)
{
    int32_t token, code = job->sessions[0]->drops ? qmi_reuse_overflow(job) : 0;
    if (code > 0)
        job->decoding = false;
    else
        end_job(model, job, code < 0 ? code : qmi_generate_next(job, &token));
    return ENDED;
}

/* Adds the session of a generate job, with its next token. Memory is made sure of first: a token that was chosen is part of
 * the answer. */
static added add_generate(qm_model *model, qm_job *job)
{
    qmi_step *step = &model->engine.step;
    qm_session *session = job->sessions[0];
    int32_t token;
    if (session->count >= session->context)
        return make_room(model, job);
    int32_t code = qmi_step_add(model, job, session, NULL, 1);
    if (code == 0)
        return NO_ROOM;
    bool ready = code > 0;
    if (ready)
        code = qmi_generate_next(job, &token);
    if (code > 0) {
        qmi_step_set(step, token);
        return ADDED;
    }
    if (ready)
        qmi_step_take_back(model, step);
    end_job(model, job, code);
    return ENDED;
}

static void finish_decoding(qm_model *model, qm_job *job, int32_t sessions, int32_t code)
{
    job->session_done += job->kind == QMI_JOB_DECODE ? sessions : 0;
    if (code < 0 || job->finish != QMI_FINISH_NONE || (job->kind == QMI_JOB_DECODE && job->session_done == job->session_count))
        end_job(model, job, code);
    else
        requeue(&model->engine, job);
}

static bool decode_step(qm_model *model)
{
    qmi_engine *engine = &model->engine;
    qmi_step *step = &engine->step;
    added outcome = ADDED;
    qmi_step_start(step, false);
    for (qm_job *job = next_job(engine, NULL, true), *after; job && outcome != NO_ROOM; job = after) {
        after = next_job(engine, job, true);
        outcome = job->kind == QMI_JOB_DECODE ? add_decode(model, job) : add_generate(model, job);
    }
    if (step->part_count == 0)
        return false;
    int32_t code = qmi_step_run(model, step, NULL);
    for (int32_t i = 0, end; i < step->part_count; i = end) {
        qm_job *job = step->parts[i].job;
        for (end = i; end < step->part_count && step->parts[end].job == job; end++)
            if (code >= 0)
                qmi_reuse_decoded(step->parts[end].session);
        finish_decoding(model, job, end - i, code);
    }
    return true;
}

/* ---- a chunk of one session's prompt ---- */

static int32_t report_progress(qm_job *job)
{
    const qmi_settings *settings = &job->sessions[0]->settings;
    qmi_os_mutex_lock(job->mutex);
    job->prefilled = job->token_done;
    qmi_os_mutex_unlock(job->mutex);
    if (settings->progress && job->token_count > 0 &&
        settings->progress("prefill", job->token_done, job->token_count, settings->progress_user) != 0)
        return qmi_fail(QM_ERROR_CANCELLED, "the progress callback cancelled the job");
    return QM_OK;
}

/* Tokens of the next chunk, such that the wanted rows in it and its last row are no more than one batch can give. */
static int32_t chunk_size(const qmi_step *step, qm_job *job, bool shared)
{
    int64_t limit = job->model->plan.chunk;
    if ((shared || job->token_done < job->small_until) && limit > SHARED_CHUNK)
        limit = SHARED_CHUNK;
    if (limit == step->row_limit && qmi_step_goes_back(job->sessions[0], job->token_done == job->token_count))
        limit--;
    int64_t size = qmi_reuse_chunk(job, limit);
    if (job->row_done + step->output_limit <= job->row_count) {
        int64_t end = job->rows[job->row_done + step->output_limit - 1] + 1 - job->token_done;
        size = end < size ? end : size;
    }
    return (int32_t)size;
}

/* Jobs of higher priority stop a chunk: see qmi_engine_submit. What was computed of it is lost, so the same tokens come in small
 * chunks then, and the first of these is not stopped: however often others come, the prompt gets on. */
static void let_overtake(qmi_engine *engine, qm_job *job, int32_t size)
{
    qmi_os_mutex_lock(engine->mutex);
    qmi_job_clear_interrupt(job);
    engine->stoppable = size > 0 && !job->stopped ? job : NULL;
    qmi_os_mutex_unlock(engine->mutex);
}

static void end_overtaking(qmi_engine *engine, qm_job *job, int32_t size, bool stopped)
{
    qmi_os_mutex_lock(engine->mutex);
    engine->stoppable = NULL;
    qmi_os_mutex_unlock(engine->mutex);
    job->stopped = stopped;
    if (stopped && job->token_done + size > job->small_until)
        job->small_until = job->token_done + size;
}

static int32_t compute_chunk(qm_model *model, qm_job *job, bool shared)
{
    qmi_step *step = &model->engine.step;
    int64_t vocabulary = model->plan.hparams.vocabulary;
    int64_t row = job->row_done;
    int32_t size = chunk_size(step, job, shared);
    qmi_step_start(step, true);
    int32_t code = qmi_step_add(model, job, job->sessions[0], job->tokens + job->token_done, size);
    if (code < 0)
        return code;
    for (; row < job->row_count && job->rows[row] < job->token_done + size; row++)
        qmi_step_want(step, (int32_t)(job->rows[row] - job->token_done), job->logits + row * vocabulary);
    let_overtake(&model->engine, job, size);
    code = qmi_step_run(model, step, &job->interrupt);
    bool stopped = code == QM_ERROR_CANCELLED && !qmi_job_cancelled(job);
    end_overtaking(&model->engine, job, size, stopped);
    if (stopped)
        return QM_OK;
    if (code < 0)
        return code == QM_ERROR_CANCELLED ? fail_cancelled() : code;
    job->row_done = row;
    job->token_done += size;
    qmi_reuse_prefilled(job);
    return report_progress(job);
}

/* All tokens are there: goes on to decode, or ends. */
static void finish_prefill(qm_model *model, qm_job *job)
{
    if (job->kind == QMI_JOB_GENERATE) {
        qmi_os_mutex_lock(job->mutex);
        if (job->decode_ns == 0) /* it may have prefilled before: see make_room */
            job->decode_ns = qmi_os_time_ns();
        qmi_os_mutex_unlock(job->mutex);
        job->decoding = true;
        return;
    }
    int32_t code = QM_OK;
    if (job->kind == QMI_JOB_DRAFT)
        code = qmi_step_draft(model, job->sessions[0], job->draft_token, job->logits);
    end_job(model, job, code);
}

static int32_t drop_oldest(qm_job *job)
{
    const qm_session *session = job->sessions[0];
    int32_t code = qmi_reuse_overflow(job);
    job->overflows = false;
    return code != 0 ? code
                     : qmi_fail(QM_ERROR_CONTEXT, "the context of %lld tokens is full, and there is no older turn to drop: %lld "
                                "tokens are held, and %lld more do not fit; set option context higher",
                                (long long)session->context, (long long)session->count, (long long)job->token_count);
}

static bool prefill_step(qm_model *model, bool shared)
{
    qmi_engine *engine = &model->engine;
    qm_job *job = next_job(engine, NULL, false);
    if (!job)
        return false;
    qm_session *session = job->sessions[0];
    int32_t code = QM_OK;
    if (job->prefill_ns == 0) {
        qmi_os_mutex_lock(job->mutex);
        job->prefill_ns = qmi_os_time_ns();
        qmi_os_mutex_unlock(job->mutex);
    }
    if (job->overflows)
        code = drop_oldest(job);
    if (code >= 0 && job->replaces)
        code = qmi_reuse_begin(job);
    if (code >= 0 && (job->token_done < job->token_count || qmi_step_goes_back(session, true)))
        code = compute_chunk(model, job, shared);
    if (code < 0)
        end_job(model, job, code);
    else if (job->token_done == job->token_count)
        finish_prefill(model, job);
    else
        requeue(engine, job);
    return true;
}

/* ---- the thread ---- */

static void answer_calls(qmi_engine *engine)
{
    qmi_os_mutex_lock(engine->mutex);
    while (engine->calls) {
        qmi_call *call = engine->calls;
        engine->calls = call->next;
        qmi_os_mutex_unlock(engine->mutex);
        call->code = call->function(call->argument);
        if (call->code < 0)
            qmi_error_copy(call->message);
        qmi_os_mutex_lock(engine->mutex);
        call->answered = true;
        qmi_os_condition_signal_all(engine->answered);
    }
    qmi_os_mutex_unlock(engine->mutex);
}

/* Sleeps until there is work; false: there will be none any more. */
static bool await_work(qmi_engine *engine)
{
    qmi_os_mutex_lock(engine->mutex);
    engine->sleeps = true;
    while (engine->visited || (!engine->jobs && !engine->calls && !engine->stopping))
        qmi_os_condition_wait(engine->wake, engine->mutex, -1);
    engine->sleeps = false;
    bool more = engine->jobs || engine->calls;
    qmi_os_mutex_unlock(engine->mutex);
    return more;
}

static void engine_main(void *argument)
{
    qm_model *model = argument;
    worker_of = model;
    while (await_work(&model->engine)) {
        answer_calls(&model->engine);
        end_cancelled(model);
        bool shared = decode_step(model);
        prefill_step(model, shared);
    }
}

int32_t qmi_engine_start(qm_model *model)
{
    qmi_engine *engine = &model->engine;
    int32_t code = qmi_step_new(model);
    if (code >= 0)
        code = qmi_os_mutex_new(&engine->mutex);
    if (code >= 0)
        code = qmi_os_condition_new(&engine->wake);
    if (code >= 0)
        code = qmi_os_condition_new(&engine->answered);
    if (code >= 0)
        code = qmi_os_thread_start(&engine->thread, engine_main, model, "qwenmoe");
    return code;
}

void qmi_engine_stop(qm_model *model)
{
    qmi_engine *engine = &model->engine;
    if (engine->thread) {
        qmi_os_mutex_lock(engine->mutex);
        engine->stopping = true;
        qmi_os_condition_signal_all(engine->wake);
        qmi_os_mutex_unlock(engine->mutex);
        qmi_os_thread_join(&engine->thread);
    }
    qmi_step_free(model);
    qmi_os_condition_free(&engine->answered);
    qmi_os_condition_free(&engine->wake);
    qmi_os_mutex_free(&engine->mutex);
}

/* The call is done by this thread in the place of the one that sleeps; the mutex is locked, and unlocked at the end. */
static int32_t visit(qm_model *model, int32_t (*function)(void *), void *argument)
{
    qmi_engine *engine = &model->engine;
    const qm_model *other = worker_of; /* a callback of another model's thread may have called */
    engine->visited = true;
    qmi_os_mutex_unlock(engine->mutex);
    worker_of = model;
    int32_t code = function(argument);
    worker_of = other;
    qmi_os_mutex_lock(engine->mutex);
    engine->visited = false;
    if (engine->jobs || engine->calls || engine->stopping) /* whoever came meanwhile found it visited */
        qmi_os_condition_signal_all(engine->wake);
    qmi_os_mutex_unlock(engine->mutex);
    return code;
}

int32_t qmi_engine_call(qm_model *model, int32_t (*function)(void *), void *argument)
{
    qmi_engine *engine = &model->engine;
    if (!engine->thread || worker_of == model)
        return function(argument);
    qmi_call call = { .function = function, .argument = argument };
    qmi_os_mutex_lock(engine->mutex);
    if (engine->sleeps && !engine->visited && !engine->jobs && !engine->calls)
        return visit(model, function, argument);
    qmi_call **link = &engine->calls;
    while (*link)
        link = &(*link)->next;
    *link = &call;
    qmi_os_condition_signal_all(engine->wake);
    while (!call.answered)
        qmi_os_condition_wait(engine->answered, engine->mutex, -1);
    qmi_os_mutex_unlock(engine->mutex);
    if (call.code < 0)
        qmi_error_restore(call.message);
    return call.code;
}

int32_t qmi_engine_claim(qm_model *model, qm_session *const *sessions, int32_t count, qm_job *job)
{
    qmi_engine *engine = &model->engine;
    int32_t code = QM_OK;
    qmi_os_mutex_lock(engine->mutex);
    for (int32_t i = 0; i < count && code >= 0; i++) {
        if (!sessions[i]->busy) {
            sessions[i]->busy = true;
            sessions[i]->job = job;
            continue;
        }
        if (job && sessions[i]->job == job)
            code = qmi_fail(QM_ERROR_ARGUMENT, "session %d of %d is given twice; each may appear once", i, count);
        else
            code = qmi_fail(QM_ERROR_BUSY, "%s has a job under way; wait for it, or cancel it first",
                            count == 1 ? "the session" : "one of the sessions");
        release_sessions(engine, sessions, i);
    }
    qmi_os_mutex_unlock(engine->mutex);
    return code;
}

void qmi_engine_unclaim(qm_model *model, qm_session *const *sessions, int32_t count)
{
    qmi_os_mutex_lock(model->engine.mutex);
    release_sessions(&model->engine, sessions, count);
    qmi_os_mutex_unlock(model->engine.mutex);
}

void qmi_engine_submit(qm_model *model, qm_job *job)
{
    qmi_os_mutex_lock(model->engine.mutex);
    append_job(&model->engine, job);
    if (model->engine.stoppable && model->engine.stoppable->priority < job->priority)
        qmi_job_interrupt(model->engine.stoppable);
    qmi_os_condition_signal_all(model->engine.wake);
    qmi_os_mutex_unlock(model->engine.mutex);
}

void qmi_engine_look(qm_model *model)
{
    qmi_os_mutex_lock(model->engine.mutex);
    qmi_os_condition_signal_all(model->engine.wake);
    qmi_os_mutex_unlock(model->engine.mutex);
}
