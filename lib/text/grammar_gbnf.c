/* Reads GBNF: see grammar_gbnf.h. */
#include "text/grammar_gbnf.h"

#include <stdio.h>
#include <string.h>
#include "base/options.h"
#include "text/unicode.h"

#define NAME_MOST 64  /* of the bytes of a name that messages show */

typedef struct slot { /* of a hash table from names to rules */
    uint32_t rule;    /* rule + 1; 0: free */
    size_t used;      /* where the rule was first named */
} slot;

typedef struct reader {
    qmi_grammar *grammar;
    const char *text;
    size_t length, at;
    int depth;
    slot *slots;
    size_t slot_count, name_count;
} reader;

static bool failed(const reader *reader)
{
    return reader->grammar->code < 0;
}

/* `what` is wrong at the place `at`. */
static void refuse(reader *reader, size_t at, const char *what)
{
    size_t line = 1, start = 0;
    for (size_t i = 0; i < at && i < reader->length; i++) {
        if (reader->text[i] == '\n') {
            line++;
            start = i + 1;
        }
    }
    qmi_grammar_refuse(reader->grammar, "grammar, line %zu, column %zu: %s", line, at - start + 1, what);
}

static void refuse_name(reader *reader, size_t at, const char *format, const char *name, size_t length)
{
    char shown[NAME_MOST + 1], text[256];
    snprintf(shown, sizeof shown, "%.*s", (int)(length < NAME_MOST ? length : NAME_MOST), name);
    snprintf(text, sizeof text, format, shown);
    refuse(reader, at, text);
}

static char peek(const reader *reader)
{
    return reader->at < reader->length ? reader->text[reader->at] : 0;
}

static bool take(reader *reader, const char *word)
{
    size_t length = strlen(word);
    if (reader->length - reader->at < length || memcmp(reader->text + reader->at, word, length) != 0)
        return false;
    reader->at += length;
    return true;
}

/* Blanks and comments, and with `lines` newlines too. */
static void skip_blanks(reader *reader, bool lines)
{
    while (reader->at < reader->length) {
        char c = peek(reader);
        if (c == '#') {
            while (reader->at < reader->length && peek(reader) != '\n')
                reader->at++;
        } else if (c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r'))) {
            reader->at++;
        } else {
            break;
        }
    }
}

/* ---- names ---- */

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

static size_t name_length(const reader *reader)
{
    size_t at = reader->at;
    while (at < reader->length && is_name(reader->text[at]))
        at++;
    return at - reader->at;
}

static slot *find_slot(const reader *reader, slot *slots, size_t count, const char *name, size_t length)
{
    const qmi_grammar *grammar = reader->grammar;
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (uint8_t)name[i]) * 16777619u;
    for (size_t at = hash & (count - 1);; at = (at + 1) & (count - 1)) {
        if (slots[at].rule == 0)
            return &slots[at];
        const qmi_grammar_rule *rule = &grammar->rules[slots[at].rule - 1];
        if (rule->name_length == length && memcmp(grammar->bytes + rule->name, name, length) == 0)
            return &slots[at];
    }
}

static bool grow_slots(reader *reader)
{
    qmi_grammar *grammar = reader->grammar;
    size_t count = reader->slot_count ? reader->slot_count * 2 : 64;
    slot *slots = qmi_new(&grammar->alloc, count, sizeof *slots, "names of a grammar");
    if (!slots) {
        grammar->code = QM_ERROR_MEMORY;
        return false;
    }
    for (size_t i = 0; i < reader->slot_count; i++) {
        const slot *old = &reader->slots[i];
        if (old->rule == 0)
            continue;
        const qmi_grammar_rule *rule = &grammar->rules[old->rule - 1];
        *find_slot(reader, slots, count, grammar->bytes + rule->name, rule->name_length) = *old;
    }
    qmi_delete(&grammar->alloc, reader->slots);
    reader->slots = slots;
    reader->slot_count = count;
    return true;
}

