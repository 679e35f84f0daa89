/* Sessions and threads: those that compute a session, and those of a program that has several. */
#include "models.h"

/* The same bits whatever the number of threads. */
static void test_thread_counts(void **state)
{
    (void)state;
    int32_t tokens[TOKENS];
    fill_tokens(tokens, TOKENS, 7);
    for (int32_t i = 0; i < FILES; i++) {
        float *wanted = NULL;
        for (int32_t threads = 1; threads <= 3; threads++) {
            char text[64];
            snprintf(text, sizeof text, "threads=%d kv-type=f16", threads);
            qm_model *model = load_model(files[i], text);
            qm_session *session = new_session(model, "");
            expect_ok(qm_prefill(session, tokens, TOKENS - 3));
            for (int32_t t = TOKENS - 3; t < TOKENS; t++)
                expect_ok(qm_decode(&session, tokens + t, 1));
            if (wanted)
                assert_logits(model, session, wanted);
            else
                wanted = copy_logits(model, session);
            qm_session_free(&session);
            qm_model_free(&model);
        }
        free(wanted);
    }
}

typedef struct thread_work {
    pthread_t thread;
    qm_model *model;
    int32_t tokens[TOKENS];
    float *wanted;
    bool same;
} thread_work;

/* Prefills half and decodes the rest, a few times. Assertions belong to the main thread. */
static void *thread_main(void *argument)
{
    thread_work *work = argument;
    work->same = true;
    for (int32_t round = 0; round < 3; round++) {
        qm_session *session = NULL;
        work->same = work->same && qm_session_new(work->model, NULL, &session) == 0;
        work->same = work->same && qm_prefill(session, work->tokens, TOKENS / 2) == 0;
        for (int32_t i = TOKENS / 2; i < TOKENS && work->same; i++)
            work->same = qm_decode(&session, work->tokens + i, 1) == 0;
        work->same = work->same && memcmp(qm_logits(session), work->wanted, 320 * sizeof(float)) == 0;
        qm_session_free(&session);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    thread_work work[4];
    qm_model *model = load_model("tiny/hybrid.gguf", "mtp=1 threads=2");
    assert_int_equal(vocabulary_of(model), 320);
    for (uint32_t i = 0; i < 4; i++) {
        work[i].model = model;
        fill_tokens(work[i].tokens, TOKENS, i);
        work[i].wanted = plain_logits(model, work[i].tokens, TOKENS);
    }
    for (int32_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&work[i].thread, NULL, thread_main, &work[i]), 0);
    for (int32_t i = 0; i < 4; i++) {
        pthread_join(work[i].thread, NULL);
        assert_true(work[i].same);
        free(work[i].wanted);
    }
    qm_model_free(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thread_counts), cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
