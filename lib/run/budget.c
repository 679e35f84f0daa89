/* How an answer ends: see budget.h.
 *
 *     token -> bytes -> code points -> parts (text/answer.h) -> pending -> pieces
 *
 * `pending` is one run of one part. At the end of a push it is shown, but for an end of it that could start a stop string. */
#include "run/budget.h"

#include <string.h>
#include "base/error.h"
#include "run/stop.h"

enum { MARK_AT_LINE_START, MARK_IN_LINE, MARK_AFTER_OPENING, MARK_COUNT };

/* What ends thoughts: at the start of a line; inside one, or where nothing is in them; and right behind <think>, before the
 * newline that belongs to that. The empty line after </think> is the chat format's. */
static const char *const mark_texts[MARK_COUNT] = { "</think>\n\n", "\n</think>\n\n", "\n\n</think>\n\n" };

struct qmi_budget {
    qmi_alloc alloc;
    const qmi_vocab *vocab;
    int64_t answer_limit;     /* 0: none */
    int64_t hard, soft;       /* tokens of thinking, -1: none */
    bool ignore_end;
    int32_t ends[QMI_BUDGET_ENDS];
    qmi_stops stops;
    qmi_ids marks[MARK_COUNT];

    qmi_detokenizer detokenizer;
    qmi_answer_stream stream;
    qmi_string text;          /* all of it, with marks */
    size_t emitted;           /* bytes of it that the stream has given out or swallowed */
    char last;                /* its last byte, or what the prompt ended with */
    qmi_string pending;
    qmi_answer_part pending_part;
    size_t pending_start;     /* of its first byte in `text` */
    bool stopped;             /* a stop string was found */

    int64_t generated, thought;
    bool end_asked;
    const qmi_ids *forced;    /* being written, or NULL */
    size_t forced_at;
    qmi_budget_piece piece;   /* of the call under way */
    void *user;
};

const char *qmi_finish_name(qmi_finish finish)
{
    static const char *const names[] = { "", "end", "stop", "length", "context", "cancelled", "error" };
    return names[finish];
}

/* ---- making ---- */

static int64_t soft_limit(const qmi_settings *settings)
{
    int64_t hard = qmi_settings_int(settings, QMI_OPT_THINKING_TOKENS), soft = qmi_settings_int(settings, QMI_OPT_THINKING_SOFT);
    return soft < 0 && hard >= 0 ? hard * 4 / 5 : soft;
}

static int32_t find_token(const qmi_vocab *vocab, const char *text)
{
    return qmi_vocab_find(vocab, text, (int64_t)strlen(text));
}

void qmi_budget_ends(const qmi_vocab *vocab, int32_t ends[QMI_BUDGET_ENDS])
{
    ends[0] = qmi_vocab_eos(vocab);
    ends[1] = find_token(vocab, "<|im_end|>");
    ends[2] = find_token(vocab, "<|endoftext|>");
}

static int32_t budget_start(qmi_budget *budget, const qmi_settings *settings)
{
    int32_t status = qmi_stops_read(qmi_settings_text(settings, QMI_OPT_STOP), &budget->alloc, &budget->stops);
    for (int i = 0; i < MARK_COUNT && status >= 0; i++) {
        status = qmi_tokenize(budget->vocab, mark_texts[i], (int64_t)strlen(mark_texts[i]), QM_SPECIAL_ALL, &budget->alloc,
                              &budget->marks[i]);
        if (status == QM_ERROR_TEXT && budget->hard < 0 && budget->soft < 0) { /* a vocabulary that can't spell it, and no need to */
            budget->marks[i].count = 0;
            status = QM_OK;
        }
    }
    return status;
}

int32_t qmi_budget_new(const qmi_settings *settings, const qmi_vocab *vocab, bool inside_thoughts, const qmi_alloc *alloc,
                       qmi_budget **out)
{
    *out = NULL;
    qmi_budget *budget = qmi_new(alloc, 1, sizeof *budget, "budget of an answer");
    if (!budget)
        return QM_ERROR_MEMORY;
    budget->alloc = *alloc;
    budget->vocab = vocab;
    budget->answer_limit = qmi_settings_int(settings, QMI_OPT_ANSWER_TOKENS);
    budget->hard = qmi_settings_int(settings, QMI_OPT_THINKING_TOKENS);
    budget->soft = soft_limit(settings);
    budget->ignore_end = qmi_settings_bool(settings, QMI_OPT_IGNORE_END);
    qmi_budget_ends(vocab, budget->ends);
    budget->last = '\n';
    qmi_answer_stream_start(&budget->stream, inside_thoughts);
    int32_t status = budget_start(budget, settings);
    if (status < 0)
        qmi_budget_free(&budget);
    else
        *out = budget;
    return status < 0 ? status : QM_OK;
}

