/* Tells thoughts, answer and tool calls apart while the text comes in: see answer.h. */
#include "text/answer.h"

#include <string.h>

typedef enum mark { NO_MARK, MAYBE, THINK, END_THINK, CALL, END_CALL, PARAMETER, END_PARAMETER, END_FUNCTION } mark;
enum { KIND_UNKNOWN, KIND_XML, KIND_JSON };

#define CALL_BLANKS 4 /* most blanks between <tool_call> and what follows it */

void qmi_answer_stream_start(qmi_answer_stream *stream, bool inside_thoughts)
{
    *stream = (qmi_answer_stream){ .line_start = true, .blank = true };
    stream->part = inside_thoughts ? QMI_ANSWER_THOUGHT : QMI_ANSWER_TEXT;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/* ---- marks ---- */

static mark compare(const char *text, size_t length, const char *word, mark found)
{
    size_t whole = strlen(word);
    if (length > whole || memcmp(text, word, length) != 0)
        return NO_MARK;
    return length == whole ? found : MAYBE;
}

/* <tool_call>, a few blanks, and <function= or {. */
static mark compare_call(const char *text, size_t length)
{
    static const char word[] = "<tool_call>";
    size_t at = sizeof word - 1, blanks = 0;
    if (length <= at)
        return compare(text, length, word, MAYBE);
    if (memcmp(text, word, at) != 0)
        return NO_MARK;
    for (; at < length && is_blank(text[at]) && blanks < CALL_BLANKS; at++)
        blanks++;
    if (at == length)
        return MAYBE;
    mark xml = compare(text + at, length - at, "<function=", CALL);
    return xml != NO_MARK ? xml : compare(text + at, length - at, "{", CALL);
}

static mark better(mark a, mark b)
{
    return a > b ? a : b; /* a found mark before MAYBE before none */
}

/* What `text` is where the stream stands: a whole mark, the start of one, or neither. */
static mark find_mark(const qmi_answer_stream *stream, const char *text, size_t length)
{
    mark found = NO_MARK;
    switch (stream->part) {
    case QMI_ANSWER_THOUGHT:
        if (text[0] == '\n')
            return compare(text, length, "\n</think>", END_THINK);
        found = better(compare(text, length, "</think>", END_THINK), compare_call(text, length));
        break;
    case QMI_ANSWER_TEXT:
        found = stream->line_start ? compare(text, length, "<tool_call>", CALL) : compare_call(text, length);
        break;
    case QMI_ANSWER_TOOL:
        found = compare(text, length, "</tool_call>", END_CALL);
        if (stream->call_kind == KIND_JSON)
            return found;
        found = better(found, compare(text, length, "<parameter=", PARAMETER));
        found = better(found, compare(text, length, "</parameter>", END_PARAMETER));
        found = better(found, compare(text, length, "</function>", END_FUNCTION));
        return better(found, compare_call(text, length));
    }
    return stream->blank ? better(found, compare(text, length, "<think>", THINK)) : found;
}

/* ---- pieces ---- */

static void emit(qmi_answer_stream *stream, const char *text, size_t length, qmi_answer_piece piece, void *user)
{
    if (!length)
        return;
    stream->line_start = text[length - 1] == '\n';
    for (size_t i = 0; i < length && stream->blank; i++)
        stream->blank = is_blank(text[i]);
    piece(stream->part, text, (int64_t)length, user);
}

static void enter(qmi_answer_stream *stream, qmi_answer_part part, int32_t newlines)
{
    stream->part = part;
    stream->newlines = newlines;
    stream->line_start = stream->blank = true;
}

static void begin_call(qmi_answer_stream *stream, char last)
{
    if (stream->part != QMI_ANSWER_TOOL)
        stream->outer = stream->part;
    stream->part = QMI_ANSWER_TOOL;
    stream->call_kind = last == '{' ? KIND_JSON : last == '=' ? KIND_XML : KIND_UNKNOWN;
    stream->call_depth = 0;
    stream->value_open = stream->in_string = stream->escaped = false;
}

/* </tool_call>: of a quoted call, of this one, or a word in a value's line. */
static void end_call(qmi_answer_stream *stream, const char *text, size_t length, qmi_answer_piece piece, void *user)
{
    bool ends = !stream->value_open || stream->line_start;
    emit(stream, text, length, piece, user);
    if (stream->call_depth > 0) {
        stream->call_depth--;
        stream->value_open = true;
    } else if (ends) {
        enter(stream, stream->outer, 0);
    }
}

static void take_mark(qmi_answer_stream *stream, mark found, const char *text, size_t length, qmi_answer_piece piece, void *user)
{
    switch (found) {
    case THINK:
        enter(stream, QMI_ANSWER_THOUGHT, 1);
        return;
    case END_THINK:
        enter(stream, QMI_ANSWER_TEXT, 2);
        return;
    case END_CALL:
        end_call(stream, text, length, piece, user);
        return;
    case CALL:
        if (stream->part == QMI_ANSWER_TOOL && stream->value_open) {
            stream->call_depth++;
            stream->value_open = false;
        } else {
            begin_call(stream, text[length - 1]);
        }
        break;
    case PARAMETER:
        stream->value_open = true;
        break;
    case END_PARAMETER:
        stream->value_open = false;
        break;
    default: /* END_FUNCTION */
        stream->value_open = stream->value_open && !stream->line_start;
        break;
    }
    emit(stream, text, length, piece, user);
}

/* Whether `c` could start a mark here. In tool calls also follows what the marks' meaning depends on. */
static bool may_start(qmi_answer_stream *stream, char c)
{
    if (stream->part != QMI_ANSWER_TOOL)
        return c == '<' || (c == '\n' && stream->part == QMI_ANSWER_THOUGHT);
    if (stream->call_kind == KIND_UNKNOWN && !is_blank(c))
        stream->call_kind = c == '{' ? KIND_JSON : KIND_XML;
    if (stream->call_kind != KIND_JSON)
        return c == '<';
    if (!stream->in_string) {
        stream->in_string = c == '"';
        return c == '<';
    }
    if (stream->escaped || c == '\\')
        stream->escaped = !stream->escaped;
    else
        stream->in_string = c != '"' && c != '\n'; /* strings have no plain newlines: this one was never closed */
    return false;
}

void qmi_answer_stream_push(qmi_answer_stream *stream, const char *text, int64_t length, qmi_answer_piece piece, void *user)
{
    size_t end = (size_t)length, at = 0, start = 0; /* start: of the run that is not emitted yet, while nothing is held */
    while (at < end) {
        char c = text[at];
        if (stream->held_length == 0) {
            if (stream->newlines > 0 && start == at) {
                stream->newlines = c == '\n' ? stream->newlines - 1 : 0;
                if (c == '\n') {
                    start = ++at;
                    continue;
                }
            }
            if (!may_start(stream, c)) {
                at++;
                continue;
            }
            emit(stream, text + start, at - start, piece, user);
        }
        stream->held[stream->held_length] = c;
        size_t held = (size_t)stream->held_length + 1;
        mark found = find_mark(stream, stream->held, held);
        if (found != NO_MARK) {
            start = ++at;
            stream->held_length = found == MAYBE ? (int32_t)held : 0;
            if (found != MAYBE)
                take_mark(stream, found, stream->held, held, piece, user);
        } else if (held == 1) {
            start = at++; /* could have started one, but not here */
        } else {
            /* Not that mark: its first byte is text, and the others may start another one. `c` is looked at again. */
            do {
                char first = stream->held[0];
                stream->held_length--;
                memmove(stream->held, stream->held + 1, (size_t)stream->held_length);
                emit(stream, &first, 1, piece, user);
            } while (stream->held_length > 0 && find_mark(stream, stream->held, (size_t)stream->held_length) == NO_MARK);
            start = at;
        }
    }
    if (stream->held_length == 0)
        emit(stream, text + start, end - start, piece, user);
}

void qmi_answer_stream_end(qmi_answer_stream *stream, qmi_answer_piece piece, void *user)
{
    emit(stream, stream->held, (size_t)stream->held_length, piece, user);
    stream->held_length = 0;
}
