/* Memory: fails the n-th allocation for every n of loading, sessions and jobs; checks the code, and that nothing is leaked. */
#include "api.h"

#include <unistd.h>

typedef struct counter {
    pthread_mutex_t mutex;  /* callbacks come from several threads */
    int64_t until_failure;  /* allocations that still succeed; negative: all */
    bool failed;            /* did one fail? */
    int64_t live, made;
} counter;

static void *count_allocate(int64_t size, int64_t alignment, void *user)
{
    counter *c = user;
    pthread_mutex_lock(&c->mutex);
    bool fails = c->until_failure == 0;
    c->until_failure -= c->until_failure > 0;
    c->failed |= fails;
    c->live += !fails;
    c->made += !fails;
    pthread_mutex_unlock(&c->mutex);
    size_t blocks = (size_t)(size + alignment - 1) / (size_t)alignment;
    return fails ? NULL : aligned_alloc((size_t)alignment, blocks * (size_t)alignment);
}

static void count_release(void *pointer, void *user)
{
    counter *c = user;
    pthread_mutex_lock(&c->mutex);
    c->live--;
    pthread_mutex_unlock(&c->mutex);
    free(pointer);
}

/* From now on n allocations succeed, and all that follow fail. A negative n: none does. */
static void fail_after(counter *c, int64_t n)
{
    pthread_mutex_lock(&c->mutex);
    c->until_failure = n;
    c->failed &= n < 0; /* to be looked at after the failing has ended */
    c->made = 0;
    pthread_mutex_unlock(&c->mutex);
}

static int64_t read_counter(counter *c, const int64_t *field)
{
    pthread_mutex_lock(&c->mutex);
    int64_t value = *field;
    pthread_mutex_unlock(&c->mutex);
    return value;
}

static counter memory = { PTHREAD_MUTEX_INITIALIZER, -1, false, 0, 0 };

/* ---- loading ---- */

static qm_options *counted_options(const char *settings)
{
    qm_options *options = make_options(settings);
    expect_ok(qm_options_set_allocator(options, count_allocate, count_release, &memory));
    return options;
}

static void fail_loads(const char *file, const char *settings)
{
    qm_model *model = NULL;
    qm_options *options = counted_options(settings);
    int64_t before = read_counter(&memory, &memory.live), n = 0;
    int32_t code = QM_ERROR_MEMORY;
    for (; code == QM_ERROR_MEMORY && n < 100000; n++) {
        fail_after(&memory, n);
        code = qm_model_load(data_path(file), options, &model);
        fail_after(&memory, -1);
        if (code < 0) {
            assert_int_equal(code, QM_ERROR_MEMORY);
            assert_non_null(strstr(qm_error_message(), "memory"));
            assert_null(model);
            assert_int_equal(read_counter(&memory, &memory.live), before);
        }
    }
    assert_int_equal(code, QM_OK);
    assert_true(n > 20); /* so many allocations there were */
    qm_model_free(&model);
    assert_int_equal(read_counter(&memory, &memory.live), before);
    qm_options_free(&options);
    assert_int_equal(read_counter(&memory, &memory.live), 0);
}

static void test_loads(void **state)
{
    (void)state;
    fail_loads("tiny/hybrid.gguf", "mtp=1 stop=abc threads=3");
    fail_loads("tiny/attention.gguf", "");
    fail_loads("oracle/qwen35moe.gguf", "");
    fail_loads("tiny/hybrid.gguf", "mtp=1 devices=cpu,cpu split=tensor");
}

static void test_load_jobs(void **state)
{
    (void)state;
    qm_options *options = counted_options("mtp=1");
    int64_t before = read_counter(&memory, &memory.live);
    int32_t code = QM_ERROR_MEMORY;
    for (int64_t n = 0; code == QM_ERROR_MEMORY; n++) {
        qm_job *job = NULL;
        fail_after(&memory, n);
        code = qm_submit_load(data_path("tiny/hybrid.gguf"), options, &job);
        if (code >= 0)
            code = qm_job_wait(job, -1);
        fail_after(&memory, -1);
        assert_true(code == QM_ERROR_MEMORY || code == QM_JOB_DONE);
        qm_job_free(&job); /* with its model */
        assert_int_equal(read_counter(&memory, &memory.live), before);
    }
    qm_options_free(&options);
}

