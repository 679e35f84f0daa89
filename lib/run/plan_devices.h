/* The devices that a split is planned for: those of this machine, or those that option plan-devices describes. */
#ifndef QMI_RUN_PLAN_DEVICES_H
#define QMI_RUN_PLAN_DEVICES_H

#include "memory/split.h"
#include "run/engine.h"

typedef struct qmi_plan_devices {
    int32_t count;            /* cards, then the CPU; 1: there is nothing to split over */
    qmi_plan_device list[QMI_SPLIT_DEVICES];
    double rates[QMI_SPLIT_DEVICES]; /* bytes a second that each reads, where the option says so; else 0 */
    char names[QMI_SPLIT_DEVICES][32];
} qmi_plan_devices;

/* What a plan needs to know of an open device. */
qmi_plan_device qmi_plan_devices_of(const qmi_backend *backend, const qmi_device_info *info);
/* Of a model whose device is open; that one is asked, others are opened and closed again. QM_ERROR_OPTION: plan-devices can't be
 * read. A card that can't be opened is left out. */
int32_t qmi_plan_devices_find(const qm_model *model, qmi_plan_devices *out);

#endif
