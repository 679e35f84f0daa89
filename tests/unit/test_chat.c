/* Chat messages to text: every vector of the reference templates, and what they leave open. */
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
#include "text/chat_json.h"

static const qmi_alloc process = { 0 };

/* ---- vectors ---- */

static char *read_data(const char *name, size_t *length)
{
    char path[1024];
    const char *folder = getenv("TEST_DATA");
    snprintf(path, sizeof path, "%s/chat/%s", folder ? folder : "tests/data", name);
    FILE *file = fopen(path, "rb");
    if (!file)
        fail_msg("cannot open %s", path);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    *length = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*length + 1);
    assert_int_equal(fread(data, 1, *length, file), *length);
    data[*length] = 0;
    fclose(file);
    return data;
}

static int32_t switch_of(const json_t *row, const char *name)
{
    const json_t *value = json_object_get(row, name);
    return json_is_true(value) ? 1 : json_is_false(value) ? 0 : -1;
}

/* The row's own JSON text would be the best input; jansson's print of it keeps all but long integers, hence our print. */
static char *print(const json_t *value, qmi_string *out)
{
    qmi_writer writer = { out, &process, false };
    qmi_json_write(&writer, value);
    assert_false(writer.failed);
    return out->data;
}

static int32_t render_row(const json_t *row, const char *standard_template, qmi_string *text)
{
    qmi_string messages = { 0 }, tools = { 0 };
    const json_t *given = json_object_get(row, "tools"), *name = json_object_get(row, "template");
    int32_t id = qmi_chat_find(name ? json_string_value(name) : standard_template);
    assert_true(id >= 0);
    qmi_chat_request request = { print(json_object_get(row, "messages"), &messages), (int64_t)messages.length, NULL, 0,
        switch_of(row, "enable_thinking"), switch_of(row, "preserve_thinking"), switch_of(row, "add_generation_prompt") > 0, NULL };
    if (given && !json_is_null(given)) {
        request.tools = print(given, &tools);
        request.tools_length = (int64_t)tools.length;
    }
    int32_t code = qmi_chat_render((qmi_chat_format_id)id, &request, &process, text);
    qmi_string_free(&messages, &process);
    qmi_string_free(&tools, &process);
    return code;
}

static bool check_row(const json_t *row)
{
    qmi_string text = { 0 };
    const json_t *error = json_object_get(row, "error"), *expected = json_object_get(row, "text");
    int32_t code = render_row(row, "qwen3.5", &text);
    bool good = error ? code == QM_ERROR_TEXT && strstr(qmi_error_text(), json_string_value(error))
                      : code == QM_OK && text.length == json_string_length(expected) &&
                            memcmp(text.data, json_string_value(expected), text.length) == 0;
    qmi_string_free(&text, &process);
    return good;
}

static void check_file(const char *name, int expected_rows)
{
    size_t length;
    char *data = read_data(name, &length), *line = data, *end;
    int rows = 0, matched = 0;
    for (; (end = memchr(line, '\n', length - (size_t)(line - data))) != NULL; line = end + 1, rows++) {
        json_t *row;
        assert_int_equal(qmi_json_parse((qmi_view){ line, (size_t)(end - line) }, name, &row), QM_OK);
        if (check_row(row))
            matched++;
        else
            print_error("%s line %d: other text, or %s\n", name, rows + 1, qmi_error_text());
        json_decref(row);
    }
    free(data);
    assert_int_equal(rows, expected_rows);
    assert_int_equal(matched, rows);
}

static void qwen3_5_rows(void **state) { (void)state; check_file("qwen3.5.jsonl", 84); }
static void other_rows(void **state) { (void)state; check_file("other.jsonl", 95); }
static void error_rows(void **state) { (void)state; check_file("errors.jsonl", 12); }
static void edge_rows(void **state) { (void)state; check_file("edge.jsonl", 70); }

/* ---- recognition ---- */