/* ---- everything else: an action on a model, with a session that holds some tokens ---- */

typedef struct scene {
    qm_model *model;
    qm_session *session;
    int32_t tokens[100];
} scene;

static int32_t new_and_free(scene *s)
{
    qm_session *session = NULL;
    int32_t code = qm_session_new(s->model, NULL, &session);
    assert_true((code < 0) == !session);
    qm_session_free(&session);
    return code;
}

static int32_t fork_and_free(scene *s)
{
    qm_session *fork = NULL;
    int32_t code = qm_session_fork(s->session, &fork);
    assert_true((code < 0) == !fork);
    if (fork)
        assert_int_equal(qm_session_length(fork), qm_session_length(s->session));
    qm_session_free(&fork);
    return code;
}

static int32_t prefill(scene *s)
{
    return qm_prefill(s->session, s->tokens + 50, 50);
}

static int32_t decode(scene *s)
{
    return qm_decode(&s->session, s->tokens + 50, 1);
}

static int32_t rewind_half(scene *s)
{
    return qm_session_rewind(s->session, 25);
}

static int32_t sync_all(scene *s)
{
    int64_t code = qm_session_sync(s->session, s->tokens, 100);
    return code < 0 ? (int32_t)code : 0;
}

static int32_t draft(scene *s)
{
    float logits[320];
    return qm_mtp_logits(s->session, 1, logits);
}

static int32_t save_and_restore(scene *s)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/qwenmoe-memory-%ld.session", (long)getpid());
    int32_t code = qm_session_save(s->session, path);
    if (code >= 0)
        code = qm_session_restore(s->session, path);
    unlink(path);
    return code;
}

static int32_t set_stop(scene *s)
{
    return qm_session_set(s->session, "stop", "[\"abc\", \"defg\"]");
}

static int32_t set_bias(scene *s)
{
    return qm_session_set(s->session, "logit-bias", "5:1,6:-inf");
}

static int32_t tokenize(scene *s)
{
    int64_t count = qm_tokenize(s->model, "hello <think> h\xc3\xa9llo", -1, QM_SPECIAL_ALL, NULL, 0);
    return count < 0 ? (int32_t)count : 0;
}

static int32_t tokenize_job(scene *s)
{
    qm_job *job = NULL;
    int32_t code = qm_submit_tokenize(s->model, "hello <think>", -1, QM_SPECIAL_ALL, &job);
    if (code >= 0)
        code = qm_job_wait(job, -1);
    qm_job_free(&job);
    return code;
}

static int32_t chat_tokens(scene *s)
{
    const char *messages = "[{\"role\":\"user\",\"content\":\"<think>\"},{\"role\":\"user\",\"content\":\"Hi\"}]";
    int64_t count = qm_chat_tokens(s->model, messages, -1, NULL, 0, -1, 1, NULL, 0);
    return count < 0 ? (int32_t)count : 0;
}

static int32_t chat_tokens_job(scene *s)
{
    qm_job *job = NULL;
    int32_t code = qm_submit_chat_tokens(s->model, "[{\"role\":\"user\",\"content\":\"Hi\"}]", -1, NULL, 0, -1, 1, &job);
    if (code >= 0)
        code = qm_job_wait(job, -1);
    qm_job_free(&job);
    return code;
}

/* Text is read only at the end, so that the queue has to grow too. */
static int32_t generate(scene *s)
{
    qm_job *job = NULL;
    int32_t code = qm_submit_generate(s->session, s->tokens + 50, 10, &job);
    if (code >= 0) {
        struct { char text[8]; int32_t kind; } piece;
        while (qm_job_poll(job) == QM_JOB_RUNNING)
            qm_job_wait(job, 1);
        code = qm_job_poll(job);
        assert_string_equal(qm_job_finish(job), code < 0 ? "error" : "length");
        while (qm_job_read(job, piece.text, sizeof piece.text, &piece.kind) > 0)
            ;
    }
    qm_job_free(&job);
    return code;
}

