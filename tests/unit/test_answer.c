/* Answers back into thoughts, text and calls: as models should write them, as they do write them, and cut anywhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/error.h"
#include "failing_alloc.h"
#include "text/answer.h"
#include "text/chat_json.h"

static const qmi_alloc process = { 0 };

/* ---- whole ---- */

static void expect_bytes(const char *answer, int64_t length, const char *tools, bool inside, const char *expected)
{
    qmi_string json = { 0 };
    int32_t code = qmi_answer_parse(answer, length, tools, -1, inside, &process, &json);
    if (code < 0)
        fail_msg("%s", qmi_error_text());
    if (strcmp(json.data, expected) != 0)
        fail_msg("\n  answer   %s\n  gave     %s\n  expected %s", answer, json.data, expected);
    qmi_string_free(&json, &process);
}

static void expect_parse(const char *answer, const char *tools, bool inside, const char *expected)
{
    expect_bytes(answer, -1, tools, inside, expected);
}

#define RESULT(thoughts, content, calls, status) \
    "{\"reasoning_content\": " thoughts ", \"content\": \"" content "\", \"tool_calls\": [" calls "], \"status\": \"" status "\"}"
#define CALL(name, arguments) "{\"name\": \"" name "\", \"arguments\": {" arguments "}}"
#define XML(name, parameters) "<tool_call>\n<function=" name ">\n" parameters "</function>\n</tool_call>"
#define VALUE(key, value) "<parameter=" key ">\n" value "\n</parameter>\n"

static void text_and_thoughts(void **state)
{
    (void)state;
    expect_parse("", NULL, false, RESULT("null", "", "", "complete"));
    expect_parse("Hi \"there\"\n", NULL, false, RESULT("null", "Hi \\\"there\\\"\\n", "", "complete"));
    expect_parse("so\n</think>\n\nHi", NULL, true, RESULT("\"so\"", "Hi", "", "complete"));
    expect_parse("\n</think>\n\nHi", NULL, true, RESULT("\"\"", "Hi", "", "complete"));
    expect_parse("so\n\n</think>\n\n\nHi", NULL, true, RESULT("\"so\\n\"", "\\nHi", "", "complete"));
    expect_parse("<think>\nso\n</think>\n\nHi", NULL, false, RESULT("\"so\"", "Hi", "", "complete"));
    expect_parse("<think>\nso</think>Hi", NULL, true, RESULT("\"so\"", "Hi", "", "complete"));
    expect_parse("<think>a</think>\n\n<think>b</think>c", NULL, false, RESULT("\"a\\nb\"", "c", "", "complete"));
    expect_parse("Hi<|im_end|>\n", NULL, false, RESULT("null", "Hi", "", "complete"));
    expect_parse("Hi<|im_end|><|endoftext|>", NULL, false, RESULT("null", "Hi", "", "complete"));
    expect_parse("a\xff\xe2\x82z", NULL, false, RESULT("null", "a\xEF\xBF\xBD\xEF\xBF\xBDz", "", "complete"));
}

static void misplaced_thoughts(void **state)
{
    (void)state;
    expect_parse("never ends", NULL, true, RESULT("\"never ends\"", "", "", "partial"));
    expect_parse("", NULL, true, RESULT("\"\"", "", "", "partial"));
    expect_parse("a</think>b</think>c", NULL, true, RESULT("\"a\"", "b</think>c", "", "complete"));
    expect_parse("a</think>b", NULL, false, RESULT("null", "a</think>b", "", "complete"));
    expect_parse("the <think> mark </think> is", NULL, false, RESULT("null", "the <think> mark </think> is", "", "complete"));
    expect_parse("a <think> b</think>c", NULL, true, RESULT("\"a <think> b\"", "c", "", "complete"));
    expect_parse("so\n" XML("f", "") "\nno\n</think>\n\nHi", NULL, true,
        RESULT("\"so\\n<tool_call>\\n<function=f>\\n</function>\\n</tool_call>\\nno\"", "Hi", "", "complete"));
    expect_parse("so\n\n" XML("f", VALUE("a", "x")), NULL, true, RESULT("\"so\"", "", CALL("f", "\"a\": \"x\""), "complete"));
    expect_parse("so\n" XML("f", VALUE("a", "x</think>y")), NULL, true, RESULT("\"so\"", "", CALL("f", "\"a\": \"x</think>y\""),
        "complete"));
    expect_parse("a <tool_call> b", NULL, true, RESULT("\"a <tool_call> b\"", "", "", "partial"));
}

