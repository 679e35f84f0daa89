/* Jobs: generating, reading pieces, waiting, watching, cancelling, and freeing in any order. */
#include "api.h"

#include <math.h>
#include <poll.h>

enum { THINK = 316, THINK_END = 317, IM_END = 315, IM_START = 314 }; /* ids of the tiny models */

static bool readable(const qm_job *job)
{
    struct pollfd watch = { .fd = qm_job_descriptor(job), .events = POLLIN };
    return poll(&watch, 1, 0) == 1;
}

static void await_readable(const qm_job *job)
{
    struct pollfd watch = { .fd = qm_job_descriptor(job), .events = POLLIN };
    assert_int_equal(poll(&watch, 1, -1), 1);
}

/* ---- generating ---- */

static void test_greedy_is_the_reference(void **state)
{
    (void)state;
    static const char *const names[] = { "tiny/hybrid", "tiny/attention", "oracle/qwen35moe", "oracle/qwen3" };
    for (size_t i = 0; i < 4; i++) {
        char path[64], text[24];
        expect e;
        int64_t count = 0, wanted_count = 0;
        int32_t got[64];
        snprintf(path, sizeof path, "%s.expect.gguf", names[i]);
        assert_true(expect_open(data_path(path), &e));
        int32_t *prompt = expect_ints(&e, "short.tokens", &count), *wanted = expect_ints(&e, "short.greedy", &wanted_count);
        snprintf(path, sizeof path, "%s.gguf", names[i]);
        qm_model *model = load_model(path, "kv-type=f32 temperature=0 ignore-end=1");
        qm_session *session = NULL;
        qm_job *job = NULL;
        expect_ok(qm_session_new(model, NULL, &session));
        snprintf(text, sizeof text, "%lld", (long long)wanted_count);
        expect_ok(qm_session_set(session, "answer-tokens", text));
        expect_ok(qm_submit_generate(session, prompt, count, &job));
        expect_code(QM_JOB_DONE, read_job(job, NULL, 0));
        assert_string_equal(qm_job_finish(job), "length");
        assert_int_equal(qm_job_tokens(job, got, 64), wanted_count);
        assert_memory_equal(got, wanted, (size_t)wanted_count * sizeof *got);
        assert_int_equal(qm_session_length(session), count + wanted_count); /* all of them are appended */
        assert_true(job_number(job, "tokens_total") == (double)count);
        assert_true(job_number(job, "tokens_prefilled") == (double)count);
        assert_true(job_number(job, "tokens_generated") == (double)wanted_count);
        assert_true(job_number(job, "seconds_first") > 0);
        assert_true(job_number(job, "seconds_prefill") > 0);
        assert_true(job_number(job, "seconds_decode") > 0);
        qm_job_free(&job);
        qm_session_free(&session);
        qm_model_free(&model);
        free(prompt);
        free(wanted);
        expect_close(&e);
    }
}

/* Generates and returns the text; tokens may be NULL. */
static char *generate(qm_session *session, const int32_t *prompt, int64_t count, const char *finish)
{
    qm_job *job = NULL;
    char *pieces = malloc(20000), *whole = malloc(20000);
    assert_true(pieces && whole);
    expect_ok(qm_submit_generate(session, prompt, count, &job));
    expect_code(QM_JOB_DONE, read_job(job, pieces, 20000));
    assert_string_equal(qm_job_finish(job), finish);
    assert_true(qm_job_text(job, whole, 20000) < 20000);
    assert_string_equal(pieces, whole); /* as long as there are no marks in it */
    qm_job_free(&job);
    free(whole);
    return pieces;
}

static void test_seeds(void **state)
{
    (void)state;
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    int32_t prompt[12];
    char *texts[4];
    static const char *const seeds[] = { "seed=1", "seed=1", "seed=2", "seed=1" };
    fill_tokens(prompt, 12, 5);
    for (int32_t i = 0; i < 4; i++) {
        char settings[160];
        snprintf(settings, sizeof settings, "temperature=2 top-k=0 top-p=1 answer-tokens=40 ignore-end=1 logit-bias=316:-inf %s",
                 seeds[i]);
        qm_session *session = new_session(model, settings);
        texts[i] = generate(session, prompt, 12, "length");
        qm_session_free(&session);
    }
    assert_string_equal(texts[0], texts[1]);
    assert_string_not_equal(texts[0], texts[2]);
    assert_string_equal(texts[0], texts[3]);
    for (int32_t i = 0; i < 4; i++)
        free(texts[i]);
    qm_model_free(&model);
}

