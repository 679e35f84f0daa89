/* How fast all threads together read memory: what bounds decoding. See cpu_backend.h. */
#include "cpu/cpu_backend.h"

#include <stdbool.h>
#include <stdlib.h>
#include "base/error.h"
#include "base/os.h"
#include "cpu/cpu_ops.h"

#define BUFFER_MIN ((int64_t)256 << 20)
#define CACHES 2                     /* times the last cache is the buffer, so that little of it is there when it is read again */
#define PIECE ((int64_t)512 << 10)   /* that a thread reads at a time: large against the start of a stream */
#define AHEAD 512                    /* words: a page */
#define PASSES_MIN 3
#define PASSES_MAX 100
#define TIME_NS 150000000            /* of a way: decoding takes long enough to have all kinds of moments, of which the middle
                                        one counts */

typedef struct reading {
    qmi_cpu_pool *pool;
    uint64_t *buffer;
    int64_t pieces;
    bool fetching; /* a page ahead, which some processors do not do by themselves */
    uint64_t sum;  /* of all, so that nothing read is left out as unused */
} reading;

static uint64_t sum_of(const uint64_t *words, int64_t count, bool fetching)
{
    uint64_t sums[8] = { 0 }, sum = 0; /* a cache line a step, and no addition waits for another */
    for (int64_t i = 0; i < count; i += 8) {
        if (fetching)
            __builtin_prefetch(words + i + AHEAD);
        for (int j = 0; j < 8; j++)
            sums[j] += words[i + j];
    }
    for (int j = 0; j < 8; j++)
        sum += sums[j];
    return sum;
}

static void read_pieces(void *argument, int32_t worker)
{
    reading *r = argument;
    uint64_t sum = 0;
    for (int64_t piece; (piece = qmi_cpu_pool_next(r->pool, worker, r->pieces)) < r->pieces;)
        sum += sum_of(r->buffer + piece * (PIECE / 8), PIECE / 8, r->fetching);
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

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Nanoseconds of the middle one of some passes. */
static int64_t time_passes(reading *r)
{
    int64_t took[PASSES_MAX], start = qmi_os_time_ns();
    int passes = 0;
    for (; passes < PASSES_MAX && (passes < PASSES_MIN || qmi_os_time_ns() - start < TIME_NS); passes++) {
        int64_t began = qmi_os_time_ns();
        qmi_cpu_pool_run(r->pool, read_pieces, r);
        took[passes] = qmi_os_time_ns() - began;
    }
    qsort(took, (size_t)passes, sizeof *took, compare);
    return took[passes / 2] > 0 ? took[passes / 2] : 1;
}

int64_t qmi_cpu_read_rate(qmi_device *device)
{
    int64_t bytes = CACHES * qmi_os_last_cache(), available = qmi_os_memory_available(), took;
    if (bytes > available / 4)
        bytes = available / 4;
    if (bytes < BUFFER_MIN)
        bytes = BUFFER_MIN;
    if (available < 2 * bytes)
        return qmi_fail(QM_ERROR_MEMORY, "the rate of reading is measured on %lld MiB, of which this machine has not enough",
                        (long long)(bytes >> 20));
    reading r = { .pool = device->pool, .pieces = bytes / PIECE };
    r.buffer = qmi_new(&device->alloc, (size_t)bytes, 1, "measuring the rate of reading");
    if (!r.buffer)
        return QM_ERROR_MEMORY;
    qmi_cpu_pool_run(device->pool, fill_pieces, &r);
    took = time_passes(&r);
    r.fetching = true;
    took = qmi_cpu_least(took, time_passes(&r));
    qmi_delete(&device->alloc, r.buffer);
    return (int64_t)((double)(r.pieces * PIECE) * 1e9 / (double)took);
}
