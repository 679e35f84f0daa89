/* The sampler against probabilities that a plain sort and the C library's exp give. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/error.h"
#include "failing_alloc.h"
#include "run/candidates.h"
#include "run/random.h"
#include "run/sampler.h"

static void set(qmi_settings *settings, const char *name, const char *value)
{
    if (qmi_settings_set(settings, qmi_option_find(name), value) != QM_OK)
        fail_msg("%s", qmi_error_text());
}

/* Settings that change nothing: temperature 1, no filter. */
static qmi_settings plain(void)
{
    qmi_settings settings;
    qmi_settings_start(&settings, NULL);
    set(&settings, "temperature", "1");
    set(&settings, "top-k", "0");
    set(&settings, "top-p", "1");
    set(&settings, "seed", "42");
    return settings;
}

static qmi_sampler *made(const qmi_settings *settings, int32_t vocabulary)
{
    qmi_sampler *sampler = NULL;
    if (qmi_sampler_new(settings, vocabulary, &sampler) != QM_OK)
        fail_msg("%s", qmi_error_text());
    return sampler;
}

/* What a sampler of these settings takes at once. */
static int32_t choice(const qmi_settings *settings, const float *logits, int32_t vocabulary, const int32_t *history,
                      int64_t count)
{
    qmi_sampler *sampler = made(settings, vocabulary);
    int32_t token = qmi_sampler_choose(sampler, logits, history, count);
    assert_int_equal(qmi_sampler_choose(sampler, logits, history, count), token); /* nothing is left over from the first call */
    qmi_sampler_free(&sampler);
    assert_null(sampler);
    return token;
}

/* ---- the parts ---- */

static void random_numbers_are_the_published_ones(void **state)
{
    (void)state;
    qmi_random random = { { 1, 2, 3, 4 } };
    static const uint64_t stars[] = { 11520u, 0u, 1509978240u, 1215971899390074240u, 1216172134540287360u,
                                      607988272756665600u };
    for (int i = 0; i < 6; i++)
        assert_true(qmi_random_next(&random) == stars[i]);
    static const uint64_t mix[] = { 6457827717110365317u, 3203168211198807973u, 9817491932198370423u, 4593380528125082431u };
    qmi_random_start(&random, 1234567);
    for (int i = 0; i < 4; i++)
        assert_true(random.state[i] == mix[i]);
    double sum = 0;
    for (int i = 0; i < 100000; i++) {
        double value = qmi_random_unit(&random);
        assert_true(value >= 0 && value < 1);
        sum += value;
    }
    assert_true(fabs(sum / 100000 - 0.5) < 0.005); /* standard deviation 0.0009 */
}

static void weights_are_exponentials(void **state)
{
    (void)state;
    static float x[9001], weights[9001];
    for (int i = 0; i < 9001; i++)
        x[i] = 5.0f - (float)i / 100;
    qmi_candidates_weigh(x, 9001, 5.0f, 1.0f, weights);
    assert_true(weights[0] == 1.0f);
    for (int i = 0; i < 9001; i++) {
        double right = exp((double)(x[i] - 5.0f));
        if (x[i] - 5.0f > -80.0f ? fabs(weights[i] - right) > 3e-7 * right : weights[i] != 0)
            fail_msg("e^%g is %g", x[i] - 5.0, weights[i]);
    }
    float odd[3] = { NAN, -INFINITY, 5.0f };
    qmi_candidates_weigh(odd, 3, 5.0f, 1e30f, weights);
    assert_true(weights[0] == 0 && weights[1] == 0 && weights[2] == 1);
}

