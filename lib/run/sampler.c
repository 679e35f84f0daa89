/* Choosing the next token: see sampler.h for the order and the formulas.
 *
 * A vocabulary has a quarter of a million entries, so nothing is sorted whole: a heap finds a small top-k in one scan, and a
 * quickselect by weight finds the nucleus among the few tokens that can belong to it (candidates.h). */
#include "run/sampler.h"

#include <math.h>
#include <string.h>
#include "base/error.h"
#include "base/os.h"
#include "run/candidates.h"
#include "run/random.h"
#include "run/sampler_plan.h"

struct qmi_sampler {
    qmi_alloc alloc;
    int32_t vocabulary;
    qmi_random random;
    qmi_sampler_plan plan;
};

static void seed_from(qmi_sampler *sampler, const qmi_settings *settings)
{
    int64_t seed = qmi_settings_int(settings, QMI_OPT_SEED);
    qmi_random_start(&sampler->random, seed < 0 ? qmi_os_random() : (uint64_t)seed);
}

int32_t qmi_sampler_new(const qmi_settings *settings, int32_t vocabulary, qmi_sampler **out)
{
    *out = NULL;
    qmi_sampler *sampler = qmi_new(&settings->alloc, 1, sizeof *sampler, "sampler");
    if (!sampler)
        return QM_ERROR_MEMORY;
    sampler->alloc = settings->alloc;
    sampler->vocabulary = vocabulary;
    int32_t status = qmi_sampler_plan_start(&sampler->plan, settings, vocabulary, &sampler->alloc);
    if (status < 0) {
        qmi_sampler_free(&sampler);
        return status;
    }
    seed_from(sampler, settings);
    *out = sampler;
    return QM_OK;
}

int32_t qmi_sampler_configure(qmi_sampler *sampler, const qmi_settings *settings, bool reseed)
{
    qmi_sampler_plan plan;
    int32_t status = qmi_sampler_plan_start(&plan, settings, sampler->vocabulary, &sampler->alloc);
    if (status < 0)
        return status;
    qmi_sampler_plan_end(&sampler->plan, &sampler->alloc);
    sampler->plan = plan;
    if (reseed)
        seed_from(sampler, settings);
    return QM_OK;
}

void qmi_sampler_random(const qmi_sampler *sampler, uint64_t state[4])
{
    memcpy(state, sampler->random.state, sizeof sampler->random.state);
}

void qmi_sampler_set_random(qmi_sampler *sampler, const uint64_t state[4])
{
    memcpy(sampler->random.state, state, sizeof sampler->random.state);
}

int32_t qmi_sampler_copy(const qmi_sampler *from, qmi_sampler **out)
{
    *out = NULL;
    qmi_sampler *copy = qmi_new(&from->alloc, 1, sizeof *copy, "sampler");
    if (!copy)
        return QM_ERROR_MEMORY;
    *copy = *from;
    int32_t status = qmi_sampler_plan_copy(&from->plan, copy->vocabulary, &copy->alloc, &copy->plan);
    if (status < 0) {
        qmi_sampler_free(&copy);
        return status;
    }
    *out = copy;
    return QM_OK;
}

void qmi_sampler_free(qmi_sampler **sampler)
{
    if (!*sampler)
        return;
    const qmi_alloc alloc = (*sampler)->alloc;
    qmi_sampler_plan_end(&(*sampler)->plan, &alloc);
    qmi_delete(&alloc, *sampler);
    *sampler = NULL;
}

/* ---- biases and penalties ---- */

static float penalise(const qmi_sampler_plan *plan, float logit, int32_t times)
{
    logit = logit > 0 ? logit / plan->repetition : logit * plan->repetition;
    return logit - (plan->presence + plan->frequency * (float)times);
}

