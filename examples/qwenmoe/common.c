/* Messages, files, the model's place, texts as tokens; see common.h. */
#include "common.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "terminal.h"

const char *program_name = "qwenmoe";

int complain(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    terminal_progress_clear();
    fprintf(stderr, "%s: ", program_name);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    return EXIT_FAILED;
}

int complain_library(void)
{
    return complain("%s", qm_error_message());
}

void *grow(void *pointer, int64_t count, size_t size)
{
    if (count <= 0)
        count = 1;
    void *grown = (uint64_t)count > SIZE_MAX / size ? NULL : realloc(pointer, (size_t)count * size);
    if (!grown) {
        complain("no memory for %lld x %zu bytes", (long long)count, size);
        exit(EXIT_FAILED);
    }
    return grown;
}

void *allocate(int64_t count, size_t size)
{
    void *fresh = grow(NULL, count, size);
    memset(fresh, 0, (size_t)(count > 0 ? count : 1) * size);
    return fresh;
}

/* ---- Files -------------------------------------------------------------------------------------------------------- */

int read_file(const char *path, char **out, int64_t *length)
{
    int is_stdin = strcmp(path, "-") == 0;
    FILE *file = is_stdin ? stdin : fopen(path, "rb");
    *out = NULL;
    if (!file)
        return complain("cannot open %s: %s", path, strerror(errno));
    char *text = NULL;
    int64_t capacity = 0, used = 0;
    do {
        if (capacity - used < 4096)
            text = grow(text, capacity = capacity * 2 + 16384, 1);
        used += (int64_t)fread(text + used, 1, (size_t)(capacity - used - 1), file);
    } while (!feof(file) && !ferror(file));
    int failed = ferror(file), reason = errno;
    if (!is_stdin)
        fclose(file);
    if (failed) {
        free(text);
        return complain("cannot read %s: %s", path, strerror(reason));
    }
    text[used] = 0;
    *out = text;
    *length = used;
    return EXIT_OK;
}

char *join_words(char **words, int count)
{
    int64_t length = 1, used = 0;
    for (int i = 0; i < count; i++)
        length += (int64_t)strlen(words[i]) + 1;
    char *text = allocate(length, 1);
    for (int i = 0; i < count; i++)
        used += sprintf(text + used, "%s%s", i ? " " : "", words[i]);
    return text;
}

int read_prompt(const arguments *arguments, char **out, int64_t *length)
{
    const char *path = arguments_flag(arguments, "file");
    *out = NULL;
    if (arguments->word_count) {
        if (path)
            return arguments_usage(arguments, "the text is given twice: as words and as --file");
        *out = join_words(arguments->words, arguments->word_count);
        *length = (int64_t)strlen(*out);
        return EXIT_OK;
    }
    if (!path && terminal_input())
        return arguments_usage(arguments, "no text: give it as words, with --file FILE, or on standard input");
    return read_file(path ? path : "-", out, length);
}

int print_json(json_t *value)
{
    int failed = json_dumpf(value, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) < 0;
    json_decref(value);
    putchar('\n');
    return failed || fflush(stdout) ? complain("cannot write JSON to standard output") : EXIT_OK;
}

/* ---- The model ---------------------------------------------------------------------------------------------------- */

const char *find_model(const arguments *arguments)
{
    static char path[4096];
    const char *given = arguments_flag(arguments, "model");
    if (!given)
        given = getenv("QWENMOE_MODEL");
    if (given && *given)
        return given;

    /* Beside the program in the build folder; in the prefix the program was moved to; in the prefix it was built for. */
    static const char *const places[] = { "..", "../share/qwenmoe", QWENMOE_DATADIR };
    char folder[2048];
    ssize_t length = readlink("/proc/self/exe", folder, sizeof folder - 1);
    folder[length > 0 ? length : 0] = 0;
    char *slash = strrchr(folder, '/');
    if (slash)
        *slash = 0;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int is_relative = places[i][0] != '/';
        snprintf(path, sizeof path, "%s%s%s/%s", is_relative ? folder : "", is_relative ? "/" : "", places[i],
                 QWENMOE_DEFAULT_MODEL);
        if (access(path, R_OK) == 0)
            return path;
    }
    complain(
        "no model: give one with --model FILE or in the environment variable QWENMOE_MODEL (the default one is expected at %s)",
        path);
    return NULL;
}

