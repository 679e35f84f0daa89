/* POST /v1/completions: text goes on, for one prompt or several, or fills the gap before "suffix". */
#include <stdlib.h>
#include <string.h>

#include "openai.h"
#include "routes.h"

#define PROMPTS_MOST 16

typedef struct completions { /* one reply for each prompt */
    reply *replies[PROMPTS_MOST];
    char *prompts[PROMPTS_MOST]; /* text to repeat before each answer; NULL: none */
    int count, answers;          /* of each prompt */
    int at;                      /* the prompt that is streamed */
    int wants_usage, echoed;
    char id[40];
} completions;

static void free_completions(void *state)
{
    completions *c = state;
    for (int i = 0; i < c->count; i++) {
        if (c->replies[i])
            reply_free(c->replies[i]);
        free(c->prompts[i]);
    }
    free(c);
}

/* ---- the request ---- */

static int read_prompt(generation *g, const json_t *prompt, const json_t *suffix)
{
    if (json_is_array(prompt))
        return generation_add_tokens(g, prompt);
    if (!json_is_string(prompt))
        return generation_fail(g, 400, "invalid_type",
                               "\"prompt\" has to be a text, an array of token ids, or an array of these");
    if (json_is_string(suffix) && json_string_length(suffix))
        return generation_add_gap(g, json_string_value(prompt), json_string_value(suffix), "");
    return generation_add_text(g, json_string_value(prompt), json_string_length(prompt), QM_SPECIAL_ALL);
}

static int read_settings(generation *g, const json_t *body)
{
    if (generation_check(g, body, "echo", 'b') < 0 || generation_check(g, body, "suffix", 't') < 0 ||
        generation_check(g, body, "logprobs", 'i') < 0 || generation_read_settings(g, body) < 0 ||
        generation_read_answers(g, body) < 0 || generation_read_stop(g, json_object_get(body, "stop"), "stop") < 0)
        return -1;
    int64_t top = json_get_int(body, "logprobs", -1);
    if (top > 20 || top < -1)
        return generation_fail(g, 400, "invalid_value", "\"logprobs\" may be 0 to 20");
    g->logprobs = (int32_t)top;
    const json_t *schema = json_object_get(body, "json_schema");
    if (json_is_object(schema))
        return generation_set_schema(g, schema);
    return openai_read_format(g, json_object_get(body, "response_format"));
}

/* The prompts of the request, each an array item of its own. */
static json_t *list_prompts(const json_t *prompt)
{
    const json_t *first = json_array_get(prompt, 0);
    if (json_is_array(prompt) && (json_is_string(first) || json_is_array(first)))
        return json_incref((json_t *)(uintptr_t)prompt);
    return json_pack("[O]", prompt);
}

static int start_prompt(completions *c, request *request, const json_t *prompt, enum MHD_Result *result)
{
    generation g;
    json_t *body = NULL;
    int code = generation_start(&g, request, &body);
    if (code == 0)
        code = read_settings(&g, body);
    if (code == 0)
        code = read_prompt(&g, prompt, json_object_get(body, "suffix"));
    if (code < 0) {
        *result = generation_reply_error(&g, request);
        generation_end(&g);
    } else {
        if (json_get_bool(body, "echo", 0) && json_is_string(prompt))
            c->prompts[c->count] = server_copy(json_string_value(prompt), json_string_length(prompt));
        memcpy(g.id, c->id, sizeof g.id);
        c->answers = g.answers;
        c->wants_usage = openai_wants_usage(body);
        c->replies[c->count] = reply_start(&g, request, result);
        code = c->replies[c->count] ? 0 : -1;
        c->count++;
    }
    json_decref(body);
    return code;
}

/* ---- the reply ---- */

static json_t *logprobs_json(const json_t *tokens)
{
    json_t *texts = json_array(), *values = json_array(), *tops = json_array(), *offsets = json_array();
    size_t i, j, offset = 0;
    json_t *entry, *other;
    json_array_foreach(tokens, i, entry)
    {
        json_t *top = json_object();
        json_array_append(texts, json_object_get(entry, "token"));
        json_array_append(values, json_object_get(entry, "logprob"));
        json_array_append_new(offsets, json_integer((json_int_t)offset));
        offset += json_string_length(json_object_get(entry, "token"));
        json_array_foreach(json_object_get(entry, "top_logprobs"), j, other)
            json_object_set(top, json_get_text(other, "token"), json_object_get(other, "logprob"));
        json_array_append_new(tops, top);
    }
    return json_pack("{s:o, s:o, s:o, s:o}", "tokens", texts, "token_logprobs", values, "top_logprobs", tops, "text_offset",
                     offsets);
}

static json_t *choice_json(int index, json_t *text, const char *finish, const json_t *tokens)
{
    return json_pack("{s:i, s:o, s:s?, s:o}", "index", index, "text", text, "finish_reason", finish, "logprobs",
                     tokens ? logprobs_json(tokens) : json_null());
}

