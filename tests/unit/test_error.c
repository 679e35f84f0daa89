/* Error messages: per thread, cut at a code point, and harmless on a terminal whatever they quote. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <string.h>
#include "base/error.h"
#include "base/os.h"

static void test_code_and_message(void **state)
{
    (void)state;
    assert_int_equal(qmi_fail(QM_ERROR_FILE, "cannot open %s: %d", "x", 7), QM_ERROR_FILE);
    assert_string_equal(qmi_error_text(), "cannot open x: 7");
    assert_int_equal(qmi_fail_within(QM_ERROR_FORMAT, "model.gguf"), QM_ERROR_FORMAT);
    assert_string_equal(qmi_error_text(), "model.gguf: cannot open x: 7");
    qmi_fail(QM_ERROR_FILE, "again: %s", qmi_error_text());
    assert_string_equal(qmi_error_text(), "again: model.gguf: cannot open x: 7");
}

static void test_what_is_quoted_is_made_harmless(void **state)
{
    static const struct { const char *quoted, *shown; } cases[] = {
        { "plain, \xC3\xA9, \xE2\x82\xAC, \xF0\x9F\x98\x80", "plain, \xC3\xA9, \xE2\x82\xAC, \xF0\x9F\x98\x80" },
        { "\x1B[2J", "?[2J" },
        { "a\nb\tc\x7F", "a?b?c?" },
        { "\xC2\x9B" "31m", "??31m" },         /* a control sequence introducer of 8 bits */
        { "\xC2\xA0", "\xC2\xA0" },            /* a no-break space is none */
        { "\xFF\xFE", "??" },
        { "\xC3", "?" },                       /* sequences that end early ... */
        { "\xE2\x82", "??" },
        { "\xE2\x82z", "??z" },
        { "\xC0\xAF", "??" },                  /* ... are longer than need be ... */
        { "\xE0\x80\xAF", "???" },
        { "\xED\xA0\x80", "???" },             /* ... or stand for a surrogate or for nothing */
        { "\xF4\x90\x80\x80", "????" },
        { "\x80", "?" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qmi_fail(QM_ERROR_FORMAT, "%s", cases[i].quoted);
        assert_string_equal(qmi_error_text(), cases[i].shown);
    }
}

static void test_long_messages_are_cut_at_a_code_point(void **state)
{
    (void)state;
    char text[600];
    for (size_t shift = 0; shift < 3; shift++) { /* the cut falls on each byte of the euro signs */
        memset(text, 'x', shift);
        for (size_t i = shift; i + 3 < sizeof text; i += 3)
            memcpy(text + i, "\xE2\x82\xAC", 4);
        qmi_fail(QM_ERROR_FORMAT, "%s", text);
        const size_t length = strlen(qmi_error_text());
        assert_true(length > QMI_ERROR_SIZE - 4 && length < QMI_ERROR_SIZE);
        assert_int_equal((length - shift) % 3, 0);
        assert_null(strchr(qmi_error_text(), '?'));
    }
}

static void fail_elsewhere(void *argument)
{
    qmi_fail(QM_ERROR_FORMAT, "of the other thread");
    qmi_error_copy(argument);
}

static void test_messages_belong_to_threads(void **state)
{
    (void)state;
    char other[QMI_ERROR_SIZE];
    qmi_os_thread *thread;
    qmi_fail(QM_ERROR_FORMAT, "mine");
    assert_int_equal(qmi_os_thread_start(&thread, fail_elsewhere, other, "test"), QM_OK);
    qmi_os_thread_join(&thread);
    assert_string_equal(qmi_error_text(), "mine");
    assert_string_equal(other, "of the other thread");
    qmi_error_restore(other);
    assert_string_equal(qmi_error_text(), "of the other thread");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_code_and_message),
        cmocka_unit_test(test_what_is_quoted_is_made_harmless),
        cmocka_unit_test(test_long_messages_are_cut_at_a_code_point),
        cmocka_unit_test(test_messages_belong_to_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
