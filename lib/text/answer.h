/* An answer's text into thoughts, answer and tool calls: as a stream of pieces for display, and whole as JSON.
 *
 * Formats: Qwen3.5's <tool_call><function=NAME><parameter=K>V</parameter></function></tool_call> and Qwen3's JSON object. */
#ifndef QMI_TEXT_ANSWER_H
#define QMI_TEXT_ANSWER_H

#include <stdbool.h>
#include "text/chat.h"

/* ---- stream: which part of the text is what ---- */
typedef enum qmi_answer_part { QMI_ANSWER_TEXT, QMI_ANSWER_THOUGHT, QMI_ANSWER_TOOL } qmi_answer_part;

typedef struct qmi_answer_stream {
    qmi_answer_part part;   /* where we are */
    char held[16];          /* could be the start of a mark */
    int32_t held_length;
    bool after_mark;        /* swallow the newlines that belong to a mark */
} qmi_answer_stream;

void qmi_answer_stream_start(qmi_answer_stream *stream, bool inside_thoughts);
/* Feeds text (whole code points); calls piece() zero or more times with runs of one part, marks <think> </think> left out,
 * <tool_call> marks left in (part TOOL). */
typedef void (*qmi_answer_piece)(qmi_answer_part part, const char *text, int64_t length, void *user);
void qmi_answer_stream_push(qmi_answer_stream *stream, const char *text, int64_t length, qmi_answer_piece piece, void *user);
void qmi_answer_stream_end(qmi_answer_stream *stream, qmi_answer_piece piece, void *user);

/* ---- whole: qm_chat_parse's JSON ---- */
/* tools: the JSON array that the prompt had, or NULL: tells which parameter values are text and which JSON. */
int32_t qmi_answer_parse(const char *answer, int64_t length, const char *tools, int64_t tools_length, bool inside_thoughts,
                         const qmi_alloc *alloc, qmi_string *json);

#endif
