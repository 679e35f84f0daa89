/* Log probabilities of the tokens of an answer, and of the most likely ones in their places.
 *
 * log p(i) = x_i - max x - log(sum over j of e^(x_j - max x)), of the model's logits x: no option of sampling counts. */
#ifndef QMI_RUN_LOGPROBS_H
#define QMI_RUN_LOGPROBS_H

#include <stdbool.h>

#include "base/alloc.h"

typedef struct qmi_logprobs {
    bool kept;             /* false: nothing is kept */
    int32_t top;           /* entries in a row of the most likely tokens */
    int64_t count;         /* tokens */
    float *own;            /* [count] */
    int32_t *top_tokens;   /* [count][top], rows in order */
    float *top_logprobs;   /* [count][top] */
    size_t own_capacity, tokens_capacity, values_capacity;
} qmi_logprobs;

typedef struct qmi_logprobs_out { /* the caller's arrays; NULL: not wanted */
    float *own;
    int32_t *top_tokens;
    float *top_logprobs;
} qmi_logprobs_out;

/* top: option "logprobs"; -1 keeps nothing. */
void qmi_logprobs_start(qmi_logprobs *logprobs, int64_t top, int32_t vocabulary);
void qmi_logprobs_free(qmi_logprobs *logprobs, const qmi_alloc *alloc);
/* Adds a token that was chosen after these logits [vocabulary]; NaN counts as -inf. QM_ERROR_MEMORY: nothing is added. */
int32_t qmi_logprobs_add(qmi_logprobs *logprobs, const float *logits, int32_t vocabulary, int32_t token, const qmi_alloc *alloc);
/* Returns how many there are from `first` on, of which at most `capacity` are copied; QM_ERROR_STATE when none are kept. */
int64_t qmi_logprobs_copy(const qmi_logprobs *logprobs, int64_t first, const qmi_logprobs_out *out, int64_t capacity);

#endif
