/* POST /v1/responses. Nothing is stored: each request brings its whole conversation. */
#include <stdlib.h>
#include <string.h>

#include "blocks.h"
#include "openai.h"
#include "routes.h"

/* ---- the request: items to messages ---- */

/* The last message if it is the assistant's, else a new one: thoughts, text and calls of one turn are several items here. */
static json_t *assistant_turn(json_t *messages)
{
    json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    const char *role = json_get_text(last, "role");
    if (role && strcmp(role, "assistant") == 0)
        return last;
    last = json_pack("{s:s, s:s}", "role", "assistant", "content", "");
    json_array_append_new(messages, last);
    return last;
}

static void add_call(json_t *messages, const json_t *item)
{
    json_t *turn = assistant_turn(messages), *calls = json_object_get(turn, "tool_calls");
    if (!calls) {
        calls = json_array();
        json_object_set_new(turn, "tool_calls", calls);
    }
    json_array_append_new(calls, json_pack("{s:s, s:s?, s:{s:O?, s:O?}}", "type", "function", "id",
                                           json_get_text(item, "call_id"), "function", "name", json_object_get(item, "name"),
                                           "arguments", json_object_get(item, "arguments")));
}

static void add_thoughts(json_t *messages, const json_t *item)
{
    text_buffer text = { 0 };
    const json_t *parts = json_object_get(item, "content");
    if (json_array_size(parts) == 0)
        parts = json_object_get(item, "summary");
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const char *part = json_get_text(json_array_get(parts, i), "text");
        buffer_add_text(&text, part ? part : "");
    }
    json_array_append_new(messages, json_pack("{s:s, s:s, s:o}", "role", "assistant", "content", "", "reasoning_content",
                                              json_text(text.data, text.length)));
    buffer_free(&text);
}

/* A message; one of the assistant goes on with the turn that its thoughts have begun. */
static void add_message(json_t *messages, const json_t *item)
{
    const char *role = json_get_text(item, "role");
    json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    const char *last_role = json_get_text(last, "role"), *last_content = json_get_text(last, "content");
    if (role && strcmp(role, "assistant") == 0 && last_role && strcmp(last_role, role) == 0 && last_content && !*last_content)
        json_object_set(last, "content", json_object_get(item, "content"));
    else
        json_array_append_new(messages, json_pack("{s:O?, s:O?}", "role", json_object_get(item, "role"), "content",
                                                  json_object_get(item, "content")));
}

static int add_item(generation *g, json_t *messages, size_t index, const json_t *item)
{
    const char *type = json_get_text(item, "type");
    if (!type || strcmp(type, "message") == 0)
        add_message(messages, item);
    else if (strcmp(type, "function_call") == 0)
        add_call(messages, item);
    else if (strcmp(type, "function_call_output") == 0)
        json_array_append_new(messages, json_pack("{s:s, s:s?, s:O?}", "role", "tool", "tool_call_id",
                                                  json_get_text(item, "call_id"), "content", json_object_get(item, "output")));
    else if (strcmp(type, "reasoning") == 0)
        add_thoughts(messages, item);
    else
        return generation_fail(g, 400, "unsupported", "input[%zu] is of type %.60s, which this server does not take", index,
                               type);
    return 0;
}

static int add_input(generation *g, const json_t *body)
{
    const json_t *input = json_object_get(body, "input");
    const char *instructions = json_get_text(body, "instructions");
    if (!json_is_string(input) && !json_is_array(input))
        return generation_fail(g, 400, "invalid_type", "\"input\" has to be a text or an array of items");
    json_t *messages = json_array();
    int code = 0;
    if (instructions)
        json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "system", "content", instructions));
    if (json_is_string(input))
        json_array_append_new(messages, json_pack("{s:s, s:O}", "role", "user", "content", input));
    for (size_t i = 0; i < json_array_size(input) && code == 0; i++)
        code = add_item(g, messages, i, json_array_get(input, i));
    if (code == 0)
        code = generation_add_messages(g, messages);
    json_decref(messages);
    return code;
}

/* Functions stand flat here; the chat formats want them as the chat interface has them. */
static int read_tools(generation *g, const json_t *body)
{
    const json_t *given = json_object_get(body, "tools");
    const char *choice;
    if (generation_check(g, body, "tools", 'a') < 0 || generation_check(g, body, "parallel_tool_calls", 'b') < 0 ||
        openai_read_choice(g, json_object_get(body, "tool_choice"), &choice) < 0)
        return -1;
    json_t *tools = json_array();
    int code = 0;
    for (size_t i = 0; i < json_array_size(given) && code == 0; i++) {
        json_t *tool = json_array_get(given, i);
        const char *type = json_get_text(tool, "type");
        if (!type || strcmp(type, "function") != 0) {
            code = generation_fail(g, 400, "unsupported", "tools[%zu] is not a function; this server has no other tools", i);
            break;
        }
        json_t *function = json_object();
        static const char *const kept[] = { "name", "description", "parameters", "strict" };
        for (size_t j = 0; j < 4; j++)
            if (json_object_get(tool, kept[j]) && !json_is_null(json_object_get(tool, kept[j])))
                json_object_set(function, kept[j], json_object_get(tool, kept[j]));
        json_array_append_new(tools, json_pack("{s:s, s:o}", "type", "function", "function", function));
    }
    if (code == 0)
        code = generation_set_tools(g, tools, choice, json_get_bool(body, "parallel_tool_calls", 1));
    json_decref(tools);
    return code;
}