static int in_order(const void *a, const void *b)
{
    const qmi_candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Whole weights, so that sums are exact and the border is certain. */
static void prefix_is_that_of_a_sort(void **state)
{
    (void)state;
    static qmi_candidate sorted[5000], picked[5000];
    qmi_random random;
    qmi_random_start(&random, 5);
    for (int round = 0; round < 300; round++) {
        int count = 1 + (int)(qmi_random_next(&random) % (round % 2 ? 60 : 5000));
        int levels = round % 3 == 0 ? 3 : 1 + (int)(qmi_random_next(&random) % 3000);
        double total = 0;
        for (int i = 0; i < count; i++) {
            float logit = (float)(qmi_random_next(&random) % (unsigned)levels);
            if (round % 10 == 7)
                logit = (float)(round % 20 == 7 ? i : -i); /* already in order, or in the opposite one */
            sorted[i] = picked[i] = (qmi_candidate){ logit, logit + 10000, i };
            total += sorted[i].weight;
        }
        double share = round % 50 == 0 ? 0 : round % 50 == 1 ? 1 : qmi_random_unit(&random);
        double target = round % 50 == 2 ? total + 1 : floor(total * share);
        qsort(sorted, (size_t)count, sizeof *sorted, in_order);
        if (round % 4 == 3) { /* right at a border */
            target = 0;
            for (int i = 0; i < 1 + count / 3; i++)
                target += sorted[i].weight;
        }
        double sum = sorted[0].weight;
        int64_t expected = 1;
        while (expected < count && sum < target)
            sum += sorted[expected++].weight;
        assert_int_equal(qmi_candidates_prefix(picked, count, target), expected);
        qsort(picked, (size_t)expected, sizeof *picked, in_order);
        for (int64_t i = 0; i < expected; i++)
            assert_int_equal(picked[i].id, sorted[i].id);
    }
}

static void first_few_are_those_of_a_sort(void **state)
{
    (void)state;
    static float x[3000];
    static qmi_candidate sorted[3000], picked[1024];
    qmi_random random;
    qmi_random_start(&random, 6);
    for (int round = 0; round < 300; round++) {
        int count = 1 + (int)(qmi_random_next(&random) % 3000), finite = 0, k = 1 + (int)(qmi_random_next(&random) % 1024);
        for (int i = 0; i < count; i++) {
            x[i] = (float)(qmi_random_next(&random) % (round % 2 ? 40 : 1000000)) - 20;
            if (qmi_random_next(&random) % 16 == 0)
                x[i] = round % 4 < 2 ? -INFINITY : NAN;
            if (x[i] > -INFINITY)
                sorted[finite++] = (qmi_candidate){ x[i], 1, i };
        }
        qsort(sorted, (size_t)finite, sizeof *sorted, in_order);
        int64_t expected = finite < k ? finite : k;
        assert_int_equal(qmi_candidates_first(x, count, k, picked), expected);
        for (int64_t i = 0; i < expected; i++)
            assert_int_equal(picked[i].id, sorted[i].id);
        assert_int_equal(qmi_candidates_highest(x, count), finite ? sorted[0].id : 0);
    }
}

/* ---- greedy and odd logits ---- */

static void greedy_takes_the_highest(void **state)
{
    (void)state;
    qmi_settings settings = plain();
    set(&settings, "temperature", "0");
    set(&settings, "top-k", "20");
    float many[1000];
    for (int i = 0; i < 1000; i++)
        many[i] = (float)(i % 100);
    assert_int_equal(choice(&settings, many, 1000, NULL, 0), 99);
    many[998] = 99.5f;
    assert_int_equal(choice(&settings, many, 1000, NULL, 0), 998);
    assert_int_equal(choice(&settings, (float[]){ -3, -1, -1, -2 }, 4, NULL, 0), 1);
    assert_int_equal(choice(&settings, (float[]){ NAN, -5, NAN }, 3, NULL, 0), 1);
    assert_int_equal(choice(&settings, (float[]){ -0.0f, 0.0f }, 2, NULL, 0), 0);
}

static void odd_logits_give_a_token(void **state)
{
    (void)state;
    static const char *const filters[][3] = { { "0", "1", "0" }, { "2", "1", "0" }, { "0", "0.5", "0" }, { "0", "1", "0.5" },
                                             { "2", "0.5", "0.5" } };
    for (int i = 0; i < 5; i++) {
        qmi_settings settings = plain();
        set(&settings, "top-k", filters[i][0]);
        set(&settings, "top-p", filters[i][1]);
        set(&settings, "min-p", filters[i][2]);
        assert_int_equal(choice(&settings, (float[]){ NAN, NAN, NAN }, 3, NULL, 0), 0);
        assert_int_equal(choice(&settings, (float[]){ -INFINITY, NAN, -INFINITY }, 3, NULL, 0), 0);
        assert_int_equal(choice(&settings, (float[]){ 3, INFINITY, INFINITY }, 3, NULL, 0), 1);
        assert_int_equal(choice(&settings, (float[]){ NAN, -INFINITY, -3e38f }, 3, NULL, 0), 2);
        assert_int_equal(choice(&settings, (float[]){ -3e38f, 3e38f, NAN }, 3, NULL, 0), 1);
        set(&settings, "temperature", "1e-40");
        assert_int_equal(choice(&settings, (float[]){ 1, 2, 3 }, 3, NULL, 0), 2);
        assert_int_equal(choice(&settings, (float[]){ 7 }, 1, NULL, 0), 0);
    }
}

/* ---- filters, against probabilities worked out plainly ---- */

typedef struct filters {
    double temperature, top_p, min_p;
    int top_k;
} filters;

static void probabilities(const float *logits, int count, const filters *f, double *p)
{
    qmi_candidate *sorted = calloc((size_t)count, sizeof *sorted);
    double sum = 0, kept = 0, last = 0;
    int n = f->top_k > 0 && f->top_k < count ? f->top_k : count;
    for (int i = 0; i < count; i++) {
        sorted[i] = (qmi_candidate){ logits[i], 0, i };
        p[i] = 0;
    }
    qsort(sorted, (size_t)count, sizeof *sorted, in_order);
    for (int i = 0; i < n; i++)
        sum += p[sorted[i].id] = exp((sorted[i].logit - sorted[0].logit) / f->temperature);
    for (int i = 0; i < n; i++) {
        double *mine = &p[sorted[i].id];
        bool out = (i > 0 && last >= f->top_p * sum && f->top_p < 1) || *mine < f->min_p;
        last += *mine;
        if (out)
            *mine = 0;
        kept += *mine;
    }
    for (int i = 0; i < count; i++)
        p[i] /= kept;
    free(sorted);
}

/* Pearson's statistic of `draws` draws; its mean is the number of cells less one, its standard deviation sqrt(2 * that).
 * Cells in which fewer than 5 are expected are put together. */
static void compare_draws_of(int32_t (*next)(void *user), void *user, int count, const double *p, int draws)
{
    int *drawn = calloc((size_t)count, sizeof *drawn), cells = 0;
    double statistic = 0, rest_expected = 0, rest_drawn = 0;
    for (int i = 0; i < draws; i++)
        drawn[next(user)]++;
    for (int i = 0; i < count; i++) {
        if (p[i] == 0 && drawn[i])
            fail_msg("token %d was drawn %d times and should not have been", i, drawn[i]);
        double expected = p[i] * draws;
        if (expected < 5) {
            rest_expected += expected;
            rest_drawn += drawn[i];
            continue;
        }
        statistic += (drawn[i] - expected) * (drawn[i] - expected) / expected;
        cells++;
    }
    if (rest_expected >= 5) {
        statistic += (rest_drawn - rest_expected) * (rest_drawn - rest_expected) / rest_expected;
        cells++;
    }
    int freedom = cells > 1 ? cells - 1 : 1;
    if (statistic > freedom + 4 * sqrt(2.0 * freedom) + 4)
        fail_msg("chi-square %g with %d degrees of freedom", statistic, freedom);
    free(drawn);
}

typedef struct source {
    qmi_sampler *sampler;
    const float *logits;
    const qmi_filter *filter; /* NULL: all tokens are allowed */
    const qmi_pick *picks;    /* asked about first; NULL: not */
    int masks;                /* how often the mask was needed */
    const uint64_t *allowed;
} source;

static int32_t next_of(void *user)
{
    const source *from = user;
    return qmi_sampler_choose(from->sampler, from->logits, NULL, 0);
}

static void compare_draws(qmi_sampler *sampler, const float *logits, int count, const double *p, int draws)
{
    source from = { .sampler = sampler, .logits = logits };
    compare_draws_of(next_of, &from, count, p, draws);
}

static qmi_settings filtered(const filters *f)
{
    char text[4][32];
    qmi_settings settings = plain();
    snprintf(text[0], 32, "%g", f->temperature);
    snprintf(text[1], 32, "%d", f->top_k);
    snprintf(text[2], 32, "%g", f->top_p);
    snprintf(text[3], 32, "%g", f->min_p);
    set(&settings, "temperature", text[0]);
    set(&settings, "top-k", text[1]);
    set(&settings, "top-p", text[2]);
    set(&settings, "min-p", text[3]);
    return settings;
}

static void draws_follow_the_probabilities(void **state)
{
    (void)state;
    static const filters rows[] = {
        { 1, 1, 0, 0 },   { 0.7, 1, 0, 0 },     { 1.5, 1, 0, 5 },  { 1, 0.9, 0, 0 },    { 1, 0.3, 0, 0 },      { 1, 0, 0, 0 },
        { 1, 1, 0.1, 0 }, { 2, 1, 0.02, 0 },    { 0.7, 0.8, 0, 20 }, { 1, 0.95, 0.05, 20 },
        { 1, 1, 0, 1100 }, { 2, 0.9, 0, 1150 },
        { 1, 1, 1, 0 },   { 3, 0.97, 0.01, 0 }, { 1, 1, 0, 1 },    { 5, 0.5, 0, 0 },    { 10, 1, 0, 1025 },
        { 10, 0.99, 0, 1024 }, { 1, 1, 1, 5 },
    };
    static const int sizes[] = { 2, 7, 100, 513, 1200 };
    static float logits[1200];
    static double p[1200];
    qmi_random random;
    qmi_random_start(&random, 77);
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++) {
        for (int size = 0; size < 5; size++) {
            int count = sizes[size];
            for (int i = 0; i < count; i++) /* steps of an eighth in every second case: many equals */
                logits[i] = (float)(size % 2 ? floor(64 * qmi_random_unit(&random)) / 8 : 8 * qmi_random_unit(&random)) - 4;
            qmi_settings settings = filtered(&rows[row]);
            probabilities(logits, count, &rows[row], p);
            qmi_sampler *sampler = made(&settings, count);
            compare_draws(sampler, logits, count, p, 3000);
            qmi_sampler_free(&sampler);
        }
    }
}

