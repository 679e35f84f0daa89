/* Tool calls as rules of a grammar: see grammar_tools.h.
 *
 *   Qwen3     <tool_call>\n{"name": "f", "arguments": {...}}\n</tool_call>
 *   Qwen3.5   <tool_call>\n<function=f>\n(<parameter=k>\nvalue\n</parameter>\n)*</function>\n</tool_call>
 *
 * Qwen3.5's parameters are text as it stands where their schema says so, else JSON (answer.h tells how they are read back). So
 * text that would be read as something else, or would end a value, is not a value. */
#include "text/grammar_tools.h"

#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "text/answer_calls.h"
#include "text/schema_object.h"

#define CALL "<tool_call>"
#define VALUE_ENDS "</parameter>\n<parameter=\n</tool_call>\n<tool_call>" /* what no value may have in it */

typedef struct tools {
    qmi_grammar *grammar;
    qmi_json_rules rules;
    bool marks; /* Qwen3.5's */
} tools;

static qmi_expression list(tools *tools, qmi_expression_kind kind)
{
    return qmi_grammar_list(tools->grammar, kind);
}

static void add(tools *tools, qmi_expression to, qmi_expression part)
{
    qmi_grammar_add(tools->grammar, to, part);
}

static qmi_expression word(tools *tools, const char *text)
{
    return qmi_grammar_word(tools->grammar, text);
}

static qmi_expression refuse(tools *tools, qmi_view name, const char *why)
{
    qmi_grammar_refuse(tools->grammar, "option tools: function '%.*s': %s", (int)(name.length < 64 ? name.length : 64),
                       name.data, why);
    return 0;
}

/* ---- values between Qwen3.5's marks ---- */

/* Text in which a value cannot end; apart: not one that could be read as an array or object. */
static qmi_expression free_text(tools *tools, bool apart)
{
    static const qmi_code_points starts[] = { { '[', '[' }, { '{', '{' }, { 0, ' ' }, { '<', '<' } };
    qmi_grammar *grammar = tools->grammar;
    qmi_expression any = qmi_grammar_without(grammar, VALUE_ENDS);
    if (!apart)
        return any;
    return qmi_grammar_repeat(grammar, qmi_grammar_both(grammar, qmi_grammar_class(grammar, starts, 4, true), any), 0, 1);
}

/* Text of a schema's string alone: not between quotation marks. */
static qmi_expression string_text(qmi_schema *schema, tools *tools, const json_t *part, bool apart)
{
    qmi_schema_check(schema, part);
    return qmi_schema_is_free_string(part) ? free_text(tools, apart) : qmi_schema_plain_string(schema, part, apart);
}

static qmi_expression value_text(qmi_schema *schema, tools *tools, const json_t *part, int depth);

static qmi_expression one_of(qmi_schema *schema, tools *tools, const json_t *part, int depth)
{
    static const char *const unions[] = { "anyOf", "oneOf" };
    qmi_expression any = list(tools, QMI_EXPRESSION_ALTERNATIVES);
    for (size_t u = 0; u < 2; u++)
        for (size_t i = 0; i < json_array_size(json_object_get(part, unions[u])); i++)
            add(tools, any, value_text(schema, tools, json_array_get(json_object_get(part, unions[u]), i), depth + 1));
    return any;
}

/* Values of enum or const: text as it stands; others as JSON, unless they would be read as text. */
static qmi_expression listed(qmi_schema *schema, tools *tools, const json_t *part, bool has_text)
{
    const json_t *values = json_object_get(part, "enum"), *only = json_object_get(part, "const");
    qmi_expression any = list(tools, QMI_EXPRESSION_ALTERNATIVES);
    for (size_t i = 0; i < (only ? 1 : json_array_size(values)); i++) {
        const json_t *value = only ? only : json_array_get(values, i);
        qmi_view text = qmi_json_is_string(value) ? qmi_json_text(value) : qmi_view_of("");
        if (qmi_view_find(text, "<") != QMI_NOT_FOUND)
            qmi_schema_refuse(schema, "a value with < in it cannot be written between the marks of a tool call");
        if (qmi_json_is_string(value))
            add(tools, any, qmi_grammar_literal(tools->grammar, text.data, text.length));
        else if (!has_text || json_is_null(value) || json_is_object(value) || json_is_array(value))
            add(tools, any, qmi_json_literal(tools->grammar, value));
    }
    return any;
}

