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
    CHECK("{}",
          FIT("{}", "{\"a\": [1, -2.5e+10, \"x\\n\\u00e4\\ud83d\\ude00\", null, true, {\"b\":{}}]}",
              "{\n  \"a\": 1,\n  \"b\": []\n}"),
          NOT("[]", "1", "{\"a\"}", "{\"a\":}", "{\"a\":01}", "{\"a\":1,}", "{\"a\":\"\\ud800\"}", "{\"a\":\"\\u0000\"}",
              "{\"a\":\"\n\"}", "{\"a\":1.}", "{\"a\":-}", "{\"a\":+1}", "{\"a\":\"\\x\"}", "{", "{\"a\":[1 2]}"));
    CHECK("{\"title\":\"any\"}", FIT("[]", "1", "null", "\"\xc3\xa4\"", "{}"), NOT("", "nul", "\"\xc3\""));
}

static void objects(void **state)
{
    (void)state;
    CHECK("{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"boolean\"},\"c\":{\"type\":"
          "\"null\"}},"
          "\"required\":[\"b\"],\"additionalProperties\":false}",
          FIT("{\"b\": true}", "{\"a\": 1, \"b\": false}", "{\"a\":1,\"b\":false,\"c\":null}", "{\"b\": true, \"c\": null}",
              "{\n\t\"b\": true\n}"),
          NOT("{}", "{\"a\": 1}", "{\"b\": 1}", "{\"b\": true, \"a\": 1}", "{\"b\": true, \"d\": 1}", "{,\"b\": true}",
              "{\"b\": true,}"));
    CHECK("{\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2}}}",
          FIT("{}", "{ }", "{\"a\": 1}", "{\"b\": 2}", "{\"a\": 1, \"b\": 2}"),
          NOT("{\"c\": 1}", "[]", "{\"b\": 2, \"a\": 1}"));
    CHECK("{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\"}}", FIT("{}", "{\"x\": 1, \"y\\u0041\": 2}"),
          NOT("{\"x\": \"1\"}"));
    CHECK(
        "{\"type\":\"object\",\"properties\":{\"ab\":{\"type\":\"null\"},\"a\\\"\":{\"type\":\"null\"}},"
        "\"additionalProperties\":{\"type\":\"integer\"}}",
        FIT("{\"ab\": null, \"a\": 1, \"abc\": 2, \"\": 3, \"b\": 4, \"a\\\"c\": 5}", "{\"a\\\"\": null}", "{\"\xc3\xa4\": 1}"),
        NOT("{\"ab\": 1}", "{\"a\\\"\": 1}", "{\"\\u0061b\": 1}", "{\"x\": null}"));
    CHECK("{\"type\":\"object\",\"required\":[\"x\",\"x\"],\"properties\":{\"y\":{\"type\":\"null\"}}}",
          FIT("{\"x\": [1]}", "{\"y\": null, \"x\": 1}"), NOT("{\"y\": null}", "{\"x\": 1, \"x\": 1}"));
    CHECK("{\"type\":\"object\",\"properties\":{\"a\\u00e4\\n\":false,\"b\":true}}", FIT("{\"b\": {\"c\": 1}}", "{}"),
          NOT("{\"a\xc3\xa4\\n\": 1}"));
}