static int32_t plan(scene *s)
{
    (void)s;
    qm_options *options = counted_options("");
    int64_t code = qm_plan(data_path("tiny/hybrid.gguf"), options, "json", NULL, 0);
    qm_options_free(&options);
    return code < 0 ? (int32_t)code : 0;
}

static void start_scene(scene *s, const char *file, bool checkpoints)
{
    qm_options *options = counted_options("mtp=1 context=1000 temperature=3 answer-tokens=200 ignore-end=1 seed=1");
    if (!checkpoints)
        expect_ok(qm_options_set(options, "checkpoint-memory", "0"));
    fill_tokens(s->tokens, 100, 1);
    expect_ok(qm_model_load(data_path(file), options, &s->model));
    qm_options_free(&options);
    expect_ok(qm_session_new(s->model, NULL, &s->session));
    expect_ok(qm_prefill(s->session, s->tokens, 50));
}

static void end_scene(scene *s)
{
    qm_session_free(&s->session);
    qm_model_free(&s->model);
    assert_int_equal(read_counter(&memory, &memory.live), 0);
}

/* Fails each allocation of the action in turn. An action that failed must have left the session usable, and nothing behind but
 * what checkpoints took or gave up. */
static void fail_action(const char *file, bool checkpoints, int32_t (*action)(scene *))
{
    scene s = { 0 };
    start_scene(&s, file, checkpoints);
    for (int64_t n = 0, failed = 1; failed; n++) {
        int64_t before = read_counter(&memory, &memory.live);
        fail_after(&memory, n);
        int32_t code = action(&s);
        fail_after(&memory, -1);
        failed = memory.failed; /* perhaps a checkpoint was not made, and all is well */
        assert_true(code == QM_OK || (failed && code == QM_ERROR_MEMORY));
        if (code == QM_ERROR_MEMORY && !checkpoints)
            assert_true(read_counter(&memory, &memory.live) <= before);
        if (failed) {
            int32_t held[1000];
            int64_t length = qm_session_tokens(s.session, held, 1000);
            assert_true(length >= 0);
            if (code == QM_ERROR_MEMORY && length > 0)
                assert_holds(s.model, s.session, held, length);
            assert_true(qm_session_sync(s.session, s.tokens, 50) >= 0);
        }
        assert_true(n < 5000);
    }
    end_scene(&s);
}

#define ACTION_TEST(action) \
    static void test_##action(void **state) \
    { \
        (void)state; \
        for (int checkpoints = 0; checkpoints < 2; checkpoints++) { \
            fail_action("tiny/hybrid.gguf", checkpoints, action); \
            fail_action("tiny/attention.gguf", checkpoints, action); \
        } \
    }

ACTION_TEST(new_and_free)
ACTION_TEST(fork_and_free)
ACTION_TEST(prefill)
ACTION_TEST(decode)
ACTION_TEST(rewind_half)
ACTION_TEST(sync_all)
ACTION_TEST(draft)
ACTION_TEST(save_and_restore)
ACTION_TEST(set_stop)
ACTION_TEST(set_bias)
ACTION_TEST(tokenize)
ACTION_TEST(tokenize_job)
ACTION_TEST(chat_tokens)
ACTION_TEST(chat_tokens_job)
ACTION_TEST(generate)
ACTION_TEST(plan)

/* A constrained answer, of a model anew each time, since models keep what they made of a schema. Late allocations are alike, so
 * steps grow. */
