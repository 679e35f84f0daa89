/* The queue and the one thread that computes; see scheduler.h. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "task.h"
#include "text_buffer.h"

/* ---- the thread: ending ---- */

static void unlink_task(scheduler *s, task *t)
{
    task **link = &s->tasks;
    while (*link != t)
        link = &(*link)->next;
    *link = t->next;
}

/* The answer has ended as its outcome says. */
static void show_end(scheduler *s, task *t, int32_t number)
{
    answer *a = &t->answers[number];
    task_event *event = server_allocate(1, sizeof *event);
    event->answer = number;
    event->kind = QM_PIECE_NONE;
    a->stage = STAGE_ENDED;
    pthread_mutex_lock(&s->mutex);
    t->ended_count++;
    s->counts.answer_tokens += a->outcome.tokens;
    s->counts.answer_seconds += a->outcome.seconds;
    s->counts.failed += a->outcome.code < 0 && a->outcome.code != QM_ERROR_CANCELLED;
    s->counts.timed_out += a->timed_out;
    task_push_event(t, event);
    pthread_mutex_unlock(&s->mutex);
}

static void set_outcome(answer *a, const char *finish, int32_t code, const char *message)
{
    a->outcome.finish = finish;
    a->outcome.code = code;
    snprintf(a->outcome.message, sizeof a->outcome.message, "%s", message);
}

/* All answers that have not begun end with this. */
static void end_unbegun(scheduler *s, task *t, const char *finish, int32_t code, const char *message)
{
    for (int32_t i = 0; i < t->answer_count || i == 0; i++) {
        if (t->answers[i].stage == STAGE_ENDED || t->answers[i].stage == STAGE_ANSWER)
            continue;
        set_outcome(&t->answers[i], finish, code, message);
        show_end(s, t, i);
    }
}

static int32_t places(const task *t)
{
    return t->answer_count ? t->answer_count : 1;
}

/* Removes a task whose answers have all ended. */
static void finish_task(scheduler *s, task *t)
{
    pthread_mutex_lock(&s->mutex);
    if (t->running) {
        s->computing -= places(t);
        s->memory_short = 0;
        double seconds = (double)(scheduler_now_ms() - t->started_ms) / 1000;
        s->task_seconds = s->task_seconds > 0 ? s->task_seconds * 0.9 + seconds * 0.1 : seconds;
    } else {
        s->waiting--;
    }
    unlink_task(s, t);
    t->ended = 1;
    pthread_cond_signal(&t->changed);
    task_drop_reference(t);
    pthread_mutex_unlock(&s->mutex);
}

static double number_of(const qm_job *job, const char *name)
{
    double value = 0;
    return qm_job_number(job, name, &value) < 0 ? 0 : value;
}

static void free_work(answer *a)
{
    qm_job_free(&a->job);
    qm_session_free(&a->session);
}

/* ---- the thread: beginning ---- */

static void begin_answer(scheduler *s, task *t, int32_t number)
{
    answer *a = &t->answers[number];
    if (qm_submit_generate(a->session, NULL, 0, &a->job) < 0) {
        set_outcome(a, "error", QM_ERROR_STATE, qm_error_message());
        qm_session_free(&a->session);
        show_end(s, t, number);
        return;
    }
    a->stage = STAGE_ANSWER;
    a->until_ms = t->decode_ms ? scheduler_now_ms() + t->decode_ms : INT64_MAX;
}

static int32_t set_seed(qm_session *session, int64_t seed)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)seed);
    return qm_session_set(session, "seed", text);
}

/* The prompt is there: each answer goes on from it with a session of its own. */
static void begin_answers(scheduler *s, task *t)
{
    answer *first = &t->answers[0];
    for (int32_t i = 1; i < t->answer_count; i++) {
        answer *a = &t->answers[i];
        int32_t code = qm_session_fork(first->session, &a->session);
        if (code >= 0)
            code = set_seed(a->session, t->seed < 0 ? -1 : t->seed + i);
        if (code < 0) {
            set_outcome(a, "error", code, qm_error_message());
            qm_session_free(&a->session);
            show_end(s, t, i);
        }
    }
    for (int32_t i = 0; i < t->answer_count; i++)
        if (t->answers[i].session)
            begin_answer(s, t, i);
    if (t->answer_count == 0) {
        set_outcome(first, "length", QM_JOB_DONE, "");
        qm_session_free(&first->session);
        show_end(s, t, 0);
    }
}

