/* The prompt of a generation: text, messages and gaps as tokens; see generation.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "generation.h"

int generation_add_text(generation *g, const char *text, size_t length, int32_t special)
{
    int64_t count = qm_tokenize(g->server->model, text, (int64_t)length, special, NULL, 0);
    if (count < 0)
        return generation_fail(g, 400, "invalid_value", "%s", qm_error_message());
    g->tokens = server_grow(g->tokens, (size_t)(g->count + count), sizeof *g->tokens);
    count = qm_tokenize(g->server->model, text, (int64_t)length, special, g->tokens + g->count, count);
    if (count < 0)
        return generation_fail(g, 500, NULL, "%s", qm_error_message());
    g->count += count;
    return 0;
}

static void add_token(generation *g, int32_t token)
{
    g->tokens = server_grow(g->tokens, (size_t)g->count + 1, sizeof *g->tokens);
    g->tokens[g->count++] = token;
}

int generation_add_tokens(generation *g, const json_t *ids)
{
    int64_t vocabulary = 0;
    qm_model_number(g->server->model, "vocabulary", &vocabulary);
    g->tokens = server_grow(g->tokens, (size_t)g->count + json_array_size(ids), sizeof *g->tokens);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= vocabulary)
            return generation_fail(g, 400, "invalid_value", "item %zu of the tokens is not an id of 0 to %lld", i,
                                   (long long)vocabulary - 1);
        g->tokens[g->count++] = (int32_t)json_integer_value(id);
    }
    return 0;
}

int generation_add_mark(generation *g, const char *mark)
{
    int32_t token = qm_token_find(g->server->model, mark, -1);
    if (token < 0)
        return generation_fail(g, 501, "unsupported", "this model cannot fill gaps: its vocabulary has no %s", mark);
    add_token(g, token);
    return 0;
}

/* ---- messages ---- */

static int is_system(const json_t *message)
{
    const char *role = json_get_text(message, "role");
    return role && (strcmp(role, "system") == 0 || strcmp(role, "developer") == 0);
}

/* A content's text: itself, or that of its parts. */
static void add_content_text(text_buffer *out, const json_t *content)
{
    if (json_is_string(content))
        buffer_add(out, json_string_value(content), json_string_length(content));
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *text = json_object_get(json_array_get(content, i), "text");
        if (json_is_string(text))
            buffer_add(out, json_string_value(text), json_string_length(text));
    }
}

/* Chat formats have one system message, at the start: those that open the conversation become one, whatever their role's name. */
static void join_system_messages(json_t *messages)
{
    text_buffer text = { 0 };
    size_t count = 0;
    while (count < json_array_size(messages) && is_system(json_array_get(messages, count))) {
        buffer_add_text(&text, count ? "\n\n" : "");
        add_content_text(&text, json_object_get(json_array_get(messages, count++), "content"));
    }
    for (size_t i = 0; i < count; i++)
        json_array_remove(messages, 0);
    if (count)
        json_array_insert_new(messages, 0,
                              json_pack("{s:s, s:o}", "role", "system", "content", json_text(text.data, text.length)));
    buffer_free(&text);
}

/* Parts that are not text: the model would see marks without their pictures. */
static int check_content(generation *g, size_t message, const json_t *content)
{
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i);
        if (!json_is_string(json_object_get(part, "text")))
            return generation_fail(g, 400, "unsupported",
                                   "messages[%zu].content[%zu] is not text; this server takes nothing else", message, i);
    }
    return 0;
}

static int check_messages(generation *g, json_t *messages)
{
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return generation_fail(g, 400, "invalid_value", "\"messages\" has to be an array with at least one message");
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);
        if (!json_get_text(message, "role"))
            return generation_fail(g, 400, "invalid_value", "messages[%zu] is not an object with a role", i);
        if (check_content(g, i, json_object_get(message, "content")) < 0)
            return -1;
        if (!json_object_get(message, "reasoning_content") && json_is_string(json_object_get(message, "reasoning")))
            json_object_set(message, "reasoning_content", json_object_get(message, "reasoning"));
    }
    return 0;
}

