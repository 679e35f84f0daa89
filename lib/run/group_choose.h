/* How the devices of a group share the model, and by what way they sum. */
#ifndef QMI_RUN_GROUP_CHOOSE_H
#define QMI_RUN_GROUP_CHOOSE_H

#include "backend/registry.h"
#include "run/group_load.h"

typedef struct qmi_group_opener {            /* what the options say of the devices, and the devices */
    qm_model *model;
    int32_t count, cpus;
    qmi_choice choices[QMI_RANKS_MAX];
    int32_t ranks[QMI_RANKS_MAX];            /* whose device it is; 0: this process's, as `choices` says */
    int64_t limits[QMI_RANKS_MAX];           /* bytes; 0: none */
    qmi_exchange_member members[QMI_RANKS_MAX];
    qmi_device_info infos[QMI_RANKS_MAX];
    qmi_plan_device devices[QMI_RANKS_MAX];
    int32_t shares[QMI_RANKS_MAX];
} qmi_group_opener;

/* Layers, unless parts of layers fit and are predicted to be faster, or are asked for: the record's sharing, plan, way and what
 * was found. Devices that are all the CPU gain nothing by parts. The record has the members already. */
int32_t qmi_group_choose(qmi_group_opener *o, qmi_group_record *record);

/* What was not measured yet of sums of so many; messages go through the host's memory, which costs about as much as a sum
 * there. */
void qmi_group_measure(const qm_model *model, qmi_group_record *record, int32_t size, qmi_group_rates *rates);

#endif
