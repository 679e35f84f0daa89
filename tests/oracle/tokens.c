/* tokens VOCAB.gguf VECTORS.jsonl: compares the library's tokenizer with recorded ids, through the public interface.
 *
 * Prints "matched / total" and the first difference; exits 0 if all match, 1 on a miss, 2 if it cannot work. A line is one of
 *     {"text", "ids", "special": true|false}                         to ids, added tokens recognised or not
 *     {"ids", "bytes" (hex), "text" (lossy)[, "text_skip_special"]}  and back
 *     {"text", "all", "none", "user_defined_only"[, "hf_split_special_tokens"]}   to ids, under each treatment */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <qwenmoe.h>

typedef struct tally {
    int64_t line, matched, total;
    int64_t fault_line; /* of the first difference, 0: none */
    char fault[400];
} tally;

typedef struct ids {
    int32_t *data;
    int64_t count;
} ids;

static void *must(void *pointer)
{
    if (!pointer) {
        fprintf(stderr, "tokens: out of memory\n");
        exit(2);
    }
    return pointer;
}

static ids ids_of(const json_t *array)
{
    ids out = { must(malloc((json_array_size(array) + 1) * sizeof(int32_t))), (int64_t)json_array_size(array) };
    for (int64_t i = 0; i < out.count; i++)
        out.data[i] = (int32_t)json_integer_value(json_array_get(array, (size_t)i));
    return out;
}

/* count -1 on an error. */
static ids tokenize(const qm_model *model, const char *text, int64_t length, int32_t special)
{
    ids out = { NULL, qm_tokenize(model, text, length, special, NULL, 0) };
    out.data = must(malloc((size_t)(out.count > 0 ? out.count : 1) * sizeof *out.data));
    if (out.count > 0)
        out.count = qm_tokenize(model, text, length, special, out.data, out.count);
    return out;
}

static char *detokenize(const qm_model *model, const ids *tokens, int32_t skip_special, int64_t *length)
{
    *length = qm_detokenize(model, tokens->data, tokens->count, skip_special, NULL, 0);
    char *text = must(calloc((size_t)(*length > 0 ? *length : 0) + 1, 1));
    if (*length > 0)
        *length = qm_detokenize(model, tokens->data, tokens->count, skip_special, text, *length + 1);
    return text;
}

static void count(tally *t, int matched, const char *what, const char *detail)
{
    t->total++;
    t->matched += matched;
    if (!matched && !t->fault_line) {
        t->fault_line = t->line;
        snprintf(t->fault, sizeof t->fault, "%s: %s", what, detail);
    }
}

/* ---- text to ids ---- */

static void compare_ids(tally *t, const char *what, const ids *got, const json_t *expected_array)
{
    ids expected = ids_of(expected_array);
    int64_t same = 0;
    while (same < got->count && same < expected.count && got->data[same] == expected.data[same])
        same++;
    char detail[300];
    if (got->count < 0)
        snprintf(detail, sizeof detail, "%s", qm_error_message());
    else
        snprintf(detail, sizeof detail,
                 "%" PRId64 " ids for %" PRId64 ", equal below index %" PRId64 ", then %" PRId32 " for %" PRId32,
                 got->count, expected.count, same, same < got->count ? got->data[same] : -1,
                 same < expected.count ? expected.data[same] : -1);
    count(t, got->count == expected.count && same == got->count, what, detail);
    free(expected.data);
}

static void check_mode(tally *t, const qm_model *model, const json_t *row, const char *key, int32_t special)
{
    const json_t *text = json_object_get(row, "text"), *expected = json_object_get(row, key);
    if (!expected)
        return;
    ids got = tokenize(model, json_string_value(text), (int64_t)json_string_length(text), special);
    compare_ids(t, key, &got, expected);
    free(got.data);
}

/* Marks that the reference tokenizer has as text and files as control tokens. Its "split special tokens" recognises them and the
 * user-defined ones, which is no mode of the library's: here they are cut out first. */
