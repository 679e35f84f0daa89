/* The threads of a CPU device: they run one function together, sharing its work by counters and meeting at barriers.
 *
 * One run is a whole forward pass, so nothing is created or woken in between. Waiting spins for a moment, then sleeps, so an idle
 * pool costs nothing and one with fewer processors than threads still gets on. */
#ifndef QMI_CPU_CPU_POOL_H
#define QMI_CPU_CPU_POOL_H

#include <stdbool.h>
#include <stdint.h>
#include "base/alloc.h"

#define QMI_CPU_THREADS_MAX 1024

typedef struct qmi_cpu_pool qmi_cpu_pool;
typedef void (*qmi_cpu_body)(void *argument, int32_t worker);

/* threads includes the thread that calls run. pin binds the others to a processor each, where there are enough of them; the
 * caller's own is the host's and stays as it is. */
int32_t qmi_cpu_pool_new(const qmi_alloc *alloc, int32_t threads, bool pin, qmi_cpu_pool **out);
void qmi_cpu_pool_free(const qmi_alloc *alloc, qmi_cpu_pool **pool); /* accepts NULL */

/* body(argument, w) on each thread, w = 0 on the caller's; returns when all have ended. One caller at a time. */
void qmi_cpu_pool_run(qmi_cpu_pool *pool, qmi_cpu_body body, void *argument);

/* Within a body, called by all its workers. What any wrote before it, all may read after it. */
void qmi_cpu_pool_barrier(qmi_cpu_pool *pool);

/* A number of 0 .. count - 1 that no worker has had since the last barrier (or the start of the run); count when none is left.
 * Between two barriers all workers give the same count, below 2^31. Each has a share of successive numbers, which it takes in
 * ascending order, so that it reads weights as one stream; who is done takes from the others' shares, so that one who is held up
 * holds up nobody. Who gets which is chance, so results must not depend on it. */
int64_t qmi_cpu_pool_next(qmi_cpu_pool *pool, int32_t worker, int64_t count);

#endif