/* The rule whose name stands here. */
static uint32_t take_name(reader *reader)
{
    size_t length = name_length(reader), at = reader->at;
    const char *name = reader->text + at;
    reader->at += length;
    if (2 * reader->name_count >= reader->slot_count && !grow_slots(reader))
        return 0;
    slot *found = find_slot(reader, reader->slots, reader->slot_count, name, length);
    if (found->rule == 0) {
        uint32_t rule = qmi_grammar_rule_new(reader->grammar, name, length);
        if (failed(reader))
            return 0;
        *found = (slot){ rule + 1, at };
        reader->name_count++;
    }
    return found->rule - 1;
}

/* ---- characters ---- */

static uint32_t take_hex(reader *reader, int digits)
{
    uint32_t value = 0;
    size_t start = reader->at;
    for (int i = 0; i < digits; i++, reader->at++) {
        char c = peek(reader);
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) {
            refuse(reader, reader->at, digits == 2 ? "two hexadecimal digits have to follow \\x"
                   : digits == 4 ? "four hexadecimal digits have to follow \\u" : "eight hexadecimal digits have to follow \\U");
            return 0;
        }
        value = value << 4 | (uint32_t)digit;
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
        refuse(reader, start, "this is no Unicode character");
    return value;
}

/* One character of a literal or a class, perhaps written as an escape. */
static uint32_t take_character(reader *reader)
{
    static const char escapes[] = "nrt\\\"[]-^", meant[] = "\n\r\t\\\"[]-^";
    size_t start = reader->at;
    int32_t length;
    if (peek(reader) != '\\') {
        uint32_t c = qmi_unicode_decode(reader->text + reader->at, &length);
        reader->at += (size_t)length;
        return c;
    }
    reader->at++;
    char c = peek(reader);
    const char *found = c ? strchr(escapes, c) : NULL;
    reader->at += reader->at < reader->length;
    if (found)
        return (uint8_t)meant[found - escapes];
    if (c == 'x' || c == 'u' || c == 'U')
        return take_hex(reader, c == 'x' ? 2 : c == 'u' ? 4 : 8);
    refuse(reader, start, "unknown escape; known are \\n \\r \\t \\\\ \\\" \\[ \\] \\- \\^ \\xHH \\uHHHH \\UHHHHHHHH");
    return 0;
}

static qmi_expression take_literal(reader *reader)
{
    qmi_grammar *grammar = reader->grammar;
    size_t start = reader->at++, length = 0, end = reader->at;
    while (end < reader->length && reader->text[end] != '"' && reader->text[end] != '\n')
        end += reader->text[end] == '\\' ? 2 : 1;
    char *bytes =
        qmi_new(&grammar->alloc, end - start + 4, 1, "literal of a grammar"); /* escapes are longer than what they mean */
    if (!bytes) {
        grammar->code = QM_ERROR_MEMORY;
        return 0;
    }
    while (!failed(reader) && reader->at < reader->length && peek(reader) != '"' && peek(reader) != '\n') {
        char encoded[4];
        int32_t size = qmi_unicode_encode(take_character(reader), encoded);
        if (!failed(reader))
            memcpy(bytes + length, encoded, (size_t)size), length += (size_t)size;
    }
    if (!take(reader, "\""))
        refuse(reader, start, "this text has no closing quotation mark in its line");
    qmi_expression literal = qmi_grammar_literal(grammar, bytes, length);
    qmi_delete(&grammar->alloc, bytes);
    return literal;
}

static qmi_expression take_class(reader *reader)
{
    qmi_code_points *ranges = NULL;
    size_t start = reader->at++, count = 0, capacity = 0;
    qmi_grammar *grammar = reader->grammar;
    bool negated = take(reader, "^");
    while (!failed(reader) && reader->at < reader->length && peek(reader) != ']' && peek(reader) != '\n') {
        size_t from = reader->at;
        uint32_t low = take_character(reader), high = low;
        bool has_end = peek(reader) == '-' && reader->at + 1 < reader->length && reader->text[reader->at + 1] != ']';
        if (has_end) {
            reader->at++;
            high = take_character(reader);
        }
        if (high < low)
            refuse(reader, from, "the range ends before it starts");
        if (!failed(reader))
            grammar->code =
                qmi_reserve(&grammar->alloc, (void **)&ranges, &capacity, count + 1, sizeof *ranges, "class of a grammar");
        if (!failed(reader))
            ranges[count++] = (qmi_code_points){ low, high };
    }
    if (!take(reader, "]"))
        refuse(reader, start, "this class has no closing bracket in its line");
    qmi_expression class = failed(reader) ? 0 : qmi_grammar_class(grammar, ranges, count, negated);
    qmi_delete(&grammar->alloc, ranges);
    return class;
}

