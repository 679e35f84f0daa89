/* JSON schemas to grammars: see grammar_schema.h. */
#include "text/grammar_schema.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "base/error.h"
#include "text/schema_merge.h"
#include "text/schema_number.h"
#include "text/schema_object.h"

#define NUMBER (QMI_SCHEMA_INTEGER | QMI_SCHEMA_FRACTION)

static const struct {
    const char *name;
    int types;
} types[] = { { "null", QMI_SCHEMA_NULL },    { "boolean", QMI_SCHEMA_BOOLEAN }, { "integer", QMI_SCHEMA_INTEGER },
              { "number", NUMBER },           { "string", QMI_SCHEMA_STRING },   { "array", QMI_SCHEMA_ARRAY },
              { "object", QMI_SCHEMA_OBJECT } };

/* The keywords of JSON Schema, and OpenAPI's nullable. */
static const struct {
    const char *name;
    int types; /* that it speaks of; 0: of all */
    enum { KEPT, REFUSED } use;
} keywords[] = {
    { "type", 0, KEPT },
    { "enum", 0, KEPT },
    { "const", 0, KEPT },
    { "anyOf", 0, KEPT },
    { "oneOf", 0, KEPT },
    { "$ref", 0, KEPT },
    { "nullable", 0, KEPT },
    { "properties", QMI_SCHEMA_OBJECT, KEPT },
    { "required", QMI_SCHEMA_OBJECT, KEPT },
    { "additionalProperties", QMI_SCHEMA_OBJECT, KEPT },
    { "items", QMI_SCHEMA_ARRAY, KEPT },
    { "prefixItems", QMI_SCHEMA_ARRAY, KEPT },
    { "minItems", QMI_SCHEMA_ARRAY, KEPT },
    { "maxItems", QMI_SCHEMA_ARRAY, KEPT },
    { "minLength", QMI_SCHEMA_STRING, KEPT },
    { "maxLength", QMI_SCHEMA_STRING, KEPT },
    { "allOf", 0, KEPT },
    { "not", 0, REFUSED },
    { "if", 0, REFUSED },
    { "then", 0, REFUSED },
    { "else", 0, REFUSED },
    { "$dynamicRef", 0, REFUSED },
    { "$recursiveRef", 0, REFUSED },
    { "pattern", QMI_SCHEMA_STRING, KEPT },
    { "format", QMI_SCHEMA_STRING, KEPT },
    { "minimum", NUMBER, KEPT },
    { "maximum", NUMBER, KEPT },
    { "exclusiveMinimum", NUMBER, KEPT },
    { "exclusiveMaximum", NUMBER, KEPT },
    { "multipleOf", NUMBER, KEPT },
    { "uniqueItems", QMI_SCHEMA_ARRAY, REFUSED },
    { "contains", QMI_SCHEMA_ARRAY, REFUSED },
    { "minContains", QMI_SCHEMA_ARRAY, REFUSED },
    { "maxContains", QMI_SCHEMA_ARRAY, REFUSED },
    { "additionalItems", QMI_SCHEMA_ARRAY, REFUSED },
    { "unevaluatedItems", QMI_SCHEMA_ARRAY, REFUSED },
    { "patternProperties", QMI_SCHEMA_OBJECT, REFUSED },
    { "propertyNames", QMI_SCHEMA_OBJECT, REFUSED },
    { "minProperties", QMI_SCHEMA_OBJECT, REFUSED },
    { "maxProperties", QMI_SCHEMA_OBJECT, REFUSED },
    { "dependencies", QMI_SCHEMA_OBJECT, REFUSED },
    { "dependentRequired", QMI_SCHEMA_OBJECT, REFUSED },
    { "dependentSchemas", QMI_SCHEMA_OBJECT, REFUSED },
    { "unevaluatedProperties", QMI_SCHEMA_OBJECT, REFUSED },
};

