/* The clients' side of the scheduler: submitting tasks, reading their events, letting them go; see scheduler.h. */
#include "task.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "text_buffer.h"

int64_t scheduler_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void scheduler_wake(scheduler *s)
{
    uint64_t one = 1;
    while (write(s->wake, &one, sizeof one) < 0 && errno == EINTR)
        continue;
}

void task_event_free(task_event *event)
{
    if (!event)
        return;
    free(event->text);
    free(event->tokens);
    free(event);
}

static void free_task(task *t)
{
    for (task_event *event = t->first, *next; event; event = next) {
        next = event->next;
        task_event_free(event);
    }
    pthread_cond_destroy(&t->changed);
    qm_options_free(&t->options);
    free(t->tokens);
    free(t);
}

void task_drop_reference(task *t)
{
    if (--t->references == 0)
        free_task(t);
}

void task_push_event(task *t, task_event *event)
{
    if (t->last)
        t->last->next = event;
    else
        t->first = event;
    t->last = event;
    pthread_cond_signal(&t->changed);
}

submit_result scheduler_submit(scheduler *s, const task_request *request, task **out)
{
    *out = NULL;
    pthread_mutex_lock(&s->mutex);
    s->counts.tasks++;
    int full = s->waiting >= s->limits.queue && s->computing + (request->answers ? request->answers : 1) > s->limits.parallel;
    if (s->stopping || full) {
        s->counts.refused++;
        pthread_mutex_unlock(&s->mutex);
        qm_options *options = request->options;
        qm_options_free(&options);
        return s->stopping ? SUBMIT_STOPPING : SUBMIT_FULL;
    }
    task *t = server_allocate(1, sizeof *t);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&t->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    t->owner = s;
    t->references = 2;
    t->connection = request->connection;
    t->tokens = server_allocate((size_t)request->count, sizeof *t->tokens);
    memcpy(t->tokens, request->tokens, (size_t)request->count * sizeof *t->tokens);
    t->count = t->numbers.prompt = request->count;
    t->options = request->options;
    t->answer_count = request->answers;
    t->urgent = request->urgent;
    t->logprobs = request->logprobs;
    t->seed = request->seed;
    t->decode_ms = request->decode_ms;
    t->submitted_ms = scheduler_now_ms();
    t->end_by_ms = t->submitted_ms + s->limits.queue_ms;
    task **link = &s->tasks;
    while (*link && (!t->urgent || (*link)->urgent))
        link = &(*link)->next;
    t->next = *link;
    *link = t;
    s->waiting++;
    pthread_mutex_unlock(&s->mutex);
    scheduler_wake(s);
    *out = t;
    return SUBMIT_DONE;
}

int64_t scheduler_retry_seconds(scheduler *s)
{
    pthread_mutex_lock(&s->mutex);
    double seconds = s->task_seconds * (s->waiting + 1) / s->limits.parallel;
    pthread_mutex_unlock(&s->mutex);
    return seconds < 1 ? 1 : seconds > 120 ? 120 : (int64_t)(seconds + 0.5);
}

int task_next(task *t, int64_t timeout_ms, task_event **out)
{
    scheduler *s = t->owner;
    int64_t until = scheduler_now_ms() + timeout_ms;
    struct timespec deadline = { .tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000 };
    int waited = 0;
    *out = NULL;
    pthread_mutex_lock(&s->mutex);
    while (!t->first && !t->ended && waited != ETIMEDOUT)
        waited = pthread_cond_timedwait(&t->changed, &s->mutex, &deadline);
    task_event *event = t->first;
    int result = event ? 1 : t->ended ? -1 : 0;
    if (event) {
        t->first = event->next;
        if (!t->first)
            t->last = NULL;
    }
    pthread_mutex_unlock(&s->mutex);
    *out = event;
    return result;
}

const task_outcome *task_outcome_of(task *t, int32_t number)
{
    return &t->answers[number].outcome;
}

void task_numbers_of(task *t, task_numbers *out)
{
    pthread_mutex_lock(&t->owner->mutex);
    *out = t->numbers;
    pthread_mutex_unlock(&t->owner->mutex);
}

void task_cancel(task *t)
{
    pthread_mutex_lock(&t->owner->mutex);
    t->cancelled = 1;
    pthread_mutex_unlock(&t->owner->mutex);
    scheduler_wake(t->owner);
}

void task_release(task **held)
{
    task *t = *held;
    *held = NULL;
    if (!t)
        return;
    scheduler *s = t->owner;
    pthread_mutex_lock(&s->mutex);
    s->counts.gone += !t->ended && !t->cancelled; /* found out by writing to its socket */
    t->cancelled = 1;
    t->connection = -1;
    task_drop_reference(t);
    pthread_mutex_unlock(&s->mutex);
    scheduler_wake(s);
}
