/* Picking the highest logits on the card. */
#ifndef QMI_CUDA_PICK_H
#define QMI_CUDA_PICK_H

#include "cuda.h"

/* The QMI_PICKS_MAX highest of each of run->outputs rows of `width` logits, highest first (of equal ones the lower id; NaN counts as
 * -inf), to out [outputs][QMI_PICKS_MAX], which the card can write. */
void cuda_pick(const cuda_run *run, const float *logits, int64_t width, qmi_pick *out);
int64_t cuda_scratch_pick(int64_t width, int32_t outputs);

#endif