static void a_whole_vocabulary(void **state)
{
    (void)state;
    static const filters rows[] = { { 1, 0.9, 0, 0 }, { 1, 1, 0, 0 }, { 1, 1, 0.05, 0 }, { 0.7, 0.95, 0, 20 },
                                    { 1, 0.9, 0, 3000 } };
    int count = 248320;
    float *logits = calloc((size_t)count, sizeof *logits);
    double *p = calloc((size_t)count, sizeof *p);
    qmi_random random;
    qmi_random_start(&random, 78);
    for (int i = 0; i < count; i++)
        logits[i] = (float)(2 * log(1 / (qmi_random_unit(&random) + 1e-9)) - 5); /* a tail as models have */
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++) {
        qmi_settings settings = filtered(&rows[row]);
        probabilities(logits, count, &rows[row], p);
        qmi_sampler *sampler = made(&settings, count);
        compare_draws(sampler, logits, count, p, 40);
        qmi_sampler_free(&sampler);
    }
    free(logits);
    free(p);
}

/* ---- bias and penalties: brackets round the value that the formula gives ---- */

/* Greedy over token 0, whose logit is changed to `value` by the settings, and a rival just above or below. */
static void becomes(qmi_settings *settings, float logit, const int32_t *history, int64_t count, float value)
{
    set(settings, "temperature", "0");
    assert_int_equal(choice(settings, (float[]){ logit, value - 0.001f, -1e9f }, 3, history, count), 0);
    assert_int_equal(choice(settings, (float[]){ logit, value + 0.001f, -1e9f }, 3, history, count), 1);
}

