/* Reads one tool call, XML-like or JSON, however sloppily the model wrote it: see answer.h. */
#include "text/answer_calls.h"

#include <string.h>

static bool is_blank(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

static size_t skip_blanks(qmi_view text, size_t at)
{
    while (at < text.length && is_blank(text.data[at]))
        at++;
    return at;
}

static bool has(qmi_view text, size_t at, const char *word)
{
    return qmi_view_starts(qmi_view_from(text, at), word);
}

bool qmi_call_ends_inside(qmi_view text, size_t at, const char *word)
{
    size_t left = text.length - at;
    return left < strlen(word) && memcmp(text.data + at, word, left) == 0;
}

bool qmi_call_at_line_start(qmi_view text, size_t at)
{
    return at == 0 || text.data[at - 1] == '\n';
}

bool qmi_call_starts(qmi_view text, size_t at)
{
    if (!has(text, at, "<tool_call>"))
        return false;
    at = skip_blanks(text, at + strlen("<tool_call>"));
    return has(text, at, "{") || has(text, at, "<function=") || qmi_call_ends_inside(text, at, "<function=");
}

/* The next '<' from `at` on, or the text's end. */
static size_t next_mark(qmi_view text, size_t at)
{
    const char *hit = at < text.length ? memchr(text.data + at, '<', text.length - at) : NULL;
    return hit ? (size_t)(hit - text.data) : text.length;
}

/* ---- XML-like ---- */

/* Text between `start` and the '>' of its line, without blanks around it. */
static qmi_call_result read_name(qmi_view text, size_t start, qmi_view *name, size_t *end)
{
    size_t at = start;
    while (at < text.length && text.data[at] != '>' && text.data[at] != '\n' && text.data[at] != 0)
        at++;
    *end = at;
    if (at == text.length)
        return QMI_CALL_UNFINISHED;
    if (text.data[at] != '>')
        return QMI_CALL_MALFORMED;
    *end = at + 1;
    while (start < at && is_blank(text.data[start]))
        start++;
    while (at > start && is_blank(text.data[at - 1]))
        at--;
    *name = qmi_view_cut(text, start, at);
    return name->length ? QMI_CALL_READ : QMI_CALL_MALFORMED;
}

/* Whether what stands at `at`, after a </parameter>, is what the format has there. */
static bool follows_value(qmi_view text, size_t at)
{
    static const char *const words[] = { "<parameter=", "</function>", "</tool_call>" };
    at = skip_blanks(text, at);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (has(text, at, words[i]) || qmi_call_ends_inside(text, at, words[i]))
            return true;
    return qmi_call_starts(text, at);
}

/* The place of the </parameter> that closes a value, where calls quoted in the value have theirs too; or the text's end. */
static size_t find_balanced_end(qmi_view text, size_t start)
{
    int64_t depth = 1;
    for (size_t at = next_mark(text, start); at < text.length; at = next_mark(text, at + 1)) {
        if (has(text, at, "</parameter>")) {
            if (depth > 1)
                depth--;
            else if (follows_value(text, at + strlen("</parameter>")))
                return at;
        } else if (has(text, at, "<parameter=") && qmi_call_at_line_start(text, at)) {
            depth++;
        }
    }
    return text.length;
}

/* Whether a parameter that the function may have starts at `at`. */
static bool starts_parameter(const qmi_call_reader *reader, qmi_view function, size_t at)
{
    qmi_view key;
    size_t end;
    return has(reader->text, at, "<parameter=") && read_name(reader->text, at + strlen("<parameter="), &key,
        &end) == QMI_CALL_READ &&
           qmi_call_may_have(reader->tools, function, key);
}

/* The place of whatever shows that the value is over, its </parameter> perhaps missing; or the text's end. */
static size_t find_any_end(const qmi_call_reader *reader, qmi_view function, size_t start)
{
    qmi_view text = reader->text;
    for (size_t at = next_mark(text, start); at < text.length; at = next_mark(text, at + 1)) {
        bool line_start = qmi_call_at_line_start(text, at);
        if (has(text, at, "</parameter>") && follows_value(text, at + strlen("</parameter>")))
            return at;
        if (has(text, at, "</tool_call>") || has(text, at, "</function>") || qmi_call_starts(text, at))
            return at;
        if (line_start && starts_parameter(reader, function, at))
            return at;
    }
    return text.length;
}

/* From "<parameter=" on: adds the parameter to the call. */
static qmi_call_result read_parameter(qmi_call_reader *reader, size_t at, qmi_answer_call *call, size_t *end)
{
    qmi_view text = reader->text, name;
    qmi_call_result result = read_name(text, at + strlen("<parameter="), &name, end);
    if (result != QMI_CALL_READ)
        return result;
    size_t start = *end;
    if (has(text, start, "\n"))
        start++;
    else if (has(text, start, "\r\n"))
        start += 2;
    size_t stop = reader->no_nesting ? text.length : find_balanced_end(text, start);
    if (stop == text.length) {
        reader->no_nesting = true;
        stop = find_any_end(reader, call->name, start);
    }
    *end = stop;
    if (stop == text.length)
        return QMI_CALL_UNFINISHED;
    if (has(text, stop, "</parameter>"))
        *end = stop + strlen("</parameter>");
    qmi_view value = qmi_view_cut(text, start, stop);
    if (value.length && value.data[value.length - 1] == '\n')
        value.length--;
    if (value.length && value.data[value.length - 1] == '\r' && start >= 2 && text.data[start - 2] == '\r')
        value.length--; /* an answer with \r\n throughout */
    char *key = qmi_new_text(reader->alloc, name.data, name.length);
    if (!key)
        return QMI_CALL_NO_MEMORY;
    if (qmi_json_get(call->arguments, key))
        result = QMI_CALL_MALFORMED; /* an object cannot keep both */
    else if (json_object_set_new_nocheck(call->arguments, key, qmi_call_value(reader, call->name, key, value)) < 0)
        result = QMI_CALL_NO_MEMORY;
    qmi_delete(reader->alloc, key);
    return result;
}

/* From "<function=" on. *end: behind </function>, or what shows that it is missing. */
static qmi_call_result read_function(qmi_call_reader *reader, size_t at, qmi_answer_call *call, size_t *end)
{
    qmi_view text = reader->text;
    qmi_call_result result = read_name(text, at + strlen("<function="), &call->name, end);
    while (result == QMI_CALL_READ) {
        at = skip_blanks(text, *end);
        if (has(text, at, "<parameter=")) {
            result = read_parameter(reader, at, call, end);
        } else if (has(text, at, "</parameter>")) {
            *end = at + strlen("</parameter>"); /* one too many */
        } else if (has(text, at, "</function>")) {
            *end = at + strlen("</function>");
            return QMI_CALL_READ;
        } else if (has(text, at, "</tool_call>") || qmi_call_starts(text, at)) {
            return QMI_CALL_READ;
        } else {
            *end = at;
            return qmi_call_ends_inside(text, at, "<parameter=") || qmi_call_ends_inside(text, at, "</parameter>") ||
                    qmi_call_ends_inside(text, at, "</function>") || qmi_call_ends_inside(text, at, "</tool_call>")
                ? QMI_CALL_UNFINISHED : QMI_CALL_MALFORMED;
        }
    }
    return result;
}

/* ---- JSON ---- */

/* The end of the JSON object at `at`; the text's end + 1 when the text ends inside it, 0 when it is none. */
static size_t object_end(qmi_view text, size_t at)
{
    int64_t depth = 0;
    bool in_string = false;
    for (; at < text.length; at++) {
        char c = text.data[at];
        if (in_string) {
            if (c == '\n')
                return 0;
            if (c == '\\')
                at++;
            in_string = c != '"';
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            if (--depth == 0)
                return at + 1;
        } else if (!is_blank(c) && !memchr("+-.,:0123456789Eaeflnrstu", c, 25)) {
            return 0;
        }
    }
    return text.length + 1;
}

/* Arguments: an object, one written as text, or nothing for none. New reference or NULL; false: no memory. */
static bool take_arguments(json_t *given, json_t **arguments)
{
    *arguments = NULL;
    if (!given || json_is_null(given))
        return (*arguments = json_object()) != NULL;
    if (json_is_object(given)) {
        *arguments = json_incref(given);
    } else if (qmi_json_is_string(given)) {
        if (qmi_json_parse(qmi_json_text(given), "arguments", arguments) == QM_ERROR_MEMORY)
            return false;
        if (*arguments && !json_is_object(*arguments)) {
            json_decref(*arguments);
            *arguments = NULL;
        }
    }
    return true;
}

/* Keys that a call may have; with any other one something would be lost. */
static bool has_only_known_keys(json_t *object)
{
    static const char *const known[] = { "name", "arguments", "parameters", "id", "type", "function" };
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
            found = found || strcmp(key, known[i]) == 0;
        if (!found)
            return false;
    }
    return true;
}

