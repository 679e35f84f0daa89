/* POST /v1/messages and /v1/messages/count_tokens: Anthropic's interface. */
#include <stdlib.h>
#include <string.h>

#include "blocks.h"
#include "routes.h"

/* ---- the request: blocks to messages ---- */

static int has_type(const json_t *block, const char *type)
{
    const char *given = json_get_text(block, "type");
    return given && strcmp(given, type) == 0;
}

/* Text of a content: itself, or of its blocks of text. */
static int add_text_of(generation *g, text_buffer *out, const json_t *content, const char *where)
{
    if (json_is_string(content))
        buffer_add(out, json_string_value(content), json_string_length(content));
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i), *text = json_object_get(part, "text");
        if (!json_is_string(text))
            return generation_fail(g, 400, "unsupported", "%s has a block that is not text; this server takes nothing else there",
                                   where);
        buffer_add(out, json_string_value(text), json_string_length(text));
    }
    return 0;
}

static int add_result(generation *g, json_t *messages, const json_t *block)
{
    text_buffer text = { 0 };
    int code = add_text_of(g, &text, json_object_get(block, "content"), "a tool_result");
    if (code == 0)
        json_array_append_new(messages,
                              json_pack("{s:s, s:s?, s:o}", "role", "tool", "tool_call_id", json_get_text(block, "tool_use_id"),
                                        "content", json_text(text.data, text.length)));
    buffer_free(&text);
    return code;
}

/* A user's blocks: results of tools are messages of their own, and come first. */
static int add_user(generation *g, json_t *messages, const json_t *content)
{
    text_buffer text = { 0 };
    int code = 0, has_text = 0;
    for (size_t i = 0; i < json_array_size(content) && code == 0; i++) {
        const json_t *block = json_array_get(content, i), *words = json_object_get(block, "text");
        if (has_type(block, "tool_result")) {
            code = add_result(g, messages, block);
        } else if (json_is_string(words)) {
            buffer_add(&text, json_string_value(words), json_string_length(words));
            has_text = 1;
        } else {
            code = generation_fail(g, 400, "unsupported", "a message has a block that is neither text nor the result of a tool");
        }
    }
    if (code == 0 && (has_text || json_array_size(content) == 0))
        json_array_append_new(messages, json_pack("{s:s, s:o}", "role", "user", "content", json_text(text.data, text.length)));
    buffer_free(&text);
    return code;
}

static int add_assistant(generation *g, json_t *messages, const json_t *content)
{
    text_buffer text = { 0 }, thoughts = { 0 };
    json_t *calls = json_array();
    int code = 0;
    for (size_t i = 0; i < json_array_size(content) && code == 0; i++) {
        const json_t *block = json_array_get(content, i);
        const char *words = json_get_text(block, "text"), *thought = json_get_text(block, "thinking");
        if (has_type(block, "tool_use"))
            json_array_append_new(calls, json_pack("{s:s, s:s?, s:{s:O?, s:O?}}", "type", "function", "id",
                                                   json_get_text(block, "id"), "function", "name", json_object_get(block, "name"),
                                                   "arguments", json_object_get(block, "input")));
        else if (thought)
            buffer_add_text(&thoughts, thought);
        else if (words)
            buffer_add_text(&text, words);
        else if (!has_type(block, "redacted_thinking"))
            code = generation_fail(g, 400, "unsupported", "an assistant's message has a block that this server does not know");
    }
    if (code == 0) {
        json_t *message = json_pack("{s:s, s:o}", "role", "assistant", "content", json_text(text.data, text.length));
        if (thoughts.length)
            json_object_set_new(message, "reasoning_content", json_text(thoughts.data, thoughts.length));
        if (json_array_size(calls))
            json_object_set(message, "tool_calls", calls);
        json_array_append_new(messages, message);
    }
    json_decref(calls);
    buffer_free(&text);
    buffer_free(&thoughts);
    return code;
}

static int add_message(generation *g, json_t *messages, size_t index, const json_t *message)
{
    const char *role = json_get_text(message, "role");
    const json_t *content = json_object_get(message, "content");
    if (!role || (strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0 && strcmp(role, "system") != 0))
        return generation_fail(g, 400, NULL, "messages.%zu.role has to be user or assistant", index);
    if (!json_is_string(content) && !json_is_array(content))
        return generation_fail(g, 400, NULL, "messages.%zu.content has to be a text or an array of blocks", index);
    if (json_is_string(content)) {
        json_array_append_new(messages, json_pack("{s:s, s:O}", "role", role, "content", content));
        return 0;
    }
    return strcmp(role, "assistant") == 0 ? add_assistant(g, messages, content) : add_user(g, messages, content);
}