/* A bias decides what is sampled: 258 is "hell", IM_END ends the turn. */
static void test_finishes(void **state)
{
    (void)state;
    const int32_t prompt[] = { 1, 2, 3 };
    int32_t tokens[8], more[16];
    qm_job *job = NULL;
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    qm_session *session = new_session(model, "temperature=0 answer-tokens=5 logit-bias=258:1000");
    expect_code(QM_ERROR_STATE, qm_submit_generate(session, NULL, 0, &job));
    assert_null(job);
    char *text = generate(session, prompt, 3, "length");
    assert_string_equal(text, "hellhellhellhellhell");
    free(text);
    assert_int_equal(qm_session_length(session), 8);

    expect_ok(qm_session_set(session, "stop", "lhe"));
    text = generate(session, NULL, 0, "stop");
    assert_string_equal(text, "hel");
    free(text);
    assert_int_equal(qm_session_length(session), 10); /* the tokens of the stop string stay */

    expect_ok(qm_session_set(session, "stop", NULL));
    expect_ok(qm_session_set(session, "logit-bias", "315:1000"));
    expect_ok(qm_submit_generate(session, prompt, 1, &job));
    expect_code(QM_JOB_DONE, read_job(job, NULL, 0));
    assert_string_equal(qm_job_finish(job), "end");
    assert_int_equal(qm_job_text(job, NULL, 0), 0); /* the end of the turn is no text, */
    assert_int_equal(qm_job_tokens(job, tokens, 8), 1);
    assert_int_equal(tokens[0], IM_END); /* but it is in the session, as the next prompt will have it */
    assert_int_equal(qm_session_tokens(session, more, 16), 12);
    assert_int_equal(more[11], IM_END);
    qm_job_free(&job);
    assert_holds(model, session, more, 12);
    qm_session_free(&session);

    session = new_session(model, "context=12 temperature=0 answer-tokens=0 logit-bias=258:1000");
    text = generate(session, prompt, 3, "context");
    assert_int_equal(strlen(text), 9 * 4);
    free(text);
    assert_int_equal(qm_session_length(session), 12);
    expect_code(QM_ERROR_CONTEXT, qm_submit_generate(session, prompt, 1, &job));
    text = generate(session, NULL, 0, "context");
    assert_string_equal(text, "");
    free(text);
    qm_session_free(&session);
    qm_model_free(&model);
}

/* ---- log probabilities ---- */

static void test_logprobs(void **state)
{
    (void)state;
    const int32_t prompt[] = { 5, 6, 7 };
    int32_t held[8], top[8];
    float own[4], values[8];
    qm_job *job = NULL;
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    /* What is said of a token is the model's own, though the bias decides. */
    qm_session *session = new_session(model, "temperature=0 answer-tokens=4 ignore-end=1 logprobs=2 logit-bias=258:1000");
    expect_ok(qm_submit_generate(session, prompt, 3, &job));
    expect_code(QM_JOB_DONE, read_job(job, NULL, 0));
    assert_int_equal(qm_session_tokens(session, held, 8), 7);
    assert_int_equal(qm_job_logprobs(job, 0, own, top, values, 4), 4);
    for (int32_t i = 0; i < 4; i++) {
        float *logits = plain_logits(model, held, 3 + i);
        double sum = 0;
        int32_t best = 0;
        for (int64_t t = 0; t < vocabulary_of(model); t++) {
            sum += exp((double)logits[t]);
            best = logits[t] > logits[best] ? (int32_t)t : best;
        }
        assert_int_equal(held[3 + i], 258);
        assert_true(fabs(own[i] - (logits[258] - log(sum))) < 1e-4);
        assert_int_equal(top[2 * i], best);
        assert_true(fabs(values[2 * i] - (logits[best] - log(sum))) < 1e-4);
        assert_true(fabs(values[2 * i + 1] - (logits[top[2 * i + 1]] - log(sum))) < 1e-4);
        free(logits);
    }
    assert_int_equal(qm_job_logprobs(job, 3, NULL, NULL, NULL, 0), 1);
    expect_code(QM_ERROR_ARGUMENT, qm_job_logprobs(job, -1, own, top, values, 4));
    expect_code(QM_ERROR_ARGUMENT, qm_job_logprobs(NULL, 0, own, top, values, 4));
    qm_job_free(&job);
    expect_ok(qm_session_set(session, "logprobs", "-1"));
    expect_ok(qm_submit_generate(session, NULL, 0, &job));
    expect_code(QM_JOB_DONE, read_job(job, NULL, 0));
    expect_code(QM_ERROR_STATE, qm_job_logprobs(job, 0, own, top, values, 4));
    qm_job_free(&job);
    qm_session_free(&session);
    qm_model_free(&model);
}

