/* What chat.c hands to the renderers of the single formats. */
#ifndef QMI_TEXT_CHAT_RENDER_H
#define QMI_TEXT_CHAT_RENDER_H

#include "text/chat_json.h"

typedef struct qmi_chat_render_state {
    qmi_chat_format_id id;
    const qmi_chat_request *request;
    const json_t *messages, *tools; /* arrays; tools NULL when there are none */
    size_t count;                   /* of messages, at least 1 */
    qmi_writer out;
    qmi_string scratch;             /* the content at hand, when it is put together from parts */
} qmi_chat_render_state;

/* Return QM_OK, or QM_ERROR_TEXT; lack of memory shows in out.failed. */
int32_t qmi_chat_render_qwen3(qmi_chat_render_state *state);   /* and ChatML */
int32_t qmi_chat_render_qwen3_5(qmi_chat_render_state *state); /* and Qwen3.6 */

int32_t qmi_chat_refuse(const qmi_chat_render_state *state, size_t message, const char *words);

const json_t *qmi_chat_member(const qmi_chat_render_state *state, size_t message, const char *key); /* or NULL */
bool qmi_chat_has_role(const qmi_chat_render_state *state, size_t message, const char *role); /* false out of range */
qmi_view qmi_chat_text_or_empty(const json_t *value); /* of a string; else "" */

/* Thoughts and answer of an assistant's content that has </think> in it: thoughts reach from the last <think> before the first
 * </think> up to that, and the answer is what follows the last </think>. False when there is none. */
bool qmi_chat_split_thoughts(qmi_view content, qmi_view *thoughts, qmi_view *answer);

/* What was said by someone who must not write marks. */
void qmi_chat_write_literal(qmi_chat_render_state *state, qmi_view said);
/* <tools>, one JSON a line, </tools>: the part that all formats share. */
void qmi_chat_write_tools(qmi_chat_render_state *state);
/* A tool's result; consecutive ones share a user's turn, opened by `opens` and closed by `closes`. */
void qmi_chat_write_tool_result(qmi_chat_render_state *state, bool opens, qmi_view content, bool closes);

#endif
