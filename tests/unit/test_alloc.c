/* Memory: the allocator hook and its promises, and the failure of each allocation that opening a file makes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "failing_alloc.h"
#include "file/gguf_parts.h"
#include "gguf_writer.h"

static void test_new_blocks_are_zero_and_aligned(void **state)
{
    (void)state;
    const qmi_alloc own = { 0 };
    const size_t sizes[] = { 0, 1, 63, 64, 65, 4096, (1 << 20) - 128, 1 << 20, 5 << 20 };
    for (int round = 0; round < 2; round++) /* the second finds what the first has written */
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            uint8_t *block = qmi_new(&own, sizes[i], 1, "a test");
            assert_non_null(block);
            assert_int_equal((uintptr_t)block % QMI_ALIGNMENT, 0);
            for (size_t k = 0; k < sizes[i]; k++)
                assert_int_equal(block[k], 0);
            memset(block, 0xAA, sizes[i]);
            qmi_delete(&own, block);
        }
    qmi_delete(&own, NULL);
}

/* Clears nothing that it hands out, as malloc does. */
static void *dirty_allocate(int64_t size, int64_t alignment, void *user)
{
    (void)user;
    const size_t whole = (size_t)(size + alignment - 1) / (size_t)alignment * (size_t)alignment;
    void *block = aligned_alloc((size_t)alignment, whole);
    if (block)
        memset(block, 0xAA, whole);
    return block;
}

static void plain_release(void *pointer, void *user)
{
    (void)user;
    free(pointer);
}

static void test_hook_blocks_are_zero(void **state)
{
    (void)state;
    const qmi_alloc dirty = { dirty_allocate, plain_release, NULL };
    uint8_t *block = qmi_new(&dirty, 300, 1, "a test");
    for (int i = 0; i < 300; i++)
        assert_int_equal(block[i], 0);
    block[299] = 7;
    uint8_t *larger = qmi_resize(&dirty, block, 300, 1000, 1, "a test");
    assert_int_equal(larger[299], 7);
    for (int i = 300; i < 1000; i++)
        assert_int_equal(larger[i], 0);
    uint8_t *smaller = qmi_resize(&dirty, larger, 1000, 300, 1, "a test");
    assert_int_equal(smaller[299], 7);
    qmi_delete(&dirty, smaller);
}

static void test_sizes_that_do_not_fit(void **state)
{
    (void)state;
    const qmi_alloc own = { 0 };
    assert_null(qmi_new(&own, SIZE_MAX, 2, "the impossible"));
    assert_non_null(strstr(qmi_error_text(), "the impossible"));
    assert_null(qmi_new(&own, SIZE_MAX / 2 + 2, 2, "the impossible"));
    assert_null(qmi_new(&own, SIZE_MAX, 1, "the impossible"));
    assert_null(qmi_new(&own, (size_t)INT64_MAX, 1, "the impossible"));
}

static void test_resize_failure_keeps_the_block(void **state)
{
    (void)state;
    failing_alloc f = { .until_failure = 1 };
    const qmi_alloc hook = failing_hook(&f);
    char *text = qmi_new_text(&hook, "kept", 4);
    size_t capacity = 5;
    void *array = text;
    assert_null(qmi_resize(&hook, text, 5, 100, 1, "a test"));
    assert_int_equal(qmi_reserve(&hook, &array, &capacity, 100, 1, "a test"), QM_ERROR_MEMORY);
    assert_ptr_equal(array, text);
    assert_int_equal(capacity, 5);
    assert_string_equal(text, "kept");
    qmi_delete(&hook, text);
    assert_int_equal(f.live, 0);
}

static void test_reserve_grows_and_keeps(void **state)
{
    (void)state;
    failing_alloc f = { .until_failure = -1 };
    const qmi_alloc hook = failing_hook(&f);
    int32_t *array = NULL;
    size_t capacity = 0;
    for (int32_t i = 0; i < 10000; i++) {
        assert_int_equal(qmi_reserve(&hook, (void **)&array, &capacity, (size_t)i + 1, sizeof *array, "a test"), QM_OK);
        array[i] = i;
    }
    for (int32_t i = 0; i < 10000; i++)
        assert_int_equal(array[i], i);
    assert_true(f.made < 20); /* doubling, not one by one */
    qmi_delete(&hook, array);
    assert_int_equal(f.live, 0);
}

