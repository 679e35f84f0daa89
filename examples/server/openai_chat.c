/* POST /v1/chat/completions. */
#include "openai.h"

#include <stdlib.h>
#include <string.h>

#include "routes.h"

/* ---- the request ---- */

int openai_read_format(generation *g, const json_t *format)
{
    const char *type = json_get_text(format, "type");
    if (!format || json_is_null(format) || (type && strcmp(type, "text") == 0))
        return 0;
    if (type && strcmp(type, "json_object") == 0) {
        const json_t *schema = json_object_get(format, "schema");
        return generation_set_schema(g, schema);
    }
    if (type && strcmp(type, "json_schema") == 0) {
        const json_t *described = json_object_get(format, "json_schema");
        const json_t *schema = json_object_get(described ? described : format, "schema");
        if (json_is_object(schema))
            return generation_set_schema(g, schema);
        return generation_fail(g, 400, "invalid_value", "the format of the answer has no \"schema\"");
    }
    return generation_fail(g, 400, "invalid_value", "the format of the answer has to be text, json_object or json_schema");
}

int openai_read_choice(generation *g, const json_t *choice, const char **out)
{
    *out = "auto";
    if (!choice || json_is_null(choice))
        return 0;
    const char *name =
        json_is_string(choice) ? json_string_value(choice) : json_get_text(json_object_get(choice, "function"), "name");
    if (!name)
        name = json_get_text(choice, "name");
    if (!name)
        return generation_fail(g, 400, "invalid_value", "\"tool_choice\" has to be auto, none, required or a function");
    if (json_is_string(choice) && strcmp(name, "auto") != 0 && strcmp(name, "none") != 0 && strcmp(name, "required") != 0)
        return generation_fail(g, 400, "invalid_value", "\"tool_choice\" has to be auto, none, required or a function");
    *out = name;
    return 0;
}

int openai_read_effort(generation *g, const char *effort)
{
    if (effort)
        g->thinking = strcmp(effort, "none") != 0 && strcmp(effort, "minimal") != 0;
    return 0;
}

static int read_thinking(generation *g, const json_t *body)
{
    const json_t *arguments = json_object_get(body, "chat_template_kwargs");
    if (generation_check(g, body, "chat_template_kwargs", 'o') < 0 || generation_check(g, body, "enable_thinking", 'b') < 0 ||
        generation_check(g, body, "reasoning_effort", 't') < 0)
        return -1;
    openai_read_effort(g, json_get_text(body, "reasoning_effort"));
    g->thinking = json_get_bool(body, "enable_thinking", g->thinking);
    g->thinking = json_get_bool(arguments, "enable_thinking", g->thinking);
    return 0;
}

static int read_logprobs(generation *g, const json_t *body)
{
    if (generation_check(g, body, "logprobs", 'b') < 0 || generation_check(g, body, "top_logprobs", 'i') < 0)
        return -1;
    int64_t top = json_get_int(body, "top_logprobs", 0);
    if (top < 0 || top > 20)
        return generation_fail(g, 400, "invalid_value", "\"top_logprobs\" may be 0 to 20");
    if (json_get_bool(body, "logprobs", 0))
        g->logprobs = (int32_t)top;
    return 0;
}

static int read_tools(generation *g, json_t *body)
{
    const char *choice;
    if (generation_check(g, body, "tools", 'a') < 0 || generation_check(g, body, "parallel_tool_calls", 'b') < 0 ||
        openai_read_choice(g, json_object_get(body, "tool_choice"), &choice) < 0)
        return -1;
    return generation_set_tools(g, json_object_get(body, "tools"), choice, json_get_bool(body, "parallel_tool_calls", 1));
}

static int read_request(generation *g, json_t *body)
{
    make_id(g->id, sizeof g->id, "chatcmpl-");
    if (generation_read_settings(g, body) < 0 || generation_read_answers(g, body) < 0 || read_thinking(g, body) < 0 ||
        read_logprobs(g, body) < 0 || generation_read_stop(g, json_object_get(body, "stop"), "stop") < 0 ||
        read_tools(g, body) < 0 || generation_check(g, body, "stream_options", 'o') < 0 ||
        openai_read_format(g, json_object_get(body, "response_format")) < 0)
        return -1;
    return generation_add_messages(g, json_object_get(body, "messages"));
}