/* ---- thoughts ---- */

/* Reads all pieces, apart by kind. */
static int32_t read_kinds(qm_job *job, char *answer, char *thought, size_t size)
{
    char piece[64];
    int32_t state, kind;
    answer[0] = thought[0] = 0;
    do {
        state = qm_job_wait(job, -1);
        while (qm_job_read(job, piece, sizeof piece, &kind) > 0) {
            char *to = kind == QM_PIECE_THOUGHT ? thought : answer;
            if (strlen(to) + strlen(piece) < size)
                strcat(to, piece);
        }
    } while (state == QM_JOB_RUNNING);
    return state;
}

static void test_thinking_budget(void **state)
{
    (void)state;
    const int32_t prompt[] = { IM_START, 1, THINK, 10 };
    char answer[256], thought[256], whole[256];
    qm_job *job = NULL;
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    qm_session *session = new_session(model, "temperature=0 answer-tokens=30 thinking-tokens=6 logit-bias=258:1000");
    expect_ok(qm_submit_generate(session, prompt, 4, &job));
    expect_code(QM_JOB_DONE, read_kinds(job, answer, thought, sizeof answer));
    assert_non_null(strstr(thought, "hellhellhellhellhellhell"));
    assert_null(strstr(thought, "hellhellhellhellhellhellhell"));
    assert_memory_equal(answer, "hellhell", 8);
    assert_true(qm_job_text(job, whole, sizeof whole) > 0);
    assert_non_null(strstr(whole, "</think>"));
    assert_true(job_number(job, "tokens_thought") == 6);
    assert_string_equal(qm_job_finish(job), "length");
    qm_job_free(&job);
    qm_session_free(&session);

    /* thoughts that the prompt closed are none */
    const int32_t closed[] = { IM_START, THINK, 1, THINK_END };
    session = new_session(model, "temperature=0 answer-tokens=4 thinking-tokens=1 logit-bias=258:1000");
    expect_ok(qm_submit_generate(session, closed, 4, &job));
    expect_code(QM_JOB_DONE, read_kinds(job, answer, thought, sizeof answer));
    assert_string_equal(answer, "hellhellhellhell");
    assert_string_equal(thought, "");
    qm_job_free(&job);

    /* neither are those of an earlier turn */
    const int32_t turns[] = { THINK, 1, IM_START, 5 };
    expect_ok(qm_submit_generate(session, turns, 4, &job));
    expect_code(QM_JOB_DONE, read_kinds(job, answer, thought, sizeof answer));
    assert_string_equal(thought, "");
    qm_job_free(&job);
    qm_session_free(&session);
    qm_model_free(&model);
}

static void test_end_thinking(void **state)
{
    (void)state;
    const int32_t prompt[] = { IM_START, THINK, 10 };
    char answer[256], thought[256];
    gate held = CLOSED_GATE;
    qm_job *job = NULL;
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    qm_session *session = new_session(model, "temperature=0 answer-tokens=5 logit-bias=258:1000");
    expect_ok(qm_submit_generate(session, prompt, 3, &job));
    expect_code(QM_JOB_DONE, read_kinds(job, answer, thought, sizeof answer));
    assert_string_equal(thought, "hellhellhellhellhell"); /* nobody ended it */
    assert_string_equal(answer, "");
    qm_job_free(&job);
    qm_session_free(&session);

    session = gated_session(model, "temperature=0 answer-tokens=20 logit-bias=258:1000", &held);
    expect_ok(qm_submit_generate(session, prompt, 3, &job));
    await_gate(&held);
    expect_ok(qm_job_end_thinking(job));
    open_gate(&held);
    expect_code(QM_JOB_DONE, read_kinds(job, answer, thought, sizeof answer));
    assert_null(strstr(thought, "hell"));
    assert_memory_equal(answer, "hell", 4);
    qm_job_free(&job);
    qm_session_free(&session);
    qm_model_free(&model);
}

