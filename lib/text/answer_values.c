/* Text of a parameter to a value of the type that the tool's JSON schema wants: see answer.h for the rules. */
#include "text/answer_calls.h"

#include <string.h>

enum { STRING = QMI_CALL_STRING, NUMBER = QMI_CALL_NUMBER, BOOLEAN = QMI_CALL_BOOLEAN, OBJECT = QMI_CALL_OBJECT,
       ARRAY = QMI_CALL_ARRAY, NOTHING = QMI_CALL_NULL };

#define SCHEMA_DEPTH 8 /* of anyOf and $ref in each other; deeper ones count as unknown */

/* ---- schema ---- */

static unsigned type_named(const json_t *name)
{
    static const struct {
        const char *name;
        unsigned type;
    } types[] = { { "string", STRING }, { "number", NUMBER }, { "integer", NUMBER }, { "boolean", BOOLEAN }, { "object", OBJECT },
        { "array", ARRAY }, { "null", NOTHING } };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (qmi_json_equals(name, types[i].name))
            return types[i].type;
    return 0;
}

static unsigned type_of(const json_t *value)
{
    if (qmi_json_is_string(value))
        return STRING;
    if (qmi_json_is_integer(value) || json_is_real(value))
        return NUMBER;
    return json_is_boolean(value) ? BOOLEAN : json_is_object(value) ? OBJECT : json_is_array(value) ? ARRAY : NOTHING;
}

const json_t *qmi_call_resolve(const json_t *root, const json_t *reference)
{
    if (!qmi_json_is_string(reference) || !qmi_view_starts(qmi_json_text(reference), "#/"))
        return NULL;
    qmi_view path = qmi_view_from(qmi_json_text(reference), 2);
    char name[128];
    for (;;) {
        size_t slash = qmi_view_find(path, "/"), length = slash == QMI_NOT_FOUND ? path.length : slash;
        if (length >= sizeof name)
            return NULL;
        memcpy(name, path.data, length);
        name[length] = 0;
        root = qmi_json_get(root, name);
        if (slash == QMI_NOT_FOUND || !root)
            return root;
        path = qmi_view_from(path, slash + 1);
    }
}

static unsigned allowed_types(const json_t *root, const json_t *schema, int depth);

/* All that one of these schemas allows; 0 when one of them is unknown. */
static unsigned union_of(const json_t *root, const json_t *schemas, int depth)
{
    unsigned types = 0;
    for (size_t i = 0; i < json_array_size(schemas); i++) {
        unsigned type = allowed_types(root, json_array_get(schemas, i), depth + 1);
        if (!type)
            return 0;
        types |= type;
    }
    return types;
}

/* The types that a schema allows; 0: unknown. */
static unsigned allowed_types(const json_t *root, const json_t *schema, int depth)
{
    static const char *const unions[] = { "anyOf", "oneOf", "allOf" };
    const json_t *type = qmi_json_get(schema, "type"), *values = qmi_json_get(schema, "enum");
    const json_t *only = qmi_json_get(schema, "const"), *reference = qmi_json_get(schema, "$ref");
    unsigned types = type_named(type);
    if (!json_is_object(schema) || depth > SCHEMA_DEPTH)
        return 0;
    for (size_t i = 0; i < json_array_size(type); i++)
        types |= type_named(json_array_get(type, i));
    if (type)
        return types;
    for (size_t i = 0; i < sizeof unions / sizeof unions[0]; i++)
        if (qmi_json_get(schema, unions[i]))
            return union_of(root, qmi_json_get(schema, unions[i]), depth);
    if (reference)
        return allowed_types(root, qmi_call_resolve(root, reference), depth + 1);
    for (size_t i = 0; i < json_array_size(values); i++)
        types |= type_of(json_array_get(values, i));
    if (only)
        types |= type_of(only);
    if (!types)
        types = qmi_json_get(schema, "properties") ? OBJECT : qmi_json_get(schema, "items") ? ARRAY : 0;
    return types;
}

unsigned qmi_call_types(const json_t *root, const json_t *schema)
{
    return allowed_types(root, schema, 0);
}

