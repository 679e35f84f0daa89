/* What ends of circles of cards have in common (backend/joint.h), and sums that are ops of a program. */
#ifndef QMI_CUDA_EXCHANGE_H
#define QMI_CUDA_EXCHANGE_H

#include "backend/joint.h"

#ifdef __cplusplus
#include "cuda.h"

struct qmi_joint_end {         /* the first member of each kind */
    const qmi_joint *joint;
    qmi_device *device;
    int32_t aborted;           /* atomic */
};

/* A SUM op of a run; end: of an `inside` kind. */
void cuda_sum(const cuda_run *run, qmi_joint_end *end, float *from, float *to, int64_t count);
/* When the stream has done all: whether its sums came to something. */
int32_t cuda_sum_check(qmi_joint_end *end);

extern "C" {
#endif

extern const qmi_joint qmi_cuda_peer, qmi_cuda_pinned, qmi_cuda_nccl;

#ifdef __cplusplus
}
#endif

#endif
