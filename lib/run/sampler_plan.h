/* What the options of scope "sampling" ask of a sampler, and memory for just that. Formulas and order: sampler.h. */
#ifndef QMI_RUN_SAMPLER_PLAN_H
#define QMI_RUN_SAMPLER_PLAN_H

#include "base/options.h"
#include "run/candidates.h"

#define QMI_SAMPLER_HEAP_MOST 1024 /* a top-k up to here uses the heap; its cost rises with k, that of selecting does not */
#define QMI_SAMPLER_BLOCK 512      /* weights summed apart, so that a draw skips most of them */

typedef struct qmi_bias {
    int32_t id;
    float value;
} qmi_bias;

typedef struct qmi_sampler_plan {
    float temperature, repetition, presence, frequency;
    double top_p, min_p;
    int64_t top_k, window;
    qmi_bias *biases;
    size_t bias_count, bias_capacity;
    float *adjusted;           /* [vocabulary] with biases or penalties, else NULL */
    int32_t *seen;             /* [vocabulary] with penalties: how often in the window; all zero between calls */
    qmi_candidate *candidates; /* [heap size] or [vocabulary] */
    float *weights;            /* [vocabulary] without top-k ... */
    double *block_sums;        /* ... and their sums by QMI_SAMPLER_BLOCK */
} qmi_sampler_plan;

/* QM_ERROR_OPTION when logit-bias can't be read or names an id out of range. After a failure there is nothing to end. */
int32_t qmi_sampler_plan_start(qmi_sampler_plan *plan, const qmi_settings *settings, int32_t vocabulary, const qmi_alloc *alloc);
int32_t qmi_sampler_plan_copy(const qmi_sampler_plan *from, int32_t vocabulary, const qmi_alloc *alloc, qmi_sampler_plan *out);
void qmi_sampler_plan_end(qmi_sampler_plan *plan, const qmi_alloc *alloc);

#endif
