/* POST /completion and /infill, as the editors' extensions llama.vim and llama.vscode ask, and /tokenize, /detokenize,
 * /apply-template. */
#include <stdlib.h>
#include <string.h>

#include "reply.h"
#include "routes.h"

/* ---- the request ---- */

static int read_settings(generation *g, const json_t *body)
{
    if (generation_check(g, body, "t_max_predict_ms", 'i') < 0 || generation_check(g, body, "n_probs", 'i') < 0 ||
        generation_check(g, body, "n_indent", 'i') < 0 || generation_check(g, body, "response_fields", 'a') < 0 ||
        generation_check(g, body, "grammar", 't') < 0 || generation_read_settings(g, body) < 0 ||
        generation_read_stop(g, json_object_get(body, "stop"), "stop") < 0)
        return -1;
    int64_t limit = json_get_int(body, "t_max_predict_ms", 0), probabilities = json_get_int(body, "n_probs", 0);
    if (probabilities < 0 || probabilities > 64)
        return generation_fail(g, 400, "invalid_value", "\"n_probs\" may be 0 to 64");
    g->decode_ms = limit > 0 ? limit : 0;
    g->indent = json_get_int(body, "n_indent", 0);
    g->logprobs = probabilities > 0 ? (int32_t)probabilities : -1;
    g->prompt_only = g->answer_tokens == 0;
    const json_t *schema = json_object_get(body, "json_schema");
    const char *grammar = json_get_text(body, "grammar");
    if (json_is_object(schema) && generation_set_schema(g, schema) < 0)
        return -1;
    return grammar && *grammar ? generation_set(g, "grammar", grammar) : 0;
}

/* Text, token ids, or both mixed. */
static int add_prompt(generation *g, const json_t *prompt)
{
    if (json_is_string(prompt))
        return generation_add_text(g, json_string_value(prompt), json_string_length(prompt), QM_SPECIAL_ALL);
    if (!json_is_array(prompt))
        return generation_fail(g, 400, "invalid_type", "\"prompt\" has to be a text or an array of texts and token ids");
    for (size_t i = 0; i < json_array_size(prompt); i++) {
        const json_t *item = json_array_get(prompt, i);
        json_t *one = json_pack("[O]", item);
        int code = json_is_string(item)
                       ? generation_add_text(g, json_string_value(item), json_string_length(item), QM_SPECIAL_ALL)
                       : generation_add_tokens(g, one);
        json_decref(one);
        if (code < 0)
            return code;
    }
    return 0;
}

static int read_completion(generation *g, json_t *body)
{
    return read_settings(g, body) < 0 ? -1 : add_prompt(g, json_object_get(body, "prompt"));
}

/* Other files, as the models were trained to see a repository: each after a separator, its name and a newline. What does not
 * change while one types comes first, so that it need not be computed again. */
static int add_extra(generation *g, const json_t *extra)
{
    text_buffer text = { 0 };
    int code = 0;
    if (!json_array_size(extra) || qm_token_find(g->server->model, "<|file_sep|>", -1) < 0)
        return 0;
    if (qm_token_find(g->server->model, "<|repo_name|>", -1) >= 0)
        code = generation_add_mark(g, "<|repo_name|>") < 0 ? -1 : generation_add_text(g, "project\n", 8, QM_SPECIAL_NONE);
    for (size_t i = 0; i < json_array_size(extra) && code == 0; i++) {
        const json_t *chunk = json_array_get(extra, i);
        const char *name = json_get_text(chunk, "filename"), *content = json_get_text(chunk, "text");
        text.length = 0;
        buffer_print(&text, "%s\n", name ? name : "file");
        buffer_add_text(&text, content ? content : "");
        code = generation_add_mark(g, "<|file_sep|>");
        if (code == 0)
            code = generation_add_text(g, text.data, text.length, QM_SPECIAL_NONE);
        if (g->count > g->server->context / 2) /* half is for the file itself */
            break;
    }
    if (g->count > g->server->context / 2)
        g->count = g->server->context / 2;
    if (code == 0)
        code = generation_add_mark(g, "<|file_sep|>") < 0 ? -1 : generation_add_text(g, "this\n", 5, QM_SPECIAL_NONE);
    buffer_free(&text);
    return code;
}

