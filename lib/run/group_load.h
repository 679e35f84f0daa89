/* The devices of a model that has several (options devices, ranks), as one group. */
#ifndef QMI_RUN_GROUP_LOAD_H
#define QMI_RUN_GROUP_LOAD_H

#include "exchange/group.h"
#include "exchange/group_plan.h"
#include "run/engine.h"

typedef struct qmi_group_record {    /* of a model with several devices */
    qmi_exchange_member members[QMI_RANKS_MAX];
    qmi_plan_device devices[QMI_RANKS_MAX];
    qmi_sharing sharing;
    qmi_group_plan plan;
    char way[16];                    /* in which they sum: qmi_group_settings */
    bool way_needed;
    double way_ns, host_ns;          /* of a sum in it, and through the host's memory; 0: it was not measured */
    char found[512];                 /* what was measured and predicted when it was loaded, for people; "": nothing */
    char rates[512];                 /* what the last prediction was made of, for people; "": there was none */
} qmi_group_record;

bool qmi_group_load_wanted(const qmi_settings *settings);

/* Opens them, plans, and makes the group: model->backend, device, info and plan. What does not fit is no error: the plan says so.
 * QM_ERROR_OPTION names the option that can't be read, or that no split goes with. With several ranks it waits for them first;
 * cancel: read atomically meanwhile; NULL: never. */
int32_t qmi_group_load_open(qm_model *model, const int32_t *cancel);

/* Cuts the model's programs and brings the weights to the devices. */
int32_t qmi_group_load_place(qm_model *model, qm_progress_callback progress, void *user, const int32_t *cancel);

void qmi_group_load_forget(qm_model *model); /* model->group; the device is closed */

int64_t qmi_group_load_table(const qm_model *model, char *text, int64_t size); /* snprintf rules */
/* Nanoseconds that a token is predicted to take, by constants that are measured now; 0: they can't be. On the engine's thread. */
int64_t qmi_group_load_predict(qm_model *model);

#endif