static void xml_calls(void **state)
{
    (void)state;
    expect_parse(XML("f", ""), NULL, false, RESULT("null", "", CALL("f", ""), "complete"));
    expect_parse("Look.\n\n" XML("f", VALUE("a", "x") VALUE("b", "two\nlines")) "\n" XML("g", VALUE("c", "")), NULL, false,
        RESULT("null", "Look.", CALL("f", "\"a\": \"x\", \"b\": \"two\\nlines\"") ", " CALL("g", "\"c\": \"\""), "complete"));
    expect_parse(XML("f", VALUE("a", "\n x \n")), NULL, false, RESULT("null", "", CALL("f", "\"a\": \"\\n x \\n\""), "complete"));
    expect_parse("so\n</think>\n\nA\n\n" XML("f", "") "\nB\n" XML("g", "") "\n\nC\n", NULL, true,
        RESULT("\"so\"", "A\\nB\\n\\nC\\n", CALL("f", "") ", " CALL("g", ""), "complete"));
    expect_parse("<tool_call><function=f><parameter=a>x</parameter></function></tool_call>", NULL, false,
        RESULT("null", "", CALL("f", "\"a\": \"x\""), "complete"));
    expect_parse("<tool_call>\r\n<function=f>\r\n<parameter=a>\r\nx\r\n</parameter>\r\n</function>\r\n</tool_call>", NULL, false,
        RESULT("null", "", CALL("f", "\"a\": \"x\""), "complete"));
    expect_parse("<tool_call>\n<function= f >\n<parameter= a >\n\n</parameter>\n</function>\n</tool_call>", NULL, false,
        RESULT("null", "", CALL("f", "\"a\": \"\""), "complete"));
}

static void json_calls(void **state)
{
    (void)state;
    expect_parse("A\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 1.0, \"big\": 123456789012345678901, "
                 "\"s\": \"</tool_call>\"}}\n</tool_call>", NULL, false,
        RESULT("null", "A", CALL("f", "\"n\": 1.0, \"big\": 123456789012345678901, \"s\": \"</tool_call>\""),
            "complete"));
    expect_parse("<tool_call>{\"arguments\":\"{\\\"a\\\":[1,2]}\",\"name\":\"f\"}</tool_call>\n<tool_call>\n{\"name\":\"g\"}",
        NULL, false,
        RESULT("null", "", CALL("f", "\"a\": [1, 2]") ", " CALL("g", ""), "complete"));
    expect_parse("<tool_call>\n{\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":{}}}\n</tool_call>", NULL, false,
        RESULT("null", "", CALL("f", ""), "complete"));
    expect_parse("<tool_call>\n{\"name\":\"f\",\"arguments\":null}\n</tool_c", NULL, false, RESULT("null", "", CALL("f", ""),
        "partial"));
    /* cannot be read: all of it stays */
    expect_parse("A\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}\n</tool_call>", NULL, false,
        RESULT("null", "A\\n<tool_call>\\n{\\\"name\\\": \\\"f\\\", \\\"arguments\\\": {}\\n</tool_call>", "", "malformed"));
    expect_parse("<tool_call>\n{\"name\":\"f\",\"arguments\":[1]}\n</tool_call>", NULL, false,
        RESULT("null", "<tool_call>\\n{\\\"name\\\":\\\"f\\\",\\\"arguments\\\":[1]}\\n</tool_call>", "", "malformed"));
    expect_parse("<tool_call>\n{\"name\":\"f\",\"extra\":1}\n</tool_call>", NULL, false,
        RESULT("null", "<tool_call>\\n{\\\"name\\\":\\\"f\\\",\\\"extra\\\":1}\\n</tool_call>", "", "malformed"));
    expect_parse("<tool_call>\n{\"arguments\":{}}\n</tool_call>", NULL, false,
        RESULT("null", "<tool_call>\\n{\\\"arguments\\\":{}}\\n</tool_call>", "", "malformed"));
    expect_parse("<tool_call>\n{\"name\":\"f\",\"arguments\":{\"a\":\"x", NULL, false,
        RESULT("null", "<tool_call>\\n{\\\"name\\\":\\\"f\\\",\\\"arguments\\\":{\\\"a\\\":\\\"x", "", "partial"));
}

