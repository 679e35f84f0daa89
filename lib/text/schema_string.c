/* Strings of a JSON schema to expressions: their lengths, patterns and formats. */
#include <string.h>
#include "text/grammar_regex.h"
#include "text/schema_object.h"

/* A character of the string: between quotation marks, or plain, where < would begin what ends it. apart: one that neither an
 * array nor an object nor a blank begins with. */
static qmi_expression character(qmi_schema *schema, bool plain, bool apart)
{
    static const qmi_code_points starts[] = { { '<', '<' }, { 0, 0 }, { '[', '[' }, { '{', '{' }, { 0, ' ' } };
    return plain ? qmi_grammar_class(schema->grammar, starts, apart ? 5 : 2, true)
                 : qmi_json_character(schema->grammar, &schema->rules);
}

static qmi_expression read_pattern(qmi_schema *schema, const char *pattern, size_t length, bool plain, uint32_t least,
                                   uint32_t most)
{
    qmi_regex regex = { .grammar = schema->grammar, .rules = &schema->rules, .plain = plain };
    const char *why;
    size_t where;
    qmi_expression read = qmi_regex_read(&regex, pattern, length, &why, &where);
    if (why)
        return qmi_schema_refuse(schema, "pattern, character %zu: %s", where + 1, why);
    if (regex.least < least || (most != QMI_GRAMMAR_ENDLESS && regex.most > most))
        return qmi_schema_refuse(schema, "minLength and maxLength cannot stand beside a pattern that has texts of other lengths; "
                                 "write the lengths into the pattern");
    return read;
}

static qmi_expression content(qmi_schema *schema, const json_t *part, bool plain, bool apart)
{
    qmi_grammar *grammar = schema->grammar;
    const json_t *pattern = json_object_get(part, "pattern"), *format = json_object_get(part, "format");
    const char *known = format && json_is_string(format) ? qmi_regex_format(json_string_value(format)) : NULL;
    uint32_t least, most;
    qmi_schema_count(schema, part, "minLength", 0, &least);
    qmi_schema_count(schema, part, "maxLength", QMI_GRAMMAR_ENDLESS, &most);
    if (least > most)
        return qmi_schema_refuse(schema, "minLength is more than maxLength");
    if (format && !known)
        return qmi_schema_refuse(schema,
                                 "format has to be date, time, date-time, uuid, ipv4, hostname, email or uri; others are not "
                                 "supported");
    if (pattern && (format || !json_is_string(pattern)))
        return qmi_schema_refuse(schema, format ? "pattern and format cannot both be set" : "pattern has to be text");
    if (pattern)
        return read_pattern(schema, json_string_value(pattern), json_string_length(pattern), plain, least, most);
    if (known)
        return read_pattern(schema, known, strlen(known), plain, least, most);
    if (!apart || most == 0)
        return qmi_grammar_repeat(grammar, character(schema, plain, false), least, most);
    qmi_expression more = qmi_grammar_repeat(grammar, character(schema, plain, false), least ? least - 1 : 0,
                                             most == QMI_GRAMMAR_ENDLESS ? most : most - 1);
    return qmi_grammar_repeat(grammar, qmi_grammar_both(grammar, character(schema, plain, true), more), least > 0, 1);
}

bool qmi_schema_is_free_string(const json_t *part)
{
    return !json_object_get(part, "minLength") && !json_object_get(part, "maxLength") && !json_object_get(part, "pattern") &&
           !json_object_get(part, "format");
}

qmi_expression qmi_schema_string(qmi_schema *schema, const json_t *part)
{
    qmi_grammar *grammar = schema->grammar;
    if (qmi_schema_is_free_string(part))
        return qmi_json_call(grammar, &schema->rules, QMI_JSON_STRING);
    qmi_expression whole = qmi_grammar_list(grammar, QMI_EXPRESSION_SEQUENCE);
    qmi_grammar_add(grammar, whole, qmi_grammar_word(grammar, "\""));
    qmi_grammar_add(grammar, whole, content(schema, part, false, false));
    qmi_grammar_add(grammar, whole, qmi_grammar_word(grammar, "\""));
    return whole;
}

qmi_expression qmi_schema_plain_string(qmi_schema *schema, const json_t *part, bool apart)
{
    return content(schema, part, true, apart);
}
