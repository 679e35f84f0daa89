/* Sessions that go back or aside: forks, cuts, synchronising, cancels, and multi-token prediction behind them. All exact. */
#include "models.h"

/* ---- forks, cuts ---- */

static void forks(qm_model *model, const int32_t *tokens)
{
    qm_session *session = new_session(model, "temperature=1 top-k=0 top-p=1 seed=5"), *fork = NULL, *empty = NULL;
    int32_t one, other, moved[TOKENS];
    expect_ok(qm_session_fork(session, &empty));
    assert_int_equal(qm_session_length(empty), 0);
    assert_null(qm_logits(empty));
    expect_ok(qm_prefill(session, tokens, 100));
    expect_ok(qm_session_fork(session, &fork));
    for (int32_t i = 0; i < 10; i++) { /* the same random state */
        expect_ok(qm_sample(session, &one));
        expect_ok(qm_sample(fork, &other));
        assert_int_equal(one, other);
    }
    memcpy(moved, tokens, sizeof moved);
    moved[100] = (tokens[100] + 1) % 256;
    expect_ok(qm_prefill(session, tokens + 100, 60));
    expect_ok(qm_prefill(fork, moved + 100, 61));
    expect_ok(qm_prefill(empty, tokens, 70));
    assert_holds(model, session, tokens, 160);
    qm_session_free(&session);
    assert_holds(model, fork, moved, 161);
    assert_holds(model, empty, tokens, 70);
    qm_session_free(&fork);
    qm_session_free(&empty);
}

static void test_forks(void **state)
{
    (void)state;
    with_models(forks);
}

static void rewinds(qm_model *model, const int32_t *tokens)
{
    static const int64_t lengths[] = { 200, 199, 129, 128, 64, 63, 2, 1 };
    qm_session *session = new_session(model, "");
    int32_t moved[TOKENS];
    memcpy(moved, tokens, sizeof moved);
    expect_ok(qm_prefill(session, tokens, TOKENS));
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        expect_ok(qm_session_rewind(session, lengths[i]));
        assert_holds(model, session, tokens, lengths[i]);
    }
    expect_ok(qm_session_rewind(session, 0));
    assert_int_equal(qm_session_length(session), 0);
    assert_null(qm_logits(session));
    expect_ok(qm_prefill(session, tokens, TOKENS));
    expect_ok(qm_session_rewind(session, 150));
    moved[150] = (tokens[150] + 1) % 256;
    expect_ok(qm_decode(&session, moved + 150, 1)); /* another way on */
    expect_ok(qm_prefill(session, moved + 151, TOKENS - 151));
    assert_holds(model, session, moved, TOKENS);
    expect_code(QM_ERROR_ARGUMENT, qm_session_rewind(session, TOKENS + 1));
    qm_session_free(&session);
}

static void test_rewinds(void **state)
{
    (void)state;
    with_models(rewinds);
}

static void syncs(qm_model *model, const int32_t *tokens)
{
    int64_t delta_layers, reused;
    expect_ok(qm_model_number(model, "delta_layers", &delta_layers));
    qm_session *session = new_session(model, "");
    int32_t moved[TOKENS];
    memcpy(moved, tokens, sizeof moved);
    moved[90] = (tokens[90] + 1) % 256;
    assert_int_equal(qm_session_sync(session, tokens, 100), 0);
    assert_holds(model, session, tokens, 100);
    assert_int_equal(qm_session_sync(session, tokens, 100), 100); /* nothing to do */
    assert_int_equal(qm_session_sync(session, tokens, 170), 100); /* only more */
    assert_holds(model, session, tokens, 170);
    reused = qm_session_sync(session, moved, TOKENS); /* another from the 90th on */
    assert_true(delta_layers > 0 ? reused == 0 : reused == 90 || reused == 89);
    assert_holds(model, session, moved, TOKENS);
    reused = qm_session_sync(session, moved, 95); /* a start of it */
    assert_true(delta_layers > 0 ? reused == 0 : reused == 94);
    assert_holds(model, session, moved, 95);
    expect_code(0, qm_session_sync(session, NULL, 0));
    assert_int_equal(qm_session_length(session), 0);
    qm_session_free(&session);
}