/* Counts the window's tokens, then walks it again to penalise each once and to leave the counts at zero. */
static void penalise_window(qmi_sampler *sampler, const int32_t *history, int64_t count)
{
    qmi_sampler_plan *plan = &sampler->plan;
    if (count > plan->window) {
        history += count - plan->window;
        count = plan->window;
    }
    for (int64_t i = 0; i < count; i++) {
        if (history[i] >= 0 && history[i] < sampler->vocabulary)
            plan->seen[history[i]]++;
    }
    for (int64_t i = 0; i < count; i++) {
        int32_t id = history[i];
        if (id < 0 || id >= sampler->vocabulary || plan->seen[id] == 0)
            continue;
        plan->adjusted[id] = penalise(plan, plan->adjusted[id], plan->seen[id]);
        plan->seen[id] = 0;
    }
}

static const float *adjust(qmi_sampler *sampler, const float *logits, const int32_t *history, int64_t history_count)
{
    qmi_sampler_plan *plan = &sampler->plan;
    if (!plan->adjusted)
        return logits;
    memcpy(plan->adjusted, logits, (size_t)sampler->vocabulary * sizeof *logits);
    for (size_t i = 0; i < plan->bias_count; i++)
        plan->adjusted[plan->biases[i].id] += plan->biases[i].value;
    if (plan->seen)
        penalise_window(sampler, history, history_count);
    return plan->adjusted;
}

/* ---- filters and draw ---- */

/* 1 / T, finite so that the highest logit's 0 stays 0. */
static float inverse_temperature(const qmi_sampler_plan *plan)
{
    return plan->temperature > 1e-30f ? 1 / plan->temperature : 1e30f;
}

/* Weights of the whole vocabulary, their sums by block, and their sum. */
static double weigh_all(qmi_sampler_plan *plan, const float *x, int32_t count, float highest, float inverse)
{
    double total = 0;
    for (int32_t start = 0; start < count; start += QMI_SAMPLER_BLOCK) {
        int32_t size = count - start < QMI_SAMPLER_BLOCK ? count - start : QMI_SAMPLER_BLOCK;
        const float *weights = plan->weights + start;
        double sums[4] = { 0 }; /* apart, so that additions overlap */
        qmi_candidates_weigh(x + start, size, highest, inverse, plan->weights + start);
        for (int32_t i = 0; i < size; i++)
            sums[i % 4] += weights[i];
        double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        plan->block_sums[start / QMI_SAMPLER_BLOCK] = sum;
        total += sum;
    }
    return total;
}

static int64_t drop_unlikely(qmi_candidate *candidates, int64_t count, double least)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++) {
        if (candidates[i].weight >= least)
            candidates[kept++] = candidates[i];
    }
    return kept;
}

static int32_t draw_candidate(qmi_sampler *sampler, int64_t count)
{
    const qmi_candidate *candidates = sampler->plan.candidates;
    double rest = qmi_random_unit(&sampler->random) * qmi_candidates_sum(candidates, count);
    int64_t chosen = 0;
    for (int64_t i = 0; i < count; i++) {
        if (candidates[i].weight <= 0)
            continue;
        chosen = i; /* the last possible one when rounding leaves a rest */
        if (rest < candidates[i].weight)
            break;
        rest -= candidates[i].weight;
    }
    return candidates[chosen].id;
}

static int32_t draw_any(qmi_sampler *sampler, double total, int32_t fallback)
{
    const qmi_sampler_plan *plan = &sampler->plan;
    double rest = qmi_random_unit(&sampler->random) * total;
    int32_t start = 0;
    for (const double *sum = plan->block_sums; start + QMI_SAMPLER_BLOCK < sampler->vocabulary && rest >= *sum; sum++) {
        rest -= *sum;
        start += QMI_SAMPLER_BLOCK;
    }
    for (int32_t i = start; i < sampler->vocabulary; i++) {
        if (rest < plan->weights[i])
            return i;
        rest -= plan->weights[i];
    }
    return fallback; /* rounding left a rest at the end */
}

/* Of the top-k candidates, whose highest logit is given. */
static int32_t choose_candidate(qmi_sampler *sampler, int64_t count, float highest)
{
    qmi_sampler_plan *plan = &sampler->plan;
    double total = qmi_candidates_reweigh(plan->candidates, count, highest, inverse_temperature(plan));
    if (plan->top_p < 1)
        count = qmi_candidates_prefix(plan->candidates, count, plan->top_p * total);
    if (plan->min_p > 0)
        count = drop_unlikely(plan->candidates, count, plan->min_p);
    return draw_candidate(sampler, count);
}