static char logged[1024];
static int32_t logged_level;

static void keep_line(int32_t level, const char *line, void *user)
{
    (void)user;
    logged_level = level;
    snprintf(logged, sizeof logged, "%s", line);
}

static void recognises_known_templates(void **state)
{
    (void)state;
    const qmi_log log = { keep_line, NULL };
    static const char *const files[] = { "qwen3.jinja", "qwen3.5.jinja", "qwen3.6.jinja" };
    for (int i = 0; i < 3; i++) {
        size_t length;
        char *template = read_data(files[i], &length);
        logged[0] = 0;
        char name[16];
        snprintf(name, sizeof name, "%s.jinja", qmi_chat_name(qmi_chat_recognise(template, (int64_t)length, &log)));
        assert_string_equal(name, files[i]);
        assert_string_equal(logged, "");
        template[length] = '\n'; /* takes the zero's place: as if the file ended with a newline */
        assert_string_equal(qmi_chat_name(qmi_chat_recognise(template, (int64_t)length + 1, &log)),
            qmi_chat_name((qmi_chat_format_id)(i + 1)));
        assert_string_equal(logged, "");
        template[0] = ' '; /* changed somewhere: the parts decide, and the log says so */
        assert_int_equal(qmi_chat_recognise(template, (int64_t)length, &log), i + 1);
        assert_non_null(strstr(logged, qmi_chat_name((qmi_chat_format_id)(i + 1))));
        assert_int_equal(logged_level, QM_LOG_INFO);
        free(template);
    }
}

static void names_unknown_templates(void **state)
{
    (void)state;
    const qmi_log log = { keep_line, NULL };
    static const char odd[] = "{{ bos_token }}[INST]\n{% for m in messages %}";
    assert_int_equal(qmi_chat_recognise(odd, -1, &log), QMI_CHAT_CHATML);
    assert_int_equal(logged_level, QM_LOG_WARNING);
    assert_non_null(strstr(logged, "{{ bos_token }}[INST]"));
    assert_null(strstr(logged, "for m in"));
    logged[0] = 0;
    assert_int_equal(qmi_chat_recognise(NULL, 0, &log), QMI_CHAT_CHATML);
    assert_non_null(strstr(logged, "no chat template"));
    assert_int_equal(qmi_chat_recognise("", 0, &log), QMI_CHAT_CHATML);
    char zeros[200] = { 0 };
    assert_int_equal(qmi_chat_recognise(zeros, sizeof zeros, &log), QMI_CHAT_CHATML);
    assert_int_equal(qmi_chat_find("qwen3.5"), QMI_CHAT_QWEN3_5);
    assert_int_equal(qmi_chat_find("QWEN"), -1);
}

/* ---- what no template decides ---- */

static int32_t render(qmi_chat_format_id id, const char *messages, const char *tools, qmi_string *text)
{
    const qmi_chat_request request = { messages, -1, tools, -1, -1, -1, 0, NULL };
    return qmi_chat_render(id, &request, &process, text);
}

static void expect_text(qmi_chat_format_id id, const char *messages, const char *tools, const char *expected)
{
    qmi_string text = { 0 };
    int32_t code = render(id, messages, tools, &text);
    if (code < 0)
        fail_msg("%s", qmi_error_text());
    assert_string_equal(text.data, expected);
    qmi_string_free(&text, &process);
}

static void expect_refusal(qmi_chat_format_id id, const char *messages, const char *tools, const char *words)
{
    qmi_string text = { 0 };
    assert_int_equal(render(id, messages, tools, &text), QM_ERROR_TEXT);
    assert_int_equal(text.length, 0);
    if (!strstr(qmi_error_text(), words))
        fail_msg("\"%s\" does not say \"%s\"", qmi_error_text(), words);
    qmi_string_free(&text, &process);
}

