/* qwenmoe perplexity: how well a model predicts a text, and how far it is from another that did the same. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common.h"
#include "logits_file.h"
#include "terminal.h"
#include "verbs.h"

#define ROWS_BYTES (64 << 20) /* logits held at once; a row of the largest vocabulary is 1 MB */
#define ROWS_MOST 256

static const flag flags[] = {
    { "file", 'f', "FILE", "the text; - is standard input" },
    { "window", 'w', "N", "tokens the model sees at once (default 1024)" },
    { "overlap", 'o', "N", "tokens of a window that only lead up to the scored ones, 1 at least (default: half the window)" },
    { "tokens", 'n', "N", "use only this many tokens of the text" },
    { "special", 0, "none|user|all", "which special tokens are recognised in the text (default none)" },
    { "save", 0, "FILE", "write the log probabilities of every token of the vocabulary after every scored token" },
    { "bits", 0, "16|32", "size of one of them in that file (default 16)" },
    { "against", 0, "FILE", "compare with a file saved before; takes text and windows from it" },
    { "json", 'j', NULL, "print JSON" },
    { NULL, 0, NULL, NULL },
};

/* Sums over scored tokens of negative log probabilities. */
typedef struct score {
    double sum, sum_squares;
} score;

typedef struct measure {
    arguments *arguments;
    qm_model *model;
    qm_session *session;
    token_list text;
    int64_t bytes; /* of the text; 0: unknown */
    int64_t vocabulary, window, overlap, limit;
    int64_t rows, rows_done; /* scored tokens */
    float *logits;           /* [ROWS_MOST or less][vocabulary] */
    int64_t logits_capacity; /* rows */
    score own, other;        /* of this model; of the one in `against` */
    logits_file save, against;
    float *other_row;   /* [vocabulary] */
    double *divergence; /* [rows], KL(other || own) in nats */
    int64_t agreed;     /* rows whose most likely token is the same */
} measure;

/* ---- One row ------------------------------------------------------------------------------------------------------ */

static int64_t most_likely(const float *row, int64_t count)
{
    int64_t best = 0;
    for (int64_t i = 1; i < count; i++)
        best = row[i] > row[best] ? i : best;
    return best;
}

/* Logits to log probabilities, in place: x - log(sum(exp(x))). */
static void normalise(float *row, int64_t count)
{
    double highest = row[most_likely(row, count)], sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += exp(row[i] - highest);
    double log_sum = highest + log(sum);
    for (int64_t i = 0; i < count; i++)
        row[i] = (float)(row[i] - log_sum);
}

static void add_score(score *score, double negative_log)
{
    score->sum += negative_log;
    score->sum_squares += negative_log * negative_log;
}

static int score_row(measure *measure, float *row, int32_t next)
{
    normalise(row, measure->vocabulary);
    add_score(&measure->own, -row[next]);
    if (measure->save.file && logits_write(&measure->save, row) != EXIT_OK)
        return EXIT_FAILED;
    if (measure->against.file) {
        float *other = measure->other_row;
        if (logits_read(&measure->against, other) != EXIT_OK)
            return EXIT_FAILED;
        if (measure->against.head.bits == 16)
            normalise(other, measure->vocabulary); /* what was rounded away */
        add_score(&measure->other, -other[next]);
        double divergence = 0;
        for (int64_t i = 0; i < measure->vocabulary; i++)
            divergence += exp(other[i]) * ((double)other[i] - row[i]);
        measure->divergence[measure->rows_done] = divergence > 0 ? divergence : 0; /* below 0 only by rounding */
        measure->agreed += most_likely(other, measure->vocabulary) == most_likely(row, measure->vocabulary);
    }
    measure->rows_done++;
    return EXIT_OK;
}

/* ---- Windows ------------------------------------------------------------------------------------------------------ */

/* The first token of a window that is scored: windows overlap, and each token but the text's first is scored once. */
static int64_t first_scored(const measure *measure, int64_t start)
{
    return start ? start + measure->overlap : 1;
}

static void show_state(const measure *measure)
{
    if (!arguments_quiet(measure->arguments) && isatty(STDERR_FILENO))
        fprintf(stderr, "\r%lld of %lld tokens, perplexity %.4f\033[K", (long long)measure->rows_done, (long long)measure->rows,
                exp(measure->own.sum / (double)measure->rows_done));
}

static int score_window(measure *measure, int64_t start, int64_t end)
{
    int64_t rows[ROWS_MOST];
    int64_t scored = first_scored(measure, start);
    const int32_t *ids = measure->text.ids;
    if (qm_session_rewind(measure->session, 0) < 0)
        return complain_library();
    /* The logits after token i - 1 predict token i; the last token of the window predicts none of it. */
    if (scored - 1 > start && qm_prefill(measure->session, ids + start, scored - 1 - start) < 0)
        return complain_library();
    for (int64_t at = scored - 1; at < end - 1;) {
        int64_t count = end - 1 - at < measure->logits_capacity ? end - 1 - at : measure->logits_capacity;
        for (int64_t i = 0; i < count; i++)
            rows[i] = i;
        if (qm_prefill_rows(measure->session, ids + at, count, rows, count, measure->logits) < 0)
            return complain_library();
        for (int64_t i = 0; i < count; i++) {
            if (score_row(measure, measure->logits + i * measure->vocabulary, ids[at + 1 + i]) != EXIT_OK)
                return EXIT_FAILED;
        }
        at += count;
        show_state(measure);
    }
    return EXIT_OK;
}