static void penalties_by_hand(void **state)
{
    (void)state;
    static const int32_t zeros[] = { 2, 0, 2, 0, 0, 2 };
    qmi_settings settings = plain();
    set(&settings, "repetition-penalty", "2");
    becomes(&settings, 4, zeros, 6, 2);    /* 4 / 2, once however often it is seen */
    becomes(&settings, -1, zeros, 6, -2);  /* -1 * 2 */
    becomes(&settings, 4, zeros, 1, 4);    /* not seen yet */
    becomes(&settings, 4, NULL, 0, 4);
    set(&settings, "presence-penalty", "0.5");
    becomes(&settings, 4, zeros, 6, 1.5f); /* after the repetition penalty */
    set(&settings, "frequency-penalty", "0.25");
    becomes(&settings, 4, zeros, 6, 0.75f); /* 4 / 2 - 0.5 - 3 * 0.25 */
    becomes(&settings, 4, zeros, 2, 1.25f); /* seen once */
    set(&settings, "penalty-window", "3");
    becomes(&settings, 4, zeros, 6, 1);     /* the last three have it twice */
    set(&settings, "penalty-window", "1");
    becomes(&settings, 4, zeros, 6, 4);     /* the last is another */
    set(&settings, "penalty-window", "0");
    becomes(&settings, 4, zeros, 5, 4);
    set(&settings, "penalty-window", "256");
    set(&settings, "logit-bias", "0:-6");
    becomes(&settings, 4, zeros, 6, -5.25f); /* (4 - 6) * 2 - 1.25: the bias comes first */
    set(&settings, "repetition-penalty", "1");
    set(&settings, "presence-penalty", "-1");
    set(&settings, "frequency-penalty", "0");
    becomes(&settings, 4, zeros, 6, -1);     /* negative penalties encourage */
    static const int32_t foreign[] = { -1, 3, INT32_MAX, INT32_MIN, 0 };
    becomes(&settings, 4, foreign, 5, -1);
    qmi_settings_end(&settings);
}

