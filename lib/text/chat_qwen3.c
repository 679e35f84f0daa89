/* Renders messages as Qwen3's template does, and in plain ChatML, of which it is a dialect. */
#include "text/chat_render.h"

#include "base/error.h"

static const char tools_before[] =
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n";

/* The template's words. */
static const char tools_after[] =
    "\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
    "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n";

static bool is_plain(const qmi_chat_render_state *state)
{
    return state->id == QMI_CHAT_CHATML;
}

/* Qwen3's template knows contents that are text, and takes all others as empty. ChatML, which has no template to follow, takes
 * null as empty and puts text parts together. Valid until the next call. */
static int32_t take_content(qmi_chat_render_state *state, size_t message, qmi_view *text)
{
    const json_t *content = qmi_chat_member(state, message, "content");
    qmi_writer scratch = { &state->scratch, state->out.alloc, false };
    state->scratch.length = 0;
    *text = qmi_chat_text_or_empty(content);
    if (!is_plain(state) || !content || json_is_null(content) || qmi_json_is_string(content))
        return QM_OK;
    if (!json_is_array(content))
        return qmi_chat_refuse(state, message, "Unexpected content type.");
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = qmi_json_get(json_array_get(content, i), "text");
        if (!qmi_json_is_string(part))
            return qmi_chat_refuse(state, message, "Unexpected item type in content.");
        qmi_write(&scratch, qmi_json_text(part));
    }
    if (scratch.failed)
        state->out.failed = true;
    *text = qmi_string_view(&state->scratch);
    return QM_OK;
}

static int32_t write_system(qmi_chat_render_state *state)
{
    qmi_view content = qmi_view_of("");
    bool given = qmi_chat_has_role(state, 0, "system");
    if (given && !is_plain(state) && !qmi_json_is_string(qmi_chat_member(state, 0, "content")))
        return qmi_chat_refuse(state, 0, "the content of the system message must be text");
    int32_t code = given ? take_content(state, 0, &content) : QM_OK;
    if (code < 0 || !(given || state->tools))
        return code;
    qmi_write_text(&state->out, "<|im_start|>system\n");
    qmi_write(&state->out, content);
    if (state->tools) {
        qmi_write_text(&state->out, given ? "\n\n" : "");
        qmi_write_text(&state->out, tools_before);
        qmi_chat_write_tools(state);
        qmi_write_text(&state->out, tools_after);
    } else {
        qmi_write_text(&state->out, "<|im_end|>\n");
    }
    return QM_OK;
}

/* The last user message that is text and not wholly a tool's response; the last message if there is none. */
static size_t find_last_query(const qmi_chat_render_state *state)
{
    for (size_t i = state->count; i-- > 0;) {
        const json_t *content = qmi_chat_member(state, i, "content");
        if (!qmi_chat_has_role(state, i, "user") || !qmi_json_is_string(content))
            continue;
        qmi_view text = qmi_json_text(content);
        if (!(qmi_view_starts(text, "<tool_response>") && qmi_view_ends(text, "</tool_response>")))
            return i;
    }
    return state->count - 1;
}

/* What Jinja's `if` takes as false. */
static bool is_falsy(const json_t *value)
{
    return !value || json_is_null(value) || json_is_false(value) || (json_is_string(value) && !json_string_length(value)) ||
           (json_is_integer(value) && json_integer_value(value) == 0) || (json_is_real(value) && json_real_value(value) == 0) ||
           (json_is_object(value) && !json_object_size(value)) || (json_is_array(value) && !json_array_size(value));
}

static int32_t write_call(qmi_chat_render_state *state, size_t message, const json_t *call)
{
    const json_t *function = qmi_json_get(call, "function");
    if (!is_falsy(function))
        call = function;
    const json_t *name = qmi_json_get(call, "name"), *arguments = qmi_json_get(call, "arguments");
    qmi_write_text(&state->out, "<tool_call>\n{\"name\": \"");
    if (name && !qmi_json_write_str(&state->out, name))
        return qmi_chat_refuse(state, message, "the \"name\" of a tool call must be text");
    qmi_write_text(&state->out, "\", \"arguments\": ");
    if (qmi_json_is_string(arguments))
        qmi_write(&state->out, qmi_json_text(arguments));
    else if (arguments)
        qmi_json_write(&state->out, arguments);
    else if (is_plain(state))
        qmi_write_text(&state->out, "{}");
    else
        return qmi_chat_refuse(state, message, "a tool call must have \"arguments\"");
    qmi_write_text(&state->out, "}\n</tool_call>");
    return QM_OK;
}

