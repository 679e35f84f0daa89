/* From a file and settings to a model that is ready to compute; and the way back. */
#ifndef QMI_RUN_LOAD_H
#define QMI_RUN_LOAD_H

#include "run/engine.h"

typedef struct qmi_load_watch {
    qm_progress_callback progress; /* NULL: none */
    void *user;
    const int32_t *cancel;         /* read atomically between stages; NULL: never */
} qmi_load_watch;

/* One reference, the caller's. On failure everything is freed again. */
int32_t qmi_load_model(const char *path, const qmi_settings *settings, const qmi_load_watch *watch, qm_model **out);
int64_t qmi_load_plan(const char *path, const qmi_settings *settings, bool json, char *text, int64_t size);

void qmi_load_retain(qm_model *model);
void qmi_load_release(qm_model *model); /* frees it with the last reference */

#endif
