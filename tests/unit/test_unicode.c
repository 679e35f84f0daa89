/* UTF-8, classes and NFC against the standard's own examples, and against utf8proc used in its plain way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "failing_alloc.h"
#include "text/unicode.h"

static const qmi_alloc alloc = { 0 };
static qmi_unicode *unicode;

static int set_up(void **state)
{
    (void)state;
    return qmi_unicode_new(&alloc, &unicode);
}

static int tear_down(void **state)
{
    (void)state;
    qmi_unicode_free(&alloc, &unicode);
    return unicode != NULL;
}

static void test_invalid_utf8_is_found(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t offset;
    } cases[] = {
        { "", -1 }, { "plain", -1 }, { "\x7f", -1 }, { "\xc2\x80", -1 }, { "\xdf\xbf", -1 }, { "\xe0\xa0\x80", -1 },
        { "\xed\x9f\xbf", -1 }, { "\xee\x80\x80", -1 }, { "\xef\xbf\xbf", -1 }, { "\xf0\x90\x80\x80", -1 },
        { "\xf4\x8f\xbf\xbf", -1 }, { "\x80", 0 }, { "a\xbf", 1 }, { "ab\xc0\x80", 2 }, { "\xc1\xbf", 0 },
        { "\xe0\x9f\xbf", 0 }, { "\xed\xa0\x80", 0 },
        { "\xf0\x8f\xbf\xbf", 0 }, { "\xf4\x90\x80\x80", 0 }, { "\xf5\x80\x80\x80", 0 }, { "\xff", 0 }, { "\xc3", 0 },
        { "\xe2\x82", 0 }, { "\xf0\x9f\x99", 0 }, { "\xe2\x82 ", 0 }, { "12345678\xc3\xa4" "12345678\xff", 18 },
        { "1234567890123456\xe2\x28\xa1", 16 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(qmi_unicode_find_invalid(cases[i].text, (int64_t)strlen(cases[i].text)), cases[i].offset);
}

static void test_code_points_go_there_and_back(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        char text[4];
        int32_t length = qmi_unicode_encode(c, text), step = 0;
        if (c >= 0xd800 && c <= 0xdfff) {
            assert_int_equal(qmi_unicode_find_invalid(text, length), 0);
            continue;
        }
        assert_int_equal(qmi_unicode_find_invalid(text, length), -1);
        assert_int_equal(qmi_unicode_decode(text, &step), c);
        assert_int_equal(step, length);
    }
}

static void test_classes(void **state)
{
    (void)state;
    static const struct {
        uint32_t code_point;
        int32_t class;
    } cases[] = {
        { 'a', QMI_CLASS_LETTER }, { 'Z', QMI_CLASS_LETTER }, { '_', QMI_CLASS_OTHER }, { '7', QMI_CLASS_NUMBER },
        { '\'', QMI_CLASS_OTHER }, { 0x00aa, QMI_CLASS_LETTER }, { 0x00b2, QMI_CLASS_NUMBER },
        { 0x00bd, QMI_CLASS_NUMBER }, { 0x0301, QMI_CLASS_MARK },
        { 0x0903, QMI_CLASS_MARK }, { 0x20dd, QMI_CLASS_MARK }, { 0x2160, QMI_CLASS_NUMBER }, { 0x4e2d, QMI_CLASS_LETTER },
        { 0xac00, QMI_CLASS_LETTER }, { 0x1f642, QMI_CLASS_OTHER }, { 0xe000, QMI_CLASS_OTHER },
        { 0x10ffff, QMI_CLASS_OTHER },
        { 0x20000, QMI_CLASS_LETTER }, { 0xe0100, QMI_CLASS_MARK }, { 0x1d7ce, QMI_CLASS_NUMBER },
        /* assigned in 15.1 and 16.0: letters, marks, numbers, whatever version utf8proc has */
        { 0x2ebf0, QMI_CLASS_LETTER }, { 0x1c89, QMI_CLASS_LETTER }, { 0x0897, QMI_CLASS_MARK },
        { 0x10d40, QMI_CLASS_NUMBER },
        /* assigned in 17.0 or later: nothing yet */
        { 0x323b0, QMI_CLASS_OTHER }, { 0x088f, QMI_CLASS_OTHER }, { 0x1acf, QMI_CLASS_OTHER },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(qmi_unicode_properties(unicode, cases[i].code_point) & QMI_CLASS_ANY, cases[i].class);
}

