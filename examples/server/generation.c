/* A request's settings, and its submission; see generation.h. The prompt is made in prompt.c. */
#include "generation.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int generation_fail(generation *g, int status, const char *code, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(g->error.message, sizeof g->error.message, format, list);
    va_end(list);
    g->error.status = status;
    g->error.code = code;
    return -1;
}

enum MHD_Result generation_reply_error(const generation *g, request *request)
{
    return reply_error(request, g->error.status, g->error.code, g->error.message);
}

int generation_start(generation *g, request *request, json_t **body)
{
    json_error_t error;
    *g = (generation){ .server = request->server,
                       .thinking = -1,
                       .answer_tokens = -1,
                       .seed = -1,
                       .answers = 1,
                       .logprobs = -1,
                       .created = (int64_t)time(NULL) };
    *body = json_loadb(buffer_text(&request->body), request->body.length, 0, &error);
    if (!*body)
        return generation_fail(g, 400, "invalid_json", "the body is not JSON: %s at line %d, column %d", error.text, error.line,
                               error.column);
    if (!json_is_object(*body))
        return generation_fail(g, 400, "invalid_json", "the body is not a JSON object");
    if (qm_options_copy(request->server->defaults, &g->options) < 0)
        return generation_fail(g, 500, NULL, "%s", qm_error_message());
    return 0;
}

void generation_end(generation *g)
{
    qm_options_free(&g->options);
    free(g->tokens);
    free(g->tools);
    g->tokens = NULL;
    g->tools = NULL;
}

/* ---- settings ---- */

int generation_check(generation *g, const json_t *body, const char *key, char type)
{
    const json_t *value = json_object_get(body, key);
    const char *wanted = "";
    int right = 1;
    if (!value || json_is_null(value))
        return 0;
    switch (type) {
    case 't': wanted = "a text", right = json_is_string(value); break;
    case 'i': wanted = "a whole number", right = json_is_integer(value); break;
    case 'n': wanted = "a number", right = json_is_number(value); break;
    case 'b': wanted = "true or false", right = json_is_boolean(value); break;
    case 'a': wanted = "an array", right = json_is_array(value); break;
    default: wanted = "an object", right = json_is_object(value); break;
    }
    return right ? 0 : generation_fail(g, 400, "invalid_type", "\"%s\" has to be %s", key, wanted);
}

int generation_set(generation *g, const char *option, const char *value)
{
    if (qm_options_set(g->options, option, value) < 0)
        return generation_fail(g, 400, "invalid_value", "%s", qm_error_message());
    return 0;
}

/* The interfaces' names of the library's options. */
static const struct {
    const char *key, *option;
    char type;
} names[] = {
    { "temperature", "temperature", 'n' },
    { "top_p", "top-p", 'n' },
    { "top_k", "top-k", 'i' },
    { "min_p", "min-p", 'n' },
    { "presence_penalty", "presence-penalty", 'n' },
    { "frequency_penalty", "frequency-penalty", 'n' },
    { "repetition_penalty", "repetition-penalty", 'n' },
    { "repeat_penalty", "repetition-penalty", 'n' },
    { "repeat_last_n", "penalty-window", 'i' },
    { "thinking_budget", "thinking-tokens", 'i' },
    { "ignore_eos", "ignore-end", 'b' },
};

static int read_number(generation *g, const json_t *body, const char *key, const char *option, char type)
{
    const json_t *value = json_object_get(body, key);
    char text[40];
    if (generation_check(g, body, key, type) < 0)
        return -1;
    if (!value || json_is_null(value))
        return 0;
    if (type == 'b' || json_is_integer(value))
        snprintf(text, sizeof text, "%lld", type == 'b' ? (long long)json_is_true(value) : (long long)json_integer_value(value));
    else
        snprintf(text, sizeof text, "%.9g", json_real_value(value));
    if (strcmp(key, "repeat_last_n") == 0 && json_integer_value(value) < 0) /* there: the whole context */
        snprintf(text, sizeof text, "%lld", (long long)g->server->context);
    return generation_set(g, option, text) < 0 ? generation_fail(g, 400, "invalid_value", "\"%s\": %s", key, qm_error_message())
                                               : 0;
}

