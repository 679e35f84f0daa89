/* One model on several processes, here threads that join by real sockets: the logits are those of one process with as many
 * devices, bit for bit; and whoever leaves ends the model for all, with an error that names it. */
#include "api.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#define TOKENS 80
#define RANKS_MOST 4

/* Rank 0's model, and the jobs of those who follow it. */
typedef struct run {
    qm_model *model;
    qm_job *followers[RANKS_MOST];
    int32_t ranks;
} run;

/* A port that nobody listens at. */
static int find_port(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    socklen_t size = sizeof address;
    int descriptor = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(descriptor >= 0);
    assert_int_equal(bind(descriptor, (struct sockaddr *)&address, size), 0);
    assert_int_equal(getsockname(descriptor, (struct sockaddr *)&address, &size), 0);
    close(descriptor);
    return ntohs(address.sin_port);
}

static qm_options *options_of(const char *settings, int32_t rank, int32_t ranks, int port)
{
    char all[384];
    snprintf(all, sizeof all, "device=cpu rank=%d ranks=%d rank-id=127.0.0.1:%d/key rank-timeout=20%s%s", rank, ranks, port,
             *settings ? " " : "", settings);
    return make_options(all);
}

static run start(const char *name, const char *settings, int32_t ranks)
{
    run r = { .ranks = ranks };
    int port = find_port();
    for (int32_t i = 1; i < ranks; i++) {
        qm_options *options = options_of(settings, i, ranks, port);
        expect_ok(qm_submit_follow(data_path(name), options, &r.followers[i]));
        qm_options_free(&options);
    }
    qm_options *options = options_of(settings, 0, ranks, port);
    expect_ok(qm_model_load(data_path(name), options, &r.model));
    qm_options_free(&options);
    return r;
}

/* The followers end in peace when the model is freed. */
static void end(run *r)
{
    qm_model_free(&r->model);
    for (int32_t i = 1; i < r->ranks; i++) {
        expect_code(QM_JOB_DONE, qm_job_wait(r->followers[i], 20000));
        qm_job_free(&r->followers[i]);
    }
}

static void assert_same_logits(const qm_model *model, qm_session *a, qm_session *b)
{
    assert_memory_equal(qm_logits(a), qm_logits(b), (size_t)vocabulary_of(model) * sizeof(float));
}

/* Prompt, tokens one by one, a fork, and going back. */
static void compare(qm_model *several, qm_model *one)
{
    int32_t tokens[TOKENS];
    qm_session *a = new_session(several, ""), *b = new_session(one, ""), *fork_a = NULL, *fork_b = NULL;
    fill_tokens(tokens, TOKENS, 3);
    expect_ok(qm_prefill(a, tokens, 70));
    expect_ok(qm_prefill(b, tokens, 70));
    assert_same_logits(one, a, b);
    expect_ok(qm_session_fork(a, &fork_a));
    expect_ok(qm_session_fork(b, &fork_b));
    for (int32_t i = 70; i < 74; i++) {
        expect_ok(qm_decode(&a, tokens + i, 1));
        expect_ok(qm_decode(&b, tokens + i, 1));
        assert_same_logits(one, a, b);
    }
    expect_ok(qm_session_rewind(fork_a, 33));
    expect_ok(qm_session_rewind(fork_b, 33));
    expect_ok(qm_prefill(fork_a, tokens + 40, 10));
    expect_ok(qm_prefill(fork_b, tokens + 40, 10));
    assert_same_logits(one, fork_a, fork_b);
    qm_session_free(&a);
    qm_session_free(&b);
    qm_session_free(&fork_a);
    qm_session_free(&fork_b);
}

