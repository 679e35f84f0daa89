/* The linear correction of keys of q2 (memory/key_correction.h) on a model's device: loaded from its file, and fitted. */
#ifndef QMI_RUN_KEY_FIT_H
#define QMI_RUN_KEY_FIT_H

#include "run/engine.h"

/* By the options kv-correction and kv-fit; the addresses go into the plan's layout, before the programs are built. */
int32_t qmi_key_fit_open(qm_model *model);
void qmi_key_fit_close(qm_model *model); /* also after an opening that failed, or none */
/* Fits to what was packed since, and writes the file. By any thread. */
int32_t qmi_key_fit_save(qm_model *model, const char *path);

#endif
