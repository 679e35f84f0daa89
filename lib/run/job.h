/* A job: work under way, what it has to show so far, and how it ended. */
#ifndef QMI_RUN_JOB_H
#define QMI_RUN_JOB_H

#include "run/budget.h"
#include "run/logprobs.h"
#include "run/session.h"

typedef enum qmi_job_kind {
    QMI_JOB_LOAD, QMI_JOB_FOLLOW, QMI_JOB_TOKENIZE, /* in a thread of their own */
    QMI_JOB_PREFILL,                /* also rewind and sync */
    QMI_JOB_GENERATE, QMI_JOB_DECODE, QMI_JOB_DRAFT,
    QMI_JOB_SAVE, QMI_JOB_RESTORE   /* in a thread of their own, with a session */
} qmi_job_kind;

typedef struct qmi_run_of_text { /* text of one kind in the queue */
    int32_t kind;                /* QM_PIECE_* */
    size_t length;
} qmi_run_of_text;

typedef struct qmi_queue {       /* generated text that was not read yet */
    char *text;
    size_t start, end, capacity; /* unread: [start, end) */
    qmi_run_of_text *runs;
    size_t run_start, run_end, run_capacity;
} qmi_queue;

struct qm_job {
    qmi_job_kind kind;
    qmi_alloc alloc;
    qm_model *model;             /* a reference; of a load job: what it made, until it is taken */

    /* wishes of any thread, atomic */
    int32_t cancel, end_thinking;
    int32_t interrupt;           /* atomic: the chunk under way shall end, as the job is cancelled, or overtaken by another */

    /* guarded by `mutex` */
    qmi_os_mutex *mutex;
    qmi_os_condition *changed;   /* something to read, or ended */
    qmi_os_event event;          /* readable exactly when `showing`; none in blocking calls */
    bool showing;
    int32_t state;               /* QM_JOB_RUNNING, QM_JOB_DONE or a code */
    char message[QMI_ERROR_SIZE];
    qmi_queue queue;
    qmi_budget *budget;          /* of a generate job */
    struct qmi_constrained *constrained; /* of one whose answer is; NULL: none */
    qmi_ids ids;                 /* tokens generated, or the tokens of a text */
    qmi_logprobs logprobs;       /* of `ids`, if they are kept */
    qmi_finish finish;
    int64_t prefilled, reused, dropped, thought;
    int64_t submitted_ns, prefill_ns, decode_ns, first_ns, end_ns; /* when it began to; 0: not yet */

    /* the engine's */
    qm_job *next;
    int32_t priority;
    bool decoding;               /* takes part in decode batches; else prefills */
    qm_session **sessions;
    int32_t session_count, session_done;
    bool overflows;              /* `tokens` do not fit behind the session's: its oldest turns have to go first */
    bool synced;                 /* its tokens come again, with more: states are kept close to each other near their end */
    bool replaces;               /* `tokens` are all that the session shall hold, and it was not moved to them yet */
    int32_t *tokens;             /* to append, one by one session for a decode job */
    int64_t turns[4];            /* indices of tokens before which a chunk ends; -1: none */
    bool turns_marked;
    bool stopped;                /* its last chunk was given up for another job */
    int64_t small_until;         /* index of a token: chunks before it are small */
    int64_t token_count, token_done;
    bool queue_failed;           /* out of memory for a piece */
    /* rows wanted of a prefill: indices into tokens, ascending; logits are the caller's */
    const int64_t *rows;
    int64_t row_count, row_done;
    float *logits;
    int32_t draft_token;         /* the token after the last, of a draft job */

    /* of load, follow, tokenize, save and restore */
    qmi_os_thread *thread;
    qmi_settings settings;
    bool has_settings;
    char *text;                  /* path or text */
    int64_t text_length;
    qmi_stretches literal;       /* of the text, in which there are no marks */
    int32_t special;
};

/* watched: with a descriptor, for a handle of the host. */
int32_t qmi_job_new(qmi_job_kind kind, const qmi_alloc *alloc, bool watched, qm_job **out);
void qmi_job_abandon(qm_job *job);           /* frees one that has ended, or never began */
void qmi_job_free(qm_job *job);              /* cancels it, waits for its end, frees */
/* Waits, frees; its code, with its message set. reused: tokens that need not be computed; NULL: not asked for. */
int32_t qmi_job_finish_blocking(qm_job *job, int64_t *reused);
/* Ends it: `code` QM_JOB_DONE or negative, then with this thread's message. Not to be touched by the caller after that. */
void qmi_job_end(qm_job *job, int32_t code);
void qmi_job_show(qm_job *job, qmi_answer_part part, const char *text, int64_t length); /* queues a piece; mutex held */

int32_t qmi_job_poll(const qm_job *job);
int32_t qmi_job_wait(qm_job *job, int64_t timeout_ms);
void qmi_job_cancel(qm_job *job);
void qmi_job_end_thinking(qm_job *job);
int64_t qmi_job_read(qm_job *job, char *text, int64_t size, int32_t *kind);
int64_t qmi_job_text(const qm_job *job, char *text, int64_t size);
int64_t qmi_job_tokens(const qm_job *job, int32_t *tokens, int64_t capacity);
int64_t qmi_job_logprobs(const qm_job *job, int64_t first, const qmi_logprobs_out *out, int64_t capacity);
const char *qmi_job_finish_name(const qm_job *job);
int32_t qmi_job_number(const qm_job *job, const char *name, double *value);
int32_t qmi_job_take_model(qm_job *job, qm_model **out);

static inline void qmi_job_interrupt(qm_job *job)
{
    __atomic_store_n(&job->interrupt, 1, __ATOMIC_SEQ_CST);
}

static inline bool qmi_job_cancelled(const qm_job *job)
{
    return __atomic_load_n(&job->cancel, __ATOMIC_SEQ_CST) != 0;
}

/* Not if it is cancelled, also by another thread meanwhile: that sets `cancel` first, so this sees it, or the interrupt stays. */
static inline void qmi_job_clear_interrupt(qm_job *job)
{
    __atomic_store_n(&job->interrupt, 0, __ATOMIC_SEQ_CST);
    if (qmi_job_cancelled(job))
        qmi_job_interrupt(job);
}

#endif