static void arrays(void **state)
{
    (void)state;
    CHECK("{\"type\":\"array\",\"items\":{\"type\":\"boolean\"}}", FIT("[]", "[true]", "[true, false]", "[\n  true\n]"),
          NOT("[true,]", "[1]", "[,]"));
    CHECK("{\"type\":\"array\",\"items\":{\"const\":1},\"minItems\":2,\"maxItems\":3}", FIT("[1, 1]", "[1,1,1]"),
          NOT("[]", "[1]", "[1,1,1,1]"));
    CHECK("{\"type\":\"array\",\"items\":{\"const\":1},\"maxItems\":0}", FIT("[]"), NOT("[1]"));
    CHECK("{\"type\":\"array\",\"items\":{\"const\":1},\"maxItems\":1}", FIT("[]", "[1]"), NOT("[1,1]"));
    CHECK("{\"type\":\"array\",\"items\":{\"const\":1},\"minItems\":12}",
          FIT("[1,1,1,1,1,1,1,1,1,1,1,1]", "[1,1,1,1,1,1,1,1,1,1,1,1,1]"), NOT("[1,1,1,1,1,1,1,1,1,1,1]"));
    CHECK("{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":false}", FIT("[]", "[1]", "[1, 2]"),
          NOT("[2]", "[1,2,3]"));
    CHECK("{\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":{\"const\":3},\"minItems\":2,\"maxItems\":4}",
          FIT("[1,2]", "[1,2,3]", "[1,2,3,3]"), NOT("[1]", "[1,2,3,3,3]", "[3]"));
}

static void scalars(void **state)
{
    (void)state;
    CHECK("{\"type\":\"integer\"}", FIT("0", "-1", "123456789012345678"), NOT("00", "1.0", "-", "1e3", "\"1\""));
    CHECK("{\"type\":\"number\"}", FIT("0", "-0.5", "1e10", "12.25E-7"), NOT(".5", "1.", "1e", "0x1"));
    CHECK("{\"type\":[\"string\",\"null\"]}", FIT("null", "\"null\""), NOT("1"));
    CHECK("{\"type\":\"string\",\"nullable\":true}", FIT("null", "\"\""), NOT("1"));
    CHECK("{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}",
          FIT("\"ab\"", "\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\"", "\"\\n\\ud83d\\ude00\""),
          NOT("\"a\"", "\"abcd\"", "\"\\n\""));
    CHECK("{\"minLength\":20}", FIT("\"abcdefghijklmnopqrst\""), NOT("\"abcdefghijklmnopqrs\""));
    CHECK("{\"enum\":[\"a\\\"b\",1,2.5,null,true,[1,{\"x\":[]}]]}",
          FIT("\"a\\\"b\"", "1", "2.5", "null", "true", "[1, {\"x\": []}]"), NOT("\"a\"", "false"));
    CHECK("{\"const\":\"\xc3\xa4\"}", FIT("\"\xc3\xa4\""), NOT("\"a\""));
    CHECK("{\"anyOf\":[{\"type\":\"integer\"},{\"const\":\"x\"}]}", FIT("1", "\"x\""), NOT("\"y\""));
}

static void patterns(void **state)
{
    (void)state;
    CHECK("{\"pattern\":\"^[a-c]+x?$\"}", FIT("\"abc\"", "\"abx\""), NOT("\"\"", "\"abd\"", "\"abxx\"", "abc"));
    CHECK("{\"pattern\":\"b\"}", FIT("\"b\"", "\"abc\"", "\"\\n\\u00e4b\\\"\""), NOT("\"a\"", "\"\""));
    CHECK("{\"pattern\":\"^a|b$\"}", FIT("\"ac\"", "\"cb\""), NOT("\"ca\"", "\"bc\""));
    CHECK("{\"pattern\":\"^\\\\d{3}-\\\\w*\\\\s?(?:\\\\.|\\\\\\\\|\\\"|\\\\n)$\"}",
          FIT("\"123-ab_9 .\"", "\"000-\\\\\"", "\"000-\\\"\"", "\"000-\\n\"", "\"000-\\t.\""),
          NOT("\"12-.\"", "\"123-\\\"", "\"123-a-.\""));
    CHECK("{\"pattern\":\"^[^a-z\\\"]{2}$\"}", FIT("\"A\\\\\"", "\"\\u0001\\n\"", "\"\xc3\xa4\xe2\x82\xac\""),
          NOT("\"ab\"", "\"\\\"A\"", "\"A\""));
    CHECK("{\"pattern\":\"^.\\\\u20ac[\\\\u{1F600}-\\\\u{1F610}]$\"}", FIT("\"x\xe2\x82\xac\xf0\x9f\x98\x80\""),
          NOT("\"\\n\xe2\x82\xac\xf0\x9f\x98\x80\""));
    CHECK("{\"pattern\":\"^a{2,3}?b+?$\",\"minLength\":3,\"type\":\"string\"}", FIT("\"aab\"", "\"aaabbb\""), NOT("\"ab\""));
    CHECK("{\"pattern\":\"^[A-Z]{3}$\",\"minLength\":3,\"maxLength\":3}", FIT("\"ABC\""), NOT("\"AB\""));
}