static size_t mark_at(const char *text, size_t left, int32_t *token, const qm_model *model)
{
    static const char *const marks[] = { "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
                                         "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>" };
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        size_t length = strlen(marks[i]);
        if (length <= left && memcmp(text, marks[i], length) == 0) {
            *token = qm_token_find(model, marks[i], (int64_t)length);
            return *token >= 0 ? length : 0;
        }
    }
    return 0;
}

static void append(ids *to, const int32_t *data, int64_t more)
{
    to->data = must(realloc(to->data, (size_t)(to->count + more + 1) * sizeof *to->data));
    if (more > 0)
        memcpy(to->data + to->count, data, (size_t)more * sizeof *data);
    to->count += more;
}

static void check_split(tally *t, const qm_model *model, const json_t *row)
{
    const json_t *expected = json_object_get(row, "hf_split_special_tokens"), *value = json_object_get(row, "text");
    const char *text = json_string_value(value);
    size_t length = json_string_length(value), from = 0;
    ids all = { NULL, 0 };
    if (!expected)
        return;
    append(&all, NULL, 0);
    for (size_t at = 0; at <= length; at++) {
        int32_t token = -1;
        size_t mark = at < length ? mark_at(text + at, length - at, &token, model) : 0;
        if (mark == 0 && at < length)
            continue;
        ids part = tokenize(model, text + from, (int64_t)(at - from), QM_SPECIAL_USER);
        append(&all, part.data, part.count > 0 ? part.count : 0);
        free(part.data);
        if (mark)
            append(&all, &token, 1);
        from = at + mark;
        at = mark ? from - 1 : at;
    }
    compare_ids(t, "hf_split_special_tokens", &all, expected);
    free(all.data);
}

/* ---- ids to text ---- */

/* Length of the well-formed sequence at `byte`; else minus the length of its maximal subpart (Unicode 16, 3.9). */
static int sequence(const uint8_t *byte, size_t left)
{
    int length = byte[0] < 0x80 ? 1 : byte[0] < 0xc2 ? 0 : byte[0] < 0xe0 ? 2 : byte[0] < 0xf0 ? 3 : byte[0] < 0xf5 ? 4 : 0;
    if (length == 0)
        return -1;
    for (int i = 1; i < length; i++) {
        uint8_t low = i > 1 ? 0x80 : byte[0] == 0xe0 ? 0xa0 : byte[0] == 0xf0 ? 0x90 : 0x80;
        uint8_t high = i > 1 ? 0xbf : byte[0] == 0xed ? 0x9f : byte[0] == 0xf4 ? 0x8f : 0xbf;
        if ((size_t)i >= left || byte[i] < low || byte[i] > high)
            return -i;
    }
    return length;
}

/* Whether the bytes, with each maximal subpart replaced by U+FFFD, are this text. */
static int equals_lossy(const char *bytes, int64_t length, const json_t *expected)
{
    const char *text = json_string_value(expected);
    size_t left = json_string_length(expected);
    for (int64_t at = 0; at < length;) {
        int step = sequence((const uint8_t *)bytes + at, (size_t)(length - at));
        const char *piece = step > 0 ? bytes + at : "\xef\xbf\xbd";
        size_t size = step > 0 ? (size_t)step : 3;
        if (size > left || memcmp(text, piece, size) != 0)
            return 0;
        text += size;
        left -= size;
        at += step > 0 ? step : -step;
    }
    return left == 0;
}

static int equals_hex(const char *bytes, int64_t length, const char *hex)
{
    if ((int64_t)strlen(hex) != 2 * length)
        return 0;
    for (int64_t i = 0; i < length; i++) {
        char two[3];
        snprintf(two, sizeof two, "%02x", (uint8_t)bytes[i]);
        if (two[0] != tolower((unsigned char)hex[2 * i]) || two[1] != tolower((unsigned char)hex[2 * i + 1]))
            return 0;
    }
    return 1;
}