static void missing_marks(void **state)
{
    (void)state;
    const char *expected = RESULT("null", "", CALL("f", "\"a\": \"x\", \"b\": \"y\""), "complete");
    expect_parse("<tool_call>\n<function=f>\n<parameter=a>\nx\n<parameter=b>\ny\n</parameter>\n</function>\n</tool_call>", NULL,
        false, expected);
    expect_parse("<tool_call>\n<function=f>\n" VALUE("a", "x") "<parameter=b>\ny\n</function>\n</tool_call>", NULL, false,
        expected);
    expect_parse("<tool_call>\n<function=f>\n" VALUE("a", "x") VALUE("b", "y") "</tool_call>", NULL, false, expected);
    expect_parse("<tool_call>\n<function=f>\n" VALUE("a", "x") VALUE("b", "y") "</function>", NULL, false, expected);
    expect_parse("<function=f>\n" VALUE("a", "x") VALUE("b", "y") "</function>\n</tool_call>", NULL, false, expected);
    expect_parse("<tool_call>\n<function=f>\n</parameter>\n" VALUE("a", "x") VALUE("b", "y") "</function>\n</tool_call>", NULL,
        false, expected);
    expect_parse("<tool_call>\n<function=f>\n" VALUE("a", "x") "\n<tool_call>\n<function=g>\n</function>\n</tool_call>", NULL,
        false,
        RESULT("null", "", CALL("f", "\"a\": \"x\"") ", " CALL("g", ""), "complete"));
    expect_parse("<tool_call>\n<function=f>\n</function>\nText\n" XML("g", ""), NULL, false,
        RESULT("null", "Text", CALL("f", "") ", " CALL("g", ""), "complete"));
}

static void unreadable_calls(void **state)
{
    (void)state;
    expect_parse("A\n<tool_call>\nf(x)\n</tool_call>\n" XML("g", ""), NULL, false,
        RESULT("null", "A\\n<tool_call>\\nf(x)\\n</tool_call>", CALL("g", ""), "malformed"));
    expect_parse("<tool_call>\n<function=f>\nwords\n</function>\n</tool_call>", NULL, false,
        RESULT("null", "<tool_call>\\n<function=f>\\nwords\\n</function>\\n</tool_call>", "", "malformed"));
    expect_parse("<tool_call>\n<function=f>\n" VALUE("a", "1") VALUE("a", "2") "</function>\n</tool_call>", NULL, false,
        RESULT("null", "<tool_call>\\n<function=f>\\n<parameter=a>\\n1\\n</parameter>\\n"
                       "<parameter=a>\\n2\\n</parameter>\\n</function>\\n</tool_call>",
            "", "malformed"));
    expect_parse("<tool_call>\n<function=>\n</function>\n</tool_call>", NULL, false,
        RESULT("null", "<tool_call>\\n<function=>\\n</function>\\n</tool_call>", "", "malformed"));
    expect_parse("Hi\n</tool_call>", NULL, false, RESULT("null", "Hi\\n</tool_call>", "", "malformed"));
    /* only writing about it */
    expect_parse("Use <tool_call> and </tool_call>.", NULL, false, RESULT("null", "Use <tool_call> and </tool_call>.", "",
        "complete"));
}