static int32_t choose_among_few(qmi_sampler *sampler, const float *x, float highest)
{
    qmi_sampler_plan *plan = &sampler->plan;
    int64_t count = 0;
    if (plan->top_k <= QMI_SAMPLER_HEAP_MOST) {
        count = qmi_candidates_first(x, sampler->vocabulary, plan->top_k, plan->candidates);
    } else {
        for (int32_t i = 0; i < sampler->vocabulary; i++) {
            if (x[i] > -HUGE_VALF)
                plan->candidates[count++] = (qmi_candidate){ x[i], 1, i };
        }
        count = qmi_candidates_prefix(plan->candidates, count, (double)plan->top_k);
    }
    return choose_candidate(sampler, count, highest);
}

/* Without top-k. Tokens with less than (1 - top-p) / vocabulary of the sum can only together make up what top-p leaves out, so
 * those above are enough to look at. */
static int32_t choose_among_all(qmi_sampler *sampler, const float *x, int32_t best)
{
    qmi_sampler_plan *plan = &sampler->plan;
    double total = weigh_all(plan, x, sampler->vocabulary, x[best], inverse_temperature(plan));
    if (plan->top_p >= 1 && plan->min_p <= 0)
        return draw_any(sampler, total, best);
    double least = (1 - plan->top_p) * total / sampler->vocabulary * 0.999; /* a margin for rounding */
    if (least < plan->min_p)
        least = plan->min_p;
    int64_t count = 0;
    for (int32_t i = 0; i < sampler->vocabulary; i++) {
        if (plan->weights[i] >= least && plan->weights[i] > 0)
            plan->candidates[count++] = (qmi_candidate){ x[i], plan->weights[i], i };
    }
    if (plan->top_p < 1)
        count = qmi_candidates_prefix(plan->candidates, count, plan->top_p * total);
    return draw_candidate(sampler, count);
}

int32_t qmi_sampler_choose(qmi_sampler *sampler, const float *logits, const int32_t *history, int64_t history_count)
{
    const float *x = adjust(sampler, logits, history, history_count);
    int32_t best = qmi_candidates_highest(x, sampler->vocabulary);
    if (sampler->plan.temperature <= 0 || !isfinite(x[best]))
        return best;
    return sampler->plan.top_k > 0 ? choose_among_few(sampler, x, x[best]) : choose_among_all(sampler, x, best);
}

bool qmi_sampler_takes_picks(const qmi_sampler *sampler)
{
    const qmi_sampler_plan *plan = &sampler->plan;
    return !plan->adjusted && (plan->temperature <= 0 || (plan->top_k > 0 && plan->top_k <= QMI_PICKS_MAX));
}

int32_t qmi_sampler_choose_picked(qmi_sampler *sampler, const qmi_pick *picks)
{
    qmi_sampler_plan *plan = &sampler->plan;
    int64_t count = 0;
    if (plan->temperature <= 0 || !isfinite(picks[0].logit))
        return picks[0].id;
    for (; count < plan->top_k && picks[count].logit > -HUGE_VALF; count++)
        plan->candidates[count] = (qmi_candidate){ picks[count].logit, 1, picks[count].id };
    return choose_candidate(sampler, count, picks[0].logit);
}

/* ---- only some tokens are allowed ---- */

#define ASKED 64         /* highest logits that are asked about without top-k */
#define DRAWS 4          /* tokens that are drawn and asked about before the mask is */
#define ROUNDING 0x1p-24 /* of the sum of weights: less than this changes nothing */

/* The fewest of candidates in order whose weights sum to target; more than count if all do not. */
static int64_t reach(const qmi_candidate *candidates, int64_t count, double target)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        sum += candidates[i].weight;
        if (sum >= target)
            return i + 1;
    }
    return count + 1;
}

