/* Chat messages to prompt text, exactly as the model's own template gives it; templates are recognised, never executed. */
#ifndef QMI_TEXT_CHAT_H
#define QMI_TEXT_CHAT_H

#include "base/alloc.h"
#include "base/log.h"

typedef enum qmi_chat_format_id { QMI_CHAT_CHATML, QMI_CHAT_QWEN3, QMI_CHAT_QWEN3_5, QMI_CHAT_QWEN3_6, QMI_CHAT_COUNT } qmi_chat_format_id;

/* By a hash of known templates, then by characteristic parts. Unknown (or NULL): CHATML, and a warning in the log that names
 * what was found (its first line and hash). */
qmi_chat_format_id qmi_chat_recognise(const char *jinja, int64_t length, const qmi_log *log);
const char *qmi_chat_name(qmi_chat_format_id id); /* "qwen3.5" */

/* A growing text that belongs to the caller (alloc's); zero-terminated when not empty. */
typedef struct qmi_string {
    char *data;
    size_t length, capacity;
} qmi_string;

typedef struct qmi_chat_request {
    const char *messages; int64_t messages_length; /* JSON array */
    const char *tools; int64_t tools_length;       /* JSON array or NULL */
    int32_t thinking;          /* 1, 0, or -1: the template's default */
    int32_t preserve_thinking; /* likewise (Qwen3.6) */
    int32_t opening;           /* append the start of the assistant's turn */
} qmi_chat_request;

/* QM_ERROR_TEXT: malformed JSON (with line and column) or the template's own refusal, in its words. */
int32_t qmi_chat_render(qmi_chat_format_id id, const qmi_chat_request *request, const qmi_alloc *alloc, qmi_string *out);

#endif