/* Text without turns, that differs anywhere near its end: no more than 256 tokens before that are computed again. */
static void test_differs_near_the_end(void **state)
{
    (void)state;
    enum { LONG = 1700 };
    static int32_t tokens[LONG + 20], moved[LONG];
    fill_tokens(tokens, LONG + 20, 11);
    qm_model *model = load_model("oracle/qwen35moe.gguf", "");
    qm_session *session = new_session(model, "context=2000 answer-tokens=1");
    assert_int_equal(qm_session_sync(session, tokens, LONG), 0);
    for (int64_t at = LONG - 1; at > LONG - 1000; at -= 77) {
        memcpy(moved, tokens, sizeof moved);
        moved[at] = (tokens[at] + 1) % 256;
        int64_t count = at + 20 < LONG ? at + 20 : LONG, reused = qm_session_sync(session, moved, count);
        assert_in_range(reused, at - 256, at);
    }
    assert_in_range(qm_session_sync(session, tokens, LONG + 20), LONG - 256, LONG); /* and what was there first is there */
    assert_holds(model, session, tokens, LONG + 20);
    qm_session_free(&session);
    qm_model_free(&model);
}

static void test_syncs(void **state)
{
    (void)state;
    with_models(syncs);
}

/* ---- cancelling, a full context ---- */

typedef struct prefill_watch {
    int64_t stop_at;  /* tokens after which the callback cancels */
    int64_t last, total;
} prefill_watch;

static int32_t watch_prefill(const char *stage, int64_t done, int64_t total, void *user)
{
    prefill_watch *watch = user;
    watch->last = strcmp(stage, "prefill") == 0 ? done : -1;
    watch->total = total;
    return done >= watch->stop_at;
}

static qm_session *watched_session(qm_model *model, prefill_watch *watch)
{
    qm_options *options = make_options("");
    qm_session *session = NULL;
    expect_ok(qm_options_set_progress(options, watch_prefill, watch));
    expect_ok(qm_session_new(model, options, &session));
    qm_options_free(&options);
    return session;
}

static void test_cancel_between_chunks(void **state)
{
    (void)state;
    int32_t tokens[TOKENS], moved[TOKENS];
    fill_tokens(tokens, TOKENS, 1);
    memcpy(moved, tokens, sizeof moved);
    moved[20] = (tokens[20] + 1) % 256;
    for (int32_t i = 0; i < 2; i++) {
        prefill_watch watch = { .stop_at = 48 };
        qm_model *model = load_model(files[i], "mtp=1 chunk=16");
        qm_session *session = watched_session(model, &watch);
        expect_code(QM_ERROR_CANCELLED, qm_prefill(session, tokens, TOKENS));
        assert_int_equal(watch.last, 48);
        assert_int_equal(watch.total, TOKENS);
        assert_holds(model, session, tokens, 48);
        watch.stop_at = INT64_MAX;
        expect_ok(qm_prefill(session, tokens + 48, TOKENS - 48));
        assert_int_equal(watch.last, TOKENS - 48);
        assert_holds(model, session, tokens, TOKENS);
        watch.stop_at = 32;
        expect_code(QM_ERROR_CANCELLED, qm_session_sync(session, moved, TOKENS));
        watch.stop_at = INT64_MAX;
        int64_t length = qm_session_length(session);
        assert_holds(model, session, moved, length); /* some of the new tokens, and no old ones */
        assert_true(length >= 32 && length < TOKENS);
        expect_ok(qm_prefill(session, moved + length, TOKENS - length));
        assert_holds(model, session, moved, TOKENS);
        qm_session_free(&session);
        qm_model_free(&model);
    }
}

