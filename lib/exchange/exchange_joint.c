/* Sums between devices by a way of their own: see exchange_joint.h. */
#include "exchange/exchange_joint.h"

#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "base/os.h"
#include "exchange/exchange_host.h"

typedef struct joint_hub joint_hub;

typedef struct joint_end {
    qmi_exchange base;
    const qmi_joint *joint;
    qmi_exchange *host;            /* of the same rank, for all but sums */
    joint_hub *hub;
    const int32_t *cancel;
    int64_t step;                  /* how many it has begun */
    int64_t circle;                /* the number of the one that `own` belongs to */
    qmi_joint_end *own;            /* guarded by the hub's mutex; NULL: in none */
    int32_t code;                  /* of a thread that joins */
    char message[QMI_ERROR_SIZE];
} joint_end;

struct joint_hub {
    qmi_alloc alloc;
    qmi_os_mutex *mutex;           /* guards what follows */
    int32_t count, open_ends;
    joint_end *ends[QMI_RANKS_MAX];
    int64_t circle;                /* the number of the present one */
    uint8_t id[QMI_JOINT_ID];      /* its name */
    int32_t broken;                /* given up in step broken_step; read without the mutex by who waits for others to join */
    int64_t broken_step, timeout_ns;
    int32_t code;                  /* of the first who did, until the next step begins; QM_ERROR_DEVICE stays */
    char message[QMI_ERROR_SIZE];
    int32_t gate;                  /* atomic: threads that join wait while it is 0, and turn back when it is negative */
};

static joint_end *end_of(qmi_exchange *end)
{
    return (joint_end *)(void *)end;
}

/* ---- circles ---- */

/* Makes this end part of circle `number`, which takes the calls of all. */
static int32_t join(joint_end *e, const uint8_t id[QMI_JOINT_ID], int64_t number)
{
    joint_hub *h = e->hub;
    qmi_joint_end *own;
    const qmi_joint_terms terms = { e->base.rank, e->base.ranks, h->timeout_ns, &h->broken };
    int32_t code = e->joint->join(e->base.device, id, &terms, &own);
    if (code < 0)
        return code;
    qmi_os_mutex_lock(h->mutex);
    e->own = own;
    e->circle = number;
    if (h->broken) /* meanwhile somebody has given up */
        e->joint->abort(own);
    qmi_os_mutex_unlock(h->mutex);
    return QM_OK;
}

static void leave(joint_end *e)
{
    qmi_os_mutex_lock(e->hub->mutex);
    qmi_joint_end *own = e->own;
    e->own = NULL;
    qmi_os_mutex_unlock(e->hub->mutex);
    if (own)
        e->joint->leave(&own);
}

/* The number and name of the circle that the next step is to have; the first to ask makes a new one where the last was given
 * up. */
static int32_t present_circle(joint_end *e, uint8_t id[QMI_JOINT_ID], int64_t *number)
{
    joint_hub *h = e->hub;
    int32_t code = QM_OK;
    qmi_os_mutex_lock(h->mutex);
    if (h->code == QM_ERROR_DEVICE || (h->broken && h->broken_step == e->step)) /* the latter by one who was faster */
        code = qmi_fail(h->code, "%s", h->message);
    if (code >= 0 && h->broken)
        code = e->joint->make_id(e->base.device, h->id);
    if (code >= 0 && h->broken) {
        __atomic_store_n(&h->broken, 0, __ATOMIC_RELEASE);
        h->code = QM_OK;
        h->circle++;
    }
    memcpy(id, h->id, QMI_JOINT_ID);
    *number = h->circle;
    qmi_os_mutex_unlock(h->mutex);
    return code;
}

/* ---- the carrier ---- */

static int32_t joint_start(qmi_exchange *end, const int32_t *cancel)
{
    joint_end *e = end_of(end);
    uint8_t id[QMI_JOINT_ID];
    int64_t number;
    e->cancel = cancel;
    e->step++;
    int32_t code = present_circle(e, id, &number);
    if (code >= 0 && number != e->circle) {
        leave(e);
        code = join(e, id, number);
    }
    if (code >= 0)
        return e->host->carrier->start(e->host, cancel);
    char text[QMI_ERROR_SIZE];
    qmi_error_copy(text);
    e->host->carrier->start(e->host, cancel); /* it counts the steps too */
    qmi_error_restore(text);
    return code;
}