/* The same schema without the type string. */
static qmi_expression other_types(qmi_schema *schema, tools *tools, const json_t *part)
{
    json_t *types = json_array(), *given = json_object_get(part, "type"), *copy = json_copy((json_t *)(uintptr_t)part);
    for (size_t i = 0; i < json_array_size(given); i++)
        if (qmi_json_equals(json_array_get(given, i), "null") || qmi_json_equals(json_array_get(given, i), "object") ||
            qmi_json_equals(json_array_get(given, i), "array"))
            json_array_append(types, json_array_get(given, i));
    qmi_expression read = 0;
    if (!types || !copy || json_object_set(copy, "type", types) < 0)
        tools->grammar->code = QM_ERROR_MEMORY;
    else
        read = json_array_size(types) ? qmi_schema_read(schema, copy, "") : qmi_grammar_never(tools->grammar);
    json_decref(types);
    json_decref(copy);
    return read;
}

static qmi_expression value_text(qmi_schema *schema, tools *tools, const json_t *part, int depth)
{
    unsigned types = qmi_call_types(schema->root, part);
    const json_t *reference = json_object_get(part, "$ref");
    if (depth > 8 || tools->grammar->code < 0)
        return qmi_schema_refuse(schema, "too many references in one another");
    if (!json_is_object(part) || types == 0) /* any value, which may be text */
        return free_text(tools, false);
    if (!(types & QMI_CALL_STRING))
        return qmi_schema_read(schema, part, "");
    if (reference)
        return value_text(schema, tools, qmi_call_resolve(schema->root, reference), depth + 1);
    if (json_object_get(part, "anyOf") || json_object_get(part, "oneOf"))
        return one_of(schema, tools, part, depth);
    if (json_object_get(part, "enum") || json_object_get(part, "const"))
        return listed(schema, tools, part, true);
    if (types == QMI_CALL_STRING)
        return string_text(schema, tools, part, false);
    qmi_expression any = list(tools, QMI_EXPRESSION_ALTERNATIVES);
    add(tools, any, string_text(schema, tools, part, true));
    add(tools, any, other_types(schema, tools, part));
    return any;
}

static qmi_expression parameter(tools *tools, qmi_expression name, qmi_expression value)
{
    qmi_expression whole = list(tools, QMI_EXPRESSION_SEQUENCE);
    add(tools, whole, word(tools, "<parameter="));
    add(tools, whole, name);
    add(tools, whole, word(tools, ">\n"));
    add(tools, whole, value);
    add(tools, whole, word(tools, "\n</parameter>\n"));
    return whole;
}

/* Parameters of any name and text. */
static qmi_expression any_parameters(tools *tools)
{
    static const qmi_code_points ends[] = { { '>', '>' }, { 0, ' ' }, { '<', '<' } };
    qmi_expression name = qmi_grammar_repeat(tools->grammar, qmi_grammar_class(tools->grammar, ends, 3, true), 1, 64);
    return qmi_grammar_repeat(tools->grammar, parameter(tools, name, free_text(tools, false)), 0, QMI_GRAMMAR_ENDLESS);
}

static bool is_in(const json_t *names, const char *name)
{
    for (size_t i = 0; i < json_array_size(names); i++)
        if (qmi_json_equals(json_array_get(names, i), name))
            return true;
    return false;
}