static int read_infill(generation *g, json_t *body)
{
    static const char *const texts[] = { "input_prefix", "input_suffix", "prompt" };
    const char *parts[3];
    for (size_t i = 0; i < 3; i++) {
        if (generation_check(g, body, texts[i], 't') < 0)
            return -1;
        parts[i] = json_get_text(body, texts[i]);
        parts[i] = parts[i] ? parts[i] : "";
    }
    if (generation_check(g, body, "input_extra", 'a') < 0 || read_settings(g, body) < 0)
        return -1;
    g->urgent = !g->prompt_only;
    if (add_extra(g, json_object_get(body, "input_extra")) < 0)
        return -1;
    /* Only other files: they are computed ahead. */
    if (g->prompt_only && g->count && !*parts[0] && !*parts[1] && !*parts[2])
        return 0;
    return generation_add_gap(g, parts[0], parts[1], parts[2]);
}

/* ---- the reply ---- */

/* How much of the text comes before its first line, but for the one that it goes on with, that is indented by less. Empty lines
 * before that are left out too. */
static size_t indented_length(const char *text, int64_t indent)
{
    size_t kept = strcspn(text, "\n");
    for (const char *line = text + kept; *line == '\n';) {
        size_t length = strcspn(++line, "\n"), blanks = strspn(line, " \t");
        if (blanks < length && (int64_t)blanks < indent)
            return kept;
        line += length;
        if (blanks < length || !*line)
            kept = (size_t)(line - text);
    }
    return strlen(text);
}

static json_t *result_json(reply *r)
{
    const task_outcome *outcome = task_outcome_of(r->task, 0);
    const char *finish = outcome->finish;
    const char *type = strcmp(finish, "end") == 0 ? "eos" : strcmp(finish, "stop") == 0 ? "word" : "limit";
    task_numbers numbers;
    task_numbers_of(r->task, &numbers);
    text_buffer text = { 0 };
    buffer_add(&text, buffer_text(&r->parts[0].thought), r->parts[0].thought.length);
    buffer_add(&text, buffer_text(&r->parts[0].text), r->parts[0].text.length);
    if (r->g.indent > 0)
        text.length = indented_length(buffer_text(&text), r->g.indent);
    json_t *body = json_pack("{s:o, s:b, s:s, s:s, s:I, s:I, s:I, s:b, s:o}", "content", json_text(text.data, text.length),
                             "stop", 1, "model", r->g.server->model_id, "stop_type", type, "tokens_predicted",
                             (json_int_t)outcome->tokens, "tokens_evaluated", (json_int_t)numbers.prompt, "tokens_cached",
                             (json_int_t)(numbers.prompt + outcome->tokens), "truncated", 0, "timings", reply_timings(r));
    if (r->tokens[0])
        json_object_set(body, "completion_probabilities", r->tokens[0]);
    buffer_free(&text);
    return body;
}

/* Only the fields asked for; one inside another is named "outer/inner", and keeps that name. */
static json_t *choose_fields(json_t *body, const json_t *fields)
{
    if (!json_array_size(fields))
        return body;
    json_t *chosen = json_object();
    for (size_t i = 0; i < json_array_size(fields); i++) {
        const char *path = json_string_value(json_array_get(fields, i));
        json_t *at = body;
        for (const char *key = path; key && at;) {
            const char *slash = strchr(key, '/');
            at = slash ? json_object_getn(at, key, (size_t)(slash - key)) : json_object_get(at, key);
            key = slash ? slash + 1 : NULL;
        }
        if (path && at)
            json_object_set(chosen, path, at);
    }
    json_decref(body);
    return chosen;
}

static int next_chunk(void *state, text_buffer *out)
{
    reply *r = state;
    task_event *event;
    const char *code, *message;
    int got = reply_next(r, out, &event);
    if (got < 0)
        return 0;
    if (got == 0)
        return 1;
    reply_add_tokens(r, event, NULL);
    if (event->kind != QM_PIECE_NONE) {
        event_write(out, NULL,
                    json_pack("{s:o, s:b, s:i}", "content", json_text(event->text, (size_t)event->length), "stop", 0, "index",
                              0));
    } else {
        int status = reply_failure(r, 0, &code, &message);
        event_write(out, NULL, status ? error_body(ERROR_OPENAI, status, code, message) : result_json(r));
    }
    task_event_free(event);
    return 1;
}

static enum MHD_Result generate(request *request, int (*read)(generation *g, json_t *body))
{
    json_t *body;
    enum MHD_Result result;
    reply *r = reply_begin(request, read, &body, &result);
    if (!r)
        return result;
    if (r->g.stream) {
        json_decref(body);
        return reply_stream(request, next_chunk, reply_end_stream, r);
    }
    reply_collect(r, request, reply_ignore_part, NULL);
    if (!reply_if_failed(r, request, &result))
        result = reply_json(request, 200, choose_fields(result_json(r), json_object_get(body, "response_fields")));
    reply_free(r);
    json_decref(body);
    return result;
}

