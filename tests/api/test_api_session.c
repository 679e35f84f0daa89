/* What sessions promise: the same bits however tokens are divided, in whatever company; and their limits. */
#include "models.h"

#include <unistd.h>

/* ---- against the reference ---- */

static void test_reference(void **state)
{
    (void)state;
    expect e;
    int64_t count = 0, values = 0;
    assert_true(expect_open(data_path("tiny/hybrid.expect.gguf"), &e));
    int32_t *tokens = expect_ints(&e, "short.tokens", &count);
    float *wanted = expect_floats(&e, "short.logits", &values);
    qm_model *model = load_model("tiny/hybrid.gguf", "kv-type=f32");
    qm_session *session = new_session(model, "");
    int64_t vocabulary = vocabulary_of(model);
    assert_int_equal(values, count * vocabulary);
    expect_ok(qm_prefill(session, tokens, count));
    const float *logits = qm_logits(session), *last = wanted + (count - 1) * vocabulary;
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < vocabulary; i++) {
        difference += (double)(logits[i] - last[i]) * (logits[i] - last[i]);
        norm += (double)last[i] * last[i];
    }
    assert_true(difference <= 1e-10 * norm); /* 1e-5 of the norm */
    qm_session_free(&session);
    qm_model_free(&model);
    free(tokens);
    free(wanted);
    expect_close(&e);
}

/* ---- chunks and rows ---- */

static void chunks(qm_model *model, const int32_t *tokens)
{
    static const int64_t sizes[][4] = { { TOKENS, 0 }, { 1, TOKENS - 1, 0 }, { 63, 1, 1, TOKENS - 65 }, { 64, 64, 65, 7 } };
    float *wanted = plain_logits(model, tokens, TOKENS);
    for (int32_t way = 0; way < 4; way++) {
        qm_session *session = new_session(model, "");
        int64_t start = 0;
        for (int32_t i = 0; i < 4 && start < TOKENS; start += sizes[way][i++])
            expect_ok(qm_prefill(session, tokens + start, sizes[way][i]));
        assert_int_equal(qm_session_length(session), TOKENS);
        assert_logits(model, session, wanted);
        qm_session_free(&session);
    }
    free(wanted);
}

static void test_chunks(void **state)
{
    (void)state;
    with_models(chunks);
}

/* All rows at once are more than a batch can give; some of the last; only the last; none. */
static void rows(qm_model *model, const int32_t *tokens)
{
    int64_t vocabulary = vocabulary_of(model), all[TOKENS];
    size_t values = (size_t)(TOKENS * vocabulary);
    float *wanted = malloc(values * sizeof *wanted), *got = malloc(values * sizeof *got);
    assert_true(wanted && got);
    qm_session *session = new_session(model, "");
    for (int64_t i = 0; i < TOKENS; i++) {
        all[i] = i;
        expect_ok(qm_decode(&session, tokens + i, 1));
        memcpy(wanted + i * vocabulary, qm_logits(session), (size_t)vocabulary * sizeof *wanted);
    }
    expect_ok(qm_session_rewind(session, 0));
    expect_ok(qm_prefill_rows(session, tokens, TOKENS, all, TOKENS, got));
    assert_memory_equal(got, wanted, values * sizeof *got);
    assert_logits(model, session, wanted + (TOKENS - 1) * vocabulary);

    expect_ok(qm_session_rewind(session, 0));
    const int64_t few[] = { 0, 47, 48, TOKENS - 1 };
    expect_ok(qm_prefill_rows(session, tokens, TOKENS, few, 4, got));
    for (int32_t i = 0; i < 4; i++)
        assert_memory_equal(got + i * vocabulary, wanted + few[i] * vocabulary, (size_t)vocabulary * sizeof *got);

    expect_ok(qm_session_rewind(session, 0));
    expect_ok(qm_prefill(session, tokens, 10));
    const int64_t relative[] = { 3 }; /* of the tokens of the call */
    expect_ok(qm_prefill_rows(session, tokens + 10, 20, relative, 1, got));
    assert_memory_equal(got, wanted + 13 * vocabulary, (size_t)vocabulary * sizeof *got);
    const int64_t descending[] = { 3, 2 };
    expect_code(QM_ERROR_ARGUMENT, qm_prefill_rows(session, tokens, 5, descending, 2, got));
    assert_int_equal(qm_session_length(session), 30);
    expect_ok(qm_prefill(session, tokens, 0)); /* nothing to append */
    assert_logits(model, session, wanted + 29 * vocabulary);
    qm_session_free(&session);
    free(wanted);
    free(got);
}

static void test_rows(void **state)
{
    (void)state;
    with_models(rows);
}

/* ---- several sessions ---- */

enum { COMPANY = 11 }; /* more than are computed together, by the option's default */