/* The history may change in any way between two calls. */
static void penalties_after_a_rewind(void **state)
{
    (void)state;
    qmi_settings settings = plain();
    set(&settings, "temperature", "0");
    set(&settings, "presence-penalty", "1");
    qmi_sampler *sampler = made(&settings, 3);
    const float logits[] = { 2, 1.5f, 1.2f };
    const int32_t first[] = { 0, 1 }, second[] = { 2 };
    assert_int_equal(qmi_sampler_choose(sampler, logits, first, 2), 2);
    assert_int_equal(qmi_sampler_choose(sampler, logits, first, 1), 1);
    assert_int_equal(qmi_sampler_choose(sampler, logits, second, 1), 0);
    assert_int_equal(qmi_sampler_choose(sampler, logits, NULL, 0), 0);
    qmi_sampler_free(&sampler);
}

static void biases(void **state)
{
    (void)state;
    const float logits[] = { 1, 2, 3, 4 };
    qmi_settings settings = plain();
    set(&settings, "logit-bias", "3:-inf, 2:-inf");
    qmi_sampler *sampler = made(&settings, 4);
    for (int i = 0; i < 500; i++)
        assert_true(qmi_sampler_choose(sampler, logits, NULL, 0) < 2);
    qmi_sampler_free(&sampler);
    set(&settings, "logit-bias", " 0:1.5 ");
    becomes(&settings, 1, NULL, 0, 2.5f);
    set(&settings, "logit-bias", "0:1,0:+2e0");
    becomes(&settings, 1, NULL, 0, 4);
    set(&settings, "logit-bias", "0:-inf,1:-inf,2:-inf");
    assert_int_equal(choice(&settings, logits, 3, NULL, 0), 0);
    static const char *const bad[] = { "1", ":", "1:", ":1", "x:1", "1:x", "1:inf", "1:nan", "1:1,", ",1:1", "1:1,,2:1",
                                       "1:1;2:1",
                                       "1 :1", "1:1e31", "1:1:1", "1.0:1", "99999999999999999999:1", "4:1", "-1:1",
                                       "1:1,\xff\xff" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        sampler = (qmi_sampler *)&settings;
        set(&settings, "logit-bias", bad[i]);
        if (qmi_sampler_new(&settings, 4, &sampler) != QM_ERROR_OPTION)
            fail_msg("'%s' was taken", bad[i]);
        assert_null(sampler);
        assert_non_null(strstr(qmi_error_text(), "logit-bias"));
    }
    set(&settings, "logit-bias", "1:0,248320:1");
    assert_int_equal(qmi_sampler_new(&settings, 248320, &sampler), QM_ERROR_OPTION);
    assert_non_null(strstr(qmi_error_text(), "248320"));
    assert_non_null(strstr(qmi_error_text(), "0..248319"));
    qmi_settings_end(&settings);
}