/* ---- pieces, descriptor ---- */

static void test_pieces_are_whole_code_points(void **state)
{
    (void)state;
    const int32_t prompt[] = { 1 };
    char settings[200], text[8];
    int32_t euro[4], kind;
    qm_job *job = NULL;
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    assert_int_equal(qm_tokenize(model, "\xe2\x82\xac", -1, QM_SPECIAL_NONE, euro, 4), 3); /* three bytes, three tokens */
    snprintf(settings, sizeof settings, "temperature=0 answer-tokens=9 logit-bias=%d:1000 frequency-penalty=0", euro[0]);
    qm_session *session = new_session(model, settings);
    /* The first byte again and again is no text: each is replaced when the next comes. */
    expect_ok(qm_submit_generate(session, prompt, 1, &job));
    while (qm_job_wait(job, -1) == QM_JOB_RUNNING || readable(job)) {
        int64_t length = qm_job_read(job, text, 8, &kind);
        if (length == 0)
            break;
        assert_true(length % 3 == 0 && length <= 6); /* at most size - 1, and whole */
        for (int64_t i = 0; i < length; i += 3)
            assert_memory_equal(text + i, "\xef\xbf\xbd", 3);
    }
    qm_job_free(&job);
    qm_session_free(&session);
    qm_model_free(&model);
}

static void test_descriptor(void **state)
{
    (void)state;
    int32_t prompt[300], kind;
    char text[64];
    qm_job *job = NULL;
    fill_tokens(prompt, 300, 1);
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    qm_session *session = new_session(model, "temperature=0 answer-tokens=50 logit-bias=258:1000");
    expect_ok(qm_submit_generate(session, prompt, 300, &job));
    assert_true(qm_job_descriptor(job) >= 0);
    size_t length = 0;
    for (bool ended = false; !ended;) {
        await_readable(job);
        ended = qm_job_poll(job) != QM_JOB_RUNNING;
        for (int64_t got; (got = qm_job_read(job, text, sizeof text, &kind)) > 0; length += (size_t)got)
            assert_int_equal(kind, QM_PIECE_ANSWER);
    }
    assert_int_equal(length, 50 * 4);
    assert_true(readable(job)); /* as it has ended */
    assert_int_equal(qm_job_read(job, text, sizeof text, &kind), 0);
    assert_true(readable(job));
    qm_job_free(&job);

    expect_ok(qm_session_rewind(session, 0));
    expect_ok(qm_submit_prefill(session, prompt, 300, &job));
    await_readable(job);
    expect_code(QM_JOB_DONE, qm_job_poll(job));
    assert_string_equal(qm_job_finish(job), "");
    qm_job_free(&job);
    assert_holds(model, session, prompt, 300);
    qm_session_free(&session);
    qm_model_free(&model);
}

/* ---- the other kinds ---- */

static void test_jobs_equal_calls(void **state)
{
    (void)state;
    int32_t tokens[120];
    qm_job *job = NULL;
    fill_tokens(tokens, 120, 4);
    qm_model *model = load_model("tiny/attention.gguf", "mtp=1");
    qm_session *sessions[] = { new_session(model, ""), new_session(model, "") };
    expect_ok(qm_submit_prefill(sessions[0], tokens, 100, &job));
    expect_code(QM_JOB_DONE, qm_job_wait(job, -1));
    assert_true(job_number(job, "tokens_prefilled") == 100);
    qm_job_free(&job);
    const int32_t next[] = { tokens[100], tokens[0] };
    expect_ok(qm_submit_decode(sessions, next, 2, &job));
    expect_code(QM_JOB_DONE, qm_job_wait(job, -1));
    qm_job_free(&job);
    assert_holds(model, sessions[0], tokens, 101);
    assert_holds(model, sessions[1], tokens, 1);
    expect_ok(qm_submit_rewind(sessions[0], 90, &job));
    expect_code(QM_JOB_DONE, qm_job_wait(job, -1));
    qm_job_free(&job);
    assert_holds(model, sessions[0], tokens, 90);
    expect_ok(qm_submit_sync(sessions[0], tokens, 120, &job));
    expect_code(QM_JOB_DONE, qm_job_wait(job, -1));
    double reused = job_number(job, "tokens_reused");
    assert_true(reused >= 90);
    assert_true(job_number(job, "tokens_total") == 120 - reused || job_number(job, "tokens_total") == 119 - reused);
    qm_job_free(&job);
    assert_holds(model, sessions[0], tokens, 120);
    expect_code(QM_ERROR_ARGUMENT, qm_submit_rewind(sessions[0], 121, &job));
    assert_null(job);
    qm_session_free(&sessions[0]);
    qm_session_free(&sessions[1]);
    qm_model_free(&model);
}

