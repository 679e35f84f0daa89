/* Sums between cards by NCCL. */
#ifndef QMI_CUDA_EXCHANGE_NCCL_H
#define QMI_CUDA_EXCHANGE_NCCL_H

#include "backend/joint.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const qmi_joint qmi_cuda_joint;

#ifdef __cplusplus
}
#endif

#endif