static void test_white_space_is_exact(void **state)
{
    (void)state;
    static const uint32_t spaces[] = {
        0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x20, 0x85, 0xa0, 0x1680, 0x2000, 0x2001, 0x2002, 0x2003, 0x2004, 0x2005, 0x2006,
        0x2007, 0x2008, 0x2009, 0x200a, 0x2028, 0x2029, 0x202f, 0x205f, 0x3000,
    };
    size_t next = 0;
    for (uint32_t c = 0; c < 0x110000; c++) {
        int32_t class = qmi_unicode_properties(unicode, c) & QMI_CLASS_ANY;
        int32_t expected = next < sizeof spaces / sizeof *spaces && spaces[next] == c;
        next += (size_t)expected;
        assert_int_equal(class == QMI_CLASS_SPACE, expected);
        assert_int_equal(class & (class - 1), 0); /* just one class */
    }
}

static void assert_nfc(const char *text, const char *expected)
{
    qmi_nfc work = { 0 };
    const char *result;
    int64_t length;
    assert_int_equal(qmi_unicode_nfc(unicode, text, (int64_t)strlen(text), &alloc, &work, &result, &length), QM_OK);
    assert_int_equal(length, strlen(expected));
    assert_memory_equal(result, expected, (size_t)length);
    qmi_nfc_clear(&alloc, &work);
}

static void test_nfc_copies_nothing_that_is_so_already(void **state)
{
    (void)state;
    static const char *const texts[] = { "", "plain", "\u00e9t\u00e9", "\u4e2d\u6587", "a\u0316b", "\u0915\u094d\u0937",
        "\U0001f642" };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        qmi_nfc work = { 0 };
        const char *result;
        int64_t length;
        assert_int_equal(qmi_unicode_nfc(unicode, texts[i], (int64_t)strlen(texts[i]), &alloc, &work, &result, &length), QM_OK);
        assert_ptr_equal(result, texts[i]);
        assert_int_equal(length, strlen(texts[i]));
        assert_null(work.text);
    }
}

static void test_nfc_examples(void **state)
{
    (void)state;
    assert_nfc("plain", "plain");
    assert_nfc("A\u030a", "\u00c5");
    assert_nfc("x \u212b y", "x \u00c5 y");
    assert_nfc("\u1e9b\u0323", "\u1e9b\u0323");
    assert_nfc("q\u0307\u0323", "q\u0323\u0307");                 /* order only */
    assert_nfc("D\u0307\u0323", "\u1e0c\u0307");                  /* UAX 15, figure 5 */
    assert_nfc("\u0344", "\u0308\u0301");                         /* excluded from composition */
    assert_nfc("\u0958", "\u0915\u093c");
    assert_nfc("\u2126", "\u03a9");
    assert_nfc("\u1100\u1161\u11a8", "\uac01");
    assert_nfc("\uac00\u11a8", "\uac01");
    assert_nfc("\uac00\u11a7", "\uac00\u11a7");                   /* U+11A7 is no trailing consonant */
    assert_nfc("a\u0301", "\u00e1");
    assert_nfc("a\u0301\n\u0301", "\u00e1\n\u0301");
    assert_nfc("\u0301a", "\u0301a");
    assert_nfc("\U0001d15e", "\U0001d157\U0001d165");
    assert_nfc("\u00e9", "\u00e9");
    assert_nfc("e\u0323\u0301\u0301", "\u1eb9\u0301\u0301");
}

/* Assigned after Unicode 9: they neither move nor compose, and nothing moves or composes over them. */
static void test_nfc_is_that_of_unicode_9(void **state)
{
    (void)state;
    assert_nfc("a\u1df6\u0301", "a\u1df6\u0301");                 /* U+1DF6: 10.0 */
    assert_nfc("\U000105d2\u0307", "\U000105d2\u0307");           /* composes in 16.0 */
    assert_nfc("\U000105c9", "\U000105c9");
    assert_nfc("\U00011938", "\U00011938");                       /* decomposes and composes in 13.0 */
    assert_nfc("\U00011935\U00011930", "\U00011935\U00011930");
    assert_nfc("a\u0301\u1df6a\u0301", "\u00e1\u1df6\u00e1");
}