static void test_load_job(void **state)
{
    (void)state;
    qm_job *job = NULL;
    qm_model *model = NULL, *again = NULL;
    qm_options *options = make_options("read-ahead=1");
    expect_ok(qm_submit_load(data_path("tiny/hybrid.gguf"), options, &job));
    qm_options_free(&options); /* was copied */
    await_readable(job);
    expect_code(QM_JOB_DONE, qm_job_poll(job));
    expect_ok(qm_job_model(job, &model));
    expect_code(QM_ERROR_STATE, qm_job_model(job, &again));
    assert_null(again);
    qm_job_free(&job);
    const int32_t tokens[] = { 1, 2, 3 };
    qm_session *session = new_session(model, "");
    expect_ok(qm_prefill(session, tokens, 3));
    assert_holds(model, session, tokens, 3);
    qm_session_free(&session);
    qm_model_free(&model);
    expect_ok(qm_submit_load(data_path("tiny/hybrid.gguf"), NULL, &job));
    qm_job_free(&job); /* at any time, with the model that it has made or not */
    expect_ok(qm_submit_load(data_path("tiny/hybrid.gguf"), NULL, &job));
    qm_job_wait(job, -1);
    qm_job_free(&job);
}

/* ---- busy, cancel, order of freeing ---- */

static void test_busy(void **state)
{
    (void)state;
    int32_t prompt[5], token;
    gate held = CLOSED_GATE;
    qm_job *job = NULL, *second = NULL;
    qm_session *fork = NULL;
    fill_tokens(prompt, 5, 1);
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    qm_session *session = gated_session(model, "temperature=0", &held), *other = new_session(model, "");
    expect_ok(qm_submit_generate(session, prompt, 5, &job));
    await_gate(&held);
    qm_session *both[] = { other, session };
    expect_code(QM_ERROR_BUSY, qm_prefill(session, prompt, 1));
    expect_code(QM_ERROR_BUSY, qm_submit_generate(session, prompt, 1, &second));
    assert_null(second);
    expect_code(QM_ERROR_BUSY, qm_decode(both, prompt, 2));
    expect_code(QM_ERROR_BUSY, qm_session_rewind(session, 0));
    expect_code(QM_ERROR_BUSY, qm_session_sync(session, prompt, 1));
    expect_code(QM_ERROR_BUSY, qm_session_fork(session, &fork));
    expect_code(QM_ERROR_BUSY, qm_session_set(session, "seed", "1"));
    expect_code(QM_ERROR_BUSY, qm_sample(session, &token));
    expect_code(QM_ERROR_BUSY, qm_session_tokens(session, NULL, 0));
    assert_null(qm_logits(session));
    assert_int_equal(qm_session_length(session), 5);
    expect_code(QM_JOB_RUNNING, qm_job_poll(job));
    expect_code(QM_JOB_RUNNING, qm_job_wait(job, 1));
    assert_false(readable(job));
    assert_string_equal(qm_job_finish(job), "");
    expect_ok(qm_job_cancel(job));
    open_gate(&held);
    expect_code(QM_ERROR_CANCELLED, read_job(job, NULL, 0));
    assert_string_equal(qm_job_finish(job), "cancelled");
    assert_holds(model, session, prompt, 5); /* what was computed before stays */
    expect_ok(qm_decode(both, prompt, 2));   /* idle again, both */
    qm_job_free(&job);
    qm_session_free(&session);
    qm_session_free(&other);
    qm_model_free(&model);
}