static void company(qm_model *model, const int32_t *tokens)
{
    qm_session *sessions[COMPANY];
    int32_t step[COMPANY];
    for (int32_t i = 0; i < COMPANY; i++) {
        sessions[i] = new_session(model, "");
        if (i > 0)
            expect_ok(qm_prefill(sessions[i], tokens, 9 * i)); /* each at another position, one empty */
    }
    for (int32_t t = 0; t < 3; t++) {
        for (int32_t i = 0; i < COMPANY; i++)
            step[i] = tokens[9 * i + t];
        expect_ok(qm_decode(sessions, step, COMPANY));
    }
    for (int32_t i = 0; i < COMPANY; i++)
        assert_holds(model, sessions[i], tokens, 9 * i + 3);

    /* a check that fails for one leaves all as they were */
    step[3] = -1;
    expect_code(QM_ERROR_ARGUMENT, qm_decode(sessions, step, COMPANY));
    step[3] = 0;
    qm_session *twice[] = { sessions[0], sessions[1], sessions[0] };
    expect_code(QM_ERROR_ARGUMENT, qm_decode(twice, step, 3));
    qm_session *small = new_session(model, "context=2 answer-tokens=1");
    expect_ok(qm_prefill(small, tokens, 2));
    qm_session *full[] = { sessions[0], small };
    expect_code(QM_ERROR_CONTEXT, qm_decode(full, step, 2));
    for (int32_t i = 0; i < COMPANY; i++) {
        assert_int_equal(qm_session_length(sessions[i]), 9 * i + 3);
        qm_session_free(&sessions[i]);
    }
    qm_session_free(&small);
}

static void test_company(void **state)
{
    (void)state;
    with_models(company);
}

static void test_other_models(void **state)
{
    (void)state;
    qm_model *one = load_model("tiny/hybrid.gguf", ""), *two = load_model("tiny/attention.gguf", "");
    qm_session *sessions[] = { new_session(one, ""), new_session(two, "") };
    int32_t tokens[20];
    fill_tokens(tokens, 20, 3);
    expect_code(QM_ERROR_ARGUMENT, qm_decode(sessions, tokens, 2));
    for (int32_t i = 0; i < 20; i++) {
        expect_ok(qm_decode(&sessions[0], tokens + i, 1));
        expect_ok(qm_decode(&sessions[1], tokens + i, 1));
    }
    assert_holds(one, sessions[0], tokens, 20);
    assert_holds(two, sessions[1], tokens, 20);
    qm_model_free(&one); /* before its session */
    qm_session_free(&sessions[1]);
    expect_ok(qm_decode(&sessions[0], tokens, 1));
    qm_session_free(&sessions[0]);
    qm_model_free(&two);
}

/* ---- a full context, options ---- */

static void test_context_full(void **state)
{
    (void)state;
    int32_t tokens[TOKENS], token;
    fill_tokens(tokens, TOKENS, 1);
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    qm_session *session = new_session(model, "context=100 answer-tokens=10");
    assert_int_equal(qm_session_context(session), 100);
    expect_code(QM_ERROR_CONTEXT, qm_prefill(session, tokens, 101));
    assert_non_null(strstr(qm_error_message(), "100"));
    assert_int_equal(qm_session_length(session), 0);
    expect_ok(qm_prefill(session, tokens, 99));
    expect_code(QM_ERROR_CONTEXT, qm_prefill(session, tokens, 2));
    expect_ok(qm_decode(&session, tokens + 99, 1));
    token = 1;
    expect_code(QM_ERROR_CONTEXT, qm_decode(&session, &token, 1));
    expect_code(QM_ERROR_CONTEXT, qm_session_sync(session, tokens, 101));
    assert_holds(model, session, tokens, 100);
    expect_ok(qm_sample(session, &token));
    expect_ok(qm_session_rewind(session, 50));
    expect_ok(qm_prefill(session, tokens + 50, 50));
    assert_holds(model, session, tokens, 100);
    qm_session_free(&session);
    qm_model_free(&model);
}

