/* Schemas together: see schema_merge.h. */
#include "text/schema_merge.h"

#include <string.h>

#define ALTERNATIVES_MOST 256 /* of one schema, after those beside each other were multiplied out */

static json_t *merge(qmi_schema *schema, json_t *a, json_t *b, int depth);

/* Sets a key to a value whose reference it takes; false, and a failure, when there is no memory. */
static bool put(qmi_schema *schema, json_t *object, const char *key, json_t *value)
{
    if (object && value && json_object_set_new_nocheck(object, key, value) == 0)
        return true;
    if (!object)
        json_decref(value);
    if (schema->grammar->code >= 0)
        schema->grammar->code = QM_ERROR_MEMORY;
    return false;
}

static json_t *refuse_both(qmi_schema *schema, const char *keyword)
{
    qmi_schema_refuse(schema, "two different %s hold at once, which is not supported", keyword);
    return NULL;
}

/* ---- single keywords ---- */

static bool is_listed(const json_t *list, const json_t *value)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_equal(json_array_get(list, i), value))
            return true;
    return false;
}

static json_t *as_list(json_t *value)
{
    json_t *list = json_is_array(value) ? json_incref(value) : json_array();
    if (list && !json_is_array(value))
        json_array_append(list, value);
    return list;
}

static bool is_type(const json_t *name, const char *type)
{
    return qmi_json_equals(name, type);
}

/* Types that both allow. An integer is a number, too. */
static json_t *merge_types(json_t *a, json_t *b)
{
    json_t *one = as_list(a), *other = as_list(b), *both = json_array(), *integer = json_string("integer");
    for (size_t i = 0; i < json_array_size(one); i++) {
        json_t *type = json_array_get(one, i);
        if (is_listed(other, type) && !is_listed(both, type))
            json_array_append(both, type);
        for (size_t k = 0; k < json_array_size(other); k++) {
            const json_t *against = json_array_get(other, k);
            bool narrows = (is_type(type, "number") && is_type(against, "integer")) ||
                           (is_type(type, "integer") && is_type(against, "number"));
            if (narrows && !is_listed(both, integer))
                json_array_append(both, integer);
        }
    }
    json_decref(one);
    json_decref(other);
    json_decref(integer);
    return both;
}

static json_t *merge_lists(json_t *a, json_t *b, bool all)
{
    json_t *both = json_array();
    for (size_t i = 0; i < json_array_size(a); i++)
        if (all || is_listed(b, json_array_get(a, i)))
            json_array_append(both, json_array_get(a, i));
    for (size_t i = 0; all && i < json_array_size(b); i++)
        if (!is_listed(a, json_array_get(b, i)))
            json_array_append(both, json_array_get(b, i));
    return both;
}

static json_t *both_of(json_t *a, json_t *b)
{
    json_t *all = json_object(), *list = json_array();
    if (!a || !b || json_equal(a, b)) {
        json_decref(all);
        json_decref(list);
        return json_incref(a ? a : b);
    }
    json_array_append(list, a);
    json_array_append(list, b);
    json_object_set_new(all, "allOf", list);
    return all;
}

/* The value of a keyword that both have, as a new reference; NULL: they cannot hold together. */
static json_t *merge_keyword(qmi_schema *schema, const char *key, json_t *a, json_t *b)
{
    static const char *const most[] = { "minimum", "exclusiveMinimum", "minLength", "minItems" };
    static const char *const least[] = { "maximum", "exclusiveMaximum", "maxLength", "maxItems" };
    if (json_equal(a, b))
        return json_incref(a);
    for (size_t i = 0; i < 4; i++) {
        bool takes_most = strcmp(key, most[i]) == 0, takes_least = strcmp(key, least[i]) == 0;
        if ((takes_most || takes_least) && json_is_number(a) && json_is_number(b))
            return json_incref((json_number_value(a) > json_number_value(b)) == takes_most ? a : b);
    }
    if (strcmp(key, "type") == 0)
        return merge_types(a, b);
    if (strcmp(key, "enum") == 0 || strcmp(key, "required") == 0)
        return merge_lists(a, b, key[0] == 'r');
    if (strcmp(key, "items") == 0 || strcmp(key, "additionalProperties") == 0)
        return both_of(a, b);
    return qmi_schema_restricts(key) ? refuse_both(schema, key) : json_incref(a);
}

/* ---- whole schemas ---- */

/* What one schema asks of a member: its property, else that of additional ones. NULL: nothing. */
static json_t *member_of(const json_t *part, const char *key)
{
    json_t *property = json_object_get(json_object_get(part, "properties"), key);
    return property ? property : json_object_get(part, "additionalProperties");
}