static int read_request(generation *g, json_t *body)
{
    const json_t *before = json_object_get(body, "previous_response_id");
    make_id(g->id, sizeof g->id, "resp_");
    if (before && !json_is_null(before))
        return generation_fail(g, 400, "unsupported",
                               "this server stores no responses: send the whole conversation as \"input\"");
    if (generation_check(g, body, "instructions", 't') < 0 || generation_check(g, body, "text", 'o') < 0 ||
        generation_check(g, body, "reasoning", 'o') < 0 || generation_read_settings(g, body) < 0 || read_tools(g, body) < 0 ||
        openai_read_format(g, json_object_get(json_object_get(body, "text"), "format")) < 0 ||
        openai_read_effort(g, json_get_text(json_object_get(body, "reasoning"), "effort")) < 0)
        return -1;
    return add_input(g, body);
}

/* ---- the reply ---- */

static json_t *text_part(const block *block)
{
    return json_pack("{s:s, s:o, s:[]}", "type", "output_text", "text", json_text(block->text.data, block->text.length),
                     "annotations");
}

static json_t *item_json(const blocks *b, const block *block, int empty)
{
    const char *status = block->ended ? "completed" : "in_progress";
    if (block->kind == PART_THOUGHT) {
        json_t *item = json_pack("{s:s, s:s, s:[], s:[]}", "type", "reasoning", "id", block->id, "summary", "content");
        if (!empty)
            json_array_append_new(json_object_get(item, "content"), json_pack("{s:s, s:o}", "type", "reasoning_text", "text",
                                                                              json_text(block->text.data, block->text.length)));
        return item;
    }
    if (block->kind == PART_TEXT) {
        json_t *item = json_pack("{s:s, s:s, s:s, s:s, s:[]}", "type", "message", "id", block->id, "status", status, "role",
                                 "assistant", "content");
        if (!empty)
            json_array_append_new(json_object_get(item, "content"), text_part(block));
        return item;
    }
    const call_part *call = &b->r->parts[0].calls[block->call];
    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:o}", "type", "function_call", "id", block->id, "status", status, "call_id",
                     call->id, "name", json_text(call->name, strlen(call->name)), "arguments",
                     json_text(block->text.data, empty ? 0 : block->text.length));
}

static json_t *usage_json(const blocks *b)
{
    task_numbers numbers;
    const task_outcome *outcome = task_outcome_of(b->r->task, 0);
    task_numbers_of(b->r->task, &numbers);
    return json_pack("{s:I, s:{s:I}, s:I, s:{s:I}, s:I}", "input_tokens", (json_int_t)numbers.prompt, "input_tokens_details",
                     "cached_tokens", (json_int_t)numbers.reused, "output_tokens", (json_int_t)outcome->tokens,
                     "output_tokens_details", "reasoning_tokens", (json_int_t)outcome->thought_tokens, "total_tokens",
                     (json_int_t)(numbers.prompt + outcome->tokens));
}

/* status: "in_progress", "completed", "incomplete" or "failed". */
static json_t *response_json(const blocks *b, const char *status, const char *error)
{
    const generation *g = &b->r->g;
    json_t *output = json_array();
    int over = strcmp(status, "in_progress") != 0;
    for (size_t i = 0; i < b->count && over; i++)
        json_array_append_new(output, item_json(b, &b->list[i], 0));
    json_t *response = json_pack("{s:s, s:s, s:I, s:s, s:s, s:o, s:n, s:n}", "id", g->id, "object", "response", "created_at",
                                 (json_int_t)g->created, "status", status, "model", g->server->model_id, "output", output,
                                 "error", "incomplete_details");
    json_object_update_missing(response, b->echo);
    json_object_set_new(response, "usage", over && !error ? usage_json(b) : json_null());
    if (error)
        json_object_set_new(response, "error",
                            json_pack("{s:s, s:o}", "code", "server_error", "message", json_text(error, strlen(error))));
    if (strcmp(status, "incomplete") == 0)
        json_object_set_new(response, "incomplete_details", json_pack("{s:s}", "reason", "max_output_tokens"));
    return response;
}

