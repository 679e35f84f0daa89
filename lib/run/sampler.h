/* Choosing the next token from logits.
 *
 * What happens to the logits l, in this order, each step only if its option asks for it:
 *   1. logit-bias           l += bias of the token; -inf bans it.
 *   2. repetition-penalty r tokens in the window: l = l > 0 ? l / r : l * r.  (Keskar et al. 2019, "CTRL", section 4.1, who
 *                           divide; negative logits are multiplied so that they fall as well.)
 *   3. presence-penalty a, frequency-penalty b: a token that is n > 0 times in the window: l -= a + b * n.
 *                           The window is the last penalty-window tokens of the session, prompt included.
 *   4. temperature T        0: the highest logit, the lowest id among equals, and nothing random. Else l / T.
 *   5. top-k                the k highest logits; equals at the border: the lower ids.
 *   6. top-p                p = softmax of what is left; the fewest most likely tokens whose p sum to at least top-p
 *                           (Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration", section 3.1), at least one.
 *   7. min-p                those whose p is at least min-p times the highest p (Nguyen et al. 2024, "Min-p sampling").
 *   8. one of them, drawn in proportion to p with one random number.
 * NaN counts as -inf. A logit of +inf is taken at once. With all banned it is token 0.
 *
 * Random numbers and the exponential function are the sampler's own, so that the same logits and the same seed give the same
 * tokens on every machine. */
#ifndef QMI_RUN_SAMPLER_H
#define QMI_RUN_SAMPLER_H

#include "backend/program.h"
#include "base/options.h"

typedef struct qmi_sampler qmi_sampler;

/* Reads the options of scope "sampling" that concern it. QM_ERROR_OPTION when logit-bias can't be read or names an id out of
 * range; of an id named twice both values are added. */
int32_t qmi_sampler_new(const qmi_settings *settings, int32_t vocabulary, qmi_sampler **out);
int32_t qmi_sampler_copy(const qmi_sampler *from, qmi_sampler **out); /* same random state */
void qmi_sampler_free(qmi_sampler **sampler);
/* After an option changed. On failure the sampler is as before. reseed: start the random sequence again. */
int32_t qmi_sampler_configure(qmi_sampler *sampler, const qmi_settings *settings, bool reseed);

/* The state of its random numbers, to be kept; it goes on from one that is set. */
void qmi_sampler_random(const qmi_sampler *sampler, uint64_t state[4]);
void qmi_sampler_set_random(qmi_sampler *sampler, const uint64_t state[4]);

/* logits [vocabulary], not changed. history: all tokens of the session so far (the penalties look at the last penalty-window of
 * them, afresh each time, so that it may change at will between calls). Never allocates, never fails. */
int32_t qmi_sampler_choose(qmi_sampler *sampler, const float *logits, const int32_t *history, int64_t history_count);

/* The same from the highest logits alone, [QMI_PICKS_MAX] in order, where qmi_sampler_takes_picks says that they are enough:
 * without biases and penalties, and with temperature 0 or a top-k that they hold. */
bool qmi_sampler_takes_picks(const qmi_sampler *sampler);
int32_t qmi_sampler_choose_picked(qmi_sampler *sampler, const qmi_pick *picks);

/* ---- only some tokens are allowed ----
 *
 * They are those of step 1 above: all others are banned, and the steps follow. But the highest logits are asked about one by one
 * first, and mostly decide: when what is not asked about can change neither the tokens that top-k, top-p and min-p leave nor, by
 * more than rounding, their weights. Without any such option a token is drawn and asked about, a few times. Only where that does
 * not do is the whole mask needed. */
typedef struct qmi_filter {
    int32_t (*allows)(void *user, int32_t token);         /* 1, 0 or a code */
    int32_t (*mask)(void *user, const uint64_t **bits);   /* bit t % 64 of word t / 64 for each allowed token, or a code */
    float *room;                                          /* [vocabulary] */
    void *user;
} qmi_filter;

/* Likewise from logits. QM_ERROR_STATE when no token is allowed; what the filter fails with. */
int32_t qmi_sampler_choose_among(qmi_sampler *sampler, const float *logits, const int32_t *history, int64_t history_count,
                                 const qmi_filter *filter, int32_t *token);
/* Likewise from picks. 1: *token is chosen; 0: they do not decide it; or a code. */
int32_t qmi_sampler_pick_among(qmi_sampler *sampler, const qmi_pick *picks, const qmi_filter *filter, int32_t *token);

#endif