static int score_text(measure *measure)
{
    int code = EXIT_OK;
    for (int64_t start = 0; code == EXIT_OK; start += measure->window - measure->overlap) {
        int64_t end = start + measure->window < measure->text.count ? start + measure->window : measure->text.count;
        code = score_window(measure, start, end);
        if (end == measure->text.count)
            break;
    }
    if (!arguments_quiet(measure->arguments) && isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
    return code;
}

/* ---- Results ------------------------------------------------------------------------------------------------------ */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of sorted values, the one that a `part` of them do not exceed. */
static double quantile(const double *sorted, int64_t count, double part)
{
    int64_t index = (int64_t)ceil(part * (double)count) - 1;
    return sorted[index < 0 ? 0 : index];
}

static double perplexity_of(const measure *measure, const score *score)
{
    return exp(score->sum / (double)measure->rows);
}

/* Standard error of the perplexity: that of the mean, times the derivative of exp. */
static double error_of(const measure *measure, const score *score)
{
    double count = (double)measure->rows, mean = score->sum / count;
    double variance = score->sum_squares / count - mean * mean;
    return variance > 0 ? exp(mean) * sqrt(variance / count) : 0;
}

static json_t *comparison(measure *measure)
{
    double sum = 0;
    qsort(measure->divergence, (size_t)measure->rows, sizeof *measure->divergence, compare_doubles);
    for (int64_t i = 0; i < measure->rows; i++)
        sum += measure->divergence[i];
    double saved = perplexity_of(measure, &measure->other);
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "file", measure->against.path, "perplexity", saved, "ratio",
                     perplexity_of(measure, &measure->own) / saved, "kl_mean", sum / (double)measure->rows, "kl_median",
                     quantile(measure->divergence, measure->rows, 0.5), "kl_999",
                     quantile(measure->divergence, measure->rows, 0.999), "kl_max", measure->divergence[measure->rows - 1],
                     "top1_agreement", (double)measure->agreed / (double)measure->rows);
}

static double real(const json_t *object, const char *key)
{
    return json_real_value(json_object_get(object, key));
}

static int print_results(measure *measure)
{
    double perplexity = perplexity_of(measure, &measure->own), error = error_of(measure, &measure->own);
    double bits_per_byte = measure->bytes > 0 ? measure->own.sum / log(2) / (double)measure->bytes : 0;
    json_t *against = measure->against.file ? comparison(measure) : NULL;
    if (arguments_flag(measure->arguments, "json")) {
        json_t *all = json_pack("{s:I, s:I, s:I, s:f, s:f}", "tokens_scored", (json_int_t)measure->rows, "window",
                                (json_int_t)measure->window, "overlap", (json_int_t)measure->overlap, "perplexity", perplexity,
                                "error", error);
        if (bits_per_byte > 0)
            json_object_set_new(all, "bits_per_byte", json_real(bits_per_byte));
        if (against)
            json_object_set_new(all, "against", against);
        return print_json(all);
    }
    printf("perplexity        %.4f +- %.4f over %lld tokens (windows of %lld, %lld of them lead-up)\n", perplexity, error,
           (long long)measure->rows, (long long)measure->window, (long long)measure->overlap);
    if (bits_per_byte > 0)
        printf("bits per byte     %.4f\n", bits_per_byte);
    if (against) {
        printf("perplexity saved  %.4f, this is %.5f of it\n", real(against, "perplexity"), real(against, "ratio"));
        printf("KL divergence     mean %.6f, median %.6f, 99.9 %% under %.6f, most %.6f\n", real(against, "kl_mean"),
               real(against, "kl_median"), real(against, "kl_999"), real(against, "kl_max"));
        printf("same first choice %.3f %%\n", real(against, "top1_agreement") * 100);
        json_decref(against);
    }
    return EXIT_OK;
}

/* ---- The verb ----------------------------------------------------------------------------------------------------- */

static int read_flags(measure *measure)
{
    const arguments *arguments = measure->arguments;
    const char *against = arguments_flag(arguments, "against");
    int code = arguments_number(arguments, "window", 2, 1 << 24, 1024, &measure->window);
    if (code == EXIT_OK)
        code = arguments_number(arguments, "overlap", 1, measure->window - 1, measure->window / 2, &measure->overlap);
    if (code == EXIT_OK)
        code = arguments_number(arguments, "tokens", 2, INT32_MAX, INT32_MAX, &measure->limit);
    if (code == EXIT_OK && against &&
        (arguments_flag(arguments, "window") || arguments_flag(arguments, "overlap") || arguments_flag(arguments, "file") ||
         arguments_flag(arguments, "special")))
        return arguments_usage(arguments, "--against takes text and windows from the saved file");
    if (code == EXIT_OK && against) {
        code = logits_open(&measure->against, against);
        measure->window = measure->against.head.window;
        measure->overlap = measure->against.head.overlap;
    }
    char number[32];
    snprintf(number, sizeof number, "%lld", (long long)measure->window + 1);
    if (code == EXIT_OK)
        code = arguments_default(measure->arguments, "answer-tokens", "1");
    return code == EXIT_OK ? arguments_default(measure->arguments, "context", number) : code;
}