void qmi_budget_free(qmi_budget **budget)
{
    qmi_budget *old = *budget;
    if (!old)
        return;
    const qmi_alloc alloc = old->alloc;
    qmi_stops_free(&old->stops, &alloc);
    for (int i = 0; i < MARK_COUNT; i++)
        qmi_delete(&alloc, old->marks[i].data);
    qmi_delete(&alloc, old->text.data);
    qmi_delete(&alloc, old->pending.data);
    qmi_delete(&alloc, old);
    *budget = NULL;
}

/* ---- text ---- */

/* Shows all of the pending text but its last `keep` bytes. */
static void show(qmi_budget *budget, size_t keep)
{
    qmi_string *pending = &budget->pending;
    size_t shown = pending->length - keep;
    if (shown == 0)
        return;
    budget->piece(budget->pending_part, pending->data, (int64_t)shown, budget->user);
    memmove(pending->data, pending->data + shown, keep);
    pending->length = keep;
    budget->pending_start += shown;
}

/* From here on the answer is over; what precedes the stop string at the end of the pending text is still shown. */
static void stop_before(qmi_budget *budget, size_t length)
{
    budget->stopped = true;
    budget->pending.length -= length;
    budget->text.length = budget->pending_start + budget->pending.length;
    budget->text.data[budget->text.length] = 0;
    show(budget, 0);
}

/* From the stream: the next bytes of a part. There is room for them (make_room). */
static void take_run(qmi_answer_part part, const char *text, int64_t length, void *user)
{
    qmi_budget *budget = user;
    if (budget->pending.length > 0
        && (part != budget->pending_part || budget->pending_start + budget->pending.length != budget->emitted))
        show(budget, 0); /* another part, or a mark in between: a stop string does not reach across */
    if (budget->pending.length == 0)
        budget->pending_start = budget->emitted;
    budget->pending_part = part;
    for (int64_t i = 0; i < length && !budget->stopped; i++) {
        budget->pending.data[budget->pending.length++] = text[i];
        budget->emitted++;
        if (part != QMI_ANSWER_TEXT)
            continue;
        size_t found = qmi_stops_match(&budget->stops, budget->pending.data, budget->pending.length);
        if (found > 0)
            stop_before(budget, found);
    }
}

static int32_t make_room(qmi_budget *budget, size_t more)
{
    int32_t status = qmi_reserve(&budget->alloc, (void **)&budget->text.data, &budget->text.capacity,
                                 budget->text.length + more + 1, 1, "generated text");
    if (status < 0)
        return status;
    return qmi_reserve(&budget->alloc, (void **)&budget->pending.data, &budget->pending.capacity,
                       budget->pending.length + sizeof budget->stream.held + more, 1, "generated text");
}

/* The last `length` bytes of `text` are new. One byte at a time, so that it is known which of them the stream gives out. */
static void take_text(qmi_budget *budget, size_t length)
{
    size_t end = budget->text.length;
    for (size_t at = end - length; at < end && !budget->stopped; at++) {
        char byte = budget->text.data[at];
        qmi_answer_stream_push(&budget->stream, &byte, 1, take_run, budget);
        budget->emitted = at + 1 - (size_t)budget->stream.held_length;
        budget->last = byte;
    }
    if (!budget->stopped) {
        bool may_stop = budget->pending_part == QMI_ANSWER_TEXT;
        show(budget, may_stop ? qmi_stops_hold(&budget->stops, budget->pending.data, budget->pending.length) : 0);
    }
}

bool qmi_budget_thinks(const qmi_budget *budget)
{
    const qmi_answer_stream *stream = &budget->stream;
    return stream->part == QMI_ANSWER_THOUGHT || (stream->part == QMI_ANSWER_TOOL && stream->outer == QMI_ANSWER_THOUGHT);
}

static int32_t push_bytes(qmi_budget *budget, const char *bytes, int64_t length)
{
    int32_t status = make_room(budget, 3 * (size_t)length + QMI_DETOKENIZE_EXTRA);
    if (status < 0)
        return status;
    char *end = budget->text.data + budget->text.length;
    int64_t written = qmi_detokenizer_push(&budget->detokenizer, bytes, length, end);
    end[written] = 0;
    budget->text.length += (size_t)written;
    take_text(budget, (size_t)written);
    return QM_OK;
}

