/* qwenmoe bench: how fast prompts are computed and tokens generated. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_splits.h"
#include "common.h"
#include "terminal.h"
#include "verbs.h"

#define LIST_MOST 16 /* values of one list flag */
#define SEQUENCES_MOST 256

static const flag flags[] = {
    { "prompt", 'p', "N,...", "prompt sizes in tokens (default 256,1024; 0: none)" },
    { "generate", 'n', "N", "tokens to generate (default 64; 0: none)" },
    { "depth", 'd', "N,...", "tokens that the session holds before (default 0)" },
    { "sequences", 'S', "N,...", "sessions that generate together (default 1)" },
    { "repeat", 'r', "N", "runs of each, after one to warm up (default 3)" },
    { "cancel", 0, NULL, "measure, too, how soon a prompt ends that is cancelled half way" },
    { "all-splits", 0, NULL, "each way for several devices (option devices) to share the model, measured and predicted" },
    { "tokenize", 0, "FILE", "measure the tokenizer on this text instead" },
    { "json", 'j', NULL, "print JSON" },
    { NULL, 0, NULL, NULL },
};

typedef struct numbers {
    int64_t at[LIST_MOST];
    int count;
} numbers;

/* Seconds of the runs of one measurement, in rising order when it is over. */
typedef struct runs {
    double seconds[100];
    int count;
} runs;

typedef struct bench {
    arguments *arguments;
    qm_model *model;
    numbers prompts, depths, sequences;
    int64_t generate, repeat;
    int32_t *text; /* tokens enough for the largest measurement */
    json_t *results;
    double load_seconds;
    double read_rate; /* bytes a second, as last measured; 0: the device does not tell */
} bench;

static int parse_numbers(const arguments *arguments, const char *name, const char *fallback, int64_t lowest, int64_t highest,
                         numbers *out)
{
    const char *text = arguments_flag(arguments, name);
    const char *at = text ? text : fallback;
    out->count = 0;
    for (;; at++) {
        char *end;
        long long value = strtoll(at, &end, 10);
        if (end == at || (*end && *end != ',') || value < lowest || value > highest || out->count == LIST_MOST)
            return arguments_usage(arguments, "--%s is '%s', not at most %d whole numbers of %lld..%lld with commas between",
                                   name, text, LIST_MOST, (long long)lowest, (long long)highest);
        out->at[out->count++] = value;
        at = end;
        if (!*at)
            return EXIT_OK;
    }
}