enum MHD_Result handle_completion(request *request)
{
    return generate(request, read_completion);
}

enum MHD_Result handle_infill(request *request)
{
    return generate(request, read_infill);
}

/* ---- tokens and templates ---- */

static int read_tokenize(generation *g, const json_t *body)
{
    const json_t *content = json_object_get(body, "content");
    if (!json_is_string(content))
        return generation_fail(g, 400, "invalid_type", "\"content\" has to be a text");
    if (generation_check(g, body, "parse_special", 'b') < 0 || generation_check(g, body, "with_pieces", 'b') < 0)
        return -1;
    return generation_add_text(g, json_string_value(content), json_string_length(content),
                               json_get_bool(body, "parse_special", 1) ? QM_SPECIAL_ALL : QM_SPECIAL_NONE);
}

static json_t *piece_json(const generation *g, int32_t token)
{
    char text[512];
    int64_t length = qm_detokenize(g->server->model, &token, 1, 0, text, sizeof text);
    if (length < 0 || length >= (int64_t)sizeof text)
        length = 0;
    json_t *piece = json_stringn(text, (size_t)length);
    if (!piece) { /* no text of its own: its bytes */
        piece = json_array();
        for (int64_t i = 0; i < length; i++)
            json_array_append_new(piece, json_integer((unsigned char)text[i]));
    }
    return json_pack("{s:i, s:o}", "id", (int)token, "piece", piece);
}

enum MHD_Result handle_tokenize(request *request)
{
    generation g;
    json_t *body = NULL;
    enum MHD_Result result;
    if (generation_start(&g, request, &body) < 0 || read_tokenize(&g, body) < 0) {
        result = generation_reply_error(&g, request);
    } else {
        json_t *tokens = json_array();
        int pieces = json_get_bool(body, "with_pieces", 0);
        for (int64_t i = 0; i < g.count; i++)
            json_array_append_new(tokens, pieces ? piece_json(&g, g.tokens[i]) : json_integer(g.tokens[i]));
        result = reply_json(request, 200, json_pack("{s:o}", "tokens", tokens));
    }
    generation_end(&g);
    json_decref(body);
    return result;
}

static int read_detokenize(generation *g, const json_t *body)
{
    const json_t *tokens = json_object_get(body, "tokens");
    if (!json_is_array(tokens))
        return generation_fail(g, 400, "invalid_type", "\"tokens\" has to be an array of token ids");
    return generation_add_tokens(g, tokens);
}

enum MHD_Result handle_detokenize(request *request)
{
    generation g;
    json_t *body = NULL;
    enum MHD_Result result;
    int64_t length = -1;
    int code = generation_start(&g, request, &body);
    if (code == 0)
        code = read_detokenize(&g, body);
    if (code == 0 && (length = qm_detokenize(g.server->model, g.tokens, g.count, 0, NULL, 0)) < 0)
        code = generation_fail(&g, 400, "invalid_value", "%s", qm_error_message());
    if (code < 0) {
        result = generation_reply_error(&g, request);
    } else {
        char *text = server_allocate((size_t)length + 1, 1);
        qm_detokenize(g.server->model, g.tokens, g.count, 0, text, length + 1);
        result = reply_json(request, 200, json_pack("{s:o}", "content", json_text(text, (size_t)length)));
        free(text);
    }
    generation_end(&g);
    json_decref(body);
    return result;
}

enum MHD_Result handle_apply_template(request *request)
{
    generation g;
    json_t *body = NULL;
    enum MHD_Result result;
    text_buffer rendered = { 0 };
    int code = generation_start(&g, request, &body);
    if (code == 0 && generation_check(&g, body, "tools", 'a') == 0 && generation_check(&g, body, "enable_thinking", 'b') == 0) {
        g.thinking = json_get_bool(body, "enable_thinking", -1);
        g.thinking = json_get_bool(json_object_get(body, "chat_template_kwargs"), "enable_thinking", g.thinking);
        code = generation_set_tools(&g, json_object_get(body, "tools"), "auto", 1);
        if (code == 0)
            code = generation_render_messages(&g, json_object_get(body, "messages"), &rendered);
    } else {
        code = -1;
    }
    result = code < 0 ? generation_reply_error(&g, request)
                      : reply_json(request, 200, json_pack("{s:o}", "prompt", json_text(rendered.data, rendered.length)));
    buffer_free(&rendered);
    generation_end(&g);
    json_decref(body);
    return result;
}