int generation_read_stop(generation *g, const json_t *stop, const char *key)
{
    text_buffer text = { 0 };
    if (!stop || json_is_null(stop) || (json_is_string(stop) && json_string_length(stop) == 0))
        return 0;
    int right = json_is_string(stop) || json_is_array(stop);
    for (size_t i = 0; right && i < json_array_size(stop); i++)
        right = json_is_string(json_array_get(stop, i)) && json_string_length(json_array_get(stop, i)) > 0;
    if (!right)
        return generation_fail(g, 400, "invalid_type", "\"%s\" has to be a text or an array of texts, none empty", key);
    if (json_is_array(stop) && json_array_size(stop) == 0)
        return 0;
    json_t *list = json_is_array(stop) ? json_incref((json_t *)(uintptr_t)stop) : json_pack("[O]", stop);
    buffer_add_json(&text, list);
    json_decref(list);
    int code = generation_set(g, "stop", buffer_text(&text));
    buffer_free(&text);
    return code;
}

/* {"id": bias}, or llama's [[id, bias], ...] where false bans. */
static int read_biases(generation *g, const json_t *biases)
{
    text_buffer text = { 0 };
    const char *key;
    const json_t *value;
    int right = json_is_object(biases) || json_is_array(biases);
    json_object_foreach((json_t *)(uintptr_t)biases, key, value)
    {
        char *end;
        strtol(key, &end, 10);
        right = right && *key && !*end && json_is_number(value);
        buffer_print(&text, "%s%s:%.9g", text.length ? "," : "", key, json_number_value(value));
    }
    for (size_t i = 0; i < json_array_size(biases); i++) {
        const json_t *pair = json_array_get(biases, i), *id = json_array_get(pair, 0), *bias = json_array_get(pair, 1);
        right = right && json_is_integer(id) && (json_is_number(bias) || json_is_false(bias));
        buffer_print(&text, json_is_false(bias) ? "%s%lld:-inf" : "%s%lld:%.9g", text.length ? "," : "",
                     (long long)json_integer_value(id), json_number_value(bias));
    }
    int code = right ? generation_set(g, "logit-bias", buffer_text(&text))
                     : generation_fail(g, 400, "invalid_type", "\"logit_bias\" has to be an object of numbers by token id");
    buffer_free(&text);
    return code;
}

int generation_read_settings(generation *g, const json_t *body)
{
    static const char *const budgets[] = { "max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (read_number(g, body, names[i].key, names[i].option, names[i].type) < 0)
            return -1;
    for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++) {
        if (generation_check(g, body, budgets[i], 'i') < 0)
            return -1;
        g->answer_tokens = json_get_int(body, budgets[i], g->answer_tokens);
    }
    if (g->answer_tokens == 0 && !json_object_get(body, "n_predict"))
        return generation_fail(g, 400, "invalid_value", "the most tokens of an answer have to be at least 1");
    if (generation_check(g, body, "seed", 'i') < 0 || generation_check(g, body, "stream", 'b') < 0)
        return -1;
    g->stream = json_get_bool(body, "stream", 0);
    g->seed = json_get_int(body, "seed", -1);
    if (g->seed >= 0) {
        g->seed &= (INT64_C(1) << 53) - 1; /* the range of option seed */
        g->seed -= g->seed > (INT64_C(1) << 53) - ANSWERS_MOST ? ANSWERS_MOST : 0;
    }
    const json_t *biases = json_object_get(body, "logit_bias");
    return biases && !json_is_null(biases) ? read_biases(g, biases) : 0;
}