/* Cancels at whatever moment comes; what is left must be exact every time. */
static void test_cancel_at_any_time(void **state)
{
    (void)state;
    enum { LONG = 900, ROUNDS = 24 };
    static int32_t tokens[LONG];
    fill_tokens(tokens, LONG, 2);
    for (int32_t i = 0; i < 2; i++) {
        qm_model *model = load_model(files[i], "mtp=1 chunk=128");
        float *wanted = plain_logits(model, tokens, LONG);
        qm_session *session = new_session(model, "context=1000 answer-tokens=1");
        for (int32_t round = 0; round < ROUNDS; round++) {
            qm_job *job = NULL;
            expect_ok(qm_submit_sync(session, tokens, LONG, &job));
            qm_job_wait(job, round % 12);
            expect_ok(qm_job_cancel(job));
            int32_t code = qm_job_wait(job, -1);
            assert_true(code == QM_JOB_DONE || code == QM_ERROR_CANCELLED);
            qm_job_free(&job);
            int64_t length = qm_session_length(session);
            assert_true(length <= LONG);
            if (round % 4 == 3) {
                assert_true(qm_session_sync(session, tokens, LONG) >= length); /* what was cut is held too, by a checkpoint */
                assert_logits(model, session, wanted);
                expect_ok(qm_session_rewind(session, round * 5));
            }
        }
        free(wanted);
        qm_session_free(&session);
        qm_model_free(&model);
    }
}

/* A cut that is cancelled before it could compute anything leaves fewer tokens, and what comes next is exact. */
static void cut_then_cancel(qm_model *model, const int32_t *tokens)
{
    qm_session *session = new_session(model, "");
    int32_t moved[TOKENS];
    memcpy(moved, tokens, sizeof moved);
    moved[80] = (tokens[80] + 1) % 256;
    for (int32_t way = 0; way < 3; way++) {
        qm_job *job = NULL;
        expect_ok(qm_session_sync(session, NULL, 0));
        expect_ok(qm_prefill(session, tokens, 150));
        expect_ok(qm_submit_rewind(session, 80, &job));
        qm_job_free(&job); /* cancels it; it may be done already */
        int64_t length = qm_session_length(session);
        assert_true(length <= 80 || length == 150);
        if (length != 80)
            continue;
        if (way == 0)
            expect_ok(qm_decode(&session, moved + 80, 1));
        else
            expect_ok(qm_prefill(session, moved + 80, way));
        assert_holds(model, session, moved, way == 0 ? 81 : 80 + way);
    }
    qm_session_free(&session);
}

static void test_cut_then_cancel(void **state)
{
    (void)state;
    with_models(cut_then_cancel);
}

/* ---- dropping the oldest turns ---- */

typedef struct drop_watch {
    int64_t dropped;
    bool refuse;
} drop_watch;

static int32_t watch_drop(const char *stage, int64_t done, int64_t total, void *user)
{
    drop_watch *watch = user;
    (void)total;
    watch->dropped += strcmp(stage, "drop") == 0 ? done : 0;
    return strcmp(stage, "drop") == 0 && watch->refuse;
}

static qm_session *dropping_session(qm_model *model, const char *settings, drop_watch *watch)
{
    qm_options *options = make_options(settings);
    qm_session *session = NULL;
    expect_ok(qm_options_set_progress(options, watch_drop, watch));
    expect_ok(qm_session_new(model, options, &session));
    qm_options_free(&options);
    return session;
}

/* Turns of a chat as tokens; where each begins. */
static int64_t make_turns(const qm_model *model, int32_t *tokens, int64_t *starts)
{
    static const char *const texts[] = {
        "<|im_start|>system\nYou write short functions in Python.<|im_end|>\n",
        "<|im_start|>user\nA function that adds two numbers, please, and another one that subtracts them.<|im_end|>\n",
        "<|im_start|>assistant\ndef add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return a - b\n<|im_end|>\n",
        "<|im_start|>user\nNow one that multiplies a list of numbers, with a docstring that says what it does.<|im_end|>\n",
        "<|im_start|>assistant\ndef product(numbers):\n    \"\"\"The product of numbers.\"\"\"\n    result = 1\n<|im_end|>\n",
        "<|im_start|>user\nAnd the mean of them, which should be zero for an empty list of numbers.<|im_end|>\n",
        "<|im_start|>assistant\n",
    };
    int64_t count = 0;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        starts[i] = count;
        int64_t more = qm_tokenize(model, texts[i], -1, QM_SPECIAL_ALL, tokens + count, 400 - count);
        assert_true(more > 0 && count + more <= 400);
        count += more;
    }
    starts[sizeof texts / sizeof *texts] = count;
    return count;
}