static json_t *usage_json(completions *c)
{
    json_t *sum = openai_usage(c->replies[0]);
    for (int i = 1; i < c->count; i++) {
        json_t *more = openai_usage(c->replies[i]), *value;
        const char *key;
        json_object_foreach(more, key, value) if (json_is_integer(value))
            json_object_set_new(sum, key, json_integer(json_integer_value(value) + json_get_int(sum, key, 0)));
        json_decref(more);
    }
    return sum;
}

static json_t *body_json(const completions *c, json_t *choices)
{
    const generation *g = &c->replies[0]->g;
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:o}", "id", c->id, "object", "text_completion", "created",
                     (json_int_t)g->created, "model", g->server->model_id, "system_fingerprint", qm_version(), "choices",
                     choices);
}

/* Thoughts and calls are text like any other here. */
static void add_all_text(text_buffer *text, const reply_parts *parts)
{
    buffer_add(text, buffer_text(&parts->thought), parts->thought.length);
    buffer_add(text, buffer_text(&parts->text), parts->text.length);
}

static enum MHD_Result reply_whole(completions *c, request *request)
{
    enum MHD_Result result;
    json_t *choices = json_array();
    for (int i = 0; i < c->count; i++) {
        reply *r = c->replies[i];
        reply_collect(r, request, reply_ignore_part, NULL);
        if (reply_if_failed(r, request, &result)) {
            json_decref(choices);
            return result;
        }
        for (int32_t j = 0; j < c->answers; j++) {
            text_buffer text = { 0 };
            buffer_add_text(&text, c->prompts[i] ? c->prompts[i] : "");
            add_all_text(&text, &r->parts[j]);
            json_array_append_new(choices, choice_json(i * c->answers + j, json_text(text.data, text.length), openai_finish(r, j),
                                                       r->tokens[j]));
            buffer_free(&text);
        }
    }
    json_t *body = body_json(c, choices);
    json_object_set_new(body, "usage", usage_json(c));
    json_object_set_new(body, "timings", reply_timings(c->replies[0]));
    return reply_json(request, 200, body);
}

static void write_text(completions *c, text_buffer *out, int answer, const char *text, size_t length, const char *finish,
                       const json_t *tokens)
{
    json_t *choice = choice_json(c->at * c->answers + answer, json_text(text, length), finish, tokens);
    event_write(out, NULL, body_json(c, json_pack("[o]", choice)));
}

static void write_event(completions *c, text_buffer *out, const task_event *event)
{
    reply *r = c->replies[c->at];
    const char *code, *message;
    json_t *tokens = r->g.logprobs >= 0 ? json_array() : NULL;
    reply_add_tokens(r, event, tokens);
    if (event->kind != QM_PIECE_NONE) {
        write_text(c, out, event->answer, event->text, (size_t)event->length, NULL, tokens);
    } else {
        int status = reply_failure(r, event->answer, &code, &message);
        if (status)
            event_write(out, NULL, error_body(ERROR_OPENAI, status, code, message));
        else
            write_text(c, out, event->answer, "", 0, openai_finish(r, event->answer), tokens);
    }
    json_decref(tokens);
}

static int next_chunk(void *state, text_buffer *out)
{
    completions *c = state;
    task_event *event;
    if (!c->echoed) {
        c->echoed = 1;
        for (int j = 0; j < c->answers && c->prompts[c->at]; j++)
            write_text(c, out, j, c->prompts[c->at], strlen(c->prompts[c->at]), NULL, NULL);
    }
    int got = reply_next(c->replies[c->at], out, &event);
    if (got > 0) {
        write_event(c, out, event);
        task_event_free(event);
    }
    if (got >= 0)
        return 1;
    if (++c->at < c->count) {
        c->echoed = 0;
        return 1;
    }
    if (c->wants_usage) {
        json_t *last = body_json(c, json_array());
        json_object_set_new(last, "usage", usage_json(c));
        event_write(out, NULL, last);
    }
    buffer_add_text(out, "data: [DONE]\n\n");
    return 0;
}

enum MHD_Result handle_completions(request *request)
{
    generation g;
    json_t *body = NULL, *prompts = NULL;
    enum MHD_Result result = MHD_NO;
    int code = generation_start(&g, request, &body);
    if (code == 0 && !json_object_get(body, "prompt"))
        code = generation_fail(&g, 400, "invalid_value", "there is no \"prompt\"");
    if (code == 0) {
        prompts = list_prompts(json_object_get(body, "prompt"));
        if (json_array_size(prompts) > PROMPTS_MOST)
            code = generation_fail(&g, 400, "invalid_value", "there are %zu prompts; %d are the most", json_array_size(prompts),
                                   PROMPTS_MOST);
    }
    if (code < 0)
        result = generation_reply_error(&g, request);
    generation_end(&g);
    completions *c = server_allocate(1, sizeof *c);
    make_id(c->id, sizeof c->id, "cmpl-");
    for (size_t i = 0; i < json_array_size(prompts) && code == 0; i++)
        code = start_prompt(c, request, json_array_get(prompts, i), &result);
    int streams = json_get_bool(body, "stream", 0);
    json_decref(prompts);
    json_decref(body);
    if (code == 0 && streams)
        return reply_stream(request, next_chunk, free_completions, c);
    if (code == 0)
        result = reply_whole(c, request);
    free_completions(c);
    return result;
}
