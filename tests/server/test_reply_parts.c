/* An answer's parts as they come, the same in pieces of every size. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "reply_parts.h"

static qm_model *model;
static const char tools[] =
    "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": \"object\", \"properties\": "
    "{\"a\": {\"type\": \"string\"}, \"b\": {\"type\": \"integer\"}}}}}]";

static int load(void **state)
{
    qm_options *options = NULL;
    (void)state;
    if (qm_options_new(&options) < 0 || qm_options_set(options, "vocabulary-only", "1") < 0 ||
        qm_options_set(options, "chat-format", "qwen3.5") < 0)
        return -1;
    int32_t code = qm_model_load(getenv("TEST_MODEL"), options, &model);
    qm_options_free(&options);
    return code;
}

static int unload(void **state)
{
    (void)state;
    qm_model_free(&model);
    return 0;
}

/* What was told, as text: T...| text, A...| arguments, Cname| a call. */
static void note(part_kind kind, size_t call, const char *text, size_t length, void *user)
{
    text_buffer *log = user;
    (void)call;
    buffer_print(log, "%c%.*s|", "OTCA"[kind], (int)length, text);
}

/* Feeds text before a call, the call's text in pieces of `size`, and text behind it. */
static void feed(reply_parts *parts, const char *before, const char *raw, size_t size, const char *after, text_buffer *log)
{
    parts_start(parts, model, tools);
    parts_add(parts, QM_PIECE_ANSWER, before, strlen(before), note, log);
    for (size_t at = 0, length = strlen(raw); at < length; at += size)
        parts_add(parts, QM_PIECE_TOOL, raw + at, length - at < size ? length - at : size, note, log);
    parts_add(parts, QM_PIECE_ANSWER, after, strlen(after), note, log);
    parts_finish(parts, note, log);
    assert_false(parts->broken);
}

static void arguments_come_one_by_one(void **state)
{
    static const char raw[] =
        "<tool_call>\n<function=f>\n<parameter=a>\nx <y> z\n</parameter>\n<parameter=b>\n5\n</parameter>\n</function>\n"
        "</tool_call>";
    (void)state;
    for (size_t size = 1; size < sizeof raw; size++) {
        reply_parts parts;
        text_buffer log = { 0 };
        feed(&parts, "Text\n\n", raw, size, "", &log);
        assert_string_equal(parts.text.data, "Text"); /* the newlines are the format's */
        assert_int_equal(parts.call_count, 1);
        assert_string_equal(parts.calls[0].name, "f");
        assert_string_equal(parts.calls[0].arguments.data, "{\"a\":\"x <y> z\",\"b\":5}");
        if (size == 1)
            assert_string_equal(log.data, "TText|Cf|A{\"a\":\"x <y> z\"|A,\"b\":5}|");
        buffer_free(&log);
        parts_free(&parts);
    }
}

/* What looks like the end of an argument or of the call, inside an argument. */
static void marks_in_arguments(void **state)
{
    static const char raw[] =
        "<tool_call>\n<function=f>\n<parameter=a>\nsay </parameter> or </tool_call>, then\n</parameter>\n</function>\n"
        "</tool_call>\n<tool_call>\n<function=f>\n</function>\n</tool_call>";
    (void)state;
    for (size_t size = 1; size < sizeof raw; size++) {
        reply_parts parts;
        text_buffer log = { 0 };
        feed(&parts, "", raw, size, "", &log);
        assert_int_equal(parts.call_count, 2);
        assert_string_equal(parts.calls[0].arguments.data, "{\"a\":\"say </parameter> or </tool_call>, then\"}");
        assert_string_equal(parts.calls[1].arguments.data, "{}");
        assert_string_not_equal(parts.calls[0].id, parts.calls[1].id);
        buffer_free(&log);
        parts_free(&parts);
    }
}

static void quoted_calls(void **state)
{
    static const char raw[] =
        "<tool_call>\n<function=f>\n<parameter=a>\n<tool_call>\n<function=g>\n<parameter=b>\n1\n</parameter>\n"
        "</function>\n</tool_call>\n</parameter>\n</function>\n</tool_call>";
    (void)state;
    for (size_t size = 1; size < sizeof raw; size++) {
        reply_parts parts;
        text_buffer log = { 0 };
        feed(&parts, "", raw, size, "", &log);
        assert_int_equal(parts.call_count, 1);
        assert_string_equal(parts.calls[0].arguments.data,
                            "{\"a\":\"<tool_call>\\n<function=g>\\n<parameter=b>\\n1\\n</parameter>\\n"
                            "</function>\\n</tool_call>\"}");
        buffer_free(&log);
        parts_free(&parts);
    }
}

static void json_calls_come_whole(void **state)
{
    static const char raw[] =
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\", \"b\": [1, 2]}}\n</tool_call>";
    (void)state;
    for (size_t size = 1; size < sizeof raw; size++) {
        reply_parts parts;
        text_buffer log = { 0 };
        feed(&parts, "", raw, size, "", &log);
        assert_string_equal(log.data, "Cf|A{\"a\":\"</tool_call>\",\"b\":[1,2]}|");
        buffer_free(&log);
        parts_free(&parts);
    }
}

/* Nothing is lost of what is no call, and of one that is cut off. */
static void no_calls(void **state)
{
    static const char *const raws[] = { "<tool_call>\nnothing\n</tool_call>", "<tool_call>", "<tool_call>\n<function" };
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        reply_parts parts;
        text_buffer log = { 0 };
        feed(&parts, "a\n", raws[i], 4, "", &log);
        assert_int_equal(parts.call_count, 0);
        assert_memory_equal(parts.text.data, "a\n", 2);
        assert_string_equal(parts.text.data + 2, raws[i]);
        buffer_free(&log);
        parts_free(&parts);
    }
    reply_parts parts;
    text_buffer log = { 0 };
    feed(&parts, "", "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n<parameter=b>\n5", 3, "", &log);
    assert_int_equal(parts.call_count, 1);
    assert_memory_equal(parts.calls[0].arguments.data, "{\"a\":\"x\"", 8);
    buffer_free(&log);
    parts_free(&parts);
}

static void newlines_of_the_text_stay(void **state)
{
    reply_parts parts;
    text_buffer log = { 0 };
    (void)state;
    feed(&parts, "a\n\n\nb\n", "", 1, "\n", &log);
    assert_string_equal(parts.text.data, "a\n\n\nb\n\n");
    buffer_free(&log);
    parts_free(&parts);
}

static void text_that_is_not_utf8(void **state)
{
    static const struct {
        const char *data, *shown;
    } rows[] = { { "a\xffz", "a\xef\xbf\xbdz" },
                 { "\xe2\x82", "\xef\xbf\xbd\xef\xbf\xbd" },
                 { "\xed\xa0\x80", NULL },
                 { "\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80" },
                 { "\xc0\x80", "\xef\xbf\xbd\xef\xbf\xbd" } };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        json_t *text = json_text(rows[i].data, strlen(rows[i].data));
        assert_non_null(text);
        if (rows[i].shown)
            assert_string_equal(json_string_value(text), rows[i].shown);
        json_decref(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arguments_come_one_by_one),
        cmocka_unit_test(marks_in_arguments),
        cmocka_unit_test(json_calls_come_whole),
        cmocka_unit_test(quoted_calls),
        cmocka_unit_test(no_calls),
        cmocka_unit_test(newlines_of_the_text_stay),
        cmocka_unit_test(text_that_is_not_utf8),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
