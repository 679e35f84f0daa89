/* Picking the few tokens that matter out of a quarter of a million, without sorting them.
 *
 * The order everywhere: higher logit first, of equal ones the lower id. */
#ifndef QMI_RUN_CANDIDATES_H
#define QMI_RUN_CANDIDATES_H

#include <stdint.h>

typedef struct qmi_candidate {
    float logit;
    float weight; /* not normalised: 1 for the highest logit */
    int32_t id;
} qmi_candidate;

/* Index of the highest of count >= 1 values, the first of equal ones; NaN counts as -inf. 0 when all are -inf. */
int32_t qmi_candidates_highest(const float *x, int32_t count);
/* The first k in order of those above -inf, in order, with weight 1; fewer if there are not as many. One scan that mostly
 * compares; for small k. */
int64_t qmi_candidates_first(const float *x, int32_t count, int64_t k, qmi_candidate *out);
/* Reorders so that the first n (returned) are the fewest that come first in order and whose weights sum to `target`: quickselect
 * by weight instead of by number, in time that grows as count. At least 1 of them; all when the sum falls short. The first in
 * order must have a weight above 0. */
int64_t qmi_candidates_prefix(qmi_candidate *candidates, int64_t count, double target);
double qmi_candidates_sum(const qmi_candidate *candidates, int64_t count); /* of their weights */
/* weights[i] = e^((x[i] - highest) * inverse), to about 1e-7; 0 below e^-80 and for NaN. Needs x[i] <= highest or NaN. */
void qmi_candidates_weigh(const float *x, int32_t count, float highest, float inverse, float *weights);
/* The same for candidates; returns their new sum. */
double qmi_candidates_reweigh(qmi_candidate *candidates, int64_t count, float highest, float inverse);

#endif