static void cut_answers(void **state)
{
    (void)state;
    static const char whole[] = "Hi\n\n<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n";
    for (size_t length = 6; length < sizeof whole; length++) { /* from "Hi\n\n<t" on */
        qmi_string json = { 0 };
        assert_int_equal(qmi_answer_parse(whole, (int64_t)length, NULL, 0, false, &process, &json), QM_OK);
        assert_non_null(strstr(json.data, "\"tool_calls\": [], \"status\": \"partial\""));
        json_t *parsed = json_loads(json.data, 0, NULL);
        const char *content = json_string_value(json_object_get(parsed, "content"));
        assert_int_equal(strlen(content), length);
        assert_memory_equal(content, whole, length);
        json_decref(parsed);
        qmi_string_free(&json, &process);
    }
    expect_parse("a\n</thi", NULL, true, RESULT("\"a\\n</thi\"", "", "", "partial"));
    expect_parse("1 <", NULL, false, RESULT("null", "1 <", "", "complete"));
}

static void marks_in_values(void **state)
{
    (void)state;
    expect_parse(XML("f", VALUE("a", "x </parameter> y")), NULL, false, RESULT("null", "", CALL("f",
        "\"a\": \"x </parameter> y\""), "complete"));
    expect_parse(XML("f", VALUE("a", "</function>\n</tool_call>")), NULL, false,
        RESULT("null", "", CALL("f", "\"a\": \"</function>\\n</tool_call>\""), "complete"));
    expect_parse(XML("w", VALUE("a", "see\n" XML("f", VALUE("b", "1")) "\nend") VALUE("c", "d")), NULL, false,
        RESULT("null", "", CALL("w",
            "\"a\": \"see\\n<tool_call>\\n<function=f>\\n<parameter=b>\\n1\\n</parameter>\\n</function>\\n</tool_call>\\nend\", "
                                     "\"c\": \"d\""), "complete"));
    /* only the tool's description tells that this is no parameter */
    expect_parse(XML("f", VALUE("a", "<parameter=x>")),
        "[{\"name\":\"f\",\"parameters\":{\"properties\":{\"a\":{\"type\":\"string\"}}}}]", false,
        RESULT("null", "", CALL("f", "\"a\": \"<parameter=x>\""), "complete"));
}

/* ---- types ---- */

static void expect_typed(const char *schema, const char *text, const char *value)
{
    char answer[512], tools[1024], expected[512];
    snprintf(answer, sizeof answer, XML("f", VALUE("a", "%s")), text);
    snprintf(tools, sizeof tools,
        "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"$defs\":{\"D\":{\"properties\":{}}},"
        "\"properties\":{\"a\":%s}}}}]", schema ? schema : "{}");
    snprintf(expected, sizeof expected, RESULT("null", "", CALL("f", "\"a\": %s"), "complete"), value);
    expect_parse(answer, schema ? tools : NULL, false, expected);
}

