/* JSON as rules of a grammar: see grammar_json.h. */
#include "text/grammar_json.h"

#define INDENTATION 64 /* most blanks at the start of a line */

static qmi_expression sequence(qmi_grammar *grammar)
{
    return qmi_grammar_list(grammar, QMI_EXPRESSION_SEQUENCE);
}

static qmi_expression alternatives(qmi_grammar *grammar)
{
    return qmi_grammar_list(grammar, QMI_EXPRESSION_ALTERNATIVES);
}

static qmi_expression range(qmi_grammar *grammar, uint32_t low, uint32_t high)
{
    return qmi_grammar_class(grammar, &(qmi_code_points){ low, high }, 1, false);
}

static qmi_expression optional(qmi_grammar *grammar, qmi_expression what)
{
    return qmi_grammar_repeat(grammar, what, 0, 1);
}

static qmi_expression digits(qmi_grammar *grammar, uint32_t least, uint32_t most)
{
    return qmi_grammar_repeat(grammar, range(grammar, '0', '9'), least, most);
}

static qmi_expression blank(qmi_grammar *grammar)
{
    qmi_expression line = qmi_grammar_both(grammar, qmi_grammar_word(grammar, "\n"),
                                           qmi_grammar_repeat(grammar, qmi_grammar_word(grammar, " "), 0, INDENTATION));
    qmi_expression tabs = qmi_grammar_both(grammar, qmi_grammar_word(grammar, "\n"),
                                           qmi_grammar_repeat(grammar, qmi_grammar_word(grammar, "\t"), 1, INDENTATION / 4));
    qmi_expression any = alternatives(grammar);
    qmi_grammar_add(grammar, any, qmi_grammar_word(grammar, " "));
    qmi_grammar_add(grammar, any, line);
    qmi_grammar_add(grammar, any, tabs);
    return optional(grammar, any);
}

/* ---- strings ---- */

static qmi_expression hex_digits(qmi_grammar *grammar, uint32_t count)
{
    static const qmi_code_points hex[] = { { '0', '9' }, { 'a', 'f' }, { 'A', 'F' } };
    return qmi_grammar_repeat(grammar, qmi_grammar_class(grammar, hex, 3, false), count, count);
}

static qmi_expression one_of(qmi_grammar *grammar, const char *characters)
{
    qmi_code_points ranges[16];
    size_t count = 0;
    for (; characters[count]; count++)
        ranges[count] = (qmi_code_points){ (uint8_t)characters[count], (uint8_t)characters[count] };
    return qmi_grammar_class(grammar, ranges, count, false);
}

static void add_parts(qmi_grammar *grammar, qmi_expression list, const qmi_expression *parts, size_t count)
{
    qmi_expression part = sequence(grammar);
    for (size_t i = 0; i < count; i++)
        qmi_grammar_add(grammar, part, parts[i]);
    qmi_grammar_add(grammar, list, part);
}

/* \n and the like; \uXXXX of a character, two of them for one beyond U+FFFF; not U+0000, which many readers refuse. */
static qmi_expression escape(qmi_grammar *grammar)
{
    static const qmi_code_points above_00[] = { { '1', '9' }, { 'a', 'f' }, { 'A', 'F' } };
    static const qmi_code_points not_d[] = { { '1', '9' }, { 'a', 'c' }, { 'A', 'C' }, { 'e', 'f' }, { 'E', 'F' } };
    static const qmi_code_points low[] = { { 'c', 'f' }, { 'C', 'F' } };
    qmi_expression code = alternatives(grammar);
    add_parts(grammar, code,
              (qmi_expression[]){ qmi_grammar_word(grammar, "000"), qmi_grammar_class(grammar, above_00, 3, false) }, 2);
    add_parts(grammar, code, (qmi_expression[]){ qmi_grammar_word(grammar, "00"), qmi_grammar_class(grammar, above_00, 3, false),
                                                 hex_digits(grammar, 1) }, 3);
    add_parts(grammar, code, (qmi_expression[]){ qmi_grammar_word(grammar, "0"), qmi_grammar_class(grammar, above_00, 3, false),
                                                 hex_digits(grammar, 2) }, 3);
    add_parts(grammar, code, (qmi_expression[]){ qmi_grammar_class(grammar, not_d, 5, false), hex_digits(grammar, 3) }, 2);
    add_parts(grammar, code, (qmi_expression[]){ one_of(grammar, "dD"), range(grammar, '0', '7'), hex_digits(grammar, 2) }, 3);
    add_parts(grammar, code, (qmi_expression[]){ one_of(grammar, "dD"), one_of(grammar, "89abAB"), hex_digits(grammar, 2),
                                                 qmi_grammar_word(grammar, "\\u"), one_of(grammar, "dD"),
                                                 qmi_grammar_class(grammar, low, 2, false), hex_digits(grammar, 2) }, 7);
    qmi_expression behind = alternatives(grammar);
    qmi_grammar_add(grammar, behind, one_of(grammar, "\"\\/bfnrt"));
    qmi_grammar_add(grammar, behind, qmi_grammar_both(grammar, qmi_grammar_word(grammar, "u"), code));
    return qmi_grammar_both(grammar, qmi_grammar_word(grammar, "\\"), behind);
}

