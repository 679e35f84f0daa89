/* What the tests of the public functions share. They link the shared library and include its header alone. */
#ifndef TEST_API_H
#define TEST_API_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>
#include "../oracle/expect.h"
#include "qwenmoe.h"

/* Checks a call's code, and shows the library's message when it is another. */
#define expect_code(wanted, call) \
    do { \
        int64_t code_ = (call); \
        if (code_ != (wanted)) \
            print_error("%s gave %lld: %s\n", #call, (long long)code_, qm_error_message()); \
        assert_int_equal(code_, wanted); \
    } while (0)
#define expect_ok(call) expect_code(QM_OK, call)

/* The path of a file of the test data, in one of a few buffers that take turns. */
static inline const char *data_path(const char *name)
{
    static _Thread_local char paths[4][512];
    static _Thread_local int32_t turn;
    const char *folder = getenv("TEST_DATA");
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder ? folder : "tests/data", name);
    return path;
}

/* Options from "name=value name=value". One thread unless they say otherwise: several that wait for each other by spinning are
 * slow on a machine where other tests run. */
static inline qm_options *make_options(const char *settings)
{
    char copy[512];
    qm_options *options = NULL;
    expect_ok(qm_options_new(&options));
    expect_ok(qm_options_set(options, "threads", "1"));
    expect_ok(qm_options_set(options, "pin", "0"));
    snprintf(copy, sizeof copy, "%s", settings);
    for (char *rest = NULL, *pair = strtok_r(copy, " ", &rest); pair; pair = strtok_r(NULL, " ", &rest)) {
        char *value = strchr(pair, '=');
        *value = 0;
        expect_ok(qm_options_set(options, pair, value + 1));
    }
    return options;
}

static inline qm_model *load_model(const char *name, const char *settings)
{
    qm_model *model = NULL;
    qm_options *options = make_options(settings);
    expect_ok(qm_model_load(data_path(name), options, &model));
    qm_options_free(&options);
    return model;
}

static inline qm_session *new_session(qm_model *model, const char *settings)
{
    qm_session *session = NULL;
    qm_options *options = make_options(settings);
    expect_ok(qm_session_new(model, options, &session));
    qm_options_free(&options);
    return session;
}

static inline int64_t vocabulary_of(const qm_model *model)
{
    int64_t vocabulary = 0;
    expect_ok(qm_model_number(model, "vocabulary", &vocabulary));
    return vocabulary;
}

/* A copy of the session's logits, to be freed. */
static inline float *copy_logits(const qm_model *model, const qm_session *session)
{
    size_t bytes = (size_t)vocabulary_of(model) * sizeof(float);
    float *copy = malloc(bytes);
    const float *logits = qm_logits(session);
    assert_non_null(logits);
    assert_non_null(copy);
    memcpy(copy, logits, bytes);
    return copy;
}

/* Logits after `count` tokens in a new session, one token at a time: what all other ways have to give, bit for bit. To be
 * freed. */
static inline float *plain_logits(qm_model *model, const int32_t *tokens, int64_t count)
{
    qm_session *session = new_session(model, "answer-tokens=0");
    for (int64_t i = 0; i < count; i++)
        expect_ok(qm_decode(&session, tokens + i, 1));
    float *logits = copy_logits(model, session);
    qm_session_free(&session);
    return logits;
}

static inline void assert_logits(const qm_model *model, const qm_session *session, const float *wanted)
{
    const float *logits = qm_logits(session);
    assert_non_null(logits);
    assert_memory_equal(logits, wanted, (size_t)vocabulary_of(model) * sizeof(float));
}

/* Does the session hold tokens[0, count) and give the logits of the plain way? */
static inline void assert_holds(qm_model *model, qm_session *session, const int32_t *tokens, int64_t count)
{
    int32_t *held = malloc((size_t)count * sizeof *held + 1);
    assert_non_null(held);
    assert_int_equal(qm_session_length(session), count);
    assert_int_equal(qm_session_tokens(session, held, count), count);
    assert_memory_equal(held, tokens, (size_t)count * sizeof *held);
    float *wanted = plain_logits(model, tokens, count);
    assert_logits(model, session, wanted);
    free(wanted);
    free(held);
}

/* Tokens of bytes, the same sequence for the same start. */
static inline void fill_tokens(int32_t *tokens, int64_t count, uint32_t start)
{
    for (int64_t i = 0; i < count; i++) {
        start = start * 1664525u + 1013904223u; /* Numerical Recipes' linear congruential generator */
        tokens[i] = (int32_t)(start >> 24);
    }
}

/* Reads a job to its end. Returns its code; appends the text of all pieces to `text` (size bytes). */
static inline int32_t read_job(qm_job *job, char *text, size_t size)
{
    char piece[64];
    int32_t state, kind;
    size_t length = 0;
    if (size)
        text[0] = 0;
    do {
        state = qm_job_wait(job, -1);
        for (int64_t got; (got = qm_job_read(job, piece, sizeof piece, &kind)) > 0;) {
            assert_true(kind != QM_PIECE_NONE);
            if (length + (size_t)got < size) {
                memcpy(text + length, piece, (size_t)got + 1);
                length += (size_t)got;
            }
        }
        assert_int_equal(kind, QM_PIECE_NONE);
    } while (state == QM_JOB_RUNNING);
    return state;
}

/* Holds a session's job inside its prefill callback until it is opened, so that it is surely under way. */
typedef struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool reached, open;
} gate;

static inline int32_t wait_at_gate(const char *stage, int64_t done, int64_t total, void *user)
{
    gate *g = user;
    (void)stage, (void)done, (void)total;
    pthread_mutex_lock(&g->mutex);
    g->reached = true;
    pthread_cond_broadcast(&g->changed);
    while (!g->open)
        pthread_cond_wait(&g->changed, &g->mutex);
    pthread_mutex_unlock(&g->mutex);
    return 0;
}

static inline void await_gate(gate *g)
{
    pthread_mutex_lock(&g->mutex);
    while (!g->reached)
        pthread_cond_wait(&g->changed, &g->mutex);
    pthread_mutex_unlock(&g->mutex);
}

static inline void open_gate(gate *g)
{
    pthread_mutex_lock(&g->mutex);
    g->open = true;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->mutex);
}

#define CLOSED_GATE { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, false }

static inline qm_session *gated_session(qm_model *model, const char *settings, gate *g)
{
    qm_session *session = NULL;
    qm_options *options = make_options(settings);
    expect_ok(qm_options_set_progress(options, wait_at_gate, g));
    expect_ok(qm_session_new(model, options, &session));
    qm_options_free(&options);
    return session;
}

static inline double job_number(const qm_job *job, const char *name)
{
    double value = -1;
    expect_ok(qm_job_number(job, name, &value));
    return value;
}

#endif