static void plain_chatml(void **state)
{
    (void)state;
    expect_text(QMI_CHAT_CHATML,
        "[{\"role\":\"system\",\"content\":\"s \"},{\"role\":\"user\",\"content\":[{\"text\":\"a\"},{\"text\":\"b\"}]},"
        "{\"role\":\"developer\",\"content\":\"d\"},{\"role\":\"assistant\",\"content\":null,\"reasoning_content\":\"r\"}]", NULL,
        "<|im_start|>system\ns <|im_end|>\n<|im_start|>user\nab<|im_end|>\n<|im_start|>developer\nd<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n");
    expect_text(QMI_CHAT_CHATML, "[{\"role\":\"assistant\",\"content\":\"c\",\"tool_calls\":[{\"name\":\"f\"}]},"
        "{\"role\":\"tool\",\"content\":\"1\"},{\"role\":\"tool\",\"content\":\"2\"}]", NULL,
        "<|im_start|>assistant\nc\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call><|im_end|>\n<|im_start|>user\n"
        "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n");
    expect_refusal(QMI_CHAT_CHATML, "[{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}]", NULL, "Unexpected item type");
    expect_refusal(QMI_CHAT_CHATML, "[{\"content\":\"x\"}]", NULL, "messages[0]: Unexpected message role.");
}

#define CALL(arguments) \
    "[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"\"," \
    "\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":" \
    arguments "}}]}]"
#define CALLED(parameters) \
    "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n<tool_call>\n<function=f>\n" parameters \
    "</function>\n</tool_call><|im_end|>\n"

static void arguments_as_json_text(void **state)
{
    (void)state;
    expect_text(QMI_CHAT_QWEN3_5, CALL("\"{\\\"a\\\": 1.0, \\\"b\\\": null}\""), NULL,
        CALLED("<parameter=a>\n1.0\n</parameter>\n<parameter=b>\nNone\n</parameter>\n"));
    expect_text(QMI_CHAT_QWEN3_6, CALL("\"{\\\"b\\\": null}\""), NULL, CALLED("<parameter=b>\nnull\n</parameter>\n"));
    expect_text(QMI_CHAT_QWEN3_5, CALL("\" \""), NULL, CALLED(""));
    expect_refusal(QMI_CHAT_QWEN3_5, CALL("\"[1]\""), NULL, "messages[1]: Can only get item pairs from a mapping.");
    expect_refusal(QMI_CHAT_QWEN3_5, CALL("\"{\""), NULL, "arguments of a tool call: malformed JSON at line 1");
    expect_refusal(QMI_CHAT_QWEN3_5, CALL("null"), NULL, "Can only get item pairs from a mapping.");
    expect_refusal(QMI_CHAT_QWEN3_5, CALL("7"), NULL, "Can only get item pairs from a mapping.");
}

static void bad_json(void **state)
{
    (void)state;
    for (int id = 0; id < QMI_CHAT_COUNT; id++) {
        qmi_chat_format_id format = (qmi_chat_format_id)id;
        expect_refusal(format, "", NULL, "messages: malformed JSON");
        expect_refusal(format, "[\n  {\"role\" \"user\"}]", NULL, "messages: malformed JSON at line 2, column");
        expect_refusal(format, "{}", NULL, "messages must be a JSON array");
        expect_refusal(format, "[]", NULL, "No messages provided.");
        expect_refusal(format, "[{\"role\":\"user\",\"content\":\"\xff\"}]", NULL, "messages: malformed JSON");
        expect_refusal(format, "[\"\\ud800\"]", NULL, "messages: malformed JSON");
        expect_refusal(format, "[1e999]", NULL, "messages: malformed JSON");
        expect_refusal(format, "[-012345678901234567890]", NULL, "malformed");
        expect_refusal(format, "[{\"a\\u0000\":123456789012345678901}]", NULL, "malformed");
        expect_refusal(format, "[{\"role\":\"user\",\"content\":\"q\"}] x", NULL, "messages: malformed JSON");
        expect_refusal(format, "[{\"role\":\"user\",\"content\":\"q\"}]", "{}", "tools must be a JSON array");
        expect_refusal(format, "[{\"role\":\"user\",\"content\":\"q\"}]", "[", "tools: malformed JSON");
    }
    char *deep = malloc(100001);
    memset(deep, '[', 100000);
    deep[100000] = 0;
    expect_refusal(QMI_CHAT_QWEN3, deep, NULL, "messages: malformed JSON");
    free(deep);
}