/* Gives a task that the memory does not suffice for now its place in the queue again. False: it is the only one. */
static int wait_for_memory(scheduler *s, task *t)
{
    pthread_mutex_lock(&s->mutex);
    int others = s->computing > places(t);
    if (others) {
        t->running = 0;
        s->computing -= places(t);
        s->waiting++;
        s->memory_short = 1;
        t->end_by_ms = t->submitted_ms + s->limits.queue_ms;
    }
    pthread_mutex_unlock(&s->mutex);
    return others;
}

static void fail_prompt(scheduler *s, task *t, int32_t code)
{
    answer *a = &t->answers[0];
    char message[512];
    snprintf(message, sizeof message, "%s", qm_error_message());
    free_work(a);
    a->stage = STAGE_NONE;
    if ((code == QM_ERROR_MEMORY || code == QM_ERROR_FIT) && wait_for_memory(s, t))
        return;
    const char *finish = code == QM_ERROR_CANCELLED ? a->timed_out ? "time" : "cancelled" : "error";
    end_unbegun(s, t, finish, code, message);
}

static void begin_task(scheduler *s, task *t)
{
    answer *a = &t->answers[0];
    int32_t code = qm_session_new(s->model, t->options, &a->session);
    if (code >= 0 && t->seed >= 0)
        code = set_seed(a->session, t->seed);
    if (code >= 0)
        code = qm_submit_sync(a->session, t->tokens, t->count, &a->job);
    if (code < 0) {
        fail_prompt(s, t, code);
        return;
    }
    a->stage = STAGE_PROMPT;
    a->until_ms = INT64_MAX;
}

static task *next_to_begin(scheduler *s)
{
    task *found = NULL;
    pthread_mutex_lock(&s->mutex);
    for (task *t = s->tasks; t && !found; t = t->next) {
        if (t->running || t->cancelled)
            continue;
        /* An urgent one needs no place of its own when all are taken: it is small, and the library computes it first. One that is
         * wider than all places goes alone. */
        int32_t limit = s->limits.parallel + (t->urgent ? 1 : 0);
        int fits = s->computing + places(t) <= limit || s->computing == 0;
        if (!fits || s->memory_short || s->stopping)
            break;
        found = t;
    }
    if (found) {
        found->running = 1;
        s->waiting--;
        s->computing += places(found);
        found->started_ms = scheduler_now_ms();
        found->end_by_ms = found->started_ms + s->limits.time_ms;
        found->numbers.queue_seconds = (double)(found->started_ms - found->submitted_ms) / 1000;
        s->counts.queue_seconds += found->numbers.queue_seconds;
    }
    pthread_mutex_unlock(&s->mutex);
    return found;
}

/* ---- the thread: text ---- */

/* Log probabilities of the tokens since the last event, into this one. */
static void take_tokens(task *t, answer *a, task_event *event)
{
    enum { AT_ONCE = 32 };
    int32_t ids[AT_ONCE * 64], *all;
    float own[AT_ONCE], values[AT_ONCE * 64];
    int64_t there = qm_job_logprobs(a->job, a->tokens_shown, NULL, NULL, NULL, 0);
    if (there <= 0)
        return;
    int64_t total = a->tokens_shown + there;
    all = server_allocate((size_t)total, sizeof *all);
    qm_job_tokens(a->job, all, total);
    event->tokens = server_allocate((size_t)there, sizeof *event->tokens);
    while (event->token_count < there) {
        int64_t most = there - event->token_count < AT_ONCE ? there - event->token_count : AT_ONCE;
        qm_job_logprobs(a->job, a->tokens_shown, own, ids, values, most);
        for (int64_t i = 0; i < most; i++) {
            task_token *token = &event->tokens[event->token_count++];
            token->id = all[a->tokens_shown + i];
            token->logprob = own[i];
            token->top_count = t->logprobs;
            for (int32_t j = 0; j < t->logprobs; j++) {
                token->top_ids[j] = ids[i * t->logprobs + j];
                token->top_logprobs[j] = values[i * t->logprobs + j];
            }
        }
        a->tokens_shown += most;
    }
    free(all);
}

static void move_text(scheduler *s, task *t, int32_t number)
{
    answer *a = &t->answers[number];
    char piece[4096];
    int32_t kind;
    for (int64_t length; (length = qm_job_read(a->job, piece, sizeof piece, &kind)) > 0;) {
        task_event *event = server_allocate(1, sizeof *event);
        event->answer = number;
        event->kind = kind;
        event->text = server_copy(piece, (size_t)length);
        event->length = length;
        if (t->logprobs >= 0)
            take_tokens(t, a, event);
        pthread_mutex_lock(&s->mutex);
        task_push_event(t, event);
        pthread_mutex_unlock(&s->mutex);
    }
}