static void typed_values(void **state)
{
    (void)state;
    expect_typed("{\"type\":\"string\"}", "5", "\"5\"");
    expect_typed("{\"type\":\"string\"}", "{\"a\": 1}", "\"{\\\"a\\\": 1}\"");
    expect_typed("{\"type\":\"string\"}", "None", "\"None\"");
    expect_typed("{\"type\":\"integer\"}", " 5 ", "5");
    expect_typed("{\"type\":\"integer\"}", "12345678901234567890123", "12345678901234567890123");
    expect_typed("{\"type\":\"integer\"}", "five", "\"five\"");
    expect_typed("{\"type\":\"integer\"}", "\\\"5\\\"", "\"\\\\\\\"5\\\\\\\"\"");
    expect_typed("{\"type\":\"integer\"}", "1, 2", "\"1, 2\"");
    expect_typed("{\"type\":\"integer\"}", "True", "\"True\"");
    expect_typed("{\"type\":\"number\"}", "1e-07", "1e-07");
    expect_typed("{\"type\":\"boolean\"}", "True", "true");
    expect_typed("{\"type\":\"boolean\"}", "false", "false");
    expect_typed("{\"type\":\"boolean\"}", "None", "null");
    expect_typed("{\"type\":\"array\"}", "[1,\n2]", "[1, 2]");
    expect_typed("{\"type\":\"array\"}", "[1,", "\"[1,\"");
    expect_typed("{\"type\":\"object\"}", "{\"b\":[]}", "{\"b\": []}");
    expect_typed("{\"type\":\"object\"}", "[1]", "\"[1]\"");
    expect_typed("{\"type\":[\"string\",\"null\"]}", "null", "null");
    expect_typed("{\"type\":[\"string\",\"null\"]}", "5", "\"5\"");
    expect_typed("{\"type\":[\"string\",\"integer\"]}", "5", "\"5\"");
    expect_typed("{\"type\":[\"string\",\"integer\"]}", "None", "\"None\"");
    expect_typed("{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"array\"}]}", "[1]", "[1]");
    expect_typed("{\"anyOf\":[{\"$ref\":\"#/$defs/D\"},{\"type\":\"null\"}]}", "{\"b\":1}", "{\"b\": 1}");
    expect_typed("{\"$ref\":\"#/$defs/Missing\"}", "5", "5");
    expect_typed("{\"enum\":[\"1\",\"2\"]}", "1", "\"1\"");
    expect_typed("{\"enum\":[1,2]}", "1", "1");
    expect_typed("{\"const\":true}", "true", "true");
    expect_typed("{\"items\":{}}", "[]", "[]");
}

static void untyped_values(void **state)
{
    (void)state;
    static const char *const schemas[] = { NULL, "{}", "{\"description\":\"?\"}", "true" };
    for (size_t i = 0; i < sizeof schemas / sizeof schemas[0]; i++) {
        expect_typed(schemas[i], "3", "3");
        expect_typed(schemas[i], "-2.5", "-2.5");
        expect_typed(schemas[i], "1e-07", "1e-07");
        expect_typed(schemas[i], "007", "\"007\"");
        expect_typed(schemas[i], "1.50", "\"1.50\"");
        expect_typed(schemas[i], " 3", "\" 3\"");
        expect_typed(schemas[i], "+3", "\"+3\"");
        expect_typed(schemas[i], "[1, 2]", "[1, 2]");
        expect_typed(schemas[i], "[1,2]", "\"[1,2]\"");
        expect_typed(schemas[i], "{\"a\": null}", "{\"a\": null}");
        expect_typed(schemas[i], "\"q\"", "\"\\\"q\\\"\"");
        expect_typed(schemas[i], "True", "true");
        expect_typed(schemas[i], "None", "null");
        expect_typed(schemas[i], "null", "null");
        expect_typed(schemas[i], "", "\"\"");
        expect_typed(schemas[i], "NaN", "\"NaN\"");
    }
}

static void bad_tools(void **state)
{
    (void)state;
    qmi_string json = { 0 };
    assert_int_equal(qmi_answer_parse("x", -1, "{", -1, false, &process, &json), QM_ERROR_TEXT);
    assert_non_null(strstr(qmi_error_text(), "tools: malformed JSON"));
    assert_int_equal(qmi_answer_parse("x", -1, "{}", -1, false, &process, &json), QM_ERROR_TEXT);
    qmi_string_free(&json, &process);
    /* odd descriptions are no failure, and reading an answer leaves the thread's message alone */
    qmi_fail(QM_ERROR_TEXT, "before");
    expect_parse(XML("f", VALUE("a", "[1")),
        "[1,{\"function\":2},{\"name\":\"f\",\"parameters\":{\"properties\":{\"a\":{\"type\":\"array\"}}}}]", false,
        RESULT("null", "", CALL("f", "\"a\": \"[1\""), "complete"));
    assert_string_equal(qmi_error_text(), "before");
}

/* ---- there and back: the calls of the chat vectors ---- */

