/* The exchange through host memory: see exchange_host.h.
 *
 * The ends share a hub: of each rank two buffers for sums and gathers, used in turn, since a rank can be one sum ahead of
 * another that still reads; and of each pair of ranks a queue of messages. Whoever waits spins for a moment, since sums of a
 * decoded token follow each other within microseconds, and then sleeps. */
#include "exchange/exchange_host.h"

#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "base/os.h"

#define SPIN_NS 20000           /* about the time from one sum of a token to the next on a fast device */
#define SPIN_CARDS_NS 2000000   /* of cards alone, whose host has nothing else to do: a token's time, as waking costs 50 us */
#define LOOK_NS 5000000         /* how often a sleeper looks at the cancel word */
#define NEVER INT64_MAX

typedef struct message {
    struct message *next;
    int64_t count;
    float values[];
} message;

typedef struct rank_state {
    float *buffers[2];
    size_t capacity[2];         /* floats */
    message *first[QMI_RANKS_MAX], **last[QMI_RANKS_MAX]; /* on their way from each rank */
    int64_t arrived;            /* sums and gathers of this step that it has given its part of; read without the mutex */
    int64_t received;           /* messages put into its queues in this step; likewise */
} rank_state;

typedef struct hub {
    qmi_alloc alloc;
    qmi_os_mutex *mutex;        /* guards what follows */
    qmi_os_condition *changed;
    int32_t ranks, open_ends;
    int64_t timeout_ns, spin_ns;
    int64_t step;
    int32_t code;               /* of the first failure; read without the mutex */
    char message[QMI_ERROR_SIZE];
    char names[QMI_RANKS_MAX][32];
    rank_state states[QMI_RANKS_MAX];
} hub;

typedef struct host_end {
    qmi_exchange base;
    hub *hub;
    int64_t step, rounds;       /* sums and gathers of this step */
    const int32_t *cancel;
    float *result;
    size_t capacity;            /* floats */
} host_end;

/* ---- failures and waiting ---- */

static void fail_as(hub *h, int32_t rank, int32_t code, const char *text)
{
    qmi_os_mutex_lock(h->mutex);
    if (h->code == 0) {
        snprintf(h->message, sizeof h->message, "rank %d (%s): %s", rank, h->names[rank], text);
        __atomic_store_n(&h->code, code, __ATOMIC_RELEASE);
    }
    qmi_os_condition_signal_all(h->changed);
    qmi_os_mutex_unlock(h->mutex);
}

static int32_t report(hub *h)
{
    char text[QMI_ERROR_SIZE];
    qmi_os_mutex_lock(h->mutex);
    int32_t code = h->code;
    memcpy(text, h->message, sizeof text);
    qmi_os_mutex_unlock(h->mutex);
    return qmi_fail(code, "%s", text);
}

static bool has_failed(const hub *h)
{
    return __atomic_load_n(&h->code, __ATOMIC_ACQUIRE) != 0;
}

static bool is_cancelled(const host_end *e)
{
    return e->cancel && __atomic_load_n(e->cancel, __ATOMIC_ACQUIRE);
}

/* Until *counter >= wanted, which `rank` brings about. */
static int32_t wait_for(host_end *e, const int64_t *counter, int64_t wanted, int32_t rank)
{
    hub *h = e->hub;
    int64_t start = qmi_os_time_ns(), now = start, limit = h->timeout_ns < 0 ? NEVER : h->timeout_ns;
    while (__atomic_load_n(counter, __ATOMIC_ACQUIRE) < wanted && !has_failed(h)) {
        if (is_cancelled(e)) {
            fail_as(h, e->base.rank, QM_ERROR_CANCELLED, "cancelled");
        } else if (now - start >= limit) {
            char text[64];
            snprintf(text, sizeof text, "did not answer rank %d within %.3g s", e->base.rank, (double)limit * 1e-9);
            fail_as(h, rank, QM_ERROR_DEVICE, text);
        } else if (now - start < h->spin_ns) {
            qmi_os_yield();
        } else {
            int64_t left = limit - (now - start);
            qmi_os_mutex_lock(h->mutex);
            if (__atomic_load_n(counter, __ATOMIC_ACQUIRE) < wanted && h->code == 0)
                qmi_os_condition_wait(h->changed, h->mutex, left < LOOK_NS ? left : LOOK_NS);
            qmi_os_mutex_unlock(h->mutex);
        }
        now = qmi_os_time_ns();
    }
    return has_failed(h) ? report(h) : QM_OK;
}

static void announce(hub *h, int64_t *counter, int64_t value)
{
    qmi_os_mutex_lock(h->mutex);
    __atomic_store_n(counter, value, __ATOMIC_RELEASE);
    qmi_os_condition_signal_all(h->changed);
    qmi_os_mutex_unlock(h->mutex);
}

/* ---- steps ---- */

static void drop_messages(hub *h, rank_state *state)
{
    for (int32_t i = 0; i < h->ranks; i++) {
        while (state->first[i]) {
            message *m = state->first[i];
            state->first[i] = m->next;
            qmi_delete(&h->alloc, m);
        }
        state->last[i] = &state->first[i];
    }
}

