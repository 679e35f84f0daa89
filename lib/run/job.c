/* What a job shows of itself, and its end: see job.h. */
#include "run/job.h"

#include <string.h>
#include "run/constrain.h"
#include "run/load.h"

#define QUEUE_TEXT 4096 /* bytes of text and runs that the queue has room for from the start, so that a reader who keeps up */
#define QUEUE_RUNS 64   /* never makes it grow */

/* ---- life ---- */

static int32_t start_queue(qm_job *job)
{
    qmi_queue *queue = &job->queue;
    int32_t code = qmi_reserve(&job->alloc, (void **)&queue->text, &queue->capacity, QUEUE_TEXT, 1, "generated text");
    if (code >= 0)
        code = qmi_reserve(&job->alloc, (void **)&queue->runs, &queue->run_capacity, QUEUE_RUNS, sizeof *queue->runs,
                           "generated text");
    return code;
}

void qmi_job_abandon(qm_job *job)
{
    const qmi_alloc alloc = job->alloc;
    qmi_os_thread_join(&job->thread);
    if (job->event.read_end >= 0)
        qmi_os_event_free(&job->event);
    qmi_os_condition_free(&job->changed);
    qmi_os_mutex_free(&job->mutex);
    qmi_budget_free(&job->budget);
    qmi_constrained_free(&job->constrained);
    if (job->has_settings)
        qmi_settings_end(&job->settings);
    qmi_delete(&alloc, job->queue.text);
    qmi_delete(&alloc, job->queue.runs);
    qmi_delete(&alloc, job->ids.data);
    qmi_logprobs_free(&job->logprobs, &alloc);
    qmi_delete(&alloc, job->sessions);
    qmi_delete(&alloc, job->tokens);
    qmi_delete(&alloc, job->text);
    qmi_delete(&alloc, job->literal.data);
    if (job->model)
        qmi_load_release(job->model);
    qmi_delete(&alloc, job);
}

int32_t qmi_job_new(qmi_job_kind kind, const qmi_alloc *alloc, bool watched, qm_job **out)
{
    *out = NULL;
    qm_job *job = qmi_new(alloc, 1, sizeof *job, "job");
    if (!job)
        return QM_ERROR_MEMORY;
    job->kind = kind;
    job->alloc = *alloc;
    job->state = QM_JOB_RUNNING;
    job->event = (qmi_os_event){ -1, -1 };
    job->submitted_ns = qmi_os_time_ns();
    int32_t code = qmi_os_mutex_new(&job->mutex);
    if (code >= 0)
        code = qmi_os_condition_new(&job->changed);
    if (code >= 0 && watched)
        code = qmi_os_event_new(&job->event);
    if (code >= 0 && kind == QMI_JOB_GENERATE)
        code = start_queue(job);
    if (code < 0) {
        qmi_job_abandon(job);
        return code;
    }
    *out = job;
    return QM_OK;
}

static int32_t wait_for_end(qm_job *job)
{
    qmi_os_mutex_lock(job->mutex);
    while (job->state == QM_JOB_RUNNING)
        qmi_os_condition_wait(job->changed, job->mutex, -1);
    int32_t state = job->state;
    qmi_os_mutex_unlock(job->mutex);
    return state;
}

void qmi_job_free(qm_job *job)
{
    qmi_job_cancel(job);
    wait_for_end(job);
    qmi_job_abandon(job);
}

int32_t qmi_job_finish_blocking(qm_job *job, int64_t *reused)
{
    int32_t code = wait_for_end(job);
    if (reused)
        *reused = job->reused;
    char message[QMI_ERROR_SIZE];
    memcpy(message, job->message, sizeof message);
    qmi_job_abandon(job);
    if (code < 0)
        qmi_error_restore(message);
    return code;
}

/* Something can be seen now, or nothing any more; mutex held. */
static void set_showing(qm_job *job, bool showing)
{
    if (job->showing != showing && job->event.read_end >= 0) {
        if (showing)
            qmi_os_event_set(&job->event);
        else
            qmi_os_event_clear(&job->event);
    }
    job->showing = showing;
    if (showing)
        qmi_os_condition_signal_all(job->changed);
}

