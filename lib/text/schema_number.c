/* Bounds of numbers as digits: see schema_number.h.
 *
 * A number is compared with a bound digit by digit from the first: as long as all were equal the next one must not lie beyond the
 * bound's; once one differs the rest is free. Digits before the point are compared among numbers of as many of them. Bounds have
 * no zeros at the start of the integer part nor at the end of the fraction. */
#include "text/schema_number.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/number.h"

#define WHOLE_MOST 18    /* digits before the point, which 64 bits hold */
#define FRACTION_MOST 17 /* behind it, as many as a double can tell apart */

typedef struct bound { /* of a number that is not negative */
    char whole[WHOLE_MOST + 2], fraction[FRACTION_MOST + 1]; /* digits; whole "0" at least, fraction "" for none */
    bool endless;   /* no bound */
    bool exclusive;
} bound;

typedef struct limit { /* as the schema has it */
    bound size;
    bool given, negative;
} limit;

typedef struct digits {
    qmi_grammar *grammar;
    uint32_t places;     /* most digits behind the point */
} digits;

/* ---- expressions of digits ---- */

static qmi_expression digit(digits *d, char low, char high)
{
    return low > high ? qmi_grammar_never(d->grammar)
                      : qmi_grammar_class(d->grammar, &(qmi_code_points){ (uint8_t)low, (uint8_t)high }, 1, false);
}

static qmi_expression any_digits(digits *d, uint32_t least, uint32_t most)
{
    return qmi_grammar_repeat(d->grammar, digit(d, '0', '9'), least, most);
}

static void add_way(digits *d, qmi_expression any, char low, char high, qmi_expression rest)
{
    if (low <= high)
        qmi_grammar_add(d->grammar, any, qmi_grammar_both(d->grammar, digit(d, low, high), rest));
}

/* `count` digits from low up to high; NULL: no bound on that side. */
static qmi_expression whole_between(digits *d, const char *low, const char *high, size_t count)
{
    qmi_expression any = qmi_grammar_list(d->grammar, QMI_EXPRESSION_ALTERNATIVES);
    if (count == 0)
        return 0;
    if (!low && !high)
        return any_digits(d, (uint32_t)count, (uint32_t)count);
    char first = low ? *low : '0', last = high ? *high : '9';
    if (low && high && first == last) {
        add_way(d, any, first, last, whole_between(d, low + 1, high + 1, count - 1));
        return any;
    }
    if (low)
        add_way(d, any, first, first, whole_between(d, low + 1, NULL, count - 1));
    if (high)
        add_way(d, any, last, last, whole_between(d, NULL, high + 1, count - 1));
    add_way(d, any, low ? (char)(first + 1) : '0', high ? (char)(last - 1) : '9',
            any_digits(d, (uint32_t)count - 1, (uint32_t)count - 1));
    return any;
}

/* Integers without zeros at their start, from low to high, both included. high NULL: no bound. */
static qmi_expression integers(digits *d, const char *low, const char *high)
{
    qmi_expression any = qmi_grammar_list(d->grammar, QMI_EXPRESSION_ALTERNATIVES);
    size_t most = high ? strlen(high) : WHOLE_MOST;
    for (size_t count = strlen(low); count <= most; count++) {
        char least[WHOLE_MOST + 2] = "0";
        if (count == strlen(low))
            strcpy(least, low);
        else
            snprintf(least, sizeof least, "1%0*d", (int)count - 1, 0);
        qmi_grammar_add(d->grammar, any, whole_between(d, least, high && count == most ? high : NULL, count));
    }
    return any;
}

/* ---- fractions ---- */

/* What may follow `at` digits of a fraction that are those of `low` (and of `high`), NULL: not compared any more. */
static qmi_expression fraction_rest(digits *d, const bound *low, const bound *high, uint32_t at, bool end_allowed)
{
    qmi_expression any = qmi_grammar_list(d->grammar, QMI_EXPRESSION_ALTERNATIVES);
    size_t low_length = low ? strlen(low->fraction) : 0, high_length = high ? strlen(high->fraction) : 0;
    bool reaches = !low || (at >= low_length && !low->exclusive), stays = !high || at < high_length || !high->exclusive;
    if (end_allowed && reaches && stays)
        qmi_grammar_add(d->grammar, any, 0);
    if (at >= d->places)
        return any;
    char first = low && at < low_length ? low->fraction[at] : '0', last = high && at < high_length ? high->fraction[at] : '0';
    if (!low && !high) {
        add_way(d, any, '0', '9', any_digits(d, 0, d->places - at - 1));
        return any;
    }
    if (low && high && first == last) {
        add_way(d, any, first, last, fraction_rest(d, low, high, at + 1, true));
        return any;
    }
    if (low)
        add_way(d, any, first, first, fraction_rest(d, low, NULL, at + 1, true));
    if (high)
        add_way(d, any, last, last, fraction_rest(d, NULL, high, at + 1, true));
    add_way(d, any, low ? (char)(first + 1) : '0', high ? (char)(last - 1) : '9', any_digits(d, 0, d->places - at - 1));
    return any;
}

