/* How answers end, token by token: one token a byte, but for the marks and "STOP". */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "failing_alloc.h"
#include "run/budget.h"
#include "run/random.h"
#include "small_vocab.h"

static const qmi_alloc plain_alloc = { 0 };
static small_vocab small;
static qmi_vocab *vocab;
enum { STOP = 258, END_TURN, END_TEXT, THINK, END_THINK, OTHER_END };

static int set_up(void **state)
{
    (void)state;
    small_vocab_start(&small, "qwen2");
    small_vocab_merge(&small, "S", "T");
    small_vocab_merge(&small, "O", "P");
    small_vocab_merge(&small, "ST", "OP");
    small_vocab_token(&small, "<|im_end|>", QMI_TOKEN_CONTROL);
    small_vocab_token(&small, "<|endoftext|>", QMI_TOKEN_CONTROL);
    small_vocab_token(&small, "<think>", QMI_TOKEN_USER_DEFINED);
    small_vocab_token(&small, "</think>", QMI_TOKEN_USER_DEFINED);
    small.source.eos = small_vocab_token(&small, "[EOS]", QMI_TOKEN_CONTROL);
    return qmi_vocab_new(small_vocab_source(&small), &plain_alloc, &(qmi_log){ 0 }, &vocab);
}

static int tear_down(void **state)
{
    (void)state;
    qmi_vocab_free(&vocab);
    small_vocab_free(&small);
    return 0;
}

/* ---- an answer under way ---- */

/* What was shown, with A{ }, R{ } and C{ } round answer, thoughts and tool calls. */
typedef struct answer {
    qmi_settings settings;
    qmi_budget *budget;
    char shown[16384];
    int part; /* -1: none yet */
    int32_t finish;
    int pieces;
} answer;

static bool whole_code_points(const char *text, int64_t length)
{
    for (int64_t at = 0; at < length;) {
        unsigned char lead = (unsigned char)text[at];
        int64_t size = lead < 0x80 ? 1 : lead < 0xC0 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
        if (size == 0 || at + size > length)
            return false;
        for (int64_t i = 1; i < size; i++) {
            if (((unsigned char)text[at + i] & 0xC0) != 0x80)
                return false;
        }
        at += size;
    }
    return true;
}

static void take_piece(qmi_answer_part part, const char *text, int64_t length, void *user)
{
    static const char letters[] = { [QMI_ANSWER_TEXT] = 'A', [QMI_ANSWER_THOUGHT] = 'R', [QMI_ANSWER_TOOL] = 'C' };
    answer *a = user;
    size_t end = strlen(a->shown);
    assert_true(length > 0 && end + (size_t)length + 4 < sizeof a->shown);
    assert_true(whole_code_points(text, length));
    if (a->part != (int)part) {
        end += (size_t)snprintf(a->shown + end, 4, "%s%c{", a->part < 0 ? "" : "}", letters[part]);
        a->part = (int)part;
    }
    memcpy(a->shown + end, text, (size_t)length);
    a->shown[end + (size_t)length] = 0;
    a->pieces++;
}

/* options: "name=value;name=value" */
static void configure(qmi_settings *settings, const char *options)
{
    char copy[256];
    qmi_settings_start(settings, NULL);
    snprintf(copy, sizeof copy, "%s", options);
    for (char *name = strtok(copy, ";"); name; name = strtok(NULL, ";")) {
        char *value = strchr(name, '=');
        *value++ = 0;
        if (qmi_settings_set(settings, qmi_option_find(name), value) != QM_OK)
            fail_msg("%s", qmi_error_text());
    }
}

static void start(answer *a, const char *options, bool inside_thoughts)
{
    memset(a, 0, sizeof *a);
    a->part = -1;
    configure(&a->settings, options);
    if (qmi_budget_new(&a->settings, vocab, inside_thoughts, &plain_alloc, &a->budget) != QM_OK)
        fail_msg("%s", qmi_error_text());
}

static int32_t push(answer *a, int32_t token)
{
    a->finish = qmi_budget_push(a->budget, token, take_piece, a);
    assert_true(a->finish >= 0);
    return a->finish;
}

