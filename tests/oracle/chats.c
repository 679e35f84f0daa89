/* chats VOCAB.gguf VECTORS.jsonl: renders chat messages and compares the text with that of the reference templates.
 *
 * VECTORS: one JSON object a line, {"messages", "tools", "enable_thinking", "add_generation_prompt"} with either "text" and
 * perhaps "ids", its tokens, or "error", words that the refusal's message must have. null: not given. "template" names a chat
 * format other than the file's own. Prints `matched / total` and the first difference. Exits with 1 on a miss. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include "qwenmoe.h"

static const char *vocabulary_path;

typedef struct text {
    char *data;
    int64_t length;
} text;

static int complain(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, qm_error_message());
    return 2;
}

/* ---- models: the vocabulary with one chat format each ---- */

#define MOST_FORMATS 8

static struct {
    char name[32];
    qm_model *model;
} loaded[MOST_FORMATS];

/* NULL, with a complaint, when the vocabulary cannot be loaded or the library has no such format. */
static const qm_model *model_for(const char *format)
{
    int i = 0;
    for (; i < MOST_FORMATS && loaded[i].model; i++)
        if (strcmp(loaded[i].name, format) == 0)
            return loaded[i].model;
    qm_options *options = NULL;
    if (i == MOST_FORMATS || strlen(format) >= sizeof loaded[i].name) {
        fprintf(stderr, "more than %d chat formats, or a long name: %s\n", MOST_FORMATS, format);
        return NULL;
    }
    if (qm_options_new(&options) < 0 || qm_options_set(options, "vocabulary-only", "1") < 0 ||
        qm_options_set(options, "chat-format", format) < 0 || qm_model_load(vocabulary_path, options, &loaded[i].model) < 0)
        complain(vocabulary_path);
    qm_options_free(&options);
    strcpy(loaded[i].name, format);
    return loaded[i].model;
}

/* ---- rows ---- */

/* The end of the JSON value at `at`, in JSON known to be sound. */
static const char *value_end(const char *at)
{
    int depth = 0;
    bool in_string = false;
    for (;; at++) {
        if (in_string) {
            if (*at == '\\')
                at++;
            else if (*at == '"')
                in_string = false;
        } else if (*at == '"') {
            in_string = true;
        } else if (*at == '{' || *at == '[') {
            depth++;
        } else if ((*at == '}' || *at == ']' || *at == ',') && depth == 0) {
            return at;
        } else if (*at == '}' || *at == ']') {
            depth--;
        }
    }
}

/* A member of the row as it is written, since parsing and printing could change its numbers; an empty text when it is missing or
 * null. `row` is a sound JSON object. */
static text raw_member(const char *row, const char *name)
{
    for (const char *at = strchr(row, '{') + 1; *at != '}';) {
        const char *key = strchr(at, '"'); /* there is none in an empty object */
        if (!key)
            break;
        const char *start = key + 1;
        while (*start != '"')
            start += *start == '\\' ? 2 : 1;
        bool wanted = (size_t)(start - key - 1) == strlen(name) && memcmp(key + 1, name, strlen(name)) == 0;
        start = strchr(start, ':') + 1;
        const char *end = value_end(start);
        start += strspn(start, " \t\r");
        if (wanted && strncmp(start, "null", 4) != 0)
            return (text){ (char *)start, end - start };
        at = *end == ',' ? end + 1 : end;
    }
    return (text){ NULL, 0 };
}

static int32_t switch_of(const json_t *row, const char *name)
{
    const json_t *value = json_object_get(row, name);
    return json_is_true(value) ? 1 : json_is_false(value) ? 0 : -1;
}

/* False when the library refuses; out->data is to be freed. */
static bool render(const qm_model *model, const json_t *row, const char *line, text *out)
{
    text messages = raw_member(line, "messages"), tools = raw_member(line, "tools");
    int32_t thinking = switch_of(row, "enable_thinking"), opening = switch_of(row, "add_generation_prompt") == 1;
    out->data = NULL;
    out->length = qm_chat_format(model, messages.data, messages.length, tools.data, tools.length, thinking, opening, NULL, 0);
    if (out->length < 0)
        return false;
    out->data = malloc((size_t)out->length + 1);
    return out->data && qm_chat_format(model, messages.data, messages.length, tools.data, tools.length, thinking, opening,
                                       out->data, out->length + 1) == out->length;
}