/* Nothing, or a point and digits, so that the number, whose integer part is that of the bounds given, lies within them. */
static qmi_expression fraction(digits *d, const bound *low, const bound *high)
{
    qmi_expression any = qmi_grammar_list(d->grammar, QMI_EXPRESSION_ALTERNATIVES);
    bool reaches = !low || (!*low->fraction && !low->exclusive), stays = !high || *high->fraction || !high->exclusive;
    if (reaches && stays)
        qmi_grammar_add(d->grammar, any, 0);
    if (d->places > 0)
        qmi_grammar_add(d->grammar, any,
                        qmi_grammar_both(d->grammar, qmi_grammar_word(d->grammar, "."), fraction_rest(d, low, high, 0, false)));
    return any;
}

static int compare_whole(const char *a, const char *b)
{
    size_t x = strlen(a), y = strlen(b);
    return x != y ? (x < y ? -1 : 1) : strcmp(a, b);
}

static int compare(const bound *a, const bound *b)
{
    int order = compare_whole(a->whole, b->whole);
    return order != 0 ? order : strcmp(a->fraction, b->fraction);
}

/* One more, or one less of a number above 0. */
static void move_by_one(char *whole, bool up)
{
    size_t length = strlen(whole), at = length;
    while (at > 0 && whole[at - 1] == (up ? '9' : '0'))
        whole[--at] = up ? '0' : '9';
    if (at > 0)
        whole[at - 1] = (char)(whole[at - 1] + (up ? 1 : -1));
    if (at == 0 && up) {
        memmove(whole + 1, whole, length + 1);
        whole[0] = '1';
    }
    if (!up && length > 1 && whole[0] == '0')
        memmove(whole, whole + 1, length);
}

/* Numbers that are not negative, from low to high. */
static qmi_expression between(digits *d, const bound *low, const bound *high)
{
    qmi_grammar *grammar = d->grammar;
    qmi_expression any = qmi_grammar_list(grammar, QMI_EXPRESSION_ALTERNATIVES);
    if (!high->endless && (compare(low, high) > 0 || (compare(low, high) == 0 && (low->exclusive || high->exclusive))))
        return any;
    if (!high->endless && strcmp(low->whole, high->whole) == 0) {
        qmi_grammar_add(grammar, any, qmi_grammar_both(grammar, qmi_grammar_word(grammar, low->whole), fraction(d, low, high)));
        return any;
    }
    bound above = *low, below = *high;
    qmi_grammar_add(grammar, any, qmi_grammar_both(grammar, qmi_grammar_word(grammar, low->whole), fraction(d, low, NULL)));
    move_by_one(above.whole, true);
    if (!high->endless) {
        qmi_grammar_add(grammar, any, qmi_grammar_both(grammar, qmi_grammar_word(grammar, high->whole), fraction(d, NULL, high)));
        move_by_one(below.whole, false);
    }
    if (strlen(above.whole) <= WHOLE_MOST && (high->endless || compare_whole(above.whole, below.whole) <= 0))
        qmi_grammar_add(grammar, any, qmi_grammar_both(grammar, integers(d, above.whole, high->endless ? NULL : below.whole),
                                                       fraction(d, NULL, NULL)));
    return any;
}

/* ---- bounds ---- */

/* Digits and exponent ("-12.5e-3") to a bound; false when it has too many digits behind the point. Too many before it: endless.
 */
static bool read_limit(const char *text, limit *out)
{
    char all[64] = "";
    size_t count = 0, point;
    *out = (limit){ .given = true, .negative = *text == '-' };
    text += *text == '-' || *text == '+';
    for (; *text >= '0' && *text <= '9' && count < 40; text++)
        all[count++] = *text;
    point = count;
    if (*text == '.')
        for (text++; *text >= '0' && *text <= '9' && count < 60; text++)
            all[count++] = *text;
    long moved = (long)point + (*text == 'e' || *text == 'E' ? strtol(text + 1, NULL, 10) : 0);
    size_t first = strspn(all, "0");
    while (count > first && all[count - 1] == '0')
        count--;
    if (count == first) { /* zero */
        strcpy(out->size.whole, "0");
        out->negative = false;
        return true;
    }
    if (moved - (long)first > WHOLE_MOST) {
        out->size.endless = true;
        return true;
    }
    if ((long)count - moved > FRACTION_MOST)
        return false;
    size_t digits = 0;
    for (long i = (long)first < moved ? (long)first : moved; i < moved; i++)
        out->size.whole[digits++] = i < (long)count ? all[i] : '0';
    if (digits == 0)
        out->size.whole[0] = '0';
    digits = 0;
    for (long i = moved; i < (long)count; i++)
        out->size.fraction[digits++] = i >= 0 ? all[i] : '0';
    return true;
}