/* The model says this: bytes and marks. What is forced comes in between. Ends early with a finish. */
static void say(answer *a, const char *text)
{
    qmi_ids ids = { 0 };
    assert_int_equal(qmi_tokenize(vocab, text, (int64_t)strlen(text), QM_SPECIAL_ALL, &plain_alloc, &ids), QM_OK);
    for (size_t i = 0; i < ids.count && a->finish == QMI_FINISH_NONE;) {
        int32_t forced = qmi_budget_forced(a->budget);
        assert_int_equal(qmi_budget_forced(a->budget), forced); /* asking changes nothing */
        push(a, forced >= 0 ? forced : ids.data[i++]);
    }
    qmi_delete(&plain_alloc, ids.data);
}

/* Takes what is forced now, as text. */
static void forced_is(answer *a, const char *expected)
{
    char text[64] = "";
    for (int32_t token; (token = qmi_budget_forced(a->budget)) >= 0;) {
        int64_t length;
        const char *bytes = qmi_vocab_bytes(vocab, token, &length);
        assert_true(strlen(text) + (size_t)length < sizeof text);
        strncat(text, bytes, (size_t)length);
        push(a, token);
    }
    assert_string_equal(text, expected);
}

static void text_is(const answer *a, const char *expected)
{
    int64_t length;
    const char *text = qmi_budget_text(a->budget, &length);
    assert_string_equal(text, expected);
    assert_int_equal(length, (int64_t)strlen(expected));
}

static void finish(answer *a, int32_t expected, const char *shown, const char *text)
{
    assert_int_equal(a->finish, expected);
    for (int i = 0; i < 2; i++) { /* a second end has no effect */
        assert_int_equal(qmi_budget_end(a->budget, take_piece, a), QM_OK);
        if (i == 0 && a->part >= 0)
            strcat(a->shown, "}");
        assert_string_equal(a->shown, shown);
    }
    text_is(a, text);
    qmi_budget_free(&a->budget);
    assert_null(a->budget);
    qmi_settings_end(&a->settings);
}

/* ---- ends and lengths ---- */

static void turns_end(void **state)
{
    (void)state;
    static const int32_t ends[] = { END_TURN, END_TEXT, OTHER_END };
    answer a;
    for (int i = 0; i < 3; i++) {
        start(&a, "", false);
        text_is(&a, "");
        say(&a, "hello");
        assert_string_equal(a.shown, "A{hello"); /* nothing is held back without need */
        push(&a, ends[i]);
        finish(&a, QMI_FINISH_END, "A{hello}", "hello");
        start(&a, "ignore-end=1;answer-tokens=7", false);
        say(&a, "hel");
        push(&a, ends[i]);
        assert_int_equal(a.finish, QMI_FINISH_NONE);
        push(&a, ends[i]);
        say(&a, "lower");
        finish(&a, QMI_FINISH_LENGTH, "A{hello}", "hello");
    }
    start(&a, "answer-tokens=0", false);
    for (int i = 0; i < 3000; i++)
        push(&a, i % 2 ? 255 : 'x'); /* byte 255 is never text */
    assert_int_equal(a.finish, QMI_FINISH_NONE);
    qmi_budget_free(&a.budget);
}

static void names(void **state)
{
    (void)state;
    assert_string_equal(qmi_finish_name(QMI_FINISH_NONE), "");
    assert_string_equal(qmi_finish_name(QMI_FINISH_END), "end");
    assert_string_equal(qmi_finish_name(QMI_FINISH_STOP), "stop");
    assert_string_equal(qmi_finish_name(QMI_FINISH_LENGTH), "length");
    assert_string_equal(qmi_finish_name(QMI_FINISH_CONTEXT), "context");
    assert_string_equal(qmi_finish_name(QMI_FINISH_CANCELLED), "cancelled");
    assert_string_equal(qmi_finish_name(QMI_FINISH_ERROR), "error");
}

static void code_points_stay_whole(void **state)
{
    (void)state;
    answer a;
    start(&a, "", false);
    static const char text[] = "a\xF0\x9F\x98\x80";
    for (int i = 0; i < 4; i++)
        push(&a, (uint8_t)text[i]);
    assert_string_equal(a.shown, "A{a");
    text_is(&a, "a");
    push(&a, (uint8_t)text[4]);
    assert_string_equal(a.shown, "A{a\xF0\x9F\x98\x80");
    push(&a, 0xE2);
    push(&a, 0x82);
    finish(&a, QMI_FINISH_NONE, "A{a\xF0\x9F\x98\x80\xEF\xBF\xBD}", "a\xF0\x9F\x98\x80\xEF\xBF\xBD");
}

