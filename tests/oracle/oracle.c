/* oracle MODEL.gguf EXPECT.gguf: compares a model's logits with those of its reference implementation.
 *
 * Prints the relative error (norm of the difference over norm) of each prompt's logits, computed at once, in chunks of odd sizes
 * and token by token (with --singly N only those of at most N tokens; with --longest N no others at all), the largest of these, and how many tokens of the greedy
 * continuation are the same. Exits with 1 on a miss.
 *
 * EXPECT holds short.tokens, short.logits (of every row), short.greedy, long.tokens, long.rows, long.logits (of those rows), and,
 * if it was made from a multi-token-prediction block, mtp.rows and mtp.logits: row r predicts from the hidden state of position
 * r and token r + 1 of long.tokens. What is absent is not compared. */
#include <math.h>

#include "expect.h"
#include "qwenmoe.h"

typedef struct prompt {
    const char *name;
    int32_t *tokens;
    int64_t count;
    int64_t *rows;  /* whose logits are expected, ascending */
    int64_t row_count;
    float *logits;  /* [row_count][vocabulary] */
} prompt;

static qm_model *model;
static qm_options *options;
static int64_t vocabulary;
static int64_t singly = INT64_MAX; /* tokens of the longest prompt that is also computed token by token */
static int64_t longest = INT64_MAX; /* tokens of the longest prompt that is computed at all */
static double largest; /* error so far */

static int32_t complain(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, qm_error_message());
    return -1;
}

static double relative(double difference, double norm)
{
    double error = sqrt(difference / (norm > 0 ? norm : 1));
    return error == error ? error : INFINITY; /* NaN counts as infinitely wrong */
}

/* Prints the relative error of all rows together, and of the worst row: a single row also shows the reference's own rounding
 * (its chunked delta rule loses most on the last rows of a chunk), so it is the whole that is judged. */
static void compare_rows(const float *got, const float *wanted, int64_t rows)
{
    double difference = 0, norm = 0, worst_row = 0;
    for (int64_t r = 0; r < rows; r++) {
        double row_difference = 0, row_norm = 0;
        for (int64_t i = r * vocabulary; i < (r + 1) * vocabulary; i++) {
            row_difference += ((double)got[i] - wanted[i]) * ((double)got[i] - wanted[i]);
            row_norm += (double)wanted[i] * wanted[i];
        }
        worst_row = fmax(worst_row, relative(row_difference, row_norm));
        difference += row_difference;
        norm += row_norm;
    }
    double whole = relative(difference, norm);
    largest = fmax(largest, whole);
    printf(" %.2e (worst row %.2e)", whole, worst_row);
}

static bool read_prompt(expect *e, prompt *p)
{
    char name[32];
    int64_t count = 0, listed = 0;
    snprintf(name, sizeof name, "%s.tokens", p->name);
    p->tokens = expect_ints(e, name, &p->count);
    snprintf(name, sizeof name, "%s.logits", p->name);
    p->logits = expect_floats(e, name, &count);
    if (!p->tokens || !p->logits)
        return false;
    snprintf(name, sizeof name, "%s.rows", p->name);
    int32_t *rows = expect_ints(e, name, &listed);
    p->row_count = rows ? listed : p->count;
    p->rows = malloc((size_t)(p->row_count + 1) * sizeof *p->rows);
    for (int64_t i = 0; i < p->row_count; i++)
        p->rows[i] = rows ? rows[i] : i;
    free(rows);
    if (count == p->row_count * vocabulary)
        return true;
    fprintf(stderr, "%s has %lld values; the model's vocabulary asks for %lld x %lld\n", name, (long long)count,
            (long long)p->row_count, (long long)vocabulary);
    return false;
}

static void free_prompt(prompt *p)
{
    free(p->tokens);
    free(p->rows);
    free(p->logits);
}

/* ---- three ways to compute a prompt; each fills logits[row_count][vocabulary] ---- */

static int32_t at_once(qm_session *session, const prompt *p, float *logits)
{
    return qm_prefill_rows(session, p->tokens, p->count, p->rows, p->row_count, logits);
}