static void test_freed_in_any_order(void **state)
{
    (void)state;
    int32_t prompt[400];
    fill_tokens(prompt, 400, 1);
    for (int32_t order = 0; order < 6; order++) {
        static const char *const orders[] = { "msj", "mjs", "smj", "sjm", "jms", "jsm" };
        qm_model *model = load_model("tiny/hybrid.gguf", "chunk=16");
        qm_session *session = new_session(model, "temperature=0 logit-bias=258:1000");
        qm_job *job = NULL;
        expect_ok(qm_submit_generate(session, prompt, 400, &job));
        if (order % 2)
            await_readable(job);
        for (const char *next = orders[order]; *next; next++) {
            if (*next == 'm')
                qm_model_free(&model);
            else if (*next == 's')
                qm_session_free(&session);
            else
                qm_job_free(&job);
            if (!session && job)
                assert_true(qm_job_poll(job) != QM_JOB_RUNNING);
        }
    }
}

/* ---- jobs of several sessions ---- */

static void test_jobs_advance_together(void **state)
{
    (void)state;
    enum { SESSIONS = 10 };
    int32_t prompts[SESSIONS][70], tokens[SESSIONS][24], alone[24];
    qm_session *sessions[SESSIONS];
    qm_job *jobs[SESSIONS];
    const char *settings = "temperature=1.5 top-k=0 top-p=1 seed=9 answer-tokens=24 ignore-end=1";
    qm_model *model = load_model("tiny/hybrid.gguf", "mtp=1 sequences=4");
    for (int32_t i = 0; i < SESSIONS; i++) {
        fill_tokens(prompts[i], 70, (uint32_t)i);
        sessions[i] = new_session(model, settings);
        expect_ok(qm_submit_generate(sessions[i], prompts[i], 7 * (i + 1), &jobs[i]));
    }
    for (int32_t i = 0; i < SESSIONS; i++) {
        expect_code(QM_JOB_DONE, read_job(jobs[i], NULL, 0));
        assert_int_equal(qm_job_tokens(jobs[i], tokens[i], 24), 24);
        qm_job_free(&jobs[i]);
        qm_session_free(&sessions[i]);
    }
    for (int32_t i = 0; i < SESSIONS; i += 3) {
        qm_session *session = new_session(model, settings);
        qm_job *job = NULL;
        expect_ok(qm_submit_generate(session, prompts[i], 7 * (i + 1), &job));
        expect_code(QM_JOB_DONE, read_job(job, NULL, 0));
        qm_job_tokens(job, alone, 24);
        assert_memory_equal(alone, tokens[i], sizeof alone);
        qm_job_free(&job);
        qm_session_free(&session);
    }
    qm_model_free(&model);
}

/* As long as a job of higher priority is under way, the other's tokens do not become more. */
static void test_priority(void **state)
{
    (void)state;
    int32_t prompt[8];
    qm_job *low_job = NULL, *high_job = NULL;
    fill_tokens(prompt, 8, 1);
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    qm_session *low = new_session(model, "temperature=0 context=1000 answer-tokens=0 logit-bias=258:1000");
    qm_session *high = new_session(model, "temperature=0 context=1000 answer-tokens=0 logit-bias=258:1000 priority=1");
    expect_ok(qm_submit_generate(low, prompt, 8, &low_job));
    expect_ok(qm_submit_generate(high, prompt, 8, &high_job));
    await_readable(high_job);
    double before = job_number(low_job, "tokens_generated"), after;
    do
        after = job_number(low_job, "tokens_generated");
    while (job_number(high_job, "tokens_generated") < 300 && after == before);
    if (qm_job_poll(high_job) == QM_JOB_RUNNING) /* else this thread was away for long, and nothing can be told */
        assert_true(after == before);
    qm_job_free(&low_job);
    qm_job_free(&high_job);
    qm_session_free(&low);
    qm_session_free(&high);
    qm_model_free(&model);
}

typedef struct chunk_watch {
    int64_t last;
    bool small; /* a chunk of 64 tokens was seen where 192 were left */
} chunk_watch;

static int32_t watch_chunks(const char *stage, int64_t done, int64_t total, void *user)
{
    (void)stage;
    chunk_watch *watch = user;
    watch->small |= done - watch->last == 64 && total - watch->last > 192;
    watch->last = done;
    return 0;
}

/* A chunk of a prompt is given up for a job of higher priority, and computed again in small pieces, to the same bits. When nobody
 * comes chunks are large, so a small one tells that it happened. It does not each time: the other may come between two chunks. */