qmi_expression qmi_schema_refuse(qmi_schema *schema, const char *format, ...)
{
    char text[QMI_ERROR_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    qmi_grammar_refuse(schema->grammar, "%s, #%s: %s", schema->name, schema->path, text);
    return 0;
}

static qmi_expression call(qmi_schema *schema, qmi_json_rule rule)
{
    return qmi_json_call(schema->grammar, &schema->rules, rule);
}

/* ---- numbers of keywords ---- */

bool qmi_schema_count(qmi_schema *schema, const json_t *part, const char *keyword, uint32_t fallback, uint32_t *out)
{
    const json_t *value = json_object_get(part, keyword);
    *out = fallback;
    if (!value)
        return false;
    double number = json_number_value(value);
    if (!json_is_number(value) || number < 0 || number > QMI_GRAMMAR_COUNT || number != (double)(uint32_t)number)
        qmi_schema_refuse(schema, "%s is no whole number of 0..%u", keyword, QMI_GRAMMAR_COUNT);
    else
        *out = (uint32_t)number;
    return true;
}

static void check_order(qmi_schema *schema, uint32_t least, uint32_t most, const char *what)
{
    if (least > most)
        qmi_schema_refuse(schema, "min%s is more than max%s", what, what);
}

/* ---- types ---- */

static int type_named(qmi_schema *schema, const json_t *name)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (qmi_json_equals(name, types[i].name))
            return types[i].types;
    qmi_schema_refuse(schema, "type has to be null, boolean, integer, number, string, array or object, or an array of these");
    return 0;
}

static int type_of(const json_t *value)
{
    if (json_is_null(value) || json_is_boolean(value))
        return json_is_null(value) ? QMI_SCHEMA_NULL : QMI_SCHEMA_BOOLEAN;
    if (qmi_json_is_integer(value))
        return QMI_SCHEMA_INTEGER;
    if (json_is_real(value))
        return json_real_value(value) == (double)(int64_t)json_real_value(value) ? QMI_SCHEMA_INTEGER : QMI_SCHEMA_FRACTION;
    return qmi_json_is_string(value) ? QMI_SCHEMA_STRING : json_is_array(value) ? QMI_SCHEMA_ARRAY : QMI_SCHEMA_OBJECT;
}

/* Those of `type`; without it those of the values or those that the keywords speak of, else any. */
int qmi_schema_types(qmi_schema *schema, const json_t *part)
{
    json_t *given = json_object_get(part, "type"), *values = json_object_get(part, "enum"),
           *only = json_object_get(part, "const");
    int all = 0;
    for (size_t i = 0; json_is_array(given) && i < json_array_size(given); i++)
        all |= type_named(schema, json_array_get(given, i));
    if (given && !json_is_array(given))
        all = type_named(schema, given);
    for (size_t i = 0; !given && i < json_array_size(values); i++)
        all |= type_of(json_array_get(values, i));
    if (!given && only)
        all |= type_of(only);
    for (size_t i = 0; !given && all == 0 && i < sizeof keywords / sizeof keywords[0]; i++)
        if (json_object_get(part, keywords[i].name))
            all |= keywords[i].types;
    if (all == 0)
        all = QMI_SCHEMA_ANY;
    return json_is_true(json_object_get(part, "nullable")) ? all | QMI_SCHEMA_NULL : all;
}

static qmi_expression read_boolean(qmi_schema *schema)
{
    qmi_expression either = qmi_grammar_list(schema->grammar, QMI_EXPRESSION_ALTERNATIVES);
    qmi_grammar_add(schema->grammar, either, qmi_grammar_word(schema->grammar, "true"));
    qmi_grammar_add(schema->grammar, either, qmi_grammar_word(schema->grammar, "false"));
    return either;
}

/* ---- arrays ---- */

static qmi_expression item_after_comma(qmi_schema *schema, qmi_expression item)
{
    qmi_expression more = qmi_grammar_list(schema->grammar, QMI_EXPRESSION_SEQUENCE);
    qmi_grammar_add(schema->grammar, more, qmi_grammar_word(schema->grammar, ","));
    qmi_grammar_add(schema->grammar, more, call(schema, QMI_JSON_BLANK));
    qmi_grammar_add(schema->grammar, more, item);
    return more;
}

/* What an array has from its item `at` on, each with a comma before it but the first of all. Nested, since each item that may be
 * missing takes all behind it along. */
