/* One model on several devices, which are the CPU several times: whatever a session goes through, its logits are those of one
 * device. By layers they have the same bits; by parts of layers they are as near as sums in another order are. What is saved on
 * the one goes on with the others. */
#include "api.h"

#include <math.h>
#include <unistd.h>

#define TOKENS 160

static char path[64];

typedef struct scene {
    qm_model *one, *several;
    qm_session *single;     /* on one device */
    double bound;           /* of the relative error; 0: the same bits */
} scene;

/* The session holds tokens[0, count), as the one device sees them. */
static void expect_same(scene *s, qm_session *session, const int32_t *tokens, int64_t count)
{
    int64_t vocabulary = vocabulary_of(s->one);
    double difference = 0, norm = 0;
    assert_int_equal(qm_session_length(session), count);
    qm_session_sync(s->single, tokens, count);
    const float *wanted = qm_logits(s->single), *got = qm_logits(session);
    assert_non_null(wanted);
    assert_non_null(got);
    for (int64_t i = 0; i < vocabulary; i++) {
        difference += ((double)got[i] - wanted[i]) * ((double)got[i] - wanted[i]);
        norm += (double)wanted[i] * wanted[i];
    }
    if (!(sqrt(difference / norm) <= s->bound))
        fail_msg("after %d tokens the relative error is %g", (int)count, sqrt(difference / norm));
}

static void goes_through_all(scene *s)
{
    int32_t tokens[TOKENS], others[TOKENS], next[2];
    qm_session *session = new_session(s->several, ""), *other = NULL;
    fill_tokens(tokens, TOKENS, 11);
    memcpy(others, tokens, sizeof others);
    fill_tokens(others + 90, TOKENS - 90, 12);

    expect_ok(qm_prefill(session, tokens, 130)); /* several chunks, some of several pieces */
    expect_same(s, session, tokens, 130);
    expect_ok(qm_session_fork(session, &other));
    expect_ok(qm_session_rewind(other, 90)); /* in the middle of a page that both have */
    expect_ok(qm_prefill(other, others + 90, 40));
    expect_same(s, other, others, 130);
    for (int64_t i = 130; i < 133; i++) { /* both at once */
        qm_session *both[2] = { session, other };
        next[0] = tokens[i], next[1] = others[i];
        expect_ok(qm_decode(both, next, 2));
    }
    expect_same(s, session, tokens, 133);
    expect_same(s, other, others, 133);
    assert_true(qm_session_sync(other, tokens, 133) > 0);
    expect_same(s, other, tokens, 133);

    expect_ok(qm_session_save(session, path));
    expect_ok(qm_session_restore(s->single, path));
    expect_ok(qm_prefill(s->single, tokens + 133, 7));
    expect_ok(qm_prefill(session, tokens + 133, 7));
    expect_same(s, session, tokens, 140);
    expect_ok(qm_session_save(s->single, path));
    expect_ok(qm_prefill(session, others, 9)); /* what it held is gone then */
    expect_ok(qm_session_restore(session, path));
    expect_ok(qm_prefill(session, tokens + 140, 20));
    expect_same(s, session, tokens, 160);
    qm_session_free(&session);
    qm_session_free(&other);
}

static void check_with(void (*body)(scene *s), const char *name, const char *settings, const char *devices, double bound)
{
    char both[256];
    snprintf(both, sizeof both, "%s %s", settings, devices);
    scene s = { load_model(name, settings), load_model(name, both), NULL, bound };
    s.single = new_session(s.one, "");
    body(&s);
    qm_session_free(&s.single);
    qm_model_free(&s.one);
    qm_model_free(&s.several);
}

static void check(const char *name, const char *settings, const char *devices, double bound)
{
    check_with(goes_through_all, name, settings, devices, bound);
}

static const char *const models[] = { "oracle/qwen35moe.gguf", "oracle/qwen35.gguf", "oracle/qwen3next.gguf",
                                      "oracle/qwen3moe.gguf", "oracle/qwen3.gguf", "tiny/hybrid.gguf", "tiny/attention.gguf" };
enum { MODELS = sizeof models / sizeof *models };

