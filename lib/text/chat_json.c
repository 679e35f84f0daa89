/* JSON as Python prints it: see chat_json.h. */
#include "text/chat_json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"

#define LONG_INTEGER '\xFF' /* first byte of a string that stands for an integer of more than 64 bits */

/* ---- in ---- */

static int32_t parse_failed(const json_error_t *error, const char *what)
{
    if (json_error_code(error) == json_error_out_of_memory)
        return qmi_fail(QM_ERROR_MEMORY, "out of memory: parsing the JSON of %s", what);
    char reason[JSON_ERROR_TEXT_LENGTH]; /* jansson may have cut it inside a code point */
    size_t length = 0;
    for (; error->text[length] && length + 1 < sizeof reason; length++)
        reason[length] = (unsigned char)error->text[length] < 0x80 ? error->text[length] : '?';
    reason[length] = 0;
    return qmi_fail(QM_ERROR_TEXT, "%s: malformed JSON at line %d, column %d: %s", what, error->line, error->column, reason);
}

/* End of the number that starts at `at`; *integer tells whether it has neither fraction nor exponent. */
static size_t number_end(qmi_view text, size_t at, bool *integer)
{
    *integer = true;
    while (at < text.length && strchr("+-.eE0123456789", text.data[at]) && text.data[at]) {
        if (strchr("+.eE", text.data[at]))
            *integer = false;
        at++;
    }
    return at;
}

/* jansson keeps 64 bits. Copies the text with every longer integer as a string "\u0000digits", and with one more \u0000 in
 * strings that start so themselves. */
static void quote_long_integers(qmi_view text, qmi_writer *writer)
{
    bool inside_string = false, integer;
    size_t at = 0, end;
    for (; at < text.length; at = end) {
        char c = text.data[at];
        end = at + 1;
        if (inside_string) {
            if (c == '\\' && end < text.length)
                end++;
            inside_string = c != '"';
        } else if (c == '"') {
            inside_string = true;
            qmi_write_text(writer, "\"");
            qmi_write_text(writer, qmi_view_starts(qmi_view_from(text, end), "\\u0000") ? "\\u0000" : "");
            continue;
        } else if (c == '-' || (c >= '0' && c <= '9')) {
            end = number_end(text, at, &integer);
            if (integer && end - at > 18) { /* 18 digits always fit */
                qmi_write_text(writer, "\"\\u0000");
                qmi_write(writer, qmi_view_cut(text, at, end));
                qmi_write_text(writer, "\"");
                continue;
            }
        }
        qmi_write(writer, qmi_view_cut(text, at, end));
    }
}

/* Undoes that: "\0digits" to LONG_INTEGER digits, which nothing that comes from JSON can look like.
 * NULL if they are no integer. */
static json_t *unquote(const json_t *string)
{
    qmi_view text = qmi_json_text(string);
    if (text.length > 1 && text.data[1] == 0)
        return json_stringn_nocheck(text.data + 1, text.length - 1);
    size_t first = text.length > 1 && text.data[1] == '-' ? 2 : 1;
    if (text.length <= first || (text.data[first] == '0' && text.length > first + 1))
        return NULL;
    for (size_t i = first; i < text.length; i++)
        if (text.data[i] < '0' || text.data[i] > '9')
            return NULL;
    json_t *made = json_stringn_nocheck(text.data, text.length);
    if (made)
        ((char *)json_string_value(made))[0] = LONG_INTEGER; /* in place: nobody else has this string yet */
    return made;
}

static bool is_quoted(const json_t *value)
{
    return json_is_string(value) && json_string_length(value) > 0 && json_string_value(value)[0] == 0;
}

static bool unquote_all(json_t *value)
{
    const char *key;
    json_t *child;
    size_t index;
    if (json_is_object(value)) {
        json_object_foreach(value, key, child)
            if (is_quoted(child) ? json_object_set_new_nocheck(value, key, unquote(child)) < 0 : !unquote_all(child))
                return false;
    } else if (json_is_array(value)) {
        json_array_foreach(value, index, child)
            if (is_quoted(child) ? json_array_set_new(value, index, unquote(child)) < 0 : !unquote_all(child))
                return false;
    }
    return true;
}

