/* qwenmoe info: what a model file is, and what running it would take. Loads only the vocabulary. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "verbs.h"

static const flag flags[] = {
    { "json", 'j', NULL, "print JSON" },
    { NULL, 0, NULL, NULL },
};

static const char *const text_facts[] = { "file", "name", "architecture", "tokenizer", "chat_format" };
static const char *const number_facts[] = { "parameters", "file_bytes", "vocabulary" }; /* the plan has the others */
#define COUNT(list) (sizeof(list) / sizeof *(list))

/* The plan as a table or as JSON; freed by the caller. NULL after a message. */
static char *plan_text(const arguments *arguments, const char *format)
{
    const char *path = find_model(arguments);
    if (!path)
        return NULL;
    int64_t length = qm_plan(path, arguments->options, format, NULL, 0);
    char *text = length < 0 ? NULL : allocate(length + 1, 1);
    if (!text || qm_plan(path, arguments->options, format, text, length + 1) < 0) {
        complain_library();
        free(text);
        return NULL;
    }
    return text;
}

static int print_as_json(const qm_model *model, const char *plan)
{
    json_t *facts = json_object();
    char text[1024];
    for (size_t i = 0; i < COUNT(text_facts); i++)
        json_object_set_new(facts, text_facts[i], json_string(model_text(model, text_facts[i], text, sizeof text)));
    for (size_t i = 0; i < COUNT(number_facts); i++)
        json_object_set_new(facts, number_facts[i], json_integer(model_number(model, number_facts[i])));
    json_error_t error;
    json_t *parsed = json_loads(plan, 0, &error);
    if (!parsed) {
        json_decref(facts);
        return complain("the plan is not JSON: %s", error.text);
    }
    return print_json(json_pack("{s:o, s:o}", "model", facts, "plan", parsed));
}

static void print_facts(const qm_model *model)
{
    char text[1024];
    for (size_t i = 0; i < COUNT(text_facts); i++)
        printf("%-18s%s\n", text_facts[i], model_text(model, text_facts[i], text, sizeof text));
    for (size_t i = 0; i < COUNT(number_facts); i++)
        printf("%-18s%lld\n", number_facts[i], (long long)model_number(model, number_facts[i]));
    putchar('\n');
}

static int info(arguments *arguments)
{
    int as_json = arguments_flag(arguments, "json") != NULL;
    qm_model *model = NULL;
    if (arguments->word_count)
        return arguments_usage(arguments, "info takes no words; the model is named by --model FILE");
    /* First, since what follows changes the options. */
    char *plan = plan_text(arguments, as_json ? "json" : "table");
    int code = plan ? load_vocabulary(arguments, &model) : EXIT_FAILED;
    if (code == EXIT_OK && as_json) {
        code = print_as_json(model, plan);
    } else if (code == EXIT_OK) {
        print_facts(model);
        fputs(plan, stdout);
    }
    qm_model_free(&model);
    free(plan);
    return code;
}

const verb verb_info = {
    .name = "info",
    .words = "",
    .summary = "what a model file is and what it takes to run it",
    .detail = "Prints what the file says about the model, and the plan: the memory it would\n"
              "take with the options given, item by item, and whether that fits.",
    .flags = flags,
    .scopes = SCOPE_ALL,
    .run = info,
};