static int add_conversation(generation *g, const json_t *body)
{
    json_t *messages = json_array();
    const json_t *given = json_object_get(body, "messages"), *system = json_object_get(body, "system");
    text_buffer text = { 0 };
    int code = 0;
    if (!json_is_array(given))
        code = generation_fail(g, 400, NULL, "\"messages\" has to be an array");
    if (code == 0 && system && !json_is_null(system)) {
        code = json_is_string(system) || json_is_array(system)
                   ? add_text_of(g, &text, system, "system")
                   : generation_fail(g, 400, NULL, "\"system\" has to be a text or blocks");
        json_array_append_new(messages, json_pack("{s:s, s:o}", "role", "system", "content", json_text(text.data, text.length)));
    }
    for (size_t i = 0; i < json_array_size(given) && code == 0; i++)
        code = add_message(g, messages, i, json_array_get(given, i));
    if (code == 0)
        code = generation_add_messages(g, messages);
    buffer_free(&text);
    json_decref(messages);
    return code;
}

static int read_tools(generation *g, const json_t *body)
{
    const json_t *given = json_object_get(body, "tools"), *choice = json_object_get(body, "tool_choice");
    const char *wanted = json_get_text(choice, "type"), *name = json_get_text(choice, "name");
    if (generation_check(g, body, "tools", 'a') < 0 || generation_check(g, body, "tool_choice", 'o') < 0)
        return -1;
    json_t *tools = json_array();
    int code = 0;
    for (size_t i = 0; i < json_array_size(given) && code == 0; i++) {
        json_t *tool = json_array_get(given, i);
        const char *type = json_get_text(tool, "type");
        if ((type && strcmp(type, "custom") != 0) || !json_get_text(tool, "name")) {
            code = generation_fail(g, 400, NULL,
                                   "tools.%zu is not a tool of the client with a name; this server has none of its own", i);
            break;
        }
        json_t *function = json_pack("{s:O}", "name", json_object_get(tool, "name"));
        if (json_is_string(json_object_get(tool, "description")))
            json_object_set(function, "description", json_object_get(tool, "description"));
        if (json_is_object(json_object_get(tool, "input_schema")))
            json_object_set(function, "parameters", json_object_get(tool, "input_schema"));
        if (json_get_bool(tool, "strict", 0))
            json_object_set_new(function, "strict", json_true());
        json_array_append_new(tools, json_pack("{s:s, s:o}", "type", "function", "function", function));
    }
    if (code == 0 && wanted) {
        if (strcmp(wanted, "any") == 0)
            wanted = "required";
        else if (strcmp(wanted, "tool") == 0 && name)
            wanted = name;
        else if (strcmp(wanted, "auto") != 0 && strcmp(wanted, "none") != 0)
            code = generation_fail(g, 400, NULL, "tool_choice.type has to be auto, any, none, or tool with a name");
    }
    if (code == 0)
        code = generation_set_tools(g, tools, wanted ? wanted : "auto", !json_get_bool(choice, "disable_parallel_tool_use", 0));
    json_decref(tools);
    return code;
}

static int read_thinking(generation *g, const json_t *body)
{
    const json_t *thinking = json_object_get(body, "thinking");
    if (generation_check(g, body, "thinking", 'o') < 0 || generation_check(g, thinking, "budget_tokens", 'i') < 0)
        return -1;
    g->thinking = has_type(thinking, "enabled") || has_type(thinking, "adaptive");
    int64_t budget = json_get_int(thinking, "budget_tokens", -1);
    if (budget < 0)
        return 0;
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)budget);
    return generation_set(g, "thinking-tokens", text);
}

static int read_request(generation *g, json_t *body)
{
    make_id(g->id, sizeof g->id, "msg_");
    if (generation_read_settings(g, body) < 0 ||
        generation_read_stop(g, json_object_get(body, "stop_sequences"), "stop_sequences") < 0 || read_thinking(g, body) < 0 ||
        read_tools(g, body) < 0 || generation_check(g, body, "output_config", 'o') < 0)
        return -1;
    const json_t *format = json_object_get(json_object_get(body, "output_config"), "format");
    if (has_type(format, "json_schema") && generation_set_schema(g, json_object_get(format, "schema")) < 0)
        return -1;
    return add_conversation(g, body);
}

/* ---- the reply ---- */

static json_t *block_json(const blocks *b, const block *block, int empty)
{
    size_t length = empty ? 0 : block->text.length;
    if (block->kind == PART_THOUGHT)
        return json_pack("{s:s, s:o, s:s}", "type", "thinking", "thinking", json_text(block->text.data, length), "signature", "");
    if (block->kind == PART_TEXT)
        return json_pack("{s:s, s:o}", "type", "text", "text", json_text(block->text.data, length));
    const call_part *call = &b->r->parts[0].calls[block->call];
    json_t *input = length ? json_loadb(block->text.data, length, 0, NULL) : NULL;
    return json_pack("{s:s, s:s, s:o, s:o}", "type", "tool_use", "id", call->id, "name",
                     json_text(call->name, strlen(call->name)), "input", input ? input : json_object());
}

static const char *stop_reason(const blocks *b)
{
    const char *finish = task_outcome_of(b->r->task, 0)->finish;
    int by_itself = strcmp(finish, "end") == 0 || strcmp(finish, "stop") == 0;
    if (by_itself && b->r->parts[0].call_count)
        return "tool_use";
    return strcmp(finish, "stop") == 0 ? "stop_sequence" : by_itself ? "end_turn" : "max_tokens";
}