static int32_t parse_long(qmi_view text, const char *what, json_t **out)
{
    const qmi_alloc alloc = { 0 }; /* like jansson's own: the process's */
    qmi_string copy = { 0 };
    qmi_writer writer = { &copy, &alloc, false };
    json_error_t error;
    json_t *root = NULL;
    quote_long_integers(text, &writer);
    int32_t code = writer.failed ? QM_ERROR_MEMORY : QM_OK;
    if (code == QM_OK) {
        root = json_loadb(copy.data ? copy.data : "", copy.length, JSON_ALLOW_NUL, &error);
        if (!root)
            code = parse_failed(&error, what);
        else if (!unquote_all(root))
            code = qmi_fail(QM_ERROR_TEXT, "%s: a number in the JSON is malformed, or memory is out", what);
    }
    if (code < 0)
        json_decref(root);
    else
        *out = root;
    qmi_string_free(&copy, &alloc);
    return code;
}

int32_t qmi_json_parse(qmi_view text, const char *what, json_t **out)
{
    json_error_t error;
    *out = NULL;
    if (text.length > INT32_MAX) /* jansson counts positions in int */
        return qmi_fail(QM_ERROR_TEXT, "%s: %zu bytes of JSON are more than the 2 GiB that are taken", what, text.length);
    *out = json_loadb(text.length ? text.data : "", text.length, JSON_ALLOW_NUL, &error);
    if (*out)
        return QM_OK;
    if (json_error_code(&error) == json_error_numeric_overflow && strstr(error.text, "integer"))
        return parse_long(text, what, out);
    return parse_failed(&error, what);
}

int32_t qmi_json_parse_array(const char *text, int64_t length, const char *what, json_t **out)
{
    qmi_view view = { text, length < 0 ? strlen(text) : (size_t)length };
    int32_t code = qmi_json_parse(view, what, out);
    if (code < 0 || json_is_array(*out))
        return code;
    json_decref(*out);
    *out = NULL;
    return qmi_fail(QM_ERROR_TEXT, "%s must be a JSON array", what);
}

/* ---- questions ---- */

static bool is_long_integer(const json_t *value)
{
    return json_is_string(value) && json_string_length(value) > 0 && json_string_value(value)[0] == LONG_INTEGER;
}

bool qmi_json_is_integer(const json_t *value)
{
    return json_is_integer(value) || is_long_integer(value);
}

bool qmi_json_is_string(const json_t *value)
{
    return json_is_string(value) && !is_long_integer(value);
}

qmi_view qmi_json_text(const json_t *string)
{
    return (qmi_view){ json_string_value(string), json_string_length(string) };
}

bool qmi_json_equals(const json_t *value, const char *text)
{
    size_t length = strlen(text);
    return json_is_string(value) && json_string_length(value) == length && memcmp(json_string_value(value), text, length) == 0;
}

json_t *qmi_json_get(const json_t *object, const char *key)
{
    return json_object_get(object, key);
}

/* ---- out ---- */

void qmi_json_write_string(qmi_writer *writer, qmi_view text)
{
    static const char escaped[] = "\"\\\n\r\t\f\b", letters[] = "\"\\nrtfb";
    size_t written = 0;
    qmi_write_text(writer, "\"");
    for (size_t i = 0; i < text.length; i++) {
        unsigned char c = (unsigned char)text.data[i];
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        char escape[8];
        const char *short_form = c ? strchr(escaped, c) : NULL;
        if (short_form)
            snprintf(escape, sizeof escape, "\\%c", letters[short_form - escaped]);
        else
            snprintf(escape, sizeof escape, "\\u%04x", c);
        qmi_write(writer, qmi_view_cut(text, written, i));
        qmi_write_text(writer, escape);
        written = i + 1;
    }
    qmi_write(writer, qmi_view_from(text, written));
    qmi_write_text(writer, "\"");
}

/* The fewest digits that read back as `value`, and of these the nearest: digits * 10^exponent. Locale-free: only digits are read.
 * Next to a power of two the nearest decimal of a length may fail where the one above it reads back, since doubles lie twice as
 * dense below; hence the second try. */