static size_t put_random(char *text, size_t count, uint64_t *seed)
{
    /* All older than Unicode 9: bases, marks of several classes, jamo, singletons, composites. */
    static const uint32_t pool[] = {
        'a', 'e', 'o', ' ', 0x301, 0x302, 0x308, 0x323, 0x31b, 0x327, 0x345, 0x344, 0x340, 0xe9, 0x1ed9, 0x1f80, 0x3b1,
        0x212b, 0x1100, 0x1161, 0x11a8, 0xac00, 0x915, 0x93c, 0x94d, 0x9c7, 0x9be, 0x9d7, 0x3099, 0x304b, 0xf900, 0x1d15e,
        0x5b0, 0x5bc, 0x4e2d,
    };
    size_t length = 0;
    for (size_t i = 0; i < count; i++) {
        *seed = *seed * 6364136223846793005u + 1442695040888963407u;
        length += (size_t)qmi_unicode_encode(pool[(*seed >> 33) % (sizeof pool / sizeof *pool)], text + length);
    }
    text[length] = 0;
    return length;
}

static void test_nfc_equals_utf8proc_on_old_characters(void **state)
{
    (void)state;
    uint64_t seed = 17;
    for (size_t round = 0; round < 20000; round++) {
        char text[4 * 40 + 1];
        put_random(text, 1 + round % 40, &seed);
        utf8proc_uint8_t *expected = utf8proc_NFC((const utf8proc_uint8_t *)text);
        assert_non_null(expected);
        qmi_nfc work = { 0 };
        const char *result;
        int64_t length;
        assert_int_equal(qmi_unicode_nfc(unicode, text, (int64_t)strlen(text), &alloc, &work, &result, &length), QM_OK);
        assert_int_equal(length, strlen((const char *)expected));
        assert_memory_equal(result, expected, (size_t)length);
        qmi_nfc_clear(&alloc, &work);
        free(expected);
    }
}

/* More marks than are sorted by insertion: sorted by class, equal ones in their order. */
static void test_nfc_long_run_of_marks(void **state)
{
    (void)state;
    char text[1 + 3 * 2 * 300 + 1] = "q", expected[sizeof text] = "q";
    for (int32_t i = 0; i < 300; i++)
        strcat(text, i % 3 == 0 ? "\u0301" : i % 3 == 1 ? "\u0323" : "\u0302"); /* classes 230, 220, 230 */
    for (int32_t i = 0; i < 100; i++)
        strcat(expected, "\u0323");
    for (int32_t i = 0; i < 100; i++)
        strcat(expected, "\u0301\u0302");
    assert_nfc(text, expected);
}

static void test_memory_may_fail_anywhere(void **state)
{
    (void)state;
    char text[2 * 64 + 2] = "q";
    for (int32_t i = 0; i < 64; i++)
        strcat(text, i % 2 ? "\u0323" : "\u0301");
    for (int64_t n = 0;; n++) {
        failing_alloc failing = { .until_failure = n };
        qmi_alloc hook = failing_hook(&failing);
        qmi_unicode *made = NULL;
        qmi_nfc work = { 0 };
        const char *result;
        int64_t length;
        int32_t code = qmi_unicode_new(&hook, &made);
        if (code == QM_OK)
            code = qmi_unicode_nfc(made, text, (int64_t)strlen(text), &hook, &work, &result, &length);
        qmi_nfc_clear(&hook, &work);
        qmi_unicode_free(&hook, &made);
        assert_int_equal(failing.live, 0);
        if (code == QM_OK) {
            assert_true(n > 4);
            break;
        }
        assert_int_equal(code, QM_ERROR_MEMORY);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_invalid_utf8_is_found),
        cmocka_unit_test(test_code_points_go_there_and_back),
        cmocka_unit_test(test_classes),
        cmocka_unit_test(test_white_space_is_exact),
        cmocka_unit_test(test_nfc_copies_nothing_that_is_so_already),
        cmocka_unit_test(test_nfc_examples),
        cmocka_unit_test(test_nfc_is_that_of_unicode_9),
        cmocka_unit_test(test_nfc_equals_utf8proc_on_old_characters),
        cmocka_unit_test(test_nfc_long_run_of_marks),
        cmocka_unit_test(test_memory_may_fail_anywhere),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