static qmi_call_result read_object(qmi_call_reader *reader, size_t at, qmi_answer_call *call, size_t *end)
{
    json_t *object = NULL;
    *end = at + 1;
    size_t stop = object_end(reader->text, at);
    if (stop > reader->text.length)
        return QMI_CALL_UNFINISHED;
    if (stop == 0)
        return QMI_CALL_MALFORMED;
    int32_t code = qmi_json_parse(qmi_view_cut(reader->text, at, stop), "a tool call", &object);
    if (code < 0)
        return code == QM_ERROR_MEMORY ? QMI_CALL_NO_MEMORY : QMI_CALL_MALFORMED;
    qmi_call_result result = QMI_CALL_MALFORMED;
    json_t *inner = qmi_json_get(object, "function"), *from = json_is_object(inner) ? inner : object;
    json_t *name = qmi_json_get(from, "name"), *given = qmi_json_get(from, "arguments");
    if (!given)
        given = qmi_json_get(from, "parameters");
    if (has_only_known_keys(object) && has_only_known_keys(from) && qmi_json_is_string(name) && json_string_length(name)) {
        json_decref(call->arguments);
        if (!take_arguments(given, &call->arguments))
            result = QMI_CALL_NO_MEMORY;
        else if (call->arguments)
            result = QMI_CALL_READ;
        call->name_owner = json_incref(name);
        call->name = qmi_json_text(name);
        *end = stop;
    }
    json_decref(object);
    return result;
}

