/* Facts about a loaded model, by name: qm_model_number and qm_model_text. */
#ifndef QMI_RUN_FACTS_H
#define QMI_RUN_FACTS_H

#include "run/engine.h"

int32_t qmi_facts_number(const qm_model *model, const char *name, int64_t *value);
int64_t qmi_facts_text(const qm_model *model, const char *name, char *text, int64_t size);

#endif