static void drops_for_a_prompt(qm_model *model, const int32_t *tokens, const int64_t *starts, int64_t count)
{
    char settings[128];
    drop_watch watch = { 0 };
    int32_t left[400];
    int64_t first = starts[1], last = starts[5], held = starts[5];
    /* Not quite the whole conversation fits, so that a quarter has to become free. */
    snprintf(settings, sizeof settings, "context=%d answer-tokens=1 context-full=drop-oldest", (int)count - 1);
    qm_session *session = dropping_session(model, settings, &watch);
    expect_ok(qm_prefill(session, tokens, held));
    watch.refuse = true;
    expect_code(QM_ERROR_CANCELLED, qm_prefill(session, tokens + held, count - held));
    assert_holds(model, session, tokens, held);
    watch = (drop_watch){ 0 };
    expect_ok(qm_prefill(session, tokens + held, count - held));
    int64_t length = qm_session_length(session);
    assert_int_equal(length, count - watch.dropped);
    assert_true(watch.dropped == starts[3] - first || watch.dropped == last - first); /* one question with its answer, or two */
    memcpy(left, tokens, (size_t)first * sizeof *left);
    memcpy(left + first, tokens + first + watch.dropped, (size_t)(length - first) * sizeof *left);
    assert_holds(model, session, left, length);
    qm_session_free(&session);
    session = new_session(model, "context=30 answer-tokens=1 context-full=drop-oldest"); /* the last turn alone is longer */
    expect_code(QM_ERROR_CONTEXT, qm_prefill(session, tokens + starts[1], starts[3] - starts[1]));
    assert_int_equal(qm_session_length(session), 0);
    qm_session_free(&session);
}

static void drops_for_an_answer(qm_model *model, const int32_t *tokens, const int64_t *starts, int64_t count)
{
    char settings[128];
    drop_watch watch = { 0 };
    double dropped = 0;
    qm_job *job = NULL;
    int32_t wanted[600], held[600];
    snprintf(settings, sizeof settings, "context=%d answer-tokens=40 ignore-end=1 seed=2 context-full=drop-oldest",
             (int)count + 20);
    qm_session *session = dropping_session(model, settings, &watch);
    expect_ok(qm_submit_generate(session, tokens, count, &job));
    expect_code(QM_JOB_DONE, read_job(job, NULL, 0));
    assert_string_equal(qm_job_finish(job), "length");
    expect_ok(qm_job_number(job, "tokens_dropped", &dropped));
    assert_true(watch.dropped > 0 && dropped == (double)watch.dropped);
    memcpy(wanted, tokens, (size_t)starts[1] * sizeof *wanted);
    int64_t kept = count - starts[1] - watch.dropped;
    memcpy(wanted + starts[1], tokens + starts[1] + watch.dropped, (size_t)kept * sizeof *wanted);
    assert_int_equal(qm_job_tokens(job, wanted + starts[1] + kept, 40), 40);
    int64_t length = qm_session_tokens(session, held, 600);
    assert_int_equal(length, starts[1] + kept + 40);
    assert_holds(model, session, wanted, length);
    qm_job_free(&job);
    qm_session_free(&session);
}

/* The result of a tool goes with the question that called for it. */
static void drops_results_with_their_question(qm_model *model)
{
    static const char *const texts[] = {
        "<|im_start|>system\nYou answer.<|im_end|>\n",
        "<|im_start|>user\nWhat is in the folder with the tests that somebody wrote last year, or the one before it?<|im_end|>\n"
        "<|im_start|>assistant\n<tool_call>list the folder</tool_call><|im_end|>\n" /* enough to go without the rest */
        "<|im_start|>user\n<tool_response>\none.py\n</tool_response><|im_end|>\n<|im_start|>assistant\nA file.<|im_end|>\n",
        "<|im_start|>user\nAnd in the one above?<|im_end|>\n<|im_start|>assistant\n",
    };
    int32_t tokens[400], left[400];
    int64_t starts[4] = { 0 };
    char settings[128];
    drop_watch watch = { 0 };
    for (int i = 0; i < 3; i++)
        starts[i + 1] = starts[i] + qm_tokenize(model, texts[i], -1, QM_SPECIAL_ALL, tokens + starts[i], 400 - starts[i]);
    snprintf(settings, sizeof settings, "context=%d answer-tokens=1 context-full=drop-oldest", (int)starts[3] - 1);
    qm_session *session = dropping_session(model, settings, &watch);
    expect_ok(qm_prefill(session, tokens, starts[3]));
    assert_int_equal(watch.dropped, starts[2] - starts[1]);
    memcpy(left, tokens, (size_t)starts[1] * sizeof *left);
    memcpy(left + starts[1], tokens + starts[2], (size_t)(starts[3] - starts[2]) * sizeof *left);
    assert_holds(model, session, left, starts[1] + starts[3] - starts[2]);
    qm_session_free(&session);
}

