/* Programs as lists: slots, ops, sizes; and the registry that opens a device for them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "backend/program.h"
#include "backend/registry.h"
#include "base/error.h"
#include "failing_alloc.h"

static void test_slots(void **state)
{
    (void)state;
    qmi_program program = { 0 };
    qmi_slot a = qmi_program_slot(&program, "a", 64, false), b = qmi_program_slot(&program, "b", 64, false);
    assert_int_not_equal(a, b);
    assert_int_equal(qmi_program_slot(&program, "a", 64, false), a);
    assert_int_not_equal(qmi_program_slot(&program, "a", 65, false), a);
    assert_int_not_equal(qmi_program_slot(&program, "a", 64, true), a);
    assert_int_equal(program.slot_count, 4);
    assert_int_equal(qmi_program_slot(&program, "wide", QMI_SLOT_WIDTH_MAX + 1, false), QM_ERROR_FORMAT);
    assert_int_equal(qmi_program_slot(&program, "none", 0, false), QM_ERROR_FORMAT);
    assert_non_null(strstr(qmi_error_text(), "none"));
    for (int64_t width = 1; width <= QMI_SLOTS_MAX - 4; width++)
        assert_true(qmi_program_slot(&program, "c", width, false) >= 0);
    assert_int_equal(qmi_program_slot(&program, "d", 1, false), QM_ERROR_UNSUPPORTED);
    assert_int_equal(program.slot_count, QMI_SLOTS_MAX);
}

static void test_workspace(void **state)
{
    (void)state;
    qmi_program program = { 0 };
    qmi_program_slot(&program, "a", 3, false);   /* 5 rows: 60 bytes, 64 with alignment */
    qmi_program_slot(&program, "b", 100, true);  /* 2 outputs: 800, 832 */
    assert_int_equal(qmi_workspace_bytes(&program, 5, 2), 64 + 832);
}

static void test_append(void **state)
{
    (void)state;
    failing_alloc f = { .until_failure = 1 };
    qmi_alloc alloc = failing_hook(&f);
    qmi_program program = { 0 };
    int32_t code = QM_OK;
    size_t appended = 0;
    while (appended < 10000 && (code = qmi_program_append(&program, &alloc, &(qmi_op){ .layer = (int32_t)appended })) == QM_OK)
        appended++;
    assert_int_equal(code, QM_ERROR_MEMORY); /* the list had to grow and could not: it is as it was */
    assert_int_equal(program.count, appended);
    for (size_t i = 0; i < appended; i++)
        assert_int_equal(program.ops[i].layer, i);
    f.until_failure = -1;
    assert_int_equal(qmi_program_append(&program, &alloc, &(qmi_op){ .layer = 77 }), QM_OK);
    assert_int_equal(program.ops[appended].layer, 77);
    assert_int_equal(program.ops[0].layer, 0);
    qmi_program_free(&program, &alloc);
    qmi_program_free(&program, &alloc);
    assert_int_equal(f.live, 0);
}

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(qmi_op_name(QMI_OP_EMBED), "embed");
    assert_string_equal(qmi_op_name(QMI_OP_ATTEND), "attend");
    assert_string_equal(qmi_op_name(QMI_OP_LOGITS), "logits");
    assert_string_equal(qmi_op_name(QMI_OP_COUNT), "unknown");
}

static void find(const char *device, qmi_choices *choices)
{
    assert_int_equal(qmi_registry_find(device, "", &(qmi_log){ 0 }, choices), QM_OK);
}

static void find_fails(const char *device, const char *cuda_library, int32_t code, const char *message)
{
    qmi_choices choices;
    assert_int_equal(qmi_registry_find(device, cuda_library, &(qmi_log){ 0 }, &choices), code);
    assert_non_null(strstr(qmi_error_text(), message));
    assert_int_equal(choices.count, 0);
}

/* Whatever cards there are, the CPU is what remains. */
static void test_registry(void **state)
{
    (void)state;
    qmi_choices choices;
    find("auto", &choices);
    assert_true(choices.count >= 1);
    assert_ptr_equal(choices.list[choices.count - 1].backend, &qmi_cpu_backend);
    find("cpu", &choices);
    assert_int_equal(choices.count, 1);
    assert_ptr_equal(choices.list[0].backend, &qmi_cpu_backend);
    assert_int_equal(choices.list[0].index, 0);
    assert_int_equal(qmi_cpu_backend.abi, QMI_BACKEND_ABI);
    find("cpu:3", &choices);
    assert_int_equal(choices.list[0].index, 3);
    find_fails("tpu", "", QM_ERROR_OPTION, "tpu");
    find_fails("cpu:x", "", QM_ERROR_OPTION, "cpu:x");
    find_fails("cpu:-1", "", QM_ERROR_OPTION, "cpu:-1");
    find_fails("a name that is much too long", "", QM_ERROR_OPTION, "much too long");
    find_fails("", "", QM_ERROR_OPTION, "device");
}

static void keep_line(int32_t level, const char *line, void *user)
{
    assert_int_equal(level, QM_LOG_WARNING);
    snprintf(user, 512, "%s", line);
}

/* A file that is no backend: an error when it was asked for, else a line in the log. */
static void test_wrong_libraries(void **state)
{
    (void)state;
    const char *const files[] = { "/nowhere/libqwenmoe-cuda.so", "libm.so.6" };
    for (int i = 0; i < 2; i++) {
        qmi_choices choices;
        char line[512] = "";
        find_fails("cuda", files[i], QM_ERROR_DEVICE, files[i]);
        find_fails("cuda:1", files[i], QM_ERROR_DEVICE, files[i]);
        assert_int_equal(qmi_registry_find("auto", files[i], &(qmi_log){ keep_line, line }, &choices), QM_OK);
        assert_int_equal(choices.count, 1);
        assert_ptr_equal(choices.list[0].backend, &qmi_cpu_backend);
        assert_non_null(strstr(line, files[i]));
    }
}

static void test_open(void **state)
{
    (void)state;
    qmi_device *device;
    qmi_device_settings settings = { .threads = 1 };
    assert_int_equal(qmi_cpu_backend.open(&settings, &device), QM_OK);
    qmi_cpu_backend.close(&device);
    assert_null(device);
    qmi_cpu_backend.close(&device);
    for (settings.index = -1; settings.index <= 1; settings.index += 2) {
        assert_int_equal(qmi_cpu_backend.open(&settings, &device), QM_ERROR_DEVICE);
        assert_null(device);
    }
}

/* Opening a device fails at any of its allocations without leaving anything behind. */
static void test_open_without_memory(void **state)
{
    (void)state;
    for (int64_t n = 0;; n++) {
        failing_alloc f = { .until_failure = n };
        qmi_device *device;
        qmi_device_settings settings = { .threads = 2, .alloc = failing_hook(&f) };
        int32_t code = qmi_cpu_backend.open(&settings, &device);
        if (code == QM_OK)
            qmi_cpu_backend.close(&device);
        assert_int_equal(f.live, 0);
        if (code == QM_OK)
            break;
        assert_int_equal(code, QM_ERROR_MEMORY);
        assert_true(n < 10);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots),    cmocka_unit_test(test_workspace), cmocka_unit_test(test_append),
        cmocka_unit_test(test_names),    cmocka_unit_test(test_registry),
        cmocka_unit_test(test_wrong_libraries), cmocka_unit_test(test_open), cmocka_unit_test(test_open_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