static int32_t joint_failed(qmi_exchange *end)
{
    joint_hub *h = end_of(end)->hub;
    qmi_os_mutex_lock(h->mutex);
    int32_t code = h->code < 0 ? qmi_fail(h->code, "%s", h->message) : QM_OK;
    qmi_os_mutex_unlock(h->mutex);
    return code;
}

static int32_t joint_sum(qmi_exchange *end, qmi_address from, qmi_address to, int64_t count)
{
    joint_end *e = end_of(end);
    int32_t code = joint_failed(end);
    if (code >= 0 && e->cancel && __atomic_load_n(e->cancel, __ATOMIC_ACQUIRE))
        code = qmi_fail(QM_ERROR_CANCELLED, "cancelled");
    return code < 0 ? code : e->joint->sum(e->own, from, to, count);
}

static int32_t joint_gather(qmi_exchange *end, qmi_address from, qmi_address to, const int64_t *counts)
{
    qmi_exchange *host = end_of(end)->host;
    return host->carrier->gather(host, from, to, counts);
}

static int32_t joint_send(qmi_exchange *end, int32_t rank, qmi_address from, int64_t count)
{
    qmi_exchange *host = end_of(end)->host;
    return host->carrier->send(host, rank, from, count);
}

static int32_t joint_receive(qmi_exchange *end, int32_t rank, qmi_address to, int64_t count)
{
    qmi_exchange *host = end_of(end)->host;
    return host->carrier->receive(host, rank, to, count);
}

static void joint_give_up(qmi_exchange *end, int32_t code, const char *message)
{
    joint_end *e = end_of(end);
    joint_hub *h = e->hub;
    qmi_os_mutex_lock(h->mutex);
    if (h->code == 0 || (code == QM_ERROR_DEVICE && h->code != QM_ERROR_DEVICE)) {
        h->code = code;
        snprintf(h->message, sizeof h->message, "%s", message);
    }
    __atomic_store_n(&h->broken, 1, __ATOMIC_RELEASE);
    h->broken_step = e->step;
    for (int32_t i = 0; i < h->count; i++)
        if (h->ends[i] && h->ends[i]->own)
            h->ends[i]->joint->abort(h->ends[i]->own);
    qmi_os_mutex_unlock(h->mutex);
    e->host->carrier->give_up(e->host, code, message);
}

static void free_hub(joint_hub *h)
{
    const qmi_alloc alloc = h->alloc;
    qmi_os_mutex_free(&h->mutex);
    qmi_delete(&alloc, h);
}

static void joint_close(qmi_exchange *end)
{
    joint_end *e = end_of(end);
    joint_hub *h = e->hub;
    leave(e);
    if (e->host)
        e->host->carrier->close(e->host);
    qmi_os_mutex_lock(h->mutex);
    h->ends[e->base.rank] = NULL;
    bool last = --h->open_ends == 0;
    qmi_os_mutex_unlock(h->mutex);
    qmi_delete(&h->alloc, e);
    if (last)
        free_hub(h);
}

static qmi_joint_end *joint_inside(const qmi_exchange *end)
{
    const joint_end *e = (const joint_end *)(const void *)end;
    return e->joint->inside ? e->own : NULL;
}

static const qmi_carrier joint_carrier = {
    .name = "joint",
    .start = joint_start,
    .sum = joint_sum,
    .gather = joint_gather,
    .send = joint_send,
    .receive = joint_receive,
    .give_up = joint_give_up,
    .close = joint_close,
    .inside = joint_inside,
    .failed = joint_failed,
};

/* ---- opening ---- */

static void join_first(void *argument)
{
    joint_end *e = argument;
    while (__atomic_load_n(&e->hub->gate, __ATOMIC_ACQUIRE) == 0)
        qmi_os_wait_word(&e->hub->gate, 0);
    if (__atomic_load_n(&e->hub->gate, __ATOMIC_ACQUIRE) < 0)
        return;
    e->code = join(e, e->hub->id, e->hub->circle);
    qmi_error_copy(e->message);
    if (e->code < 0) /* the others need not wait */
        __atomic_store_n(&e->hub->broken, 1, __ATOMIC_RELEASE);
}