/* ---- stop strings ---- */

static void one_stop_string(void **state)
{
    (void)state;
    answer a;
    start(&a, "stop=END", false);
    say(&a, "An EN");
    assert_string_equal(a.shown, "A{An ");
    say(&a, "EN");
    assert_string_equal(a.shown, "A{An EN"); /* the first "EN" can't be it any more */
    assert_int_equal(a.finish, QMI_FINISH_NONE);
    say(&a, "D and more");
    assert_string_equal(a.shown, "A{An EN");
    finish(&a, QMI_FINISH_STOP, "A{An EN}", "An EN");
    start(&a, "stop=END", false); /* what was held back is shown when nothing comes any more */
    say(&a, "An EN");
    push(&a, END_TURN);
    finish(&a, QMI_FINISH_END, "A{An EN}", "An EN");
    start(&a, "stop=END;answer-tokens=3", false); /* the stop string explains more than the length */
    say(&a, "END");
    finish(&a, QMI_FINISH_STOP, "", "");
    start(&a, "stop=é€", false);
    say(&a, "aéé€b");
    finish(&a, QMI_FINISH_STOP, "A{aé}", "aé");
    start(&a, "stop=[END]", false);
    say(&a, "x[END]");
    finish(&a, QMI_FINISH_STOP, "A{x}", "x");
    start(&a, "stop=<", false); /* what could begin a mark is decided at the end */
    say(&a, "x<");
    finish(&a, QMI_FINISH_NONE, "A{x}", "x");
}

static void several_stop_strings(void **state)
{
    (void)state;
    answer a;
    start(&a, "stop=[\"abcde\", \"cd\"]", false); /* what is complete first ends it */
    say(&a, "xabcde");
    finish(&a, QMI_FINISH_STOP, "A{xab}", "xab");
    start(&a, "stop=[\"d\",\"bcd\",\"cd\"]", false); /* the longest of those complete together */
    say(&a, "abcd");
    finish(&a, QMI_FINISH_STOP, "A{a}", "a");
    start(&a, "stop=[ \"\\u00e9\\n\" ]", false);
    say(&a, "aé\nb");
    finish(&a, QMI_FINISH_STOP, "A{a}", "a");
    start(&a, "stop=[]", false);
    say(&a, "[]");
    finish(&a, QMI_FINISH_NONE, "A{[]}", "[]");
}

static void bad_stop_strings(void **state)
{
    (void)state;
    static const char *const bad[] = { "[\"a\"", "[\"a\", 1]", "[\"a\", \"\"]", "[\"a\"] x", "[\"a\\u0000\"]",
                                       "a\xff", "[\"\xff\"]", "[ \"a\", [\"b\"]]" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        qmi_settings settings;
        qmi_budget *budget = (qmi_budget *)&settings;
        qmi_settings_start(&settings, NULL);
        assert_int_equal(qmi_settings_set(&settings, QMI_OPT_STOP, bad[i]), QM_OK);
        if (qmi_budget_new(&settings, vocab, false, &plain_alloc, &budget) != QM_ERROR_OPTION)
            fail_msg("'%s' was taken", bad[i]);
        assert_null(budget);
        assert_non_null(strstr(qmi_error_text(), "'stop'"));
        qmi_settings_end(&settings);
    }
}

static void only_the_answer_stops(void **state)
{
    (void)state;
    answer a;
    start(&a, "stop=STOP", true);
    push(&a, STOP);
    say(&a, "\n</think>\n\nb ");
    push(&a, STOP);
    finish(&a, QMI_FINISH_STOP, "R{STOP}A{b }", "STOP\n</think>\n\nb ");
    start(&a, "stop=STOP", false);
    say(&a, "x\n<tool_call>\n{\"STOP\": 1}\n</tool_call>ySTOP");
    finish(&a, QMI_FINISH_STOP, "A{x\n}C{<tool_call>\n{\"STOP\": 1}\n</tool_call>}A{y}",
           "x\n<tool_call>\n{\"STOP\": 1}\n</tool_call>y");
    start(&a, "stop=\n\n", true); /* the empty line behind the mark belongs to it */
    say(&a, "a\n\nb\n</think>\n\nc\nd\n\ne");
    finish(&a, QMI_FINISH_STOP, "R{a\n\nb}A{c\nd}", "a\n\nb\n</think>\n\nc\nd");
    start(&a, "stop=STOP", true); /* nor are thoughts held back */
    say(&a, "a ST");
    assert_string_equal(a.shown, "R{a ST");
    finish(&a, QMI_FINISH_NONE, "R{a ST}", "a ST");
    start(&a, "stop=XY", true); /* not across a mark */
    say(&a, "X</think>Y");
    finish(&a, QMI_FINISH_NONE, "R{X}A{Y}", "X</think>Y");
    start(&a, "stop= \n", false);
    say(&a, " <think></think>\n\n\n");
    finish(&a, QMI_FINISH_NONE, "A{ \n}", " <think></think>\n\n\n");
}

