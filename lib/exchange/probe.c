/* Measured constants: see probe.h. */
#include "exchange/probe.h"

#include <string.h>
#include "base/error.h"
#include "base/os.h"
#include "exchange/exchange_host.h"
#include "exchange/exchange_joint.h"

#define COPIED ((int64_t)64 << 20)  /* more than caches of cards hold */
#define COPIES 4
#define SUMS 40
#define WARM_SUMS 4
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
    float *host;           /* [width] */
    int64_t width, ns;     /* ns: of one sum */
    int32_t code;
    char message[QMI_ERROR_SIZE];
} summer;

/* Small whole numbers, different on each rank and at each place, whose sum is exact. */
static float value_at(int32_t rank, int64_t i)
{
    return (float)((i * 7 + rank * 13) % 61);
}

static int32_t check_sum(summer *s)
{
    const qmi_exchange *end = s->end;
    int32_t code = end->backend->read(end->device, s->host, s->values, s->width * (int64_t)sizeof(float));
    for (int64_t i = 0; i < s->width && code >= 0; i++) {
        float expected = 0;
        for (int32_t r = 0; r < end->ranks; r++)
            expected += value_at(r, i);
        if (s->host[i] != expected)
            code = qmi_fail(QM_ERROR_DEVICE, "a sum of %d devices is %g at place %lld, and should be %g", end->ranks,
                            (double)s->host[i], (long long)i, (double)expected);
    }
    return code;
}

/* The first sum is looked at; it also pays for what is done once. */
static int32_t sum_often(summer *s)
{
    qmi_exchange *end = s->end;
    int64_t start = 0;
    for (int64_t i = 0; i < s->width; i++)
        s->host[i] = value_at(end->rank, i);
    int32_t code = end->backend->write(end->device, s->values, s->host, s->width * (int64_t)sizeof(float));
    if (code >= 0)
        code = end->carrier->start(end, NULL);
    if (code >= 0)
        code = end->carrier->sum(end, s->values, s->values, s->width);
    if (code >= 0)
        code = check_sum(s);
    for (int32_t i = -WARM_SUMS; i < SUMS && code >= 0; i++) {
        if (i == 0)
            start = qmi_os_time_ns();
        code = end->carrier->sum(end, s->values, s->values, s->width);
    }
    if (code >= 0)
        code = end->backend->read(end->device, s->host, s->values, sizeof(float)); /* waits for them */
    s->ns = (qmi_os_time_ns() - start) / SUMS;
    return code;
}

static void sum_body(void *argument)
{
    summer *s = argument;
    s->code = sum_often(s);
    if (s->code >= 0)
        return;
    qmi_error_copy(s->message);
    s->end->carrier->give_up(s->end, s->code, s->message);
}

/* All members at once, each in a thread of its own but the first. */
static int32_t run_sums(summer *summers, int32_t count)
{
    qmi_os_thread *threads[QMI_RANKS_MAX] = { NULL };
    int32_t code = QM_OK;
    for (int32_t i = 1; i < count && code >= 0; i++)
        code = qmi_os_thread_start(&threads[i], sum_body, &summers[i], "qwenmoe-probe");
    if (code < 0)
        summers[0].end->carrier->give_up(summers[0].end, code, "no thread");
    sum_body(&summers[0]);
    for (int32_t i = 1; i < count; i++)
        qmi_os_thread_join(&threads[i]);
    for (int32_t i = 0; i < count && code >= 0; i++)
        if (summers[i].code < 0) {
            qmi_error_restore(summers[i].message);
            code = summers[i].code;
        }
    return code;
}

int32_t qmi_probe_sum(const char *way, const qmi_exchange_member *members, int32_t count, int64_t width, const qmi_alloc *alloc,
                      double *ns)
{
    qmi_exchange *ends[QMI_RANKS_MAX];
    *ns = 0;
    int32_t code = strcmp(way, "host") == 0 ? qmi_exchange_host_open(members, count, TIMEOUT_NS, alloc, ends)
                                            : qmi_exchange_joint_open(way, members, count, TIMEOUT_NS, alloc, ends);
    if (code < 0)
        return code;
    summer *summers = qmi_new(alloc, (size_t)count, sizeof *summers, "a measurement");
    code = summers ? QM_OK : QM_ERROR_MEMORY;
    for (int32_t i = 0; i < count && code >= 0; i++) {
        summers[i] = (summer){ .end = ends[i], .width = width };
        summers[i].host = qmi_new(alloc, (size_t)width, sizeof(float), "a measurement");
        code = summers[i].host ? members[i].backend->allocate(members[i].device, width * (int64_t)sizeof(float), "a measurement",
                                                              &summers[i].values)
                               : QM_ERROR_MEMORY;
    }
    if (code >= 0)
        code = run_sums(summers, count);
    if (code >= 0)
        *ns = (double)summers[0].ns;
    char text[QMI_ERROR_SIZE];
    qmi_error_copy(text);
    for (int32_t i = 0; i < count; i++) {
        ends[i]->carrier->close(ends[i]);
        if (summers)
            members[i].backend->release(members[i].device, summers[i].values);
        if (summers)
            qmi_delete(alloc, summers[i].host);
    }
    qmi_delete(alloc, summers);
    qmi_error_restore(text);
    return code;
}

void qmi_probe_known(bool host, qmi_group_rates *rates, int32_t member)
{
    rates->op_ns[member] = host ? CPU_OP_NS : CARD_OP_NS;
    rates->run_ns[member] = host ? CPU_RUN_NS : CARD_RUN_NS;
}

void qmi_probe_rates(const qmi_exchange_member *members, int32_t count, qmi_group_rates *out)
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
}