/* ---- random state, copies, memory ---- */

static void draw(qmi_sampler *sampler, int32_t *tokens, int count)
{
    float logits[50];
    for (int i = 0; i < 50; i++)
        logits[i] = (float)(i % 7) / 7;
    for (int i = 0; i < count; i++)
        tokens[i] = qmi_sampler_choose(sampler, logits, tokens, i);
}

static void seeds_and_copies(void **state)
{
    (void)state;
    int32_t a[60], b[60], c[60];
    qmi_settings settings = plain();
    set(&settings, "logit-bias", "3:1");
    set(&settings, "frequency-penalty", "0.1");
    qmi_sampler *sampler = made(&settings, 50), *same = made(&settings, 50), *copy = NULL;
    draw(sampler, a, 60);
    draw(same, b, 60);
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(qmi_sampler_copy(sampler, &copy), QM_OK);
    draw(sampler, b, 60);
    draw(copy, c, 60);
    assert_memory_equal(b, c, sizeof b);
    assert_true(memcmp(a, b, sizeof a) != 0); /* the sequence goes on */
    assert_int_equal(qmi_sampler_configure(sampler, &settings, true), QM_OK);
    draw(sampler, b, 60);
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(qmi_sampler_configure(copy, &settings, false), QM_OK); /* not seeded again */
    draw(copy, c, 60);
    assert_true(memcmp(a, c, sizeof a) != 0);
    set(&settings, "seed", "43");
    assert_int_equal(qmi_sampler_configure(same, &settings, true), QM_OK);
    draw(same, b, 60);
    assert_true(memcmp(a, b, sizeof a) != 0);
    set(&settings, "seed", "-1"); /* from the system: two differ */
    assert_int_equal(qmi_sampler_configure(sampler, &settings, true), QM_OK);
    assert_int_equal(qmi_sampler_configure(same, &settings, true), QM_OK);
    draw(sampler, a, 60);
    draw(same, b, 60);
    assert_true(memcmp(a, b, sizeof a) != 0);
    qmi_sampler_free(&sampler);
    qmi_sampler_free(&same);
    qmi_sampler_free(&copy);
    qmi_settings_end(&settings);
}

/* ---- from the highest logits alone ---- */

static int higher_first(const void *a, const void *b)
{
    const qmi_pick *x = a, *y = b;
    return x->logit != y->logit ? (x->logit < y->logit ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}

/* The same tokens as from all logits, in all draws of a row. */
static void picks_are_enough(void **state)
{
    (void)state;
    enum { COUNT = 500, DRAWS = 50 };
    static const struct { const char *temperature, *top_k, *top_p, *min_p; bool taken;
    } cases[] = { { "0", "0", "1", "0", true },        { "1", "20", "1", "0", true }, { "0.7", "20", "0.9", "0", true },
                  { "2", "32", "0.95", "0.02", true }, { "1", "1", "1", "0", true },  { "1", "33", "1", "0", false },
                  { "1", "0", "0.9", "0", false } };
    qmi_pick all[COUNT];
    float logits[COUNT];
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        qmi_settings settings = plain();
        set(&settings, "temperature", cases[c].temperature);
        set(&settings, "top-k", cases[c].top_k);
        set(&settings, "top-p", cases[c].top_p);
        set(&settings, "min-p", cases[c].min_p);
        qmi_sampler *whole = made(&settings, COUNT), *few = made(&settings, COUNT);
        assert_int_equal(qmi_sampler_takes_picks(few), cases[c].taken);
        for (int draw = 0; draw < DRAWS && cases[c].taken; draw++) {
            for (int i = 0; i < COUNT; i++) {
                logits[i] = draw == 1 && i > 3 ? -INFINITY : (float)((i * 7919 + draw * 104729) % 401) / 40; /* with equal ones */
                all[i] = (qmi_pick){ logits[i], i };
            }
            qsort(all, COUNT, sizeof *all, higher_first);
            assert_int_equal(qmi_sampler_choose_picked(few, all), qmi_sampler_choose(whole, logits, NULL, 0));
        }
        qmi_sampler_free(&whole);
        qmi_sampler_free(&few);
        set(&settings, "temperature", "0");
        set(&settings, "presence-penalty", "1");
        few = made(&settings, COUNT);
        assert_false(qmi_sampler_takes_picks(few));
        qmi_sampler_free(&few);
        qmi_settings_end(&settings);
    }
}