/* Random texts of few letters, against a plain search: shown is all but what could still become a stop string. */
static void stops_like_a_search(void **state)
{
    (void)state;
    qmi_random random;
    qmi_random_start(&random, 9);
    int stopped = 0;
    for (int round = 0; round < 3000; round++) {
        char stops[3][8], option[64] = "stop=[", text[31];
        int count = 1 + (int)(qmi_random_next(&random) % 3), end = 0, cut = -1;
        for (int s = 0; s < count; s++) {
            int length = 1 + (int)(qmi_random_next(&random) % 6);
            for (int i = 0; i < length; i++)
                stops[s][i] = (char)('a' + qmi_random_next(&random) % 2);
            stops[s][length] = 0;
            strcat(strcat(strcat(option, s ? ",\"" : "\""), stops[s]), "\"");
        }
        strcat(option, "]");
        for (int i = 0; i < 30; i++)
            text[i] = (char)('a' + qmi_random_next(&random) % (round % 2 ? 2 : 3));
        text[30] = 0;
        answer a;
        start(&a, option, false);
        for (end = 1; end <= 30 && cut < 0; end++) {
            int held = 0;
            for (int s = 0; s < count; s++) {
                int length = (int)strlen(stops[s]), begin = end - length;
                if (begin >= 0 && memcmp(text + begin, stops[s], (size_t)length) == 0 && (cut < 0 || begin < cut))
                    cut = begin;
                for (int k = 1; k < length && k <= end; k++) {
                    if (memcmp(text + end - k, stops[s], (size_t)k) == 0 && k > held)
                        held = k;
                }
            }
            push(&a, text[end - 1]);
            assert_int_equal(a.finish, cut >= 0 ? QMI_FINISH_STOP : QMI_FINISH_NONE);
            int shown = cut >= 0 ? cut : end - held;
            assert_int_equal(a.shown[0] ? (int)strlen(a.shown + 2) : 0, shown);
            assert_memory_equal(a.shown + 2, text, (size_t)shown);
        }
        stopped += cut >= 0;
        text[cut >= 0 ? cut : 30] = 0;
        char expected[40] = "";
        if (text[0])
            snprintf(expected, sizeof expected, "A{%s}", text);
        finish(&a, cut >= 0 ? QMI_FINISH_STOP : QMI_FINISH_NONE, expected, text);
    }
    assert_true(stopped > 1000 && stopped < 3000);
}

/* ---- thoughts ---- */

static void hard_limit(void **state)
{
    (void)state;
    answer a;
    start(&a, "thinking-tokens=3;thinking-soft=3", true);
    say(&a, "abc");
    assert_int_equal(qmi_budget_thought_tokens(a.budget), 3);
    forced_is(&a, "\n</think>\n\n");
    assert_int_equal(qmi_budget_thought_tokens(a.budget), 3);
    say(&a, "def\ngh");
    finish(&a, QMI_FINISH_NONE, "R{abc}A{def\ngh}", "abc\n</think>\n\ndef\ngh");
    start(&a, "thinking-tokens=3;thinking-soft=10", true);
    say(&a, "ab\n");
    forced_is(&a, "</think>\n\n"); /* the newline is there */
    finish(&a, QMI_FINISH_NONE, "R{ab}", "ab\n</think>\n\n");
    start(&a, "thinking-tokens=3;answer-tokens=5", true); /* what is forced counts as answer */
    say(&a, "abcdefghi");
    finish(&a, QMI_FINISH_LENGTH, "R{abc}", "abc\n</think>");
    start(&a, "thinking-tokens=5", true); /* ended by itself before */
    say(&a, "ab</think>\n\ncdefghijk");
    assert_int_equal(qmi_budget_thought_tokens(a.budget), 2);
    finish(&a, QMI_FINISH_NONE, "R{ab}A{cdefghijk}", "ab</think>\n\ncdefghijk");
    start(&a, "thinking-tokens=2", false); /* no thoughts, no limit */
    say(&a, "abcdef");
    assert_int_equal(qmi_budget_thought_tokens(a.budget), 0);
    finish(&a, QMI_FINISH_NONE, "A{abcdef}", "abcdef");
}

