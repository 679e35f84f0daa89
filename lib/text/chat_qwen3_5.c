/* Renders messages as the templates of Qwen3.5 and Qwen3.6 do. */
#include "text/chat_render.h"

static const char tools_before[] = "<|im_start|>system\n# Tools\n\nYou have access to the following functions:\n\n";

/* The instructions that the models were trained with: the template's words. */
static const char tools_after[] =
    "\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
    "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines\n</parameter>\n"
    "</function>\n</tool_call>\n\n"
    "<IMPORTANT>\nReminder:\n"
    "- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within "
    "<tool_call></tool_call> XML tags\n"
    "- Required parameters MUST be specified\n"
    "- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after\n"
    "- If there is no function call available, answer the question like normal with your current knowledge "
    "and do not tell the user about function calls\n</IMPORTANT>";

/* ---- contents ---- */

static int32_t write_part(qmi_chat_render_state *state, size_t message, bool of_system, const json_t *part, qmi_writer *out)
{
    const json_t *type = qmi_json_get(part, "type");
    if (qmi_json_get(part, "image") || qmi_json_get(part, "image_url") || qmi_json_equals(type, "image")) {
        if (of_system)
            return qmi_chat_refuse(state, message, "System message cannot contain images.");
        qmi_write_text(out, "<|vision_start|><|image_pad|><|vision_end|>");
        return QM_OK;
    }
    if (qmi_json_get(part, "video") || qmi_json_equals(type, "video")) {
        if (of_system)
            return qmi_chat_refuse(state, message, "System message cannot contain videos.");
        qmi_write_text(out, "<|vision_start|><|video_pad|><|vision_end|>");
        return QM_OK;
    }
    const json_t *text = qmi_json_get(part, "text");
    if (!text)
        return qmi_chat_refuse(state, message, "Unexpected item type in content.");
    if (!qmi_json_write_str(out, text))
        return qmi_chat_refuse(state, message, "the \"text\" of an item in its content must be text");
    return QM_OK;
}

/* The stripped content of a message; valid until the next call. */
static int32_t take_content(qmi_chat_render_state *state, size_t message, bool of_system, qmi_view *stripped)
{
    const json_t *content = qmi_chat_member(state, message, "content");
    qmi_writer scratch = { &state->scratch, state->out.alloc, false };
    state->scratch.length = 0;
    *stripped = qmi_view_of("");
    if (!content || json_is_null(content))
        return QM_OK;
    if (qmi_json_is_string(content)) {
        *stripped = qmi_view_strip(qmi_json_text(content));
        return QM_OK;
    }
    if (!json_is_array(content))
        return qmi_chat_refuse(state, message, "Unexpected content type.");
    for (size_t i = 0; i < json_array_size(content); i++) {
        int32_t code = write_part(state, message, of_system, json_array_get(content, i), &scratch);
        if (code < 0)
            return code;
    }
    if (scratch.failed)
        state->out.failed = true;
    *stripped = qmi_view_strip(qmi_string_view(&state->scratch));
    return QM_OK;
}

/* ---- turns ---- */

static int32_t write_system(qmi_chat_render_state *state)
{
    qmi_view content = qmi_view_of("");
    bool given = qmi_chat_has_role(state, 0, "system");
    int32_t code = given ? take_content(state, 0, true, &content) : QM_OK;
    if (code < 0 || !(given || state->tools))
        return code;
    if (state->tools) {
        qmi_write_text(&state->out, tools_before);
        qmi_chat_write_tools(state);
        qmi_write_text(&state->out, tools_after);
        qmi_write_text(&state->out, content.length ? "\n\n" : "");
    } else {
        qmi_write_text(&state->out, "<|im_start|>system\n");
    }
    qmi_write(&state->out, content);
    qmi_write_text(&state->out, "<|im_end|>\n");
    return QM_OK;
}

/* The last user message that isn't wholly a tool's response: assistant turns after it keep their thoughts. */
static int32_t find_last_query(qmi_chat_render_state *state, size_t *last_query)
{
    qmi_view content;
    for (size_t i = state->count; i-- > 0;) {
        if (!qmi_chat_has_role(state, i, "user"))
            continue;
        int32_t code = take_content(state, i, false, &content);
        if (code < 0)
            return code;
        if (!(qmi_view_starts(content, "<tool_response>") && qmi_view_ends(content, "</tool_response>"))) {
            *last_query = i;
            return QM_OK;
        }
    }
    return qmi_chat_refuse(state, state->count - 1, "No user query found in messages.");
}

static void write_parameter(qmi_chat_render_state *state, const char *name, const json_t *value)
{
    qmi_write_text(&state->out, "<parameter=");
    qmi_write_text(&state->out, name);
    qmi_write_text(&state->out, ">\n");
    bool as_json = state->id == QMI_CHAT_QWEN3_6 ? !qmi_json_is_string(value) : json_is_object(value) || json_is_array(value);
    if (as_json)
        qmi_json_write(&state->out, value);
    else
        qmi_json_write_str(&state->out, value);
    qmi_write_text(&state->out, "\n</parameter>\n");
}