static int32_t host_start(qmi_exchange *end, const int32_t *cancel)
{
    host_end *e = (host_end *)end;
    hub *h = e->hub;
    e->step++;
    e->rounds = 0;
    e->cancel = cancel;
    qmi_os_mutex_lock(h->mutex);
    if (h->step < e->step) { /* the first of the ranks to come */
        h->step = e->step;
        if (h->code != QM_ERROR_DEVICE)
            __atomic_store_n(&h->code, 0, __ATOMIC_RELEASE);
        for (int32_t i = 0; i < h->ranks; i++) {
            drop_messages(h, &h->states[i]);
            h->states[i].arrived = h->states[i].received = 0;
        }
    }
    qmi_os_mutex_unlock(h->mutex);
    return has_failed(h) ? report(h) : QM_OK;
}

/* ---- sums and gathers ---- */

static int32_t reserve(hub *h, float **values, size_t *capacity, int64_t count)
{
    return qmi_reserve(&h->alloc, (void **)values, capacity, (size_t)count, sizeof(float), "activations on their way");
}

static int32_t read_values(host_end *e, float *to, qmi_address from, int64_t count)
{
    return count == 0 ? QM_OK : e->base.backend->read(e->base.device, to, from, count * (int64_t)sizeof(float));
}

static int32_t write_values(host_end *e, qmi_address to, const float *from, int64_t count)
{
    return count == 0 ? QM_OK : e->base.backend->write(e->base.device, to, from, count * (int64_t)sizeof(float));
}

/* A fault of this rank's own ends the step for all. */
static int32_t end_for_all(host_end *e, int32_t code)
{
    if (code < 0 && !has_failed(e->hub))
        fail_as(e->hub, e->base.rank, code, qmi_error_text());
    return code;
}

/* Gives this rank's part; *buffer says in which of the two it lies. */
static int32_t give(host_end *e, qmi_address from, int64_t count, int32_t *buffer)
{
    hub *h = e->hub;
    rank_state *own = &h->states[e->base.rank];
    *buffer = (int32_t)(e->rounds & 1);
    int32_t code = has_failed(h) ? report(h) : reserve(h, &own->buffers[*buffer], &own->capacity[*buffer], count);
    if (code >= 0)
        code = read_values(e, own->buffers[*buffer], from, count);
    if (code >= 0)
        announce(h, &own->arrived, ++e->rounds);
    return end_for_all(e, code);
}

static int32_t host_sum(qmi_exchange *end, qmi_address from, qmi_address to, int64_t count)
{
    host_end *e = (host_end *)end;
    hub *h = e->hub;
    int32_t buffer, code = give(e, from, count, &buffer);
    if (code >= 0)
        code = end_for_all(e, reserve(h, &e->result, &e->capacity, count));
    for (int32_t rank = 0; rank < h->ranks && code >= 0; rank++) {
        code = wait_for(e, &h->states[rank].arrived, e->rounds, rank);
        const float *values = code < 0 ? NULL : h->states[rank].buffers[buffer];
        if (values && rank == 0)
            memcpy(e->result, values, (size_t)count * sizeof *values);
        for (int64_t i = 0; values && rank > 0 && i < count; i++)
            e->result[i] += values[i];
    }
    return code < 0 ? code : end_for_all(e, write_values(e, to, e->result, count));
}

static int32_t host_gather(qmi_exchange *end, qmi_address from, qmi_address to, const int64_t *counts)
{
    host_end *e = (host_end *)end;
    hub *h = e->hub;
    int32_t buffer, code = give(e, from, counts[e->base.rank], &buffer);
    for (int32_t rank = 0; rank < h->ranks && code >= 0; rank++) {
        code = wait_for(e, &h->states[rank].arrived, e->rounds, rank);
        if (code >= 0)
            code = end_for_all(e, write_values(e, to, h->states[rank].buffers[buffer], counts[rank]));
        to += (qmi_address)counts[rank] * sizeof(float);
    }
    return code;
}

/* ---- messages ---- */

static int32_t host_send(qmi_exchange *end, int32_t rank, qmi_address from, int64_t count)
{
    host_end *e = (host_end *)end;
    hub *h = e->hub;
    rank_state *other = &h->states[rank];
    if (has_failed(h))
        return report(h);
    message *m = qmi_new(&h->alloc, 1, sizeof *m + (size_t)count * sizeof(float), "activations on their way");
    int32_t code = m ? read_values(e, m->values, from, count) : QM_ERROR_MEMORY;
    if (code < 0) {
        qmi_delete(&h->alloc, m);
        return end_for_all(e, code);
    }
    m->count = count;
    qmi_os_mutex_lock(h->mutex);
    *other->last[e->base.rank] = m;
    other->last[e->base.rank] = &m->next;
    __atomic_store_n(&other->received, other->received + 1, __ATOMIC_RELEASE);
    qmi_os_condition_signal_all(h->changed);
    qmi_os_mutex_unlock(h->mutex);
    return QM_OK;
}