static void thoughts_that_the_model_opens(void **state)
{
    (void)state;
    answer a;
    start(&a, "thinking-tokens=3;thinking-soft=3", false);
    say(&a, "<think>\nabcd");
    assert_int_equal(qmi_budget_thought_tokens(a.budget), 3); /* the newline is one of them */
    finish(&a, QMI_FINISH_NONE, "R{ab}A{cd}", "<think>\nab\n</think>\n\ncd");
    start(&a, "thinking-tokens=0", false);
    push(&a, THINK);
    forced_is(&a, "\n\n</think>\n\n"); /* as the chat format writes empty thoughts */
    say(&a, "x");
    finish(&a, QMI_FINISH_NONE, "A{x}", "<think>\n\n</think>\n\nx");
    start(&a, "thinking-tokens=0", true); /* after "<think>\n" */
    forced_is(&a, "\n</think>\n\n");
    say(&a, "x");
    finish(&a, QMI_FINISH_NONE, "A{x}", "\n</think>\n\nx");
}

static void soft_limit(void **state)
{
    (void)state;
    answer a;
    start(&a, "thinking-tokens=10", true); /* 8 is the soft limit */
    say(&a, "abcd\nef");
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    push(&a, '\n'); /* the eighth */
    forced_is(&a, "</think>\n\n");
    finish(&a, QMI_FINISH_NONE, "R{abcd\nef}", "abcd\nef\n</think>\n\n");
    start(&a, "thinking-tokens=10", true);
    say(&a, "abcdef\nh");
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    say(&a, "i");
    push(&a, '\n'); /* the tenth: both */
    forced_is(&a, "</think>\n\n");
    finish(&a, QMI_FINISH_NONE, "R{abcdef\nhi}", "abcdef\nhi\n</think>\n\n");
    start(&a, "thinking-soft=2", true); /* without a hard one */
    say(&a, "abcdefgh");
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    push(&a, '\n');
    forced_is(&a, "</think>\n\n");
    finish(&a, QMI_FINISH_NONE, "R{abcdefgh}", "abcdefgh\n</think>\n\n");
    start(&a, "", true); /* no limits at all */
    say(&a, "abcdefghijklmnopqrstuvwxyz\n\nabcdefghijklmnopqrstuvwxyz\n");
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    assert_int_equal(qmi_budget_thought_tokens(a.budget), 55);
    qmi_budget_free(&a.budget);
}

static void ended_by_request(void **state)
{
    (void)state;
    answer a;
    start(&a, "", true);
    say(&a, "ab");
    qmi_budget_end_thinking(a.budget);
    forced_is(&a, "\n</think>\n\n");
    say(&a, "c");
    qmi_budget_end_thinking(a.budget); /* nothing to end, and nothing is kept for later */
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    finish(&a, QMI_FINISH_NONE, "R{ab}A{c}", "ab\n</think>\n\nc");
    start(&a, "", false);
    qmi_budget_end_thinking(a.budget);
    push(&a, THINK);
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    say(&a, "a");
    qmi_budget_end_thinking(a.budget);
    say(&a, "b");
    finish(&a, QMI_FINISH_NONE, "R{a}A{b}", "<think>a\n</think>\n\nb");
    start(&a, "", true); /* the model's own end comes at the same time */
    say(&a, "a");
    qmi_budget_end_thinking(a.budget);
    push(&a, END_THINK);
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    say(&a, "\n\n");
    push(&a, THINK); /* thoughts that it begins again are others */
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    qmi_budget_free(&a.budget);
}