/* Each property in its order, those that are not required perhaps. */
static qmi_expression fitting_parameters(qmi_schema *schema, tools *tools, qmi_view function)
{
    json_t *properties = json_object_get(schema->root, "properties"), *required = json_object_get(schema->root, "required"),
           *part;
    const char *name;
    char path[64];
    qmi_expression all = list(tools, QMI_EXPRESSION_SEQUENCE);
    static const char *const plain[] = { "anyOf", "oneOf", "allOf", "$ref", "enum", "const", "minProperties", "maxProperties" };
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++)
        if (json_object_get(schema->root, plain[i]))
            return refuse(tools, function, "parameters has to be an object of properties");
    qmi_schema_check(schema, schema->root);
    for (size_t i = 0; i < json_array_size(required); i++)
        if (!json_object_get(properties, json_string_value(json_array_get(required, i))))
            return refuse(tools, function, "a required parameter is not among its properties");
    json_object_foreach(properties, name, part) {
        if (tools->grammar->code < 0)
            return 0;
        if (!*name || strpbrk(name, "<>\n"))
            return refuse(tools, function, "the name of a parameter cannot be written between the marks of a tool call");
        snprintf(path, sizeof path, "/properties/%s", name);
        size_t entered = qmi_schema_enter(schema, path);
        qmi_expression value = value_text(schema, tools, part, 0);
        qmi_schema_leave(schema, entered);
        qmi_expression this = parameter(tools, word(tools, name), value);
        add(tools, all, qmi_grammar_repeat(tools->grammar, this, is_in(required, name), 1));
    }
    return all;
}

/* ---- calls ---- */

static qmi_expression call_with_marks(qmi_schema *schema, tools *tools, qmi_view name, bool strict)
{
    qmi_expression whole = list(tools, QMI_EXPRESSION_SEQUENCE);
    add(tools, whole, word(tools, CALL "\n<function="));
    add(tools, whole, qmi_grammar_literal(tools->grammar, name.data, name.length));
    add(tools, whole, word(tools, ">\n"));
    add(tools, whole, strict ? fitting_parameters(schema, tools, name) : any_parameters(tools));
    add(tools, whole, word(tools, "</function>\n</tool_call>"));
    return whole;
}

static qmi_expression call_in_json(qmi_schema *schema, tools *tools, qmi_view name, bool strict)
{
    qmi_expression whole = list(tools, QMI_EXPRESSION_SEQUENCE);
    add(tools, whole, word(tools, CALL "\n{\"name\": "));
    add(tools, whole, qmi_json_literal_text(tools->grammar, name));
    add(tools, whole, word(tools, ", \"arguments\": "));
    add(tools, whole, strict && json_object_size(schema->root) ? qmi_schema_read(schema, schema->root, "")
                                                               : qmi_json_call(tools->grammar, &schema->rules, QMI_JSON_OBJECT));
    add(tools, whole, word(tools, "}\n</tool_call>"));
    return whole;
}

/* The call of one tool; 0 when only another one is wanted. */
static qmi_expression read_tool(tools *tools, const json_t *tool, const char *wanted)
{
    const json_t *described = json_is_object(json_object_get(tool, "function")) ? json_object_get(tool, "function") : tool;
    const json_t *name = json_object_get(described, "name");
    json_t *parameters = json_object_get(described, "parameters");
    if (!json_is_object(tool) || !qmi_json_is_string(name) || json_string_length(name) == 0) {
        qmi_grammar_refuse(tools->grammar,
                           "option tools: each tool has to be an object with a name, or with a function that has one");
        return 0;
    }
    if (wanted && !qmi_json_equals(name, wanted))
        return 0;
    bool strict = json_is_true(json_object_get(tool, "strict")) || json_is_true(json_object_get(described, "strict"));
    qmi_view text = qmi_json_text(name);
    if (tools->marks && (memchr(text.data, '>', text.length) || memchr(text.data, '\n', text.length)))
        return refuse(tools, text, "the name cannot be written between the marks of a tool call");
    if (parameters && !json_is_null(parameters) && !json_is_object(parameters))
        return refuse(tools, text, "parameters has to be a JSON schema");
    json_t *root = json_is_object(parameters) ? json_incref(parameters) : json_object();
    qmi_expression call = 0;
    qmi_schema schema;
    qmi_schema_start(&schema, tools->grammar, root);
    snprintf(schema.name, sizeof schema.name, "parameters of function '%.40s'", text.data);
    schema.rules = tools->rules;
    if (root)
        call = tools->marks ? call_with_marks(&schema, tools, text, strict) : call_in_json(&schema, tools, text, strict);
    else
        tools->grammar->code = QM_ERROR_MEMORY;
    tools->rules = schema.rules;
    qmi_schema_end(&schema);
    json_decref(root);
    return call;
}

