/* Every type of keys and values on every hybrid model: however a session came to its tokens, its logits are those of one that was
 * given them one by one. */
#include "api.h"

#include <unistd.h>

#define TOKENS 160

static char path[64], keys[64];

static void in_pieces(qm_session *session, const int32_t *tokens, int64_t count)
{
    static const int64_t sizes[] = { 1, 7, 64, 3, 33, 2 };
    for (int64_t at = 0, i = 0, size; at < count; at += size, i++) {
        size = sizes[i % 6] < count - at ? sizes[i % 6] : count - at;
        expect_ok(qm_prefill(session, tokens + at, size));
    }
}

static void check_model(const char *name, const char *settings)
{
    int32_t tokens[TOKENS], others[TOKENS];
    qm_model *model = load_model(name, settings);
    qm_session *session = new_session(model, ""), *other = NULL;
    fill_tokens(tokens, TOKENS, 11);
    memcpy(others, tokens, sizeof others);
    fill_tokens(others + 90, TOKENS - 90, 12);

    in_pieces(session, tokens, 130);
    assert_holds(model, session, tokens, 130);
    expect_ok(qm_session_fork(session, &other));
    expect_ok(qm_session_rewind(other, 90)); /* in the middle of a page that both have */
    expect_ok(qm_prefill(other, others + 90, 40));
    assert_holds(model, other, others, 130);
    expect_ok(qm_prefill(session, tokens + 130, 10));
    assert_holds(model, session, tokens, 140);
    assert_true(qm_session_sync(other, tokens, 140) > 0);
    assert_holds(model, other, tokens, 140);
    expect_ok(qm_session_save(session, path));
    expect_ok(qm_prefill(other, others, 9));
    expect_ok(qm_session_restore(other, path));
    expect_ok(qm_prefill(other, tokens + 140, 20));
    assert_holds(model, other, tokens, 160);
    qm_session_free(&session);
    qm_session_free(&other);
    qm_model_free(&model);
}

static void test_hybrid_models(void **state)
{
    (void)state;
    static const char *const models[] = { "oracle/qwen35moe.gguf", "oracle/qwen35.gguf", "oracle/qwen3next.gguf" };
    static const char *const settings[] = { "chunk=48 kv-type=q8_0", "chunk=48 kv-type=q6", "chunk=48 kv-type=q5",
                                            "chunk=48 kv-type=q4_0", "key-type=bf16 value-type=q4_0 kv-rotation=off", "chunk=48 kv-type=q2 kv-window=20",
                                            "chunk=48 key-type=q4_0 value-type=q2 kv-window=1" };
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (size_t s = 0; s < sizeof settings / sizeof *settings; s++)
            check_model(models[m], settings[s]);
}

static void expect_refused(const char *settings, int32_t code, const char *words)
{
    qm_options *options = make_options(settings);
    qm_model *model = NULL;
    expect_code(code, qm_model_load(data_path("oracle/qwen35moe.gguf"), options, &model));
    assert_null(model);
    assert_non_null(strstr(qm_error_message(), words));
    qm_options_free(&options);
}

/* A correction of 2-bit keys is fitted, and a session with it is what any way leads to. */
static void test_correction(void **state)
{
    (void)state;
    int32_t tokens[TOKENS];
    char settings[128];
    fill_tokens(tokens, TOKENS, 5);
    qm_model *model = load_model("oracle/qwen35moe.gguf", "kv-type=q2 kv-window=10 kv-fit=1");
    qm_session *session = new_session(model, "");
    expect_code(QM_ERROR_STATE, qm_model_save_correction(model, keys)); /* of nothing */
    expect_ok(qm_prefill(session, tokens, TOKENS));
    expect_ok(qm_model_save_correction(model, keys));
    qm_session_free(&session);
    qm_model_free(&model);
    snprintf(settings, sizeof settings, "chunk=48 kv-type=q2 kv-window=20 kv-correction=%s", keys);
    check_model("oracle/qwen35moe.gguf", settings);
    snprintf(settings, sizeof settings, "kv-correction=%s", keys);
    expect_refused(settings, QM_ERROR_OPTION, "key-type");
    unlink(keys);
    unlink(path);
    snprintf(settings, sizeof settings, "kv-type=q2 kv-correction=%s", keys);
    expect_refused(settings, QM_ERROR_FILE, keys);
    model = load_model("oracle/qwen35moe.gguf", "kv-type=q2");
    expect_code(QM_ERROR_STATE, qm_model_save_correction(model, keys));
    qm_model_free(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_hybrid_models), cmocka_unit_test(test_correction) };
    snprintf(path, sizeof path, "/tmp/qwenmoe-kv-%ld.session", (long)getpid());
    snprintf(keys, sizeof keys, "/tmp/qwenmoe-kv-%ld.keys", (long)getpid());
    return cmocka_run_group_tests(tests, NULL, NULL);
}