static int64_t largest(const numbers *list)
{
    int64_t most = 0;
    for (int i = 0; i < list->count; i++)
        most = list->at[i] > most ? list->at[i] : most;
    return most;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_line(const bench *bench, const char *test, int64_t size, int64_t depth, int64_t sequences, const double *values,
                       const char *unit, double rate)
{
    if (arguments_flag(bench->arguments, "json"))
        return;
    printf("%-12s%8lld%9lld%11lld%12.1f%12.1f%12.1f  %s", test, (long long)size, (long long)depth, (long long)sequences,
           values[0], values[1], values[2], unit);
    if (rate > 0)
        printf(", %.1f GB/s", rate / 1e9);
    if (rate > 0 && bench->read_rate > 0)
        printf(" of %.1f: %.0f %%", bench->read_rate / 1e9, 100 * rate / bench->read_rate);
    printf("\n");
    fflush(stdout);
}

/* Adds one line: median, least and most of the runs, in `unit`. `amount` units of work were done in each; 0 reports milliseconds.
 * `moved` bytes of memory were read and written in each; 0: not counted. */
static void report(bench *bench, const char *test, int64_t size, int64_t depth, int64_t sequences, runs *runs, double amount,
                   const char *unit, double moved)
{
    int last = runs->count - 1;
    qsort(runs->seconds, (size_t)runs->count, sizeof *runs->seconds, compare_doubles);
    double median = (runs->seconds[last / 2] + runs->seconds[runs->count / 2]) / 2, fastest = runs->seconds[0];
    double slowest = runs->seconds[last];
    double rates[3] = { amount / median, amount / slowest, amount / fastest };
    double times[3] = { median * 1e3, fastest * 1e3, slowest * 1e3 };
    const double *values = amount > 0 ? rates : times;
    print_line(bench, test, size, depth, sequences, values, unit, moved / median);
    json_t *line = json_pack("{s:s, s:I, s:I, s:I, s:s, s:f, s:f, s:f}", "test", test, "size", (json_int_t)size, "depth",
                             (json_int_t)depth, "sequences", (json_int_t)sequences, "unit", unit, "median", values[0], "min",
                             values[1], "max", values[2]);
    if (moved > 0)
        json_object_set_new(line, "bytes_per_second", json_real(moved / median));
    if (moved > 0 && bench->read_rate > 0)
        json_object_set_new(line, "share_of_read_rate", json_real(moved / median / bench->read_rate));
    json_array_append_new(bench->results, line);
}

static void print_head(const bench *bench)
{
    if (!arguments_flag(bench->arguments, "json"))
        printf("%-12s%8s%9s%11s%12s%12s%12s  %s\n", "test", "size", "depth", "sequences", "median", "min", "max", "unit");
}

/* ---- Prompts and generation --------------------------------------------------------------------------------------- */

/* A copy of the base session computes the prompt. The base stays as it is: going back is not free for a recurrent state. */
static int measure_prompt(bench *bench, qm_session *base, int64_t depth, int64_t size, double *seconds)
{
    runs runs = { .count = 0 };
    for (int64_t run = -1; run < bench->repeat; run++) {
        qm_session *session = NULL;
        if (qm_session_fork(base, &session) < 0)
            return complain_library();
        double start = terminal_seconds();
        int32_t code = qm_prefill(session, bench->text + depth, size);
        double took = terminal_seconds() - start;
        qm_session_free(&session);
        if (code < 0)
            return complain_library();
        if (run >= 0)
            runs.seconds[runs.count++] = took;
    }
    report(bench, "prompt", size, depth, 1, &runs, (double)size, "tokens/s", 0);
    *seconds = runs.seconds[0];
    return EXIT_OK;
}

/* Takes the text as it comes. */
static int32_t wait_to_end(qm_job *job)
{
    int32_t kind, code;
    char piece[256];
    while ((code = qm_job_wait(job, -1)) == QM_JOB_RUNNING)
        qm_job_read(job, piece, sizeof piece, &kind);
    return code;
}

/* From the submission of the prompt to the first token of the answer. */
static int measure_first(bench *bench, qm_session *base, int64_t depth, int64_t size)
{
    runs runs = { .count = 0 };
    for (int64_t run = 0; run < bench->repeat; run++) {
        qm_session *session = NULL;
        qm_job *job = NULL;
        double seconds = 0;
        int32_t code = qm_session_fork(base, &session);
        if (code >= 0)
            code = qm_session_set(session, "answer-tokens", "1");
        if (code >= 0)
            code = qm_submit_generate(session, bench->text + depth, size, &job);
        if (code >= 0)
            code = wait_to_end(job);
        if (code >= 0)
            code = qm_job_number(job, "seconds_first", &seconds);
        if (code < 0)
            complain_library();
        qm_job_free(&job);
        qm_session_free(&session);
        if (code < 0)
            return EXIT_FAILED;
        runs.seconds[runs.count++] = seconds;
    }
    report(bench, "first token", size, depth, 1, &runs, 0, "ms", 0);
    return EXIT_OK;
}

/* From the wish to cancel a prompt, when half of `seconds` has passed, to the end of its job. */
static int measure_cancel(bench *bench, qm_session *base, int64_t depth, int64_t size, double seconds)
{
    runs runs = { .count = 0 };
    for (int64_t run = 0; run < bench->repeat; run++) {
        qm_session *session = NULL;
        qm_job *job = NULL;
        double start = terminal_seconds(), wish = start;
        int32_t code = qm_session_fork(base, &session);
        if (code >= 0)
            code = qm_submit_prefill(session, bench->text + depth, size, &job);
        while (code >= 0 && terminal_seconds() - start < seconds / 2)
            continue;
        wish = terminal_seconds();
        if (code >= 0)
            code = qm_job_cancel(job);
        if (code >= 0)
            code = wait_to_end(job);
        if (code < 0 && code != QM_ERROR_CANCELLED)
            complain_library();
        runs.seconds[runs.count++] = terminal_seconds() - wish;
        qm_job_free(&job);
        qm_session_free(&session);
        if (code < 0 && code != QM_ERROR_CANCELLED)
            return EXIT_FAILED;
    }
    report(bench, "cancel", size, depth, 1, &runs, 0, "ms", 0);
    return EXIT_OK;
}

/* One run: `count` copies of the base session generate `generate` tokens each, together. */
static int generate_together(bench *bench, qm_session *base, int64_t depth, int count, double *took)
{
    qm_session *sessions[SEQUENCES_MOST] = { NULL };
    qm_job *jobs[SEQUENCES_MOST] = { NULL };
    char tokens[32];
    int32_t code = QM_OK;
    snprintf(tokens, sizeof tokens, "%lld", (long long)bench->generate);
    for (int i = 0; i < count && code >= 0; i++) {
        code = qm_session_fork(base, &sessions[i]);
        if (code >= 0)
            code = qm_session_set(sessions[i], "answer-tokens", tokens);
        if (code >= 0)
            code = qm_session_set(sessions[i], "ignore-end", "1");
        if (code >= 0)
            code = qm_prefill(sessions[i], bench->text + depth, 1);
    }
    double start = terminal_seconds();
    for (int i = 0; i < count && code >= 0; i++)
        code = qm_submit_generate(sessions[i], NULL, 0, &jobs[i]);
    for (int i = 0; i < count && code >= 0; i++)
        code = wait_to_end(jobs[i]);
    *took = terminal_seconds() - start;
    if (code < 0)
        complain_library();
    for (int i = 0; i < count; i++) {
        qm_job_free(&jobs[i]);
        qm_session_free(&sessions[i]);
    }
    return code < 0 ? EXIT_FAILED : EXIT_OK;
}

/* Bytes that `count` sessions move when each generates so many tokens behind `depth` others. How many different experts they
 * choose is taken as if at random: of n experts, one that a token chooses with probability p is read with 1 - (1 - p)^count. */
static double bytes_moved(const bench *bench, int64_t depth, int count)
{
    double experts = (double)model_number(bench->model, "experts"), used = (double)model_number(bench->model, "experts_used");
    double chosen = (double)model_number(bench->model, "expert_bytes"), none = 1;
    double held = (double)depth + 1 + (double)(bench->generate - 1) / 2; /* on average, the first token is computed before */
    for (int i = 0; i < count; i++)
        none *= experts > 0 ? 1 - used / experts : 1;
    double step = (double)model_number(bench->model, "step_bytes") + (used > 0 ? chosen * experts / used * (1 - none) : 0);
    double session = (double)model_number(bench->model, "state_bytes") + held * (double)model_number(bench->model, "held_bytes");
    return (double)bench->generate * (step + count * session);
}

/* Anew for each line, since on a machine that others use it changes from minute to minute. */
static void measure_read_rate(bench *bench)
{
    int64_t rate;
    bench->read_rate = qm_model_number(bench->model, "read_rate", &rate) >= 0 ? (double)rate : 0;
}

static int measure_generate(bench *bench, qm_session *base, int64_t depth, int count)
{
    runs runs = { .count = 0 };
    measure_read_rate(bench);
    for (int64_t run = -1; run < bench->repeat; run++) {
        double took;
        if (generate_together(bench, base, depth, count, &took) != EXIT_OK)
            return EXIT_FAILED;
        if (run >= 0)
            runs.seconds[runs.count++] = took;
    }
    report(bench, "generate", bench->generate, depth, count, &runs, (double)bench->generate * count, "tokens/s",
           bytes_moved(bench, depth, count));
    return EXIT_OK;
}

static int measure_depth(bench *bench, qm_session *base, int64_t depth)
{
    int code = EXIT_OK;
    if (depth > qm_session_length(base) &&
        qm_prefill(base, bench->text + qm_session_length(base), depth - qm_session_length(base)) < 0)
        return complain_library();
    for (int i = 0; i < bench->prompts.count && code == EXIT_OK; i++) {
        if (bench->prompts.at[i] == 0)
            continue;
        double seconds = 0;
        code = measure_prompt(bench, base, depth, bench->prompts.at[i], &seconds);
        if (code == EXIT_OK && arguments_flag(bench->arguments, "cancel"))
            code = measure_cancel(bench, base, depth, bench->prompts.at[i], seconds);
        if (code == EXIT_OK)
            code = measure_first(bench, base, depth, bench->prompts.at[i]);
    }
    for (int i = 0; i < bench->sequences.count && bench->generate && code == EXIT_OK; i++)
        code = measure_generate(bench, base, depth, (int)bench->sequences.at[i]);
    return code;
}

static int measure_model(bench *bench)
{
    qm_session *base = NULL;
    int code = EXIT_OK;
    if (qm_session_new(bench->model, bench->arguments->options, &base) < 0)
        return complain_library();
    print_head(bench);
    /* The smallest unmeasured depth each time, since a session only grows. */
    for (int64_t done = -1; code == EXIT_OK;) {
        int64_t next = INT64_MAX;
        for (int i = 0; i < bench->depths.count; i++)
            next = bench->depths.at[i] > done && bench->depths.at[i] < next ? bench->depths.at[i] : next;
        if (next == INT64_MAX)
            break;
        code = measure_depth(bench, base, next);
        done = next;
    }
    qm_session_free(&base);
    return code;
}

/* ---- The tokenizer ------------------------------------------------------------------------------------------------ */

static int measure_tokenizer(bench *bench, const char *path)
{
    char *text;
    int64_t length, count = 0;
    runs runs = { .count = 0 };
    if (read_file(path, &text, &length) != EXIT_OK)
        return EXIT_FAILED;
    int32_t *ids = allocate(length, sizeof *ids);
    for (int64_t run = -1; run < bench->repeat && count >= 0; run++) {
        double start = terminal_seconds();
        count = qm_tokenize(bench->model, text, length, QM_SPECIAL_NONE, ids, length);
        if (run >= 0)
            runs.seconds[runs.count++] = terminal_seconds() - start;
    }
    if (count < 0) {
        complain_library();
    } else {
        print_head(bench);
        report(bench, "tokenize", length, 0, 1, &runs, (double)length / 1e6, "MB/s", 0);
    }
    free(ids);
    free(text);
    return count < 0 ? EXIT_FAILED : EXIT_OK;
}

/* ---- The verb ----------------------------------------------------------------------------------------------------- */

static int read_flags(bench *bench)
{
    const arguments *arguments = bench->arguments;
    int code = parse_numbers(arguments, "prompt", "256,1024", 0, 1 << 24, &bench->prompts);
    if (code == EXIT_OK)
        code = parse_numbers(arguments, "depth", "0", 0, 1 << 24, &bench->depths);
    if (code == EXIT_OK)
        code = parse_numbers(arguments, "sequences", "1", 1, SEQUENCES_MOST, &bench->sequences);
    if (code == EXIT_OK)
        code = arguments_number(arguments, "generate", 0, 1 << 20, 64, &bench->generate);
    if (code == EXIT_OK)
        code = arguments_number(arguments, "repeat", 1, 100, 3, &bench->repeat);
    return code;
}

/* A context with room for the largest measurement, the same seed each time, and text that is the same each time: ids from a
 * linear congruential sequence (Knuth's MMIX constants), since what the tokens are hardly matters but must not be all one. */
static int prepare(bench *bench, int64_t *needed)
{
    int64_t work = largest(&bench->prompts) > bench->generate ? largest(&bench->prompts) + 1 : bench->generate + 1;
    char number[32];
    *needed = largest(&bench->depths) + work + 1;
    snprintf(number, sizeof number, "%lld", (long long)*needed);
    int code = arguments_default(bench->arguments, "context", number);
    if (code == EXIT_OK)
        code = arguments_default(bench->arguments, "answer-tokens", "1");
    if (code == EXIT_OK)
        code = arguments_default(bench->arguments, "seed", "1");
    snprintf(number, sizeof number, "%lld", (long long)largest(&bench->sequences));
    if (code == EXIT_OK && qm_options_set(bench->arguments->options, "sequences", number) < 0)
        code = complain_library();
    return code;
}

static void make_text(bench *bench, int64_t count)
{
    uint64_t state = 1;
    int64_t vocabulary = model_number(bench->model, "vocabulary");
    bench->text = allocate(count, sizeof *bench->text);
    for (int64_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        bench->text[i] = (int32_t)((int64_t)(state >> 33) % (vocabulary > 0 ? vocabulary : 1));
    }
}

static int finish(bench *bench)
{
    char file[1024], isa[64], architecture[64];
    model_text(bench->model, "file", file, sizeof file);
    model_text(bench->model, "isa", isa, sizeof isa);
    model_text(bench->model, "architecture", architecture, sizeof architecture);
    int64_t parameters = model_number(bench->model, "parameters"), bytes = model_number(bench->model, "file_bytes");
    if (arguments_flag(bench->arguments, "json"))
        return print_json(json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:f, s:f, s:O}", "version", qm_version(), "file", file,
                                    "architecture", architecture, "isa", isa, "parameters", (json_int_t)parameters, "file_bytes",
                                    (json_int_t)bytes, "load_seconds", bench->load_seconds, "read_rate", bench->read_rate,
                                    "results", bench->results));
    printf("\n%s: %s, %.1f M parameters, %.1f MiB; ", file, architecture, (double)parameters / 1e6, (double)bytes / 1048576);
    if (arguments_flag(bench->arguments, "tokenize"))
        printf("vocabulary loaded in %.1f ms\n", bench->load_seconds * 1e3);
    else
        printf("kernels %s; loaded in %.1f ms\n", isa, bench->load_seconds * 1e3);
    return EXIT_OK;
}