/* ---- the whole reply ---- */

const char *openai_finish(const reply *r, int32_t answer)
{
    const char *finish = task_outcome_of(r->task, answer)->finish;
    int by_itself = strcmp(finish, "end") == 0 || strcmp(finish, "stop") == 0;
    return !by_itself ? "length" : r->parts[answer].call_count ? "tool_calls" : "stop";
}

json_t *openai_usage(reply *r)
{
    task_numbers numbers;
    int64_t thoughts = 0, tokens = reply_answer_tokens(r);
    task_numbers_of(r->task, &numbers);
    for (int32_t i = 0; i < r->g.answers; i++)
        thoughts += task_outcome_of(r->task, i)->thought_tokens;
    return json_pack("{s:I, s:I, s:I, s:{s:I}, s:{s:I}}", "prompt_tokens", (json_int_t)numbers.prompt, "completion_tokens",
                     (json_int_t)tokens, "total_tokens", (json_int_t)(numbers.prompt + tokens), "prompt_tokens_details",
                     "cached_tokens", (json_int_t)numbers.reused, "completion_tokens_details", "reasoning_tokens",
                     (json_int_t)thoughts);
}

int openai_wants_usage(const json_t *body)
{
    return json_get_bool(json_object_get(body, "stream_options"), "include_usage", 0);
}

static json_t *call_json(const call_part *call)
{
    return json_pack("{s:s, s:s, s:{s:o, s:o}}", "id", call->id, "type", "function", "function", "name",
                     json_text(call->name, strlen(call->name)), "arguments",
                     json_text(call->arguments.data, call->arguments.length));
}

static json_t *choice_json(const reply *r, int32_t answer)
{
    const reply_parts *parts = &r->parts[answer];
    json_t *calls = json_array();
    for (size_t i = 0; i < parts->call_count; i++)
        json_array_append_new(calls, call_json(&parts->calls[i]));
    json_t *content = parts->call_count && !parts->text.length ? json_null() : json_text(parts->text.data, parts->text.length);
    json_t *message = json_pack("{s:s, s:o, s:n}", "role", "assistant", "content", content, "refusal");
    if (parts->thought.length)
        json_object_set_new(message, "reasoning_content", json_text(parts->thought.data, parts->thought.length));
    if (parts->call_count)
        json_object_set(message, "tool_calls", calls);
    json_decref(calls);
    json_t *choice =
        json_pack("{s:i, s:o, s:s}", "index", (int)answer, "message", message, "finish_reason", openai_finish(r, answer));
    json_object_set_new(choice, "logprobs",
                        r->tokens[answer] ? json_pack("{s:O, s:n}", "content", r->tokens[answer], "refusal") : json_null());
    return choice;
}

static enum MHD_Result reply_whole(reply *r, request *request)
{
    enum MHD_Result result;
    reply_collect(r, request, reply_ignore_part, NULL);
    if (reply_if_failed(r, request, &result))
        return result;
    json_t *choices = json_array();
    for (int32_t i = 0; i < r->g.answers; i++)
        json_array_append_new(choices, choice_json(r, i));
    return reply_json(request, 200,
                      json_pack("{s:s, s:s, s:I, s:s, s:s, s:o, s:o, s:o}", "id", r->g.id, "object", "chat.completion", "created",
                                (json_int_t)r->g.created, "model", r->g.server->model_id, "system_fingerprint", qm_version(),
                                "choices", choices, "usage", openai_usage(r), "timings", reply_timings(r)));
}

/* ---- the stream ---- */

typedef struct chat_stream {
    reply *r;
    int wants_usage;
    text_buffer *out; /* of the call under way */
    int32_t answer;
    json_t *logprobs; /* that go with the next chunk, or NULL */
} chat_stream;

static json_t *chunk_json(const reply *r, json_t *choices)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:o}", "id", r->g.id, "object", "chat.completion.chunk", "created",
                     (json_int_t)r->g.created, "model", r->g.server->model_id, "system_fingerprint", qm_version(), "choices",
                     choices);
}