static void test_drops(void **state)
{
    (void)state;
    int32_t tokens[400];
    int64_t starts[8];
    qm_model *model = load_model("../../examples/model/qwenmoe-py.gguf", "mtp=1");
    int64_t count = make_turns(model, tokens, starts);
    drops_for_a_prompt(model, tokens, starts, count);
    drops_for_an_answer(model, tokens, starts, count);
    drops_results_with_their_question(model);
    qm_model_free(&model);
}

/* ---- multi-token prediction ---- */

/* Its logits after the first `count` tokens, whose successor is tokens[count]; from a new session, one token at a time. */
static void plain_draft(qm_model *model, const int32_t *tokens, int64_t count, float *logits)
{
    qm_session *session = new_session(model, "");
    for (int64_t i = 0; i < count; i++)
        expect_ok(qm_decode(&session, tokens + i, 1));
    expect_ok(qm_mtp_logits(session, tokens[count], logits));
    qm_session_free(&session);
}

static void assert_draft(qm_model *model, qm_session *session, const int32_t *tokens, int64_t count)
{
    float wanted[320], got[320];
    plain_draft(model, tokens, count, wanted);
    expect_ok(qm_mtp_logits(session, tokens[count], got));
    assert_memory_equal(got, wanted, sizeof got);
    assert_holds(model, session, tokens, count); /* the session does not change */
}

static void test_drafts(void **state)
{
    (void)state;
    int32_t tokens[TOKENS], moved[TOKENS];
    float logits[320];
    fill_tokens(tokens, TOKENS, 1);
    memcpy(moved, tokens, sizeof moved);
    moved[110] = (tokens[110] + 1) % 256;
    for (int32_t i = 0; i < 2; i++) {
        qm_model *model = load_model(files[i], "mtp=1 chunk=48");
        qm_session *session = new_session(model, ""), *fork = NULL;
        expect_code(QM_ERROR_STATE, qm_mtp_logits(session, 1, logits));
        expect_ok(qm_prefill(session, tokens, 130));
        assert_draft(model, session, tokens, 130);
        assert_draft(model, session, tokens, 130);
        expect_code(QM_ERROR_ARGUMENT, qm_mtp_logits(session, 320, logits));
        expect_ok(qm_session_fork(session, &fork));
        expect_ok(qm_decode(&session, tokens + 130, 1));
        expect_ok(qm_prefill(session, tokens + 131, 9));
        assert_draft(model, session, tokens, 140);
        assert_draft(model, fork, tokens, 130);
        expect_ok(qm_session_rewind(session, 120));
        assert_draft(model, session, tokens, 120);
        assert_true(qm_session_sync(session, moved, 150) >= 0);
        assert_draft(model, session, moved, 150);
        qm_session *both[] = { session, fork };
        const int32_t next[] = { moved[150], tokens[130] };
        expect_ok(qm_decode(both, next, 2));
        assert_draft(model, session, moved, 151);
        assert_draft(model, fork, tokens, 131);
        qm_session_free(&session);
        qm_session_free(&fork);
        qm_model_free(&model);
    }
    qm_model *model = load_model(files[0], "");
    qm_session *session = new_session(model, "");
    expect_ok(qm_prefill(session, tokens, 5));
    expect_code(QM_ERROR_STATE, qm_mtp_logits(session, 1, logits));
    qm_session_free(&session);
    qm_model_free(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forks),           cmocka_unit_test(test_rewinds),
        cmocka_unit_test(test_syncs),                 cmocka_unit_test(test_differs_near_the_end),           cmocka_unit_test(test_cancel_between_chunks),
        cmocka_unit_test(test_cancel_at_any_time), cmocka_unit_test(test_cut_then_cancel),
        cmocka_unit_test(test_drops),           cmocka_unit_test(test_drafts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
