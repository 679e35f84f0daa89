/* A following rank's ends of circles in which devices sum among themselves (backend/joint.h). */
#ifndef QMI_EXCHANGE_FOLLOW_JOINT_H
#define QMI_EXCHANGE_FOLLOW_JOINT_H

#include "base/os.h"
#include "exchange/follow_check.h"
#include "exchange/remote_message.h"

typedef struct qmi_follow_ends {
    const qmi_joint *joint;      /* with other processes; NULL: the device has none, or none is open yet */
    qmi_device *device;
    qmi_os_mutex *mutex;         /* guards what follows, as ends are aborted by another thread */
    qmi_joint_end *list[QMI_REMOTE_ENDS_MAX]; /* NULL: free */
    bool over;                   /* rank 0 is gone: whoever joins now is aborted at once */
} qmi_follow_ends;

int32_t qmi_follow_ends_start(qmi_follow_ends *ends);
void qmi_follow_ends_device(qmi_follow_ends *ends, const qmi_backend *backend, qmi_device *device);
void qmi_follow_ends_close(qmi_follow_ends *ends); /* leaves all, before the device is closed; accepts an all-zero one */
int32_t qmi_follow_ends_name(qmi_follow_ends *ends, uint8_t id[QMI_JOINT_ID]);
/* cancel: atomic, not 0 ends the waiting for the other ranks. */
int32_t qmi_follow_ends_join(qmi_follow_ends *ends, const qmi_remote_join *join, const int32_t *cancel, int64_t *number);
int32_t qmi_follow_ends_sum(qmi_follow_ends *ends, const qmi_given *given, const qmi_remote_sum *sum);
int32_t qmi_follow_ends_leave(qmi_follow_ends *ends, int64_t number);
void qmi_follow_ends_abort(qmi_follow_ends *ends, bool over); /* all of them, from any thread */

#endif
