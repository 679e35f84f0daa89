/* The plan for the real geometries: sums that users plan with, computed here by hand from the published dimensions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/error.h"
#include "geometry.h"
#include "memory/plan.h"

static const qmi_alloc heap;

typedef struct fixture {
    geometry file;
    qmi_gguf gguf;
    qmi_settings settings;
} fixture;

static void start(fixture *f, bool experts)
{
    *f = (fixture){ 0 };
    geometry_start(&f->file);
    geometry_real(&f->file, experts, NULL, NULL, 0);
    int64_t size = geometry_end(&f->file); /* the reader looks at nothing behind the header */
    assert_int_equal(qmi_gguf_read(f->file.w.bytes, size, &heap, &f->gguf), QM_OK);
    qmi_settings_start(&f->settings, &heap);
    assert_int_equal(qmi_settings_set(&f->settings, QMI_OPT_CHECKPOINT_MEMORY, "0"), QM_OK); /* but where they are tested */
}

static void end(fixture *f)
{
    qmi_settings_end(&f->settings);
    qmi_gguf_free(&f->gguf, &heap);
    writer_free(&f->file.w);
}

static void set(fixture *f, const char *name, const char *value)
{
    assert_int_equal(qmi_settings_set(&f->settings, qmi_option_find(name), value), QM_OK);
}

/* A CPU without scratch. */
static qmi_plan_device cpu_with(int64_t memory)
{
    return (qmi_plan_device){ .memory = memory, .mapped = true, .threads = 2, .chunk_low = 512, .chunk_high = 512 };
}

static qmi_plan make_for(fixture *f, const qmi_plan_device *device)
{
    qmi_plan plan;
    assert_int_equal(qmi_plan_make(&f->gguf, &f->settings, device, &heap, &plan), QM_OK);
    return plan;
}

static qmi_plan make(fixture *f, int64_t memory)
{
    const qmi_plan_device device = cpu_with(memory);
    return make_for(f, &device);
}

static void keys_and_values_of_35b(void **state)
{
    (void)state;
    fixture f;
    start(&f, true);
    set(&f, "context", "32768");
    qmi_plan plan = make(&f, -1);
    assert_int_equal(plan.hparams.attention_layers, 10);
    assert_int_equal(qmi_kv_token_bytes(&plan.kv), 20480);          /* 10 layers x 2 heads x 512 values x 2 bytes */
    assert_int_equal(plan.kv_session, (int64_t)640 << 20);          /* x 32768 */
    assert_int_equal(plan.state_session, 2 * 30 * (3 * 8192 + 32 * 128 * 128) * 4);
    assert_true(plan.fits);
    set(&f, "kv-type", "f32");
    assert_int_equal(make(&f, -1).kv_session, (int64_t)1280 << 20);
    end(&f);
}

static void keys_and_values_of_27b(void **state)
{
    (void)state;
    fixture f;
    start(&f, false);
    set(&f, "context", "131072");
    qmi_plan plan = make(&f, -1);
    assert_int_equal(plan.hparams.attention_layers, 16);
    assert_int_equal(qmi_kv_token_bytes(&plan.kv), 65536);
    assert_int_equal(plan.kv_session, (int64_t)8 << 30);
    assert_int_equal(plan.state_session, 2 * 48 * (3 * (4096 + 6144) + 48 * 128 * 128) * 4);
    end(&f);
}

static void says_what_would_fit(void **state)
{
    (void)state;
    fixture f;
    start(&f, true);
    set(&f, "context", "262144");
    qmi_plan whole = make(&f, -1);
    int64_t beside = whole.total - whole.weights;

    qmi_plan plan = make(&f, beside);
    assert_true(plan.fits);
    set(&f, "chunk", "512"); /* given, so that nothing but the context can give way */
    plan = make(&f, beside - ((int64_t)1 << 30));
    assert_false(plan.fits);
    const char *advice = strstr(plan.reason, "; context ");
    assert_non_null(advice);
    char *rest;
    long context = strtol(advice + strlen("; context "), &rest, 10);
    assert_string_equal(rest, " would fit");
    char text[32];
    snprintf(text, sizeof text, "%ld", context);
    set(&f, "context", text);
    assert_true(make(&f, beside - ((int64_t)1 << 30)).fits);
    snprintf(text, sizeof text, "%ld", context + QMI_PAGE_TOKENS);
    set(&f, "context", text);
    assert_false(make(&f, beside - ((int64_t)1 << 30)).fits);
    end(&f);
}