static char *print(const json_t *value)
{
    qmi_string text = { 0 };
    qmi_writer writer = { &text, &process, false };
    qmi_json_write(&writer, value);
    char *copy = strdup(text.data);
    qmi_string_free(&text, &process);
    return copy;
}

static const char *type_name(const json_t *value)
{
    return qmi_json_is_integer(value) ? "integer" : json_is_real(value) ? "number" : json_is_string(value) ? "string" :
        json_is_boolean(value) ? "boolean" : json_is_array(value) ? "array" : json_is_object(value) ? "object" : "null";
}

/* Renders one call as an assistant's turn and reads it back, with a description of its parameters' types. */
static void check_call(qmi_chat_format_id id, json_t *call)
{
    json_t *function = json_object_get(call, "function") ? json_object_get(call, "function") : call, *value;
    json_t *given = json_object_get(function, "arguments"), *properties = json_object(), *arguments = given ? json_incref(given)
        : json_object();
    const char *key;
    json_object_foreach(arguments, key, value)
        json_object_set_new(properties, key, json_pack("{s:s}", "type", type_name(value)));
    json_t *messages = json_pack("[{s:s,s:s},{s:s,s:s,s:s,s:[O]}]", "role", "user", "content", "q", "role", "assistant",
        "content", "c",
        "reasoning_content", "r", "tool_calls", call);
    json_t *tools = json_pack("[{s:O,s:{s:O}}]", "name", json_object_get(function, "name"), "parameters", "properties",
        properties);
    json_t *want = json_pack("{s:s,s:s,s:[{s:O,s:O}],s:s}", "reasoning_content", "r", "content", "c", "tool_calls", "name",
        json_object_get(function, "name"), "arguments", arguments, "status", "complete");
    char *messages_text = print(messages), *tools_text = print(tools), *expected = print(want);
    const qmi_chat_request request = { messages_text, -1, NULL, 0, -1, -1, 0, NULL };
    qmi_string text = { 0 };
    assert_int_equal(qmi_chat_render(id, &request, &process, &text), QM_OK);
    char *answer = strstr(text.data, "<|im_start|>assistant\n") + strlen("<|im_start|>assistant\n");
    expect_bytes(answer, (int64_t)(text.data + text.length - answer), tools_text, false, expected);
    qmi_string_free(&text, &process);
    free(messages_text);
    free(tools_text);
    free(expected);
    json_decref(messages);
    json_decref(tools);
    json_decref(want);
    json_decref(properties);
    json_decref(arguments);
}

/* The XML-like format has no way to write names with newlines or '>'. */
static bool can_be_written(qmi_chat_format_id id, json_t *function)
{
    json_t *arguments = json_object_get(function, "arguments"), *value;
    const char *key;
    if (!json_is_string(json_object_get(function, "name")) || (arguments && !json_is_object(arguments)))
        return false; /* arguments as raw text */
    json_object_foreach(arguments, key, value)
        if (id != QMI_CHAT_QWEN3 && strpbrk(key, "\n>"))
            return false;
    return true;
}