/* ---- call ---- */

qmi_call_result qmi_call_read(qmi_call_reader *reader, size_t at, qmi_answer_call *call, size_t *end)
{
    qmi_view text = reader->text;
    size_t start = has(text, at, "<tool_call>") ? skip_blanks(text, at + strlen("<tool_call>")) : at;
    qmi_call_result result;
    *call = (qmi_answer_call){ .arguments = json_object() };
    *end = at + 1;
    if (!call->arguments)
        result = QMI_CALL_NO_MEMORY;
    else if (has(text, start, "<function="))
        result = read_function(reader, start, call, end);
    else if (has(text, start, "{"))
        result = read_object(reader, start, call, end);
    else
        result = qmi_call_ends_inside(text, start, "<function=") ? QMI_CALL_UNFINISHED : QMI_CALL_MALFORMED;
    if (result != QMI_CALL_READ) {
        json_decref(call->arguments);
        json_decref(call->name_owner);
        return result;
    }
    size_t close = skip_blanks(text, *end);
    if (has(text, close, "</tool_call>")) {
        *end = close + strlen("</tool_call>");
    } else if (close < text.length && qmi_call_ends_inside(text, close, "</tool_call>")) {
        *end = text.length;
        reader->cut_mark = true;
    }
    return QMI_CALL_READ;
}
