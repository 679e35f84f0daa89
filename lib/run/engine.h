/* A loaded model, and its engine: one thread that does all of the model's device work, and sleeps when there is none. Others then
 * do short work themselves, one at a time, in its place.
 *
 * Each turn of the thread answers calls (device work of other threads), then computes one token of each of several sessions that
 * decode, then a chunk of one session's prompt. Jobs of the highest priority alone take part; of these, those that have waited
 * longest. A job of higher priority that comes while a chunk is computed does not wait for its end.
 *
 * Lifetime: the model's handle, each session and each job hold a reference. References are dropped by threads of the host
 * only, so the engine's thread never waits for itself. */
#ifndef QMI_RUN_ENGINE_H
#define QMI_RUN_ENGINE_H

#include "base/error.h"
#include "base/os.h"
#include "backend/backend.h"
#include "exchange/ranks.h"
#include "file/gguf_parts.h"
#include "memory/checkpoint.h"
#include "memory/page_pool.h"
#include "memory/plan.h"
#include "memory/state.h"
#include "model/weights.h"
#include "run/step.h"
#include "text/chat.h"
#include "text/token_trie.h"
#include "text/vocab.h"

typedef struct qmi_call { /* device work of another thread, on that thread's stack while it waits */
    int32_t (*function)(void *argument);
    void *argument;
    int32_t code;
    char message[QMI_ERROR_SIZE];
    bool answered;
    struct qmi_call *next;
} qmi_call;

typedef struct qmi_constraints { /* of answers: see constraint.h */
    qmi_os_mutex *mutex;         /* guards what follows */
    struct qmi_constraint *first;
    qmi_token_trie *trie;        /* made when it is first needed */
    uint64_t clock;
} qmi_constraints;

typedef struct qmi_engine {
    qmi_os_thread *thread;       /* NULL: none was started (vocabulary only) */
    qmi_os_mutex *mutex;         /* guards what follows, and which session is busy with which job */
    qmi_os_condition *wake;      /* for the thread: there is something to do */
    qmi_os_condition *answered;  /* for others: a call is answered, or a session is idle again */
    bool stopping;
    bool sleeps;                 /* the thread waits for work */
    bool visited;                /* another thread does its own call meanwhile, instead of waking it */
    qm_job *jobs;                /* under way; those that have waited longest first */
    qmi_call *calls;             /* in order of arrival */
    qm_job *stoppable;           /* whose chunk is being computed, where a job of higher priority may stop it; else NULL */
    qmi_step step;               /* the thread's own */
} qmi_engine;

struct qm_model {
    int32_t references;          /* atomic */
    qmi_settings settings;
    char *path;
    qmi_parts parts;
    qmi_vocab *vocab;
    qmi_chat_format_id chat;
    int32_t think_open, think_close, turn_start; /* ids of <think>, </think>, <|im_start|>; -1: none */
    int32_t role_system, role_user, tool_result; /* ids of the words after <|im_start|>, and of <tool_response> */
    bool computes;               /* false: vocabulary only, and nothing below is there */
    qmi_plan plan;
    const qmi_backend *backend;
    qmi_device *device;
    int32_t device_index;        /* of the backend's */
    struct qmi_group_record *group; /* several devices; NULL: one */
    qmi_ranks *ranks;            /* the other processes whose devices are among the group's; NULL: none */
    qmi_device_info info;
    qmi_weights weights;
    qmi_program program, mtp_program;
    qmi_workspace workspace, mtp_workspace;
    /* The engine's thread's: */
    qmi_page_pool pages;
    qmi_state_pool states;
    qmi_checkpoints checkpoints;
    int64_t checkpoint_every;
    qm_session *sessions;        /* all of this model */
    qmi_engine engine;
    qmi_constraints constraints;
};

int32_t qmi_engine_start(qm_model *model); /* after everything above it is ready */
void qmi_engine_stop(qm_model *model);     /* all jobs have ended; also after a start that failed */

/* Runs function(argument) as the engine's thread would, between two steps, and returns what it returned, with its message. Runs it
 * at once where no thread was started, when the caller is that thread, and when that thread sleeps: it then sleeps on, which
 * saves waking it and being woken. */
int32_t qmi_engine_call(qm_model *model, int32_t (*function)(void *), void *argument);

/* Marks sessions busy with `job` (NULL: with a call), all or none: QM_ERROR_BUSY names the one that is already. */
int32_t qmi_engine_claim(qm_model *model, qm_session *const *sessions, int32_t count, qm_job *job);
void qmi_engine_unclaim(qm_model *model, qm_session *const *sessions, int32_t count);

void qmi_engine_submit(qm_model *model, qm_job *job); /* whose sessions are claimed */
void qmi_engine_look(qm_model *model);                /* a job's wishes have changed */

#endif
