/* Tool calls in both formats: which answers fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include "grammar_scene.h"
#include "text/grammar_tools.h"

static const qmi_alloc plain_alloc = { 0 };
static const char tools[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"find\",\"strict\":true,\"parameters\":{\"type\":\"object\",\"properties\":{"
    "\"what\":{\"type\":\"string\"},\"count\":{\"type\":\"integer\",\"minimum\":1},\"kind\":{\"enum\":[\"a b\",\"c\"]},"
    "\"code\":{\"type\":\"string\",\"pattern\":\"^[A-Z]{2}$\"},\"more\":{\"type\":[\"string\",\"null\"],\"maxLength\":3},"
    "\"list\":{\"type\":\"array\",\"items\":{\"type\":\"boolean\"}}},\"required\":[\"what\"]}}},"
    "{\"name\":\"free\",\"parameters\":{\"type\":\"object\"}}]";

static int32_t open_tools(grammar_scene *scene, const char *text, const char *choice, bool parallel, bool answers,
                          qmi_chat_format_id format)
{
    qmi_grammar grammar;
    qmi_grammar_start(&grammar, &plain_alloc);
    qmi_tools_request request = {
        .tools = text, .choice = choice, .parallel = parallel, .format = format, .has_answer = answers
    };
    request.answer = qmi_grammar_rule_new(&grammar, "answer", 6);
    qmi_grammar_define(&grammar, request.answer, qmi_grammar_word(&grammar, "yes"));
    scene->root = qmi_grammar_rule_new(&grammar, "root", 4);
    qmi_grammar_define(&grammar, scene->root, qmi_tools_read(&grammar, &request));
    int32_t code = qmi_network_new(&grammar, &scene->root, 1, &plain_alloc, &scene->network);
    qmi_grammar_end(&grammar);
    return code < 0 ? code : qmi_automaton_new(scene->network, 16, &plain_alloc, &scene->automaton);
}

/* Texts that are complete, then NULL, texts that are not, then NULL. */
static void check(const char *choice, bool parallel, bool answers, qmi_chat_format_id format, const char *const *texts)
{
    grammar_scene scene = { 0 };
    if (open_tools(&scene, tools, choice, parallel, answers, format) < 0)
        fail_msg("%s", qmi_error_text());
    for (int fits = 1; fits >= 0; fits--, texts++)
        for (; *texts; texts++)
            if ((grammar_scene_match(&scene, *texts, strlen(*texts)) == COMPLETE) != fits)
                fail_msg("%s: '%s' %s", choice, *texts, fits ? "does not fit" : "fits");
    grammar_scene_close(&scene);
}

#define CHECK(choice, parallel, answers, format, ...) \
    check(choice, parallel, answers, format, (const char *const[]){ __VA_ARGS__ })
#define JSON_CALL(arguments) "<tool_call>\n{\"name\": \"find\", \"arguments\": " arguments "}\n</tool_call>"
#define MARKED(parameters) "<tool_call>\n<function=find>\n" parameters "</function>\n</tool_call>"
#define PARAMETER(name, value) "<parameter=" name ">\n" value "\n</parameter>\n"
#define WHAT PARAMETER("what", "x")

static void json_calls(void **state)
{
    (void)state;
    CHECK("auto", true, false, QMI_CHAT_QWEN3, "", "Hello <b> <tool_ \xc3\xa4", JSON_CALL("{\"what\": \"x\"}"),
          "So:\n" JSON_CALL("{\"what\": \"x\", \"count\": 3}") "\n" JSON_CALL("{\"what\": \"</tool_call>\"}"),
          "<tool_call>\n{\"name\": \"free\", \"arguments\": {\"any\": [1]}}\n</tool_call>", NULL, JSON_CALL("{}"),
          JSON_CALL("{\"what\": \"x\", \"count\": 0}"), JSON_CALL("{\"what\": \"x\"}") " and", "<tool_call>",
          "<tool_call>\n{\"name\": \"other\", \"arguments\": {}}\n</tool_call>", NULL);
    CHECK("required", false, false, QMI_CHAT_CHATML, JSON_CALL("{\"what\": \"x\"}"), NULL, "", "x" JSON_CALL("{\"what\": \"x\"}"),
          JSON_CALL("{\"what\": \"x\"}") "\n" JSON_CALL("{\"what\": \"x\"}"), NULL);
    CHECK("free", true, false, QMI_CHAT_QWEN3, "<tool_call>\n{\"name\": \"free\", \"arguments\": {}}\n</tool_call>", NULL,
          JSON_CALL("{\"what\": \"x\"}"), NULL);
    CHECK("none", true, false, QMI_CHAT_QWEN3, "text", NULL, JSON_CALL("{\"what\": \"x\"}"), NULL);
    CHECK("auto", true, true, QMI_CHAT_QWEN3, "yes", JSON_CALL("{\"what\": \"x\"}"), NULL, "no",
          "yes" JSON_CALL("{\"what\": \"x\"}"), NULL);
}