static qmi_expression read_items(qmi_schema *schema, const json_t *part, uint32_t at, uint32_t least, uint32_t most)
{
    qmi_grammar *grammar = schema->grammar;
    const json_t *fixed = json_object_get(part, "prefixItems"), *items = json_object_get(part, "items");
    qmi_expression these = qmi_grammar_list(grammar, QMI_EXPRESSION_SEQUENCE);
    if (at >= most || grammar->code < 0)
        return 0;
    if (at < json_array_size(fixed)) {
        qmi_expression item = qmi_schema_read(schema, json_array_get(fixed, at), "/prefixItems");
        qmi_grammar_add(grammar, these, at ? item_after_comma(schema, item) : item);
        qmi_grammar_add(grammar, these, read_items(schema, part, at + 1, least, most));
        return qmi_grammar_repeat(grammar, these, at < least, 1);
    }
    if (json_is_false(items))
        return at < least ? qmi_grammar_never(grammar) : 0;
    uint32_t rule = qmi_grammar_rule_new(grammar, "item", 4);
    qmi_expression item = items ? qmi_schema_read(schema, items, "/items") : call(schema, QMI_JSON_VALUE);
    qmi_grammar_define(grammar, rule, item);
    uint32_t more_least = at < least ? least - at : 0, more_most = most == QMI_GRAMMAR_ENDLESS ? most : most - at;
    if (at > 0)
        return qmi_grammar_repeat(grammar, item_after_comma(schema, qmi_grammar_call(grammar, rule)), more_least, more_most);
    qmi_grammar_add(grammar, these, qmi_grammar_call(grammar, rule));
    qmi_grammar_add(grammar, these,
                    qmi_grammar_repeat(grammar, item_after_comma(schema, qmi_grammar_call(grammar, rule)),
                                       more_least ? more_least - 1 : 0,
                                       more_most == QMI_GRAMMAR_ENDLESS ? more_most : more_most - 1));
    return qmi_grammar_repeat(grammar, these, more_least > 0, 1);
}

static qmi_expression read_array(qmi_schema *schema, const json_t *part)
{
    qmi_grammar *grammar = schema->grammar;
    const json_t *fixed = json_object_get(part, "prefixItems");
    uint32_t least, most;
    qmi_schema_count(schema, part, "minItems", 0, &least);
    qmi_schema_count(schema, part, "maxItems", QMI_GRAMMAR_ENDLESS, &most);
    check_order(schema, least, most, "Items");
    if (fixed && (!json_is_array(fixed) || json_array_size(fixed) > QMI_GRAMMAR_DEPTH))
        return qmi_schema_refuse(schema, "prefixItems has to be an array of at most %d schemas", QMI_GRAMMAR_DEPTH);
    qmi_expression items = read_items(schema, part, 0, least, most);
    qmi_expression whole = qmi_grammar_list(grammar, QMI_EXPRESSION_SEQUENCE);
    qmi_grammar_add(grammar, whole, qmi_grammar_word(grammar, "["));
    if (items)
        qmi_grammar_add(grammar, whole, call(schema, QMI_JSON_BLANK));
    qmi_grammar_add(grammar, whole, items);
    qmi_grammar_add(grammar, whole, call(schema, QMI_JSON_BLANK));
    qmi_grammar_add(grammar, whole, qmi_grammar_word(grammar, "]"));
    return whole;
}

/* ---- a schema ---- */

static qmi_expression read_type(qmi_schema *schema, const json_t *part, int type)
{
    switch (type) {
    case QMI_SCHEMA_NULL:
        return qmi_grammar_word(schema->grammar, "null");
    case QMI_SCHEMA_BOOLEAN:
        return read_boolean(schema);
    case QMI_SCHEMA_STRING:
        return qmi_schema_string(schema, part);
    case QMI_SCHEMA_ARRAY:
        return read_array(schema, part);
    default:
        return qmi_schema_object(schema, part);
    }
}

/* Whether a value of enum fits the keywords beside it; those that it takes more than a look to tell are refused. */
static bool value_fits(qmi_schema *schema, const json_t *part, const json_t *value)
{
    int type = type_of(value);
    if (!(qmi_schema_types(schema, part) & type) && json_object_get(part, "type"))
        return false;
    for (size_t i = 0; i < sizeof keywords / sizeof keywords[0]; i++)
        if (json_object_get(part, keywords[i].name) && keywords[i].types & type)
            qmi_schema_refuse(schema, "%s beside enum or const is not supported", keywords[i].name);
    return true;
}

static qmi_expression read_values(qmi_schema *schema, const json_t *part)
{
    qmi_grammar *grammar = schema->grammar;
    const json_t *one = json_object_get(part, "const"), *several = json_object_get(part, "enum");
    qmi_expression any = qmi_grammar_list(grammar, QMI_EXPRESSION_ALTERNATIVES);
    if (several && !json_is_array(several))
        return qmi_schema_refuse(schema, "enum has to be an array");
    for (size_t i = 0; i < (several ? json_array_size(several) : 1); i++) {
        const json_t *value = several ? json_array_get(several, i) : one;
        if ((!one || json_equal(one, value)) && value_fits(schema, part, value))
            qmi_grammar_add(grammar, any, qmi_json_literal(grammar, value));
    }
    return any;
}