/* A call of any of the tools, or of the one that is wanted: a rule. */
static uint32_t read_tools(tools *tools, const json_t *all, const char *wanted)
{
    uint32_t rule = qmi_grammar_rule_new(tools->grammar, "call", 4);
    qmi_expression any = list(tools, QMI_EXPRESSION_ALTERNATIVES);
    bool found = false;
    for (size_t i = 0; i < json_array_size(all) && tools->grammar->code >= 0; i++) {
        qmi_expression call = read_tool(tools, json_array_get(all, i), wanted);
        if (call)
            add(tools, any, call);
        found = found || call;
    }
    if (!found && wanted)
        qmi_grammar_refuse(tools->grammar, "option tool-choice: no tool is called '%.64s'", wanted);
    else if (!found)
        qmi_grammar_refuse(tools->grammar, "option tools has no tool");
    qmi_grammar_define(tools->grammar, rule, any);
    return rule;
}

/* A first call, and others in lines below if there may be several. */
static qmi_expression calls(tools *tools, uint32_t call, bool several)
{
    qmi_expression all = list(tools, QMI_EXPRESSION_SEQUENCE);
    add(tools, all, qmi_grammar_call(tools->grammar, call));
    if (several) {
        qmi_expression more = qmi_grammar_both(tools->grammar, word(tools, "\n"), qmi_grammar_call(tools->grammar, call));
        add(tools, all, qmi_grammar_repeat(tools->grammar, more, 0, QMI_GRAMMAR_ENDLESS));
    }
    return all;
}

qmi_expression qmi_tools_read(qmi_grammar *grammar, const qmi_tools_request *request)
{
    tools tools = { .grammar = grammar, .marks = request->format == QMI_CHAT_QWEN3_5 || request->format == QMI_CHAT_QWEN3_6 };
    bool automatic = strcmp(request->choice, "auto") == 0, none = strcmp(request->choice, "none") == 0;
    bool named = !automatic && !none && strcmp(request->choice, "required") != 0;
    json_t *all;
    int32_t code = qmi_json_parse_array(request->tools, -1, "option tools", &all);
    if (code == QM_ERROR_MEMORY && grammar->code >= 0)
        grammar->code = code;
    if (code < 0) {
        qmi_grammar_refuse(grammar, "%s", qmi_error_text());
        return 0;
    }
    qmi_expression text = request->has_answer ? qmi_grammar_call(grammar, request->answer) : qmi_grammar_without(grammar, CALL);
    qmi_expression whole = text;
    if (!none) {
        uint32_t call = read_tools(&tools, all, named ? request->choice : NULL);
        qmi_expression called = calls(&tools, call, request->parallel && !named);
        whole = called;
        if (automatic && request->has_answer) {
            whole = qmi_grammar_list(grammar, QMI_EXPRESSION_ALTERNATIVES);
            qmi_grammar_add(grammar, whole, text);
            qmi_grammar_add(grammar, whole, called);
        } else if (automatic) {
            whole = qmi_grammar_both(grammar, text, qmi_grammar_repeat(grammar, called, 0, 1));
        }
    }
    json_decref(all);
    return whole;
}