static void chooses_a_smaller_chunk_first(void **state)
{
    (void)state;
    fixture f;
    start(&f, true);
    qmi_plan roomy = make(&f, -1);
    qmi_plan tight = make(&f, roomy.total - roomy.weights - 1);
    assert_true(tight.fits);
    assert_true(tight.chunk < roomy.chunk);
    assert_int_equal(tight.context, roomy.context);
    end(&f);
}

/* ---- A card: memory of its own, its own sizes of matrices, larger chunks ---- */

/* As the CUDA backend does it: Q4_K as it is, everything else in 2 bytes as BF16. */
static int64_t card_bytes(uint32_t *type, int64_t columns, int64_t rows)
{
    if (*type == QMI_TYPE_Q4_K)
        return columns / 256 * 144 * rows;
    *type = QMI_TYPE_BF16;
    return columns * 2 * rows;
}

static int64_t card_scratch(const qmi_program *program, int32_t rows, int32_t threads)
{
    (void)program, (void)threads;
    return (int64_t)rows << 14;
}

static qmi_plan_device card_with(int64_t memory)
{
    return (qmi_plan_device){ .memory = memory, .fixed = 1000, .chunk_low = 1024, .chunk_high = 4096,
                              .matrix_bytes = card_bytes, .scratch_bytes = card_scratch };
}

static void sums_of_a_card(void **state)
{
    (void)state;
    fixture f;
    start(&f, true);
    const qmi_plan_device card = card_with(-1);
    qmi_plan plan = make_for(&f, &card);
    assert_int_equal(plan.weights, INT64_C(248320) * 8 * 144); /* the file's one matrix */
    assert_int_equal(plan.chunk, 4096);
    assert_int_equal(plan.rows, 4096);
    assert_int_equal(plan.scratch, INT64_C(4096) << 14);
    assert_int_equal(plan.total, plan.weights + plan.vectors + plan.workspace + plan.scratch + 1000 + plan.kv_session +
                                     plan.state_session + plan.logits_session);
    assert_int_equal(plan.logits_session, 2 * 248320 * 4);
    end(&f);
}

/* The batch takes at most a quarter of what is left, down to chunk_low rows; fewer only where they alone fit. */
static void chooses_a_chunk_for_a_card(void **state)
{
    (void)state;
    fixture f;
    start(&f, true);
    const int32_t chunks[] = { 4096, 2048, 1024, 512 };
    qmi_plan plans[4];
    for (int i = 0; i < 4; i++) {
        const qmi_plan_device any = card_with(-1);
        char text[16];
        snprintf(text, sizeof text, "%d", chunks[i]);
        set(&f, "chunk", text);
        plans[i] = make_for(&f, &any);
    }
    set(&f, "chunk", "0");
    for (int i = 0; i < 3; i++) {
        const int64_t batch = plans[i].workspace + plans[i].scratch, others = plans[i].total - batch;
        qmi_plan_device card = card_with(others + 4 * batch);
        assert_int_equal(make_for(&f, &card).chunk, chunks[i]);
        card.memory--;
        assert_int_equal(make_for(&f, &card).chunk, i < 2 ? chunks[i + 1] : 1024);
    }
    qmi_plan_device card = card_with(plans[2].total);
    assert_int_equal(make_for(&f, &card).chunk, 1024);
    card.memory--;
    assert_int_equal(make_for(&f, &card).chunk, 512);
    assert_true(make_for(&f, &card).fits);
    card.memory = 1 << 20;
    assert_false(make_for(&f, &card).fits);
    end(&f);
}

static int64_t broken_scratch(const qmi_program *program, int32_t rows, int32_t threads)
{
    (void)program, (void)threads;
    return qmi_fail(QM_ERROR_ARGUMENT, "%d rows are out of range", rows);
}

static void passes_on_a_failure(void **state)
{
    (void)state;
    fixture f;
    qmi_plan plan;
    start(&f, true);
    qmi_plan_device card = card_with(-1);
    card.scratch_bytes = broken_scratch;
    assert_int_equal(qmi_plan_make(&f.gguf, &f.settings, &card, &heap, &plan), QM_ERROR_ARGUMENT);
    end(&f);
}