static void test_session_options(void **state)
{
    (void)state;
    qm_model *model = load_model("tiny/hybrid.gguf", "temperature=0.5");
    qm_session *session = NULL;
    qm_options *options = make_options("context=1025");
    char text[16];
    int32_t one, other;
    expect_code(QM_ERROR_OPTION, qm_session_new(model, options, &session));
    assert_null(session);
    expect_ok(qm_options_set(options, "context", "100"));
    expect_code(QM_ERROR_OPTION, qm_session_new(model, options, &session)); /* less than the answer may have */
    expect_ok(qm_options_set(options, "answer-tokens", "99"));
    expect_ok(qm_options_set(options, "stop", "[\"unclosed"));
    expect_code(QM_ERROR_OPTION, qm_session_new(model, options, &session));
    qm_options_free(&options);
    expect_ok(qm_session_new(model, NULL, &session)); /* the model's options */
    assert_true(qm_session_get(session, "temperature", text, sizeof text) > 0);
    assert_string_equal(text, "0.5");
    expect_code(QM_ERROR_OPTION, qm_session_set(session, "context", "200"));
    expect_code(QM_ERROR_OPTION, qm_session_set(session, "threads", "1"));
    expect_code(QM_ERROR_OPTION, qm_session_set(session, "temperature", "-1"));
    expect_code(QM_ERROR_OPTION, qm_session_set(session, "logit-bias", "5000:1"));
    expect_code(QM_ERROR_OPTION, qm_session_set(session, "stop", "[\"unclosed"));
    assert_true(qm_session_get(session, "temperature", text, sizeof text) > 0);
    assert_string_equal(text, "0.5");

    const int32_t token = 65;
    expect_code(QM_ERROR_STATE, qm_sample(session, &one));
    assert_null(qm_logits(session));
    expect_ok(qm_decode(&session, &token, 1));
    expect_ok(qm_session_set(session, "logit-bias", "77:1000"));
    expect_ok(qm_sample(session, &one));
    assert_int_equal(one, 77);
    expect_ok(qm_session_set(session, "logit-bias", NULL));
    expect_ok(qm_session_set(session, "temperature", "20"));
    expect_ok(qm_session_set(session, "top-k", "0"));
    expect_ok(qm_session_set(session, "seed", "3"));
    int32_t first[20];
    bool differs = false;
    for (int32_t i = 0; i < 20; i++)
        expect_ok(qm_sample(session, &first[i]));
    expect_ok(qm_session_set(session, "seed", "3"));
    for (int32_t i = 0; i < 20; i++) {
        expect_ok(qm_sample(session, &other));
        assert_int_equal(other, first[i]);
        differs = differs || other != first[0];
    }
    assert_true(differs);
    qm_session_free(&session);
    qm_model_free(&model);
}

/* ---- a file that is cut while it is in use ---- */

static void copy_file(const char *from, const char *to)
{
    char block[4096];
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    assert_true(in && out);
    for (size_t length; (length = fread(block, 1, sizeof block, in)) > 0;)
        assert_int_equal(fwrite(block, 1, length, out), length);
    fclose(in);
    assert_int_equal(fclose(out), 0);
}

static void test_cut_file(void **state)
{
    (void)state;
    char path[] = "/tmp/qwenmoe-test-XXXXXX";
    int32_t tokens[20];
    fill_tokens(tokens, 20, 1);
    int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    copy_file(data_path("tiny/hybrid.gguf"), path);
    qm_options *options = make_options("");
    qm_model *model = NULL;
    expect_ok(qm_model_load(path, options, &model));
    qm_options_free(&options);
    qm_session *session = new_session(model, "");
    expect_ok(qm_prefill(session, tokens, 10));
    assert_int_equal(truncate(path, 1000), 0);
    expect_code(QM_ERROR_FILE, qm_prefill(session, tokens + 10, 10));
    assert_non_null(strstr(qm_error_message(), path));
    expect_code(QM_ERROR_FILE, qm_decode(&session, tokens + 10, 1));
    copy_file(data_path("tiny/hybrid.gguf"), path); /* as it was: the session has not suffered */
    expect_ok(qm_prefill(session, tokens + 10, 10));
    assert_holds(model, session, tokens, 20);
    qm_session_free(&session);
    qm_model_free(&model);
    unlink(path);
}

/* ---- growth ---- */

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED true
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#endif
#ifndef SANITIZED
#define SANITIZED false
#endif

static int64_t resident_pages(void)
{
    long long total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file) {
        if (fscanf(file, "%lld %lld", &total, &resident) != 2)
            resident = 0;
        fclose(file);
    }
    return resident;
}

static void test_loads(void **state)
{
    (void)state;
    int64_t after_ten = 0;
    int32_t tokens[20];
    fill_tokens(tokens, 20, 1);
    /* Sanitizers keep freed memory for a while; they see by themselves what is lost. */
    const int32_t loads = SANITIZED ? 4 : 100;
    for (int32_t i = 0; i < loads; i++) {
        qm_model *model = load_model(files[i % 2], "mtp=1");
        qm_session *session = new_session(model, "");
        expect_ok(qm_prefill(session, tokens, 20));
        qm_session_free(&session);
        qm_model_free(&model);
        if (i == 9)
            after_ten = resident_pages();
    }
    assert_true(SANITIZED || resident_pages() - after_ten < loads - 10); /* less than a page a load */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),    cmocka_unit_test(test_chunks),          cmocka_unit_test(test_rows),
        cmocka_unit_test(test_company),      cmocka_unit_test(test_other_models),    cmocka_unit_test(test_context_full),
        cmocka_unit_test(test_session_options), cmocka_unit_test(test_cut_file),     cmocka_unit_test(test_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