/* All at once, each in a thread of its own; none if there are not threads for all. */
static int32_t join_all(joint_hub *h)
{
    qmi_os_thread *threads[QMI_RANKS_MAX] = { NULL };
    int32_t code = QM_OK, started = 1;
    for (; started < h->count && code >= 0; started++)
        code = qmi_os_thread_start(&threads[started], join_first, h->ends[started], "qwenmoe-join");
    __atomic_store_n(&h->gate, code >= 0 ? 1 : -1, __ATOMIC_RELEASE);
    qmi_os_wake_all(&h->gate);
    if (code >= 0)
        join_first(h->ends[0]);
    for (int32_t i = 1; i < started; i++)
        qmi_os_thread_join(&threads[i]);
    const joint_end *first = NULL; /* who failed by itself, rather than as another did */
    for (int32_t i = 0; i < h->count && code >= 0; i++)
        if (h->ends[i]->code < 0 && (!first || first->code == QM_ERROR_CANCELLED))
            first = h->ends[i];
    if (first) {
        qmi_error_restore(first->message);
        code = first->code;
    }
    return code;
}

/* Each of them has what joining takes: who lacks it would leave the others waiting. */
static int32_t check_all(const char *name, const qmi_exchange_member *members, int32_t count, uint8_t id[QMI_JOINT_ID])
{
    int32_t code = QM_OK;
    for (int32_t i = count - 1; i >= 0 && code >= 0; i--) {
        const qmi_joint *joint = qmi_joint_find(members[i].backend, name);
        if (!joint)
            return qmi_fail(QM_ERROR_UNSUPPORTED, "%s can't sum with the others by %s", members[i].name, name);
        code = joint->make_id(members[i].device, id);
        if (code < 0)
            qmi_fail_within(code, members[i].name);
    }
    return code;
}

static int32_t add_end(joint_hub *h, const char *name, const qmi_exchange_member *member, int32_t rank, qmi_exchange *host)
{
    joint_end *e = qmi_new(&h->alloc, 1, sizeof *e, "an end of an exchange");
    if (!e) {
        host->carrier->close(host);
        return QM_ERROR_MEMORY;
    }
    e->base = (qmi_exchange){ &joint_carrier, rank, h->count, member->backend, member->device };
    e->joint = qmi_joint_find(member->backend, name);
    e->hub = h;
    e->host = host;
    h->ends[rank] = e;
    h->open_ends++;
    return QM_OK;
}

int32_t qmi_exchange_joint_open(const char *name, const qmi_exchange_member *members, int32_t count, int64_t timeout_ns,
                                const qmi_alloc *alloc, qmi_exchange **ends)
{
    uint8_t id[QMI_JOINT_ID];
    qmi_exchange *hosts[QMI_RANKS_MAX];
    int32_t code = check_all(name, members, count, id);
    if (code < 0)
        return code;
    joint_hub *h = qmi_new(alloc, 1, sizeof *h, "an exchange");
    if (!h)
        return QM_ERROR_MEMORY;
    h->alloc = *alloc;
    h->count = count;
    h->timeout_ns = timeout_ns;
    h->circle = 1;
    memcpy(h->id, id, sizeof id);
    code = qmi_os_mutex_new(&h->mutex);
    if (code >= 0)
        code = qmi_exchange_host_open(members, count, timeout_ns, alloc, hosts);
    if (code < 0) {
        free_hub(h);
        return code;
    }
    for (int32_t i = 0; i < count; i++) { /* all are asked, so that none of the hosts is left over */
        int32_t added = add_end(h, name, &members[i], i, hosts[i]);
        code = added < 0 ? added : code;
    }
    if (code >= 0)
        code = join_all(h);
    if (code >= 0) {
        for (int32_t i = 0; i < count; i++)
            ends[i] = &h->ends[i]->base;
        return QM_OK;
    }
    char text[QMI_ERROR_SIZE];
    qmi_error_copy(text);
    int32_t left = h->open_ends;
    if (left == 0)
        free_hub(h);
    for (int32_t i = 0; i < count && left > 0; i++)
        if (h->ends[i]) {
            left--;
            joint_close(&h->ends[i]->base);
        }
    qmi_error_restore(text);
    return code;
}