static void formats(void **state)
{
    (void)state;
    CHECK("{\"format\":\"date\"}", FIT("\"2024-02-29\"", "\"2000-02-29\"", "\"1999-12-31\"", "\"2023-02-28\""),
          NOT("\"2023-02-29\"", "\"1900-02-29\"", "\"2023-04-31\"", "\"2023-13-01\"", "\"2023-00-10\"", "\"23-01-01\"",
              "\"2023-1-1\""));
    CHECK("{\"type\":\"string\",\"format\":\"time\"}", FIT("\"23:59:59Z\"", "\"00:00:00.123+05:30\""),
          NOT("\"24:00:00Z\"", "\"12:60:00Z\"", "\"12:00:00\""));
    CHECK("{\"format\":\"date-time\"}", FIT("\"2024-02-29T12:30:00Z\""),
          NOT("\"2024-02-30T12:30:00Z\"", "\"2024-02-29 12:30:00Z\""));
    CHECK("{\"format\":\"uuid\"}", FIT("\"123e4567-e89b-12d3-a456-426614174000\""), NOT("\"123e4567e89b12d3a456426614174000\""));
    CHECK("{\"format\":\"ipv4\"}", FIT("\"0.0.0.0\"", "\"255.249.199.99\""), NOT("\"256.0.0.1\"", "\"01.1.1.1\"", "\"1.1.1\""));
    CHECK("{\"format\":\"email\"}", FIT("\"a.b@example.org\""), NOT("\"a@b\"", "\"@example.org\"", "\"a..b@example.org\""));
    CHECK("{\"format\":\"uri\"}", FIT("\"https://example.org/a?b=c#d\""), NOT("\"example.org\""));
}

/* Whether numbers fit bounds, each tried at all places near them. */
static void bounds(void **state)
{
    static const struct {
        const char *low, *low_key, *high, *high_key;
    } cases[] = {
        { "0", "minimum", "10", "maximum" }, { "-5", "minimum", "5", "maximum" }, { "3.25", "minimum", "3.5", "maximum" },
        { "-1.5", "exclusiveMinimum", "0", "exclusiveMaximum" }, { "0", "exclusiveMinimum", "1", "maximum" },
        { "99", "minimum", "1203.5", "exclusiveMaximum" }, { "-120.75", "minimum", "-3.125", "exclusiveMaximum" },
        { "7", "minimum", "7", "maximum" }, { "9.99", "exclusiveMinimum", "10.01", "exclusiveMaximum" },
        { "-0.5", "exclusiveMinimum", "0.5", "exclusiveMaximum" }, { "0.001", "minimum", "1e2", "maximum" },
        { "1e-3", "exclusiveMinimum", NULL, NULL }, { NULL, NULL, "-12.5", "maximum" }, { "5", "exclusiveMinimum", NULL, NULL },
        { NULL, NULL, "99.9", "exclusiveMaximum" }, { "-1e30", "minimum", "1e30", "maximum" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int whole = 0; whole < 2; whole++) {
            char schema[200];
            grammar_scene scene;
            bool has_low = cases[i].low != NULL, has_high = cases[i].high != NULL;
            double low = has_low ? atof(cases[i].low) : 0, high = has_high ? atof(cases[i].high) : 0, found = 0;
            snprintf(schema, sizeof schema, "{\"type\":\"%s\"%s%s%s%s%s%s%s%s}", whole ? "integer" : "number",
                     has_low ? ",\"" : "", has_low ? cases[i].low_key : "", has_low ? "\":" : "", has_low ? cases[i].low : "",
                     has_high ? ",\"" : "", has_high ? cases[i].high_key : "", has_high ? "\":" : "",
                     has_high ? cases[i].high : "");
            int32_t code = grammar_scene_open(&scene, schema, strlen(schema), &plain_alloc);
            if (code < 0 && whole && strstr(qmi_error_text(), "no text fits")) /* no integer lies between */
                continue;
            if (code < 0)
                fail_msg("%s: %s", schema, qmi_error_text());
            for (int64_t thousandth = -130000; thousandth <= 1300000;
                 thousandth += thousandth > -12000 && thousandth < 12000 ? 5 : 125) {
                char text[40];
                double value = (double)thousandth / 1000;
                bool wanted = (!has_low || (cases[i].low_key[0] == 'e' ? value > low : value >= low)) &&
                              (!has_high || (cases[i].high_key[0] == 'e' ? value < high : value <= high));
                if (whole && thousandth % 1000 != 0)
                    continue;
                snprintf(text, sizeof text, whole ? "%.0f" : thousandth % 1000 == 0 ? "%.0f" : "%.3f", value);
                bool fits = grammar_scene_match(&scene, text, strlen(text)) == COMPLETE;
                if (fits != wanted)
                    fail_msg("%s with %s: %s", schema, text, fits ? "fits" : "does not fit");
                found += fits;
            }
            assert_true(found > 0 || whole);
            grammar_scene_close(&scene);
        }
    }
    CHECK("{\"type\":\"number\",\"multipleOf\":0.01,\"minimum\":0}", FIT("0", "1.5", "19.99"), NOT("0.001", "-1", "1e2"));
    CHECK("{\"type\":\"integer\",\"minimum\":0,\"exclusiveMinimum\":true}", FIT("1", "10"), NOT("0", "-1"));
    CHECK("{\"minimum\":1.5}", FIT("1.5", "1.50", "1.51", "2"), NOT("1.49", "1", "01.5", "1.", "-2"));
}

