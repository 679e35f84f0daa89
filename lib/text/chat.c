/* Recognises a model's chat template and renders messages by it: see chat.h. */
#include "text/chat.h"

#include <inttypes.h>
#include <string.h>
#include "base/error.h"
#include "text/chat_render.h"

static const char *const names[QMI_CHAT_COUNT] = {
    [QMI_CHAT_CHATML] = "chatml",
    [QMI_CHAT_QWEN3] = "qwen3",
    [QMI_CHAT_QWEN3_5] = "qwen3.5",
    [QMI_CHAT_QWEN3_6] = "qwen3.6",
};

/* FNV-1a, 64 bits, of the published templates without blanks at their end. */
static const struct {
    uint64_t hash;
    qmi_chat_format_id id;
} known[] = {
    { 0x959a4551391a6549, QMI_CHAT_QWEN3 },
    { 0xf07c510f47fbaca0, QMI_CHAT_QWEN3_5 },
    { 0x8ae3a8bc6e68f114, QMI_CHAT_QWEN3_6 },
};

/* Parts that a template must all have, "!" before those that it must not have. More special formats first. */
static const struct {
    qmi_chat_format_id id;
    const char *parts[8];
} characteristic[] = {
    { QMI_CHAT_QWEN3_6, { "<|im_start|>", "enable_thinking", "reasoning_content", "tool | tojson", "<function=", "<parameter=",
                          "preserve_thinking is true" } },
    { QMI_CHAT_QWEN3_5, { "<|im_start|>", "enable_thinking", "reasoning_content", "tool | tojson", "<function=", "<parameter=",
                          "!preserve_thinking" } },
    { QMI_CHAT_QWEN3, { "<|im_start|>", "enable_thinking", "reasoning_content", "tool | tojson", "{\"name\": \"",
        "!<function=" } },
};

static uint64_t fnv1a(qmi_view text)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < text.length; i++)
        hash = (hash ^ (unsigned char)text.data[i]) * 0x100000001b3;
    return hash;
}

static bool has_parts(qmi_view template, const char *const parts[8])
{
    for (int i = 0; i < 8 && parts[i]; i++) {
        bool unwanted = parts[i][0] == '!';
        if ((qmi_view_find(template, parts[i] + unwanted) != QMI_NOT_FOUND) == unwanted)
            return false;
    }
    return true;
}

qmi_chat_format_id qmi_chat_recognise(const char *jinja, int64_t length, const qmi_log *log)
{
    if (!jinja) {
        qmi_log_line(log, QM_LOG_WARNING, "the model has no chat template: messages are formatted as plain ChatML");
        return QMI_CHAT_CHATML;
    }
    qmi_view template = { jinja, length < 0 ? strlen(jinja) : (size_t)length };
    while (template.length && strchr(" \t\r\n", template.data[template.length - 1]) && template.data[template.length - 1])
        template.length--;
    uint64_t hash = fnv1a(template);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].hash == hash)
            return known[i].id;
    for (size_t i = 0; i < sizeof characteristic / sizeof characteristic[0]; i++) {
        if (!has_parts(template, characteristic[i].parts))
            continue;
        qmi_log_line(log, QM_LOG_INFO, "chat template %016" PRIx64 " is not a known one; by its parts it is taken for %s", hash,
            names[characteristic[i].id]);
        return characteristic[i].id;
    }
    size_t line = 0;
    while (line < template.length && line < 100 && (unsigned char)template.data[line] >= 0x20)
        line++;
    while (line && line < template.length && ((unsigned char)template.data[line] & 0xC0) == 0x80) /* never half a code point */
        line--;
    qmi_log_line(log, QM_LOG_WARNING,
        "unknown chat template (%zu bytes, hash %016" PRIx64 ", starts \"%.*s\"): messages are formatted as "
        "plain ChatML", template.length, hash, (int)line, template.data);
    return QMI_CHAT_CHATML;
}

const char *qmi_chat_name(qmi_chat_format_id id)
{
    return names[id];
}

int32_t qmi_chat_find(const char *name)
{
    for (int32_t id = 0; id < QMI_CHAT_COUNT; id++)
        if (strcmp(names[id], name) == 0)
            return id;
    return -1;
}

/* ---- what the renderers share ---- */

int32_t qmi_chat_refuse(const qmi_chat_render_state *state, size_t message, const char *words)
{
    return qmi_fail(QM_ERROR_TEXT, "chat format %s refuses messages[%zu]: %s", names[state->id], message, words);
}