static int32_t write_arguments(qmi_chat_render_state *state, size_t message, const json_t *arguments)
{
    json_t *parsed = NULL;
    const char *key;
    json_t *value;
    if (qmi_json_is_string(arguments)) { /* JSON text, as OpenAI's interface has it; the template takes objects only */
        qmi_view text = qmi_view_strip(qmi_json_text(arguments));
        int32_t code = text.length ? qmi_json_parse(text, "the arguments of a tool call", &parsed) : QM_OK;
        if (code < 0)
            return code;
        arguments = parsed;
    } else if (!json_is_object(arguments)) {
        return qmi_chat_refuse(state, message, "Can only get item pairs from a mapping.");
    }
    if (arguments && !json_is_object(arguments)) {
        json_decref(parsed);
        return qmi_chat_refuse(state, message, "Can only get item pairs from a mapping.");
    }
    json_object_foreach((json_t *)arguments, key, value)
        write_parameter(state, key, value);
    json_decref(parsed);
    return QM_OK;
}

static int32_t write_tool_calls(qmi_chat_render_state *state, size_t message, bool after_content)
{
    const json_t *calls = qmi_chat_member(state, message, "tool_calls");
    if (qmi_json_is_string(calls) && json_string_length(calls))
        return qmi_chat_refuse(state, message, "\"tool_calls\" must be a list");
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *call = json_array_get(calls, i), *function = qmi_json_get(call, "function");
        if (function)
            call = function;
        const json_t *name = qmi_json_get(call, "name"), *arguments = qmi_json_get(call, "arguments");
        if (!qmi_json_is_string(name))
            return qmi_chat_refuse(state, message, "the \"name\" of a tool call must be text");
        qmi_write_text(&state->out, i > 0 ? "\n" : after_content ? "\n\n" : "");
        qmi_write_text(&state->out, "<tool_call>\n<function=");
        qmi_write(&state->out, qmi_json_text(name));
        qmi_write_text(&state->out, ">\n");
        int32_t code = arguments ? write_arguments(state, message, arguments) : QM_OK;
        if (code < 0)
            return code;
        qmi_write_text(&state->out, "</function>\n</tool_call>");
    }
    return QM_OK;
}

static int32_t write_assistant(qmi_chat_render_state *state, size_t message, qmi_view content, size_t last_query)
{
    const json_t *given = qmi_chat_member(state, message, "reasoning_content");
    qmi_view thoughts = qmi_chat_text_or_empty(given);
    if (!qmi_json_is_string(given))
        qmi_chat_split_thoughts(content, &thoughts, &content);
    bool preserve = state->id == QMI_CHAT_QWEN3_6 && state->request->preserve_thinking > 0;
    qmi_write_text(&state->out, "<|im_start|>assistant\n");
    if (preserve || message > last_query) {
        qmi_write_text(&state->out, "<think>\n");
        qmi_write(&state->out, qmi_view_strip(thoughts));
        qmi_write_text(&state->out, "\n</think>\n\n");
    }
    qmi_write(&state->out, content);
    int32_t code = write_tool_calls(state, message, qmi_view_strip(content).length > 0);
    qmi_write_text(&state->out, "<|im_end|>\n");
    return code;
}

static int32_t write_message(qmi_chat_render_state *state, size_t message, size_t last_query)
{
    qmi_view content;
    int32_t code = take_content(state, message, false, &content);
    if (code < 0)
        return code;
    if (qmi_chat_has_role(state, message, "system"))
        return message == 0 ? QM_OK : qmi_chat_refuse(state, message, "System message must be at the beginning.");
    if (qmi_chat_has_role(state, message, "user")) {
        qmi_write_text(&state->out, "<|im_start|>user\n");
        qmi_chat_write_literal(state, content);
        qmi_write_text(&state->out, "<|im_end|>\n");
        return QM_OK;
    }
    if (qmi_chat_has_role(state, message, "assistant"))
        return write_assistant(state, message, content, last_query);
    if (!qmi_chat_has_role(state, message, "tool"))
        return qmi_chat_refuse(state, message, "Unexpected message role.");
    qmi_chat_write_tool_result(state, message > 0 && !qmi_chat_has_role(state, message - 1, "tool"), content,
        !qmi_chat_has_role(state, message + 1, "tool"));
    return QM_OK;
}

int32_t qmi_chat_render_qwen3_5(qmi_chat_render_state *state)
{
    size_t last_query = 0;
    int32_t code = write_system(state);
    if (code == QM_OK)
        code = find_last_query(state, &last_query);
    for (size_t i = 0; code == QM_OK && i < state->count; i++)
        code = write_message(state, i, last_query);
    if (code == QM_OK && state->request->opening) {
        qmi_write_text(&state->out, "<|im_start|>assistant\n");
        qmi_write_text(&state->out, state->request->thinking == 0 ? "<think>\n\n</think>\n\n" : "<think>\n");
    }
    return code;
}