static int32_t write_tool_calls(qmi_chat_render_state *state, size_t message, bool after_content)
{
    const json_t *calls = qmi_chat_member(state, message, "tool_calls");
    if (!is_falsy(calls) && !json_is_array(calls))
        return qmi_chat_refuse(state, message, "\"tool_calls\" must be a list");
    for (size_t i = 0; i < json_array_size(calls); i++) {
        qmi_write_text(&state->out, i > 0 || after_content ? "\n" : "");
        int32_t code = write_call(state, message, json_array_get(calls, i));
        if (code < 0)
            return code;
    }
    return QM_OK;
}

static int32_t write_assistant(qmi_chat_render_state *state, size_t message, qmi_view content, size_t last_query)
{
    const json_t *given = qmi_chat_member(state, message, "reasoning_content");
    qmi_view thoughts = qmi_chat_text_or_empty(given);
    if (!is_plain(state) && !qmi_json_is_string(given))
        qmi_chat_split_thoughts(content, &thoughts, &content);
    qmi_write_text(&state->out, "<|im_start|>assistant\n");
    qmi_view shown = content;
    if (!is_plain(state) && message > last_query && (message + 1 == state->count || thoughts.length)) {
        qmi_write_text(&state->out, "<think>\n");
        qmi_write(&state->out, qmi_view_strip_newlines(thoughts, true, true));
        qmi_write_text(&state->out, "\n</think>\n\n");
        shown = qmi_view_strip_newlines(content, true, false);
    }
    qmi_write(&state->out, shown);
    int32_t code = write_tool_calls(state, message, content.length > 0);
    qmi_write_text(&state->out, "<|im_end|>\n");
    return code;
}

static int32_t write_message(qmi_chat_render_state *state, size_t message, size_t last_query)
{
    qmi_view content;
    const json_t *role = qmi_chat_member(state, message, "role");
    bool known_role = qmi_json_equals(role, "user") || qmi_json_equals(role, "system");
    int32_t code = take_content(state, message, &content);
    if (code < 0)
        return code;
    if (qmi_json_equals(role, "assistant"))
        return write_assistant(state, message, content, last_query);
    if (qmi_json_equals(role, "tool")) {
        qmi_chat_write_tool_result(state, message == 0 || !qmi_chat_has_role(state, message - 1, "tool"), content,
            !qmi_chat_has_role(state, message + 1, "tool"));
        return QM_OK;
    }
    if (is_plain(state) && !(qmi_json_is_string(role) && json_string_length(role)))
        return qmi_chat_refuse(state, message, "Unexpected message role.");
    if ((message == 0 && qmi_json_equals(role, "system")) || !(known_role || is_plain(state)))
        return QM_OK; /* Qwen3's template passes over roles that it does not know */
    qmi_write_text(&state->out, "<|im_start|>");
    qmi_chat_write_literal(state, qmi_json_text(role));
    qmi_write_text(&state->out, "\n");
    if (qmi_json_equals(role, "system"))
        qmi_write(&state->out, content);
    else
        qmi_chat_write_literal(state, content);
    qmi_write_text(&state->out, "<|im_end|>\n");
    return QM_OK;
}

int32_t qmi_chat_render_qwen3(qmi_chat_render_state *state)
{
    size_t last_query = find_last_query(state);
    int32_t code = write_system(state);
    for (size_t i = 0; code == QM_OK && i < state->count; i++)
        code = write_message(state, i, last_query);
    if (code == QM_OK && state->request->opening) {
        qmi_write_text(&state->out, "<|im_start|>assistant\n");
        qmi_write_text(&state->out, !is_plain(state) && state->request->thinking == 0 ? "<think>\n\n</think>\n\n" : "");
    }
    return code;
}
