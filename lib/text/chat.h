/* Chat messages to prompt text, exactly as the model's own template gives it; templates are recognised, never executed. */
#ifndef QMI_TEXT_CHAT_H
#define QMI_TEXT_CHAT_H

#include <stdbool.h>
#include "base/alloc.h"
#include "base/log.h"
#include "text/added.h"

typedef enum qmi_chat_format_id {
    QMI_CHAT_CHATML, QMI_CHAT_QWEN3, QMI_CHAT_QWEN3_5, QMI_CHAT_QWEN3_6, QMI_CHAT_COUNT
} qmi_chat_format_id;

/* By a hash of known templates, then by characteristic parts (which the log tells at level info, since a changed template may
 * print other text). Unknown (or NULL): CHATML, and a warning in the log that names what was found (its first line and hash). */
qmi_chat_format_id qmi_chat_recognise(const char *jinja, int64_t length, const qmi_log *log);
const char *qmi_chat_name(qmi_chat_format_id id); /* "chatml", "qwen3", "qwen3.5", "qwen3.6" */
int32_t qmi_chat_find(const char *name);          /* the id with this name, or -1 */

/* A growing text that belongs to the caller (alloc's); zero-terminated when something was written, be it empty. */
typedef struct qmi_string {
    char *data;
    size_t length, capacity;
} qmi_string;

void qmi_string_free(qmi_string *string, const qmi_alloc *alloc);

typedef struct qmi_chat_request {
    const char *messages; int64_t messages_length; /* JSON array; length -1: zero-terminated */
    const char *tools; int64_t tools_length;       /* JSON array or NULL */
    int32_t thinking;          /* 1, 0, or -1: the template's default */
    int32_t preserve_thinking; /* likewise (Qwen3.6) */
    int32_t opening;           /* append the start of the assistant's turn */
    qmi_stretches *literal;    /* NULL, or gets (replacing what is there; the caller's to free) where the text holds what users and
                                  tools said: marks in it are not the template's */
} qmi_chat_request;

/* Replaces the text of *out, which stays the caller's to free, also after a failure.
 * QM_ERROR_TEXT: malformed JSON (with line and column) or the template's own refusal, in its words, with the message's index.
 * Beyond the templates: a tool call's "arguments" may be JSON text, as OpenAI's interface has it, where the template wants an
 * object. What a template would print as the source text of a Python object (a list as a name) is refused.
 * CHATML has no template: contents unchanged (of lists, the text parts), thoughts left out, any role, tools as Qwen3 has them,
 * `thinking` ignored. */
int32_t qmi_chat_render(qmi_chat_format_id id, const qmi_chat_request *request, const qmi_alloc *alloc, qmi_string *out);

#endif
