/* Measured constants: see probe.h. */
#include "exchange/probe.h"

#include "base/os.h"
#include "exchange/exchange_host.h"

#define COPIED ((int64_t)64 << 20)  /* more than caches of cards hold */
#define COPIES 4
#define SUMS 40
#define TIMEOUT_NS INT64_C(5000000000)
/* What starting costs, by where a device's memory is. On an H200 35B-A3B takes 1.3 ms a token for 260 kernels that read 1.96 GB
 * at 4.6 TB/s: 3.3 us each besides; a program is a graph that is launched and waited for. On a CPU an op is a barrier of the
 * workers, and a program their waking. */
#define CARD_OP_NS 3300
#define CARD_RUN_NS 12000
#define CPU_OP_NS 2000
#define CPU_RUN_NS 5000

/* Bytes a second that a card reads: half of the bytes a copy within its memory moves are read. */
static double copy_rate(const qmi_exchange_member *member)
{
    const qmi_backend *backend = member->backend;
    qmi_address from = 0, to = 0;
    uint8_t last = 0;
    double rate = 0;
    int32_t code = backend->allocate(member->device, COPIED, "a measurement", &from);
    if (code >= 0)
        code = backend->allocate(member->device, COPIED, "a measurement", &to);
    if (code >= 0) /* the first one pays for what is done once */
        code = backend->copy(member->device, to, from, COPIED);
    if (code >= 0)
        code = backend->read(member->device, &last, to, 1);
    int64_t start = qmi_os_time_ns();
    for (int32_t i = 0; i < COPIES && code >= 0; i++)
        code = backend->copy(member->device, to, from, COPIED);
    if (code >= 0)
        code = backend->read(member->device, &last, to, 1);
    if (code >= 0)
        rate = 2.0 * COPIES * COPIED / (double)(qmi_os_time_ns() - start) * 1e9;
    backend->release(member->device, from);
    backend->release(member->device, to);
    return rate;
}

typedef struct summer {
    qmi_exchange *end;
    qmi_address values;
    int64_t width, ns; /* of one sum; 0: it failed */
} summer;

static void sum_often(void *argument)
{
    summer *s = argument;
    int64_t start = 0;
    int32_t code = s->end->carrier->start(s->end, NULL);
    for (int32_t i = -4; i < SUMS && code >= 0; i++) {
        if (i == 0)
            start = qmi_os_time_ns();
        code = s->end->carrier->sum(s->end, s->values, s->values, s->width);
    }
    s->ns = code < 0 ? 0 : (qmi_os_time_ns() - start) / SUMS;
}

/* All members at once, each in a thread of its own but the first. */
static void run_sums(summer *summers, int32_t count)
{
    qmi_os_thread *threads[QMI_RANKS_MAX] = { NULL };
    int32_t code = QM_OK;
    for (int32_t i = 1; i < count && code >= 0; i++)
        code = qmi_os_thread_start(&threads[i], sum_often, &summers[i], "qwenmoe-probe");
    if (code < 0)
        summers[0].end->carrier->give_up(summers[0].end, code, "no thread");
    sum_often(&summers[0]);
    for (int32_t i = 1; i < count; i++)
        qmi_os_thread_join(&threads[i]);
}

static int64_t sum_ns(const qmi_exchange_member *members, int32_t count, int64_t width, const qmi_alloc *alloc)
{
    qmi_exchange *ends[QMI_RANKS_MAX];
    summer summers[QMI_RANKS_MAX] = { { 0 } };
    if (qmi_exchange_host_open(members, count, TIMEOUT_NS, alloc, ends) < 0)
        return 0;
    int32_t code = QM_OK;
    for (int32_t i = 0; i < count && code >= 0; i++) {
        summers[i] = (summer){ .end = ends[i], .width = width };
        code = members[i].backend->allocate(members[i].device, width * (int64_t)sizeof(float), "a measurement",
                                            &summers[i].values);
    }
    if (code >= 0)
        run_sums(summers, count);
    for (int32_t i = 0; i < count; i++) {
        members[i].backend->release(members[i].device, summers[i].values);
        ends[i]->carrier->close(ends[i]);
    }
    return summers[0].ns;
}

void qmi_probe_known(bool host, qmi_group_rates *rates, int32_t member)
{
    rates->op_ns[member] = host ? CPU_OP_NS : CARD_OP_NS;
    rates->run_ns[member] = host ? CPU_RUN_NS : CARD_RUN_NS;
}

void qmi_probe(const qmi_exchange_member *members, int32_t count, int64_t width, const qmi_alloc *alloc, qmi_group_rates *out)
{
    *out = (qmi_group_rates){ 0 };
    int32_t measured = -1; /* devices that compute in the host's memory read it equally fast */
    for (int32_t i = 0; i < count; i++) {
        qmi_device_info info;
        members[i].backend->info(members[i].device, &info);
        qmi_probe_known(info.shares_host, out, i);
        if (!members[i].backend->read_rate) {
            out->read[i] = copy_rate(&members[i]);
        } else if (measured >= 0 && members[measured].backend == members[i].backend && info.shares_host) {
            out->read[i] = out->read[measured];
        } else {
            int64_t rate = members[i].backend->read_rate(members[i].device);
            out->read[i] = rate > 0 ? (double)rate : 0;
            measured = i;
        }
    }
    out->exchange_ns = (double)sum_ns(members, count, width, alloc);
}