static void check_back(tally *t, const qm_model *model, const json_t *row)
{
    ids tokens = ids_of(json_object_get(row, "ids"));
    const json_t *skipped = json_object_get(row, "text_skip_special");
    int64_t length;
    char *bytes = detokenize(model, &tokens, 0, &length);
    int same = length >= 0 && equals_hex(bytes, length, json_string_value(json_object_get(row, "bytes"))) &&
               equals_lossy(bytes, length, json_object_get(row, "text"));
    count(t, same, "detokenize", length < 0 ? qm_error_message() : "other bytes");
    free(bytes);
    if (skipped) {
        bytes = detokenize(model, &tokens, 1, &length);
        same = length >= 0 && equals_lossy(bytes, length, skipped);
        count(t, same, "text_skip_special", length < 0 ? qm_error_message() : "other text");
        free(bytes);
    }
    free(tokens.data);
}

/* ---- the file ---- */

static int check_row(tally *t, const qm_model *model, const json_t *row)
{
    int has_text = json_is_string(json_object_get(row, "text")), has_ids = json_is_array(json_object_get(row, "ids"));
    if (has_text && has_ids && json_is_string(json_object_get(row, "bytes"))) {
        check_back(t, model, row);
    } else if (has_text && has_ids) {
        check_mode(t, model, row, "ids", json_is_true(json_object_get(row, "special")) ? QM_SPECIAL_ALL : QM_SPECIAL_NONE);
    } else if (has_text) {
        check_mode(t, model, row, "all", QM_SPECIAL_ALL);
        check_mode(t, model, row, "none", QM_SPECIAL_NONE);
        check_mode(t, model, row, "user_defined_only", QM_SPECIAL_USER);
        check_split(t, model, row);
    } else {
        return 0;
    }
    return 1;
}

static char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) {
        fprintf(stderr, "tokens: cannot read %s\n", path);
        exit(2);
    }
    long length = ftell(file);
    rewind(file);
    char *data = must(malloc((size_t)(length > 0 ? length : 0) + 1));
    *size = fread(data, 1, (size_t)(length > 0 ? length : 0), file);
    fclose(file);
    return data;
}

static int check_file(tally *t, const qm_model *model, const char *path)
{
    size_t size;
    char *data = read_file(path, &size);
    for (char *line = data, *end = data + size; line < end;) {
        char *newline = memchr(line, '\n', (size_t)(end - line)); /* only there: texts hold other line ends */
        size_t length = (size_t)((newline ? newline : end) - line);
        json_error_t error;
        t->line++;
        json_t *row = length ? json_loadb(line, length, JSON_ALLOW_NUL, &error) : NULL;
        if (length && (!row || !check_row(t, model, row))) {
            fprintf(stderr, "tokens: %s, line %" PRId64 ": %s\n", path, t->line, row ? "not a row of a known kind" : error.text);
            json_decref(row);
            free(data);
            return 2;
        }
        json_decref(row);
        line += length + 1;
    }
    free(data);
    printf("%" PRId64 " / %" PRId64 "\n", t->matched, t->total);
    if (t->fault_line)
        printf("first difference: %s, line %" PRId64 ": %s\n", path, t->fault_line, t->fault);
    return t->matched == t->total && t->total > 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: tokens VOCAB.gguf VECTORS.jsonl\n");
        return 2;
    }
    qm_options *options = NULL;
    qm_model *model = NULL;
    tally t = { 0 };
    int status = 2;
    if (qm_options_new(&options) < 0 || qm_options_set(options, "vocabulary-only", "1") < 0 ||
        qm_model_load(argv[1], options, &model) < 0)
        fprintf(stderr, "tokens: %s\n", qm_error_message());
    else
        status = check_file(&t, model, argv[2]);
    qm_model_free(&model);
    qm_options_free(&options);
    return status;
}
