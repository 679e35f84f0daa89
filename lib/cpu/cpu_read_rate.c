/* How fast all threads together read memory: what bounds decoding. See cpu_backend.h. */
#include "base/error.h"
#include "base/os.h"
#include "cpu/cpu_backend.h"

#define BUFFER ((int64_t)256 << 20) /* several times the largest caches of a few cores */
#define PIECE ((int64_t)512 << 10)  /* that a thread reads at a time: large against the start of a stream */
#define PASSES_MIN 3
#define TIME_NS 300000000           /* the best pass of that time: the others were disturbed */

typedef struct reading {
    qmi_cpu_pool *pool;
    uint64_t *buffer;
    int64_t pieces;
    uint64_t sum;  /* of all, so that nothing read is left out as unused */
} reading;

static uint64_t sum_of(const uint64_t *words, int64_t count)
{
    uint64_t sums[8] = { 0 }, sum = 0; /* a cache line a step, and no addition waits for another */
    for (int64_t i = 0; i < count; i += 8)
        for (int j = 0; j < 8; j++)
            sums[j] += words[i + j];
    for (int j = 0; j < 8; j++)
        sum += sums[j];
    return sum;
}

static void read_pieces(void *argument, int32_t worker)
{
    reading *r = argument;
    uint64_t sum = 0;
    for (int64_t piece; (piece = qmi_cpu_pool_next(r->pool, worker, r->pieces)) < r->pieces;)
        sum += sum_of(r->buffer + piece * (PIECE / 8), PIECE / 8);
    __atomic_fetch_add(&r->sum, sum, __ATOMIC_RELAXED);
}

/* Pages that were never written are all one page of zeros. */
static void fill_pieces(void *argument, int32_t worker)
{
    reading *r = argument;
    for (int64_t piece; (piece = qmi_cpu_pool_next(r->pool, worker, r->pieces)) < r->pieces;)
        for (int64_t i = 0; i < PIECE / 8; i++)
            r->buffer[piece * (PIECE / 8) + i] = (uint64_t)i;
}

int64_t qmi_cpu_read_rate(qmi_device *device)
{
    int64_t best = 0, start = qmi_os_time_ns(), available = qmi_os_memory_available();
    if (available < 2 * BUFFER)
        return qmi_fail(QM_ERROR_MEMORY, "the rate of reading is measured on %lld MiB, of which this machine has not enough",
                        (long long)(BUFFER >> 20));
    reading r = { .pool = device->pool, .pieces = BUFFER / PIECE };
    r.buffer = qmi_new(&device->alloc, (size_t)BUFFER, 1, "measuring the rate of reading");
    if (!r.buffer)
        return QM_ERROR_MEMORY;
    qmi_cpu_pool_run(device->pool, fill_pieces, &r);
    for (int pass = 0; pass < PASSES_MIN || qmi_os_time_ns() - start < TIME_NS; pass++) {
        int64_t began = qmi_os_time_ns();
        qmi_cpu_pool_run(device->pool, read_pieces, &r);
        int64_t took = qmi_os_time_ns() - began, rate = (int64_t)((double)BUFFER * 1e9 / (double)(took > 0 ? took : 1));
        best = rate > best ? rate : best;
    }
    qmi_delete(&device->alloc, r.buffer);
    return best;
}
