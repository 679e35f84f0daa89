/* A whole answer's text to JSON: thoughts, content and tool calls. See answer.h. */
#include "text/answer.h"

#include <string.h>
#include "base/error.h"
#include "text/answer_calls.h"

typedef struct parser {
    qmi_call_reader reader;
    qmi_writer thoughts, content, calls; /* calls: JSON, comma-separated */
    bool has_thoughts, malformed, partial, failed;
    size_t tried;  /* calls that start before this were read, or could not be */
} parser;

static bool is_blank_text(qmi_view view)
{
    for (size_t i = 0; i < view.length; i++)
        if (!strchr(" \n\t\r", view.data[i]) || !view.data[i])
            return false;
    return true;
}

static qmi_view without_newlines_after(qmi_view view, int most)
{
    for (; most > 0 && view.length && view.data[view.length - 1] == '\n'; most--)
        view.length--;
    return view;
}

static size_t skip_newlines(qmi_view text, size_t at, int most)
{
    for (; most > 0 && at < text.length && text.data[at] == '\n'; most--)
        at++;
    return at;
}

static void add_joined(qmi_writer *writer, qmi_view text)
{
    if (writer->out->length && text.length)
        qmi_write_text(writer, "\n");
    qmi_write(writer, text);
}

/* ---- calls ---- */

static void add_call(parser *p, qmi_answer_call *call)
{
    qmi_write_text(&p->calls, p->calls.out->length ? ", {\"name\": " : "{\"name\": ");
    qmi_json_write_string(&p->calls, call->name);
    qmi_write_text(&p->calls, ", \"arguments\": ");
    qmi_json_write(&p->calls, call->arguments);
    qmi_write_text(&p->calls, "}");
}

static void free_call(qmi_answer_call *call)
{
    json_decref(call->arguments);
    json_decref(call->name_owner);
}

/* ---- thoughts ---- */

/* The first readable call in the thoughts text[at .. close) that goes on behind them, or the first at all where `close` is
 * QMI_NOT_FOUND: the thoughts end there. */
static size_t find_call_in_thoughts(parser *p, size_t at, size_t close)
{
    qmi_view text = p->reader.text;
    if (at < p->tried)
        at = p->tried;
    while (at < text.length && at < close) {
        const char *hit = memchr(text.data + at, '<', text.length - at);
        at = hit ? (size_t)(hit - text.data) : text.length;
        if (at >= text.length || at >= close)
            break;
        if (!qmi_call_starts(text, at)) {
            at++;
            continue;
        }
        qmi_answer_call call;
        size_t end;
        const qmi_call_reader before = p->reader;
        qmi_call_result result = qmi_call_read(&p->reader, at, &call, &end);
        p->reader.cut_mark = before.cut_mark; /* counts when the call is read again, as a part of the answer */
        if (result == QMI_CALL_NO_MEMORY)
            p->failed = true;
        if (result == QMI_CALL_READ) {
            free_call(&call);
            if (close == QMI_NOT_FOUND || end > close) {
                p->reader = before;
                return at;
            }
        }
        at = p->tried = end;
    }
    return QMI_NOT_FOUND;
}

/* Reads thoughts from `at` on; returns where the answer goes on. */
static size_t read_thoughts(parser *p, size_t at)
{
    qmi_view text = p->reader.text;
    p->has_thoughts = true;
    size_t first = at;
    while (first < text.length && strchr(" \n\t\r", text.data[first]) && text.data[first])
        first++;
    if (qmi_view_starts(qmi_view_from(text, first), "<think>"))
        at = skip_newlines(text, first + strlen("<think>"), 1);
    size_t close = qmi_view_find(qmi_view_from(text, at), "</think>");
    if (close != QMI_NOT_FOUND)
        close += at;
    size_t call = find_call_in_thoughts(p, at, close);
    if (call != QMI_NOT_FOUND) {
        add_joined(&p->thoughts, without_newlines_after(qmi_view_cut(text, at, call), 2));
        return call;
    }
    if (close == QMI_NOT_FOUND) {
        p->partial = true;
        add_joined(&p->thoughts, qmi_view_from(text, at));
        return text.length;
    }
    add_joined(&p->thoughts, without_newlines_after(qmi_view_cut(text, at, close), 1));
    return skip_newlines(text, close + strlen("</think>"), 2);
}

/* ---- answer ---- */

/* A run of text; `after` and `before`: a call stands on that side. */
static void add_content(parser *p, qmi_view run, bool after, bool before)
{
    if ((after || before) && is_blank_text(run))
        return;
    if (after && run.data[0] == '\n')
        run = qmi_view_from(run, 1);
    add_joined(&p->content, before ? without_newlines_after(run, 2) : run);
}

/* Whether the model means a call here, or only writes about one. */
static bool is_attempt(qmi_view text, size_t at)
{
    bool line_start = qmi_call_at_line_start(text, at);
    if (qmi_view_starts(qmi_view_from(text, at), "<tool_call>"))
        return line_start || qmi_call_starts(text, at);
    return line_start && qmi_view_starts(qmi_view_from(text, at), "<function=");
}

