/* Making a grammar out of rules and expressions: see grammar.h. */
#include "text/grammar.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/error.h"

void qmi_grammar_start(qmi_grammar *grammar, const qmi_alloc *alloc)
{
    *grammar = (qmi_grammar){ .alloc = *alloc };
    grammar->code = qmi_reserve(alloc, (void **)&grammar->nodes, &grammar->node_capacity, 64, sizeof *grammar->nodes, "grammar");
    grammar->node_count = 1; /* number 0, the empty text */
}

void qmi_grammar_end(qmi_grammar *grammar)
{
    qmi_delete(&grammar->alloc, grammar->nodes);
    qmi_delete(&grammar->alloc, grammar->bytes);
    qmi_delete(&grammar->alloc, grammar->ranges);
    qmi_delete(&grammar->alloc, grammar->rules);
    *grammar = (qmi_grammar){ .alloc = grammar->alloc };
}

void qmi_grammar_refuse(qmi_grammar *grammar, const char *format, ...)
{
    char text[QMI_ERROR_SIZE];
    va_list arguments;
    if (grammar->code < 0)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    grammar->code = qmi_fail(QM_ERROR_OPTION, "%s", text);
}

/* Room for `more` elements behind `count`; false when there is none, which the grammar's code tells. */
static bool reserve(qmi_grammar *grammar, void **array, size_t *capacity, size_t count, size_t more, size_t size)
{
    if (grammar->code >= 0 && count + more > UINT32_MAX / 2)
        qmi_grammar_refuse(grammar, "the grammar is too large");
    if (grammar->code >= 0)
        grammar->code = qmi_reserve(&grammar->alloc, array, capacity, count + more, size, "grammar");
    return grammar->code >= 0;
}

static qmi_expression add_node(qmi_grammar *grammar, qmi_expression_kind kind, uint32_t first, uint32_t second, uint32_t third)
{
    if (grammar->code >= 0 && grammar->node_count >= QMI_GRAMMAR_EXPRESSIONS)
        qmi_grammar_refuse(grammar, "the grammar is too large: it has more than %d parts", QMI_GRAMMAR_EXPRESSIONS);
    if (!reserve(grammar, (void **)&grammar->nodes, &grammar->node_capacity, grammar->node_count, 1, sizeof *grammar->nodes))
        return 0;
    grammar->nodes[grammar->node_count] = (qmi_expression_node){ kind, first, second, third, 0 };
    return (qmi_expression)grammar->node_count++;
}

static uint32_t add_bytes(qmi_grammar *grammar, const char *bytes, size_t length)
{
    if (!reserve(grammar, (void **)&grammar->bytes, &grammar->byte_capacity, grammar->byte_count, length, 1))
        return 0;
    if (length > 0)
        memcpy(grammar->bytes + grammar->byte_count, bytes, length);
    grammar->byte_count += length;
    return (uint32_t)(grammar->byte_count - length);
}

qmi_expression qmi_grammar_never(qmi_grammar *grammar)
{
    return add_node(grammar, QMI_EXPRESSION_NEVER, 0, 0, 0);
}

qmi_expression qmi_grammar_literal(qmi_grammar *grammar, const char *bytes, size_t length)
{
    uint32_t offset = add_bytes(grammar, bytes, length);
    return length == 0 ? 0 : add_node(grammar, QMI_EXPRESSION_BYTES, offset, (uint32_t)length, 0);
}

qmi_expression qmi_grammar_word(qmi_grammar *grammar, const char *word)
{
    return qmi_grammar_literal(grammar, word, strlen(word));
}

/* ---- classes ---- */

static void add_range(qmi_grammar *grammar, uint32_t low, uint32_t high)
{
    if (low <= 0xD7FF && high >= 0xD800) { /* around the surrogates */
        add_range(grammar, low, 0xD7FF);
        low = 0xE000;
    }
    if (low >= 0xD800 && low <= 0xDFFF)
        low = 0xE000;
    if (low > high || !reserve(grammar, (void **)&grammar->ranges, &grammar->range_capacity, grammar->range_count, 1,
                               sizeof *grammar->ranges))
        return;
    grammar->ranges[grammar->range_count++] = (qmi_code_points){ low, high };
}

