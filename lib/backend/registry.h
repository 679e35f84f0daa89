/* Which backends there are, and which devices a user's name for them means. */
#ifndef QMI_BACKEND_REGISTRY_H
#define QMI_BACKEND_REGISTRY_H

#include "backend/backend.h"
#include "base/options.h"

#define QMI_CHOICES_MAX 17 /* 16 cards and the CPU */

typedef struct qmi_choice {
    const qmi_backend *backend;
    int32_t index;                    /* of the backend's devices, for qmi_device_settings */
} qmi_choice;

typedef struct qmi_choices {
    int32_t count;
    qmi_choice list[QMI_CHOICES_MAX]; /* best first */
} qmi_choices;

/* device: "cpu", "cuda", "cuda:1": that one; "auto": each card that there is, then the CPU (why there is none, the log says).
 * cuda_library: file of the CUDA backend, "" to look for it. Whether a device can be opened, only opening it tells.
 * QM_ERROR_OPTION for a name that no backend answers to, QM_ERROR_DEVICE when the CUDA backend was asked for and can't be
 * used. */
int32_t qmi_registry_find(const char *device, const char *cuda_library, const qmi_log *log, qmi_choices *out);

/* A backend's device number `index` as the options want it; texts and hooks are those of the settings. */
qmi_device_settings qmi_registry_device(const qmi_settings *settings, int32_t index);

#endif
