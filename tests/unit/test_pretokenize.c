/* The two patterns on cases reasoned by hand from the regular expressions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <string.h>
#include "text/pretokenize.h"

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
    return 0;
}

/* `expected` has a bar at each cut. */
static void assert_cut(const char *name, const char *expected)
{
    char text[512], got[512];
    size_t length = 0, end = 0;
    for (const char *c = expected; *c; c++) {
        if (*c != '|')
            text[length++] = *c;
    }
    const qmi_pretokenizer *pre = qmi_pretokenizer_find(name);
    assert_non_null(pre);
    for (int64_t at = 0; at < (int64_t)length;) {
        int64_t next = qmi_pretokenize_next(pre, unicode, text, (int64_t)length, at);
        assert_true(next > at && next <= (int64_t)length);
        if (at > 0)
            got[end++] = '|';
        memcpy(got + end, text + at, (size_t)(next - at));
        end += (size_t)(next - at);
        at = next;
    }
    got[end] = 0;
    assert_string_equal(got, expected);
}

static void assert_cut_by_both(const char *expected)
{
    assert_cut("qwen2", expected);
    assert_cut("qwen35", expected);
}

static void test_words_numbers_signs(void **state)
{
    (void)state;
    assert_cut_by_both("Hello| world|!");
    assert_cut_by_both("x|1|2|3|y");
    assert_cut_by_both(" |1| |2");
    assert_cut_by_both("def| f|(a|,| b|):\n|   | return| a|+b|\n");
    assert_cut_by_both("((|foo|)).|bar");
    assert_cut_by_both(" (|foo");
    assert_cut_by_both("\tx");
    assert_cut_by_both("$x| $|1");
    assert_cut_by_both("!!\n\n|x");
    assert_cut_by_both("!\r\n|\t|\t|!");
    assert_cut_by_both("\u00bd|a"); /* a number never goes with letters */
    assert_cut_by_both("\u00a0a");
    assert_cut_by_both("\u00a0|!");  /* only U+0020 goes with signs */
}

static void test_contractions(void **state)
{
    (void)state;
    assert_cut_by_both("he|'s");
    assert_cut_by_both("HE|'LL|'Re|'vE|'M|'d|'t");
    assert_cut_by_both("'s|tart");
    assert_cut_by_both("'re|d");
    assert_cut_by_both("'x| '|s"); /* after a blank the sign goes with it: the rest is a word */
    assert_cut_by_both("'l|'r|'v|'");
    assert_cut_by_both("''|s");
    assert_cut_by_both("'\u017f|x"); /* U+017F is an s when case is ignored */
    assert_cut_by_both("\u2019s");
}

static void test_white_space(void **state)
{
    (void)state;
    assert_cut_by_both("a|  ");
    assert_cut_by_both("a|  | b");
    assert_cut_by_both("a| b");
    assert_cut_by_both(" |\u00a0|1");
    assert_cut_by_both("a|\n\n|b");
    assert_cut_by_both("a|  \n  \n|  | b");
    assert_cut_by_both("a|\r\n");
    assert_cut_by_both("\n|a");
    assert_cut_by_both(" \n| a");
    assert_cut_by_both("\u2028|\u2028a");
    assert_cut_by_both("\x1c\x1d|a"); /* not White_Space: signs, and they keep together */
    assert_cut_by_both("   ");
    assert_cut_by_both("\t\t|\t|1");
}

static void test_marks_are_letters_for_qwen35_only(void **state)
{
    (void)state;
    assert_cut("qwen2", "q|\u0323q|\u0301");
    assert_cut("qwen35", "q\u0323q\u0301");
    assert_cut("qwen2", "\u0301\u0302|a");
    assert_cut("qwen35", "\u0301\u0302a");
    assert_cut("qwen2", " \u0301|a");
    assert_cut("qwen35", " \u0301a");
    assert_cut("qwen2", "!!\u0301\n|x");
    assert_cut("qwen35", "!!|\u0301|\n|x");
    assert_cut_by_both("!\u0301");
    assert_cut_by_both("1|\u0301");
    assert_cut_by_both("\n|\u0301");
}

static void test_names(void **state)
{
    (void)state;
    assert_null(qmi_pretokenizer_find("qwen"));
    assert_null(qmi_pretokenizer_find(""));
    assert_string_equal(qmi_pretokenizer_find("qwen35")->name, "qwen35");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words_numbers_signs),
        cmocka_unit_test(test_contractions),
        cmocka_unit_test(test_white_space),
        cmocka_unit_test(test_marks_are_letters_for_qwen35_only),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