static void test_constrained(void **state)
{
    static const char schema[] = "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\",\"pattern\":\"^[a-f]{2,9}$\"},\"b\":"
                                 "{\"type\":\"array\",\"items\":{\"enum\":[1,null]},\"maxItems\":9}},\"required\":[\"a\",\"b\"]}";
    bool failed = true;
    (void)state;
    for (int64_t n = 0; failed; n += 1 + n / 16) {
        scene s = { 0 };
        qm_job *job = NULL;
        start_scene(&s, "tiny/attention.gguf", false);
        fail_after(&memory, n);
        int32_t code = qm_session_set(s.session, "json-schema", schema);
        if (code >= 0)
            code = qm_submit_generate(s.session, s.tokens, 1, &job);
        while (code >= 0 && (code = qm_job_poll(job)) == QM_JOB_RUNNING)
            qm_job_wait(job, 1);
        fail_after(&memory, -1);
        failed = memory.failed;
        assert_int_equal(code, failed ? QM_ERROR_MEMORY : QM_JOB_DONE);
        assert_true(failed || strcmp(qm_job_finish(job), "end") == 0);
        qm_job_free(&job);
        assert_int_equal(qm_session_length(s.session) > 0, 1);
        end_scene(&s);
        assert_true(n < 100000);
    }
}

/* Sessions take memory as they grow. Where there is no more, a call fails, its session stays as it was, and what another gives
 * back can be used. */
static void fill_memory(const char *settings)
{
    enum { MOST = 200, LONG = 900 };
    int32_t tokens[LONG];
    fill_tokens(tokens, LONG, 3);
    qm_model *model = load_model("tiny/hybrid.gguf", settings);
    qm_session *sessions[MOST] = { NULL };
    int32_t made = 0, code = QM_OK;
    for (; made < MOST && code >= 0; made++) {
        expect_ok(qm_session_new(model, NULL, &sessions[made]));
        code = qm_prefill(sessions[made], tokens + made % 100, LONG - 100);
    }
    assert_true(made > 1 && made < MOST); /* the last one failed, and holds what was computed */
    assert_int_equal(code, QM_ERROR_MEMORY);
    assert_non_null(strstr(qm_error_message(), "memory"));
    qm_session *last = sessions[made - 1];
    int64_t length = qm_session_length(last), start = (made - 1) % 100;
    assert_true(length < LONG - 100);
    qm_session_free(&sessions[0]);
    expect_ok(qm_prefill(last, tokens + start + length, LONG - 100 - length));
    for (int32_t i = 1; i < made - 1; i++)
        qm_session_free(&sessions[i]);
    assert_holds(model, last, tokens + start, LONG - 100);
    qm_session_free(&sessions[made - 1]);
    qm_model_free(&model);
}

static void test_limits(void **state)
{
    (void)state;
    fill_memory("memory-limit=30000000 context=1000 answer-tokens=10");
    fill_memory("kv-memory=3000000 context=1000 answer-tokens=10");
    qm_model *model = load_model("tiny/hybrid.gguf", "kv-memory=200000 context=300 answer-tokens=10");
    qm_options *options = make_options("context=1000 answer-tokens=10");
    qm_session *session = NULL;
    expect_code(QM_ERROR_FIT, qm_session_new(model, options, &session)); /* 1000 tokens of 512 bytes */
    assert_non_null(strstr(qm_error_message(), "kv-memory"));
    qm_options_free(&options);
    qm_model_free(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loads),         cmocka_unit_test(test_load_jobs), cmocka_unit_test(test_new_and_free),
        cmocka_unit_test(test_fork_and_free), cmocka_unit_test(test_prefill),   cmocka_unit_test(test_decode),
        cmocka_unit_test(test_rewind_half),   cmocka_unit_test(test_sync_all),  cmocka_unit_test(test_draft),
        cmocka_unit_test(test_save_and_restore),
       
        cmocka_unit_test(test_set_stop),      cmocka_unit_test(test_set_bias),  cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_tokenize_job),  cmocka_unit_test(test_chat_tokens),
        cmocka_unit_test(test_chat_tokens_job),  cmocka_unit_test(test_generate),  cmocka_unit_test(test_plan),
        cmocka_unit_test(test_constrained),
        cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
