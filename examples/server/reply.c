/* What all interfaces have in common in replying; see reply.h. */
#include "reply.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ALIVE_MS 10000 /* a stream shows a sign of life after so long */

reply *reply_start(generation *g, request *request, enum MHD_Result *result)
{
    submit_result refused;
    task *task;
    if (generation_submit(g, request, &task, &refused) < 0) {
        *result = generation_reply_refused(g, request, refused);
        generation_end(g);
        return NULL;
    }
    reply *r = server_allocate(1, sizeof *r);
    r->g = *g;
    r->task = task;
    for (int32_t i = 0; i < g->answers; i++) {
        parts_start(&r->parts[i], g->server->model, r->g.tools);
        r->tokens[i] = g->logprobs >= 0 ? json_array() : NULL;
    }
    return r;
}

reply *reply_begin(request *request, int (*read)(generation *g, json_t *body), json_t **body, enum MHD_Result *result)
{
    generation g;
    reply *r = NULL;
    *body = NULL;
    if (generation_start(&g, request, body) < 0 || read(&g, *body) < 0) {
        *result = generation_reply_error(&g, request);
        generation_end(&g);
    } else {
        r = reply_start(&g, request, result);
    }
    if (!r)
        json_decref(*body);
    return r;
}

void reply_free(reply *r)
{
    task_release(&r->task);
    for (int32_t i = 0; i < r->g.answers; i++) {
        parts_free(&r->parts[i]);
        json_decref(r->tokens[i]);
    }
    generation_end(&r->g);
    free(r);
}

void reply_end_stream(void *state)
{
    reply_free(state);
}

void reply_ignore_part(part_kind kind, size_t call, const char *text, size_t length, void *user)
{
    (void)kind, (void)call, (void)text, (void)length, (void)user;
}

void reply_collect(reply *r, request *request, part_callback callback, void *user)
{
    task_event *event;
    request_waits(request, 1);
    for (int got; (got = task_next(r->task, ALIVE_MS, &event)) >= 0;) {
        if (got == 0)
            continue;
        reply_add_tokens(r, event, NULL);
        if (event->kind == QM_PIECE_NONE)
            parts_finish(&r->parts[event->answer], callback, user);
        else
            parts_add(&r->parts[event->answer], event->kind, event->text, (size_t)event->length, callback, user);
        task_event_free(event);
    }
    request_waits(request, 0);
}

int reply_failure(const reply *r, int32_t answer, const char **code, const char **message)
{
    const task_outcome *outcome = task_outcome_of(r->task, answer);
    *code = NULL;
    *message = outcome->message;
    if (r->parts[answer].broken) {
        *message = "a tool call could not be told apart while it came; ask again without \"stream\"";
        return 500;
    }
    if (outcome->code >= 0)
        return 0;
    switch (outcome->code) {
    case QM_ERROR_BUSY: return 503;
    case QM_ERROR_CANCELLED: return strcmp(outcome->finish, "time") == 0 ? 504 : 503;
    case QM_ERROR_MEMORY:
    case QM_ERROR_FIT: return 503;
    case QM_ERROR_CONTEXT: *code = "context_length_exceeded"; return 400;
    case QM_ERROR_OPTION: return 400;
    default: return 500;
    }
}

int reply_if_failed(reply *r, request *request, enum MHD_Result *result)
{
    const char *code, *message;
    for (int32_t i = 0; i < (r->g.prompt_only ? 1 : r->g.answers); i++) {
        int status = reply_failure(r, i, &code, &message);
        if (!status)
            continue;
        *result = reply_error(request, status, code, message);
        return 1;
    }
    return 0;
}

/* ---- streams ---- */

int reply_next(reply *r, text_buffer *out, task_event **event)
{
    int got = task_next(r->task, ALIVE_MS, event);
    if (got == 0)
        buffer_add_text(out, ": still here\n\n");
    if (got == 1 && (*event)->kind == QM_PIECE_NONE)
        r->ended++;
    return got;
}

void event_write(text_buffer *out, const char *name, json_t *data)
{
    if (name)
        buffer_print(out, "event: %s\n", name);
    buffer_add_text(out, "data: ");
    buffer_add_json(out, data);
    buffer_add_text(out, "\n\n");
    json_decref(data);
}

/* ---- log probabilities ---- */

/* JSON has no infinity; OpenAI's interface says this instead. */
static json_t *json_logprob(float logprob)
{
    return json_real(isfinite(logprob) ? (double)logprob : -9999.0);
}

static json_t *token_entry(const qm_model *model, int32_t id, float logprob)
{
    char text[512];
    int64_t length = qm_detokenize(model, &id, 1, 0, text, sizeof text);
    if (length < 0 || length >= (int64_t)sizeof text)
        length = 0;
    json_t *bytes = json_array();
    for (int64_t i = 0; i < length; i++)
        json_array_append_new(bytes, json_integer((unsigned char)text[i]));
    return json_pack("{s:i, s:o, s:o, s:o}", "id", (int)id, "token", json_text(text, (size_t)length), "logprob",
                     json_logprob(logprob), "bytes", bytes);
}

json_t *logprob_entry(const qm_model *model, const task_token *token)
{
    if (qm_detokenize(model, &token->id, 1, 1, NULL, 0) <= 0) /* the end of the turn is no text */
        return NULL;
    json_t *entry = token_entry(model, token->id, token->logprob), *top = json_array();
    for (int32_t i = 0; i < token->top_count; i++)
        if (token->top_ids[i] >= 0)
            json_array_append_new(top, token_entry(model, token->top_ids[i], token->top_logprobs[i]));
    json_object_set_new(entry, "top_logprobs", top);
    return entry;
}

void reply_add_tokens(reply *r, const task_event *event, json_t *also)
{
    for (int64_t i = 0; i < event->token_count; i++) {
        json_t *entry = logprob_entry(r->g.server->model, &event->tokens[i]);
        if (!entry)
            continue;
        json_array_append(r->tokens[event->answer], entry);
        if (also)
            json_array_append(also, entry);
        json_decref(entry);
    }
}

/* ---- numbers ---- */

int64_t reply_answer_tokens(const reply *r)
{
    int64_t sum = 0;
    for (int32_t i = 0; i < r->g.answers && !r->g.prompt_only; i++)
        sum += task_outcome_of(r->task, i)->tokens;
    return sum;
}

static void add_speed(json_t *timings, const char *what, int64_t tokens, double seconds)
{
    static const char *const suffixes[] = { "_n", "_ms", "_per_token_ms", "_per_second" };
    const double values[] = { 0, seconds * 1e3, tokens ? seconds * 1e3 / (double)tokens : 0,
                              seconds > 0 ? (double)tokens / seconds : 0 };
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        text_buffer key = { 0 };
        buffer_print(&key, "%s%s", what, suffixes[i]);
        json_object_set_new(timings, key.data, i == 0 ? json_integer(tokens) : json_real(values[i]));
        buffer_free(&key);
    }
}

json_t *reply_timings(reply *r)
{
    task_numbers numbers;
    double seconds = 0;
    json_t *timings = json_object();
    task_numbers_of(r->task, &numbers);
    for (int32_t i = 0; i < r->g.answers && !r->g.prompt_only; i++)
        seconds = fmax(seconds, task_outcome_of(r->task, i)->seconds);
    json_object_set_new(timings, "cache_n", json_integer(numbers.reused));
    add_speed(timings, "prompt", numbers.prompt - numbers.reused, numbers.prompt_seconds);
    add_speed(timings, "predicted", reply_answer_tokens(r), seconds);
    return timings;
}
