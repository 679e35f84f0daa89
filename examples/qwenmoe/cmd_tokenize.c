/* qwenmoe tokenize: text to token ids and back. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "verbs.h"

static const flag flags[] = {
    { "file", 'f', "FILE", "read the text from this file; - is standard input" },
    { "special", 0, "none|user|all", "which special tokens are recognised in the text (default none)" },
    { "ids", 'i', NULL, "print only the ids, in one line" },
    { "count", 'c', NULL, "print only how many there are" },
    { "decode", 'd', NULL, "the text is ids; print the text they stand for" },
    { "json", 'j', NULL, "print JSON" },
    { NULL, 0, NULL, NULL },
};

/* The bytes of one token between quotes, what is not printable ASCII or part of UTF-8 text escaped. */
static void print_quoted(const char *text, int64_t length)
{
    json_t *value = json_stringn(text, (size_t)length);
    if (value) {
        json_dumpf(value, stdout, JSON_ENCODE_ANY);
        json_decref(value);
        return;
    }
    putchar('"');
    for (int64_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte > 0x20 && byte < 0x7F && byte != '"' && byte != '\\')
            putchar(byte);
        else
            printf("\\x%02x", byte);
    }
    putchar('"');
}

/* The text of ids; freed by the caller. NULL after a message. */
static char *text_of(const qm_model *model, const int32_t *ids, int64_t count, int64_t *length)
{
    *length = qm_detokenize(model, ids, count, 0, NULL, 0);
    if (*length < 0) {
        complain_library();
        return NULL;
    }
    char *text = allocate(*length + 1, 1);
    qm_detokenize(model, ids, count, 0, text, *length + 1);
    return text;
}

static int print_list(const qm_model *model, const token_list *list)
{
    for (int64_t i = 0; i < list->count; i++) {
        int64_t length;
        char *text = text_of(model, list->ids + i, 1, &length);
        if (!text)
            return EXIT_FAILED;
        printf("%8d  ", (int)list->ids[i]);
        print_quoted(text, length);
        putchar('\n');
        free(text);
    }
    return EXIT_OK;
}

static int print_tokens(const arguments *arguments, const qm_model *model, const token_list *list)
{
    if (arguments_flag(arguments, "count")) {
        printf("%lld\n", (long long)list->count);
    } else if (arguments_flag(arguments, "json")) {
        json_t *ids = json_array();
        for (int64_t i = 0; i < list->count; i++)
            json_array_append_new(ids, json_integer(list->ids[i]));
        return print_json(json_pack("{s:I, s:o}", "count", (json_int_t)list->count, "ids", ids));
    } else if (arguments_flag(arguments, "ids")) {
        for (int64_t i = 0; i < list->count; i++)
            printf("%s%d", i ? " " : "", (int)list->ids[i]);
        putchar('\n');
    } else {
        return print_list(model, list);
    }
    return EXIT_OK;
}

/* Whole numbers with anything that is no digit between them. */
static int parse_ids(const char *text, token_list *out)
{
    static const char digits[] = "0123456789";
    for (text += strcspn(text, digits); *text; text += strcspn(text, digits)) {
        char *end;
        errno = 0;
        long id = strtol(text, &end, 10);
        if (errno || id > INT32_MAX)
            return complain("%.*s is no token id", (int)(end - text), text);
        out->ids = grow(out->ids, out->count + 1, sizeof *out->ids);
        out->ids[out->count++] = (int32_t)id;
        text = end;
    }
    return EXIT_OK;
}

static int decode(const arguments *arguments, const qm_model *model, const char *text, token_list *list)
{
    int64_t length;
    if (parse_ids(text, list) != EXIT_OK)
        return EXIT_FAILED;
    char *decoded = text_of(model, list->ids, list->count, &length);
    int code = decoded ? EXIT_OK : EXIT_FAILED;
    if (decoded && arguments_flag(arguments, "json")) {
        json_t *value = json_pack("{s:s%}", "text", decoded, (size_t)length);
        code = value ? print_json(value) : complain("the tokens' text is not UTF-8; print it without --json");
    } else if (decoded) {
        fwrite(decoded, 1, (size_t)length, stdout);
    }
    free(decoded);
    return code;
}

static int tokenize(arguments *arguments)
{
    qm_model *model = NULL;
    token_list list = { NULL, 0 };
    char *text;
    int64_t length;
    int special;
    int code = arguments_choice(arguments, "special", "none|user|all", QM_SPECIAL_NONE, &special);
    if (code != EXIT_OK || (code = read_prompt(arguments, &text, &length)) != EXIT_OK)
        return code;
    code = load_vocabulary(arguments, &model);
    if (code == EXIT_OK && arguments_flag(arguments, "decode"))
        code = decode(arguments, model, text, &list);
    else if (code == EXIT_OK && (code = tokens_append(&list, model, text, length, special)) == EXIT_OK)
        code = print_tokens(arguments, model, &list);
    qm_model_free(&model);
    free(list.ids);
    free(text);
    return code;
}

const verb verb_tokenize = {
    .name = "tokenize",
    .words = "[TEXT...]",
    .summary = "text to token ids, or back with --decode",
    .detail = "Prints the tokens of TEXT (or of the file of --file, or of standard input), one\n"
              "a line: its id and its text. Only the vocabulary of the model is loaded.",
    .flags = flags,
    .scopes = SCOPE_MODEL,
    .run = tokenize,
};