static void merge_properties(qmi_schema *schema, const json_t *a, const json_t *b, json_t *out)
{
    const json_t *parts[] = { a, b };
    json_t *all = json_object(), *value;
    const char *key;
    for (int i = 0; i < 2; i++) {
        json_object_foreach(json_object_get(parts[i], "properties"), key, value) {
            if (!json_object_get(all, key))
                put(schema, all, key, both_of(member_of(a, key), member_of(b, key)));
        }
    }
    put(schema, out, "properties", all);
}

/* Of two schemas without $ref, allOf, anyOf and oneOf. */
static json_t *merge_plain(qmi_schema *schema, const json_t *a, json_t *b)
{
    json_t *out = json_copy((json_t *)(uintptr_t)a), *value;
    const char *key;
    bool object = json_object_get(a, "properties") || json_object_get(b, "properties");
    if ((json_object_get(a, "prefixItems") || json_object_get(b, "prefixItems")) && json_object_get(a, "items") &&
        json_object_get(b, "items")) {
        json_decref(out);
        return refuse_both(schema, "items beside prefixItems");
    }
    json_object_foreach(b, key, value) {
        json_t *old = json_object_get(a, key);
        if (strcmp(key, "properties") == 0)
            continue;
        json_t *both = old ? merge_keyword(schema, key, old, value) : json_incref(value);
        if (!both || !put(schema, out, key, both)) {
            json_decref(out);
            return NULL;
        }
    }
    if (object)
        merge_properties(schema, a, b, out);
    return out;
}

static const char *union_of(const json_t *part)
{
    return json_object_get(part, "anyOf") ? "anyOf" : json_object_get(part, "oneOf") ? "oneOf" : NULL;
}

/* Each alternative of `a`, which has nothing else, with `b`. */
static json_t *merge_alternatives(qmi_schema *schema, json_t *a, json_t *b, bool first, int depth)
{
    const char *name = union_of(a);
    const json_t *list = json_object_get(a, name);
    json_t *out = json_object(), *all = json_array();
    for (size_t i = 0; i < json_array_size(list) && schema->grammar->code >= 0; i++) {
        json_t *alternative = qmi_schema_flatten(schema, json_array_get(list, i), depth + 1);
        json_t *merged = alternative ? merge(schema, first ? alternative : b, first ? b : alternative, depth + 1) : NULL;
        json_decref(alternative);
        if (json_array_append_new(all, merged) < 0)
            break;
    }
    if (json_array_size(list) > ALTERNATIVES_MOST)
        qmi_schema_refuse(schema, "more than %d alternatives", ALTERNATIVES_MOST);
    put(schema, out, name, all);
    if (schema->grammar->code >= 0)
        return out;
    json_decref(out);
    return NULL;
}

/* Of two flat schemas. */
static json_t *merge(qmi_schema *schema, json_t *a, json_t *b, int depth)
{
    if (depth > QMI_GRAMMAR_DEPTH / 2) {
        qmi_schema_refuse(schema, "schemas that hold together are nested too deeply");
        return NULL;
    }
    if (json_is_true(a) || json_is_false(b))
        return json_incref(b);
    if (json_is_true(b) || json_is_false(a))
        return json_incref(a);
    if (union_of(a))
        return merge_alternatives(schema, a, b, true, depth);
    if (union_of(b))
        return merge_alternatives(schema, b, a, false, depth);
    return merge_plain(schema, a, b);
}

/* Takes over `all` and `more`. */
static json_t *merge_into(qmi_schema *schema, json_t *all, json_t *more, int depth)
{
    json_t *merged = all && more ? merge(schema, all, more, depth) : NULL;
    json_decref(all);
    json_decref(more);
    return merged;
}

/* const as enum, nullable as a type. */
static void make_uniform(json_t *part)
{
    json_t *only = json_object_get(part, "const"), *type = json_object_get(part, "type");
    if (only && !json_object_get(part, "enum")) {
        json_object_set_new(part, "enum", json_pack("[O]", only));
        json_object_del(part, "const");
    }
    if (type && json_is_true(json_object_get(part, "nullable"))) {
        json_t *types = json_array(), *given = as_list(type);
        json_array_extend(types, given);
        json_array_append_new(types, json_string("null"));
        json_object_set_new(part, "type", types);
        json_decref(given);
    }
    json_object_del(part, "nullable");
}