/* ---- repetitions ---- */

static bool take_count(reader *reader, uint32_t *count)
{
    size_t start = reader->at;
    uint64_t value = 0;
    while (peek(reader) >= '0' && peek(reader) <= '9') {
        value = value * 10 + (uint64_t)(reader->text[reader->at++] - '0');
        if (value > QMI_GRAMMAR_COUNT) {
            refuse(reader, start, "the number of repetitions is over 1000000000");
            return false;
        }
    }
    *count = (uint32_t)value;
    return reader->at > start;
}

/* "{m,n}" and the like. */
static void take_braces(reader *reader, uint32_t *least, uint32_t *most)
{
    size_t start = reader->at++;
    skip_blanks(reader, false);
    bool has_least = take_count(reader, least);
    if (!has_least)
        *least = 0;
    *most = *least;
    skip_blanks(reader, false);
    bool comma = take(reader, ",");
    if (comma) {
        skip_blanks(reader, false);
        if (!take_count(reader, most))
            *most = QMI_GRAMMAR_ENDLESS;
    }
    skip_blanks(reader, false);
    if (!take(reader, "}") || (!has_least && (!comma || *most == QMI_GRAMMAR_ENDLESS)))
        refuse(reader, start, "a repetition is written {m}, {m,}, {m,n} or {,n}");
    else if (*most < *least)
        refuse(reader, start, "the repetition's second number is less than its first");
}

static qmi_expression take_repetitions(reader *reader, qmi_expression what)
{
    for (int count = 0; !failed(reader); count++) {
        uint32_t least = 0, most = QMI_GRAMMAR_ENDLESS;
        skip_blanks(reader, reader->depth > 0);
        size_t start = reader->at;
        char c = peek(reader);
        if (c == '{') {
            take_braces(reader, &least, &most);
        } else if (c == '?' || c == '*' || c == '+') {
            reader->at++;
            least = c == '+';
            most = c == '?' ? 1 : QMI_GRAMMAR_ENDLESS;
        } else {
            break;
        }
        if (count == 16)
            refuse(reader, start, "more than 16 repetitions of one another");
        what = qmi_grammar_repeat(reader->grammar, what, least, most);
    }
    return what;
}

/* ---- rules ---- */

static qmi_expression take_alternatives(reader *reader);

static qmi_expression take_group(reader *reader)
{
    size_t start = reader->at++;
    if (reader->depth == QMI_GRAMMAR_DEPTH) {
        refuse(reader, start, "parentheses are nested too deeply");
        return 0;
    }
    reader->depth++;
    qmi_expression inside = take_alternatives(reader);
    reader->depth--;
    if (!take(reader, ")"))
        refuse(reader, start, "this parenthesis is not closed");
    return inside;
}

/* A name that stands before ::= begins the next rule. */
static bool starts_rule(reader *reader)
{
    size_t at = reader->at;
    reader->at += name_length(reader);
    skip_blanks(reader, false);
    bool starts = reader->at > at && take(reader, "::=");
    reader->at = at;
    return starts;
}