static void as_one_process(void **state)
{
    (void)state;
    static const struct {
        const char *model, *settings, *ranks_alone, *devices;
        int32_t ranks;
    } cases[] = {
        { "oracle/qwen35moe.gguf", "split=layers", "", "", 2 }, /* by layers the bits are those of one device */
        { "oracle/qwen35.gguf", "split=layers kv-type=q8_0", "", "", 3 },
        { "oracle/qwen3moe.gguf", "split=tensor", "", "devices=cpu,cpu", 2 },
        { "oracle/qwen3next.gguf", "split=tensor", "", "devices=cpu,cpu,cpu,cpu", 4 },
        { "oracle/qwen3.gguf", "split=tensor shares=1:2:1", "devices=cpu,rank:1,cpu", "devices=cpu,cpu,cpu", 2 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char settings[256], alone[256];
        snprintf(settings, sizeof settings, "%s%s%s", cases[i].settings, *cases[i].ranks_alone ? " " : "", cases[i].ranks_alone);
        snprintf(alone, sizeof alone, "%s%s%s", cases[i].settings, *cases[i].devices ? " " : "", cases[i].devices);
        run r = start(cases[i].model, settings, cases[i].ranks);
        qm_model *one = load_model(cases[i].model, alone);
        compare(r.model, one);
        qm_model_free(&one);
        end(&r);
    }
}

/* A follower that is cancelled ends the others; the model says so at each later call, and the session can be freed. */
static void who_leaves_is_named(void **state)
{
    (void)state;
    int32_t tokens[TOKENS], code = QM_OK;
    run r = start("oracle/qwen35moe.gguf", "split=layers", 3);
    qm_session *session = new_session(r.model, "");
    fill_tokens(tokens, TOKENS, 4);
    expect_ok(qm_prefill(session, tokens, 20));
    expect_ok(qm_job_cancel(r.followers[1]));
    expect_code(QM_ERROR_CANCELLED, qm_job_wait(r.followers[1], 20000));
    for (int32_t i = 20; i < TOKENS && code >= 0; i++) /* it may not have heard of it yet */
        code = qm_prefill(session, tokens + i, 1);
    assert_true(code < 0);
    assert_non_null(strstr(qm_error_message(), "rank 1 ("));
    assert_true(qm_prefill(session, tokens, 1) < 0);
    code = qm_job_wait(r.followers[2], 20000);
    assert_true(code < 0);
    assert_non_null(strstr(qm_error_message(), "rank 1 ("));
    qm_session_free(&session);
    qm_model_free(&r.model);
    qm_job_free(&r.followers[1]);
    qm_job_free(&r.followers[2]);
}

static void loading_is_cancelled_while_it_waits(void **state)
{
    (void)state;
    qm_options *options = options_of("", 0, 2, find_port());
    qm_job *job = NULL;
    expect_ok(qm_submit_load(data_path("oracle/qwen3.gguf"), options, &job));
    expect_code(QM_JOB_RUNNING, qm_job_wait(job, 20));
    expect_ok(qm_job_cancel(job));
    expect_code(QM_ERROR_CANCELLED, qm_job_wait(job, 20000));
    qm_job_free(&job);
    qm_options_free(&options);
}

static void expect_refusal(const char *settings, const char *part)
{
    qm_options *options = make_options(settings);
    qm_model *model = NULL;
    expect_code(QM_ERROR_OPTION, qm_model_load(data_path("oracle/qwen3.gguf"), options, &model));
    if (!strstr(qm_error_message(), part))
        fail_msg("%s: %s", settings, qm_error_message());
    qm_options_free(&options);
}

static void options_that_do_not_go_together(void **state)
{
    (void)state;
    qm_options *options = make_options("ranks=2 rank=0 rank-id=h:1/k");
    expect_refusal("rank=1", "rank is 1");
    expect_refusal("ranks=2", "rank-id");
    expect_refusal("ranks=2 rank-id=here", "HOST:PORT/KEY");
    expect_refusal("devices=cpu,rank:1", "rank:1");
    expect_refusal("ranks=2 rank-id=h:1/k devices=cpu,rank:2", "rank:2");
    expect_refusal("ranks=2 rank-id=h:1/k devices=cpu,rank:1,rank:1", "twice");
    expect_code(QM_ERROR_OPTION, qm_follow(data_path("oracle/qwen3.gguf"), options));
    assert_non_null(strstr(qm_error_message(), "rank is 0"));
    expect_code(QM_ERROR_OPTION, qm_follow(data_path("oracle/qwen3.gguf"), NULL));
    expect_code(QM_ERROR_UNSUPPORTED, qm_plan(data_path("oracle/qwen3.gguf"), options, "table", NULL, 0));
    expect_code(QM_ERROR_ARGUMENT, qm_follow(NULL, options));
    expect_code(QM_ERROR_FILE, qm_follow("/no such file", options));
    qm_options_free(&options);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_one_process),
        cmocka_unit_test(who_leaves_is_named),
        cmocka_unit_test(loading_is_cancelled_while_it_waits),
        cmocka_unit_test(options_that_do_not_go_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