/* ---- what users and tools said ---- */

static void expect_literal(qmi_chat_format_id id, const char *messages, const char *const *said, size_t count)
{
    qmi_stretches literal = { 0 };
    const qmi_chat_request request = { messages, -1, NULL, 0, -1, -1, 1, &literal };
    qmi_string text = { 0 };
    assert_int_equal(qmi_chat_render(id, &request, &process, &text), QM_OK);
    assert_int_equal(literal.count, count);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(literal.data[i].end - literal.data[i].start, strlen(said[i]));
        assert_memory_equal(text.data + literal.data[i].start, said[i], strlen(said[i]));
    }
    qmi_string_free(&text, &process);
    qmi_delete(&process, literal.data);
}

static void literal_is_what_users_and_tools_said(void **state)
{
    (void)state;
    const char *messages = "[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\" <|im_end|> \"},"
                           "{\"role\":\"assistant\",\"content\":\"a\"},{\"role\":\"tool\",\"content\":\"t\"},"
                           "{\"role\":\"user\",\"content\":\"\"},{\"role\":\"user\",\"content\":\"u\"}]";
    expect_literal(QMI_CHAT_QWEN3_5, messages, (const char *const[]){ "<|im_end|>", "t", "u" }, 3);
    expect_literal(QMI_CHAT_QWEN3_6, messages, (const char *const[]){ "<|im_end|>", "t", "u" }, 3);
    expect_literal(QMI_CHAT_QWEN3, messages, (const char *const[]){ "user", " <|im_end|> ", "t", "user", "user", "u" }, 6);
    expect_literal(QMI_CHAT_CHATML, "[{\"role\":\"x<|im_start|>\",\"content\":\"y\"}]",
                   (const char *const[]){ "x<|im_start|>", "y" }, 2);
}

/* ---- memory ---- */

static void every_allocation_may_fail(void **state)
{
    (void)state;
    const char *messages = "[{\"role\":\"user\",\"content\":"
                           "[{\"text\":\"some text that is long enough\"},{\"text\":\"and more of it, to grow\"}]}]";
    qmi_stretches literal = { 0 };
    const qmi_chat_request request = { messages, -1, "[{\"name\":\"f\"}]", -1, -1, -1, 1, &literal };
    int64_t granted = 0;
    for (;; granted++) {
        qmi_string text = { 0 };
        failing_alloc failing = { .until_failure = granted };
        const qmi_alloc alloc = failing_hook(&failing);
        int32_t code = qmi_chat_render(QMI_CHAT_QWEN3_5, &request, &alloc, &text);
        qmi_string_free(&text, &alloc);
        qmi_delete(&alloc, literal.data);
        literal = (qmi_stretches){ 0 };
        assert_int_equal(failing.live, 0);
        if (code == QM_OK)
            break;
        assert_int_equal(code, QM_ERROR_MEMORY);
    }
    assert_true(granted > 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qwen3_5_rows),
        cmocka_unit_test(other_rows),
        cmocka_unit_test(error_rows),
        cmocka_unit_test(edge_rows),
        cmocka_unit_test(recognises_known_templates),
        cmocka_unit_test(names_unknown_templates),
        cmocka_unit_test(plain_chatml),
        cmocka_unit_test(arguments_as_json_text),
        cmocka_unit_test(bad_json),
        cmocka_unit_test(literal_is_what_users_and_tools_said),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
