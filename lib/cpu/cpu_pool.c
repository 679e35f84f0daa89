/* Threads, their barrier and their counter of work: see cpu_pool.h. */
#include "cpu/cpu_pool.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include "base/error.h"
#include "base/os.h"

#define LINE 64 /* bytes of a cache line: what different threads write is kept apart */

/* How long a waiting thread spins before it sleeps. Waking takes some 50 us, so spinning about as long at most doubles a wait.
 * Between two tokens the caller samples and makes text, for which sleeping at once would cost a wake-up for every token. */
#define SPIN_NS 100000
#define SPIN_CROWDED_NS 2000 /* when threads must share processors: whoever is waited for may need this one */

/* A word that changes when the gate opens. */
typedef struct gate {
    _Alignas(LINE) _Atomic int32_t word;
    _Atomic int32_t sleepers;
} gate;

typedef struct member {
    _Alignas(LINE) _Atomic uint64_t taken; /* phase << 32 | how many items of its share have been taken in that phase */
    qmi_cpu_pool *pool;
    qmi_os_thread *thread;
    int32_t index;
} member;

struct qmi_cpu_pool {
    gate start, barrier;
    _Alignas(LINE) _Atomic int32_t arrived;
    _Alignas(LINE) qmi_cpu_body body; /* of the run; NULL: the threads end */
    void *argument;
    int64_t spin_ns;
    int32_t threads;
    bool pin;
    member members[]; /* [threads]; the first, the caller's, has no thread */
};

/* Both sides are sequentially consistent: either the opener sees the sleeper's count, or the sleeper sees the changed word. */
static void gate_open(gate *g)
{
    atomic_fetch_add(&g->word, 1);
    if (atomic_load(&g->sleepers) > 0)
        qmi_os_wake_all((const int32_t *)&g->word);
}

static void gate_wait(gate *g, int32_t seen, int64_t spin_ns)
{
    int64_t until = 0;
    for (;;) {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(&g->word, memory_order_acquire) != seen)
                return;
            qmi_os_spin_pause();
        }
        int64_t now = qmi_os_time_ns();
        if (until == 0)
            until = now + spin_ns;
        if (now >= until)
            break;
    }
    atomic_fetch_add(&g->sleepers, 1);
    while (atomic_load(&g->word) == seen)
        qmi_os_wait_word((const int32_t *)&g->word, seen);
    atomic_fetch_sub(&g->sleepers, 1);
}

void qmi_cpu_pool_barrier(qmi_cpu_pool *pool)
{
    int32_t seen = atomic_load_explicit(&pool->barrier.word, memory_order_relaxed); /* can't change before this thread arrives */
    if (atomic_fetch_add(&pool->arrived, 1) + 1 < pool->threads) {
        gate_wait(&pool->barrier, seen, pool->spin_ns);
        return;
    }
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
    gate_open(&pool->barrier);
}

/* Takes an item of a worker's share; count if none is left. A count of another phase is as good as none: the first who comes
 * begins anew, the owner or a thief. Nothing is ordered by it: barriers do that. */
static int64_t take(qmi_cpu_pool *pool, uint32_t phase, int32_t owner, int64_t count)
{
    int64_t first = count * owner / pool->threads, size = count * (owner + 1) / pool->threads - first;
    _Atomic uint64_t *taken = &pool->members[owner].taken;
    uint64_t seen = atomic_load_explicit(taken, memory_order_relaxed);
    for (;;) {
        uint64_t done = seen >> 32 == phase ? (uint32_t)seen : 0;
        if ((int64_t)done >= size)
            return count;
        if (atomic_compare_exchange_weak_explicit(taken, &seen, (uint64_t)phase << 32 | (done + 1), memory_order_relaxed,
                                                  memory_order_relaxed))
            return first + (int64_t)done;
    }
}

int64_t qmi_cpu_pool_next(qmi_cpu_pool *pool, int32_t worker, int64_t count)
{
    uint32_t phase = (uint32_t)atomic_load_explicit(&pool->barrier.word, memory_order_relaxed); /* changes only when all meet */
    for (int32_t i = 0; i < pool->threads; i++) {
        int64_t item = take(pool, phase, (worker + i) % pool->threads, count);
        if (item < count)
            return item;
    }
    /* So that no count of a phase lasts until the numbers of phases come round again. */
    atomic_store_explicit(&pool->members[worker].taken, (uint64_t)phase << 32 | UINT32_MAX, memory_order_relaxed);
    return count;
}

void qmi_cpu_pool_run(qmi_cpu_pool *pool, qmi_cpu_body body, void *argument)
{
    pool->body = body;
    pool->argument = argument;
    gate_open(&pool->start);
    body(argument, 0);
    qmi_cpu_pool_barrier(pool);
}

static void member_main(void *pointer)
{
    member *self = pointer;
    qmi_cpu_pool *pool = self->pool;
    if (pool->pin)
        qmi_os_pin_self(self->index); /* where it is refused, the thread runs wherever it is put */
    for (uint32_t runs = 0;; runs++) { /* each opens the gate once, and the next one only after all have met */
        gate_wait(&pool->start, (int32_t)runs, pool->spin_ns);
        if (!pool->body)
            return;
        pool->body(pool->argument, self->index);
        qmi_cpu_pool_barrier(pool);
    }
}

int32_t qmi_cpu_pool_new(const qmi_alloc *alloc, int32_t threads, bool pin, qmi_cpu_pool **out)
{
    *out = NULL;
    if (threads < 1 || threads > QMI_CPU_THREADS_MAX)
        return qmi_fail(QM_ERROR_OPTION, "threads: %d is out of range (1 .. %d)", threads, QMI_CPU_THREADS_MAX);
    qmi_cpu_pool *pool = qmi_new(alloc, 1, sizeof *pool + (size_t)threads * sizeof(member), "threads of the CPU");
    if (!pool)
        return QM_ERROR_MEMORY;
    int32_t processors = qmi_os_processor_count();
    pool->threads = threads;
    pool->spin_ns = threads > processors ? SPIN_CROWDED_NS : SPIN_NS;
    /* Not when only a share of the processors' time is granted: others would bind theirs to the same first few. */
    pool->pin = pin && threads <= processors && processors == qmi_os_processor_set();
    for (int32_t i = 1; i < threads; i++) {
        char name[16];
        snprintf(name, sizeof name, "qwenmoe-cpu-%d", i % 1000);
        member *each = &pool->members[i];
        each->pool = pool;
        each->index = i;
        int32_t code = qmi_os_thread_start(&each->thread, member_main, each, name);
        if (code < 0) {
            qmi_cpu_pool_free(alloc, &pool);
            return code;
        }
    }
    *out = pool;
    return QM_OK;
}

void qmi_cpu_pool_free(const qmi_alloc *alloc, qmi_cpu_pool **pool)
{
    if (!*pool)
        return;
    (*pool)->body = NULL;
    gate_open(&(*pool)->start);
    for (int32_t i = 1; i < (*pool)->threads; i++)
        qmi_os_thread_join(&(*pool)->members[i].thread);
    qmi_delete(alloc, *pool);
    *pool = NULL;
}