qmi_expression qmi_json_character(qmi_grammar *grammar, qmi_json_rules *rules)
{
    static const qmi_code_points escaped[] = { { 0, 0x1F }, { '"', '"' }, { '\\', '\\' } };
    qmi_expression any = alternatives(grammar);
    qmi_grammar_add(grammar, any, qmi_grammar_class(grammar, escaped, 3, true));
    qmi_grammar_add(grammar, any, qmi_json_call(grammar, rules, QMI_JSON_ESCAPE));
    return any;
}

static qmi_expression string(qmi_grammar *grammar, qmi_json_rules *rules)
{
    qmi_expression whole = sequence(grammar);
    qmi_grammar_add(grammar, whole, qmi_grammar_word(grammar, "\""));
    qmi_grammar_add(grammar, whole, qmi_grammar_repeat(grammar, qmi_json_character(grammar, rules), 0, QMI_GRAMMAR_ENDLESS));
    qmi_grammar_add(grammar, whole, qmi_grammar_word(grammar, "\""));
    return whole;
}

/* ---- numbers ---- */

/* At most 18 digits, which 64 bits hold. */
static qmi_expression integer(qmi_grammar *grammar)
{
    qmi_expression positive = alternatives(grammar);
    qmi_grammar_add(grammar, positive, qmi_grammar_word(grammar, "0"));
    qmi_grammar_add(grammar, positive, qmi_grammar_both(grammar, range(grammar, '1', '9'), digits(grammar, 0, 17)));
    return qmi_grammar_both(grammar, optional(grammar, qmi_grammar_word(grammar, "-")), positive);
}

static qmi_expression number(qmi_grammar *grammar)
{
    qmi_expression exponent = sequence(grammar), whole = sequence(grammar);
    qmi_grammar_add(grammar, exponent, one_of(grammar, "eE"));
    qmi_grammar_add(grammar, exponent, optional(grammar, one_of(grammar, "+-")));
    qmi_grammar_add(grammar, exponent, digits(grammar, 1, 2));
    qmi_grammar_add(grammar, whole, integer(grammar));
    qmi_grammar_add(grammar, whole,
                    optional(grammar, qmi_grammar_both(grammar, qmi_grammar_word(grammar, "."), digits(grammar, 1, 17))));
    qmi_grammar_add(grammar, whole, optional(grammar, exponent));
    return whole;
}

/* ---- values ---- */

/* open (blank part ("," blank part)*)? blank close */
static qmi_expression enclosed(qmi_grammar *grammar, qmi_json_rules *rules, const char *open,
                               qmi_expression (*part)(qmi_grammar *, qmi_json_rules *), const char *close)
{
    qmi_expression more = sequence(grammar), some = sequence(grammar), whole = sequence(grammar);
    qmi_grammar_add(grammar, more, qmi_grammar_word(grammar, ","));
    qmi_grammar_add(grammar, more, qmi_json_call(grammar, rules, QMI_JSON_BLANK));
    qmi_grammar_add(grammar, more, part(grammar, rules));
    qmi_grammar_add(grammar, some, qmi_json_call(grammar, rules, QMI_JSON_BLANK));
    qmi_grammar_add(grammar, some, part(grammar, rules));
    qmi_grammar_add(grammar, some, qmi_grammar_repeat(grammar, more, 0, QMI_GRAMMAR_ENDLESS));
    qmi_grammar_add(grammar, whole, qmi_grammar_word(grammar, open));
    qmi_grammar_add(grammar, whole, optional(grammar, some));
    qmi_grammar_add(grammar, whole, qmi_json_call(grammar, rules, QMI_JSON_BLANK));
    qmi_grammar_add(grammar, whole, qmi_grammar_word(grammar, close));
    return whole;
}