static bool take_limit(qmi_schema *schema, const json_t *part, const char *keyword, const char *exclusive, limit *out)
{
    const json_t *values[] = { json_object_get(part, keyword), json_object_get(part, exclusive) };
    bool is_switch = json_is_boolean(values[1]); /* of the other one, as in draft 4 */
    limit read[2] = { { .given = false }, { .given = false } };
    for (int i = 0; i < (is_switch ? 1 : 2); i++) {
        qmi_string text = { 0 };
        qmi_writer writer = { .out = &text, .alloc = &schema->grammar->alloc };
        if (!values[i])
            continue;
        bool number = qmi_json_is_integer(values[i]) || json_is_real(values[i]);
        if (number)
            qmi_json_write(&writer, values[i]);
        bool fine = number && !writer.failed && read_limit(text.data, &read[i]);
        qmi_string_free(&text, &schema->grammar->alloc);
        if (writer.failed && schema->grammar->code >= 0)
            schema->grammar->code = QM_ERROR_MEMORY;
        if (!fine)
            qmi_schema_refuse(schema, "%s has to be a number of at most %d digits behind the point", i ? exclusive : keyword,
                              FRACTION_MOST);
        read[i].size.exclusive = i == 1 || json_is_true(values[1]);
    }
    if (read[0].given && read[1].given) {
        qmi_schema_refuse(schema, "%s and %s cannot both be set", keyword, exclusive);
        return false;
    }
    *out = read[1].given ? read[1] : read[0];
    return out->given;
}

/* The digits behind the point that multipleOf leaves. */
static uint32_t places_of(qmi_schema *schema, const json_t *part, bool whole)
{
    const json_t *step = json_object_get(part, "multipleOf");
    double unit = 1;
    if (!step)
        return whole ? 0 : FRACTION_MOST;
    for (uint32_t places = 0; places <= 9; places++, unit /= 10)
        if (json_is_number(step) && fabs(json_number_value(step) - unit) < unit * 1e-9)
            return whole ? 0 : places;
    qmi_schema_refuse(schema, "multipleOf is supported for 1, 0.1, 0.01 and so on only");
    return 0;
}

qmi_expression qmi_schema_number(qmi_schema *schema, const json_t *part, bool whole)
{
    qmi_grammar *grammar = schema->grammar;
    limit low = { .given = false }, high = { .given = false };
    digits d = { grammar, places_of(schema, part, whole) };
    bool bounded = take_limit(schema, part, "minimum", "exclusiveMinimum", &low);
    bounded = take_limit(schema, part, "maximum", "exclusiveMaximum", &high) || bounded;
    if (!bounded && !json_object_get(part, "multipleOf"))
        return qmi_json_call(grammar, &schema->rules, whole ? QMI_JSON_INTEGER : QMI_JSON_NUMBER);
    const bound zero = { .whole = "0" }, none = { .endless = true };
    bool zero_above =
        !low.given || low.negative || (!*low.size.fraction && strcmp(low.size.whole, "0") == 0 && !low.size.exclusive);
    bool zero_below =
        !high.given || (!high.negative && (high.size.endless || !high.size.exclusive || compare(&high.size, &zero) > 0));
    qmi_expression any = qmi_grammar_list(grammar, QMI_EXPRESSION_ALTERNATIVES);
    if (!high.given || !high.negative) {
        bound from = low.given && !low.negative ? low.size : zero;
        if (!from.endless)
            qmi_grammar_add(grammar, any, between(&d, &from, high.given ? &high.size : &none));
    }
    if (!low.given || low.negative) {
        bound from = high.given && high.negative ? high.size : zero;
        from.exclusive = high.given && high.negative ? high.size.exclusive : !(zero_above && zero_below);
        if (!from.endless)
            qmi_grammar_add(grammar, any, qmi_grammar_both(grammar, qmi_grammar_word(grammar, "-"),
                                                           between(&d, &from, low.given ? &low.size : &none)));
    }
    return any;
}