void qmi_job_end(qm_job *job, int32_t code)
{
    qmi_os_mutex_lock(job->mutex);
    if (code < 0)
        qmi_error_copy(job->message);
    job->state = code < 0 ? code : QM_JOB_DONE;
    job->end_ns = qmi_os_time_ns();
    set_showing(job, true);
    qmi_os_condition_signal_all(job->changed);
    qmi_os_mutex_unlock(job->mutex);
}

/* ---- generated text ---- */

static int32_t piece_kind(qmi_answer_part part)
{
    return part == QMI_ANSWER_THOUGHT ? QM_PIECE_THOUGHT : part == QMI_ANSWER_TOOL ? QM_PIECE_TOOL : QM_PIECE_ANSWER;
}

void qmi_job_show(qm_job *job, qmi_answer_part part, const char *text, int64_t length)
{
    qmi_queue *queue = &job->queue;
    int32_t kind = piece_kind(part);
    bool fresh = queue->run_start == queue->run_end || queue->runs[queue->run_end - 1].kind != kind;
    if (length <= 0)
        return;
    if (qmi_reserve(&job->alloc, (void **)&queue->text, &queue->capacity, queue->end + (size_t)length, 1, "generated text") < 0 ||
        qmi_reserve(&job->alloc, (void **)&queue->runs, &queue->run_capacity, queue->run_end + fresh, sizeof *queue->runs,
                    "generated text") < 0) {
        job->queue_failed = true;
        return;
    }
    if (fresh)
        queue->runs[queue->run_end++] = (qmi_run_of_text){ .kind = kind };
    memcpy(queue->text + queue->end, text, (size_t)length);
    queue->end += (size_t)length;
    queue->runs[queue->run_end - 1].length += (size_t)length;
    set_showing(job, true);
}

/* The longest start of text[0, length) that is at most `most` bytes and whole code points. */
static size_t whole_code_points(const char *text, size_t length, size_t most)
{
    if (length <= most)
        return length;
    while (most > 0 && ((unsigned char)text[most] & 0xC0) == 0x80)
        most--;
    return most;
}

int64_t qmi_job_read(qm_job *job, char *text, int64_t size, int32_t *kind)
{
    qmi_queue *queue = &job->queue;
    size_t length = 0;
    *kind = QM_PIECE_NONE;
    qmi_os_mutex_lock(job->mutex);
    if (queue->run_start < queue->run_end) {
        qmi_run_of_text *run = &queue->runs[queue->run_start];
        length = whole_code_points(queue->text + queue->start, run->length, (size_t)size - 1);
        memcpy(text, queue->text + queue->start, length);
        *kind = run->kind;
        run->length -= length;
        queue->start += length;
        queue->run_start += run->length == 0;
    }
    if (queue->run_start == queue->run_end) {
        queue->start = queue->end = queue->run_start = queue->run_end = 0;
        set_showing(job, job->state != QM_JOB_RUNNING);
    }
    qmi_os_mutex_unlock(job->mutex);
    text[length] = 0;
    return (int64_t)length;
}

/* ---- questions ---- */

int32_t qmi_job_poll(const qm_job *job)
{
    qmi_os_mutex_lock(job->mutex);
    int32_t state = job->state;
    if (state < 0)
        qmi_error_restore(job->message);
    qmi_os_mutex_unlock(job->mutex);
    return state;
}

int32_t qmi_job_wait(qm_job *job, int64_t timeout_ms)
{
    int64_t now = qmi_os_time_ns();
    int64_t until = timeout_ms < 0 || timeout_ms > (INT64_MAX - now) / 1000000 ? INT64_MAX : now + timeout_ms * 1000000;
    qmi_os_mutex_lock(job->mutex);
    while (!job->showing && now < until) {
        qmi_os_condition_wait(job->changed, job->mutex, until == INT64_MAX ? -1 : until - now);
        now = qmi_os_time_ns();
    }
    qmi_os_mutex_unlock(job->mutex);
    return qmi_job_poll(job);
}

void qmi_job_cancel(qm_job *job)
{
    __atomic_store_n(&job->cancel, 1, __ATOMIC_SEQ_CST);
    qmi_job_interrupt(job);
    if (job->kind != QMI_JOB_LOAD && job->kind != QMI_JOB_FOLLOW && job->kind != QMI_JOB_TOKENIZE)
        qmi_engine_look(job->model);
}

