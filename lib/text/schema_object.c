/* Objects of a JSON schema to expressions.
 *
 * Members come in the order of `properties`, then required ones that it does not name, then additional ones. From each member on
 * there is a rule for what may follow it, so that the grammar grows with their number and not with that of their subsets. */
#include "text/schema_object.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "text/unicode.h"

typedef struct member {
    const char *key;
    const json_t *schema; /* NULL: any value */
    bool required;
    uint32_t rule;        /* of key and value */
} member;

typedef struct object {
    qmi_schema *schema;
    qmi_grammar *grammar;
    member *members;
    size_t count;
    bool has_additional;
    uint32_t additional_rule; /* one more member */
} object;

static qmi_expression call(const object *object, qmi_json_rule rule)
{
    return qmi_json_call(object->grammar, &object->schema->rules, rule);
}

/* ---- members ---- */

static bool is_required(const json_t *part, const char *key)
{
    const json_t *required = json_object_get(part, "required");
    for (size_t i = 0; i < json_array_size(required); i++)
        if (qmi_json_equals(json_array_get(required, i), key))
            return true;
    return false;
}

static bool is_listed(const object *object, const char *key)
{
    for (size_t i = 0; i < object->count; i++)
        if (strcmp(object->members[i].key, key) == 0)
            return true;
    return false;
}

static void list_members(object *object, const json_t *part)
{
    json_t *properties = json_object_get(part, "properties"), *required = json_object_get(part, "required"), *value;
    const char *key;
    if ((properties && !json_is_object(properties)) || (required && !json_is_array(required))) {
        qmi_schema_refuse(object->schema, "%s", properties && !json_is_object(properties) ? "properties has to be an object"
                          : "required has to be an array of names");
        return;
    }
    object->members = qmi_new(&object->grammar->alloc, json_object_size(properties) + json_array_size(required),
                              sizeof *object->members, "JSON schema");
    if (!object->members) {
        object->grammar->code = QM_ERROR_MEMORY;
        return;
    }
    json_object_foreach(properties, key, value)
        if (!json_is_false(value) || is_required(part, key))
            object->members[object->count++] = (member){ .key = key, .schema = value, .required = is_required(part, key) };
    for (size_t i = 0; i < json_array_size(required); i++) {
        const json_t *name = json_array_get(required, i), *additional = json_object_get(part, "additionalProperties");
        if (!json_is_string(name))
            qmi_schema_refuse(object->schema, "required has to be an array of names");
        else if (!json_object_get(properties, json_string_value(name)) && !is_listed(object, json_string_value(name)))
            object->members[object->count++] = (member){ .key = json_string_value(name), .schema = additional, .required = true };
    }
}

/* key ":" value */
static qmi_expression key_and_value(object *object, qmi_expression key, const json_t *schema, const char *name)
{
    qmi_grammar *grammar = object->grammar;
    qmi_expression whole = qmi_grammar_list(grammar, QMI_EXPRESSION_SEQUENCE);
    qmi_grammar_add(grammar, whole, key);
    qmi_grammar_add(grammar, whole, qmi_grammar_word(grammar, ":"));
    qmi_grammar_add(grammar, whole, qmi_grammar_repeat(grammar, qmi_grammar_word(grammar, " "), 0, 1));
    qmi_grammar_add(grammar, whole, schema ? qmi_schema_read(object->schema, schema, name) : call(object, QMI_JSON_VALUE));
    return whole;
}

static void define_members(object *object)
{
    for (size_t i = 0; i < object->count && object->grammar->code >= 0; i++) {
        member *member = &object->members[i];
        char name[64];
        snprintf(name, sizeof name, "/properties/%s", member->key);
        member->rule = qmi_grammar_rule_new(object->grammar, member->key, strlen(member->key));
        qmi_grammar_define(
            object->grammar, member->rule,
            key_and_value(object, qmi_json_literal_text(object->grammar, qmi_view_of(member->key)), member->schema, name));
    }
}

/* ---- keys of additional members ---- */

static int compare_keys(const void *a, const void *b)
{
    return strcmp(((const member *)a)->key, ((const member *)b)->key);
}

#define KEYS_DEPTH 100 /* code points that an additional key may share with a known one */
#define KEYS_APART 256 /* code points that known keys may go on with at one place */

