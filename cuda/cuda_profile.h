/* How long each kind of op takes, for option `profile`: each op of a run stands between two events. */
#ifndef QMI_CUDA_PROFILE_H
#define QMI_CUDA_PROFILE_H

#include "cuda.h"

typedef struct cuda_profile cuda_profile;

int32_t cuda_profile_new(const qmi_alloc *alloc, cuda_profile **out);
/* Logs the sums, one line for each kind, those of few rows and of many apart. */
void cuda_profile_free(cuda_profile **profile, const qmi_alloc *alloc, const qmi_log *log);

/* Around a run: `start` before its first op, `mark` after each launch of an op with its kind (of two launched together, the
 * second's), `finish` when the stream was synchronized. */
cudaError_t cuda_profile_start(cuda_profile *profile, const cuda_run *run, const qmi_program *program);
cudaError_t cuda_profile_mark(cuda_profile *profile, const cuda_run *run, qmi_op_kind kind);
cudaError_t cuda_profile_finish(cuda_profile *profile, const cuda_run *run);

#endif