static void not_where_it_would_break_something(void **state)
{
    (void)state;
    answer a;
    start(&a, "thinking-tokens=0", true); /* a tool call in thoughts */
    push(&a, '<'); /* (a limit of 0 would come first, but the model is not asked here) */
    static const char call[] = "<tool_call>{\"a\": \"\n\n</think>\"}\n</tool_call>";
    for (size_t i = 1; i < sizeof call - 1; i++) {
        assert_int_equal(qmi_budget_forced(a.budget), -1);
        push(&a, call[i]);
    }
    assert_int_equal(qmi_budget_thought_tokens(a.budget), (int64_t)sizeof call - 1);
    forced_is(&a, "\n</think>\n\n");
    finish(&a, QMI_FINISH_NONE, "C{<tool_call>{\"a\": \"\n\n</think>\"}\n</tool_call>}",
           "<tool_call>{\"a\": \"\n\n</think>\"}\n</tool_call>\n</think>\n\n");
    start(&a, "thinking-tokens=2", true); /* a code point */
    push(&a, 'a');
    push(&a, 0xE2);
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    push(&a, 0x82);
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    push(&a, 0xAC);
    forced_is(&a, "\n</think>\n\n");
    finish(&a, QMI_FINISH_NONE, "R{a€}", "a€\n</think>\n\n");
    start(&a, "thinking-tokens=2", true); /* a mark spelled out: the model ends its thoughts itself */
    for (const char *c = "a\n</think"; *c; c++)
        push(&a, *c);
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    push(&a, '>');
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    finish(&a, QMI_FINISH_NONE, "R{a}", "a\n</think>");
    start(&a, "thinking-tokens=2", true); /* or does not */
    say(&a, "a<");
    assert_int_equal(qmi_budget_forced(a.budget), -1);
    push(&a, 'b');
    forced_is(&a, "\n</think>\n\n");
    finish(&a, QMI_FINISH_NONE, "R{a<b}", "a<b\n</think>\n\n");
}

/* Another token than the forced one gives the writing up, and what follows is judged anew. */
static void forced_but_not_taken(void **state)
{
    (void)state;
    answer a;
    start(&a, "thinking-tokens=1", true);
    push(&a, 'a');
    assert_int_equal(qmi_budget_forced(a.budget), '\n');
    push(&a, 'b');
    assert_int_equal(qmi_budget_thought_tokens(a.budget), 2);
    forced_is(&a, "\n</think>\n\n");
    finish(&a, QMI_FINISH_NONE, "R{ab}", "ab\n</think>\n\n");
}

/* ---- memory ---- */

static void failing_memory(void **state)
{
    (void)state;
    qmi_settings settings;
    int failures = 0;
    configure(&settings, "stop=[\"abc\",\"xyz\"];thinking-tokens=5");
    for (int nth = 0;; nth++) {
        failing_alloc counter = { .until_failure = nth };
        const qmi_alloc alloc = failing_hook(&counter);
        answer a = { .part = -1 };
        int32_t status = qmi_budget_new(&settings, vocab, true, &alloc, &a.budget);
        for (int i = 0; i < 100 && status == QM_OK; i++)
            status = qmi_budget_push(a.budget, 'k', take_piece, &a);
        if (status == QM_OK)
            status = qmi_budget_end(a.budget, take_piece, &a);
        bool done = !counter.failed;
        assert_int_equal(status, done ? QM_OK : QM_ERROR_MEMORY);
        qmi_budget_free(&a.budget);
        assert_int_equal(counter.live, 0);
        if (done)
            break;
        failures++;
    }
    assert_true(failures >= 10);
    qmi_settings_end(&settings);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turns_end),
        cmocka_unit_test(names),
        cmocka_unit_test(code_points_stay_whole),
        cmocka_unit_test(one_stop_string),
        cmocka_unit_test(several_stop_strings),
        cmocka_unit_test(bad_stop_strings),
        cmocka_unit_test(only_the_answer_stops),
        cmocka_unit_test(stops_like_a_search),
        cmocka_unit_test(hard_limit),
        cmocka_unit_test(thoughts_that_the_model_opens),
        cmocka_unit_test(soft_limit),
        cmocka_unit_test(ended_by_request),
        cmocka_unit_test(not_where_it_would_break_something),
        cmocka_unit_test(forced_but_not_taken),
        cmocka_unit_test(failing_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
