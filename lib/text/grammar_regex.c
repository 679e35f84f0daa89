/* Reads regular expressions: see grammar_regex.h. */
#include "text/grammar_regex.h"

#include <string.h>
#include "text/unicode.h"

#define SET_MOST 256 /* ranges of a class */
#define ENDLESS UINT64_MAX

typedef struct set { /* of characters */
    qmi_code_points ranges[SET_MOST];
    size_t count;
    bool negated;
} set;

typedef struct piece { /* of the pattern, read */
    qmi_expression expression;
    uint64_t least, most;
} piece;

typedef struct reader {
    qmi_regex *regex;
    qmi_grammar *grammar;
    const char *text;
    size_t length, at;
    int depth;
    const char *why;
    size_t where;
} reader;

static void refuse(reader *reader, size_t where, const char *why)
{
    if (reader->why)
        return;
    reader->why = why;
    reader->where = where;
}

static bool failed(const reader *reader)
{
    return reader->why || reader->grammar->code < 0;
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

static uint64_t add(uint64_t a, uint64_t b)
{
    return a > ENDLESS - b ? ENDLESS : a + b;
}

static uint64_t times(uint64_t a, uint64_t b)
{
    return a != 0 && b > ENDLESS / a ? ENDLESS : a * b;
}

/* ---- sets ---- */

static void add_range(reader *reader, set *set, uint32_t low, uint32_t high)
{
    if (set->count == SET_MOST)
        refuse(reader, reader->at, "the class has too many ranges");
    else
        set->ranges[set->count++] = (qmi_code_points){ low, high };
}

static void add_ranges(reader *reader, set *set, const qmi_code_points *ranges, size_t count, bool negated)
{
    uint32_t from = 0;
    for (size_t i = 0; i < count; i++) { /* in order */
        if (!negated)
            add_range(reader, set, ranges[i].low, ranges[i].high);
        else if (ranges[i].low > from)
            add_range(reader, set, from, ranges[i].low - 1);
        from = ranges[i].high + 1;
    }
    if (negated)
        add_range(reader, set, from, 0x10FFFF);
}

/* \d \w \s and their opposites, as ECMA-262 has them. */
static bool add_named(reader *reader, set *set, char name)
{
    static const qmi_code_points digits[] = { { '0', '9' } },
                                 words[] = { { '0', '9' }, { 'A', 'Z' }, { '_', '_' }, { 'a', 'z' } };
    static const qmi_code_points blanks[] = { { 9, 13 }, { 32, 32 }, { 0xA0, 0xA0 }, { 0x1680, 0x1680 }, { 0x2000, 0x200A },
                                              { 0x2028, 0x2029 }, { 0x202F, 0x202F }, { 0x205F, 0x205F }, { 0x3000, 0x3000 },
                                              { 0xFEFF, 0xFEFF } };
    switch (name) {
    case 'd':
    case 'D':
        add_ranges(reader, set, digits, 1, name == 'D');
        return true;
    case 'w':
    case 'W':
        add_ranges(reader, set, words, 4, name == 'W');
        return true;
    case 's':
    case 'S':
        add_ranges(reader, set, blanks, sizeof blanks / sizeof blanks[0], name == 'S');
        return true;
    default:
        return false;
    }
}

static bool has(const set *set, uint32_t c)
{
    bool found = false;
    for (size_t i = 0; i < set->count; i++)
        found = found || (set->ranges[i].low <= c && c <= set->ranges[i].high);
    return found != set->negated;
}

/* The set's characters without those that JSON escapes (or that would end the text that stands plainly). */
static qmi_expression unescaped(reader *reader, const set *given)
{
    set rest = { .count = 0 };
    uint32_t low = 0, high;
    bool plain = reader->regex->plain;
    if (given->negated) {
        rest = *given;
        add_range(reader, &rest, 0, 0x1F);
        add_range(reader, &rest, plain ? '<' : '"', plain ? '<' : '"');
        if (!plain)
            add_range(reader, &rest, '\\', '\\');
        return qmi_grammar_class(reader->grammar, rest.ranges, rest.count, true);
    }
    for (size_t i = 0; i < given->count; i++) {
        for (low = given->ranges[i].low; low <= given->ranges[i].high; low = high + 1) {
            static const uint32_t ends[] = { 0x1F, '"' - 1, '"', '<' - 1, '<', '\\' - 1, '\\', 0x10FFFF };
            size_t e = 0;
            while (ends[e] < low)
                e++;
            high = ends[e] < given->ranges[i].high ? ends[e] : given->ranges[i].high;
            bool left_out = e == 0 || (plain ? e == 4 : e == 2 || e == 6);
            if (!left_out)
                add_range(reader, &rest, low, high);
        }
    }
    return qmi_grammar_class(reader->grammar, rest.ranges, rest.count, false);
}

static qmi_expression escape_of(qmi_grammar *grammar, uint32_t c)
{
    static const char escaped[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt", hex[] = "0123456789abcdef";
    const char *found = memchr(escaped, (int)c, 7);
    if (found)
        return qmi_grammar_literal(grammar, (const char[]){ '\\', letters[found - escaped] }, 2);
    return qmi_grammar_literal(grammar, (const char[]){ '\\', 'u', '0', '0', hex[c >> 4], hex[c & 15] }, 6);
}

static piece of_set(reader *reader, const set *given)
{
    qmi_grammar *grammar = reader->grammar;
    qmi_expression any = qmi_grammar_list(grammar, QMI_EXPRESSION_ALTERNATIVES);
    qmi_grammar_add(grammar, any, unescaped(reader, given));
    for (uint32_t c = 1; c <= '\\'; c++) { /* not U+0000, as elsewhere */
        bool control = c < 0x20, mark = c == '"' || c == '\\';
        if ((control || (mark && !reader->regex->plain)) && has(given, c))
            qmi_grammar_add(grammar, any, reader->regex->plain ? qmi_grammar_literal(grammar, (const char[]){ (char)c }, 1)
                                                               : escape_of(grammar, c));
    }
    return (piece){ any, 1, 1 };
}

static piece of_character(reader *reader, uint32_t c)
{
    const set one = { .ranges = { { c, c } }, .count = 1 };
    return of_set(reader, &one);
}

/* Any text, before or behind what has no anchor. */
static qmi_expression anything(reader *reader)
{
    const set all = { .negated = true };
    qmi_expression character = reader->regex->plain ? of_set(reader, &all).expression
                                                    : qmi_json_character(reader->grammar, reader->regex->rules);
    return qmi_grammar_repeat(reader->grammar, character, 0, QMI_GRAMMAR_ENDLESS);
}

/* ---- characters ---- */

static uint32_t take_hex(reader *reader, size_t least, size_t most)
{
    uint32_t value = 0;
    size_t count = 0, start = reader->at;
    for (; count < most; count++, reader->at++) {
        char c = peek(reader);
        const char *digits = "0123456789abcdefABCDEF", *found = c ? strchr(digits, c) : NULL;
        if (!found)
            break;
        uint32_t digit = (uint32_t)(found - digits);
        value = value << 4 | (digit < 16 ? digit : digit - 6);
    }
    if (count < least || value > 0x10FFFF)
        refuse(reader, start, "this escape has no character's hexadecimal number");
    return value;
}

/* \uHHHH, two of them for a character beyond U+FFFF, or \u{H...}. */
static uint32_t take_unicode(reader *reader)
{
    if (take(reader, "{")) {
        uint32_t value = take_hex(reader, 1, 6);
        if (!take(reader, "}"))
            refuse(reader, reader->at, "the escape's brace is not closed");
        return value;
    }
    uint32_t high = take_hex(reader, 4, 4);
    if (high >= 0xD800 && high < 0xDC00 && take(reader, "\\u")) {
        uint32_t low = take_hex(reader, 4, 4);
        return low >= 0xDC00 && low < 0xE000 ? 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00) : 0xFFFD;
    }
    return high;
}

/* Behind a backslash: one character. */
static uint32_t take_escape(reader *reader)
{
    static const char letters[] = "tnrfv", meant[] = "\t\n\r\f\v";
    size_t start = reader->at - 1;
    char c = peek(reader);
    const char *found = c ? strchr(letters, c) : NULL;
    if (reader->at < reader->length)
        reader->at++;
    if (found)
        return (uint8_t)meant[found - letters];
    if (c == 'x')
        return take_hex(reader, 2, 2);
    if (c == 'u')
        return take_unicode(reader);
    if (!c || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (uint8_t)c >= 0x80)
        refuse(reader, start, "this escape is not supported");
    return (uint8_t)c;
}

static uint32_t take_character(reader *reader)
{
    int32_t length;
    uint32_t c = qmi_unicode_decode(reader->text + reader->at, &length);
    reader->at += (size_t)length;
    return c;
}

/* One end of a range in a class; false when it was \d or the like, which is then in the set. */
static bool take_class_character(reader *reader, set *set, uint32_t *c)
{
    if (!take(reader, "\\")) {
        *c = take_character(reader);
        return true;
    }
    if (add_named(reader, set, peek(reader))) {
        reader->at++;
        return false;
    }
    bool backspace = take(reader, "b");
    *c = backspace ? '\b' : take_escape(reader);
    return true;
}

static piece take_class(reader *reader)
{
    set all = { .count = 0 };
    size_t start = reader->at - 1;
    all.negated = take(reader, "^");
    while (!failed(reader) && reader->at < reader->length && peek(reader) != ']') {
        uint32_t low, high;
        size_t from = reader->at;
        if (!take_class_character(reader, &all, &low))
            continue;
        high = low;
        bool ranges = peek(reader) == '-' && reader->at + 1 < reader->length && reader->text[reader->at + 1] != ']';
        if (ranges) {
            reader->at++;
            if (!take_class_character(reader, &all, &high))
                refuse(reader, from, "a range cannot end in a class");
        }
        if (high < low)
            refuse(reader, from, "the range ends before it starts");
        add_range(reader, &all, low, high);
    }
    if (!take(reader, "]"))
        refuse(reader, start, "this class is not closed");
    return of_set(reader, &all);
}

/* ---- repetitions, groups, alternatives ---- */

static piece take_alternatives(reader *reader);

static piece take_group(reader *reader)
{
    size_t start = reader->at - 1;
    if (take(reader, "?<")) {
        bool behind = peek(reader) == '=' || peek(reader) == '!';
        while (!behind && reader->at < reader->length && peek(reader) != '>')
            reader->at++;
        if (behind || !take(reader, ">"))
            refuse(reader, start, "looking behind is not supported");
    } else if (take(reader, "?") && !take(reader, ":")) {
        refuse(reader, start, "of groups that begin with ? only (?: and (?<name> are supported");
    }
    if (++reader->depth > QMI_GRAMMAR_DEPTH)
        refuse(reader, start, "groups are nested too deeply");
    piece inside = failed(reader) ? (piece){ 0, 0, 0 } : take_alternatives(reader);
    reader->depth--;
    if (!take(reader, ")"))
        refuse(reader, start, "this group is not closed");
    return inside;
}

static piece take_atom(reader *reader)
{
    static const set but_lines = { .ranges = { { '\n', '\n' }, { '\r', '\r' }, { 0x2028, 0x2029 } },
                                   .count = 3,
                                   .negated = true };
    set named = { .count = 0 };
    size_t start = reader->at;
    if (take(reader, "("))
        return take_group(reader);
    if (take(reader, "["))
        return take_class(reader);
    if (take(reader, "."))
        return of_set(reader, &but_lines);
    if (take(reader, "\\")) {
        if (!add_named(reader, &named, peek(reader)))
            return of_character(reader, take_escape(reader));
        reader->at++;
        return of_set(reader, &named);
    }
    if (strchr("^$", peek(reader)))
        refuse(reader, start, "^ and $ are supported at the ends of a whole alternative only");
    else if (strchr("*+?{}", peek(reader)))
        refuse(reader, start, "there is nothing to repeat before this, or a { that is no repetition");
    return of_character(reader, take_character(reader));
}

static bool take_count(reader *reader, uint32_t *count)
{
    uint64_t value = 0;
    size_t start = reader->at;
    while (peek(reader) >= '0' && peek(reader) <= '9' && value <= QMI_GRAMMAR_COUNT)
        value = value * 10 + (uint64_t)(reader->text[reader->at++] - '0');
    if (value > QMI_GRAMMAR_COUNT)
        refuse(reader, start, "the number of repetitions is over 1000000000");
    *count = (uint32_t)value;
    return reader->at > start;
}

static piece take_repetition(reader *reader, piece what)
{
    uint32_t least = 0, most = QMI_GRAMMAR_ENDLESS;
    size_t start = reader->at;
    if (take(reader, "{")) {
        bool counted = take_count(reader, &least);
        most = least;
        if (take(reader, ",") && !take_count(reader, &most))
            most = QMI_GRAMMAR_ENDLESS;
        if (!counted || !take(reader, "}") || most < least)
            refuse(reader, start, "a repetition is written {m}, {m,} or {m,n}");
    } else if (take(reader, "?")) {
        most = 1;
    } else if (take(reader, "+")) {
        least = 1;
    } else if (!take(reader, "*")) {
        return what;
    }
    take(reader, "?");
    if (strchr("*+?{", peek(reader)) && peek(reader))
        refuse(reader, reader->at, "there is nothing to repeat before this");
    what.expression = qmi_grammar_repeat(reader->grammar, what.expression, least, most);
    what.least = times(what.least, least);
    what.most = most == QMI_GRAMMAR_ENDLESS ? (what.most ? ENDLESS : 0) : times(what.most, most);
    return what;
}

/* One alternative; in the whole pattern's, ^ and $ anchor it, and else anything may stand around it. */
static piece take_sequence(reader *reader)
{
    qmi_grammar *grammar = reader->grammar;
    piece whole = { qmi_grammar_list(grammar, QMI_EXPRESSION_SEQUENCE), 0, 0 };
    bool outer = reader->depth == 0, starts = outer && take(reader, "^"), ends = false;
    if (outer && !starts)
        qmi_grammar_add(grammar, whole.expression, anything(reader));
    while (!failed(reader) && reader->at < reader->length && peek(reader) != '|' && peek(reader) != ')') {
        bool last = reader->at + 1 == reader->length || reader->text[reader->at + 1] == '|';
        ends = outer && last && take(reader, "$");
        if (ends)
            break;
        piece part = take_repetition(reader, take_atom(reader));
        qmi_grammar_add(grammar, whole.expression, part.expression);
        whole.least = add(whole.least, part.least);
        whole.most = add(whole.most, part.most);
    }
    if (outer && !ends)
        qmi_grammar_add(grammar, whole.expression, anything(reader));
    if (outer && !(starts && ends))
        whole.most = ENDLESS;
    return whole;
}

static piece take_alternatives(reader *reader)
{
    piece all = { qmi_grammar_list(reader->grammar, QMI_EXPRESSION_ALTERNATIVES), ENDLESS, 0 };
    do {
        piece one = take_sequence(reader);
        qmi_grammar_add(reader->grammar, all.expression, one.expression);
        all.least = one.least < all.least ? one.least : all.least;
        all.most = one.most > all.most ? one.most : all.most;
    } while (!failed(reader) && take(reader, "|"));
    return all;
}

qmi_expression qmi_regex_read(qmi_regex *regex, const char *pattern, size_t length, const char **why, size_t *where)
{
    reader reader = { .regex = regex, .grammar = regex->grammar, .text = pattern, .length = length };
    piece all = take_alternatives(&reader);
    if (!failed(&reader) && reader.at < length)
        refuse(&reader, reader.at, "this parenthesis closes none");
    regex->least = all.least;
    regex->most = all.most;
    *why = reader.why;
    *where = reader.where;
    return all.expression;
}

/* ---- formats ---- */

#define DAY_OF_YEAR "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
#define LEAP_YEAR "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)" /* by the Gregorian rule */
#define DATE "([0-9]{4}-(" DAY_OF_YEAR ")|" LEAP_YEAR "-02-29)"
#define TIME "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
#define BYTE "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#define LABEL "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"

const char *qmi_regex_format(const char *name)
{
    /* Each has texts of that format, if not all of them: RFC 3339 (without leap seconds), 4122, 2673, 1123, and plain e-mail
     * addresses and URIs. */
    static const struct {
        const char *name, *pattern;
    } formats[] = {
        { "date", "^" DATE "$" },
        { "time", "^" TIME "$" },
        { "date-time", "^" DATE "T" TIME "$" },
        { "uuid", "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$" },
        { "ipv4", "^" BYTE "(\\." BYTE "){3}$" },
        { "hostname", "^" LABEL "(\\." LABEL "){0,3}$" },
        { "email", "^[A-Za-z0-9_+-]{1,32}(\\.[A-Za-z0-9_+-]{1,16}){0,3}@" LABEL "(\\." LABEL "){1,3}$" },
        { "uri",
          "^[a-z][a-z0-9+.-]{0,15}://[A-Za-z0-9][A-Za-z0-9.-]{0,99}(:[0-9]{1,4})?(/[A-Za-z0-9._~!$&'()*+,;=:@-]{0,64}){0,16}"
          "(\\?[A-Za-z0-9._~!$&'()*+,;=:@/?-]{0,200})?(#[A-Za-z0-9._~!$&'()*+,;=:@/?-]{0,200})?$" },
    };
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++)
        if (strcmp(formats[i].name, name) == 0)
            return formats[i].pattern;
    return NULL;
}