static int64_t converting_bytes(uint32_t *type, int64_t columns, int64_t rows)
{
    *type = QMI_TYPE_F32;
    return 4 * columns * rows;
}

static void prints_what_is_converted(void **state)
{
    (void)state;
    fixture f;
    char text[4096];
    start(&f, true);
    qmi_plan_device card = card_with(-1);
    card.matrix_bytes = converting_bytes;
    qmi_plan plan = make_for(&f, &card);
    assert_int_equal(plan.weights, INT64_C(248320) * 2048 * 4);
    assert_true(qmi_plan_table(&plan, text, sizeof text) > 0);
    assert_non_null(strstr(text, "1 matrix of type Q4_K is kept as F32"));
    assert_true(qmi_plan_json(&plan, text, sizeof text) > 0);
    assert_non_null(strstr(text, "\"kept_as\": \"F32\""));
    end(&f);
}

/* The best that fits with room for a chunk and states to go back to. 35B, 262144 tokens: 5368709120 bytes as f16. */
static void chooses_the_type(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t bytes; /* of a head of 256 numbers: half floats; 8 bits and a half float for each 32; 6, 5, 4 bits likewise */
    } types[] = { { "f16", 512 }, { "q8_0", 272 }, { "q6", 208 }, { "q5", 176 }, { "q4_0", 144 } };
    fixture f;
    start(&f, true);
    set(&f, "context", "262144");
    set(&f, "chunk", "512");
    set(&f, "kv-type", "f16");
    qmi_plan whole = make(&f, -1);
    int64_t beside = whole.total - whole.weights - whole.kv_session;
    set(&f, "kv-type", "auto");
    for (int i = 0; i < 5; i++) {
        int64_t bytes = 262144 * INT64_C(10) * 2 * 2 * types[i].bytes;
        qmi_plan plan = make(&f, beside + bytes);
        assert_true(plan.fits);
        assert_int_equal(plan.kv_session, bytes);
        plan = make(&f, beside + bytes - 1);
        assert_int_equal(plan.fits, i < 4);
        assert_true(plan.kv_session < bytes || i == 4);
        set(&f, "kv-type", types[0].name); /* with which the advice is the type that auto takes */
        plan = make(&f, beside + bytes);
        if (i > 0) {
            char advice[64];
            snprintf(advice, sizeof advice, "; kv-type %s would fit; ", types[i].name);
            assert_non_null(strstr(plan.reason, advice));
        }
        set(&f, "kv-type", "auto");
    }
    set(&f, "checkpoint-memory", "-1"); /* f16 would leave no room for states */
    assert_int_equal(make(&f, beside + whole.kv_session).kv_session, 262144 * INT64_C(10) * 2 * 2 * 272);
    end(&f);
}

static void pool_of_keys_and_values(void **state)
{
    (void)state;
    fixture f;
    qmi_plan plan;
    const qmi_plan_device cpu = cpu_with(-1);
    start(&f, true);
    set(&f, "context", "32768");
    qmi_plan one = make(&f, -1);
    assert_int_equal(one.kv_pool, one.kv_session);
    assert_true(one.kv_grows);
    set(&f, "kv-memory", "2000000000");
    plan = make(&f, -1);
    assert_int_equal(plan.kv_pool, 2000000000 / (64 * 20480) * (64 * 20480)); /* whole pages of 64 tokens */
    assert_int_equal(plan.total - one.total, plan.kv_pool - one.kv_pool);
    assert_false(plan.kv_grows);
    plan = make(&f, plan.total - plan.weights - (300 << 20));
    assert_false(plan.fits);
    assert_non_null(strstr(plan.reason, "kv-memory"));
    set(&f, "kv-memory", "600000000"); /* one session takes 640 MiB */
    assert_int_equal(qmi_plan_make(&f.gguf, &f.settings, &cpu, &heap, &plan), QM_ERROR_OPTION);
    assert_non_null(strstr(qmi_error_text(), "671088640"));
    end(&f);
}

