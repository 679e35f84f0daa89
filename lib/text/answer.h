/* An answer's text into thoughts, answer and tool calls: as a stream of pieces for display, and whole as JSON.
 *
 * Formats: Qwen3.5's <tool_call><function=NAME><parameter=K>V</parameter></function></tool_call> and Qwen3's JSON object. */
#ifndef QMI_TEXT_ANSWER_H
#define QMI_TEXT_ANSWER_H

#include "text/chat.h"

/* ---- stream: which part of the text is what ----
 *
 * Marks, everything else is text of the part it stands in:
 *   <think>      where only blanks came before it in its part (so not in the middle of a sentence), with one newline after it
 *   </think>     inside thoughts, with one newline before and two after it
 *   <tool_call>  at the start of a line of the answer; elsewhere, and in thoughts, only if <function= or { follows, since models
 *                also write about it. The call lasts to its </tool_call>: not one inside a JSON string, nor in the middle of a
 *                parameter's line, nor that of a whole call quoted in a parameter. What surrounded the call then goes on.
 * What could be the start of a mark is held back, at most 31 bytes; nothing else is. */
typedef enum qmi_answer_part { QMI_ANSWER_TEXT, QMI_ANSWER_THOUGHT, QMI_ANSWER_TOOL } qmi_answer_part;

typedef struct qmi_answer_stream {
    qmi_answer_part part;   /* where we are: QMI_ANSWER_TOOL inside a tool call, where thinking must not be cut off */
    qmi_answer_part outer;  /* what surrounds the tool call */
    char held[32];          /* could be the start of a mark */
    int32_t held_length;
    int32_t newlines;       /* up to so many belong to the mark before */
    bool line_start;        /* the text so far ends with a newline or a mark */
    bool blank;             /* only blanks since the last mark */
    int32_t call_kind;      /* of the tool call: not known yet, XML-like, JSON */
    int32_t call_depth;     /* calls quoted inside its parameter */
    bool value_open;        /* inside a parameter's value */
    bool in_string, escaped; /* inside a JSON string, after its backslash */
} qmi_answer_stream;

void qmi_answer_stream_start(qmi_answer_stream *stream, bool inside_thoughts);
/* Feeds text (whole code points); calls piece() zero or more times with runs of one part, marks <think> </think> left out,
 * <tool_call> marks left in (part TOOL). */
typedef void (*qmi_answer_piece)(qmi_answer_part part, const char *text, int64_t length, void *user);
void qmi_answer_stream_push(qmi_answer_stream *stream, const char *text, int64_t length, qmi_answer_piece piece, void *user);
void qmi_answer_stream_end(qmi_answer_stream *stream, qmi_answer_piece piece, void *user);

/* ---- whole: qm_chat_parse's JSON ----
 *
 * Thoughts end at </think>; where that is missing, at the first call that can be read. A call inside closed thoughts stays a
 * thought. Calls are read with </parameter>, </function>, </tool_call> or <tool_call> missing as long as the next mark shows
 * where
 * things end; marks quoted in a value stay part of it if they are balanced or not followed by what follows a value. Status:
 *   malformed  something meant as a call could not be read (it is in content), or a </tool_call> stands alone
 *   partial    else, if the text ends inside thoughts, a call or a mark
 * Newlines that the format puts around marks are left out: one inside <think>, two after </think>, up to two before a call and
 * one after it, one on each side of a parameter's value. Where text surrounds a call, its two sides are joined by a newline.
 *
 * Values of XML-like calls, by the parameter's JSON schema (type, anyOf, oneOf, allOf, enum, const, local $ref):
 *   text only          the value, byte for byte
 *   no text            what the value says as JSON or in Python's words (True, None) if its type is allowed; else it stays text
 *   text and others    arrays, objects and null that the schema allows; anything else is text
 *   no schema known    JSON (but not a quoted string) or Python's word if the value is written exactly as the chat format would
 *                      print it ("3", "[1, 2]", "None"; not "007" or "[1,2]"), so that the call, put back into a prompt, gives
 *                      the same text whatever was meant; else text
 * tools: the JSON array that the prompt had, or NULL. Bytes that are not UTF-8 become U+FFFD. A final <|im_end|> or <|endoftext|>
 * is
 * left out. *json is replaced and stays the caller's to free, also after a failure. */
int32_t qmi_answer_parse(const char *answer, int64_t length, const char *tools, int64_t tools_length, bool inside_thoughts,
                         const qmi_alloc *alloc, qmi_string *json);

#endif