static qmi_expression read_alternatives(qmi_schema *schema, const json_t *list, const char *keyword)
{
    char name[32];
    qmi_expression any = qmi_grammar_list(schema->grammar, QMI_EXPRESSION_ALTERNATIVES);
    if (!json_is_array(list) || json_array_size(list) == 0)
        return qmi_schema_refuse(schema, "%s has to be an array of schemas", keyword);
    if (keyword[0] == 'o' && !qmi_schema_exclusive(schema, list))
        return qmi_schema_refuse(schema,
                                 "the alternatives of oneOf cannot be told apart, so JSON might fit two of them; use anyOf, or "
                                 "give them different types or a required member that differs");
    for (size_t i = 0; i < json_array_size(list); i++) {
        snprintf(name, sizeof name, "/%s/%zu", keyword, i);
        qmi_grammar_add(schema->grammar, any, qmi_schema_read(schema, json_array_get(list, i), name));
    }
    return any;
}

/* The schema that a JSON pointer ("#/$defs/item") names. */
const json_t *qmi_schema_target(qmi_schema *schema, const json_t *reference)
{
    qmi_view pointer = json_is_string(reference) ? qmi_json_text(reference) : qmi_view_of("");
    json_t *at = schema->root;
    char name[256];
    if (pointer.length == 0 || pointer.data[0] != '#' || (pointer.length > 1 && pointer.data[1] != '/')) {
        qmi_schema_refuse(schema, "$ref can only name a place in this schema, as #/$defs/name");
        return NULL;
    }
    for (size_t i = 1; i < pointer.length && at;) {
        size_t length = 0;
        for (i++; i < pointer.length && pointer.data[i] != '/' && length + 1 < sizeof name; i++) {
            bool escaped = pointer.data[i] == '~' && i + 1 < pointer.length;
            name[length++] = !escaped ? pointer.data[i] : pointer.data[i + 1] == '1' ? '/' : '~';
            i += escaped;
        }
        name[length] = 0;
        size_t index = 0;
        bool number = length > 0 && length < 9;
        for (size_t d = 0; d < length && number; d++) {
            number = name[d] >= '0' && name[d] <= '9';
            index = index * 10 + (size_t)(name[d] - '0');
        }
        at = json_is_array(at) ? (number ? json_array_get(at, index) : NULL) : json_object_get(at, name);
    }
    if (!at)
        qmi_schema_refuse(schema, "$ref names %.*s, which is not there", (int)(pointer.length < 200 ? pointer.length : 200),
                          pointer.data);
    return at;
}

/* A rule of its own for a schema that others refer to, made once, so that it may refer to itself. */
static qmi_expression read_reference(qmi_schema *schema, const json_t *reference)
{
    qmi_grammar *grammar = schema->grammar;
    const json_t *target = qmi_schema_target(schema, reference);
    char path[sizeof schema->path];
    for (size_t i = 0; i < schema->known_count; i++)
        if (schema->known[i].schema == target)
            return qmi_grammar_call(grammar, schema->known[i].rule);
    if (target && grammar->code >= 0)
        grammar->code = qmi_reserve(&grammar->alloc, (void **)&schema->known, &schema->known_capacity, schema->known_count + 1,
                                    sizeof *schema->known, "JSON schema");
    if (grammar->code < 0)
        return 0;
    qmi_view name = qmi_json_text(reference);
    uint32_t rule = qmi_grammar_rule_new(grammar, name.data, name.length);
    schema->known[schema->known_count++] = (struct qmi_schema_rule){ target, rule };
    memcpy(path, schema->path, sizeof path);
    schema->path[0] = 0;
    qmi_expression body = qmi_schema_read(schema, target, name.data + 1);
    memcpy(schema->path, path, sizeof path);
    qmi_grammar_define(grammar, rule, body);
    return qmi_grammar_call(grammar, rule);
}

/* Refuses what restricts and is not understood, and restrictions whose spelling differs in the case of letters only. */
void qmi_schema_check(qmi_schema *schema, const json_t *part)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)part, key, value) {
        for (size_t i = 0; i < sizeof keywords / sizeof keywords[0]; i++) {
            bool same = strcmp(key, keywords[i].name) == 0;
            if (same && keywords[i].use == REFUSED)
                qmi_schema_refuse(schema, "keyword %s is not supported", key);
            else if (!same && strcasecmp(key, keywords[i].name) == 0)
                qmi_schema_refuse(schema, "keyword %s is unknown; %s is meant", key, keywords[i].name);
        }
    }
}

