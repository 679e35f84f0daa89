/* Thoughts, text and calls as they come; see reply_parts.h. */
#include "reply_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALL_END "</tool_call>"

void parts_start(reply_parts *parts, const qm_model *model, const char *tools)
{
    *parts = (reply_parts){ .model = model, .tools = tools };
}

void parts_free(reply_parts *parts)
{
    buffer_free(&parts->thought);
    buffer_free(&parts->text);
    buffer_free(&parts->raw);
    for (size_t i = 0; i < parts->call_count; i++) {
        free(parts->calls[i].name);
        buffer_free(&parts->calls[i].arguments);
    }
    free(parts->calls);
    *parts = (reply_parts){ 0 };
}

/* ---- text ---- */

static void show_text(reply_parts *parts, const char *text, size_t length, part_callback callback, void *user)
{
    if (!length)
        return;
    buffer_add(&parts->text, text, length);
    callback(PART_TEXT, 0, text, length, user);
}

static void show_held(reply_parts *parts, part_callback callback, void *user)
{
    for (; parts->newlines; parts->newlines--)
        show_text(parts, "\n", 1, callback, user);
}

static void add_text(reply_parts *parts, const char *text, size_t length, part_callback callback, void *user)
{
    if (parts->call_count && !parts->text.length && !parts->newlines) /* behind a call: what the format puts there */
        while (length && *text == '\n') {
            text++;
            length--;
        }
    size_t end = length;
    while (end && text[end - 1] == '\n')
        end--;
    if (end)
        show_held(parts, callback, user);
    show_text(parts, text, end, callback, user);
    parts->newlines += length - end;
}

/* ---- calls ---- */

/* The calls in this text, as the library reads it; NULL if it does not read one to its end. */
static json_t *read_calls(const reply_parts *parts, const char *text, size_t length)
{
    int64_t tools_length = parts->tools ? -1 : 0;
    int64_t size = qm_chat_parse(parts->model, text, (int64_t)length, parts->tools, tools_length, 0, NULL, 0);
    if (size < 0)
        return NULL;
    char *json = server_allocate((size_t)size + 1, 1);
    qm_chat_parse(parts->model, text, (int64_t)length, parts->tools, tools_length, 0, json, size + 1);
    json_t *answer = json_loads(json, JSON_ALLOW_NUL, NULL);
    free(json);
    json_t *calls = NULL;
    if (json_array_size(json_object_get(answer, "tool_calls")) > 0)
        calls = json_incref(json_object_get(answer, "tool_calls"));
    json_decref(answer);
    return calls;
}

static void begin_call(reply_parts *parts, const char *name, part_callback callback, void *user)
{
    parts->calls = server_grow(parts->calls, parts->call_count + 1, sizeof *parts->calls);
    call_part *call = &parts->calls[parts->call_count++];
    *call = (call_part){ .name = server_copy(name, strlen(name)) };
    make_id(call->id, sizeof call->id, "call_");
    parts->open = 1;
    parts->newlines = 0;
    callback(PART_CALL, parts->call_count - 1, call->name, strlen(name), user);
}

/* Shows what this JSON text has beyond what was shown. */
static void extend_arguments(reply_parts *parts, const char *json, size_t length, part_callback callback, void *user)
{
    text_buffer *shown = &parts->calls[parts->call_count - 1].arguments;
    if (length < shown->length || (shown->length && memcmp(json, shown->data, shown->length) != 0)) {
        parts->broken = 1;
        return;
    }
    size_t from = shown->length;
    buffer_add(shown, json + from, length - from);
    if (length > from)
        callback(PART_ARGUMENTS, parts->call_count - 1, json + from, length - from, user);
}

static void show_call(reply_parts *parts, const json_t *call, int complete, part_callback callback, void *user)
{
    text_buffer arguments = { 0 };
    const char *name = json_get_text(call, "name");
    if (!parts->open)
        begin_call(parts, name ? name : "", callback, user);
    buffer_add_json(&arguments, json_object_get(call, "arguments"));
    if (complete)
        extend_arguments(parts, arguments.data, arguments.length, callback, user);
    else if (arguments.length > 2) /* all but the closing brace */
        extend_arguments(parts, arguments.data, arguments.length - 1, callback, user);
    buffer_free(&arguments);
    parts->open = !complete;
}

