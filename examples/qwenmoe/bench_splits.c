/* Splits measured beside their prediction: see bench_splits.h. */
#include "bench_splits.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "terminal.h"

#define TRIES 3 /* the best one counts: what else the machine does only makes it slower */

typedef struct split {
    const char *name, *split, *exchange;
    bool experts;        /* those of half the layers on the last device */
    bool cards;          /* only cards sum so */
} split;

static const split splits[] = {
    { "layers", "layers", "auto", false, false },
    { "tensor", "tensor", "auto", false, false },
    { "tensor, sums by peer", "tensor", "peer", false, true },
    { "tensor, sums by pinned", "tensor", "pinned", false, true },
    { "tensor, sums by nccl", "tensor", "nccl", false, true },
    { "tensor, sums by host", "tensor", "host", false, true },
    { "layers, experts of half apart", "layers", "auto", true, false },
};

typedef struct result {
    double prompt, generate, predicted; /* tokens a second; 0: not known */
    char by[512];
} result;

static int set_option(const arguments *arguments, const char *name, const char *value)
{
    return qm_options_set(arguments->options, name, value) < 0 ? complain_library() : EXIT_OK;
}

static int set_number(const arguments *arguments, const char *name, int64_t value)
{
    char number[32];
    snprintf(number, sizeof number, "%lld", (long long)value);
    return set_option(arguments, name, number);
}

/* One prompt, and tokens after it. */
static int measure_once(qm_session *session, const int32_t *tokens, int64_t prompt, int64_t generate, result *out)
{
    double start = terminal_seconds();
    int32_t code = qm_session_rewind(session, 0);
    if (code >= 0 && prompt > 0)
        code = qm_prefill(session, tokens, prompt);
    double middle = terminal_seconds();
    for (int64_t i = 0; i < generate && code >= 0; i++)
        code = qm_decode(&session, tokens + prompt + i, 1);
    double end = terminal_seconds();
    if (code < 0)
        return complain_library();
    double read = prompt > 0 ? (double)prompt / (middle - start) : 0;
    double made = generate > 0 ? (double)generate / (end - middle) : 0;
    out->prompt = read > out->prompt ? read : out->prompt;
    out->generate = made > out->generate ? made : out->generate;
    return EXIT_OK;
}

static int measure(const arguments *arguments, const qm_model *model, int64_t prompt, int64_t generate, result *out)
{
    int64_t vocabulary = model_number(model, "vocabulary");
    int32_t *tokens = allocate(prompt + generate + 1, sizeof *tokens);
    qm_session *session = NULL;
    for (int64_t i = 0; i < prompt + generate; i++)
        tokens[i] = (int32_t)((i * 7919 + 17) % vocabulary);
    int code = qm_session_new((qm_model *)model, arguments->options, &session) < 0 ? complain_library() : EXIT_OK;
    for (int i = 0; i < TRIES && code == EXIT_OK; i++)
        code = measure_once(session, tokens, prompt, generate, out);
    double ns = (double)model_number(model, "predicted_token_ns");
    out->predicted = ns > 0 ? 1e9 / ns : 0;
    model_text(model, "predicted_by", out->by, sizeof out->by);
    qm_session_free(&session);
    free(tokens);
    return code;
}

static int bench_split(const arguments *arguments, const split *split, int64_t half, int64_t prompt, int64_t generate,
                       result *out)
{
    qm_model *model = NULL;
    const char *path = find_model(arguments);
    int code = set_option(arguments, "split", split->split);
    if (code == EXIT_OK)
        code = set_option(arguments, "exchange", split->exchange);
    if (code == EXIT_OK)
        code = set_number(arguments, "host-experts", split->experts ? half : -1);
    if (code != EXIT_OK || !path)
        return EXIT_FAILED;
    if (qm_model_load(path, arguments->options, &model) < 0) {
        printf("%-32s not possible: %s\n", split->name, qm_error_message());
        fflush(stdout);
        return EXIT_OK;
    }
    *out = (result){ 0 };
    code = measure(arguments, model, prompt, generate, out);
    if (code == EXIT_OK)
        printf("%-32s %12.1f %12.1f %12.1f   %.*s\n", split->name, out->prompt, out->generate, out->predicted,
               (int)strcspn(out->by, ";"), out->by);
    fflush(stdout);
    qm_model_free(&model);
    return code;
}

/* Layers with experts. */
static int count_layers(const arguments *arguments, int64_t *experts)
{
    qm_model *model = NULL;
    const char *path = find_model(arguments);
    if (!path || set_option(arguments, "split", "layers") != EXIT_OK)
        return EXIT_FAILED;
    if (qm_model_load(path, arguments->options, &model) < 0)
        return complain_library();
    *experts = model_number(model, "experts") > 0 ? model_number(model, "layers") : 0;
    qm_model_free(&model);
    return EXIT_OK;
}

int bench_splits(arguments *arguments, int64_t prompt, int64_t generate)
{
    result result = { 0 };
    int64_t layers = 0;
    char devices[256] = "";
    qm_options_get(arguments->options, "devices", devices, sizeof devices);
    if (!*devices)
        return arguments_usage(arguments, "--all-splits takes --devices, as cuda:0,cuda:1");
    if (arguments_flag(arguments, "json"))
        return arguments_usage(arguments, "--all-splits prints no JSON");
    int code = set_number(arguments, "context", prompt + generate + 1);
    if (code == EXIT_OK)
        code = set_option(arguments, "answer-tokens", "0");
    if (code == EXIT_OK)
        code = count_layers(arguments, &layers);
    if (code != EXIT_OK)
        return code;
    printf("%s; prompts of %lld tokens, %lld generated; tokens/s\n", devices, (long long)prompt, (long long)generate);
    printf("%-32s %12s %12s %12s\n", "split", "prompt", "generate", "predicted");
    fflush(stdout);
    for (size_t i = 0; i < sizeof splits / sizeof *splits && code == EXIT_OK; i++)
        if ((!splits[i].experts || layers > 0) && (!splits[i].cards || !strstr(devices, "cpu")))
            code = bench_split(arguments, &splits[i], (layers + 1) / 2, prompt, generate, &result);
    if (code == EXIT_OK)
        printf("predicted by weights alone, at the start of a context%s\n", result.by + strcspn(result.by, ";"));
    return code;
}