const json_t *qmi_chat_member(const qmi_chat_render_state *state, size_t message, const char *key)
{
    return qmi_json_get(json_array_get(state->messages, message), key);
}

bool qmi_chat_has_role(const qmi_chat_render_state *state, size_t message, const char *role)
{
    return qmi_json_equals(qmi_chat_member(state, message, "role"), role);
}

qmi_view qmi_chat_text_or_empty(const json_t *value)
{
    return qmi_json_is_string(value) ? qmi_json_text(value) : qmi_view_of("");
}

bool qmi_chat_split_thoughts(qmi_view content, qmi_view *thoughts, qmi_view *answer)
{
    size_t first = qmi_view_find(content, "</think>"), last = qmi_view_find_last(content, "</think>");
    if (first == QMI_NOT_FOUND)
        return false;
    qmi_view before = qmi_view_strip_newlines(qmi_view_cut(content, 0, first), false, true);
    size_t opened = qmi_view_find_last(before, "<think>");
    if (opened != QMI_NOT_FOUND)
        before = qmi_view_from(before, opened + strlen("<think>"));
    *thoughts = qmi_view_strip_newlines(before, true, false);
    *answer = qmi_view_strip_newlines(qmi_view_from(content, last + strlen("</think>")), true, false);
    return true;
}

void qmi_chat_write_literal(qmi_chat_render_state *state, qmi_view said)
{
    qmi_stretches *literal = state->request->literal;
    int64_t start = (int64_t)state->out.out->length;
    qmi_write(&state->out, said);
    if (!literal || said.length == 0 || state->out.failed)
        return;
    void *array = literal->data;
    if (qmi_reserve(state->out.alloc, &array, &literal->capacity, literal->count + 1, sizeof *literal->data, "a prompt") < 0) {
        state->out.failed = true;
        return;
    }
    literal->data = array;
    literal->data[literal->count++] = (struct qmi_stretch){ start, (int64_t)state->out.out->length };
}

void qmi_chat_write_tools(qmi_chat_render_state *state)
{
    qmi_write_text(&state->out, "<tools>");
    for (size_t i = 0; i < json_array_size(state->tools); i++) {
        qmi_write_text(&state->out, "\n");
        qmi_json_write(&state->out, json_array_get(state->tools, i));
    }
    qmi_write_text(&state->out, "\n</tools>");
}

void qmi_chat_write_tool_result(qmi_chat_render_state *state, bool opens, qmi_view content, bool closes)
{
    if (opens)
        qmi_write_text(&state->out, "<|im_start|>user");
    qmi_write_text(&state->out, "\n<tool_response>\n");
    qmi_chat_write_literal(state, content);
    qmi_write_text(&state->out, "\n</tool_response>");
    if (closes)
        qmi_write_text(&state->out, "<|im_end|>\n");
}

/* ---- render ---- */

int32_t qmi_chat_render(qmi_chat_format_id id, const qmi_chat_request *request, const qmi_alloc *alloc, qmi_string *out)
{
    json_t *messages = NULL, *tools = NULL;
    out->length = 0;
    if (request->literal)
        request->literal->count = 0;
    int32_t code = qmi_json_parse_array(request->messages, request->messages_length, "messages", &messages);
    if (code == QM_OK && request->tools)
        code = qmi_json_parse_array(request->tools, request->tools_length, "tools", &tools);
    qmi_chat_render_state state = { id, request, messages, json_array_size(tools) ? tools : NULL, json_array_size(messages),
        { out, alloc, false }, { 0 } };
    if (code == QM_OK && state.count == 0)
        code = qmi_fail(QM_ERROR_TEXT, "chat format %s refuses the messages: No messages provided.", names[id]);
    else if (code == QM_OK)
        code = id == QMI_CHAT_QWEN3_5 || id == QMI_CHAT_QWEN3_6 ? qmi_chat_render_qwen3_5(&state) : qmi_chat_render_qwen3(&state);
    qmi_write_text(&state.out, ""); /* even an empty text has its zero */
    if (code == QM_OK && state.out.failed)
        code = QM_ERROR_MEMORY;
    if (code < 0)
        out->length = 0;
    qmi_string_free(&state.scratch, alloc);
    json_decref(messages);
    json_decref(tools);
    return code;
}