/* Draws one of candidates in order without knowing the sum of all weights, which is total .. total + rest: decided if it is the
 * same one for every sum. If not, the random number is still to be drawn. */
static bool draw_within(qmi_sampler *sampler, int64_t count, double total, double rest, int32_t *token)
{
    const qmi_candidate *candidates = sampler->plan.candidates;
    const qmi_random before = sampler->random;
    double unit = qmi_random_unit(&sampler->random), sum = 0;
    for (int64_t i = 0; i < count; i++) {
        sum += candidates[i].weight;
        if (unit * total >= sum)
            continue;
        *token = candidates[i].id;
        if (unit * (total + rest) < sum)
            return true;
        break;
    }
    sampler->random = before;
    return false;
}

/* Chooses from the allowed candidates in order, if those that are not known cannot matter: they come behind, sum to at most
 * `rest`, in weights of which the first candidate's is 1, and each is at most the last one's that was asked about, `below`. */
static bool decide(qmi_sampler *sampler, int64_t count, double rest, double below, int32_t *token)
{
    qmi_sampler_plan *plan = &sampler->plan;
    if (count == 0)
        return false;
    double total = qmi_candidates_reweigh(plan->candidates, count, plan->candidates[0].logit, inverse_temperature(plan));
    bool matters = rest > ROUNDING * total;
    if (plan->top_p < 1) {
        int64_t kept = reach(plan->candidates, count, plan->top_p * total);
        if (matters && (kept > count || kept != reach(plan->candidates, count, plan->top_p * (total + rest))))
            return false;
        count = kept < count ? kept : count;
    }
    matters = matters && plan->top_p >= 1 && below >= plan->min_p; /* else all that is left is known */
    if (plan->min_p > 0)
        count = drop_unlikely(plan->candidates, count, plan->min_p);
    if (matters)
        return draw_within(sampler, count, qmi_candidates_sum(plan->candidates, count), rest, token);
    *token = draw_candidate(sampler, count);
    return true;
}

static double weight_of(const qmi_sampler_plan *plan, float logit, float highest)
{
    float weight;
    qmi_candidates_weigh(&logit, 1, highest, inverse_temperature(plan), &weight);
    return weight;
}

/* From the highest logits in order; all: there are no others above -inf. 1, 0 or a code. total: of the weights of all tokens, the
 * highest logit's being 1; only without top-k. */
static int32_t choose_asked(qmi_sampler *sampler, const qmi_candidate *highest, int64_t count, bool all, double total,
                            const qmi_filter *filter, int32_t *token)
{
    qmi_sampler_plan *plan = &sampler->plan;
    bool greedy = plan->temperature <= 0;
    int64_t most = greedy ? 1 : plan->top_k > 0 ? plan->top_k : count, kept = 0;
    for (int64_t i = 0; i < count && kept < most; i++) {
        int32_t code = filter->allows(filter->user, highest[i].id);
        if (code < 0)
            return code;
        if (greedy && code > 0) {
            *token = highest[i].id;
            return 1;
        }
        if (code > 0)
            plan->candidates[kept++] = highest[i];
    }
    if (kept == 0)
        return 0;
    double below = weight_of(plan, highest[count - 1].logit, plan->candidates[0].logit), rest = 0;
    if (plan->top_k > 0) {
        rest = (double)(most - kept) * below;
    } else {
        for (int64_t i = 0; i < count; i++)
            total -= weight_of(plan, highest[i].logit, highest[0].logit);
        rest = total / weight_of(plan, plan->candidates[0].logit, highest[0].logit);
    }
    return decide(sampler, kept, all ? 0 : rest, below, token);
}

int32_t qmi_sampler_pick_among(qmi_sampler *sampler, const qmi_pick *picks, const qmi_filter *filter, int32_t *token)
{
    qmi_candidate highest[QMI_PICKS_MAX];
    int64_t count = 0;
    for (; count < QMI_PICKS_MAX && picks[count].logit > -HUGE_VALF && isfinite(picks[count].logit); count++)
        highest[count] = (qmi_candidate){ picks[count].logit, 1, picks[count].id };
    if (count == 0 || picks[0].logit == HUGE_VALF)
        return 0;
    return choose_asked(sampler, highest, count, count < QMI_PICKS_MAX, 0, filter, token);
}