static bool ends_turn(const qmi_budget *budget, int32_t token)
{
    return token >= 0 && (token == budget->ends[0] || token == budget->ends[1] || token == budget->ends[2]);
}

/* Whether the token is the one that qmi_budget_forced asked for. */
static bool take_forced(qmi_budget *budget, int32_t token)
{
    if (!budget->forced)
        return false;
    bool wanted = budget->forced->data[budget->forced_at++] == token;
    if (!wanted || budget->forced_at == budget->forced->count)
        budget->forced = NULL;
    return wanted;
}

int32_t qmi_budget_push(qmi_budget *budget, int32_t token, qmi_budget_piece piece, void *user)
{
    bool thought = qmi_budget_thinks(budget), forced = take_forced(budget, token), end = ends_turn(budget, token);
    int64_t length = 0;
    budget->piece = piece;
    budget->user = user;
    budget->generated++;
    if (end && !budget->ignore_end)
        return QMI_FINISH_END;
    if (!end) {
        const char *bytes = qmi_vocab_bytes(budget->vocab, token, &length);
        int32_t status = push_bytes(budget, bytes, length);
        if (status < 0)
            return status;
    }
    budget->thought += thought && qmi_budget_thinks(budget) && !forced;
    budget->end_asked = budget->end_asked && qmi_budget_thinks(budget);
    if (budget->stopped)
        return QMI_FINISH_STOP;
    return budget->answer_limit > 0 && budget->generated >= budget->answer_limit ? QMI_FINISH_LENGTH : QMI_FINISH_NONE;
}

int32_t qmi_budget_end(qmi_budget *budget, qmi_budget_piece piece, void *user)
{
    budget->piece = piece;
    budget->user = user;
    if (budget->stopped)
        return QM_OK;
    int32_t status = make_room(budget, QMI_DETOKENIZE_EXTRA);
    if (status < 0)
        return status;
    char *end = budget->text.data + budget->text.length;
    int64_t written = qmi_detokenizer_end(&budget->detokenizer, end);
    end[written] = 0;
    budget->text.length += (size_t)written;
    take_text(budget, (size_t)written);
    if (!budget->stopped)
        qmi_answer_stream_end(&budget->stream, take_run, budget);
    if (!budget->stopped)
        show(budget, 0);
    return QM_OK;
}

const char *qmi_budget_text(const qmi_budget *budget, int64_t *length)
{
    *length = (int64_t)budget->text.length;
    return budget->text.data ? budget->text.data : "";
}

/* ---- thoughts ---- */

int64_t qmi_budget_thought_tokens(const qmi_budget *budget)
{
    return budget->thought;
}

void qmi_budget_end_thinking(qmi_budget *budget)
{
    budget->end_asked = qmi_budget_thinks(budget);
}

int64_t qmi_budget_room(const qmi_budget *budget)
{
    return budget->answer_limit > 0 ? budget->answer_limit - budget->generated : INT64_MAX;
}

static bool thinking_is_over(const qmi_budget *budget)
{
    return budget->end_asked || (budget->hard >= 0 && budget->thought >= budget->hard)
           || (budget->soft >= 0 && budget->thought >= budget->soft && budget->last == '\n');
}

/* In thoughts, outside tool calls, between code points, and not where a mark may be under way. */
static bool can_end_here(const qmi_budget *budget)
{
    const qmi_answer_stream *stream = &budget->stream;
    return stream->part == QMI_ANSWER_THOUGHT && budget->detokenizer.pending_count == 0
           && !memchr(stream->held, '<', (size_t)stream->held_length);
}

/* Thoughts are empty as long as the stream has neither given out nor holds anything of them. */
static const qmi_ids *end_mark(const qmi_budget *budget)
{
    const qmi_answer_stream *stream = &budget->stream;
    if (stream->blank && stream->line_start && stream->held_length == 0)
        return &budget->marks[stream->newlines > 0 ? MARK_AFTER_OPENING : MARK_IN_LINE];
    return &budget->marks[budget->last == '\n' ? MARK_AT_LINE_START : MARK_IN_LINE];
}

int32_t qmi_budget_forced(qmi_budget *budget)
{
    if (!budget->forced && can_end_here(budget) && thinking_is_over(budget)) {
        const qmi_ids *mark = end_mark(budget);
        if (mark->count > 0) {
            budget->forced = mark;
            budget->forced_at = 0;
        }
    }
    return budget->forced ? budget->forced->data[budget->forced_at] : -1;
}