/* ---- only some tokens ---- */

static int32_t allows(void *user, int32_t token)
{
    const source *from = user;
    return from->allowed[token / 64] >> token % 64 & 1;
}

static int32_t mask(void *user, const uint64_t **bits)
{
    source *from = user;
    from->masks++;
    *bits = from->allowed;
    return QM_OK;
}

static int32_t next_allowed(void *user)
{
    source *from = user;
    int32_t token = -1, code = from->picks ? qmi_sampler_pick_among(from->sampler, from->picks, from->filter, &token) : 0;
    if (code == 0)
        code = qmi_sampler_choose_among(from->sampler, from->logits, NULL, 0, from->filter, &token) == QM_OK;
    assert_int_equal(code, 1);
    return token;
}

/* Drawn as if all other tokens had no chance, whether the highest logits decide or the mask is needed. */
static void allowed_tokens_keep_their_probabilities(void **state)
{
    enum { COUNT = 300 };
    static const filters rows[] = {
        { 0.5, 1, 0, 20 }, { 1, 0.9, 0, 20 }, { 0.7, 0.95, 0.05, 20 }, { 1, 1, 0.1, 20 }, { 1, 0.999, 0, 32 }, { 0.3, 1, 0, 5 },
        { 1, 1, 0, 0 },    { 1, 0.9, 0, 0 },  { 0.5, 1, 0.02, 0 },     { 2, 0.7, 0.01, 0 }, { 1, 1, 0, 100 },
    };
    float logits[COUNT], banned[COUNT], room[COUNT];
    qmi_pick picks[COUNT];
    double p[COUNT];
    qmi_random random;
    (void)state;
    qmi_random_start(&random, 5);
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++) {
        for (uint32_t rarity = 1; rarity <= 27; rarity *= 3) { /* one token of so many is allowed */
            uint64_t allowed[(COUNT + 63) / 64] = { 0 };
            for (int i = 0; i < COUNT; i++) {
                logits[i] = (float)(qmi_random_unit(&random) * 12);
                bool is = i == 7 || qmi_random_next(&random) % rarity == 0;
                allowed[i / 64] |= (uint64_t)is << i % 64;
                banned[i] = is ? logits[i] : -INFINITY;
                picks[i] = (qmi_pick){ logits[i], i };
            }
            qsort(picks, COUNT, sizeof *picks, higher_first);
            probabilities(banned, COUNT, &rows[row], p);
            qmi_settings settings = filtered(&rows[row]);
            for (int picked = 0; picked < 2; picked++) {
                source from = { .sampler = made(&settings, COUNT), .logits = logits, .allowed = allowed };
                const qmi_filter filter = { .allows = allows, .mask = mask, .room = room, .user = &from };
                from.filter = &filter;
                from.picks = picked && qmi_sampler_takes_picks(from.sampler) ? picks : NULL;
                compare_draws_of(next_allowed, &from, COUNT, p, 4000);
                if (rarity == 1 &&
                    (rows[row].top_k > 0 || rows[row].top_p >= 1)) /* all allowed, and what counts was asked about */
                    assert_int_equal(from.masks, 0);
                qmi_sampler_free(&from.sampler);
            }
            qmi_settings_end(&settings);
        }
    }
}