static int32_t choose_masked(qmi_sampler *sampler, const float *x, const qmi_filter *filter, int32_t *token)
{
    const uint64_t *bits;
    int32_t code = filter->mask(filter->user, &bits), first = -1;
    if (code < 0)
        return code;
    for (int32_t start = 0; start < sampler->vocabulary; start += 64) {
        int32_t count = sampler->vocabulary - start < 64 ? sampler->vocabulary - start : 64;
        uint64_t word = bits[start / 64];
        float *to = filter->room + start;
        for (int32_t i = 0; i < count; i++)
            to[i] = word >> i & 1 ? x[start + i] : -HUGE_VALF;
        for (int32_t i = 0; word && first < 0 && i < count; i++)
            first = word >> i & 1 ? start + i : -1;
    }
    if (first < 0)
        return qmi_fail(QM_ERROR_STATE, "no token of the vocabulary goes on with the text as the grammar wants it");
    int32_t best = qmi_candidates_highest(filter->room, sampler->vocabulary);
    float highest = filter->room[best];
    if (isnan(highest) || highest == -HUGE_VALF)
        *token = first; /* the model gives none of them any chance */
    else if (sampler->plan.temperature <= 0 || !isfinite(highest))
        *token = best;
    else
        *token = sampler->plan.top_k > 0 ? choose_among_few(sampler, filter->room, highest)
                                         : choose_among_all(sampler, filter->room, best);
    return QM_OK;
}

/* Draws from all tokens until one is allowed, which is drawn as from the allowed ones alone. 1, 0 (not in a few times) or a
 * code. */
static int32_t draw_asking(qmi_sampler *sampler, double total, int32_t best, const qmi_filter *filter, int32_t *token)
{
    int32_t code = 0;
    for (int draw = 0; draw < DRAWS && code == 0; draw++) {
        *token = draw_any(sampler, total, best);
        code = filter->allows(filter->user, *token);
    }
    return code;
}

/* 1, 0 (the mask is needed) or a code. */
static int32_t choose_asking(qmi_sampler *sampler, const float *x, int32_t best, const qmi_filter *filter, int32_t *token)
{
    qmi_sampler_plan *plan = &sampler->plan;
    qmi_candidate highest[QMI_SAMPLER_HEAP_MOST];
    double total = 0;
    bool greedy = plan->temperature <= 0;
    if (!isfinite(x[best]) || (!greedy && plan->top_k > QMI_SAMPLER_HEAP_MOST))
        return 0;
    if (!greedy && plan->top_k == 0)
        total = weigh_all(plan, x, sampler->vocabulary, x[best], inverse_temperature(plan));
    if (!greedy && plan->top_k == 0 && plan->top_p >= 1 && plan->min_p <= 0)
        return draw_asking(sampler, total, best, filter, token);
    int64_t wanted = greedy || plan->top_k < ASKED ? ASKED : plan->top_k;
    int64_t count = qmi_candidates_first(x, sampler->vocabulary, wanted, highest);
    return choose_asked(sampler, highest, count, count < wanted, total, filter, token);
}

int32_t qmi_sampler_choose_among(qmi_sampler *sampler, const float *logits, const int32_t *history, int64_t history_count,
                                 const qmi_filter *filter, int32_t *token)
{
    const float *x = adjust(sampler, logits, history, history_count);
    int32_t best = qmi_candidates_highest(x, sampler->vocabulary);
    if (sampler->plan.temperature <= 0) {
        int32_t code = filter->allows(filter->user, best);
        *token = best;
        if (code != 0)
            return code < 0 ? code : QM_OK;
    }
    int32_t code = choose_asking(sampler, x, best, filter, token);
    return code == 0 ? choose_masked(sampler, x, filter, token) : code < 0 ? code : QM_OK;
}
