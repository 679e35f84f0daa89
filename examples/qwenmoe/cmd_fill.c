/* qwenmoe fill: the middle between a prefix and a suffix. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "common.h"
#include "terminal.h"
#include "verbs.h"

#define DEFAULT_MARK "<FILL>"

static const flag flags[] = {
    { "prefix", 0, "FILE", "what stands before the gap" },
    { "suffix", 0, "FILE", "what stands after it" },
    { "file", 'f', "FILE", "one text with a mark in it where the gap is; - is standard input" },
    { "mark", 0, "TEXT", "the mark (default " DEFAULT_MARK ")" },
    { "whole", 'w', NULL, "print prefix and suffix too, with the middle between them" },
    { NULL, 0, NULL, NULL },
};

typedef struct gap {
    char *prefix, *suffix; /* freed by free_gap */
    int64_t prefix_length, suffix_length;
} gap;

static int split_at_mark(const arguments *arguments, gap *out)
{
    const char *path = arguments_flag(arguments, "file"), *mark = arguments_flag(arguments, "mark");
    if (!path && terminal_input())
        return arguments_usage(arguments,
                               "nothing to fill: give PREFIX and SUFFIX, --prefix and --suffix, or a text with a mark");
    int code = read_file(path ? path : "-", &out->prefix, &out->prefix_length);
    if (code != EXIT_OK)
        return code;
    if (!mark || !*mark)
        mark = DEFAULT_MARK;
    char *found = strstr(out->prefix, mark);
    if (!found)
        return complain("the text has no %s in it", mark);
    char *after = found + strlen(mark);
    out->suffix_length = out->prefix_length - (after - out->prefix);
    out->prefix_length = found - out->prefix;
    out->suffix = allocate(out->suffix_length + 1, 1);
    memcpy(out->suffix, after, (size_t)out->suffix_length);
    *found = 0;
    return EXIT_OK;
}

static int read_gap(const arguments *arguments, gap *out)
{
    const char *prefix = arguments_flag(arguments, "prefix"), *suffix = arguments_flag(arguments, "suffix");
    if (arguments->word_count > 2 || (arguments->word_count && (prefix || suffix)))
        return arguments_usage(arguments, "give PREFIX and SUFFIX as two words, or --prefix FILE and --suffix FILE");
    if (arguments->word_count) {
        out->prefix = join_words(arguments->words, 1);
        out->suffix = join_words(arguments->words + 1, arguments->word_count - 1);
        out->prefix_length = (int64_t)strlen(out->prefix);
        out->suffix_length = (int64_t)strlen(out->suffix);
        return EXIT_OK;
    }
    if (!prefix && !suffix)
        return split_at_mark(arguments, out);
    int code = prefix ? read_file(prefix, &out->prefix, &out->prefix_length) : EXIT_OK;
    return code == EXIT_OK && suffix ? read_file(suffix, &out->suffix, &out->suffix_length) : code;
}

static void free_gap(gap *gap)
{
    free(gap->prefix);
    free(gap->suffix);
}

/* <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|>. Too long a text loses what is farthest from the gap: at most a
 * quarter of `room` tokens goes to the suffix when both are long. */
static int make_prompt(const qm_model *model, const gap *gap, int64_t room, token_list *out)
{
    static const char *const mark_texts[] = { "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>" };
    int32_t marks[3];
    for (int i = 0; i < 3; i++) {
        marks[i] = qm_token_find(model, mark_texts[i], -1);
        if (marks[i] < 0)
            return complain("this model cannot fill: its vocabulary has no %s", mark_texts[i]);
    }
    token_list before = { NULL, 0 }, after = { NULL, 0 };
    int code = tokens_append(&before, model, gap->prefix ? gap->prefix : "", gap->prefix_length, QM_SPECIAL_NONE);
    if (code == EXIT_OK)
        code = tokens_append(&after, model, gap->suffix ? gap->suffix : "", gap->suffix_length, QM_SPECIAL_NONE);
    if (code == EXIT_OK) {
        room = room > 3 ? room - 3 : 0;
        int64_t suffix = after.count < room / 4 ? after.count : room / 4;
        int64_t prefix = before.count < room - suffix ? before.count : room - suffix;
        suffix = after.count < room - prefix ? after.count : room - prefix;
        if (prefix < before.count || suffix < after.count)
            complain("the text is longer than the context: %lld of %lld tokens before the gap and %lld of %lld after it are used",
                     (long long)prefix, (long long)before.count, (long long)suffix, (long long)after.count);
        out->ids = allocate(prefix + suffix + 3, sizeof *out->ids);
        out->ids[0] = marks[0];
        memcpy(out->ids + 1, before.ids + before.count - prefix, (size_t)prefix * sizeof *out->ids);
        out->ids[1 + prefix] = marks[1];
        memcpy(out->ids + 2 + prefix, after.ids, (size_t)suffix * sizeof *out->ids);
        out->ids[2 + prefix + suffix] = marks[2];
        out->count = prefix + suffix + 3;
    }
    free(before.ids);
    free(after.ids);
    return code;
}

static int fill(arguments *arguments)
{
    qm_model *model = NULL;
    qm_session *session = NULL;
    token_list prompt = { NULL, 0 };
    gap gap = { NULL, NULL, 0, 0 };
    answer view = { .style = arguments_flag(arguments, "whole") ? STYLE_BOLD : STYLE_PLAIN };
    char budget[32] = "";
    if (terminal_catch_interrupt() < 0)
        return complain("cannot catch Ctrl-C");
    int code = read_gap(arguments, &gap);
    if (code == EXIT_OK)
        code = arguments_default(arguments, "temperature", "0");
    if (code == EXIT_OK)
        code = arguments_default(arguments, "answer-tokens", "256");
    if (code == EXIT_OK)
        code = load_model(arguments, &model);
    if (code == EXIT_OK && qm_session_new(model, arguments->options, &session) < 0)
        code = complain_library();
    if (code == EXIT_OK) {
        qm_session_get(session, "answer-tokens", budget, sizeof budget);
        code = make_prompt(model, &gap, qm_session_context(session) - strtoll(budget, NULL, 10), &prompt);
    }
    if (code == EXIT_OK) {
        if (arguments_flag(arguments, "whole"))
            terminal_write(STYLE_PLAIN, gap.prefix, gap.prefix_length);
        code = answer_generate(session, prompt.ids, prompt.count, &view);
        if (arguments_flag(arguments, "whole") && code == EXIT_OK && gap.suffix_length > 0) {
            terminal_write(STYLE_PLAIN, gap.suffix, gap.suffix_length);
            view.in_line = gap.suffix[gap.suffix_length - 1] != '\n';
        }
        terminal_write(STYLE_PLAIN, "\n", view.in_line && terminal_output() ? 1 : 0);
        if (!arguments_quiet(arguments) && code != EXIT_FAILED)
            answer_print_speed(&view);
    }
    qm_session_free(&session);
    qm_model_free(&model);
    free(prompt.ids);
    free_gap(&gap);
    return code;
}

const verb verb_fill = {
    .name = "fill",
    .words = "[PREFIX SUFFIX]",
    .summary = "write what belongs between two pieces of text",
    .detail = "Prints the text that belongs between PREFIX and SUFFIX. They are two words, or\n"
              "the files of --prefix and --suffix, or one text (--file or standard input) with\n"
              "the mark " DEFAULT_MARK " where something is missing. Unless told otherwise it takes the\n"
              "most likely tokens (--temperature 0), at most 256 of them.",
    .flags = flags,
    .scopes = SCOPE_ALL,
    .run = fill,
};