static int32_t in_odd_chunks(qm_session *session, const prompt *p, float *logits)
{
    static const int64_t sizes[] = { 1, 7, 64, 3, 33, 2, 129, 5 };
    int64_t rows[4096];
    int32_t code = 0;
    for (int64_t start = 0, row = 0, i = 0; start < p->count && code >= 0; i++) {
        int64_t size = sizes[i % 8] < p->count - start ? sizes[i % 8] : p->count - start, here = 0;
        for (; row + here < p->row_count && p->rows[row + here] < start + size; here++)
            rows[here] = p->rows[row + here] - start;
        code = qm_prefill_rows(session, p->tokens + start, size, rows, here, logits + row * vocabulary);
        row += here;
        start += size;
    }
    return code;
}

static int32_t token_by_token(qm_session *session, const prompt *p, float *logits)
{
    int32_t code = 0;
    for (int64_t i = 0, row = 0; i < p->count && code >= 0; i++) {
        code = qm_decode(&session, p->tokens + i, 1);
        if (code >= 0 && row < p->row_count && p->rows[row] == i)
            memcpy(logits + row++ * vocabulary, qm_logits(session), (size_t)vocabulary * sizeof *logits);
    }
    return code;
}

static int32_t compare_prompt(const prompt *p)
{
    static const struct {
        const char *name;
        int32_t (*compute)(qm_session *, const prompt *, float *);
    } ways[] = { { "at once", at_once }, { "odd chunks", in_odd_chunks }, { "token by token", token_by_token } };
    float *logits = malloc((size_t)(p->row_count * vocabulary) * sizeof *logits);
    int32_t code = logits ? 0 : -1;
    printf("%-5s %4lld tokens, %3lld rows:", p->name, (long long)p->count, (long long)p->row_count);
    for (size_t i = 0; i < sizeof ways / sizeof *ways && code >= 0; i++) {
        qm_session *session = NULL;
        if (ways[i].compute == token_by_token && p->count > singly)
            continue;
        if (qm_session_new(model, options, &session) < 0 || ways[i].compute(session, p, logits) < 0)
            code = complain(ways[i].name);
        else {
            printf("  %s", ways[i].name);
            compare_rows(logits, p->logits, p->row_count);
        }
        qm_session_free(&session);
    }
    printf("\n");
    free(logits);
    return code;
}

/* ---- greedy continuation, multi-token prediction ---- */

static int32_t likeliest(const float *logits)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocabulary; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

/* Returns how many tokens differ, counted from the first that does; negative on failure. */
static int64_t compare_greedy(const prompt *p, const int32_t *greedy, int64_t count)
{
    qm_session *session = NULL;
    int64_t same = 0;
    int32_t code = qm_session_new(model, options, &session);
    if (code >= 0)
        code = qm_prefill(session, p->tokens, p->count);
    for (; same < count && code >= 0; same++) {
        int32_t token = likeliest(qm_logits(session));
        if (token != greedy[same])
            break;
        code = qm_decode(&session, &token, 1);
    }
    qm_session_free(&session);
    if (code < 0)
        return complain("greedy");
    printf("greedy %lld / %lld\n", (long long)same, (long long)count);
    return count - same;
}

static int32_t compare_mtp(expect *e, const prompt *p)
{
    int64_t row_count = 0, count = 0, held = 0;
    int32_t *rows = expect_ints(e, "mtp.rows", &row_count);
    float *wanted = expect_floats(e, "mtp.logits", &count), *logits = malloc((size_t)count * sizeof *logits + 1);
    qm_session *session = NULL;
    int32_t code = rows && wanted && logits && count == row_count * vocabulary ? 0 : -1;
    if (code < 0)
        fprintf(stderr, "mtp.rows and mtp.logits do not fit each other or the vocabulary\n");
    if (code >= 0 && qm_session_new(model, options, &session) < 0)
        code = complain("mtp");
    for (int64_t i = 0; i < row_count && code >= 0; i++) {
        if (rows[i] < held - 1 || rows[i] + 1 >= p->count) {
            fprintf(stderr, "mtp.rows[%lld] is %d\n", (long long)i, rows[i]);
            code = -1;
        } else if (qm_prefill(session, p->tokens + held, rows[i] + 1 - held) < 0 ||
                   qm_mtp_logits(session, p->tokens[rows[i] + 1], logits + i * vocabulary) < 0) {
            code = complain("mtp");
        }
        held = rows[i] + 1;
    }
    if (code >= 0) {
        printf("mtp %lld rows:", (long long)row_count);
        compare_rows(logits, wanted, row_count);
        printf("\n");
    }
    qm_session_free(&session);
    free(rows);
    free(wanted);
    free(logits);
    return code;
}