static qmi_expression any_value(qmi_grammar *grammar, qmi_json_rules *rules)
{
    return qmi_json_call(grammar, rules, QMI_JSON_VALUE);
}

static qmi_expression any_member(qmi_grammar *grammar, qmi_json_rules *rules)
{
    qmi_expression member = sequence(grammar);
    qmi_grammar_add(grammar, member, qmi_json_call(grammar, rules, QMI_JSON_STRING));
    qmi_grammar_add(grammar, member, qmi_grammar_word(grammar, ":"));
    qmi_grammar_add(grammar, member, optional(grammar, qmi_grammar_word(grammar, " ")));
    qmi_grammar_add(grammar, member, any_value(grammar, rules));
    return member;
}

static qmi_expression value(qmi_grammar *grammar, qmi_json_rules *rules)
{
    qmi_expression any = alternatives(grammar);
    qmi_grammar_add(grammar, any, qmi_json_call(grammar, rules, QMI_JSON_OBJECT));
    qmi_grammar_add(grammar, any, qmi_json_call(grammar, rules, QMI_JSON_ARRAY));
    qmi_grammar_add(grammar, any, qmi_json_call(grammar, rules, QMI_JSON_STRING));
    qmi_grammar_add(grammar, any, qmi_json_call(grammar, rules, QMI_JSON_NUMBER));
    qmi_grammar_add(grammar, any, qmi_grammar_word(grammar, "true"));
    qmi_grammar_add(grammar, any, qmi_grammar_word(grammar, "false"));
    qmi_grammar_add(grammar, any, qmi_grammar_word(grammar, "null"));
    return any;
}

static qmi_expression body_of(qmi_grammar *grammar, qmi_json_rules *rules, qmi_json_rule rule)
{
    switch (rule) {
    case QMI_JSON_BLANK:
        return blank(grammar);
    case QMI_JSON_ESCAPE:
        return escape(grammar);
    case QMI_JSON_STRING:
        return string(grammar, rules);
    case QMI_JSON_INTEGER:
        return integer(grammar);
    case QMI_JSON_NUMBER:
        return number(grammar);
    case QMI_JSON_VALUE:
        return value(grammar, rules);
    case QMI_JSON_OBJECT:
        return enclosed(grammar, rules, "{", any_member, "}");
    case QMI_JSON_ARRAY:
        return enclosed(grammar, rules, "[", any_value, "]");
    case QMI_JSON_RULES:
        break;
    }
    return 0;
}

qmi_expression qmi_json_call(qmi_grammar *grammar, qmi_json_rules *rules, qmi_json_rule rule)
{
    static const char *const names[] = { "blank", "escape", "string", "integer", "number", "value", "object", "array" };
    if (rules->rules[rule] == 0) {
        qmi_view name = qmi_view_of(names[rule]);
        rules->rules[rule] = qmi_grammar_rule_new(grammar, name.data, name.length) + 1;
        uint32_t number = rules->rules[rule] - 1;
        qmi_grammar_define(grammar, number, body_of(grammar, rules, rule));
    }
    return qmi_grammar_call(grammar, rules->rules[rule] - 1);
}

/* ---- literals ---- */

static qmi_expression written(qmi_grammar *grammar, qmi_writer *writer)
{
    qmi_expression literal = 0;
    if (writer->failed && grammar->code >= 0)
        grammar->code = QM_ERROR_MEMORY;
    if (!writer->failed)
        literal = qmi_grammar_literal(grammar, writer->out->data, writer->out->length);
    qmi_string_free(writer->out, writer->alloc);
    return literal;
}

qmi_expression qmi_json_literal(qmi_grammar *grammar, const json_t *value)
{
    qmi_string text = { 0 };
    qmi_writer writer = { .out = &text, .alloc = &grammar->alloc };
    qmi_json_write(&writer, value);
    return written(grammar, &writer);
}

qmi_expression qmi_json_literal_text(qmi_grammar *grammar, qmi_view value)
{
    qmi_string text = { 0 };
    qmi_writer writer = { .out = &text, .alloc = &grammar->alloc };
    qmi_json_write_string(&writer, value);
    return written(grammar, &writer);
}