static void nothing_allowed(void **state)
{
    static const uint64_t none[1] = { 0 }, third[1] = { 4 };
    static const float logits[] = { 1, 2, -INFINITY, 0 };
    float room[4];
    int32_t token = -1;
    (void)state;
    for (int greedy = 0; greedy < 2; greedy++) {
        qmi_settings settings = plain();
        set(&settings, "temperature", greedy ? "0" : "1");
        source from = { .sampler = made(&settings, 4), .logits = logits, .allowed = none };
        const qmi_filter filter = { .allows = allows, .mask = mask, .room = room, .user = &from };
        assert_int_equal(qmi_sampler_choose_among(from.sampler, logits, NULL, 0, &filter, &token), QM_ERROR_STATE);
        from.allowed = third; /* which the model gives no chance: still the only one */
        assert_int_equal(qmi_sampler_choose_among(from.sampler, logits, NULL, 0, &filter, &token), QM_OK);
        assert_int_equal(token, 2);
        qmi_sampler_free(&from.sampler);
        qmi_settings_end(&settings);
    }
}

static void failing_memory(void **state)
{
    (void)state;
    failing_alloc counter = { .until_failure = -1 };
    const qmi_alloc alloc = failing_hook(&counter);
    qmi_settings settings = plain();
    int failures = 0;
    set(&settings, "frequency-penalty", "0.1");
    set(&settings, "logit-bias", "3:1");
    assert_int_equal(qmi_settings_use_alloc(&settings, &alloc), QM_OK);
    const int own = counter.live;
    for (int nth = 0;; nth++) { /* until nothing fails any more */
        qmi_sampler *sampler = NULL, *copy = NULL;
        counter.until_failure = nth;
        counter.failed = false;
        int32_t status = qmi_sampler_new(&settings, 50, &sampler);
        if (status == QM_OK)
            status = qmi_sampler_copy(sampler, &copy);
        if (status == QM_OK)
            status = qmi_sampler_configure(copy, &settings, true);
        bool done = !counter.failed;
        assert_int_equal(status, done ? QM_OK : QM_ERROR_MEMORY);
        counter.until_failure = 0; /* choosing asks for none */
        int32_t tokens[20];
        if (sampler)
            draw(sampler, tokens, 20);
        if (copy)
            draw(copy, tokens, 20);
        qmi_sampler_free(&sampler);
        qmi_sampler_free(&copy);
        assert_int_equal(counter.live, own);
        if (done)
            break;
        failures++;
    }
    assert_int_equal(failures, 20); /* a sampler has 7 blocks, its new plan 6 */
    qmi_settings_end(&settings);
}

static void a_failed_change_changes_nothing(void **state)
{
    (void)state;
    qmi_settings settings = plain();
    set(&settings, "temperature", "0");
    set(&settings, "logit-bias", "1:5");
    qmi_sampler *sampler = made(&settings, 3);
    const float logits[] = { 2, 1, 0 };
    set(&settings, "logit-bias", "7:5");
    set(&settings, "temperature", "1");
    assert_int_equal(qmi_sampler_configure(sampler, &settings, true), QM_ERROR_OPTION);
    for (int i = 0; i < 50; i++)
        assert_int_equal(qmi_sampler_choose(sampler, logits, NULL, 0), 1);
    qmi_sampler_free(&sampler);
    qmi_settings_end(&settings);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_numbers_are_the_published_ones),
        cmocka_unit_test(weights_are_exponentials),
        cmocka_unit_test(prefix_is_that_of_a_sort),
        cmocka_unit_test(first_few_are_those_of_a_sort),
        cmocka_unit_test(greedy_takes_the_highest),
        cmocka_unit_test(odd_logits_give_a_token),
        cmocka_unit_test(draws_follow_the_probabilities),
        cmocka_unit_test(a_whole_vocabulary),
        cmocka_unit_test(penalties_by_hand),
        cmocka_unit_test(penalties_after_a_rewind),
        cmocka_unit_test(biases),
        cmocka_unit_test(seeds_and_copies),
        cmocka_unit_test(picks_are_enough),
        cmocka_unit_test(allowed_tokens_keep_their_probabilities),
        cmocka_unit_test(nothing_allowed),
        cmocka_unit_test(failing_memory),
        cmocka_unit_test(a_failed_change_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
