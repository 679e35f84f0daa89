/* JSON schemas: which JSON fits the grammar made of them, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include "failing_alloc.h"
#include "grammar_scene.h"

static const qmi_alloc plain_alloc = { 0 };

/* Texts that are complete, then NULL, texts that do not fit or are not complete, then NULL. */
static void check(const char *schema, const char *const *texts)
{
    grammar_scene scene;
    int32_t code = grammar_scene_open(&scene, schema, strlen(schema), &plain_alloc);
    if (code < 0)
        fail_msg("%s: %s", schema, qmi_error_text());
    for (int fits = 1; fits >= 0; fits--, texts++) {
        for (; *texts; texts++) {
            bool complete = grammar_scene_match(&scene, *texts, strlen(*texts)) == COMPLETE;
            if (complete != fits)
                fail_msg("%s with %s: %s", schema, *texts, complete ? "fits" : "does not fit");
        }
    }
    grammar_scene_close(&scene);
}

#define FIT(...) __VA_ARGS__, NULL
#define NOT(...) __VA_ARGS__, NULL
#define CHECK(schema, ...) check(schema, (const char *const[]){ __VA_ARGS__ })

static void any_json(void **state)
{
    (void)state;
    CHECK("{}", FIT("{}", "{\"a\": [1, -2.5e+10, \"x\\n\\u00e4\\ud83d\\ude00\", null, true, {\"b\":{}}]}", "{\n  \"a\": 1,\n  \"b\": []\n}"),
          NOT("[]", "1", "{\"a\"}", "{\"a\":}", "{\"a\":01}", "{\"a\":1,}", "{\"a\":\"\\ud800\"}", "{\"a\":\"\\u0000\"}", "{\"a\":\"\n\"}",
              "{\"a\":1.}", "{\"a\":-}", "{\"a\":+1}", "{\"a\":\"\\x\"}", "{", "{\"a\":[1 2]}"));
    CHECK("{\"title\":\"any\"}", FIT("[]", "1", "null", "\"\xc3\xa4\"", "{}"), NOT("", "nul", "\"\xc3\""));
}

static void objects(void **state)
{
    (void)state;
    CHECK("{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"boolean\"},\"c\":{\"type\":\"null\"}},"
          "\"required\":[\"b\"],\"additionalProperties\":false}",
          FIT("{\"b\": true}", "{\"a\": 1, \"b\": false}", "{\"a\":1,\"b\":false,\"c\":null}", "{\"b\": true, \"c\": null}",
              "{\n\t\"b\": true\n}"),
          NOT("{}", "{\"a\": 1}", "{\"b\": 1}", "{\"b\": true, \"a\": 1}", "{\"b\": true, \"d\": 1}", "{,\"b\": true}", "{\"b\": true,}"));
    CHECK("{\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2}}}", FIT("{}", "{ }", "{\"a\": 1}", "{\"b\": 2}", "{\"a\": 1, \"b\": 2}"),
          NOT("{\"c\": 1}", "[]", "{\"b\": 2, \"a\": 1}"));
    CHECK("{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\"}}", FIT("{}", "{\"x\": 1, \"y\\u0041\": 2}"),
          NOT("{\"x\": \"1\"}"));
    CHECK("{\"type\":\"object\",\"properties\":{\"ab\":{\"type\":\"null\"},\"a\\\"\":{\"type\":\"null\"}},\"additionalProperties\":{\"type\":\"integer\"}}",
          FIT("{\"ab\": null, \"a\": 1, \"abc\": 2, \"\": 3, \"b\": 4, \"a\\\"c\": 5}", "{\"a\\\"\": null}", "{\"\xc3\xa4\": 1}"),
          NOT("{\"ab\": 1}", "{\"a\\\"\": 1}", "{\"\\u0061b\": 1}", "{\"x\": null}"));
    CHECK("{\"type\":\"object\",\"required\":[\"x\",\"x\"],\"properties\":{\"y\":{\"type\":\"null\"}}}", FIT("{\"x\": [1]}", "{\"y\": null, \"x\": 1}"),
          NOT("{\"y\": null}", "{\"x\": 1, \"x\": 1}"));
    CHECK("{\"type\":\"object\",\"properties\":{\"a\\u00e4\\n\":false,\"b\":true}}", FIT("{\"b\": {\"c\": 1}}", "{}"), NOT("{\"a\xc3\xa4\\n\": 1}"));
}