/* Messages as the library takes them. */
static int messages_json(generation *g, json_t *messages, text_buffer *json)
{
    if (check_messages(g, messages) < 0)
        return -1;
    join_system_messages(messages);
    buffer_add_json(json, messages);
    return 0;
}

static int refused(generation *g, int64_t code)
{
    return generation_fail(g, code == QM_ERROR_MEMORY ? 500 : 400, "invalid_value", "%s", qm_error_message());
}

int generation_add_messages(generation *g, json_t *messages)
{
    const qm_model *model = g->server->model;
    text_buffer json = { 0 };
    if (messages_json(g, messages, &json) < 0)
        return -1;
    int64_t length = (int64_t)json.length;
    int64_t count = qm_chat_tokens(model, json.data, length, g->tools, -1, g->thinking, 1, NULL, 0);
    if (count >= 0) {
        g->tokens = server_grow(g->tokens, (size_t)(g->count + count), sizeof *g->tokens);
        count = qm_chat_tokens(model, json.data, length, g->tools, -1, g->thinking, 1, g->tokens + g->count, count);
    }
    buffer_free(&json);
    if (count < 0)
        return refused(g, count);
    g->count += count;
    return 0;
}

int generation_render_messages(generation *g, json_t *messages, text_buffer *out)
{
    const qm_model *model = g->server->model;
    text_buffer json = { 0 };
    if (messages_json(g, messages, &json) < 0)
        return -1;
    int64_t size = (int64_t)json.length;
    int64_t length = qm_chat_format(model, json.data, size, g->tools, -1, g->thinking, 1, NULL, 0);
    char *text = length >= 0 ? server_allocate((size_t)length + 1, 1) : NULL;
    if (text)
        length = qm_chat_format(model, json.data, size, g->tools, -1, g->thinking, 1, text, length + 1);
    if (length >= 0)
        buffer_add(out, text, (size_t)length);
    free(text);
    buffer_free(&json);
    return length < 0 ? refused(g, length) : 0;
}

/* ---- gaps ---- */

int generation_add_gap(generation *g, const char *prefix, const char *suffix, const char *middle)
{
    generation before = { .server = g->server }, after = { .server = g->server }, inside = { .server = g->server };
    int code = generation_add_text(&before, prefix, strlen(prefix), QM_SPECIAL_NONE);
    if (code == 0)
        code = generation_add_text(&after, suffix, strlen(suffix), QM_SPECIAL_NONE);
    if (code == 0)
        code = generation_add_text(&inside, middle, strlen(middle), QM_SPECIAL_NONE);
    g->error = before.error.status ? before.error : after.error.status ? after.error : inside.error;
    if (code == 0) {
        /* A quarter of the context is left for the answer; of the rest at most a quarter goes to the suffix if both are long. */
        int64_t room = g->server->context * 3 / 4 - g->count - inside.count - 3;
        room = room > 0 ? room : 0;
        int64_t tail = after.count < room / 4 ? after.count : room / 4;
        int64_t head = before.count < room - tail ? before.count : room - tail;
        tail = after.count < room - head ? after.count : room - head;
        code = generation_add_mark(g, "<|fim_prefix|>");
        for (int64_t i = before.count - head; i < before.count; i++)
            add_token(g, before.tokens[i]);
        code = code < 0 ? code : generation_add_mark(g, "<|fim_suffix|>");
        for (int64_t i = 0; i < tail; i++)
            add_token(g, after.tokens[i]);
        code = code < 0 ? code : generation_add_mark(g, "<|fim_middle|>");
        for (int64_t i = 0; i < inside.count; i++)
            add_token(g, inside.tokens[i]);
    }
    generation_end(&before);
    generation_end(&after);
    generation_end(&inside);
    return code;
}