/* The text's tokens: from the saved file, or the given text's. */
static int read_text(measure *measure)
{
    logits_file *against = &measure->against;
    if (against->file) {
        if (against->head.vocabulary != measure->vocabulary)
            return complain("%s is of a model with %lld tokens; this one has %lld", against->path,
                            (long long)against->head.vocabulary, (long long)measure->vocabulary);
        measure->text.ids = against->tokens;
        measure->text.count = against->head.tokens;
        against->tokens = NULL;
        for (int64_t i = 0; i < measure->text.count; i++) {
            if (measure->text.ids[i] < 0 || measure->text.ids[i] >= measure->vocabulary)
                return complain("%s is damaged: token %lld is %d", against->path, (long long)i, (int)measure->text.ids[i]);
        }
        return EXIT_OK;
    }
    char *text;
    int64_t length;
    int special, code = read_prompt(measure->arguments, &text, &length);
    if (code == EXIT_OK)
        code = arguments_choice(measure->arguments, "special", "none|user|all", QM_SPECIAL_NONE, &special);
    if (code == EXIT_OK)
        code = tokens_append(&measure->text, measure->model, text, length, special);
    measure->bytes = length;
    free(text);
    if (code == EXIT_OK && measure->text.count > measure->limit) {
        measure->text.count = measure->limit;
        measure->bytes = qm_detokenize(measure->model, measure->text.ids, measure->limit, 0, NULL, 0);
    }
    return code == EXIT_OK && measure->text.count < 2
               ? complain("the text has %lld tokens; at least 2 are needed", (long long)measure->text.count)
               : code;
}

/* Buffers and files, once the text is known. */
static int prepare(measure *measure)
{
    const char *save = arguments_flag(measure->arguments, "save");
    int choice;
    measure->rows = measure->text.count - 1;
    if (measure->against.file && measure->against.head.rows != measure->rows)
        return complain("%s is damaged: %lld rows for %lld tokens", measure->against.path, (long long)measure->against.head.rows,
                        (long long)measure->text.count);
    measure->logits_capacity = ROWS_BYTES / (int64_t)sizeof(float) / measure->vocabulary;
    measure->logits_capacity = measure->logits_capacity > ROWS_MOST ? ROWS_MOST
                               : measure->logits_capacity < 1       ? 1
                                                                    : measure->logits_capacity;
    measure->logits = allocate(measure->logits_capacity * measure->vocabulary, sizeof *measure->logits);
    if (measure->against.file) {
        measure->other_row = allocate(measure->vocabulary, sizeof *measure->other_row);
        measure->divergence = allocate(measure->rows, sizeof *measure->divergence);
    }
    int code = arguments_choice(measure->arguments, "bits", "16|32", 0, &choice);
    if (code != EXIT_OK || !save)
        return code;
    logits_head head = { .bits = choice ? 32 : 16,
                         .vocabulary = measure->vocabulary,
                         .tokens = measure->text.count,
                         .window = measure->window,
                         .overlap = measure->overlap,
                         .rows = measure->rows };
    return logits_create(&measure->save, save, &head, measure->text.ids);
}

static int perplexity(arguments *arguments)
{
    measure measure = { .arguments = arguments };
    int code = read_flags(&measure);
    arguments->progress_stage = "load";
    if (code == EXIT_OK)
        code = load_model(arguments, &measure.model);
    if (code == EXIT_OK) {
        measure.vocabulary = model_number(measure.model, "vocabulary");
        code = read_text(&measure);
    }
    if (code == EXIT_OK && qm_session_new(measure.model, arguments->options, &measure.session) < 0)
        code = complain_library();
    if (code == EXIT_OK)
        code = prepare(&measure);
    if (code == EXIT_OK)
        code = score_text(&measure);
    if (code == EXIT_OK)
        code = print_results(&measure);
    if (logits_close(&measure.save) != EXIT_OK)
        code = EXIT_FAILED;
    logits_close(&measure.against);
    free(measure.text.ids);
    free(measure.logits);
    free(measure.other_row);
    free(measure.divergence);
    qm_session_free(&measure.session);
    qm_model_free(&measure.model);
    return code;
}

const verb verb_perplexity = {
    .name = "perplexity",
    .words = "",
    .summary = "how well a model predicts a text",
    .detail = "Reads a text in overlapping windows and prints the perplexity: exp of the mean\n"
              "negative log probability of its tokens, each scored once. --save keeps what the\n"
              "model said; --against compares another model, or other settings, with that:\n"
              "KL divergence (mean, tail), how often the first choice is the same.",
    .flags = flags,
    .scopes = SCOPE_MODEL | SCOPE_SESSION,
    .run = perplexity,
};