/* The prompt's tokens are those that were computed and those that were not. */
static json_t *usage_json(const blocks *b, int64_t output)
{
    task_numbers numbers;
    task_numbers_of(b->r->task, &numbers);
    return json_pack("{s:I, s:I, s:I, s:I}", "input_tokens", (json_int_t)(numbers.prompt - numbers.reused),
                     "cache_read_input_tokens", (json_int_t)numbers.reused, "cache_creation_input_tokens", (json_int_t)0,
                     "output_tokens", (json_int_t)output);
}

static json_t *message_json(const blocks *b, const char *reason, int64_t output)
{
    json_t *content = json_array();
    for (size_t i = 0; i < b->count; i++)
        json_array_append_new(content, block_json(b, &b->list[i], 0));
    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:s?, s:n, s:o}", "id", b->r->g.id, "type", "message", "role", "assistant",
                     "model", b->r->g.server->model_id, "content", content, "stop_reason", reason, "stop_sequence", "usage",
                     usage_json(b, output));
}

/* ---- the stream ---- */

static void write_event(blocks *b, const char *type, json_t *data)
{
    json_object_set_new(data, "type", json_string(type));
    event_write(b->out, type, data);
}

static void begin_block(blocks *b, size_t index)
{
    write_event(b, "content_block_start",
                json_pack("{s:i, s:o}", "index", (int)index, "content_block", block_json(b, &b->list[index], 1)));
}

static void more_of_block(blocks *b, size_t index, const char *text, size_t length)
{
    part_kind kind = b->list[index].kind;
    const char *type = kind == PART_THOUGHT ? "thinking_delta" : kind == PART_TEXT ? "text_delta" : "input_json_delta";
    const char *key = kind == PART_THOUGHT ? "thinking" : kind == PART_TEXT ? "text" : "partial_json";
    write_event(b, "content_block_delta",
                json_pack("{s:i, s:{s:s, s:o}}", "index", (int)index, "delta", "type", type, key, json_text(text, length)));
}

static void end_block(blocks *b, size_t index)
{
    if (b->list[index].kind == PART_THOUGHT)
        write_event(b, "content_block_delta",
                    json_pack("{s:i, s:{s:s, s:s}}", "index", (int)index, "delta", "type", "signature_delta", "signature", ""));
    write_event(b, "content_block_stop", json_pack("{s:i}", "index", (int)index));
}

static const block_writer writer = { begin_block, more_of_block, end_block };

static void write_last(blocks *b)
{
    const char *code, *message;
    int status = reply_failure(b->r, 0, &code, &message);
    if (status) {
        event_write(b->out, "error", error_body(ERROR_ANTHROPIC, status, code, message));
        return;
    }
    write_event(b, "message_delta",
                json_pack("{s:{s:s, s:n}, s:o}", "delta", "stop_reason", stop_reason(b), "stop_sequence", "usage",
                          usage_json(b, reply_answer_tokens(b->r))));
    write_event(b, "message_stop", json_object());
}

static int next_chunk(void *state, text_buffer *out)
{
    blocks *b = state;
    task_event *event;
    b->out = out;
    int got = reply_next(b->r, out, &event);
    if (got <= 0)
        return got == 0;
    if (!b->r->begun) { /* the first event comes behind the prompt, so that its numbers are known */
        b->r->begun = 1;
        write_event(b, "message_start", json_pack("{s:o}", "message", message_json(b, NULL, 0)));
    }
    if (event->kind == QM_PIECE_NONE) {
        parts_finish(&b->r->parts[0], blocks_on_part, b);
        blocks_finish(b);
        write_last(b);
    } else {
        parts_add(&b->r->parts[0], event->kind, event->text, (size_t)event->length, blocks_on_part, b);
    }
    task_event_free(event);
    return 1;
}

enum MHD_Result handle_messages(request *request)
{
    json_t *body;
    enum MHD_Result result;
    reply *r = reply_begin(request, read_request, &body, &result);
    if (!r)
        return result;
    json_decref(body);
    blocks *b = server_allocate(1, sizeof *b);
    *b = (blocks){ .r = r };
    if (r->g.stream) {
        b->writer = &writer;
        return reply_stream(request, next_chunk, blocks_free, b);
    }
    reply_collect(r, request, blocks_on_part, b);
    blocks_finish(b);
    if (!reply_if_failed(r, request, &result))
        result = reply_json(request, 200, message_json(b, stop_reason(b), reply_answer_tokens(r)));
    blocks_free(b);
    return result;
}

enum MHD_Result handle_count_tokens(request *request)
{
    generation g;
    json_t *body = NULL;
    enum MHD_Result result;
    int code = generation_start(&g, request, &body);
    if (code == 0)
        code = read_request(&g, body);
    result = code < 0 ? generation_reply_error(&g, request)
                      : reply_json(request, 200, json_pack("{s:I}", "input_tokens", (json_int_t)g.count));
    generation_end(&g);
    json_decref(body);
    return result;
}