static bool ends_inside_mark(qmi_view text, size_t at)
{
    return text.length - at >= 2 && (qmi_call_ends_inside(text, at, "<tool_call>") || qmi_call_ends_inside(text, at, "<think>") ||
                                     qmi_call_ends_inside(text, at, "</think>"));
}

/* Tries the call at `at`. True: it was read, and *end is behind it. */
static bool try_call(parser *p, qmi_view run, size_t at, bool after, size_t *end)
{
    qmi_answer_call call;
    qmi_call_result result = qmi_call_read(&p->reader, at, &call, end);
    if (result == QMI_CALL_NO_MEMORY)
        p->failed = true;
    if (result == QMI_CALL_MALFORMED)
        p->malformed = true;
    if (result == QMI_CALL_UNFINISHED)
        p->partial = true;
    if (result != QMI_CALL_READ)
        return false;
    add_content(p, run, after, true);
    add_call(p, &call);
    free_call(&call);
    return true;
}

/* Reads text and calls from `start` on, up to a <think> or the text's end; returns where it stopped. */
static size_t read_answer(parser *p, size_t start)
{
    qmi_view text = p->reader.text;
    bool after_call = false, only_blanks = true; /* since `start` */
    size_t at = start, end;
    while (at < text.length && !p->failed) {
        qmi_view rest = qmi_view_from(text, at);
        if (text.data[at] != '<') {
            only_blanks = only_blanks && is_blank_text(qmi_view_cut(text, at, at + 1));
            at++;
            continue;
        }
        if (only_blanks && qmi_view_starts(rest, "<think>"))
            return at;
        if (is_attempt(text, at) && at >= p->tried) {
            if (try_call(p, qmi_view_cut(text, start, at), at, after_call, &end)) {
                start = at = end;
                after_call = only_blanks = true;
                continue;
            }
            p->tried = end;
        }
        if (ends_inside_mark(text, at))
            p->partial = true;
        if (qmi_view_starts(rest, "</tool_call>") && qmi_call_at_line_start(text, at))
            p->malformed = true;
        only_blanks = false;
        at++;
    }
    add_content(p, qmi_view_from(text, start), after_call, false);
    return text.length;
}

/* ---- whole ---- */

static qmi_view without_end_of_turn(qmi_view text)
{
    static const char *const ends[] = { "<|im_end|>", "<|im_end|>\n", "<|endoftext|>" };
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        if (!qmi_view_ends(text, ends[i]))
            continue;
        text.length -= strlen(ends[i]);
        i = (size_t)-1; /* there may be another one before it */
    }
    return text;
}

static void write_result(const parser *p, qmi_writer *json)
{
    qmi_write_text(json, "{\"reasoning_content\": ");
    if (p->has_thoughts)
        qmi_json_write_string(json, qmi_string_view(p->thoughts.out));
    else
        qmi_write_text(json, "null");
    qmi_write_text(json, ", \"content\": ");
    qmi_json_write_string(json, qmi_string_view(p->content.out));
    qmi_write_text(json, ", \"tool_calls\": [");
    qmi_write(json, qmi_string_view(p->calls.out));
    qmi_write_text(json, "], \"status\": \"");
    qmi_write_text(json, p->malformed ? "malformed" : p->partial || p->reader.cut_mark ? "partial" : "complete");
    qmi_write_text(json, "\"}");
}

int32_t qmi_answer_parse(const char *answer, int64_t length, const char *tools, int64_t tools_length, bool inside_thoughts,
                         const qmi_alloc *alloc, qmi_string *json)
{
    char message[QMI_ERROR_SIZE]; /* what cannot be read is no failure of this call: the thread's message stays */
    qmi_error_copy(message);
    json_t *tools_array = NULL;
    qmi_string text = { 0 }, thoughts = { 0 }, content = { 0 }, calls = { 0 };
    qmi_writer copy = { &text, alloc, false }, result = { json, alloc, false };
    json->length = 0;
    int32_t code = tools ? qmi_json_parse_array(tools, tools_length, "tools", &tools_array) : QM_OK;
    if (code == QM_OK) {
        qmi_write_lossy(&copy, (qmi_view){ answer, length < 0 ? strlen(answer) : (size_t)length });
        parser p = { .reader = { without_end_of_turn(qmi_string_view(&text)), tools_array, alloc, false, false },
            .thoughts = { &thoughts, alloc, false }, .content = { &content, alloc, false }, .calls = { &calls, alloc, false },
            .failed = copy.failed };
        size_t at = inside_thoughts ? read_thoughts(&p, 0) : 0;
        while (at < p.reader.text.length && !p.failed) {
            at = read_answer(&p, at);
            if (at < p.reader.text.length)
                at = read_thoughts(&p, at);
        }
        write_result(&p, &result);
        if (p.failed || p.thoughts.failed || p.content.failed || p.calls.failed || result.failed)
            code = qmi_fail(QM_ERROR_MEMORY, "out of memory: parsing an answer of %zu bytes", p.reader.text.length);
    }
    if (code < 0)
        json->length = 0;
    else
        qmi_error_restore(message);
    json_decref(tools_array);
    qmi_string_free(&text, alloc);
    qmi_string_free(&thoughts, alloc);
    qmi_string_free(&content, alloc);
    qmi_string_free(&calls, alloc);
    return code;
}