static void by_layers(void **state)
{
    (void)state;
    static const char *const settings[MODELS] = { "chunk=48 kv-type=q8_0", "chunk=64 kv-type=q6", "chunk=48 kv-type=q2",
                                                  "chunk=64", "key-type=q4_0 value-type=q5", "chunk=64 mtp=1 kv-type=f32",
                                                  "chunk=48 mtp=1 kv-type=bf16" };
    static const char *const devices[] = { "devices=cpu,cpu", "devices=cpu,cpu,cpu shares=1:2:1 split=layers" };
    for (int m = 0; m < MODELS; m++)
        for (int d = 0; d < 2; d++)
            check(models[m], settings[m], devices[d], 0);
}

static void by_parts_of_layers(void **state)
{
    (void)state;
    static const char *const devices[] = { "split=tensor devices=cpu,cpu", "split=tensor devices=cpu,cpu,cpu shares=2:1:2",
                                           "split=tensor devices=cpu,cpu,cpu,cpu shares=1:1:5:1",
                                           "split=tensor:2 devices=cpu,cpu,cpu,cpu shares=2:1:1:1" };
    for (int m = 0; m < MODELS; m++)
        check(models[m], m < 5 ? "kv-type=f32" : "kv-type=f32 mtp=1 chunk=48", devices[m % 4], 2e-5);
    for (int m = 0; m < 5; m++) /* what is rounded may be rounded the other way */
        check(models[m], m == 2 ? "kv-type=q2 kv-window=64" : m % 2 ? "kv-type=f16" : "kv-type=q8_0", devices[m % 4], 2e-2);
}

/* A prompt of many rows is computed where the layers are, even if its experts are elsewhere. */
static void reads_a_long_prompt(scene *s)
{
    int32_t tokens[700];
    qm_session *session = new_session(s->several, "");
    fill_tokens(tokens, 700, 3);
    expect_ok(qm_prefill(session, tokens, 600));
    expect_same(s, session, tokens, 600);
    expect_ok(qm_prefill(session, tokens + 600, 100)); /* few rows again */
    expect_same(s, session, tokens, 700);
    qm_session_free(&session);
}

/* Experts of some layers on a device of their own, as with a card beside much memory: the same sums in the same order. */
static void experts_apart(void **state)
{
    (void)state;
    check(models[0], "chunk=48 kv-type=q8_0", "devices=cpu,cpu host-experts=3", 0);
    check(models[3], "chunk=64", "devices=cpu,cpu,cpu host-experts=4", 0);
    check(models[2], "kv-type=f32", "devices=cpu,cpu host-experts=1", 0);
    check_with(reads_a_long_prompt, models[0], "chunk=512", "devices=cpu,cpu host-experts=2", 0);
    check_with(reads_a_long_prompt, models[3], "chunk=512", "devices=cpu,cpu,cpu host-experts=4", 0);
}

static void refuses_with(int32_t code, const char *settings, const char *part)
{
    qm_model *model = NULL;
    qm_options *options = make_options(settings);
    expect_code(code, qm_model_load(data_path(models[0]), options, &model));
    assert_null(model);
    if (!strstr(qm_error_message(), part))
        fail_msg("%s: %s", settings, qm_error_message());
    qm_options_free(&options);
}

static void refuses(const char *settings, const char *part)
{
    refuses_with(QM_ERROR_OPTION, settings, part);
}

static void names_what_is_wrong(void **state)
{
    (void)state;
    refuses("devices=cpu,", "devices:");
    refuses("devices=cpu,auto", "devices:");
    refuses("devices=cpu@,cpu", "devices:");
    refuses("devices=cpu,tpu", "tpu");
    refuses("devices=cpu,cpu shares=1", "shares:");
    refuses("devices=cpu,cpu shares=1:0", "shares:");
    refuses("devices=cpu,cpu shares=1:2:3", "shares:");
    refuses("devices=cpu,cpu host-experts=5", "host-experts:");
    refuses("devices=cpu,cpu,cpu split=tensor:2", "split:");
    refuses_with(QM_ERROR_UNSUPPORTED, "devices=cpu,cpu split=tensor exchange=peer", "by peer");
    refuses_with(QM_ERROR_FIT, "devices=cpu,cpu@3000000", "cpu #1");
    refuses_with(QM_ERROR_FIT, "devices=cpu,cpu@3000000 split=tensor", "cpu #1");
    refuses_with(QM_ERROR_DEVICE, "devices=cpu,cpu:1", "cpu:1");
}

int main(void)
{
    snprintf(path, sizeof path, "/tmp/qwenmoe-devices-%ld.session", (long)getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_layers),
        cmocka_unit_test(by_parts_of_layers),
        cmocka_unit_test(experts_apart),
        cmocka_unit_test(names_what_is_wrong),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}