/* The schema of a function's parameters, or NULL. */
static const json_t *find_parameters(const json_t *tools, qmi_view function)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i), *described = qmi_json_get(tool, "function");
        if (described)
            tool = described;
        const json_t *name = qmi_json_get(tool, "name");
        if (qmi_json_is_string(name) && json_string_length(name) == function.length &&
            memcmp(json_string_value(name), function.data, function.length) == 0)
            return qmi_json_get(tool, "parameters");
    }
    return NULL;
}

bool qmi_call_may_have(const json_t *tools, qmi_view function, qmi_view key)
{
    json_t *properties = qmi_json_get(find_parameters(tools, function), "properties"), *value;
    const char *name;
    if (!json_is_object(properties))
        return true;
    json_object_foreach(properties, name, value)
        if (strlen(name) == key.length && memcmp(name, key.data, key.length) == 0)
            return true;
    return false;
}

/* ---- value ---- */

static json_t *text_value(qmi_view text)
{
    return json_stringn_nocheck(text.length ? text.data : "", text.length);
}

static qmi_view trim(qmi_view text)
{
    while (text.length && strchr(" \t\r\n", text.data[0]) && text.data[0])
        text = qmi_view_from(text, 1);
    while (text.length && strchr(" \t\r\n", text.data[text.length - 1]) && text.data[text.length - 1])
        text.length--;
    return text;
}

static bool equals(qmi_view text, const char *word)
{
    return text.length == strlen(word) && memcmp(text.data, word, text.length) == 0;
}

/* Python's words and any JSON value. *value is NULL when it is neither; false: no memory. */
static bool read_value(const qmi_call_reader *reader, qmi_view text, json_t **value)
{
    text = trim(text);
    *value = equals(text, "True")  ? json_true()
           : equals(text, "False") ? json_false()
           : equals(text, "None")  ? json_null()
                                   : NULL;
    if (*value || !text.length)
        return true;
    qmi_string list = { 0 }; /* as the only element of an array, since single values are no JSON text to jansson */
    qmi_writer writer = { &list, reader->alloc, false };
    json_t *array = NULL;
    qmi_write_text(&writer, "[");
    qmi_write(&writer, text);
    qmi_write_text(&writer, "]");
    int32_t code = writer.failed ? QM_ERROR_MEMORY : qmi_json_parse(qmi_string_view(&list), "a parameter", &array);
    if (code == QM_OK && json_array_size(array) == 1)
        *value = json_incref(json_array_get(array, 0));
    json_decref(array);
    qmi_string_free(&list, reader->alloc);
    return code != QM_ERROR_MEMORY;
}

/* Whether the chat format prints this value as exactly this text (words: Python's or JSON's). */
static bool is_canonical(const qmi_call_reader *reader, qmi_view text, const json_t *value, bool *failed)
{
    qmi_string printed = { 0 };
    qmi_writer writer = { &printed, reader->alloc, false };
    qmi_json_write(&writer, value);
    bool is_word = json_is_boolean(value) || json_is_null(value), same;
    same = is_word ? trim(text).length == text.length
                   : printed.length == text.length && memcmp(printed.data, text.data, text.length) == 0;
    *failed = writer.failed;
    qmi_string_free(&printed, reader->alloc);
    return same;
}

static bool is_allowed(unsigned types, unsigned type)
{
    if (type == NOTHING) /* optional parameters often are, without their schema saying so */
        return types & STRING ? types & NOTHING : true;
    return (types & STRING ? types & (OBJECT | ARRAY) : types) & type;
}

json_t *qmi_call_value(const qmi_call_reader *reader, qmi_view function, const char *key, qmi_view text)
{
    const json_t *parameters = find_parameters(reader->tools, function);
    unsigned types = allowed_types(parameters, qmi_json_get(qmi_json_get(parameters, "properties"), key), 0);
    json_t *value = NULL;
    bool failed = false, taken = false;
    if (types == STRING)
        return text_value(text);
    if (!read_value(reader, text, &value))
        return NULL;
    if (value && !qmi_json_is_string(value))
        taken = types ? is_allowed(types, type_of(value)) : is_canonical(reader, text, value, &failed);
    if (taken && !failed)
        return value;
    json_decref(value);
    return failed ? NULL : text_value(text);
}
