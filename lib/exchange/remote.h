/* The device of another rank, as a backend of this process: each call becomes a message to the rank, which executes it
 * (follow.h). Addresses are those of its device. */
#ifndef QMI_EXCHANGE_REMOTE_H
#define QMI_EXCHANGE_REMOTE_H

#include "backend/backend.h"
#include "exchange/link.h"

/* Opens the rank's device. The link stays the caller's, and open while the device is. cuda_library: as option cuda-library, where
 * what the CUDA backend takes is asked of the one here. *backend belongs to the device and ends with it. */
int32_t qmi_remote_open(qmi_link *link, const char *cuda_library, const qmi_alloc *alloc, const qmi_log *log,
                        const qmi_backend **backend, qmi_device **out);

#endif
