/* Predictions on paper: splits over the cards of option plan-devices, where it says how fast they read. */
#ifndef QMI_RUN_PLAN_SPLITS_H
#define QMI_RUN_PLAN_SPLITS_H

#include "run/plan_devices.h"

/* By layers as the split has it, and by parts of layers over the cards alone; "" without rates. snprintf rules. */
int64_t qmi_plan_splits_table(const qm_model *model, const qmi_plan_devices *devices, const qmi_split *split, char *text,
                              int64_t size);

#endif