static void end_prompt(scheduler *s, task *t, int32_t state)
{
    answer *a = &t->answers[0];
    if (state < 0) {
        fail_prompt(s, t, state);
        return;
    }
    pthread_mutex_lock(&s->mutex);
    t->numbers.reused = (int64_t)number_of(a->job, "tokens_reused");
    t->numbers.prompt_seconds = number_of(a->job, "seconds_prefill");
    s->counts.prompt_tokens += t->count;
    s->counts.reused_tokens += t->numbers.reused;
    s->counts.prompt_seconds += t->numbers.prompt_seconds;
    pthread_mutex_unlock(&s->mutex);
    qm_job_free(&a->job);
    begin_answers(s, t);
}

static void end_answer(scheduler *s, task *t, int32_t number, int32_t state)
{
    answer *a = &t->answers[number];
    const char *message = state < 0 ? qm_error_message() : "";
    set_outcome(a, a->timed_out ? "time" : qm_job_finish(a->job), a->timed_out ? QM_JOB_DONE : state, message);
    a->outcome.tokens = (int64_t)number_of(a->job, "tokens_generated");
    a->outcome.thought_tokens = (int64_t)number_of(a->job, "tokens_thought");
    a->outcome.seconds = number_of(a->job, "seconds_decode");
    if (t->logprobs >= 0) {
        task_event *event = server_allocate(1, sizeof *event);
        event->answer = number;
        event->kind = QM_PIECE_ANSWER;
        event->text = server_copy("", 0);
        take_tokens(t, a, event);
        pthread_mutex_lock(&s->mutex);
        task_push_event(t, event);
        pthread_mutex_unlock(&s->mutex);
    }
    free_work(a);
    show_end(s, t, number);
}

/* Text, ends and limits of one task's answers. */
static void serve_task(scheduler *s, task *t, int cancelled, int64_t now)
{
    for (int32_t i = 0; i < places(t); i++) {
        answer *a = &t->answers[i];
        if (!a->job)
            continue;
        if (now >= t->end_by_ms || now >= a->until_ms)
            a->timed_out = 1;
        if (cancelled || a->timed_out)
            qm_job_cancel(a->job);
        int32_t state = qm_job_poll(a->job);
        if (a->stage == STAGE_ANSWER)
            move_text(s, t, i);
        if (state == QM_JOB_RUNNING)
            continue;
        if (state < 0)
            qm_job_poll(a->job); /* this thread's message is the job's again */
        if (a->stage == STAGE_PROMPT)
            end_prompt(s, t, state);
        else
            end_answer(s, t, i, state);
    }
}

/* ---- the thread ---- */

typedef struct watch { /* what one poll looks at */
    struct pollfd *fds;
    task **tasks; /* whose socket it is, with a reference; NULL: a job's descriptor */
    size_t count, capacity;
    int64_t until;
} watch;

static void watch_add(watch *w, int fd, short events, task *t)
{
    if (w->count == w->capacity) {
        w->capacity = w->capacity * 2 + 16;
        w->fds = server_grow(w->fds, w->capacity, sizeof *w->fds);
        w->tasks = server_grow(w->tasks, w->capacity, sizeof *w->tasks);
    }
    w->fds[w->count] = (struct pollfd){ .fd = fd, .events = events };
    w->tasks[w->count++] = t;
}

static void watch_all(scheduler *s, watch *w)
{
    w->count = 0;
    w->until = INT64_MAX;
    watch_add(w, s->wake, POLLIN, NULL);
    pthread_mutex_lock(&s->mutex);
    for (task *t = s->tasks; t; t = t->next) {
        if (t->connection >= 0 && !t->cancelled) {
            t->references++;
            watch_add(w, t->connection, POLLRDHUP, t);
        }
        w->until = t->end_by_ms < w->until ? t->end_by_ms : w->until;
        for (int32_t i = 0; i < places(t); i++) {
            const answer *a = &t->answers[i];
            if (!a->job)
                continue;
            watch_add(w, qm_job_descriptor(a->job), POLLIN, NULL);
            w->until = a->until_ms < w->until && !a->timed_out ? a->until_ms : w->until;
        }
    }
    pthread_mutex_unlock(&s->mutex);
}

