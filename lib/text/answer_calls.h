/* Single tool calls of an answer: reading one from text, and giving its parameters their types. */
#ifndef QMI_TEXT_ANSWER_CALLS_H
#define QMI_TEXT_ANSWER_CALLS_H

#include "text/chat_json.h"

typedef struct qmi_answer_call {
    qmi_view name;
    json_t *name_owner; /* holds the name's text, or NULL */
    json_t *arguments;  /* an object */
} qmi_answer_call;

typedef enum qmi_call_result { QMI_CALL_READ, QMI_CALL_MALFORMED, QMI_CALL_UNFINISHED, QMI_CALL_NO_MEMORY } qmi_call_result;

typedef struct qmi_call_reader {
    qmi_view text;         /* the whole answer */
    const json_t *tools;   /* array or NULL */
    const qmi_alloc *alloc;
    bool no_nesting;       /* a search for balanced marks ran to the end: not again, it would cost quadratic time */
    bool cut_mark;         /* the text ended inside the last mark of a call that could be read */
} qmi_call_reader;

/* Whether a call starts at `at`: <tool_call>, blanks, and <function= or { (or the text's end inside that). */
bool qmi_call_starts(qmi_view text, size_t at);
bool qmi_call_at_line_start(qmi_view text, size_t at);
/* Whether the text ends at `at` or inside this word there. */
bool qmi_call_ends_inside(qmi_view text, size_t at, const char *word);

/* Reads the call at `at` (<tool_call> or <function=). *end: behind it, or where reading failed (more than `at`).
 * The caller frees the call (json_decref of both) when it was read. */
qmi_call_result qmi_call_read(qmi_call_reader *reader, size_t at, qmi_answer_call *call, size_t *end);

/* The value of parameter `key` of a function, by its schema in `tools` as answer.h tells. New reference; NULL: no memory. */
json_t *qmi_call_value(const qmi_call_reader *reader, qmi_view function, const char *key, qmi_view text);

/* Types that a JSON schema may allow, as far as its keywords tell; 0: they don't. `root` is what its $ref points into. */
enum {
    QMI_CALL_STRING = 1,
    QMI_CALL_NUMBER = 2,
    QMI_CALL_BOOLEAN = 4,
    QMI_CALL_OBJECT = 8,
    QMI_CALL_ARRAY = 16,
    QMI_CALL_NULL = 32
};
unsigned qmi_call_types(const json_t *root, const json_t *schema);
const json_t *qmi_call_resolve(const json_t *root, const json_t *reference); /* what "#/$defs/Name" points to, or NULL */

/* False when the function is described in `tools` and its description has no such parameter. */
bool qmi_call_may_have(const json_t *tools, qmi_view function, qmi_view key);

#endif
