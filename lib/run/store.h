/* Saving a session to a file and restoring it: jobs with a thread of their own, which does the file's work, while the engine does
 * the device's piece by piece between its steps. */
#ifndef QMI_RUN_STORE_H
#define QMI_RUN_STORE_H

#include "memory/snapshot.h"
#include "run/job.h"

/* The place of a model's files; cancel NULL: never. */
int32_t qmi_store_place(qm_model *model, const int32_t *cancel, qmi_snapshot_place *out);

typedef struct qmi_store_collected {
    qm_session *session;
    qmi_snapshot *snapshot;
} qmi_store_collected;

/* References on all that a session has, so that it stays, and on at most `most` states to go back to. For the engine's thread. */
int32_t qmi_store_collect(const qmi_store_collected *what, int32_t most);

void qmi_store_main(void *job); /* body of the thread of a save or restore job, whose session is claimed and text is the path */

#endif