static void wait_for_something(scheduler *s, watch *w)
{
    int64_t left = w->until - scheduler_now_ms();
    poll(w->fds, w->count, w->until == INT64_MAX ? -1 : left < 0 ? 0 : left > 60000 ? 60000 : (int)left + 1);
    uint64_t drained;
    if (w->fds[0].revents)
        while (read(s->wake, &drained, sizeof drained) < 0 && errno == EINTR)
            continue;
    pthread_mutex_lock(&s->mutex);
    for (size_t i = 1; i < w->count; i++) {
        task *t = w->tasks[i];
        if (!t)
            continue;
        /* A task that was released meanwhile has no socket: the number may be another's by now. */
        if (w->fds[i].revents && t->connection >= 0 && !t->ended && !t->cancelled) {
            t->cancelled = 1;
            s->counts.gone++;
        }
        task_drop_reference(t);
    }
    pthread_mutex_unlock(&s->mutex);
}

/* One look at every task; whether any is left. */
static int serve_all(scheduler *s)
{
    int64_t now = scheduler_now_ms();
    pthread_mutex_lock(&s->mutex);
    task *t = s->tasks, *next;
    pthread_mutex_unlock(&s->mutex);
    for (; t; t = next) {
        pthread_mutex_lock(&s->mutex);
        next = t->next;
        int cancelled = t->cancelled || s->cancel_all, stopping = s->stopping;
        pthread_mutex_unlock(&s->mutex);
        if (t->running) {
            serve_task(s, t, cancelled, now);
        } else if (cancelled || stopping) {
            end_unbegun(s, t, "cancelled", QM_ERROR_CANCELLED, stopping ? "the server is stopping" : "the request was cancelled");
        } else if (now >= t->end_by_ms) {
            t->answers[0].timed_out = 1;
            end_unbegun(s, t, "time", QM_ERROR_BUSY, "the request waited too long for its turn");
        }
        if (t->ended_count == places(t))
            finish_task(s, t);
    }
    for (task *begun; (begun = next_to_begin(s)) != NULL;) {
        begin_task(s, begun);
        if (begun->ended_count == places(begun))
            finish_task(s, begun);
    }
    pthread_mutex_lock(&s->mutex);
    int left = s->tasks != NULL || !s->stopping;
    pthread_mutex_unlock(&s->mutex);
    return left;
}

static void *scheduler_main(void *argument)
{
    scheduler *s = argument;
    watch w = { 0 };
    while (serve_all(s)) {
        watch_all(s, &w);
        wait_for_something(s, &w);
    }
    free(w.fds);
    free(w.tasks);
    return NULL;
}

int scheduler_start(qm_model *model, const scheduler_limits *limits, scheduler **out)
{
    scheduler *s = server_allocate(1, sizeof *s);
    s->model = model;
    s->limits = *limits;
    pthread_mutex_init(&s->mutex, NULL);
    s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->wake < 0 || pthread_create(&s->thread, NULL, scheduler_main, s) != 0) {
        if (s->wake >= 0)
            close(s->wake);
        free(s);
        return -1;
    }
    *out = s;
    return 0;
}

void scheduler_stop(scheduler *s, int64_t limit_ms)
{
    struct timespec now;
    pthread_mutex_lock(&s->mutex);
    s->stopping = 1;
    pthread_mutex_unlock(&s->mutex);
    scheduler_wake(s);
    clock_gettime(CLOCK_REALTIME, &now);
    now.tv_sec += limit_ms / 1000;
    now.tv_nsec += limit_ms % 1000 * 1000000;
    if (now.tv_nsec >= 1000000000) {
        now.tv_sec++;
        now.tv_nsec -= 1000000000;
    }
    if (pthread_timedjoin_np(s->thread, NULL, &now) == 0)
        return;
    pthread_mutex_lock(&s->mutex);
    s->cancel_all = 1;
    pthread_mutex_unlock(&s->mutex);
    scheduler_wake(s);
    pthread_join(s->thread, NULL);
}

void scheduler_free(scheduler **s)
{
    if (!*s)
        return;
    close((*s)->wake);
    pthread_mutex_destroy(&(*s)->mutex);
    free(*s);
    *s = NULL;
}

void scheduler_count(scheduler *s, scheduler_counts *out)
{
    pthread_mutex_lock(&s->mutex);
    *out = s->counts;
    out->waiting = s->waiting;
    out->computing = s->computing;
    pthread_mutex_unlock(&s->mutex);
}