static void write_delta(chat_stream *s, json_t *delta, const char *finish)
{
    json_t *choice = json_pack("{s:i, s:o, s:s?}", "index", (int)s->answer, "delta", delta, "finish_reason", finish);
    if (s->logprobs && json_array_size(s->logprobs)) {
        json_object_set_new(choice, "logprobs", json_pack("{s:O, s:n}", "content", s->logprobs, "refusal"));
        json_decref(s->logprobs);
        s->logprobs = json_array();
    }
    event_write(s->out, NULL, chunk_json(s->r, json_pack("[o]", choice)));
}

static void on_part(part_kind kind, size_t call, const char *text, size_t length, void *user)
{
    chat_stream *s = user;
    json_t *shown = json_text(text, length);
    const call_part *called = call < s->r->parts[s->answer].call_count ? &s->r->parts[s->answer].calls[call] : NULL;
    if (kind == PART_THOUGHT)
        write_delta(s, json_pack("{s:o}", "reasoning_content", shown), NULL);
    else if (kind == PART_TEXT)
        write_delta(s, json_pack("{s:o}", "content", shown), NULL);
    else if (kind == PART_CALL)
        write_delta(s,
                    json_pack("{s:[{s:i, s:s, s:s, s:{s:o, s:s}}]}", "tool_calls", "index", (int)call, "id", called->id, "type",
                              "function", "function", "name", shown, "arguments", ""),
                    NULL);
    else
        write_delta(s, json_pack("{s:[{s:i, s:{s:o}}]}", "tool_calls", "index", (int)call, "function", "arguments", shown), NULL);
}

/* The answer's last chunk, or its error. */
static void write_end(chat_stream *s)
{
    const char *code, *message;
    int status = reply_failure(s->r, s->answer, &code, &message);
    if (status)
        event_write(s->out, NULL, error_body(ERROR_OPENAI, status, code, message));
    else
        write_delta(s, json_object(), openai_finish(s->r, s->answer));
}

static int next_chunk(void *state, text_buffer *out)
{
    chat_stream *s = state;
    task_event *event;
    s->out = out;
    if (!s->r->begun) {
        s->r->begun = 1;
        for (s->answer = 0; s->answer < s->r->g.answers; s->answer++)
            write_delta(s, json_pack("{s:s, s:s}", "role", "assistant", "content", ""), NULL);
        return 1;
    }
    int got = reply_next(s->r, out, &event);
    if (got < 0) {
        if (s->wants_usage) {
            json_t *last = chunk_json(s->r, json_array());
            json_object_set_new(last, "usage", openai_usage(s->r));
            json_object_set_new(last, "timings", reply_timings(s->r));
            event_write(out, NULL, last);
        }
        buffer_add_text(out, "data: [DONE]\n\n");
        return 0;
    }
    if (got == 0)
        return 1;
    s->answer = event->answer;
    if (s->r->g.logprobs >= 0) {
        json_decref(s->logprobs);
        s->logprobs = json_array();
    }
    reply_add_tokens(s->r, event, s->logprobs);
    reply_parts *parts = &s->r->parts[event->answer];
    if (event->kind == QM_PIECE_NONE) {
        parts_finish(parts, on_part, s);
        write_end(s);
    } else {
        parts_add(parts, event->kind, event->text, (size_t)event->length, on_part, s);
        if (s->logprobs && json_array_size(s->logprobs)) /* that no part went with */
            write_delta(s, json_object(), NULL);
    }
    task_event_free(event);
    return 1;
}

static void end_stream(void *state)
{
    chat_stream *s = state;
    json_decref(s->logprobs);
    reply_free(s->r);
    free(s);
}

enum MHD_Result handle_chat_completions(request *request)
{
    json_t *body;
    enum MHD_Result result;
    reply *r = reply_begin(request, read_request, &body, &result);
    if (!r)
        return result;
    int wants_usage = openai_wants_usage(body);
    json_decref(body);
    if (r->g.stream) {
        chat_stream *s = server_allocate(1, sizeof *s);
        s->r = r;
        s->wants_usage = wants_usage;
        return reply_stream(request, next_chunk, end_stream, s);
    }
    result = reply_whole(r, request);
    reply_free(r);
    return result;
}