static qmi_expression take_sequence(reader *reader)
{
    qmi_expression sequence = qmi_grammar_list(reader->grammar, QMI_EXPRESSION_SEQUENCE);
    while (!failed(reader)) {
        qmi_expression part;
        skip_blanks(reader, reader->depth > 0);
        char c = peek(reader);
        if (c == '"') {
            part = take_literal(reader);
        } else if (c == '[') {
            part = take_class(reader);
        } else if (c == '(') {
            part = take_group(reader);
        } else if (c == '.') {
            reader->at++;
            part = qmi_grammar_class(reader->grammar, NULL, 0, true);
        } else if (is_name(c)) {
            if (starts_rule(reader)) {
                refuse(reader, reader->at, "a rule starts here, but the one before it is not over: a parenthesis is open, or a "
                       "rule has to start on a new line");
                break;
            }
            part = qmi_grammar_call(reader->grammar, take_name(reader));
        } else {
            break;
        }
        qmi_grammar_add(reader->grammar, sequence, take_repetitions(reader, part));
    }
    return sequence;
}

/* Whether what follows, perhaps on a later line, is |; it is then taken. */
static bool take_bar(reader *reader)
{
    size_t at = reader->at;
    skip_blanks(reader, true);
    if (take(reader, "|"))
        return true;
    reader->at = at;
    return false;
}

static qmi_expression take_alternatives(reader *reader)
{
    qmi_expression alternatives = qmi_grammar_list(reader->grammar, QMI_EXPRESSION_ALTERNATIVES);
    do {
        skip_blanks(reader, true);
        qmi_grammar_add(reader->grammar, alternatives, take_sequence(reader));
    } while (!failed(reader) && take_bar(reader));
    return alternatives;
}

static void take_rule(reader *reader)
{
    size_t start = reader->at, length = name_length(reader);
    if (length == 0) {
        refuse(reader, start, "a rule is expected: its name, ::= and what it stands for");
        return;
    }
    uint32_t rule = take_name(reader);
    skip_blanks(reader, false);
    if (!failed(reader) && !take(reader, "::="))
        refuse(reader, reader->at, "::= is expected after the name of the rule");
    if (failed(reader))
        return;
    if (reader->grammar->rules[rule].defined) {
        refuse_name(reader, start, "rule '%s' is defined twice", reader->text + start, length);
        return;
    }
    qmi_grammar_define(reader->grammar, rule, take_alternatives(reader));
    skip_blanks(reader, false);
    char c = peek(reader);
    if (!failed(reader) && reader->at < reader->length && c != '\n' && c != '\r')
        refuse(reader, reader->at,
               c == ')' ? "this parenthesis closes none"
               : c == '<' || c == '!'
                   ? "tokens cannot be named here; write their text"
                   : "expected is a text, a class, a name, a parenthesis, a repetition or the end of the line");
}

static void check_names(reader *reader, uint32_t *root)
{
    const qmi_grammar *grammar = reader->grammar;
    bool has_root = false;
    const slot *missing = NULL;
    for (size_t i = 0; i < reader->slot_count; i++) {
        const slot *at = &reader->slots[i];
        if (at->rule == 0)
            continue;
        const qmi_grammar_rule *rule = &grammar->rules[at->rule - 1];
        if (!rule->defined && (!missing || at->used < missing->used))
            missing = at;
        if (rule->defined && rule->name_length == 4 && memcmp(grammar->bytes + rule->name, "root", 4) == 0) {
            has_root = true;
            *root = at->rule - 1;
        }
    }
    if (missing) {
        const qmi_grammar_rule *rule = &grammar->rules[missing->rule - 1];
        refuse_name(reader, missing->used, "rule '%s' is not defined", grammar->bytes + rule->name, rule->name_length);
    } else if (!has_root) {
        refuse(reader, reader->length, "the grammar has no rule root, where the text starts");
    }
}

int32_t qmi_gbnf_read(qmi_grammar *grammar, const char *text, size_t length, uint32_t *root)
{
    reader reader = { .grammar = grammar, .text = text, .length = length };
    int64_t invalid = qmi_unicode_find_invalid(text, (int64_t)length);
    *root = 0;
    if (invalid >= 0)
        refuse(&reader, (size_t)invalid, "the text is not UTF-8");
    skip_blanks(&reader, true);
    while (!failed(&reader) && reader.at < length) {
        take_rule(&reader);
        skip_blanks(&reader, true);
    }
    if (!failed(&reader))
        check_names(&reader, root);
    qmi_delete(&grammar->alloc, reader.slots);
    return grammar->code;
}