void qmi_job_end_thinking(qm_job *job)
{
    __atomic_store_n(&job->end_thinking, 1, __ATOMIC_RELEASE);
}

int64_t qmi_job_text(const qm_job *job, char *text, int64_t size)
{
    int64_t length = 0;
    const char *whole = "";
    qmi_os_mutex_lock(job->mutex);
    if (job->budget)
        whole = qmi_budget_text(job->budget, &length);
    if (size > 0) {
        size_t fits = (size_t)(length < size ? length : size - 1);
        memcpy(text, whole, fits);
        text[fits] = 0;
    }
    qmi_os_mutex_unlock(job->mutex);
    return length;
}

int64_t qmi_job_tokens(const qm_job *job, int32_t *tokens, int64_t capacity)
{
    qmi_os_mutex_lock(job->mutex);
    int64_t count = job->kind == QMI_JOB_TOKENIZE && job->state != QM_JOB_DONE ? 0 : (int64_t)job->ids.count;
    int64_t fits = count < capacity ? count : capacity;
    if (fits > 0)
        memcpy(tokens, job->ids.data, (size_t)fits * sizeof *tokens);
    qmi_os_mutex_unlock(job->mutex);
    return count;
}

int64_t qmi_job_logprobs(const qm_job *job, int64_t first, const qmi_logprobs_out *out, int64_t capacity)
{
    qmi_os_mutex_lock(job->mutex);
    int64_t count = qmi_logprobs_copy(&job->logprobs, first, out, capacity);
    qmi_os_mutex_unlock(job->mutex);
    return count;
}

const char *qmi_job_finish_name(const qm_job *job)
{
    qmi_os_mutex_lock(job->mutex);
    const char *name = qmi_finish_name(job->state == QM_JOB_RUNNING ? QMI_FINISH_NONE : job->finish);
    qmi_os_mutex_unlock(job->mutex);
    return name;
}

static double seconds_between(int64_t from_ns, int64_t to_ns)
{
    return from_ns && to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-9 : 0;
}

int32_t qmi_job_number(const qm_job *job, const char *name, double *value)
{
    qmi_os_mutex_lock(job->mutex);
    int64_t end_ns = job->end_ns ? job->end_ns : qmi_os_time_ns();
    const struct {
        const char *name;
        double value;
    } numbers[] = {
        { "tokens_total", (double)job->token_count },
        { "tokens_prefilled", (double)job->prefilled },
        { "tokens_reused", (double)job->reused },
        { "tokens_dropped", (double)job->dropped },
        { "tokens_generated", (double)(job->kind == QMI_JOB_GENERATE ? job->ids.count : 0) },
        { "tokens_thought", (double)job->thought },
        { "seconds_prefill", seconds_between(job->prefill_ns, job->decode_ns ? job->decode_ns : end_ns) },
        { "seconds_decode", seconds_between(job->decode_ns, end_ns) },
        { "seconds_first", seconds_between(job->submitted_ns, job->first_ns) },
    };
    int32_t code = QM_ERROR_ARGUMENT;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers && code < 0; i++)
        if (strcmp(name, numbers[i].name) == 0) {
            *value = numbers[i].value;
            code = QM_OK;
        }
    qmi_os_mutex_unlock(job->mutex);
    if (code < 0)
        return qmi_fail(code, "a job has no number called \"%s\"; see qm_job_number in qwenmoe.h", name);
    return code;
}

int32_t qmi_job_take_model(qm_job *job, qm_model **out)
{
    qmi_os_mutex_lock(job->mutex);
    bool there = job->kind == QMI_JOB_LOAD && job->state == QM_JOB_DONE && job->model;
    if (there) {
        *out = job->model;
        job->model = NULL;
    }
    qmi_os_mutex_unlock(job->mutex);
    const char *reason = job->kind == QMI_JOB_LOAD ? "it still runs, has failed, or the model was taken" : "it does not load one";
    return there ? QM_OK : qmi_fail(QM_ERROR_STATE, "the job has no model: %s", reason);
}
