/* Saving a session to a file and restoring it: jobs with a thread of their own, which does the file's work, while the engine does
 * the device's piece by piece between its steps. */
#ifndef QMI_RUN_STORE_H
#define QMI_RUN_STORE_H

#include "run/job.h"

void qmi_store_main(void *job); /* body of the thread of a save or restore job, whose session is claimed and text is the path */

#endif
