/* Which requests are computed and when: a bounded queue, so many answers at a time, limits of time, clients that went away.
 *
 * One thread owns all sessions and jobs. It waits for the jobs' descriptors and the clients' sockets together, moves text from
 * the jobs to the tasks as it comes, and gives a session's memory back when its answer has ended, however slowly the client
 * reads. A task's prompt is computed by one sync (which reuses what any earlier request had in common with it), then its answers
 * go on from forks of that session; the library computes all of them together. */
#ifndef SERVER_SCHEDULER_H
#define SERVER_SCHEDULER_H

#include <qwenmoe.h>

#define ANSWERS_MOST 16 /* of one task */

typedef struct scheduler scheduler;
typedef struct task task;

typedef struct scheduler_limits {
    int32_t parallel; /* answers computed at a time */
    int32_t queue;    /* tasks that wait */
    int64_t queue_ms; /* ... for so long at most */
    int64_t time_ms;  /* a task may take, from its start */
} scheduler_limits;

typedef struct task_request {
    const int32_t *tokens; /* the prompt; copied */
    int64_t count;
    qm_options *options; /* of its sessions; the task's from now on, also when it is refused */
    int32_t answers;     /* 1 .. ANSWERS_MOST; 0: only the prompt is computed */
    int64_t seed;        /* of the first answer, the next has the next; -1: none */
    int32_t urgent;      /* goes before those that are not */
    int64_t decode_ms;   /* time for the answer after its prompt; 0: no limit of its own */
    int32_t logprobs;    /* so many most likely tokens with each; -1: no log probabilities */
    int connection;      /* the client's socket: when it is closed the task is cancelled */
} task_request;

typedef struct task_token { /* of an answer, where log probabilities were asked for */
    int32_t id;
    float logprob;
    int32_t top_count;
    int32_t top_ids[64];
    float top_logprobs[64];
} task_token;

typedef struct task_event {
    struct task_event *next;
    int32_t answer;
    int32_t kind; /* QM_PIECE_*; QM_PIECE_NONE: the answer has ended */
    char *text;
    int64_t length;
    task_token *tokens; /* that came since the last event */
    int64_t token_count;
} task_event;

typedef struct task_outcome {
    const char *finish; /* as qm_job_finish, or "time" */
    int32_t code;       /* QM_JOB_DONE, or of the failure */
    char message[512];
    int64_t tokens, thought_tokens;
    double seconds;
} task_outcome;

typedef struct task_numbers {
    int64_t prompt, reused;
    double prompt_seconds, queue_seconds;
} task_numbers;

typedef struct scheduler_counts { /* as they are now, and since the start */
    int64_t waiting, computing;
    int64_t tasks, refused, gone, timed_out, failed;
    int64_t prompt_tokens, reused_tokens, answer_tokens;
    double prompt_seconds, answer_seconds, queue_seconds;
} scheduler_counts;

int scheduler_start(qm_model *model, const scheduler_limits *limits, scheduler **out); /* 0, or -1 */
/* No new tasks; those that wait are refused; those under way have limit_ms to end, then they are cancelled. Returns when all
 * have. */
void scheduler_stop(scheduler *s, int64_t limit_ms);
void scheduler_free(scheduler **s); /* stopped, and all tasks released */
void scheduler_count(scheduler *s, scheduler_counts *out);

typedef enum submit_result { SUBMIT_DONE, SUBMIT_FULL, SUBMIT_STOPPING } submit_result;
submit_result scheduler_submit(scheduler *s, const task_request *request, task **out);
int64_t scheduler_retry_seconds(scheduler *s); /* when a refused client may come again: a guess */

/* The next event, waiting for it at most so long. 1: it is in *out, to be given to task_event_free; 0: none came; -1: there are
 * no more, all answers have ended. */
int task_next(task *t, int64_t timeout_ms, task_event **out);
void task_event_free(task_event *event);
const task_outcome *task_outcome_of(task *t, int32_t answer); /* once its end was read */
void task_numbers_of(task *t, task_numbers *out);
void task_cancel(task *t);
void task_release(task **t); /* cancels what has not ended; the socket is not looked at any more */

#endif