static int check_calls_of(const char *name)
{
    char path[1024], *line = NULL;
    size_t room = 0;
    ssize_t length;
    int calls = 0;
    const char *folder = getenv("TEST_DATA");
    snprintf(path, sizeof path, "%s/chat/%s", folder ? folder : "tests/data", name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    while ((length = getline(&line, &room, file)) > 0) {
        json_t *row, *messages, *message, *list, *call;
        size_t i, j;
        assert_int_equal(qmi_json_parse((qmi_view){ line, (size_t)length }, name, &row), QM_OK);
        messages = json_object_get(row, "messages");
        const char *template = json_string_value(json_object_get(row, "template"));
        qmi_chat_format_id id = (qmi_chat_format_id)qmi_chat_find(template ? template : "qwen3.5");
        json_array_foreach(messages, i, message) {
            list = json_object_get(message, "tool_calls");
            json_array_foreach(list, j, call) {
                json_t *function = json_object_get(call, "function") ? json_object_get(call, "function") : call;
                if (!can_be_written(id, function))
                    continue;
                check_call(id, call);
                calls++;
            }
        }
        json_decref(row);
    }
    free(line);
    fclose(file);
    return calls;
}

static void there_and_back(void **state)
{
    (void)state;
    assert_int_equal(check_calls_of("qwen3.5.jsonl"), 65);
    assert_int_equal(check_calls_of("other.jsonl"), 18);
    assert_int_equal(check_calls_of("edge.jsonl"), 13);
}

/* ---- stream ---- */

typedef struct pieces {
    char text[2048];  /* "T:...|H:...|C:...", runs of one part joined */
    size_t length;
    int last;
} pieces;

static void keep_piece(qmi_answer_part part, const char *text, int64_t length, void *user)
{
    pieces *kept = user;
    assert_true(length > 0);
    assert_int_not_equal((unsigned char)text[0] & 0xC0, 0x80); /* whole code points only */
    if (kept->last != (int)part)
        kept->length += (size_t)snprintf(kept->text + kept->length, sizeof kept->text - kept->length, "%s%c:", kept->length ? "|"
            : "", "THC"[part]);
    memcpy(kept->text + kept->length, text, (size_t)length);
    kept->length += (size_t)length;
    kept->text[kept->length] = 0;
    kept->last = (int)part;
}

/* The pieces are the same whether the text comes whole, in two pushes cut at any code point, or one code point at a time. */
static void expect_stream(const char *text, bool inside, const char *expected)
{
    size_t length = strlen(text);
    for (size_t cut = 0; cut <= length + 1; cut++) {
        pieces kept = { .last = -1 };
        qmi_answer_stream stream;
        if (cut < length && ((unsigned char)text[cut] & 0xC0) == 0x80)
            continue;
        qmi_answer_stream_start(&stream, inside);
        if (cut <= length) {
            qmi_answer_stream_push(&stream, text, (int64_t)cut, keep_piece, &kept);
            qmi_answer_stream_push(&stream, text + cut, (int64_t)(length - cut), keep_piece, &kept);
        }
        for (size_t at = 0, size; cut > length && at < length; at += size) {
            for (size = 1; ((unsigned char)text[at + size] & 0xC0) == 0x80; size++)
                continue;
            qmi_answer_stream_push(&stream, text + at, (int64_t)size, keep_piece, &kept);
        }
        qmi_answer_stream_end(&stream, keep_piece, &kept);
        assert_string_equal(kept.text, expected);
    }
}

static void stream_of_parts(void **state)
{
    (void)state;
    expect_stream("Hi <b>\xE2\x82\xAC</b>\n", false, "T:Hi <b>\xE2\x82\xAC</b>\n");
    expect_stream("so\n</think>\n\nHi", true, "H:so|T:Hi");
    expect_stream("\n</think>\n\n\nHi", true, "T:\nHi");
    expect_stream("<think>\nso\n\n</think>\nHi", false, "H:so\n|T:Hi");
    expect_stream("the <think> mark, a </think> b", false, "T:the <think> mark, a </think> b");
    expect_stream("a</think>b</think>c", true, "H:a|T:b</think>c");
    expect_stream("a\n\xC3\xA9</t\n<\xE2\x82\xAC</think>", true, "H:a\n\xC3\xA9</t\n<\xE2\x82\xAC");
    expect_stream("Hi\n" XML("f", VALUE("a", "x")) "\nbye", false, "T:Hi\n|C:" XML("f", VALUE("a", "x")) "|T:\nbye");
    expect_stream("<tool_call>\n{\"name\": \"</tool_call>\"}\n</tool_call>\n", false,
        "C:<tool_call>\n{\"name\": \"</tool_call>\"}\n</tool_call>|T:\n");
    expect_stream("<tool_call>\n{\"name\": \"\\\"</tool_call>", false, "C:<tool_call>\n{\"name\": \"\\\"</tool_call>");
    expect_stream("a <tool_call> b", false, "T:a <tool_call> b");
    expect_stream("a <tool_call>\n<function=f>\n</function></tool_call> b", false,
        "T:a |C:<tool_call>\n<function=f>\n</function></tool_call>|T: b");
    expect_stream("a\n<tool_call> b", true, "H:a\n<tool_call> b");
    expect_stream("a\n" XML("f", "") " b</think>c", true, "H:a\n|C:" XML("f", "") "|H: b|T:c");
    expect_stream(XML("w", VALUE("a", XML("f", VALUE("b", "1")) " </tool_call> x")) "y", false,
        "C:" XML("w", VALUE("a", XML("f", VALUE("b", "1")) " </tool_call> x")) "|T:y");
    expect_stream("<tool_call>\n<function=f>\n<parameter=a>\nx\n</tool_call>\ny", false,
        "C:<tool_call>\n<function=f>\n<parameter=a>\nx\n</tool_call>|T:\ny");
    expect_stream("x</tool_ca", false, "T:x</tool_ca");
    expect_stream("x\n<tool_ca", false, "T:x\n<tool_ca");
}

/* Only what could become a mark waits. */
static void stream_is_prompt(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool inside;
        int64_t waiting;
    } cases[] = { { "plain", false, 0 }, { "a <", false, 1 }, { "a <b", false, 0 }, { "a <tool_cal", false, 9 }, { "a\n", false,
        0 }, { "a\n", true, 1 },
        { "a\n</", true, 3 }, { "a\nb", true, 0 }, { "a <th", false, 0 }, { "a <tool_call>\n<func", false, 17 },
            { "a\n<tool_call>", false, 0 } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pieces kept = { .last = -1 };
        qmi_answer_stream stream;
        qmi_answer_stream_start(&stream, cases[i].inside);
        qmi_answer_stream_push(&stream, cases[i].text, (int64_t)strlen(cases[i].text), keep_piece, &kept);
        assert_int_equal(stream.held_length, cases[i].waiting);
        assert_int_equal(stream.part == QMI_ANSWER_TOOL, i == 10);
        qmi_answer_stream_end(&stream, keep_piece, &kept);
    }
}

