/* Ends of circles of a following rank: see follow_joint.h. */
#include "exchange/follow_joint.h"

#include "base/error.h"

int32_t qmi_follow_ends_start(qmi_follow_ends *ends)
{
    return qmi_os_mutex_new(&ends->mutex);
}

void qmi_follow_ends_device(qmi_follow_ends *ends, const qmi_backend *backend, qmi_device *device)
{
    const qmi_joint *const *joint = backend->joints;
    while (joint && *joint && (*joint)->one_process)
        joint++;
    ends->joint = joint ? *joint : NULL;
    ends->device = device;
}

static int32_t need_joint(const qmi_follow_ends *ends)
{
    return ends->joint ? QM_OK : qmi_fail(QM_ERROR_UNSUPPORTED, "this rank's device can't sum with others");
}

int32_t qmi_follow_ends_name(qmi_follow_ends *ends, uint8_t id[QMI_JOINT_ID])
{
    int32_t code = need_joint(ends);
    return code < 0 ? code : ends->joint->make_id(ends->device, id);
}

int32_t qmi_follow_ends_join(qmi_follow_ends *ends, const qmi_remote_join *join, const int32_t *cancel, int64_t *number)
{
    const qmi_joint_terms terms = { join->rank, join->ranks, join->timeout_ns, cancel };
    qmi_joint_end *end;
    int64_t place = 0;
    while (place < QMI_REMOTE_ENDS_MAX && ends->list[place])
        place++;
    int32_t code = need_joint(ends);
    if (code >= 0 && (place == QMI_REMOTE_ENDS_MAX || join->rank < 0 || join->rank >= join->ranks))
        code = qmi_fail(QM_ERROR_ARGUMENT, "rank 0 asks for part %d of %d in a circle, beside %d others", join->rank, join->ranks,
                        (int)place);
    if (code >= 0)
        code = ends->joint->join(ends->device, join->id, &terms, &end);
    if (code < 0)
        return code;
    qmi_os_mutex_lock(ends->mutex);
    ends->list[place] = end;
    if (ends->over)
        ends->joint->abort(end);
    qmi_os_mutex_unlock(ends->mutex);
    *number = place;
    return QM_OK;
}

static qmi_joint_end *find(const qmi_follow_ends *ends, int64_t number)
{
    qmi_joint_end *end = number >= 0 && number < QMI_REMOTE_ENDS_MAX ? ends->list[number] : NULL;
    if (!end)
        qmi_fail(QM_ERROR_ARGUMENT, "rank 0 names end %lld of a circle, which there is not", (long long)number);
    return end;
}

int32_t qmi_follow_ends_sum(qmi_follow_ends *ends, const qmi_given *given, const qmi_remote_sum *sum)
{
    qmi_joint_end *end = find(ends, sum->end);
    if (!end)
        return QM_ERROR_ARGUMENT;
    if (sum->count < 0 || sum->count > INT64_MAX / (int64_t)sizeof(float))
        return qmi_fail(QM_ERROR_ARGUMENT, "rank 0 sums %lld numbers", (long long)sum->count);
    int64_t bytes = sum->count * (int64_t)sizeof(float);
    int32_t code = qmi_given_check(given, sum->from, bytes);
    if (code >= 0)
        code = qmi_given_check(given, sum->to, bytes);
    return code < 0 ? code : ends->joint->sum(end, sum->from, sum->to, sum->count);
}

int32_t qmi_follow_ends_leave(qmi_follow_ends *ends, int64_t number)
{
    qmi_joint_end *end = find(ends, number);
    if (!end)
        return QM_ERROR_ARGUMENT;
    qmi_os_mutex_lock(ends->mutex);
    ends->list[number] = NULL;
    qmi_os_mutex_unlock(ends->mutex);
    ends->joint->leave(&end);
    return QM_OK;
}

void qmi_follow_ends_abort(qmi_follow_ends *ends, bool over)
{
    qmi_os_mutex_lock(ends->mutex);
    ends->over = ends->over || over;
    for (int32_t i = 0; i < QMI_REMOTE_ENDS_MAX; i++)
        if (ends->list[i])
            ends->joint->abort(ends->list[i]);
    qmi_os_mutex_unlock(ends->mutex);
}

void qmi_follow_ends_close(qmi_follow_ends *ends)
{
    for (int32_t i = 0; i < QMI_REMOTE_ENDS_MAX; i++)
        if (ends->list[i])
            qmi_follow_ends_leave(ends, i);
    qmi_os_mutex_free(&ends->mutex);
}