bool qmi_schema_restricts(const char *keyword)
{
    for (size_t i = 0; i < sizeof keywords / sizeof keywords[0]; i++)
        if (strcmp(keyword, keywords[i].name) == 0)
            return true;
    return false;
}

static size_t count_keywords(const json_t *part)
{
    size_t count = 0;
    for (size_t i = 0; i < sizeof keywords / sizeof keywords[0]; i++)
        count += json_object_get(part, keywords[i].name) != NULL;
    return count;
}

static qmi_expression read_keywords(qmi_schema *schema, const json_t *part)
{
    qmi_grammar *grammar = schema->grammar;
    size_t count = count_keywords(part);
    json_t *any = json_object_get(part, "anyOf"), *one = json_object_get(part, "oneOf"),
           *reference = json_object_get(part, "$ref");
    qmi_schema_check(schema, part);
    if (grammar->code < 0)
        return 0;
    if (json_object_get(part, "allOf") || ((any || one || reference) && count > 1)) {
        json_t *flat = qmi_schema_flatten(schema, part, 0);
        qmi_expression read = flat ? qmi_schema_read(schema, flat, "") : 0;
        json_decref(flat);
        return read;
    }
    if (reference)
        return read_reference(schema, reference);
    if (any || one)
        return read_alternatives(schema, any ? any : one, any ? "anyOf" : "oneOf");
    if (json_object_get(part, "const") || json_object_get(part, "enum"))
        return read_values(schema, part);
    int all = qmi_schema_types(schema, part);
    if (all == QMI_SCHEMA_ANY && count == 0)
        return call(schema, QMI_JSON_VALUE);
    qmi_expression each = qmi_grammar_list(grammar, QMI_EXPRESSION_ALTERNATIVES);
    if (all & NUMBER)
        qmi_grammar_add(grammar, each, qmi_schema_number(schema, part, !(all & QMI_SCHEMA_FRACTION)));
    for (int type = 1; type <= QMI_SCHEMA_OBJECT; type *= 2)
        if (all & type & ~NUMBER)
            qmi_grammar_add(grammar, each, read_type(schema, part, type));
    return each;
}

size_t qmi_schema_enter(qmi_schema *schema, const char *name)
{
    size_t length = strlen(schema->path);
    snprintf(schema->path + length, sizeof schema->path - length, "%s", name);
    return length;
}

void qmi_schema_leave(qmi_schema *schema, size_t entered)
{
    schema->path[entered] = 0;
}

qmi_expression qmi_schema_read(qmi_schema *schema, const json_t *part, const char *name)
{
    qmi_expression read = 0;
    if (schema->grammar->code < 0)
        return 0;
    size_t entered = qmi_schema_enter(schema, name);
    if (schema->depth == QMI_GRAMMAR_DEPTH) {
        qmi_schema_refuse(schema, "schemas are nested too deeply");
    } else if (json_is_true(part)) {
        read = call(schema, QMI_JSON_VALUE);
    } else if (json_is_false(part)) {
        read = qmi_grammar_never(schema->grammar);
    } else if (json_is_object(part)) {
        schema->depth++;
        read = read_keywords(schema, part);
        schema->depth--;
    } else {
        qmi_schema_refuse(schema, "a schema has to be an object, true or false");
    }
    qmi_schema_leave(schema, entered);
    return read;
}

void qmi_schema_start(qmi_schema *schema, qmi_grammar *grammar, json_t *root)
{
    *schema = (qmi_schema){ .grammar = grammar, .root = root, .name = "JSON schema" };
}

void qmi_schema_end(qmi_schema *schema)
{
    qmi_delete(&schema->grammar->alloc, schema->known);
    schema->known = NULL;
}

qmi_expression qmi_schema_read_text(qmi_grammar *grammar, const char *text, size_t length)
{
    json_t *root;
    qmi_schema schema;
    int32_t code = qmi_json_parse((qmi_view){ text, length }, "JSON schema", &root);
    if (code == QM_ERROR_MEMORY && grammar->code >= 0)
        grammar->code = code;
    if (code < 0) {
        qmi_grammar_refuse(grammar, "%s", qmi_error_text());
        return 0;
    }
    qmi_schema_start(&schema, grammar, root);
    qmi_expression read = json_is_object(root) && json_object_size(root) == 0
                              ? qmi_json_call(grammar, &schema.rules, QMI_JSON_OBJECT)
                              : qmi_schema_read(&schema, root, "");
    qmi_schema_end(&schema);
    json_decref(root);
    return read;
}
