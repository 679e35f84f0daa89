/* Finds the backend that a device name means: see registry.h. */
#include "backend/registry.h"

#include <string.h>
#include "base/error.h"

static const qmi_backend *const backends[] = { &qmi_cpu_backend };

int32_t qmi_registry_open(const char *device, const qmi_device_settings *settings, const qmi_backend **backend, qmi_device **out)
{
    bool any = strcmp(device, "auto") == 0;
    *backend = NULL;
    *out = NULL;
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++) {
        const qmi_backend *candidate = backends[i];
        if (!any && strcmp(device, candidate->name) != 0)
            continue;
        if (settings->index < 0 || settings->index >= candidate->device_count())
            return qmi_fail(QM_ERROR_DEVICE, "device %s: index %d, but there are %d", candidate->name, settings->index,
                            candidate->device_count());
        int32_t code = candidate->open(settings, out);
        if (code >= 0)
            *backend = candidate;
        return code;
    }
    return qmi_fail(QM_ERROR_OPTION, "device: \"%s\" is unknown; \"auto\" and \"cpu\" are there", device);
}