static void shortest_digits(double value, int64_t *digits, int *exponent)
{
    for (int precision = 0; precision <= 16; precision++) {
        char text[40];
        snprintf(text, sizeof text, "%.*e", precision, value);
        *digits = 0;
        char *p = text;
        for (; *p != 'e'; p++)
            if (*p >= '0' && *p <= '9')
                *digits = *digits * 10 + (*p - '0');
        *exponent = atoi(p + 1) - precision;
        for (int more = 0; more <= 1; more++) {
            snprintf(text, sizeof text, "%llde%d", (long long)*digits + more, *exponent);
            if (strtod(text, NULL) == value) {
                *digits += more;
                return;
            }
        }
    }
}

void qmi_json_write_float(qmi_writer *writer, double value)
{
    char digits[24], text[64];
    int64_t number;
    int exponent;
    bool negative = value < 0 || (value == 0 && 1 / value < 0);
    if (negative)
        qmi_write_text(writer, "-");
    shortest_digits(negative ? -value : value, &number, &exponent);
    for (; number && number % 10 == 0; number /= 10)
        exponent++;
    int count = snprintf(digits, sizeof digits, "%lld", (long long)number);
    int point = number ? count + exponent : 1; /* digits before the decimal point */
    if (point > 16 || point < -3)
        snprintf(text, sizeof text, "%c%s%se%c%02d", digits[0], count > 1 ? "." : "", digits + 1,
            point > 0 ? '+' : '-', abs(point - 1));
    else if (point <= 0)
        snprintf(text, sizeof text, "0.%.*s%s", -point, "000", digits);
    else if (point >= count)
        snprintf(text, sizeof text, "%s%.*s.0", digits, point - count, "0000000000000000");
    else
        snprintf(text, sizeof text, "%.*s.%s", point, digits, digits + point);
    qmi_write_text(writer, text);
}

static void write_integer(qmi_writer *writer, const json_t *value)
{
    char text[24];
    if (is_long_integer(value)) {
        qmi_write(writer, qmi_view_from(qmi_json_text(value), 1));
        return;
    }
    snprintf(text, sizeof text, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    qmi_write_text(writer, text);
}

static void write_object(qmi_writer *writer, const json_t *value)
{
    const char *key, *separator = "{";
    json_t *child;
    json_object_foreach((json_t *)value, key, child) {
        qmi_write_text(writer, separator);
        qmi_json_write_string(writer, qmi_view_of(key));
        qmi_write_text(writer, ": ");
        qmi_json_write(writer, child);
        separator = ", ";
    }
    qmi_write_text(writer, json_object_size(value) ? "}" : "{}");
}

void qmi_json_write(qmi_writer *writer, const json_t *value)
{
    if (qmi_json_is_integer(value)) {
        write_integer(writer, value);
    } else if (json_is_string(value)) {
        qmi_json_write_string(writer, qmi_json_text(value));
    } else if (json_is_real(value)) {
        qmi_json_write_float(writer, json_real_value(value));
    } else if (json_is_object(value)) {
        write_object(writer, value);
    } else if (json_is_array(value)) {
        qmi_write_text(writer, "[");
        for (size_t i = 0; i < json_array_size(value); i++) {
            qmi_write_text(writer, i ? ", " : "");
            qmi_json_write(writer, json_array_get(value, i));
        }
        qmi_write_text(writer, "]");
    } else {
        qmi_write_text(writer, json_is_true(value) ? "true" : json_is_false(value) ? "false" : "null");
    }
}

bool qmi_json_write_str(qmi_writer *writer, const json_t *value)
{
    if (json_is_object(value) || json_is_array(value))
        return false;
    if (qmi_json_is_string(value))
        qmi_write(writer, qmi_json_text(value));
    else if (json_is_true(value) || json_is_false(value))
        qmi_write_text(writer, json_is_true(value) ? "True" : "False");
    else if (json_is_null(value))
        qmi_write_text(writer, "None");
    else
        qmi_json_write(writer, value);
    return true;
}