static void references(void **state)
{
    (void)state;
    CHECK("{\"$ref\":\"#/$defs/a~1b\",\"$defs\":{\"a/b\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/"
          "n\"}},\"n\":{\"enum\":[1,2]}}}",
          FIT("[1, 2]"), NOT("[3]"));
    CHECK("{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"},\"next\":{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":"
          "\"null\"}]}},"
          "\"required\":[\"v\",\"next\"]}",
          FIT("{\"v\": 1, \"next\": {\"v\": 2, \"next\": null}}"), NOT("{\"v\": 1, \"next\": {\"v\": 2}}"));
}

static void together(void **state)
{
    (void)state;
    CHECK("{\"allOf\":[{\"$ref\":\"#/$defs/"
          "base\"},{\"properties\":{\"b\":{\"const\":2}},\"required\":[\"b\"]}],\"$defs\":{\"base\":"
          "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":[\"a\"]}}}",
          FIT("{\"a\": 1, \"b\": 2}"), NOT("{\"a\": 1}", "{\"b\": 2}"));
    CHECK("{\"allOf\":[{\"type\":[\"number\",\"string\"],\"minimum\":3},{\"type\":[\"integer\",\"null\"],\"minimum\":5,"
          "\"maximum\":9}]}",
          FIT("5", "9"), NOT("4", "10", "5.5", "null", "\"a\""));
    CHECK("{\"$ref\":\"#/$defs/"
          "s\",\"maxLength\":3,\"description\":\"x\",\"$defs\":{\"s\":{\"type\":\"string\",\"minLength\":2}}}",
          FIT("\"ab\"", "\"abc\""), NOT("\"a\"", "\"abcd\""));
    CHECK("{\"type\":\"object\",\"properties\":{\"k\":{\"type\":\"integer\"}},\"required\":[\"k\"],\"anyOf\":[{\"properties\":{"
          "\"x\":"
          "{\"const\":1}},\"required\":[\"x\"]},{\"properties\":{\"k\":{\"minimum\":7}}}]}",
          FIT("{\"k\": 1, \"x\": 1}", "{\"k\": 7}"), NOT("{\"k\": 1}", "{\"x\": 1}"));
    CHECK("{\"allOf\":[{\"properties\":{\"a\":{\"enum\":[1,2]}},\"additionalProperties\":false},{\"properties\":{\"a\":{"
          "\"enum\":[2,3]},"
          "\"b\":true}}]}",
          FIT("{}", "{\"a\": 2}"), NOT("{\"a\": 1}", "{\"b\": 1}"));
    CHECK("{\"type\":\"string\",\"enum\":[\"a\",1,null]}", FIT("\"a\""), NOT("1", "null"));
    CHECK("{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"string\"},{\"type\":\"object\",\"properties\":{\"t\":{\"const\":1}},"
          "\"required\":[\"t\"]},{\"type\":\"object\",\"properties\":{\"t\":{\"const\":2}},\"required\":[\"t\"]},"
          "{\"type\":\"object\",\"properties\":{\"u\":{}},\"required\":[\"u\"],\"additionalProperties\":false}]}",
          FIT("1", "\"a\"", "{\"t\": 1}", "{\"t\": 2}", "{\"u\": []}"), NOT("{}", "{\"t\": 3}", "null"));
}

static void refused(void **state)
{
    static const struct {
        const char *schema, *message;
    } cases[] = {
        { "{\"type\":\"strin\"}", "#: type has to be" },
        { "{", "malformed JSON at line 1" },
        { "{\"properties\":{\"a\":{\"type\":\"array\",\"uniqueItems\":true}}}",
          "#/properties/a: keyword uniqueItems is not supported" },
        { "{\"type\":\"string\",\"maxlength\":3}", "keyword maxlength is unknown; maxLength is meant" },
        { "{\"$ref\":\"#/$defs/x\"}", "$ref names #/$defs/x, which is not there" },
        { "{\"$ref\":\"other.json\"}", "$ref can only name a place in this schema" },
        { "{\"$ref\":\"#\"}", "no text fits" },
        { "{\"minLength\":3,\"maxLength\":2}", "minLength is more than maxLength" },
        { "{\"pattern\":\"a(?=b)\"}", "pattern, character 2: of groups" },
        { "{\"pattern\":\"(a\"}", "this group is not closed" },
        { "{\"pattern\":\"a\\\\b\"}", "this escape is not supported" },
        { "{\"pattern\":\"a**\"}", "nothing to repeat" },
        { "{\"pattern\":\"x$y\"}", "^ and $ are supported" },
        { "{\"pattern\":\"^a+$\",\"maxLength\":3}", "cannot stand beside a pattern" },
        { "{\"format\":\"iri\"}", "format has to be" },
        { "{\"type\":\"integer\",\"multipleOf\":3}", "multipleOf is supported for" },
        { "{\"minimum\":3,\"maximum\":2}", "no text fits" },
        { "{\"oneOf\":[{\"type\":\"integer\"},{\"minimum\":3}]}", "cannot be told apart" },
        { "{\"oneOf\":[{\"required\":[\"a\"]},{\"required\":[\"b\"]}]}", "cannot be told apart" },
        { "{\"allOf\":[{\"pattern\":\"a\"},{\"pattern\":\"b\"}]}", "two different pattern" },
        { "{\"enum\":[\"abc\"],\"pattern\":\"b\"}", "pattern beside enum" },
        { "{\"allOf\":[{\"$ref\":\"#\"}]}", "nested too deeply" },
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
    static const char schema[] = "{\"type\":\"object\",\"properties\":{\"a\":{\"enum\":[1,\"x\"]},\"b\":{\"type\":\"array\","
                                 "\"items\":{\"$ref\":\"#\"}}},"
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
        cmocka_unit_test(any_json), cmocka_unit_test(objects), cmocka_unit_test(arrays),        cmocka_unit_test(scalars),
        cmocka_unit_test(patterns), cmocka_unit_test(formats), cmocka_unit_test(bounds),        cmocka_unit_test(references),
        cmocka_unit_test(together), cmocka_unit_test(refused), cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
