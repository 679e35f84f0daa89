/* The devices of a model that has several (option devices), as one group. */
#ifndef QMI_RUN_GROUP_LOAD_H
#define QMI_RUN_GROUP_LOAD_H

#include "run/engine.h"

bool qmi_group_load_wanted(const qmi_settings *settings);

/* Opens them, plans, and makes the group: model->backend, device, info and plan. What does not fit is no error: the plan says so.
 * QM_ERROR_OPTION names the option that can't be read, or that no split goes with. */
int32_t qmi_group_load_open(qm_model *model);

/* Cuts the model's programs and brings the weights to the devices. */
int32_t qmi_group_load_place(qm_model *model, qm_progress_callback progress, void *user, const int32_t *cancel);

#endif
