/* The folder of prefixes that all programs share (option prefix-cache): what a session has computed goes there when it is freed,
 * and what one begins with comes from there as states to go back to, where sync finds it. */
#ifndef QMI_RUN_PREFIX_H
#define QMI_RUN_PREFIX_H

#include "run/job.h"

bool qmi_prefix_is_on(const qm_model *model);
void qmi_prefix_fetch_main(void *job);      /* body of the thread of a sync job, which then hands it to the engine */
void qmi_prefix_keep(qm_session *session);  /* of an idle session that is about to go; never fails */

#endif