/* What is certain of a call that is not complete: up to the last argument that another one follows. */
static void show_beginning(reply_parts *parts, part_callback callback, void *user)
{
    static const char next[] = "</parameter>\n<parameter=", close[] = "\n</function>\n" CALL_END;
    const char *raw = buffer_text(&parts->raw), *function = strstr(raw, "<function="), *end = NULL;
    if (!function)
        return;
    for (const char *at = function; (at = strstr(at, next)) != NULL; at++)
        end = at + strlen("</parameter>");
    if (!end && !parts->open) {
        const char *name_end = strchr(function, '>');
        end = name_end ? name_end + 1 : NULL;
    }
    if (!end || (size_t)(end - raw) == parts->looked_to)
        return;
    parts->looked_to = (size_t)(end - raw);
    text_buffer text = { 0 };
    buffer_add(&text, raw, (size_t)(end - raw));
    buffer_add_text(&text, close);
    json_t *calls = read_calls(parts, text.data, text.length);
    if (json_array_size(calls) == 1)
        show_call(parts, json_array_get(calls, 0), 0, callback, user);
    json_decref(calls);
    buffer_free(&text);
}

/* Whether the </tool_call> at `mark` can end the call that `raw` begins with, where its arguments are not JSON: it begins a line
 * or stands behind </function>, and closes no call that is quoted in an argument. */
static int closes_call(const char *raw, const char *mark)
{
    static const char function_end[] = "</function>";
    size_t before = (size_t)(mark - raw), opened = 0, closed = 1;
    if (mark[-1] != '\n' &&
        (before < strlen(function_end) || strncmp(mark - strlen(function_end), function_end, strlen(function_end))))
        return 0;
    for (const char *at = raw; (at = strstr(at, "<tool_call>\n<function=")) && at < mark; at++)
        opened++;
    for (const char *at = raw; (at = strstr(at, "\n" CALL_END)) && at + 1 < mark; at++)
        closed++;
    return closed >= opened;
}

/* Behind a complete call at the start of `raw`; NULL: it is not complete. */
static const char *complete_end(const reply_parts *parts, json_t **calls)
{
    const char *raw = buffer_text(&parts->raw), *function = strstr(raw, "<function="), *first_end = strstr(raw, CALL_END);
    int is_json = !function || (first_end && first_end < function);
    *calls = NULL;
    for (const char *mark = raw; (mark = strstr(mark, CALL_END)) != NULL; mark++) {
        const char *end = mark + strlen(CALL_END);
        if (!is_json && !closes_call(raw, mark))
            continue;
        *calls = read_calls(parts, raw, (size_t)(end - raw));
        if (*calls)
            return end;
    }
    return NULL;
}

static void drop_raw(reply_parts *parts, const char *end)
{
    size_t used = (size_t)(end - parts->raw.data);
    memmove(parts->raw.data, end, parts->raw.length - used + 1);
    parts->raw.length -= used;
    parts->looked_to = 0;
}

static void add_call_text(reply_parts *parts, const char *text, size_t length, part_callback callback, void *user)
{
    int may_end = 0;
    buffer_add(&parts->raw, text, length);
    for (size_t i = 0; i < length; i++)
        may_end = may_end || text[i] == '>';
    if (!may_end || parts->broken)
        return;
    json_t *calls;
    for (const char *end; (end = complete_end(parts, &calls)) != NULL;) {
        for (size_t i = 0; i < json_array_size(calls); i++)
            show_call(parts, json_array_get(calls, i), 1, callback, user);
        json_decref(calls);
        drop_raw(parts, end);
    }
    if (parts->raw.length)
        show_beginning(parts, callback, user);
}

void parts_add(reply_parts *parts, int32_t piece_kind, const char *text, size_t length, part_callback callback, void *user)
{
    if (piece_kind == QM_PIECE_THOUGHT && length) {
        buffer_add(&parts->thought, text, length);
        callback(PART_THOUGHT, 0, text, length, user);
    } else if (piece_kind == QM_PIECE_TOOL) {
        add_call_text(parts, text, length, callback, user);
    } else if (length) {
        add_text(parts, text, length, callback, user);
    }
}

void parts_finish(reply_parts *parts, part_callback callback, void *user)
{
    /* A call that is not complete: the library may still be able to read it; else what was shown stays, or it is text. */
    if (parts->raw.length && !parts->broken) {
        json_t *calls = read_calls(parts, parts->raw.data, parts->raw.length);
        if (calls)
            for (size_t i = 0; i < json_array_size(calls); i++)
                show_call(parts, json_array_get(calls, i), 1, callback, user);
        else if (!parts->open) {
            show_held(parts, callback, user);
            show_text(parts, parts->raw.data, parts->raw.length, callback, user);
        }
        json_decref(calls);
    }
    if (!parts->call_count)
        show_held(parts, callback, user);
}