static const char *final_status(const blocks *b)
{
    return strcmp(openai_finish(b->r, 0), "length") == 0 ? "incomplete" : "completed";
}

/* What the request said, as the reply repeats it. */
static json_t *echo_of(const json_t *body)
{
    static const char *const kept[] = { "instructions", "metadata", "parallel_tool_calls", "temperature", "tool_choice",
                                        "tools",        "top_p",    "max_output_tokens",   "reasoning",   "text",
                                        "truncation",   "user" };
    json_t *echo = json_pack("{s:b, s:s, s:[], s:{}}", "parallel_tool_calls", 1, "tool_choice", "auto", "tools", "metadata");
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (json_object_get(body, kept[i]))
            json_object_set(echo, kept[i], json_object_get(body, kept[i]));
    return echo;
}

/* ---- the stream ---- */

/* Adds type and number, and writes it. */
static void write_event(blocks *b, const char *type, json_t *data)
{
    json_object_set_new(data, "type", json_string(type));
    json_object_set_new(data, "sequence_number", json_integer(b->sequence++));
    event_write(b->out, type, data);
}

static json_t *place_json(const blocks *b, size_t index)
{
    return json_pack("{s:i, s:s}", "output_index", (int)index, "item_id", b->list[index].id);
}

static void write_in_part(blocks *b, size_t index, const char *type, const char *key, json_t *value)
{
    json_t *data = place_json(b, index);
    if (b->list[index].kind != PART_CALL)
        json_object_set_new(data, "content_index", json_integer(0));
    if (strstr(type, "output_text"))
        json_object_set_new(data, "logprobs", json_array());
    json_object_set_new(data, key, value);
    write_event(b, type, data);
}

static void begin_block(blocks *b, size_t index)
{
    const block *block = &b->list[index];
    write_event(b, "response.output_item.added",
                json_pack("{s:i, s:o}", "output_index", (int)index, "item", item_json(b, block, 1)));
    if (block->kind == PART_TEXT)
        write_in_part(b, index, "response.content_part.added", "part", text_part(block));
}

static void more_of_block(blocks *b, size_t index, const char *text, size_t length)
{
    static const char *const types[] = { [PART_THOUGHT] = "response.reasoning_text.delta",
                                         [PART_TEXT] = "response.output_text.delta",
                                         [PART_CALL] = "response.function_call_arguments.delta" };
    write_in_part(b, index, types[b->list[index].kind], "delta", json_text(text, length));
}

static void end_block(blocks *b, size_t index)
{
    const block *block = &b->list[index];
    json_t *text = json_text(block->text.data, block->text.length);
    if (block->kind == PART_THOUGHT) {
        write_in_part(b, index, "response.reasoning_text.done", "text", text);
    } else if (block->kind == PART_TEXT) {
        write_in_part(b, index, "response.output_text.done", "text", text);
        write_in_part(b, index, "response.content_part.done", "part", text_part(block));
    } else {
        write_in_part(b, index, "response.function_call_arguments.done", "arguments", text);
    }
    write_event(b, "response.output_item.done",
                json_pack("{s:i, s:o}", "output_index", (int)index, "item", item_json(b, block, 0)));
}

static const block_writer writer = { begin_block, more_of_block, end_block };

static void write_last(blocks *b)
{
    const char *code, *message;
    int status = reply_failure(b->r, 0, &code, &message);
    const char *final = status ? "failed" : final_status(b);
    char type[32] = "response.";
    strcat(type, final);
    write_event(b, type, json_pack("{s:o}", "response", response_json(b, final, status ? message : NULL)));
}

static int next_chunk(void *state, text_buffer *out)
{
    blocks *b = state;
    task_event *event;
    b->out = out;
    if (!b->r->begun) {
        b->r->begun = 1;
        write_event(b, "response.created", json_pack("{s:o}", "response", response_json(b, "in_progress", NULL)));
        write_event(b, "response.in_progress", json_pack("{s:o}", "response", response_json(b, "in_progress", NULL)));
        return 1;
    }
    int got = reply_next(b->r, out, &event);
    if (got <= 0)
        return got == 0;
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

enum MHD_Result handle_responses(request *request)
{
    json_t *body;
    enum MHD_Result result;
    reply *r = reply_begin(request, read_request, &body, &result);
    if (!r)
        return result;
    json_t *echo = echo_of(body);
    json_decref(body);
    blocks *b = server_allocate(1, sizeof *b);
    *b = (blocks){ .r = r, .echo = echo };
    if (r->g.stream) {
        b->writer = &writer;
        return reply_stream(request, next_chunk, blocks_free, b);
    }
    reply_collect(r, request, blocks_on_part, b);
    blocks_finish(b);
    if (!reply_if_failed(r, request, &result))
        result = reply_json(request, 200, response_json(b, final_status(b), NULL));
    blocks_free(b);
    return result;
}