static int run_bench(arguments *arguments)
{
    bench bench = { .arguments = arguments, .results = json_array() };
    const char *text_file = arguments_flag(arguments, "tokenize");
    int64_t needed = 0;
    int code = arguments->word_count ? arguments_usage(arguments, "bench takes no words") : read_flags(&bench);
    if (code == EXIT_OK && arguments_flag(arguments, "all-splits")) {
        json_decref(bench.results);
        return bench_splits(arguments, largest(&bench.prompts), bench.generate);
    }
    if (code == EXIT_OK && !text_file)
        code = prepare(&bench, &needed);
    arguments->progress_stage = "load";
    double start = terminal_seconds();
    if (code == EXIT_OK)
        code = text_file ? load_vocabulary(arguments, &bench.model) : load_model(arguments, &bench.model);
    bench.load_seconds = terminal_seconds() - start;
    if (code == EXIT_OK) {
        make_text(&bench, needed);
        code = text_file ? measure_tokenizer(&bench, text_file) : measure_model(&bench);
    }
    if (code == EXIT_OK)
        code = finish(&bench);
    free(bench.text);
    qm_model_free(&bench.model);
    json_decref(bench.results);
    return code;
}

const verb verb_bench = {
    .name = "bench",
    .words = "",
    .summary = "measure speed",
    .detail = "Measures how fast prompts are computed (\"prompt\"), how long the first token of\n"
              "an answer takes (\"first token\") and how fast tokens are generated (\"generate\"),\n"
              "at each depth: with that many tokens in the session before. Each is run once to\n"
              "warm up, then measured; median, least and most of the runs are printed.\n"
              "\n"
              "Generating, weights, recurrent state, keys and values pass through the memory:\n"
              "that many GB/s, of those that the same threads read when they do nothing else.",
    .flags = flags,
    .scopes = SCOPE_ALL,
    .run = run_bench,
};