json_t *qmi_schema_flatten(qmi_schema *schema, const json_t *part, int depth)
{
    static const char *const apart[] = { "$ref", "allOf", "anyOf", "oneOf" };
    if (schema->grammar->code < 0 || json_is_boolean(part))
        return schema->grammar->code < 0 ? NULL : json_incref((json_t *)(uintptr_t)part);
    if (!json_is_object(part) || depth > QMI_GRAMMAR_DEPTH / 2) {
        qmi_schema_refuse(schema, json_is_object(part) ? "schemas that hold together are nested too deeply"
                                                       : "a schema has to be an object, true or false");
        return NULL;
    }
    json_t *all = json_copy((json_t *)(uintptr_t)part), *list = json_object_get(part, "allOf");
    for (size_t i = 0; i < 4; i++)
        json_object_del(all, apart[i]);
    make_uniform(all);
    if (json_object_get(part, "$ref")) {
        const json_t *target = qmi_schema_target(schema, json_object_get(part, "$ref"));
        all = merge_into(schema, all, target ? qmi_schema_flatten(schema, target, depth + 1) : NULL, depth + 1);
    }
    for (size_t i = 0; i < json_array_size(list); i++)
        all = merge_into(schema, all, qmi_schema_flatten(schema, json_array_get(list, i), depth + 1), depth + 1);
    for (size_t i = 2; i < 4 && all; i++) {
        json_t *alternatives = json_object_get(part, apart[i]), *alone = json_object();
        if (alternatives && (!json_is_array(alternatives) || json_array_size(alternatives) == 0))
            qmi_schema_refuse(schema, "%s has to be an array of schemas", apart[i]);
        if (!alternatives || schema->grammar->code < 0) {
            json_decref(alone);
            continue;
        }
        put(schema, alone, apart[i], json_incref(alternatives));
        all = merge_into(schema, all, alone, depth + 1);
    }
    if (!all && schema->grammar->code >= 0)
        schema->grammar->code = QM_ERROR_MEMORY;
    return all;
}

/* ---- exclusion ---- */

static bool excludes(qmi_schema *schema, const json_t *written, const json_t *other, int depth);

static bool requires(const json_t *part, const char *key)
{
    const json_t *required = json_object_get(part, "required");
    for (size_t i = 0; i < json_array_size(required); i++)
        if (qmi_json_equals(json_array_get(required, i), key))
            return true;
    return false;
}

/* Whether a member of this name is ever written for the schema. */
static bool may_write(const json_t *part, const char *key)
{
    const json_t *properties = json_object_get(part, "properties"), *additional = json_object_get(part, "additionalProperties");
    return json_object_get(properties, key) || requires(part, key) || (additional ? !json_is_false(additional) : !properties);
}

/* No object written for one fits the other: the other requires a member that is never written; one is always written that the
 * other does not allow; or one that is always written differs. */
static bool excludes_object(qmi_schema *schema, const json_t *written, const json_t *other, int depth)
{
    const json_t *theirs = json_object_get(other, "required"), *ours = json_object_get(written, "required");
    for (size_t i = 0; i < json_array_size(theirs); i++)
        if (!may_write(written, json_string_value(json_array_get(theirs, i))))
            return true;
    for (size_t i = 0; i < json_array_size(ours); i++) {
        const char *key = json_string_value(json_array_get(ours, i));
        const json_t *mine = key ? member_of(written, key) : NULL, *its = key ? member_of(other, key) : NULL;
        if (its && (json_is_false(its) || (mine && excludes(schema, mine, its, depth + 1))))
            return true;
    }
    return false;
}

/* No value written for one schema fits the other. */
static bool excludes(qmi_schema *schema, const json_t *written, const json_t *other, int depth)
{
    json_t *a = depth < 8 ? qmi_schema_flatten(schema, written, 0) : NULL, *b = a ? qmi_schema_flatten(schema, other, 0) : NULL;
    bool excluded = false;
    if (json_is_object(a) && json_is_object(b) && union_of(a)) {
        const json_t *list = json_object_get(a, union_of(a));
        excluded = true;
        for (size_t i = 0; i < json_array_size(list) && excluded; i++)
            excluded = excludes(schema, json_array_get(list, i), b, depth + 1);
    } else if (json_is_object(a) && json_is_object(b) && union_of(b)) {
        const json_t *list = json_object_get(b, union_of(b));
        excluded = true;
        for (size_t i = 0; i < json_array_size(list) && excluded; i++)
            excluded = excludes(schema, a, json_array_get(list, i), depth + 1);
    } else if (json_is_object(a) && json_is_object(b)) {
        const json_t *values = json_object_get(a, "enum"), *others = json_object_get(b, "enum");
        int common = qmi_schema_types(schema, a) & qmi_schema_types(schema, b);
        excluded = common == 0 || (common == QMI_SCHEMA_OBJECT && !values && excludes_object(schema, a, b, depth));
        if (values && others && !excluded) {
            excluded = true;
            for (size_t i = 0; i < json_array_size(values); i++)
                excluded = excluded && !is_listed(others, json_array_get(values, i));
        }
    } else {
        excluded = json_is_false(a) || json_is_false(b);
    }
    json_decref(a);
    json_decref(b);
    return excluded;
}

bool qmi_schema_exclusive(qmi_schema *schema, const json_t *alternatives)
{
    for (size_t i = 0; i < json_array_size(alternatives); i++)
        for (size_t k = 0; k < json_array_size(alternatives); k++)
            if (i != k && schema->grammar->code >= 0 &&
                !excludes(schema, json_array_get(alternatives, i), json_array_get(alternatives, k), 0))
                return false;
    return true;
}
