/* qwenmoe: runs a language model from the command line. Picks the verb; each verb is in its cmd_NAME.c. */
#include <stdio.h>
#include <string.h>

#include "verbs.h"

static const verb *const verbs[] = { &verb_run,      &verb_chat,  &verb_fill,       &verb_info,
                                     &verb_tokenize, &verb_bench, &verb_perplexity, &verb_options };
#define VERB_COUNT (sizeof verbs / sizeof *verbs)

static void print_usage(FILE *to)
{
    fputs("usage: qwenmoe VERB [options]\n\n", to);
    for (size_t i = 0; i < VERB_COUNT; i++)
        fprintf(to, "  %-12s%s\n", verbs[i]->name, verbs[i]->summary);
    fputs("\n`qwenmoe VERB --help` lists what a verb takes; `qwenmoe --version` prints the version.\n", to);
}

static const verb *find_verb(const char *name)
{
    for (size_t i = 0; i < VERB_COUNT; i++) {
        if (strcmp(verbs[i]->name, name) == 0)
            return verbs[i];
    }
    return NULL;
}

int main(int count, char **values)
{
    const char *first = count > 1 ? values[1] : "";
    if (strcmp(first, "--version") == 0) {
        printf("qwenmoe %s\n", qm_version());
        return EXIT_OK;
    }
    if (strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0 || strcmp(first, "help") == 0) {
        print_usage(stdout);
        return EXIT_OK;
    }
    const verb *verb = find_verb(first);
    if (!verb) {
        if (*first)
            fprintf(stderr, "qwenmoe: there is no verb '%s'\n", first);
        print_usage(stderr);
        return EXIT_USAGE;
    }
    arguments arguments;
    int code = arguments_parse(verb, count - 2, values + 2, &arguments);
    if (code == EXIT_OK)
        code = verb->run(&arguments);
    arguments_end(&arguments);
    return code == EXIT_DONE ? EXIT_OK : code;
}