/* ---- the program ---- */

static bool set_option(const char *name, const char *value)
{
    return qm_options_set(options, name, value) >= 0 || complain(name) >= 0;
}

static bool has_tensor(expect *e, const char *name)
{
    uint32_t type;
    int64_t count;
    return expect_find(e, name, &type, &count) != NULL;
}

static int32_t compare(expect *e, const char *path)
{
    prompt small = { .name = "short" }, large = { .name = "long" };
    int64_t count = 0, missed = 0;
    char context[24];
    if (qm_model_load(path, options, &model) < 0)
        return complain("loading");
    qm_model_number(model, "vocabulary", &vocabulary);
    bool has_small = read_prompt(e, &small), has_large = read_prompt(e, &large);
    int32_t *greedy = expect_ints(e, "short.greedy", &count);
    int32_t code = has_small || has_large ? 0 : -1;
    has_large = has_large && large.count <= longest;
    if (code < 0)
        fprintf(stderr, "neither short.tokens and short.logits nor long.tokens and long.logits are there to compare with\n");
    int64_t most = small.count + count > large.count ? small.count + count : large.count;
    snprintf(context, sizeof context, "%lld", (long long)most);
    if (code >= 0 && (!set_option("answer-tokens", "0") || !set_option("context", context)))
        code = -1;
    if (code >= 0 && has_small)
        code = compare_prompt(&small);
    if (code >= 0 && has_large)
        code = compare_prompt(&large);
    if (code >= 0 && has_small && greedy)
        missed = compare_greedy(&small, greedy, count);
    if (code >= 0 && has_tensor(e, "mtp.logits") && has_large)
        code = compare_mtp(e, &large);
    free(greedy);
    free_prompt(&small);
    free_prompt(&large);
    qm_model_free(&model);
    return code < 0 || missed ? -1 : 0;
}

static int usage(void)
{
    fprintf(stderr, "usage: oracle MODEL.gguf EXPECT.gguf [--bound 1e-5] [--singly N] [--longest N] [--set OPTION=VALUE]...\n");
    return 2;
}

int main(int argc, char **argv)
{
    double bound = 1e-5;
    expect e;
    if (argc < 3 || qm_options_new(&options) < 0)
        return usage();
    bool good = set_option("kv-type", "f32");
    for (int i = 3; i + 1 < argc && good; i += 2) {
        char *value = strchr(argv[i + 1], '=');
        if (strcmp(argv[i], "--bound") == 0)
            bound = atof(argv[i + 1]);
        else if (strcmp(argv[i], "--singly") == 0)
            singly = atoll(argv[i + 1]);
        else if (strcmp(argv[i], "--longest") == 0)
            longest = atoll(argv[i + 1]);
        else if (strcmp(argv[i], "--set") == 0 && value)
            *value = 0, good = set_option(argv[i + 1], value + 1);
        else
            return usage();
    }
    good = expect_open(argv[2], &e) && good;
    if (good && has_tensor(&e, "mtp.logits"))
        good = set_option("mtp", "1");
    good = good && compare(&e, argv[1]) >= 0;
    if (good)
        printf("largest relative error %.2e, bound %.0e: %s\n", largest, bound, largest <= bound ? "ok" : "MISSED");
    expect_close(&e);
    qm_options_free(&options);
    return good && largest <= bound ? 0 : 1;
}