/* Those of an option are part of the sum; else they take a quarter of what is left, and nothing is refused because of them. */
static void checkpoints(void **state)
{
    (void)state;
    fixture f;
    const int64_t state_bytes = 30 * (3 * 8192 + 32 * 128 * 128) * 4 + 248320 * 4; /* recurrent state and logits */
    const int64_t bytes = state_bytes + 64 * 20480; /* and a page */
    start(&f, true);
    qmi_plan none = make(&f, -1);
    assert_int_equal(none.checkpoints, 0);
    set(&f, "checkpoint-memory", "1000000000");
    qmi_plan plan = make(&f, -1);
    assert_int_equal(plan.state.bytes, state_bytes);
    assert_int_equal(plan.checkpoints, 1000000000 / bytes);
    assert_int_equal(plan.checkpoint_memory, 1000000000 / bytes * bytes);
    assert_int_equal(plan.total, none.total + plan.checkpoint_memory);
    set(&f, "checkpoint-memory", "-1");
    set(&f, "chunk", "512");
    const int64_t beside = none.total - none.weights;
    assert_int_equal(make(&f, beside).checkpoints, 0);
    assert_true(make(&f, beside).fits);
    assert_int_equal(make(&f, beside + 4 * 5 * bytes).checkpoints, 5);
    assert_int_equal(make(&f, beside + 4 * 5 * bytes - 1).checkpoints, 4);
    assert_int_equal(make(&f, (int64_t)1 << 40).checkpoints, 16);
    end(&f);
}

static void refuses_contexts(void **state)
{
    (void)state;
    fixture f;
    qmi_plan plan;
    const qmi_plan_device cpu = cpu_with(-1);
    start(&f, true);
    set(&f, "context", "262145");
    assert_int_equal(qmi_plan_make(&f.gguf, &f.settings, &cpu, &heap, &plan), QM_ERROR_OPTION);
    assert_non_null(strstr(qmi_error_text(), "262145"));
    assert_non_null(strstr(qmi_error_text(), "262144"));
    set(&f, "context", "512");
    set(&f, "answer-tokens", "512");
    assert_int_equal(qmi_plan_make(&f.gguf, &f.settings, &cpu, &heap, &plan), QM_ERROR_OPTION);
    set(&f, "mtp", "1");
    set(&f, "answer-tokens", "64");
    /* the file has no such block */
    assert_int_equal(qmi_plan_make(&f.gguf, &f.settings, &cpu, &heap, &plan), QM_ERROR_OPTION);
    end(&f);
}

static void prints(void **state)
{
    (void)state;
    fixture f;
    char text[4096], small[10];
    start(&f, true);
    qmi_plan plan = make(&f, -1);
    int64_t length = qmi_plan_table(&plan, text, sizeof text);
    assert_int_equal(length, strlen(text));
    assert_non_null(strstr(text, "8192 tokens x 10 layers x 2 heads x (512 + 512) bytes of 256 numbers"));
    assert_int_equal(qmi_plan_table(&plan, NULL, 0), length);
    assert_int_equal(qmi_plan_table(&plan, small, sizeof small), length);
    assert_memory_equal(small, text, sizeof small - 1);
    assert_int_equal(small[9], 0);
    assert_true(qmi_plan_json(&plan, text, sizeof text) > 0);
    assert_non_null(strstr(text, "\"kv\": 167772160"));
    qmi_plan_table(&plan, text, sizeof text); /* checkpoint-memory is 0 */
    assert_non_null(strstr(text, "none: a prompt that differs"));
    set(&f, "checkpoint-memory", "1000000000");
    plan = make(&f, -1);
    qmi_plan_table(&plan, text, sizeof text);
    assert_non_null(strstr(text, "14 states to go back to")); /* of 68 MB each, with their page */
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_and_values_of_35b), cmocka_unit_test(keys_and_values_of_27b), cmocka_unit_test(says_what_would_fit),
        cmocka_unit_test(chooses_a_smaller_chunk_first), cmocka_unit_test(sums_of_a_card),
        cmocka_unit_test(chooses_a_chunk_for_a_card), cmocka_unit_test(passes_on_a_failure),
        cmocka_unit_test(prints_what_is_converted), cmocka_unit_test(chooses_the_type),
        cmocka_unit_test(pool_of_keys_and_values), cmocka_unit_test(checkpoints),
        cmocka_unit_test(refuses_contexts), cmocka_unit_test(prints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