static void marked_calls(void **state)
{
    (void)state;
    CHECK("auto", true, false, QMI_CHAT_QWEN3_5, "text", MARKED(WHAT), "a\n" MARKED(WHAT) "\n" MARKED(WHAT),
          MARKED(PARAMETER("what", "two\nlines < 3 </b> \xc3\xa4") PARAMETER("count", "12") PARAMETER("kind", "a b")),
          MARKED(WHAT PARAMETER("code", "QX") PARAMETER("more", "null") PARAMETER("list", "[true, false]")),
          MARKED(WHAT PARAMETER("more", "abc")), MARKED(PARAMETER("what", "")),
          "<tool_call>\n<function=free>\n</function>\n</tool_call>",
          "<tool_call>\n<function=free>\n<parameter=any>\n1\n</parameter>\n</function>\n</tool_call>", NULL, MARKED(""),
          MARKED(PARAMETER("count", "1") WHAT), MARKED(WHAT PARAMETER("count", "0")), MARKED(WHAT PARAMETER("kind", "b")),
          MARKED(WHAT PARAMETER("code", "qx")), MARKED(WHAT PARAMETER("more", "abcd")), MARKED(WHAT PARAMETER("more", "[1]")),
          MARKED(WHAT PARAMETER("list", "true")), MARKED(WHAT PARAMETER("other", "1")),
          MARKED(PARAMETER("what", "a</parameter>")), MARKED(PARAMETER("what", "\n<parameter=what>")),
          MARKED(PARAMETER("what", "\xff")), NULL);
}

static void refused(void **state)
{
    static const struct {
        const char *tools, *choice, *message;
        qmi_chat_format_id format;
    } cases[] = {
        { "{}", "auto", "option tools must be a JSON array", QMI_CHAT_QWEN3 },
        { "[]", "auto", "option tools has no tool", QMI_CHAT_QWEN3 },
        { "[1]", "auto", "each tool has to be an object", QMI_CHAT_QWEN3 },
        { "[{\"name\":\"f\"}]", "g", "no tool is called 'g'", QMI_CHAT_QWEN3 },
        { "[{\"name\":\"f\",\"strict\":true,\"parameters\":{\"type\":\"object\",\"properties\":{\"a\":{\"uniqueItems\":true}}}}"
          "]",
          "auto", "parameters of function 'f', #/properties/a: keyword uniqueItems", QMI_CHAT_QWEN3 },
        { "[{\"name\":\"f>\",\"parameters\":{}}]", "auto", "function 'f>': the name cannot be written", QMI_CHAT_QWEN3_5 },
        { "[{\"name\":\"f\",\"strict\":true,\"parameters\":{\"properties\":{\"a\":{\"enum\":[\"<\"]}}}}]", "auto",
          "a value with < in it", QMI_CHAT_QWEN3_5 },
        { "[{\"name\":\"f\",\"strict\":true,\"parameters\":{\"anyOf\":[{}]}}]", "auto",
          "parameters has to be an object of properties", QMI_CHAT_QWEN3_5 },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        grammar_scene scene = { 0 };
        int32_t code = open_tools(&scene, cases[i].tools, cases[i].choice, true, false, cases[i].format);
        if (code != QM_ERROR_OPTION || !strstr(qmi_error_text(), cases[i].message))
            fail_msg("%s: %d, '%s'", cases[i].tools, code, code < 0 ? qmi_error_text() : "");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_calls),
        cmocka_unit_test(marked_calls),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