static bool check_text(const text *got, const json_t *expected, char *why, size_t size)
{
    const char *wanted = json_string_value(expected);
    size_t wanted_length = json_string_length(expected), length = (size_t)got->length, same = 0;
    while (same < length && same < wanted_length && got->data[same] == wanted[same])
        same++;
    if (same == length && same == wanted_length)
        return true;
    size_t from = same < 30 ? 0 : same - 30;
    snprintf(why, size, "the text differs from byte %zu on:\n  got      %.100s\n  expected %.100s", same, got->data + from,
             wanted + from);
    return false;
}

static bool check_ids(const qm_model *model, const text *got, const json_t *ids, char *why, size_t size)
{
    int64_t wanted = (int64_t)json_array_size(ids);
    int64_t count = qm_tokenize(model, got->data, got->length, QM_SPECIAL_ALL, NULL, 0);
    int32_t *tokens = malloc(sizeof *tokens * (size_t)(count > 0 ? count : 1));
    bool good = count == wanted && tokens && qm_tokenize(model, got->data, got->length, QM_SPECIAL_ALL, tokens, count) == count;
    int64_t i = 0;
    while (good && i < count && tokens[i] == json_number_value(json_array_get(ids, (size_t)i)))
        i++;
    good = good && i == count;
    if (!good)
        snprintf(why, size, "the text is right, but its tokens are not: %" PRId64 " of %" PRId64 ", same up to %" PRId64, count,
                 wanted, i);
    free(tokens);
    return good;
}

/* 1 matched, 0 not (and `why` says it), -1: cannot be tried. */
static int check_row(const json_t *row, const char *line, char *why, size_t size)
{
    const char *format = json_string_value(json_object_get(row, "template"));
    const json_t *expected = json_object_get(row, "text"), *ids = json_object_get(row, "ids");
    const char *error = json_string_value(json_object_get(row, "error"));
    const qm_model *model = model_for(format ? format : "auto");
    text got;
    if (!model)
        return -1;
    bool rendered = render(model, row, line, &got), good;
    if (!rendered) {
        good = error && strstr(qm_error_message(), error);
        if (!good)
            snprintf(why, size, "refused: %s", qm_error_message());
    } else if (error || !json_is_string(expected)) {
        good = false;
        snprintf(why, size, "not refused: %s", error ? error : "and the row has neither text nor error");
    } else {
        good = check_text(&got, expected, why, size) && (!json_is_array(ids) || check_ids(model, &got, ids, why, size));
    }
    free(got.data);
    return good;
}

int main(int argc, char **argv)
{
    char *line = NULL, why[1024], first[1024] = "";
    size_t room = 0;
    ssize_t length;
    int total = 0, matched = 0, result = 0;
    if (argc != 3) {
        fprintf(stderr, "usage: chats VOCAB.gguf VECTORS.jsonl\n");
        return 2;
    }
    vocabulary_path = argv[1];
    FILE *file = fopen(argv[2], "rb");
    if (!file) {
        perror(argv[2]);
        return 2;
    }
    while (result >= 0 && (length = getline(&line, &room, file)) > 0) {
        json_error_t error;
        json_t *row = json_loadb(line, (size_t)length, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &error);
        total++;
        if (json_is_object(row)) {
            result = check_row(row, line, why, sizeof why);
        } else {
            result = 0;
            snprintf(why, sizeof why, "no JSON object: %s", row ? "another value" : error.text);
        }
        matched += result == 1;
        if (result == 0 && !first[0])
            snprintf(first, sizeof first, "line %d: %.1000s", total, why);
        json_decref(row);
    }
    printf("%d / %d\n%s%s", matched, total, first, first[0] ? "\n" : "");
    for (int i = 0; i < MOST_FORMATS; i++)
        qm_model_free(&loaded[i].model);
    free(line);
    fclose(file);
    return result < 0 ? 2 : matched == total && total > 0 ? 0 : 1;
}