/* Enough values and tensors for each array to grow several times. */
static void put_many(writer *w, uint64_t parts, uint64_t number)
{
    char name[32];
    put_start(w, 3, 40, 40);
    put_u32_value(w, "split.count", (uint32_t)parts);
    put_u32_value(w, "split.no", (uint32_t)number);
    for (int i = 0; i < 38; i++) {
        snprintf(name, sizeof name, "key.%d", i);
        put_u32_value(w, name, (uint32_t)i);
    }
    for (int i = 0; i < 40; i++) {
        snprintf(name, sizeof name, "tensor.%d.%d", (int)number, i);
        put_tensor(w, name, 0, 1, (uint64_t[]){ 8 }, 32 * (uint64_t)i);
    }
    put_data(w, 32, 32 * 40);
}

static void test_each_failure_in_a_header(void **state)
{
    (void)state;
    writer w = { 0 };
    int32_t status = QM_ERROR_MEMORY;
    put_many(&w, 1, 0);
    for (int64_t n = 0; status != QM_OK; n++) {
        failing_alloc f = { .until_failure = n };
        const qmi_alloc hook = failing_hook(&f);
        qmi_gguf g;
        assert_true(n < 1000);
        qmi_fail(0, "%s", "");
        status = qmi_gguf_read(w.bytes, (int64_t)w.size, &hook, &g);
        if (status != QM_OK) {
            assert_int_equal(status, QM_ERROR_MEMORY);
            assert_non_null(strstr(qmi_error_text(), "out of memory"));
            assert_int_equal(f.live, 0);
        } else {
            assert_true(n >= 7); /* three arrays of 40 from room for 16, and two orders at least */
        }
        qmi_gguf_free(&g, &hook);
        assert_int_equal(f.live, 0);
    }
    writer_free(&w);
}

static void test_each_failure_in_parts(void **state)
{
    (void)state;
    char folder[] = "/tmp/qwenmoe-test-alloc-XXXXXX", path[2][96];
    writer w = { 0 };
    int32_t status = QM_ERROR_MEMORY;
    assert_non_null(mkdtemp(folder));
    for (int i = 0; i < 2; i++) {
        put_many(&w, 2, (uint64_t)i);
        snprintf(path[i], sizeof path[i], "%s/m-%05d-of-00002.gguf", folder, i + 1);
        assert_int_equal(writer_save(&w, path[i]), 0);
    }
    for (int64_t n = 0; status != QM_OK; n++) {
        failing_alloc f = { .until_failure = n };
        const qmi_alloc hook = failing_hook(&f);
        qmi_parts parts;
        assert_true(n < 1000);
        qmi_fail(0, "%s", "");
        status = qmi_parts_open(path[0], &hook, &parts);
        if (status != QM_OK) {
            assert_int_equal(status, QM_ERROR_MEMORY);
            assert_non_null(strstr(qmi_error_text(), "out of memory"));
            assert_int_equal(f.live, 0);
            assert_int_equal(parts.count, 0);
        }
        qmi_parts_close(&parts, &hook);
        assert_int_equal(f.live, 0);
    }
    for (int i = 0; i < 2; i++)
        remove(path[i]);
    remove(folder);
    writer_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new_blocks_are_zero_and_aligned),
        cmocka_unit_test(test_hook_blocks_are_zero),
        cmocka_unit_test(test_sizes_that_do_not_fit),
        cmocka_unit_test(test_resize_failure_keeps_the_block),
        cmocka_unit_test(test_reserve_grows_and_keeps),
        cmocka_unit_test(test_each_failure_in_a_header),
        cmocka_unit_test(test_each_failure_in_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
