/* Dimensions from metadata: the real ones, and what is refused with which words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/error.h"
#include "geometry.h"
#include "model/hparams.h"
#include "model/weights.h"

static const qmi_alloc heap;

/* Reads the 35B's (or 27B's) dimensions with one key left out or changed. */
static int32_t read_with(bool experts, const char *skip, const char *change, uint32_t value, qmi_hparams *h)
{
    geometry g = { 0 };
    qmi_gguf gguf;
    geometry_start(&g);
    geometry_real(&g, experts, skip, change, value);
    int64_t size = geometry_end(&g);
    assert_int_equal(qmi_gguf_read(g.w.bytes, size, &heap, &gguf), QM_OK);
    int32_t code = qmi_hparams_read(&gguf, h);
    qmi_gguf_free(&gguf, &heap);
    writer_free(&g.w);
    return code;
}

static void reads_the_35b(void **state)
{
    (void)state;
    qmi_hparams h;
    assert_int_equal(read_with(true, NULL, NULL, 0, &h), QM_OK);
    assert_string_equal(h.arch->name, "qwen35moe");
    assert_int_equal(h.layers, 40);
    assert_int_equal(h.attention_layers, 10);
    assert_int_equal(h.delta_layers, 30);
    assert_true(h.delta[0] && h.delta[2] && !h.delta[3] && h.delta[4] && !h.delta[39]);
    assert_int_equal(h.vocabulary, 248320);
    assert_int_equal(h.value_size, 128);
    assert_int_equal(qmi_hparams_channels(&h), 8192);
    assert_int_equal(qmi_hparams_state_bytes(&h), 30 * (3 * 8192 + 32 * 128 * 128) * 4);
    assert_int_equal(qmi_hparams_state_offset(&h, 2), 2 * (3 * 8192 + 32 * 128 * 128) * 4);
}

static void refused(bool experts, const char *skip, const char *change, uint32_t value, const char *words)
{
    qmi_hparams h;
    int32_t code = read_with(experts, skip, change, value, &h);
    assert_int_equal(code, QM_ERROR_FORMAT);
    if (!strstr(qmi_error_text(), words))
        fail_msg("'%s' does not say '%s'", qmi_error_text(), words);
}

static void names_what_is_missing(void **state)
{
    (void)state;
    refused(true, "embedding_length", NULL, 0, "qwen35moe.embedding_length is missing");
    refused(true, "expert_count", NULL, 0, "qwen35moe.expert_count is missing");
    refused(true, "ssm.inner_size", NULL, 0, "qwen35moe.ssm.inner_size is missing");
    refused(false, "feed_forward_length", NULL, 0, "qwen35.feed_forward_length is missing");
}

static void names_what_is_wrong(void **state)
{
    (void)state;
    refused(true, NULL, "block_count", 513, "qwen35moe.block_count is 513, not between 1 and 512");
    refused(true, NULL, "block_count", 0, "qwen35moe.block_count is 0");
    refused(true, NULL, "attention.head_count_kv", 3, "attention.head_count 16 is no multiple of attention.head_count_kv 3");
    refused(true, NULL, "attention.value_length", 128, "attention.value_length 128 is not attention.key_length 256");
    refused(true, NULL, "rope.dimension_count", 63, "rope.dimension_count 63 is odd or more than");
    refused(true, NULL, "rope.dimension_count", 512, "rope.dimension_count 512 is odd or more than");
    refused(true, NULL, "expert_count", 4, "expert_used_count 8 is more than expert_count 4");
    refused(true, NULL, "ssm.group_count", 5, "ssm.time_step_rank 32 is no multiple of ssm.group_count 5");
    refused(true, NULL, "ssm.inner_size", 4097, "ssm.inner_size 4097 is no multiple of ssm.time_step_rank 32");
    refused(true, NULL, "ssm.conv_kernel", 1, "ssm.conv_kernel is 1");
}

static void keeps_without_optional_keys(void **state)
{
    (void)state;
    qmi_hparams h;
    assert_int_equal(read_with(true, "expert_shared_feed_forward_length", NULL, 0, &h), QM_OK);
    assert_int_equal(h.shared_width, 0);
    assert_int_equal(read_with(true, "full_attention_interval", NULL, 0, &h), QM_OK);
    assert_int_equal(h.attention_layers, 10);
}

static void names_unknown_architectures(void **state)
{
    (void)state;
    assert_null(qmi_arch_find((qmi_text){ "llama", 5 }));
    assert_non_null(strstr(qmi_error_text(), "'llama'"));
    assert_null(qmi_arch_find((qmi_text){ "qwen3", 4 }));
    assert_non_null(qmi_arch_find((qmi_text){ "qwen3", 5 }));
}

/* A header without the layers' tensors: loading names the first that is missing, and leaves nothing behind, as
 * LeakSanitizer sees. */
static void names_missing_tensors(void **state)
{
    (void)state;
    geometry g = { 0 };
    qmi_gguf gguf;
    qmi_hparams h;
    qmi_weights weights;
    qmi_device *device;
    geometry_start(&g);
    geometry_real(&g, true, NULL, NULL, 0);
    geometry_tensor(&g, "output_norm.weight", QMI_TYPE_F32, 2047, 1);
    int64_t size = geometry_end(&g);
    uint8_t *whole = calloc(1, g.w.size + 16384); /* with the norm's data, which is read; the embedding's is not */
    memcpy(whole, g.w.bytes, g.w.size);
    assert_int_equal(qmi_gguf_read(whole, size, &heap, &gguf), QM_OK);
    assert_int_equal(qmi_hparams_read(&gguf, &h), QM_OK);
    assert_int_equal(qmi_cpu_backend.open(&(qmi_device_settings){ .threads = 1, .isa = "scalar" }, &device), QM_OK);
    const qmi_weights_source source = { .gguf = &gguf, .hparams = &h, .backend = &qmi_cpu_backend };
    assert_int_equal(qmi_weights_load(&source, device, &heap, &weights), QM_ERROR_FORMAT);
    assert_non_null(strstr(qmi_error_text(),
                           "output_norm.weight is 2047 x 1 x 1 x 1; the file's dimensions ask for 2048 x 1 x 1"));
    qmi_cpu_backend.close(&device);
    qmi_gguf_free(&gguf, &heap);
    free(whole);
    writer_free(&g.w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_the_35b), cmocka_unit_test(names_what_is_missing), cmocka_unit_test(names_what_is_wrong),
        cmocka_unit_test(keeps_without_optional_keys), cmocka_unit_test(names_unknown_architectures),
        cmocka_unit_test(names_missing_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