static void arrays(void **state)
{
    (void)state;
    CHECK("{\"type\":\"array\",\"items\":{\"type\":\"boolean\"}}", FIT("[]", "[true]", "[true, false]", "[\n  true\n]"), NOT("[true,]", "[1]", "[,]"));
    CHECK("{\"type\":\"array\",\"items\":{\"const\":1},\"minItems\":2,\"maxItems\":3}", FIT("[1, 1]", "[1,1,1]"), NOT("[]", "[1]", "[1,1,1,1]"));
    CHECK("{\"type\":\"array\",\"items\":{\"const\":1},\"maxItems\":0}", FIT("[]"), NOT("[1]"));
    CHECK("{\"type\":\"array\",\"items\":{\"const\":1},\"maxItems\":1}", FIT("[]", "[1]"), NOT("[1,1]"));
    CHECK("{\"type\":\"array\",\"items\":{\"const\":1},\"minItems\":12}", FIT("[1,1,1,1,1,1,1,1,1,1,1,1]", "[1,1,1,1,1,1,1,1,1,1,1,1,1]"),
          NOT("[1,1,1,1,1,1,1,1,1,1,1]"));
    CHECK("{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":false}", FIT("[]", "[1]", "[1, 2]"), NOT("[2]", "[1,2,3]"));
    CHECK("{\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":{\"const\":3},\"minItems\":2,\"maxItems\":4}", FIT("[1,2]", "[1,2,3]", "[1,2,3,3]"),
          NOT("[1]", "[1,2,3,3,3]", "[3]"));
}

static void scalars(void **state)
{
    (void)state;
    CHECK("{\"type\":\"integer\"}", FIT("0", "-1", "123456789012345678"), NOT("00", "1.0", "-", "1e3", "\"1\""));
    CHECK("{\"type\":\"number\"}", FIT("0", "-0.5", "1e10", "12.25E-7"), NOT(".5", "1.", "1e", "0x1"));
    CHECK("{\"type\":[\"string\",\"null\"]}", FIT("null", "\"null\""), NOT("1"));
    CHECK("{\"type\":\"string\",\"nullable\":true}", FIT("null", "\"\""), NOT("1"));
    CHECK("{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}", FIT("\"ab\"", "\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\"", "\"\\n\\ud83d\\ude00\""),
          NOT("\"a\"", "\"abcd\"", "\"\\n\""));
    CHECK("{\"minLength\":20}", FIT("\"abcdefghijklmnopqrst\""), NOT("\"abcdefghijklmnopqrs\""));
    CHECK("{\"enum\":[\"a\\\"b\",1,2.5,null,true,[1,{\"x\":[]}]]}", FIT("\"a\\\"b\"", "1", "2.5", "null", "true", "[1, {\"x\": []}]"), NOT("\"a\"", "false"));
    CHECK("{\"const\":\"\xc3\xa4\"}", FIT("\"\xc3\xa4\""), NOT("\"a\""));
    CHECK("{\"anyOf\":[{\"type\":\"integer\"},{\"const\":\"x\"}]}", FIT("1", "\"x\""), NOT("\"y\""));
}

static void references(void **state)
{
    (void)state;
    CHECK("{\"$ref\":\"#/$defs/a~1b\",\"$defs\":{\"a/b\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/n\"}},\"n\":{\"enum\":[1,2]}}}",
          FIT("[1, 2]"), NOT("[3]"));
    CHECK("{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"},\"next\":{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":\"null\"}]}},"
          "\"required\":[\"v\",\"next\"]}",
          FIT("{\"v\": 1, \"next\": {\"v\": 2, \"next\": null}}"), NOT("{\"v\": 1, \"next\": {\"v\": 2}}"));
}

static void refused(void **state)
{
    static const struct {
        const char *schema, *message;
    } cases[] = {
        { "{\"type\":\"strin\"}", "#: type has to be" },
        { "{", "malformed JSON at line 1" },
        { "{\"properties\":{\"a\":{\"type\":\"array\",\"uniqueItems\":true}}}", "#/properties/a: keyword uniqueItems is not supported" },
        { "{\"type\":\"string\",\"maxlength\":3}", "keyword maxlength is unknown; maxLength is meant" },
        { "{\"$ref\":\"#/$defs/x\"}", "$ref names #/$defs/x, which is not there" },
        { "{\"$ref\":\"other.json\"}", "$ref can only name a place in this schema" },
        { "{\"$ref\":\"#\"}", "no text fits" },
        { "{\"minLength\":3,\"maxLength\":2}", "minLength is more than maxLength" },
        { "{\"minLength\":-1}", "minLength is no whole number" },
        { "{\"items\":3}", "#/items: a schema has to be" },
        { "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", "no text fits" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        grammar_scene scene;
        int32_t code = grammar_scene_open(&scene, cases[i].schema, strlen(cases[i].schema), &plain_alloc);
        if (code != QM_ERROR_OPTION || !strstr(qmi_error_text(), cases[i].message))
            fail_msg("%s: %d, '%s'", cases[i].schema, code, code < 0 ? qmi_error_text() : "");
    }
}

static void out_of_memory(void **state)
{
    static const char schema[] = "{\"type\":\"object\",\"properties\":{\"a\":{\"enum\":[1,\"x\"]},\"b\":{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}},"
                                 "\"additionalProperties\":{\"type\":\"string\",\"maxLength\":30}}";
    static const char text[] = "{\"a\": 1, \"b\": [{}], \"c\": \"d\"}";
    bool failed = true;
    (void)state;
    for (int64_t n = 0; failed; n++) {
        failing_alloc failing = { .until_failure = n };
        const qmi_alloc alloc = failing_hook(&failing);
        grammar_scene scene;
        int32_t code = grammar_scene_open(&scene, schema, strlen(schema), &alloc);
        if (code >= 0)
            code = grammar_scene_match(&scene, text, strlen(text));
        failed = failing.failed;
        assert_int_equal(code, failed ? QM_ERROR_MEMORY : COMPLETE);
        grammar_scene_close(&scene);
        assert_int_equal(failing.live, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_json), cmocka_unit_test(objects),    cmocka_unit_test(arrays),  cmocka_unit_test(scalars),
        cmocka_unit_test(references), cmocka_unit_test(refused), cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
