/* Model files in parts: opened by any part's name, and every way in which parts do not belong together is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/error.h"
#include "file/gguf_parts.h"
#include "gguf_writer.h"

static const qmi_alloc alloc = { 0 };
static char folder[] = "/tmp/qwenmoe-test-parts-XXXXXX";

static const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* A part with tensors a<number>.0 and a<number>.1; promised is split.tensors.count, number and count may be lies. */
static void put_part(writer *w, uint32_t number, uint32_t count, uint32_t promised)
{
    char name[32];
    put_start(w, 3, 2, 4);
    put_u32_value(w, "split.count", count);
    put_u32_value(w, "split.no", number);
    put_u32_value(w, "split.tensors.count", promised);
    put_u32_value(w, "mark", 100 + number);
    for (uint32_t i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "a%u.%u", number, i);
        put_tensor(w, name, 0, 1, (uint64_t[]){ 8 }, 32 * (uint64_t)i);
    }
    put_data(w, 32, 64);
    w->bytes[w->size - 64] = (uint8_t)(50 + number); /* the first byte of data */
}

static void save_part(const char *name, uint32_t number, uint32_t count, uint32_t promised)
{
    writer w = { 0 };
    put_part(&w, number, count, promised);
    assert_int_equal(writer_save(&w, path_of(name)), 0);
    writer_free(&w);
}