static void print_log(int32_t level, const char *line, void *user)
{
    const int32_t *lowest = user;
    if (level >= *lowest)
        fprintf(stderr, "%s: %s%s\n", program_name, level == QM_LOG_WARNING ? "warning: " : "", line);
}

/* With option rank above 0 this process only computes for rank 0, until that has ended. */
static int is_follower(const arguments *arguments)
{
    char rank[16], vocabulary[8];
    return qm_options_get(arguments->options, "rank", rank, sizeof rank) > 0 && strcmp(rank, "0") != 0 &&
           qm_options_get(arguments->options, "vocabulary-only", vocabulary, sizeof vocabulary) > 0 && strcmp(vocabulary, "1") != 0;
}

int load_model(const arguments *arguments, qm_model **out)
{
    static int32_t lowest_level; /* outlives every model */
    const char *path = find_model(arguments);
    if (!path)
        return EXIT_FAILED;
    lowest_level = arguments_flag(arguments, "verbose") ? QM_LOG_DEBUG : QM_LOG_WARNING;
    if (!arguments_quiet(arguments) &&
        (qm_options_set_log(arguments->options, print_log, &lowest_level) < 0 ||
         qm_options_set_progress(arguments->options, terminal_progress, (void *)arguments->progress_stage) < 0))
        return complain_library();
    if (is_follower(arguments)) {
        terminal_default_signals();
        return qm_follow(path, arguments->options) < 0 ? complain_library() : EXIT_DONE;
    }
    int32_t code = qm_model_load(path, arguments->options, out);
    terminal_progress_clear();
    if (code == QM_ERROR_CANCELLED && terminal_interrupted())
        return EXIT_INTERRUPTED;
    return code < 0 ? complain_library() : EXIT_OK;
}

int load_vocabulary(arguments *arguments, qm_model **out)
{
    if (qm_options_set(arguments->options, "vocabulary-only", "1") < 0)
        return complain_library();
    return load_model(arguments, out);
}

int64_t model_number(const qm_model *model, const char *name)
{
    int64_t value = 0;
    return qm_model_number(model, name, &value) < 0 ? 0 : value;
}

const char *model_text(const qm_model *model, const char *name, char *text, int64_t size)
{
    if (qm_model_text(model, name, text, size) < 0)
        snprintf(text, (size_t)size, "?");
    return text;
}

/* ---- Texts as tokens ---------------------------------------------------------------------------------------------- */

int tokens_append(token_list *list, const qm_model *model, const char *text, int64_t length, int32_t special)
{
    int64_t count = qm_tokenize(model, text, length, special, NULL, 0);
    if (count < 0)
        return complain_library();
    list->ids = grow(list->ids, list->count + count, sizeof *list->ids);
    count = qm_tokenize(model, text, length, special, list->ids + list->count, count);
    if (count < 0)
        return complain_library();
    list->count += count;
    return EXIT_OK;
}

int message_append(json_t *messages, const char *role, const char *content, int64_t length)
{
    json_t *message = json_pack("{s:s, s:s%}", "role", role, "content", content, (size_t)length);
    if (!message || json_array_append_new(messages, message) < 0)
        return complain("the %s message is not UTF-8 text", role);
    return EXIT_OK;
}

int tokens_of_messages(const qm_model *model, json_t *messages, int thinking, token_list *out, int *thinks)
{
    char *json = json_dumps(messages, JSON_COMPACT), end[16] = "";
    if (!json)
        return complain("no memory for the messages");
    int64_t count = qm_chat_tokens(model, json, -1, NULL, 0, thinking, 1, NULL, 0);
    if (count >= 0) {
        out->ids = grow(out->ids, out->count + count, sizeof *out->ids);
        count = qm_chat_tokens(model, json, -1, NULL, 0, thinking, 1, out->ids + out->count, count);
    }
    free(json);
    if (count < 0)
        return complain_library();
    out->count += count;
    if (count >= 2)
        qm_detokenize(model, out->ids + out->count - 2, 2, 0, end, sizeof end);
    *thinks = strcmp(end, "<think>\n") == 0;
    return EXIT_OK;
}
