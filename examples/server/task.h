/* The inside of scheduler and tasks, for scheduler.c (the thread) and task.c (the clients' side) alone. */
#ifndef SERVER_TASK_H
#define SERVER_TASK_H

#include <pthread.h>

#include "scheduler.h"

typedef enum stage { STAGE_NONE, STAGE_PROMPT, STAGE_ANSWER, STAGE_ENDED } stage;

typedef struct answer { /* the scheduler thread's own, but for the outcome */
    stage stage;
    qm_session *session;
    qm_job *job;
    int64_t tokens_shown; /* whose log probabilities are in events */
    int64_t until_ms;     /* when its time is over; INT64_MAX: never */
    int timed_out;
    task_outcome outcome;
} answer;

struct task { /* guarded by the scheduler's mutex, or set once */
    scheduler *owner;
    task *next;
    int references; /* the client's and the scheduler's */
    int running, ended, cancelled;
    int connection; /* -1: not looked at */
    int32_t *tokens;
    int64_t count;
    qm_options *options;
    int32_t answer_count, ended_count, urgent, logprobs;
    int64_t seed, decode_ms;
    int64_t submitted_ms, started_ms, end_by_ms; /* end_by: of waiting, then of computing */
    task_numbers numbers;
    task_event *first, *last;
    pthread_cond_t changed;
    answer answers[ANSWERS_MOST];
};

struct scheduler {
    qm_model *model;
    scheduler_limits limits;
    pthread_t thread;
    int wake; /* eventfd */
    pthread_mutex_t mutex;
    task *tasks; /* waiting and computing, in order of arrival, the urgent ones first */
    int32_t waiting, computing;
    int stopping, cancel_all;
    int memory_short;    /* no session could be made: until an answer has ended none is tried */
    double task_seconds; /* of a task, a running mean */
    scheduler_counts counts;
};

int64_t scheduler_now_ms(void);
void scheduler_wake(scheduler *s);
/* With the mutex held: */
void task_drop_reference(task *t);
void task_push_event(task *t, task_event *event);

#endif