/* ---- memory ---- */

static void every_allocation_may_fail(void **state)
{
    (void)state;
    const char *answer = "so\n</think>\n\nHi\n\n" XML("f", VALUE("a", "3") VALUE("b",
        "[1, 2]")) "\n<tool_call>\n{\"name\":\"g\"}\n</tool_call>";
    int64_t granted = 0;
    for (;; granted++) {
        qmi_string json = { 0 };
        failing_alloc failing = { .until_failure = granted };
        const qmi_alloc alloc = failing_hook(&failing);
        int32_t code = qmi_answer_parse(answer, -1, NULL, 0, true, &alloc, &json);
        if (code == QM_OK)
            assert_string_equal(json.data, RESULT("\"so\"", "Hi", CALL("f", "\"a\": 3, \"b\": [1, 2]") ", " CALL("g", ""),
                "complete"));
        qmi_string_free(&json, &alloc);
        assert_int_equal(failing.live, 0);
        if (code == QM_OK)
            break;
        assert_int_equal(code, QM_ERROR_MEMORY);
        assert_non_null(strstr(qmi_error_text(), "out of memory"));
    }
    assert_true(granted > 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_and_thoughts),
        cmocka_unit_test(misplaced_thoughts),
        cmocka_unit_test(xml_calls),
        cmocka_unit_test(json_calls),
        cmocka_unit_test(missing_marks),
        cmocka_unit_test(unreadable_calls),
        cmocka_unit_test(cut_answers),
        cmocka_unit_test(marks_in_values),
        cmocka_unit_test(typed_values),
        cmocka_unit_test(untyped_values),
        cmocka_unit_test(bad_tools),
        cmocka_unit_test(there_and_back),
        cmocka_unit_test(stream_of_parts),
        cmocka_unit_test(stream_is_prompt),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
