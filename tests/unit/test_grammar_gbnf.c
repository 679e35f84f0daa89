/* GBNF: which texts fit, and what is refused with which words. Expected values follow from the grammars. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include "failing_alloc.h"
#include "grammar_scene.h"

static const qmi_alloc plain_alloc = { 0 };

typedef struct expectation {
    const char *text;
    int32_t fit;
} expectation;

static void check(const char *grammar, const expectation *expected)
{
    grammar_scene scene;
    int32_t code = grammar_scene_open(&scene, grammar, strlen(grammar), &plain_alloc);
    if (code < 0)
        fail_msg("%s: %s", grammar, qmi_error_text());
    for (; expected->text; expected++) {
        int32_t fit = grammar_scene_match(&scene, expected->text, strlen(expected->text));
        if (fit != expected->fit)
            fail_msg("%s with '%s': %d instead of %d", grammar, expected->text, fit, expected->fit);
    }
    grammar_scene_close(&scene);
}

#define CHECK(grammar, ...) check(grammar, (const expectation[]){ __VA_ARGS__, { NULL, 0 } })

static void fits(void **state)
{
    (void)state;
    CHECK("root ::= \"abc\"", { "", BEGINS }, { "ab", BEGINS }, { "abc", COMPLETE }, { "abcd", MISFIT }, { "b", MISFIT });
    CHECK("root ::= \"\" | \"a\"", { "", COMPLETE }, { "a", COMPLETE }, { "aa", MISFIT });
    CHECK("root ::= [a-c]+ \"!\"?", { "", BEGINS }, { "cab", COMPLETE }, { "cab!", COMPLETE }, { "!", MISFIT },
          { "abd", MISFIT });
    CHECK("root ::= [^a-c\\n]*", { "xyz", COMPLETE }, { "xa", MISFIT }, { "\n", MISFIT }, { "\xc3\xa4", COMPLETE });
    CHECK("root ::= . .", { "\n", BEGINS }, { "\xe2\x82\xac\xf0\x9f\x98\x80", COMPLETE }, { "\xe2\x82", BEGINS },
          { "\xed\xa0\x80", MISFIT }, { "\xff", MISFIT }, { "\xc0\x80", MISFIT }, { "\xf4\x90\x80\x80", MISFIT });
    CHECK("root ::= [\xc3\xa4-\xc3\xbc\\u20ac\\U0001F600-\\U0001F64F\\x41\\]\\-]", { "\xc3\xa4", COMPLETE },
          { "\xc3\xbd", MISFIT }, { "\xe2\x82\xac", COMPLETE }, { "\xf0\x9f\x99\x8f", COMPLETE },
          { "\xf0\x9f\x99\x90", MISFIT }, { "A", COMPLETE }, { "]", COMPLETE }, { "-", COMPLETE }, { "B", MISFIT });
    CHECK("root ::= [a-] [-b]", { "--", COMPLETE }, { "ab", COMPLETE }, { "bb", MISFIT });
    CHECK("root ::= \"\\\"\\\\\\n\\t\\r\\x41\\u00e4\"", { "\"\\\n\t\rA\xc3\xa4", COMPLETE });
    CHECK("root ::= (\"a\" | \"b\" (\"c\")) \"d\" # comment\n# another\n\n", { "ad", COMPLETE }, { "bcd", COMPLETE },
          { "bd", MISFIT });
    CHECK("root ::=\n  one |\n  two\none ::= \"1\"\ntwo ::= \"2\"\n  | \"zwei\"", { "1", COMPLETE }, { "2", COMPLETE },
          { "zwei", COMPLETE });
    CHECK("root ::= (\n \"a\"\n | \"b\"\n)+\r\n", { "abba", COMPLETE }, { "", BEGINS });
}

static void repetitions(void **state)
{
    (void)state;
    CHECK("root ::= \"ab\"{2}", { "ab", BEGINS }, { "abab", COMPLETE }, { "ababa", MISFIT });
    CHECK("root ::= \"a\"{2,}", { "a", BEGINS }, { "aa", COMPLETE }, { "aaaaaaaaaaaaaa", COMPLETE });
    CHECK("root ::= \"a\"{1,3} \"b\"{,2}", { "a", COMPLETE }, { "aaabb", COMPLETE }, { "aaaa", MISFIT }, { "abbb", MISFIT },
          { "b", MISFIT });
    CHECK("root ::= \"a\"{0} \"b\"", { "a", MISFIT }, { "b", COMPLETE });
    CHECK("root ::= [ab]{20}", { "aaaaabbbbbaaaaabbbb", BEGINS }, { "aaaaabbbbbaaaaabbbbb", COMPLETE },
          { "aaaaabbbbbaaaaabbbbba", MISFIT });
    CHECK("root ::= (\"a\" \"b\"?){9,11} \"c\"", { "aaaaaaaac", MISFIT }, { "ababababaaaaac", COMPLETE },
          { "aaaaaaaaaaac", COMPLETE }, { "aaaaaaaaaaaa", MISFIT });
    CHECK("root ::= (\"a\"{0,9}){10,20} \"b\"", { "b", COMPLETE }, { "aaaaaaaaaaaaaaaaaaaaaaaaaab", COMPLETE });
    CHECK("root ::= (\"a\"? | \"bc\"){12,} \"d\"", { "d", COMPLETE }, { "abcabcd", COMPLETE }, { "abd", MISFIT });
    CHECK("root ::= [a]{3,1000000000} \"b\"", { "aab", MISFIT }, { "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", COMPLETE });
    CHECK("root ::= ((\"a\"*)*)* \"b\"", { "aab", COMPLETE }, { "b", COMPLETE });
    CHECK("root ::= ([a-z]{2,3} \",\"){30,40}", { "ab,", BEGINS }, { "a,", MISFIT }, { "abcd", MISFIT });
}

static void recursion(void **state)
{
    (void)state;
    CHECK("root ::= \"(\" root? \")\" root?", { "(()())()", COMPLETE }, { "(()", BEGINS }, { "())", MISFIT });
    CHECK("root ::= \"a\" root \"b\" | \"a\" root \"c\" | \"d\"", { "aaaaadbcbcb", COMPLETE }, { "aaaaadbcbcbc", MISFIT },
          { "aaaaadbcbc", BEGINS });
    CHECK("root ::= list\nlist ::= \"x\" list | \"x\"", { "xxxxxxxx", COMPLETE }, { "", BEGINS });
    CHECK("root ::= empty a\na ::= empty empty \"a\" a | empty\nempty ::= \"\" | \" \"", { "", COMPLETE },
          { "   a a", COMPLETE });
    CHECK("root ::= \"a\" never | \"b\"\nnever ::= \"x\" never", { "a", MISFIT }, { "b", COMPLETE });
    CHECK("root ::= e\ne ::= t (\"+\" t)*\nt ::= f (\"*\" f)*\nf ::= [0-9]+ | \"(\" e \")\"", { "1+2*(3+4)", COMPLETE },
          { "1+(2", BEGINS }, { "1++2", MISFIT });
}

/* The message names line and column. */
static void refused(void **state)
{
    static const struct {
        const char *grammar, *message;
    } cases[] = {
        { "", "line 1, column 1: the grammar has no rule root" },
        { "a ::= \"x\"", "the grammar has no rule root" },
        { "root ::= a\nb ::= \"x\"", "line 1, column 10: rule 'a' is not defined" },
        { "root ::= \"x\"\n\n  root ::= \"y\"", "line 3, column 3: rule 'root' is defined twice" },
        { "root ::= \"x", "line 1, column 10: this text has no closing quotation mark" },
        { "root ::= \"x\ny\"", "line 1, column 10: this text has no closing quotation mark" },
        { "root ::= [abc", "line 1, column 10: this class has no closing bracket" },
        { "root ::= [c-a]", "line 1, column 11: the range ends before it starts" },
        { "root ::= (\"a\"", "line 1, column 10: this parenthesis is not closed" },
        { "root ::= \"a\")", "line 1, column 13: this parenthesis closes none" },
        { "root ::= \"\\q\"", "line 1, column 11: unknown escape" },
        { "root ::= \"\\u12\"", "four hexadecimal digits" },
        { "root ::= \"\\ud800\"", "this is no Unicode character" },
        { "root ::= \"a\"{3,2}", "line 1, column 13: the repetition's second number is less" },
        { "root ::= \"a\"{}", "a repetition is written" },
        { "root ::= \"a\"{99999999999}", "over 1000000000" },
        { "root = \"a\"", "line 1, column 6: ::= is expected" },
        { "root ::= \"a\" %", "line 1, column 14: expected is" },
        { "root ::= <|im_end|>", "tokens cannot be named here" },
        { "root ::= root \"a\" | \"b\"", "rule 'root' begins with itself (left recursion)" },
        { "root ::= a | \"y\"\na ::= b? root\nb ::= \"x\"", "begins with itself" },
        { "root ::= a{9,12}\na ::= a? \"b\"", "rule 'a' begins with itself" },
        { "root ::= \"a\" root", "no text fits the grammar" },
        { "root ::= \"\xff\"", "line 1, column 11: the text is not UTF-8" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        grammar_scene scene;
        int32_t code = grammar_scene_open(&scene, cases[i].grammar, strlen(cases[i].grammar), &plain_alloc);
        if (code != QM_ERROR_OPTION || !strstr(qmi_error_text(), cases[i].message))
            fail_msg("%s: %d, '%s'", cases[i].grammar, code, code < 0 ? qmi_error_text() : "");
    }
}

/* Deep nesting, many rules and ambiguity end in an error or in bounded memory. */
static void hostile(void **state)
{
    static char text[2000000];
    grammar_scene scene;
    (void)state;
    size_t length = (size_t)sprintf(text, "root ::= ");
    memset(text + length, '(', 100000);
    assert_int_equal(grammar_scene_open(&scene, text, length + 100000, &plain_alloc), QM_ERROR_OPTION);
    assert_non_null(strstr(qmi_error_text(), "nested too deeply"));

    length = (size_t)sprintf(text, "root ::= r0\n");
    for (int i = 0; i < 40000; i++)
        length += (size_t)sprintf(text + length, "r%d ::= \"a\"? r%d\n", i, i + 1);
    length += (size_t)sprintf(text + length, "r40000 ::= \"b\"");
    assert_int_equal(grammar_scene_open(&scene, text, length, &plain_alloc), QM_OK);
    assert_int_equal(grammar_scene_match(&scene, "aaab", 4), COMPLETE);
    grammar_scene_close(&scene);

    static const char doubling[] =
        "root ::= a{1,8}\na ::= b{1,8}\nb ::= c{1,8}\nc ::= d{1,8}\nd ::= (e | e e){1,8}\ne ::= [a-z]{1,8} | \"\"";
    assert_int_equal(grammar_scene_open(&scene, doubling, strlen(doubling), &plain_alloc), QM_OK);
    memset(text, 'x', 300);
    assert_int_equal(grammar_scene_match(&scene, text, 300), COMPLETE);
    grammar_scene_close(&scene);

    static const char counts[] = "root ::= (\"a\" | \"aa\"){1,1000000}";
    assert_int_equal(grammar_scene_open(&scene, counts, strlen(counts), &plain_alloc), QM_OK);
    memset(text, 'a', 1000);
    assert_int_equal(grammar_scene_match(&scene, text, 1000), COMPLETE);
    grammar_scene_close(&scene);
}

/* However an allocation fails, nothing is left, and the code says so. */
static void out_of_memory(void **state)
{
    static const char text[] = "root ::= [a-z\xc3\xa4]{10,20} (\",\" item)* # x\nitem ::= \"b\" | \"(\" root \")\"";
    bool failed = true;
    (void)state;
    for (int64_t n = 0; failed; n++) {
        failing_alloc failing = { .until_failure = n };
        const qmi_alloc alloc = failing_hook(&failing);
        grammar_scene scene;
        int32_t code = grammar_scene_open(&scene, text, strlen(text), &alloc);
        if (code >= 0)
            code = grammar_scene_match(&scene, "abcdefghijkl,(mnopqrstuvw),b", 28);
        failed = failing.failed;
        assert_int_equal(code, failed ? QM_ERROR_MEMORY : COMPLETE);
        grammar_scene_close(&scene);
        assert_int_equal(failing.live, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fits),    cmocka_unit_test(repetitions), cmocka_unit_test(recursion),
        cmocka_unit_test(refused), cmocka_unit_test(hostile),     cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
