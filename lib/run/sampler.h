/* Choosing the next token from logits. */
#ifndef QMI_RUN_SAMPLER_H
#define QMI_RUN_SAMPLER_H

#include "base/options.h"

typedef struct qmi_sampler qmi_sampler;

/* Reads the options of scope "sampling" that concern it. QM_ERROR_OPTION when logit-bias can't be read or names an id out of range. */
int32_t qmi_sampler_new(const qmi_settings *settings, int32_t vocabulary, qmi_sampler **out);
int32_t qmi_sampler_copy(const qmi_sampler *from, qmi_sampler **out); /* same random state */
void qmi_sampler_free(qmi_sampler **sampler);
/* After an option changed. On failure the sampler is as before. reseed: start the random sequence again. */
int32_t qmi_sampler_configure(qmi_sampler *sampler, const qmi_settings *settings, bool reseed);

/* logits [vocabulary], not changed. history: all tokens of the session so far (the penalties look at the last penalty-window of them).
 * Never allocates, never fails: with no finite logit it takes the highest, ties to the lower id. */
int32_t qmi_sampler_choose(qmi_sampler *sampler, const float *logits, const int32_t *history, int64_t history_count);

#endif