/* The next message from that rank, or NULL when there is none yet; *received: how many of all ranks had come by then. */
static message *take_message(hub *h, rank_state *own, int32_t rank, int64_t *received)
{
    qmi_os_mutex_lock(h->mutex);
    message *m = own->first[rank];
    if (m) {
        own->first[rank] = m->next;
        if (!m->next)
            own->last[rank] = &own->first[rank];
    }
    *received = own->received;
    qmi_os_mutex_unlock(h->mutex);
    return m;
}

static int32_t host_receive(qmi_exchange *end, int32_t rank, qmi_address to, int64_t count)
{
    host_end *e = (host_end *)end;
    hub *h = e->hub;
    rank_state *own = &h->states[e->base.rank];
    int64_t received;
    int32_t code = has_failed(h) ? report(h) : QM_OK;
    message *m = code < 0 ? NULL : take_message(h, own, rank, &received);
    while (!m && code >= 0) {
        code = wait_for(e, &own->received, received + 1, rank);
        m = code < 0 ? NULL : take_message(h, own, rank, &received);
    }
    if (m && m->count != count)
        code = qmi_fail(QM_ERROR_STATE, "%lld values came from rank %d where %lld were expected", (long long)m->count, rank,
                        (long long)count);
    else if (m)
        code = write_values(e, to, m->values, count);
    qmi_delete(&h->alloc, m);
    return end_for_all(e, code);
}

/* ---- opening and closing ---- */

static void host_give_up(qmi_exchange *end, int32_t code, const char *message)
{
    fail_as(((host_end *)end)->hub, end->rank, code, message);
}

static void free_hub(hub *h)
{
    const qmi_alloc alloc = h->alloc;
    for (int32_t i = 0; i < h->ranks; i++) {
        drop_messages(h, &h->states[i]);
        qmi_delete(&alloc, h->states[i].buffers[0]);
        qmi_delete(&alloc, h->states[i].buffers[1]);
    }
    qmi_os_condition_free(&h->changed);
    qmi_os_mutex_free(&h->mutex);
    qmi_delete(&alloc, h);
}

static void host_close(qmi_exchange *end)
{
    host_end *e = (host_end *)end;
    hub *h = e->hub;
    qmi_os_mutex_lock(h->mutex);
    bool last = --h->open_ends == 0;
    qmi_os_mutex_unlock(h->mutex);
    qmi_delete(&h->alloc, e->result);
    qmi_delete(&h->alloc, e);
    if (last)
        free_hub(h);
}

static const qmi_carrier host_carrier = {
    .name = "host",
    .start = host_start,
    .sum = host_sum,
    .gather = host_gather,
    .send = host_send,
    .receive = host_receive,
    .give_up = host_give_up,
    .close = host_close,
};

int64_t qmi_exchange_spin(const qmi_exchange_member *members, int32_t count)
{
    bool cards = true;
    for (int32_t i = 0; i < count; i++) {
        qmi_device_info info = { 0 };
        if (members[i].backend->info)
            members[i].backend->info(members[i].device, &info);
        cards = cards && !info.shares_host;
    }
    return cards ? SPIN_CARDS_NS : SPIN_NS;
}

static int32_t new_hub(const qmi_exchange_member *members, int32_t count, int64_t timeout_ns, const qmi_alloc *alloc, hub **out)
{
    hub *h = qmi_new(alloc, 1, sizeof *h, "an exchange");
    *out = h;
    if (!h)
        return QM_ERROR_MEMORY;
    h->alloc = *alloc;
    h->ranks = count;
    h->timeout_ns = timeout_ns;
    h->spin_ns = qmi_exchange_spin(members, count);
    for (int32_t i = 0; i < count; i++) {
        memcpy(h->names[i], members[i].name, sizeof h->names[i]);
        drop_messages(h, &h->states[i]);
    }
    int32_t code = qmi_os_mutex_new(&h->mutex);
    return code < 0 ? code : qmi_os_condition_new(&h->changed);
}

int32_t qmi_exchange_host_open(const qmi_exchange_member *members, int32_t count, int64_t timeout_ns, const qmi_alloc *alloc,
                               qmi_exchange **ends)
{
    hub *h;
    int32_t code = new_hub(members, count, timeout_ns, alloc, &h);
    for (int32_t i = 0; i < count && code >= 0; i++) {
        host_end *e = qmi_new(alloc, 1, sizeof *e, "an end of an exchange");
        if (!e) {
            code = QM_ERROR_MEMORY;
            break;
        }
        e->base = (qmi_exchange){ &host_carrier, i, count, members[i].backend, members[i].device };
        e->hub = h;
        h->open_ends++;
        ends[i] = &e->base;
    }
    if (code >= 0)
        return QM_OK;
    int32_t opened = h ? h->open_ends : 0;
    for (int32_t i = 0; i < opened; i++)
        host_close(ends[i]);
    if (h && opened == 0)
        free_hub(h);
    memset(ends, 0, (size_t)count * sizeof *ends);
    return code;
}