static const char escaped[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";

/* A character of a key that is none of `except`, or its short escape: no \uXXXX, by which a known key could be written in another
 * way. */
static qmi_expression key_character(qmi_grammar *grammar, const qmi_code_points *except, size_t count)
{
    qmi_code_points ranges[KEYS_APART + 3] = { { 0, 0x1F }, { '"', '"' }, { '\\', '\\' } }, shorts[8];
    size_t short_count = 0;
    for (size_t e = 0; e < count; e++)
        ranges[3 + e] = except[e];
    for (size_t i = 0; escaped[i]; i++) {
        bool excepted = false;
        for (size_t e = 0; e < count; e++)
            excepted = excepted || except[e].low == (uint8_t)escaped[i];
        if (!excepted)
            shorts[short_count++] = (qmi_code_points){ (uint8_t)letters[i], (uint8_t)letters[i] };
    }
    qmi_expression any = qmi_grammar_list(grammar, QMI_EXPRESSION_ALTERNATIVES);
    qmi_grammar_add(grammar, any, qmi_grammar_class(grammar, ranges, count + 3, true));
    qmi_grammar_add(grammar, any, qmi_grammar_both(grammar, qmi_grammar_word(grammar, "\\"),
                                                   qmi_grammar_class(grammar, shorts, short_count, false)));
    return any;
}

/* The code point as key_character writes it; never, if it does not. */
static qmi_expression key_literal(qmi_grammar *grammar, const char *bytes, size_t length)
{
    const char *found = strchr(escaped, bytes[0]);
    if (!found)
        return (uint8_t)bytes[0] < 0x20 ? qmi_grammar_never(grammar) : qmi_grammar_literal(grammar, bytes, length);
    return qmi_grammar_literal(grammar, (const char[]){ '\\', letters[found - escaped] }, 2);
}

/* What may follow a key's first `start` bytes, with the closing mark, so that the key is none of the members first .. end - 1,
 * which are in order and begin with those bytes. */
static qmi_expression other_key(object *object, size_t first, size_t end, size_t start, int depth)
{
    qmi_grammar *grammar = object->grammar;
    qmi_code_points known[KEYS_APART];
    size_t known_count = 0;
    qmi_expression any = qmi_grammar_list(grammar, QMI_EXPRESSION_ALTERNATIVES);
    bool is_key = first < end && object->members[first].key[start] == 0;
    if (!is_key)
        qmi_grammar_add(grammar, any, qmi_grammar_word(grammar, "\""));
    first += is_key;
    for (size_t after; first < end && grammar->code >= 0; first = after) {
        const char *bytes = object->members[first].key + start;
        int32_t length;
        uint32_t c = qmi_unicode_decode(bytes, &length);
        for (after = first + 1; after < end && memcmp(object->members[after].key + start, bytes, (size_t)length) == 0; after++)
            ;
        if (known_count == KEYS_APART) {
            qmi_schema_refuse(object->schema, "too many properties beside additionalProperties");
            break;
        }
        known[known_count++] = (qmi_code_points){ c, c };
        if (depth < KEYS_DEPTH)
            qmi_grammar_add(grammar, any, qmi_grammar_both(grammar, key_literal(grammar, bytes, (size_t)length),
                                                           other_key(object, first, after, start + (size_t)length, depth + 1)));
    }
    qmi_expression rest = qmi_grammar_list(grammar, QMI_EXPRESSION_SEQUENCE);
    qmi_grammar_add(grammar, rest, key_character(grammar, known, known_count));
    qmi_grammar_add(grammar, rest, qmi_grammar_repeat(grammar, key_character(grammar, NULL, 0), 0, QMI_GRAMMAR_ENDLESS));
    qmi_grammar_add(grammar, rest, qmi_grammar_word(grammar, "\""));
    qmi_grammar_add(grammar, any, rest);
    return any;
}

/* A string that is none of the members' keys. The members are put in order for it, so they have to be defined already. */
static qmi_expression additional_key(object *object, member *sorted)
{
    struct object by_key = *object;
    if (object->count == 0)
        return call(object, QMI_JSON_STRING);
    memcpy(sorted, object->members, object->count * sizeof *sorted);
    qsort(sorted, object->count, sizeof *sorted, compare_keys);
    by_key.members = sorted;
    return qmi_grammar_both(object->grammar, qmi_grammar_word(object->grammar, "\""), other_key(&by_key, 0, by_key.count, 0, 0));
}

static void define_additional(object *object, const json_t *part)
{
    const json_t *additional = json_object_get(part, "additionalProperties");
    if (json_is_false(additional) || (!additional && json_object_get(part, "properties")))
        return;
    member *sorted = qmi_new(&object->grammar->alloc, object->count, sizeof *sorted, "JSON schema");
    if (!sorted) {
        object->grammar->code = QM_ERROR_MEMORY;
        return;
    }
    object->has_additional = true;
    object->additional_rule = qmi_grammar_rule_new(object->grammar, "member", 6);
    qmi_expression body = key_and_value(object, additional_key(object, sorted), additional, "/additionalProperties");
    qmi_grammar_define(object->grammar, object->additional_rule, body);
    qmi_delete(&object->grammar->alloc, sorted);
}

/* ---- what follows what ---- */

static qmi_expression comma_and(object *object, uint32_t rule)
{
    qmi_expression more = qmi_grammar_list(object->grammar, QMI_EXPRESSION_SEQUENCE);
    qmi_grammar_add(object->grammar, more, qmi_grammar_word(object->grammar, ","));
    qmi_grammar_add(object->grammar, more, call(object, QMI_JSON_BLANK));
    qmi_grammar_add(object->grammar, more, qmi_grammar_call(object->grammar, rule));
    return more;
}

static qmi_expression more_additional(object *object)
{
    if (!object->has_additional)
        return 0;
    return qmi_grammar_repeat(object->grammar, comma_and(object, object->additional_rule), 0, QMI_GRAMMAR_ENDLESS);
}

/* Rules `tails` + i: what follows a member that is before member i. */
static uint32_t define_tails(object *object)
{
    qmi_grammar *grammar = object->grammar;
    uint32_t tails = (uint32_t)grammar->rule_count;
    for (size_t i = 0; i <= object->count; i++)
        qmi_grammar_rule_new(grammar, "members", 7);
    for (size_t i = 0; i < object->count && grammar->code >= 0; i++) {
        const member *member = &object->members[i];
        qmi_expression this = comma_and(object, member->rule);
        qmi_grammar_define(grammar, tails + (uint32_t)i,
                           qmi_grammar_both(grammar, qmi_grammar_repeat(grammar, this, member->required, 1),
                                            qmi_grammar_call(grammar, tails + (uint32_t)i + 1)));
    }
    qmi_grammar_define(grammar, tails + (uint32_t)object->count, more_additional(object));
    return tails;
}

/* All members: each that only optional ones stand before may be the first. */
static qmi_expression all_members(object *object, bool *may_be_none)
{
    qmi_grammar *grammar = object->grammar;
    uint32_t tails = define_tails(object);
    qmi_expression any = qmi_grammar_list(grammar, QMI_EXPRESSION_ALTERNATIVES);
    bool all_optional = true;
    for (size_t i = 0; i < object->count && all_optional && grammar->code >= 0; i++) {
        qmi_grammar_add(grammar, any, qmi_grammar_both(grammar, qmi_grammar_call(grammar, object->members[i].rule),
                                                       qmi_grammar_call(grammar, tails + (uint32_t)i + 1)));
        all_optional = !object->members[i].required;
    }
    if (all_optional && object->has_additional)
        qmi_grammar_add(grammar, any,
                        qmi_grammar_both(grammar, qmi_grammar_call(grammar, object->additional_rule), more_additional(object)));
    *may_be_none = all_optional;
    return any;
}

qmi_expression qmi_schema_object(qmi_schema *schema, const json_t *part)
{
    qmi_grammar *grammar = schema->grammar;
    object object = { .schema = schema, .grammar = grammar };
    bool may_be_none = false;
    list_members(&object, part);
    define_members(&object);
    if (grammar->code >= 0)
        define_additional(&object, part);
    qmi_expression members = grammar->code >= 0 ? all_members(&object, &may_be_none) : 0;
    qmi_expression some = qmi_grammar_both(grammar, call(&object, QMI_JSON_BLANK), members);
    qmi_expression whole = qmi_grammar_list(grammar, QMI_EXPRESSION_SEQUENCE);
    qmi_grammar_add(grammar, whole, qmi_grammar_word(grammar, "{"));
    qmi_grammar_add(grammar, whole, qmi_grammar_repeat(grammar, some, !may_be_none, 1));
    qmi_grammar_add(grammar, whole, call(&object, QMI_JSON_BLANK));
    qmi_grammar_add(grammar, whole, qmi_grammar_word(grammar, "}"));
    qmi_delete(&grammar->alloc, object.members);
    return whole;
}
