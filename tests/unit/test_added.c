/* Added tokens in text: leftmost, then longest; which of them count under which mode. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <string.h>
#include "text/added.h"

static const qmi_alloc alloc = { 0 };
static qmi_added added;

static int set_up(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int32_t token;
        bool user_defined;
    } tokens[] = {
        { "<think>", 7, true }, { "<|a|>", 1, false }, { "<|a|>b", 2, false }, { "<", 3, true }, { "<|a|>bcd", 4, true },
        { "<|a|>", 9, true }, { "\xe2\x98\x83", 5, false }, { "bc", 6, true },
    };
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        qmi_added_token token = { tokens[i].text, (uint32_t)strlen(tokens[i].text), tokens[i].token, tokens[i].user_defined };
        if (qmi_added_append(&added, token, &alloc) < 0)
            return 1;
    }
    qmi_added_sort(&added);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    qmi_added_clear(&added, &alloc);
    return 0;
}

static void assert_next(int32_t special, const char *text, int64_t from, int64_t start, int64_t end, int32_t token)
{
    qmi_added_match match = { -1, -1, -1 };
    bool found = qmi_added_next(&added, special, text, (int64_t)strlen(text), NULL, from, &match);
    assert_int_equal(found, token >= 0);
    assert_int_equal(match.start, start);
    assert_int_equal(match.end, end);
    assert_int_equal(match.token, token);
}

static void test_leftmost_then_longest(void **state)
{
    (void)state;
    assert_next(QM_SPECIAL_ALL, "x<|a|>y", 0, 1, 6, 1);
    assert_next(QM_SPECIAL_ALL, "x<|a|>by", 0, 1, 7, 2);
    assert_next(QM_SPECIAL_ALL, "x<|a|>bcy", 0, 1, 7, 2);
    assert_next(QM_SPECIAL_ALL, "x<|a|>bcd", 0, 1, 9, 4);
    assert_next(QM_SPECIAL_ALL, "x<|a|", 0, 1, 2, 3);
    assert_next(QM_SPECIAL_ALL, "<<think>", 0, 0, 1, 3);
    assert_next(QM_SPECIAL_ALL, "<<think>", 1, 1, 8, 7);
    assert_next(QM_SPECIAL_ALL, "abc", 0, 1, 3, 6);
    assert_next(QM_SPECIAL_ALL, "abc", 2, -1, -1, -1);
    assert_next(QM_SPECIAL_ALL, "\xe2\x98\x82\xe2\x98\x83", 0, 3, 6, 5);
    assert_next(QM_SPECIAL_ALL, "", 0, -1, -1, -1);
}

static void test_modes(void **state)
{
    (void)state;
    assert_next(QM_SPECIAL_NONE, "<|a|><think>", 0, -1, -1, -1);
    assert_next(QM_SPECIAL_USER, "<|a|>b", 0, 0, 1, 3); /* of the longer ones none is user defined */
    assert_next(QM_SPECIAL_USER, "<|a|>bcd", 0, 0, 8, 4);
    assert_next(QM_SPECIAL_USER, "\xe2\x98\x83", 0, -1, -1, -1);
    assert_next(QM_SPECIAL_USER, "\xe2\x98\x83<think>", 0, 3, 10, 7);
}

static void test_find_whole_text(void **state)
{
    (void)state;
    assert_int_equal(qmi_added_find(&added, "<|a|>", 5), 1); /* the lower of two with one text */
    assert_int_equal(qmi_added_find(&added, "<|a|>bc", 7), -1);
    assert_int_equal(qmi_added_find(&added, "<", 1), 3);
    assert_int_equal(qmi_added_find(&added, "<|", 2), -1);
    assert_int_equal(qmi_added_find(&added, "", 0), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leftmost_then_longest),
        cmocka_unit_test(test_modes),
        cmocka_unit_test(test_find_whole_text),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
