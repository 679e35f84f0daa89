/* Which backends there are, and opening a device by the user's name for it. */
#ifndef QMI_BACKEND_REGISTRY_H
#define QMI_BACKEND_REGISTRY_H

#include "backend/backend.h"

/* device: "auto" or "cpu". Sets *backend and opens the device. QM_ERROR_OPTION for a name that no backend answers to,
 * QM_ERROR_DEVICE when it answers but can't be opened. */
int32_t qmi_registry_open(const char *device, const qmi_device_settings *settings, const qmi_backend **backend, qmi_device **out);

#endif