static int make_parts(void **state)
{
    (void)state;
    save_part("m-00001-of-00003.gguf", 0, 3, 6);
    save_part("m-00002-of-00003.gguf", 1, 3, 6);
    save_part("m-00003-of-00003.gguf", 2, 3, 6);
    return 0;
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    static const char *const names[] = { "m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf", "one.gguf",
                                         "one-00001-of-00001.gguf", "n-00001-of-00002.gguf", "n-00002-of-00002.gguf" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unlink(path_of(names[i]));
    return rmdir(folder);
}

static void expect_failure(const char *name, int32_t code, const char *words)
{
    qmi_parts parts;
    memset(&parts, 0x55, sizeof parts);
    const int32_t status = qmi_parts_open(path_of(name), &alloc, &parts);
    if (status != code || !strstr(qmi_error_text(), words))
        fail_msg("%s: code %d, message \"%s\", expected \"%s\"", name, status, qmi_error_text(), words);
    assert_int_equal(parts.count, 0);
    assert_null(parts.maps);
}

static void test_opens_by_any_part(void **state)
{
    (void)state;
    static const char *const names[] = { "m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf" };
    for (int n = 0; n < 3; n++) {
        qmi_parts parts;
        int64_t mark = 0;
        assert_int_equal(qmi_parts_open(path_of(names[n]), &alloc, &parts), QM_OK);
        assert_int_equal(parts.count, 3);
        assert_int_equal(parts.gguf.tensor_count, 6);
        assert_int_equal(parts.bytes, 3 * parts.maps[0].size);
        assert_int_equal(qmi_gguf_int(&parts.gguf, "mark", &mark), 1);
        assert_int_equal(mark, 100); /* the first part's, whichever was named */
        for (int i = 0; i < 3; i++) {
            char name[16];
            snprintf(name, sizeof name, "a%d.0", i);
            const qmi_gguf_tensor *tensor = qmi_gguf_find_tensor(&parts.gguf, name);
            assert_non_null(tensor);
            assert_int_equal(tensor->part, i);
            assert_int_equal(tensor->data[0], 50 + i);
        }
        assert_int_equal(qmi_parts_check(&parts), QM_OK);
        qmi_parts_close(&parts, &alloc);
        qmi_parts_close(&parts, &alloc);
    }
}

static void test_opens_a_single_file(void **state)
{
    (void)state;
    static const char *const names[] = { "one.gguf", "one-00001-of-00001.gguf" };
    for (int n = 0; n < 2; n++) {
        qmi_parts parts;
        writer w = { 0 };
        put_start(&w, 2, 1, 0);
        put_tensor(&w, "t", 0, 1, (uint64_t[]){ 8 }, 0);
        put_data(&w, 32, 32);
        assert_int_equal(writer_save(&w, path_of(names[n])), 0);
        writer_free(&w);
        assert_int_equal(qmi_parts_open(path_of(names[n]), &alloc, &parts), QM_OK);
        assert_int_equal(parts.count, 1);
        assert_non_null(qmi_gguf_find_tensor(&parts.gguf, "t"));
        qmi_parts_close(&parts, &alloc);
    }
}

static void test_missing_part_is_named(void **state)
{
    (void)state;
    unlink(path_of("m-00002-of-00003.gguf"));
    expect_failure("m-00001-of-00003.gguf", QM_ERROR_FILE, "part 2 of 3 is missing");
    expect_failure("m-00003-of-00003.gguf", QM_ERROR_FILE, "m-00002-of-00003.gguf");
    expect_failure("m-00002-of-00003.gguf", QM_ERROR_FILE, "cannot open");
}

static void test_parts_that_do_not_belong_together(void **state)
{
    (void)state;
    save_part("m-00002-of-00003.gguf", 1, 4, 6);
    expect_failure("m-00001-of-00003.gguf", QM_ERROR_FORMAT, "split.count is 4");
    expect_failure("m-00002-of-00003.gguf", QM_ERROR_FORMAT, "split.count 4");
    save_part("m-00002-of-00003.gguf", 2, 3, 6);
    expect_failure("m-00001-of-00003.gguf", QM_ERROR_FORMAT, "split.no is 2");
    save_part("m-00002-of-00003.gguf", 1, 3, 6);
    save_part("m-00001-of-00003.gguf", 0, 3, 7);
    expect_failure("m-00001-of-00003.gguf", QM_ERROR_FORMAT, "split.tensors.count is 7, but the parts have 6");
}

static void test_names_that_do_not_fit(void **state)
{
    (void)state;
    save_part("one.gguf", 0, 3, 6);
    expect_failure("one.gguf", QM_ERROR_FORMAT, "-0000N-of-00003.gguf");
    save_part("n-00001-of-00002.gguf", 0, 3, 6);
    expect_failure("n-00001-of-00002.gguf", QM_ERROR_FORMAT, "its name says 2 parts");
    save_part("one.gguf", 0, 0, 2);
    expect_failure("one.gguf", QM_ERROR_FORMAT, "split.count is 0");
    save_part("one.gguf", 0, 0xFFFFFFFF, 2);
    expect_failure("one.gguf", QM_ERROR_FORMAT, "split.count is 4294967295");
    writer w = { 0 }; /* a name like a part's, but no key */
    put_start(&w, 3, 0, 0);
    assert_int_equal(writer_save(&w, path_of("n-00001-of-00002.gguf")), 0);
    writer_free(&w);
    expect_failure("n-00001-of-00002.gguf", QM_ERROR_FORMAT, "its split.count 1");
}

static void test_tensor_in_two_parts(void **state)
{
    (void)state;
    writer w = { 0 };
    for (uint32_t part = 0; part < 2; part++) {
        put_start(&w, 3, 1, 2);
        put_u32_value(&w, "split.count", 2);
        put_u32_value(&w, "split.no", part);
        put_tensor(&w, "same", 0, 1, (uint64_t[]){ 8 }, 0);
        put_data(&w, 32, 32);
        assert_int_equal(writer_save(&w, path_of(part ? "n-00002-of-00002.gguf" : "n-00001-of-00002.gguf")), 0);
    }
    writer_free(&w);
    expect_failure("n-00001-of-00002.gguf", QM_ERROR_FORMAT, "tensor same appears twice");
}

static void test_damage_names_its_part(void **state)
{
    (void)state;
    writer w = { 0 };
    put_part(&w, 2, 3, 6);
    w.size -= 1;
    assert_int_equal(writer_save(&w, path_of("m-00003-of-00003.gguf")), 0);
    writer_free(&w);
    expect_failure("m-00001-of-00003.gguf", QM_ERROR_FORMAT, "m-00003-of-00003.gguf: tensor a2.1");
}

static void test_a_cut_part_is_noticed(void **state)
{
    (void)state;
    qmi_parts parts;
    assert_int_equal(qmi_parts_open(path_of("m-00001-of-00003.gguf"), &alloc, &parts), QM_OK);
    assert_int_equal(truncate(path_of("m-00002-of-00003.gguf"), 40), 0);
    assert_int_equal(qmi_parts_check(&parts), QM_ERROR_FILE);
    assert_non_null(strstr(qmi_error_text(), "m-00002-of-00003.gguf"));
    assert_int_equal(qmi_parts_read_ahead(&parts, NULL, NULL), QM_ERROR_FILE);
    qmi_parts_close(&parts, &alloc);
}

typedef struct progress {
    int calls, cancel_at;
    int64_t done, total;
} progress;

static int32_t note_progress(const char *stage, int64_t done, int64_t total, void *user)
{
    progress *p = user;
    assert_string_equal(stage, "load");
    assert_true(done > p->done && done <= total);
    p->done = done;
    p->total = total;
    return ++p->calls == p->cancel_at;
}

static void test_reading_ahead_tells_its_progress(void **state)
{
    (void)state;
    qmi_parts parts;
    progress p = { 0 };
    assert_int_equal(qmi_parts_open(path_of("m-00001-of-00003.gguf"), &alloc, &parts), QM_OK);
    assert_int_equal(qmi_parts_read_ahead(&parts, note_progress, &p), QM_OK);
    assert_int_equal(p.calls, 3);
    assert_int_equal(p.done, parts.bytes);
    assert_int_equal(p.total, parts.bytes);
    p = (progress){ .cancel_at = 2 };
    assert_int_equal(qmi_parts_read_ahead(&parts, note_progress, &p), QM_ERROR_CANCELLED);
    assert_int_equal(p.calls, 2);
    assert_int_equal(qmi_parts_read_ahead(&parts, NULL, NULL), QM_OK);
    qmi_parts_close(&parts, &alloc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_opens_by_any_part, make_parts),
        cmocka_unit_test(test_opens_a_single_file),
        cmocka_unit_test_setup(test_missing_part_is_named, make_parts),
        cmocka_unit_test_setup(test_parts_that_do_not_belong_together, make_parts),
        cmocka_unit_test(test_names_that_do_not_fit),
        cmocka_unit_test(test_tensor_in_two_parts),
        cmocka_unit_test_setup(test_damage_names_its_part, make_parts),
        cmocka_unit_test_setup(test_a_cut_part_is_noticed, make_parts),
        cmocka_unit_test_setup(test_reading_ahead_tells_its_progress, make_parts),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