/* The lowest range that reaches `from` or beyond, as far as it and those that join it go. false: none. */
static bool next_range(const qmi_code_points *ranges, size_t count, uint32_t from, qmi_code_points *out)
{
    bool found = false, joined = true;
    for (size_t i = 0; i < count; i++) {
        uint32_t low = ranges[i].low > from ? ranges[i].low : from;
        if (ranges[i].low <= ranges[i].high && ranges[i].high >= from && (!found || low < out->low)) {
            *out = (qmi_code_points){ low, ranges[i].high };
            found = true;
        }
    }
    while (found && joined) {
        joined = false;
        for (size_t i = 0; i < count; i++) {
            if (ranges[i].low <= out->high + 1 && ranges[i].high > out->high) {
                out->high = ranges[i].high;
                joined = true;
            }
        }
    }
    return found;
}

qmi_expression qmi_grammar_class(qmi_grammar *grammar, const qmi_code_points *ranges, size_t count, bool negated)
{
    size_t start = grammar->range_count;
    uint32_t from = 0;
    qmi_code_points next = { 0, 0 };
    if (count > QMI_GRAMMAR_RANGES)
        qmi_grammar_refuse(grammar, "a class of characters has more than %d ranges", QMI_GRAMMAR_RANGES);
    while (from <= 0x10FFFF && next_range(ranges, count, from, &next) && next.low <= 0x10FFFF && grammar->code >= 0) {
        if (next.high > 0x10FFFF)
            next.high = 0x10FFFF;
        if (!negated)
            add_range(grammar, next.low, next.high);
        else if (next.low > from)
            add_range(grammar, from, next.low - 1);
        from = next.high + 1;
    }
    if (negated && from <= 0x10FFFF)
        add_range(grammar, from, 0x10FFFF);
    if (grammar->range_count == start)
        return qmi_grammar_never(grammar);
    return add_node(grammar, QMI_EXPRESSION_CLASS, (uint32_t)start, (uint32_t)(grammar->range_count - start), 0);
}

/* ---- larger expressions ---- */

qmi_expression qmi_grammar_list(qmi_grammar *grammar, qmi_expression_kind kind)
{
    return add_node(grammar, kind, 0, 0, 0);
}

/* Also takes the empty text, which as number 0 cannot be in a list: a node of its own then stands for it. */
void qmi_grammar_add(qmi_grammar *grammar, qmi_expression list, qmi_expression part)
{
    if (part == 0 && grammar->nodes && grammar->code >= 0) {
        if (grammar->nodes[list].kind == QMI_EXPRESSION_SEQUENCE)
            return;
        part = add_node(grammar, QMI_EXPRESSION_EMPTY, 0, 0, 0);
    }
    if (grammar->code < 0)
        return;
    qmi_expression_node *node = &grammar->nodes[list];
    if (node->first == 0)
        node->first = part;
    else
        grammar->nodes[node->second].next = part;
    node->second = part;
}

qmi_expression qmi_grammar_both(qmi_grammar *grammar, qmi_expression one, qmi_expression other)
{
    qmi_expression list = qmi_grammar_list(grammar, QMI_EXPRESSION_SEQUENCE);
    qmi_grammar_add(grammar, list, one);
    qmi_grammar_add(grammar, list, other);
    return list;
}

qmi_expression qmi_grammar_repeat(qmi_grammar *grammar, qmi_expression what, uint32_t least, uint32_t most)
{
    if (what == 0 || most == 0)
        return 0;
    return add_node(grammar, QMI_EXPRESSION_REPEAT, what, least, most);
}

qmi_expression qmi_grammar_without(qmi_grammar *grammar, const char *words)
{
    uint32_t offset = add_bytes(grammar, words, strlen(words));
    return add_node(grammar, QMI_EXPRESSION_WITHOUT, offset, (uint32_t)strlen(words), 0);
}

uint32_t qmi_grammar_rule_new(qmi_grammar *grammar, const char *name, size_t length)
{
    uint32_t offset = add_bytes(grammar, name, length);
    if (!reserve(grammar, (void **)&grammar->rules, &grammar->rule_capacity, grammar->rule_count, 1, sizeof *grammar->rules))
        return 0;
    grammar->rules[grammar->rule_count] = (qmi_grammar_rule){ .name = offset, .name_length = (uint32_t)length };
    return (uint32_t)grammar->rule_count++;
}

void qmi_grammar_define(qmi_grammar *grammar, uint32_t rule, qmi_expression body)
{
    if (grammar->code < 0)
        return;
    grammar->rules[rule].body = body;
    grammar->rules[rule].defined = true;
}

qmi_expression qmi_grammar_call(qmi_grammar *grammar, uint32_t rule)
{
    return add_node(grammar, QMI_EXPRESSION_RULE, rule, 0, 0);
}