static void test_overtaking(void **state)
{
    (void)state;
    enum { COUNT = 960 };
    int32_t prompt[COUNT];
    chunk_watch watch = { 0, false };
    qm_session *low = NULL;
    fill_tokens(prompt, COUNT, 1);
    qm_model *model = load_model("tiny/hybrid.gguf", "chunk=192 context=1000 answer-tokens=8 checkpoint-memory=0");
    qm_session *high = new_session(model, "priority=1 context=1000 answer-tokens=8");
    qm_options *options = make_options("context=1000 answer-tokens=8");
    expect_ok(qm_options_set_progress(options, watch_chunks, &watch));
    expect_ok(qm_session_new(model, options, &low));
    expect_ok(qm_prefill(low, prompt, COUNT));
    assert_false(watch.small);
    for (int32_t i = 0; i < 1000 && !watch.small; i++) {
        qm_job *low_job = NULL, *high_job = NULL;
        expect_ok(qm_session_rewind(low, 0));
        watch.last = 0;
        expect_ok(qm_submit_prefill(low, prompt, COUNT, &low_job));
        while (job_number(low_job, "tokens_prefilled") < 192 && qm_job_poll(low_job) == QM_JOB_RUNNING)
            sched_yield();
        expect_ok(qm_session_rewind(high, 0));
        expect_ok(qm_submit_prefill(high, prompt, 1, &high_job));
        expect_code(QM_JOB_DONE, qm_job_wait(high_job, -1));
        expect_code(QM_JOB_DONE, qm_job_wait(low_job, -1));
        qm_job_free(&high_job);
        qm_job_free(&low_job);
    }
    assert_true(watch.small);
    assert_holds(model, low, prompt, COUNT);
    qm_options_free(&options);
    qm_session_free(&low);
    qm_session_free(&high);
    qm_model_free(&model);
}

typedef struct cancel_work {
    qm_job *job;
    int32_t waits;
} cancel_work;

static void *cancel_main(void *argument)
{
    cancel_work *work = argument;
    qm_job_wait(work->job, work->waits);
    qm_job_end_thinking(work->job);
    qm_job_cancel(work->job);
    return NULL;
}

static void test_cancel_from_another_thread(void **state)
{
    (void)state;
    const int32_t prompt[] = { IM_START, THINK, 1 };
    int32_t held[1000];
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    qm_session *session = new_session(model, "temperature=0 context=1000 answer-tokens=0 logit-bias=258:1000");
    for (int32_t i = 0; i < 20; i++) {
        cancel_work work = { .waits = i % 5 };
        pthread_t thread;
        expect_ok(qm_session_rewind(session, 0));
        expect_ok(qm_submit_generate(session, prompt, 3, &work.job));
        assert_int_equal(pthread_create(&thread, NULL, cancel_main, &work), 0);
        int32_t code = read_job(work.job, NULL, 0);
        assert_true(code == QM_ERROR_CANCELLED || code == QM_JOB_DONE); /* done only if that thread was away for long */
        assert_string_equal(qm_job_finish(work.job), code == QM_JOB_DONE ? "context" : "cancelled");
        pthread_join(thread, NULL);
        int64_t length = qm_session_tokens(session, held, 1000);
        /* it may have been cancelled before the prompt */
        assert_int_equal(length, length ? 3 + (int64_t)job_number(work.job, "tokens_generated") : 0);
        if (i % 5 == 4 && length > 0)
            assert_holds(model, session, held, length);
        qm_job_free(&work.job);
    }
    qm_session_free(&session);
    qm_model_free(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy_is_the_reference), cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_finishes),                cmocka_unit_test(test_thinking_budget),
        cmocka_unit_test(test_logprobs),                cmocka_unit_test(test_end_thinking),
        cmocka_unit_test(test_pieces_are_whole_code_points),
        cmocka_unit_test(test_descriptor),              cmocka_unit_test(test_jobs_equal_calls),
        cmocka_unit_test(test_load_job),                cmocka_unit_test(test_busy),
        cmocka_unit_test(test_freed_in_any_order),      cmocka_unit_test(test_jobs_advance_together),
        cmocka_unit_test(test_priority),                cmocka_unit_test(test_overtaking),
        cmocka_unit_test(test_cancel_from_another_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