int generation_read_answers(generation *g, const json_t *body)
{
    if (generation_check(g, body, "n", 'i') < 0)
        return -1;
    int64_t n = json_get_int(body, "n", 1);
    if (n < 1 || n > ANSWERS_MOST)
        return generation_fail(g, 400, "invalid_value", "\"n\" is %lld; it may be 1 to %d", (long long)n, ANSWERS_MOST);
    g->answers = (int32_t)n;
    return 0;
}

int generation_set_schema(generation *g, const json_t *schema)
{
    text_buffer text = { 0 };
    if (json_is_object(schema))
        buffer_add_json(&text, schema);
    else
        buffer_add_text(&text, "{}");
    int code = generation_set(g, "json-schema", buffer_text(&text));
    buffer_free(&text);
    return code;
}

static int is_strict(const json_t *tool)
{
    return json_get_bool(tool, "strict", 0) || json_get_bool(json_object_get(tool, "function"), "strict", 0);
}

int generation_set_tools(generation *g, json_t *tools, const char *choice, int parallel)
{
    text_buffer text = { 0 };
    int constrained = strcmp(choice, "auto") != 0 || !parallel;
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        if (!json_get_text(json_object_get(tool, "function"), "name"))
            return generation_fail(g, 400, "invalid_value", "tools[%zu] is not a function with a name", i);
        constrained = constrained || is_strict(tool);
    }
    if (json_array_size(tools) == 0)
        return strcmp(choice, "auto") == 0 || strcmp(choice, "none") == 0
                   ? 0
                   : generation_fail(g, 400, "invalid_value", "\"tool_choice\" asks for a call, but there are no tools");
    if (strcmp(choice, "none") == 0) /* what is not offered is not called */
        return 0;
    buffer_add_json(&text, tools);
    g->tools = text.data;
    if (!constrained)
        return 0;
    int code = generation_set(g, "tools", g->tools);
    if (code == 0)
        code = generation_set(g, "tool-choice", choice);
    if (code == 0 && !parallel)
        code = generation_set(g, "parallel-tool-calls", "0");
    return code;
}

/* ---- submitting ---- */

int generation_submit(generation *g, request *request, task **out, submit_result *refused)
{
    server *server = g->server;
    char budget[32] = "";
    *out = NULL;
    *refused = SUBMIT_DONE;
    if (g->count == 0)
        return generation_fail(g, 400, "invalid_value", "the prompt is empty");
    int64_t room = server->context - g->count, wanted = g->answer_tokens;
    if (room < 1)
        return generation_fail(
            g, 400, "context_length_exceeded",
            "the prompt has %lld tokens, but the context holds %lld, the answer included; shorten it, or start "
            "the server with a larger --context",
            (long long)g->count, (long long)server->context);
    if (wanted < 0) {
        qm_options_get(g->options, "answer-tokens", budget, sizeof budget);
        wanted = strtoll(budget, NULL, 10);
    }
    snprintf(budget, sizeof budget, "%lld", (long long)(wanted > 0 && wanted < room ? wanted : room));
    if (generation_set(g, "answer-tokens", budget) < 0)
        return -1;
    if (g->logprobs >= 0) {
        snprintf(budget, sizeof budget, "%d", g->logprobs);
        if (generation_set(g, "logprobs", budget) < 0)
            return -1;
    }
    if (g->urgent && generation_set(g, "priority", "1") < 0)
        return -1;
    const task_request wish = { .tokens = g->tokens,
                                .count = g->count,
                                .options = g->options,
                                .answers = g->prompt_only ? 0 : g->answers,
                                .seed = g->seed,
                                .urgent = g->urgent,
                                .decode_ms = g->decode_ms,
                                .logprobs = g->logprobs,
                                .connection = request_socket(request) };
    g->options = NULL;
    *refused = scheduler_submit(server->scheduler, &wish, out);
    g->error.status = 0;
    return *refused == SUBMIT_DONE ? 0 : -1;
}

enum MHD_Result generation_reply_refused(const generation *g, request *request, submit_result refused)
{
    return g->error.status ? generation_reply_error(g, request) : reply_refused(request, refused);
}
